"""The repository's own dvc.yaml: what re-runs after a change, and a second clone that has only the remote.

Slow: each stage is a process of its own. What is claimed is read off `dvc status`, not off the clock.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from synthgen.artifacts import read_json

ROOT = Path(__file__).parents[2]
PARAMS = """
seed: 1
source: {type: imagefolder, path: data/raw}
transforms: {rotate: 5.0}
plan: {folds: 3, scarce: [crack], target: 8, strategy: STRATEGY, min_train_images: 1}
prepare: {image_size: 8, channels: 1, groups: {correlation: "off", id_gap: "off"}}
classifier: {width: 4, steps: 5, batch: 16}
pretrain: {kimg: 0.1, batch: 16, network: {channels: 4}}
adapt: {kimg: 0.05}
scratch: {kimg: 0.05}
synthesize: {min_agreement: 0.0, min_diversity_ratio: 0.0, min_nearest_ratio: 0.0, teacher_steps: 5, batch: 8}
assemble: {}
evaluate: {arms: [balanced], repeats: 2, crossfit: true, share: 0.25, mix_alpha: 0.3}
challenge: {arms: [best+synthetic], policies: {synthetic: {share: 0.25}}, choice: balanced_accuracy, choice_errors: 1.0}
compare: {confidence: 0.95}
search: {}
worth: {}
report: {title: test}
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.xdist_group("real_graph")]


def _run(folder: Path, *command: str) -> str:
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for name in ("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"):
        environment[name] = "test@example.org"
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=800, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def _changed_stages(folder: Path) -> set[str]:
    """Stages that `dvc repro` would run, as far as can be said before any of them runs."""
    return set(json.loads(_run(folder, "dvc", "status", "--json")))


def _image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def _project(folder: Path, strategy: str, splits: tuple[str, ...] = ("",)) -> Path:
    folder.mkdir()
    for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "params.yaml").write_text(PARAMS.replace("STRATEGY", strategy))
    seed = 0
    for split in splits:
        for class_name, n in (("crack", 6), ("free", 12), ("dent", 12)):
            for i in range(n):
                seed += 1
                _image(folder / "data" / "raw" / split / class_name / f"{split}{class_name}{i:02d}.png", seed)
    (folder / ".gitignore").write_text((ROOT / ".gitignore").read_text() + "/data/raw\n")
    _run(folder, "git", "init", "-q")
    _run(folder, "dvc", "init", "-q")
    _run(folder, "synthgen", "plan")
    _run(folder, "dvc", "repro")
    assert _changed_stages(folder) == set()
    return folder


def _prepare_again(folder: Path) -> None:
    _run(folder, "synthgen", "plan")
    _run(folder, "dvc", "repro", "prepare")


def test_scratch_a_new_image_of_a_scarce_class_retrains_that_class_where_it_trains(tmp_path: Path) -> None:
    folder = _project(tmp_path / "scratch", "scratch")
    indexes = folder / "data/prepared/folds"
    before = {fold.name: read_json(fold / "train/crack.json") for fold in indexes.iterdir()}
    _image(folder / "data/raw/crack/new.png", 999)
    _prepare_again(folder)
    after = {fold.name: read_json(fold / "train/crack.json") for fold in indexes.iterdir()}
    where = {fold for fold in before if before[fold] != after[fold]}
    assert len(where) == 2  # one of three folds trains on it (the others test and validate on it), and `final`
    generators = {stage for stage in _changed_stages(folder) if stage.startswith(("pretrain", "adapt", "scratch"))}
    assert generators == {f"scratch@{fold}-crack" for fold in where}


def test_frozen_a_changed_test_image_reruns_evaluation_alone(tmp_path: Path) -> None:
    folder = _project(tmp_path / "frozen", "adapted", ("train", "test"))
    _image(folder / "data/raw/test/free/testfree00.png", 777)
    _prepare_again(folder)
    changed = {stage.split("@")[0] for stage in _changed_stages(folder)}
    assert {"evaluate", "challenge"} <= changed <= {"evaluate", "challenge", "compare", "worth", "report"}


def test_a_second_clone_pulls_everything_and_has_nothing_to_do(tmp_path: Path) -> None:
    folder = _project(tmp_path / "first", "shared")
    _run(folder, "dvc", "remote", "add", "-d", "store", str(tmp_path / "store"))
    _run(folder, "dvc", "add", "-q", "data/raw")
    _run(folder, "git", "add", "-A")
    _run(folder, "git", "commit", "-qm", "all")
    untracked = _run(folder, "git", "status", "--porcelain")
    assert untracked == ""
    _run(folder, "dvc", "push", "-q")
    _run(tmp_path, "git", "clone", "-q", str(folder), "second")
    second = tmp_path / "second"
    _run(second, "dvc", "pull", "-q")
    assert _changed_stages(second) == set()
    assert "up to date" in _run(second, "dvc", "repro")
    assert (second / "data/augmented/synthetic-crack.parquet").exists()
    assert "balanced_accuracy" in _run(second, "dvc", "metrics", "show", "--json")
