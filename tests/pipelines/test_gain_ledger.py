"""The ledger of benchmarks/gain.py runs a stage again for each new version for which dvc.yaml would."""

import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ruamel.yaml import YAML

from synthgen.config import Config
from synthgen.versions import VERSIONS

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def _parts_of_stages() -> dict[str, set[str]]:
    """Stage -> the parts of synthgen that its `versions` in dvc.yaml name."""
    found: dict[str, set[str]] = {}
    for stage, entry in YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text())["stages"].items():
        keys = [key for param in entry["params"] if isinstance(param, dict) for key in param["plan.yaml"]]
        found[stage] = {key.partition(".")[2] for key in keys if key.startswith("versions.")}
    return found


def test_a_new_version_of_a_part_runs_the_stages_again_that_depend_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    gain = importlib.import_module("gain")
    params = {"source": {"type": "digits"}, "evaluate": {"arms": ["real"]}, "challenge": {"arms": ["real+synthetic"]}}
    plan = SimpleNamespace(
        versions=dict(VERSIONS), measured_folds=["f0"], pretrain_folds=["f0"], adapt_slugs=["a"], scratch_slugs=["b"]
    )
    workspace = SimpleNamespace(config=Config.model_validate(params), plan=plan)
    monkeypatch.setattr(gain, "Workspace", lambda _: workspace)
    monkeypatch.setattr(gain, "_plan", lambda _: None)
    monkeypatch.setattr(gain, "load_plan", lambda _: plan)
    ran: list[str] = []
    works = ("prepare", "pretrain", "adapt", "scratch", "synthesize", "evaluate", "challenge", "compare")
    for stage in works:
        monkeypatch.setattr(gain, f"run_{stage}", lambda *_, stage=stage: ran.append(stage))
    gain.run_project(tmp_path, "all", CPU)
    assert sorted(ran) == sorted(works)
    parts = _parts_of_stages()
    for part in VERSIONS:
        ran.clear()
        gain.run_project(tmp_path, "all", CPU)
        assert not ran
        plan.versions[part] += 1
        gain.run_project(tmp_path, "all", CPU)
        assert {stage for stage in works if part in parts[stage]} <= set(ran), part
