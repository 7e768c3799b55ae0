"""`classifier.weights` through the stages: refused in `plan` already, used by `evaluate`."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML
from safetensors.torch import save_file

from synthgen.artifacts import sha256_file
from synthgen.classifier.networks import build_classifier
from synthgen.dataset.predictions import load_predictions
from synthgen.errors import ConfigError
from synthgen.stages.evaluate import run_evaluate
from synthgen.stages.plan import run_plan
from synthgen.stages.prepare import run_prepare
from synthgen.stages.workspace import Workspace

CPU = torch.device("cpu")


def _weights(path: Path, seed: int, width: int = 4) -> dict[str, str]:
    torch.manual_seed(seed)
    path.parent.mkdir(exist_ok=True)
    save_file(build_classifier("small_cnn", 16, 3, 5, width).state_dict(), path)
    return {"file": path.name, "sha256": sha256_file(path)}


def _project(root: Path, weights: dict[str, str] | None) -> Workspace:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / "data" / "raw" / name).mkdir(parents=True, exist_ok=True)
        for k in range(12):
            picture = rng.integers(0, 256, (16, 16), dtype=np.uint8)
            path = root / "data" / "raw" / name / f"{chr(97 + k) * 3}.png"
            if not path.exists():
                Image.fromarray(picture).save(path)
    params = {
        "source": {"type": "imagefolder"},
        "plan": {"folds": 3, "scarce": ["a"]},
        "prepare": {"image_size": 16, "channels": 1},
        "classifier": {"width": 4, "steps": 3, "batch": 8, "weights": weights},
        "evaluate": {"arms": ["real"], "repeats": 2, "crossfit": False},
        "challenge": {"arms": ["real+synthetic"]},
    }
    with (root / "params.yaml").open("w", encoding="utf-8") as stream:
        YAML().dump(params, stream)
    return Workspace(root)


def _logits(workspace: Workspace) -> np.ndarray:
    run_evaluate(workspace, "real", CPU, n_workers=1)
    return load_predictions(workspace.evaluation("real") / "predictions.parquet").logits


def test_evaluate_starts_from_the_named_file(tmp_path: Path) -> None:
    workspace = _project(tmp_path, _weights(tmp_path / "one.safetensors", 0))
    run_plan(workspace)
    run_prepare(workspace)
    one, again = _logits(workspace), _logits(workspace)
    other = _logits(_project(tmp_path, _weights(tmp_path / "other.safetensors", 1)))
    plain = _logits(_project(tmp_path, None))
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other)
    assert not np.allclose(one, plain)
    (tmp_path / "other.safetensors").unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        _logits(_project(tmp_path, {"file": "other.safetensors", "sha256": "0" * 64}))


def test_plan_refuses_weights_that_do_not_fit_and_writes_nothing(tmp_path: Path) -> None:
    workspace = _project(tmp_path, _weights(tmp_path / "wide.safetensors", 0, width=8))
    with pytest.raises(ConfigError, match="another shape"):
        run_plan(workspace)
    assert not workspace.plan_file.exists()
    assert not workspace.folds_file.exists()
