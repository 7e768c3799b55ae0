"""`prepare.masks`: masks.npy beside the images, bad masks put aside, and nothing else changed."""

import csv
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML
from scipy.ndimage import gaussian_filter

from synthgen.dataset.predictions import load_predictions
from synthgen.dataset.prepared import load_prepared
from synthgen.errors import ArtifactError, ConfigError, SourceError
from synthgen.stages.evaluate import run_evaluate
from synthgen.stages.plan import run_plan
from synthgen.stages.prepare import run_prepare
from synthgen.stages.workspace import Workspace

RAW = "data/raw"
MASKS = "data/raw/.masks"
COUNTS = {"good": 21, "hole": 12}


def set_params(root: Path, masks: str | None, **source: str) -> None:
    params = {
        "source": {"type": "imagefolder", "path": RAW, **source},
        "plan": {"folds": 3, "scarce": ["hole"]},
        "prepare": {"image_size": 16, "channels": 1, **({} if masks is None else {"masks": masks})},
        "classifier": {"width": 4, "steps": 6, "batch": 16},
        "evaluate": {"arms": ["paste", "paste_whole"], "crossfit": True},
        "challenge": {"arms": ["balanced+synthetic"]},
    }
    with (root / "params.yaml").open("w", encoding="utf-8") as stream:
        YAML().dump(params, stream)


def save_mask(root: Path, name: str, pixels: np.ndarray) -> None:
    path = root / MASKS / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """21 good and 12 holes of 32 px, each hole with a mask of 8 x 8 pixels."""
    rng = np.random.default_rng(0)
    for name, count in COUNTS.items():
        for i in range(count):
            smooth = gaussian_filter(rng.standard_normal((32, 32)), 1.5)
            picture = 128 + 30 * smooth / smooth.std()
            if name == "hole":
                picture[8:16, 4:12] = 0
                mask = np.zeros((32, 32), np.uint8)
                mask[8:16, 4:12] = 255
                save_mask(tmp_path, f"hole/{name}{i}.png", mask)
            path = tmp_path / RAW / name / f"{name}{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path)
    set_params(tmp_path, MASKS)
    return tmp_path


def both(root: Path) -> Path:
    run_plan(Workspace(root))
    run_prepare(Workspace(root))
    return root / "data" / "prepared"


def quarantined(folder: Path) -> list[list[str]]:
    with (folder / "quarantine.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.reader(stream))[1:]


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_masks_stand_beside_the_images_and_change_nothing_else(project: Path) -> None:
    folder = both(project)
    data = load_prepared(folder)
    expected = np.zeros((16, 16), bool)
    expected[4:8, 2:6] = True
    assert data.masks is not None and data.masks.dtype == np.bool_
    for label, mask in zip(data.labels, data.masks, strict=True):
        assert np.array_equal(mask, expected if label == 1 else np.zeros_like(expected))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["masks"] == {
        "sha256": hashlib.sha256((folder / "masks.npy").read_bytes()).hexdigest(),
        "n_images": 12,
        "n_quarantined": 0,
        "classes": {"good": 0, "hole": 12},
    }
    assert quarantined(folder) == []  # the mask folder itself is no file that was put aside
    with_masks, plan = digests(folder), [(project / name).read_bytes() for name in ("plan.yaml", "folds.csv")]
    set_params(project, None)
    without = digests(both(project))
    assert [(project / name).read_bytes() for name in ("plan.yaml", "folds.csv")] == plan
    assert {name for name in with_masks if with_masks[name] != without.get(name)} == {
        "masks.npy",
        "summary.json",
        "quarantine.csv",
        *(f"folds/{fold}/train/hole.masks.json" for fold in ("f0", "f1", "f2", "final")),
    }
    assert load_prepared(project / "data" / "prepared").masks is None
    assert "masks" not in json.loads((folder / "summary.json").read_text())


def test_bad_masks_are_put_aside_and_their_images_stay(project: Path) -> None:
    n_images = len(load_prepared(both(project)).labels)
    masks = project / MASKS
    save_mask(project, "hole/hole0.png", np.zeros((31, 32), np.uint8))
    (masks / "hole/hole1.png").write_text("no picture")
    (masks / "hole/hole2.png").unlink()
    (masks / "hole/hole2.png").symlink_to(masks / "hole/hole3.png")
    (masks / "hole/hole4.png").write_bytes(b"")
    save_mask(project, "hole/hole5.png", np.zeros((32, 32), np.uint8))  # nothing marked: no mask, and no fault
    save_mask(project, "hole/hole99.png", np.zeros((32, 32), np.uint8))
    os.mkfifo(masks / "pipe")
    (project / RAW / "good" / "broken.png").write_text("<html>")
    save_mask(project, "good/broken.png", np.zeros((32, 32), np.uint8))  # its picture was put aside: no second row
    save_mask(project, "hole6.png", np.full((32, 32), 255, np.uint8))  # hole/hole6.png goes before it
    folder = both(project)
    data = load_prepared(folder)
    assert len(data.labels) == n_images and data.masks is not None
    assert int(data.masks.any(axis=(1, 2)).sum()) == 12 - 5
    assert data.masks.mean(axis=(1, 2)).max() < 0.1
    rows = {source: reason for source, reason, _ in quarantined(folder)}
    assert rows == {
        ".masks/hole/hole0.png": "mask_size",
        ".masks/hole/hole1.png": "damaged",
        ".masks/hole/hole2.png": "symlink",
        ".masks/hole/hole4.png": "empty_file",
        ".masks/hole/hole99.png": "mask_without_image",
        ".masks/hole6.png": "mask_without_image",
        ".masks/pipe": "not_regular",
        "good/broken.png": "not_image",
    }
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["n_quarantined"], summary["masks"]["n_quarantined"]) == (8, 7)


def test_a_bare_name_that_two_pictures_have_gives_neither_a_mask(project: Path) -> None:
    (project / RAW / "good" / "good0.png").rename(project / RAW / "good" / "hole0.png")
    (project / MASKS / "hole" / "hole0.png").rename(project / MASKS / "hole0.png")
    (project / MASKS / "hole" / "hole1.png").rename(project / MASKS / "hole1.png")
    folder = both(project)
    assert [row[:2] for row in quarantined(folder)] == [[".masks/hole0.png", "mask_shared"]]
    assert json.loads((folder / "summary.json").read_text())["masks"]["classes"] == {"good": 0, "hole": 11}


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "another shape"])
def test_masks_that_were_altered_are_refused(project: Path, damage: str) -> None:
    folder = both(project)
    path = folder / "masks.npy"
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[:-10])
    elif damage == "gone":
        path.unlink()
    else:
        np.save(path, np.zeros((3, 16, 16), bool))
    with pytest.raises(ArtifactError, match=r"masks\.npy"):
        load_prepared(folder)


@pytest.mark.parametrize(
    "masks, source, text",
    [
        ("data/masks", {}, r"does not lie inside source\.path 'data/raw'.*data/raw/\.masks"),
        ("data/raw/../masks", {}, "does not lie inside"),
        ("data/raw", {}, "does not lie inside"),
        ("data/raw/masks", {}, "read as the class 'masks'"),
        ("data/raw/.none", {}, "is no folder"),
        ("data/raw/.masks", {"type": "npz"}, "image files, not to source.type npz"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(project: Path, masks: str, source: dict[str, str], text: str) -> None:
    run_plan(Workspace(project))
    set_params(project, masks, **source)
    with pytest.raises(ConfigError, match=text):
        run_prepare(Workspace(project))


def test_a_folder_without_any_mask_of_these_images_is_refused(project: Path) -> None:
    (project / RAW / ".other").mkdir()
    set_params(project, f"{RAW}/.other")
    run_plan(Workspace(project))
    with pytest.raises(SourceError, match=r"no mask for any of 33 images"):
        run_prepare(Workspace(project))
    assert not (project / "data" / "prepared").exists()


@pytest.mark.parametrize("arm", ["paste", "paste_whole"])
def test_evaluate_trains_the_arm(project: Path, arm: str) -> None:
    both(project)
    run_evaluate(Workspace(project), arm, torch.device("cpu"), n_workers=1)
    predictions = load_predictions(project / "data" / "evaluation" / arm / "predictions.parquet")
    assert np.isfinite(predictions.logits).all()
    assert set(predictions.folds.tolist()) == {"f0", "f1", "f2"}
