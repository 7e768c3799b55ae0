"""The stage `search` under DVC: there where an arm is searched for, else not, and challenge runs in both cases.

Slow: each stage is a process of its own.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from synthgen.artifacts import read_json
from synthgen.stages.evaluate import run_evaluate
from synthgen.stages.plan import run_plan
from synthgen.stages.prepare import run_prepare
from synthgen.stages.workspace import Workspace
from tests.stages.test_search import write_pool

ROOT = Path(__file__).parents[2]
PARAMS = """
seed: 3
source: {type: digits, path: data/raw, simulate_scarcity: {keep: {"3": 15, "8": 15}, surplus: test}}
transforms: {rotate: 5.0}
plan: {folds: 3, target: 10, strategy: shared}
prepare: {image_size: 8, channels: 1}
classifier: {width: 4, steps: 6, batch: 32}
pretrain: {kimg: 0.1}
adapt: {kimg: 0.05}
scratch: {kimg: 0.05}
synthesize: {teacher_steps: 5}
assemble: {}
evaluate: {arms: [balanced], repeats: 2, crossfit: false, share: 0.25, mix_alpha: 0.3}
challenge: {arms: [best+synthetic], policies: {}, choice: balanced_accuracy, choice_errors: 1.0}
search: {trainings: 12}
compare: {confidence: 0.95}
worth: {}
report: {title: test}
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def _run(folder: Path, *command: str) -> str:
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def _changed(folder: Path, *stages: str) -> set[str]:
    return set(json.loads(_run(folder, "dvc", "status", "--json", *stages)))


def test_the_stage_comes_and_goes_with_the_arm_that_asks_for_it(tmp_path: Path) -> None:
    (tmp_path / "data" / "raw").mkdir(parents=True)
    (tmp_path / "params.yaml").write_text(PARAMS)
    for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, tmp_path / name)
    workspace = Workspace(tmp_path)
    run_plan(workspace)
    run_prepare(workspace)
    write_pool(workspace)
    run_evaluate(workspace, "balanced", torch.device("cpu"), n_workers=1)
    _run(tmp_path, "git", "init", "-q")
    _run(tmp_path, "dvc", "init", "-q")
    # without such an arm there is no stage, and challenge runs without its output
    assert "search" not in _run(tmp_path, "dvc", "stage", "list", "--name-only")
    _run(tmp_path, "dvc", "repro", "--single-item", "challenge")
    assert _changed(tmp_path, "challenge") == set()
    # with one the stage is there, and challenge waits for it
    (tmp_path / "params.yaml").write_text(PARAMS.replace("[best+synthetic]", "[best+synthetic, best+searched]"))
    _run(tmp_path, "synthgen", "plan")
    assert "search@policies" in _run(tmp_path, "dvc", "stage", "list", "--name-only").split()
    assert {"search@policies", "challenge@best+searched"} <= _changed(tmp_path)
    _run(tmp_path, "dvc", "repro", "--single-item", "search@policies", "challenge@best+searched")
    assert _changed(tmp_path, "search@policies", "challenge@best+searched") == set()
    assert read_json(tmp_path / "data/challenge/best+searched/arm.json")["search"]["cost"]["trainings"] <= 12
    # and gone again, it leaves nothing that is out of date
    (tmp_path / "params.yaml").write_text(PARAMS)
    _run(tmp_path, "synthgen", "plan")
    assert "search" not in _run(tmp_path, "dvc", "stage", "list", "--name-only")
    assert _changed(tmp_path, "challenge") == set()
