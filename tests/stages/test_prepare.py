"""`synthgen prepare`: the folder that everything else reads, and the plans that it refuses."""

import csv
import hashlib
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from ruamel.yaml import YAML
from scipy.ndimage import gaussian_filter

from synthgen.dataset.folds import read_folds
from synthgen.dataset.prepared import MANIFEST_SCHEMA, load_prepared, pixel_sha256
from synthgen.errors import ArtifactError, PlanError
from synthgen.records import load_plan, save_plan
from synthgen.stages.plan import run_plan
from synthgen.stages.prepare import run_prepare
from synthgen.stages.workspace import Workspace


def picture(name):
    generator = np.random.default_rng(list(name.encode()))
    smooth = gaussian_filter(generator.normal(size=(16, 16)), 1.5)
    return np.clip(128 + 40 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def put(root, path):
    target = root / "data" / "raw" / path
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(path)).save(target)


def project(root, counts, *, split="", folds=5, source=None):
    for name, count in counts.items():
        for i in range(count):
            put(root, f"{split}{name}/{chr(97 + i // 26)}{chr(97 + i % 26)}.png")
    params = {
        "source": {"type": "imagefolder", **(source or {})},
        "plan": {"folds": folds},
        "prepare": {"image_size": 16, "channels": 1},
        "evaluate": {"arms": ["real"]},
        "challenge": {"arms": ["balanced+synthetic"]},
    }
    with (root / "params.yaml").open("w", encoding="utf-8") as stream:
        YAML().dump(params, stream)
    return Workspace(root)


def both(root):
    run_plan(Workspace(root))
    run_prepare(Workspace(root))
    return Workspace(root)


def digests(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_folder_holds_what_the_schema_says(tmp_path):
    workspace = project(tmp_path, {"big": 20, "rare <b>": 7}, source={"simulate_scarcity": {"keep": {"big": 12}}})
    (tmp_path / "data/raw/big/broken.png").write_text("<html>")
    both(tmp_path)
    folder = workspace.prepared
    plan = load_plan(workspace.plan_file)
    data = load_prepared(folder)
    assert data.images.shape == (27, 16, 16, 1)
    assert data.images.dtype == np.uint8
    assert [pixel_sha256(image) for image in data.images] == data.sha256.tolist()
    manifest = pq.read_table(folder / "manifest.parquet")
    assert manifest.schema == MANIFEST_SCHEMA
    assert manifest["row"].to_pylist() == list(range(27))
    assert manifest["source"].to_pylist() == sorted(manifest["source"].to_pylist())
    known = read_folds(workspace.folds_file)
    for row in manifest.to_pylist():
        assert (row["fold"], row["role"]) == (known[row["pixel_sha256"]].fold, known[row["pixel_sha256"]].role)
        assert row["label"] == plan.classes[row["slug"]].label
        assert (row["width"], row["height"]) == (16, 16)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["classes"]["big"] == {"images": 12, "groups": 12, "surplus": 8, "val": 0, "test": 0}
    assert summary["simulate_scarcity"] == {"keep": {"big": 12}, "surplus": "test"}
    assert (summary["n_images"], summary["n_groups"], summary["n_quarantined"]) == (27, 27, 1)
    with (folder / "quarantine.csv").open(newline="") as stream:
        quarantined = list(csv.DictReader(stream))
    assert [row["source"] for row in quarantined] == ["big/broken.png"]
    assert set(quarantined[0]) == {"source", "reason", "detail"}
    for fold in plan.folds:
        split = data.split(fold)
        for slug in plan.slugs:
            index = json.loads((folder / "folds" / fold / "train" / f"{slug}.json").read_text())
            label = plan.classes[slug].label
            assert (index["fold"], index["slug"], index["label"]) == (fold, slug, label)
            expected = data.sha256[split.train[data.labels[split.train] == label]].tolist()
            assert index["pixel_sha256"] == expected == sorted(expected)
        for part in ("val", "test"):
            index = json.loads((folder / "folds" / fold / f"{part}.json").read_text())
            assert index["pixel_sha256"] == sorted(data.sha256[getattr(split, part)].tolist())


def test_equal_input_gives_equal_bytes(tmp_path):
    workspace = project(tmp_path, {"big": 12, "rare": 6})
    both(tmp_path)
    first = digests(workspace.prepared)
    run_prepare(Workspace(tmp_path))
    assert digests(workspace.prepared) == first
    assert list((tmp_path / ".synthgen" / "scan").iterdir()) == []


@pytest.mark.parametrize("path", ["rare/new.png", "big/00.png"])
def test_a_new_image_changes_only_the_indexes_where_it_takes_part(tmp_path, path):
    workspace = project(tmp_path, {"big": 20, "rare": 6})
    both(tmp_path)
    before = digests(workspace.prepared / "folds")
    put(tmp_path, path)
    both(tmp_path)
    after = digests(workspace.prepared / "folds")
    fold = read_folds(workspace.folds_file)[pixel_sha256(picture(path)[..., None])].fold
    slug = path.split("/", maxsplit=1)[0]
    train = {f"f{j}" for j in range(5)} - {f"f{fold}", f"f{(fold - 1) % 5}"} | {"final"}
    expected = {f"{name}/train/{slug}.json" for name in train} | {f"f{fold}/test.json", f"f{(fold - 1) % 5}/val.json"}
    assert {name for name in before if before[name] != after[name]} == expected
    assert before.keys() == after.keys()


def test_a_changed_image_of_a_frozen_test_set_changes_no_train_index(tmp_path):
    for split, count in (("train/", 10), ("test/", 5)):
        workspace = project(tmp_path, {"big": count, "rare": count // 2}, split=split)
    both(tmp_path)
    plan = workspace.plan_file.read_bytes()
    before = digests(workspace.prepared / "folds")
    Image.fromarray(picture("something else")).save(tmp_path / "data/raw/test/big/ab.png")
    run_prepare(Workspace(tmp_path))
    after = digests(workspace.prepared / "folds")
    assert {name for name in before if before[name] != after[name]} == {f"f{j}/test.json" for j in range(5)}
    run_plan(Workspace(tmp_path))
    assert workspace.plan_file.read_bytes() == plan


def test_frozen_folds_are_tested_on_the_users_test_set(tmp_path):
    for split, count in (("train/", 10), ("val/", 3), ("test/", 5)):
        workspace = project(tmp_path, {"big": count, "rare": count}, split=split)
    both(tmp_path)
    data = load_prepared(workspace.prepared)
    assert data.frozen
    assert sorted(set(data.roles.tolist())) == ["pool", "test", "val"]
    for fold in ("f0", "f4"):
        split = data.split(fold)
        assert (len(split.train), len(split.val), len(split.test)) == (20, 6, 10)


def test_a_plan_that_no_longer_fits_names_what_differs(tmp_path):
    workspace = project(tmp_path, {"big": 12, "rare": 6})
    with pytest.raises(PlanError, match="run `synthgen plan` first"):
        run_prepare(workspace)
    both(tmp_path)
    kept = digests(workspace.prepared)
    put(tmp_path, "rare/new.png")
    put(tmp_path, "odd/one.png")
    (tmp_path / "data/raw/big/aa.png").unlink()
    with pytest.raises(PlanError) as caught:
        run_prepare(Workspace(tmp_path))
    message = str(caught.value)
    for part in (
        "class big: images 12 -> 11",
        "class rare: images 6 -> 7",
        "class odd is new (1 images)",
        "2 new images: odd/one.png, rare/new.png",
        "1 images gone",
        "Run `synthgen plan`",
    ):
        assert part in message
    assert digests(workspace.prepared) == kept
    both(tmp_path)


def test_a_setting_changed_after_the_plan_is_named(tmp_path):
    workspace = project(tmp_path, {"big": 12, "rare": 6})
    both(tmp_path)
    plan = load_plan(workspace.plan_file)
    save_plan(workspace.plan_file, plan.model_copy(update={"versions": {**plan.versions, "dataset": 0}}))
    with pytest.raises(PlanError, match="versions"):
        run_prepare(Workspace(tmp_path))
    both(tmp_path)
    project(tmp_path, {}, folds=4)
    with pytest.raises(PlanError, match="--reassign"):
        run_prepare(Workspace(tmp_path))
    workspace.folds_file.unlink()
    with pytest.raises(PlanError, match=r"folds\.csv is missing"):
        run_prepare(Workspace(tmp_path))


def test_a_flipped_byte_after_prepare_is_found(tmp_path):
    workspace = project(tmp_path, {"big": 12, "rare": 6})
    both(tmp_path)
    path = workspace.prepared / "images.npy"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(bytes(content))
    data = load_prepared(workspace.prepared)
    with pytest.raises(ArtifactError, match="row 17 no longer matches"):
        data.verified(np.arange(18))


def test_a_failure_leaves_the_old_folder_and_no_scratch(tmp_path, monkeypatch):
    workspace = project(tmp_path, {"big": 12, "rare": 6})
    both(tmp_path)
    kept = digests(workspace.prepared)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("synthgen.stages.prepare.save_manifest", full)
    with pytest.raises(ArtifactError, match="No space left"):
        run_prepare(Workspace(tmp_path))
    assert digests(workspace.prepared) == kept
    assert [path.name for path in workspace.prepared.parent.iterdir()] == ["prepared", "raw"] or not list(
        workspace.prepared.parent.glob("*.partial")
    )
    assert list((tmp_path / ".synthgen" / "scan").iterdir()) == []


def test_the_embedded_digits(tmp_path):
    params = {
        "source": {"type": "digits", "simulate_scarcity": {"keep": {"3": 15, "8": 15}}},
        "prepare": {"image_size": 8, "channels": 1},
        "evaluate": {"arms": ["real"]},
        "challenge": {"arms": ["balanced+synthetic"]},
    }
    with (tmp_path / "params.yaml").open("w", encoding="utf-8") as stream:
        YAML().dump(params, stream)
    workspace = both(tmp_path)
    plan = load_plan(workspace.plan_file)
    assert plan.scarce_slugs == ["3", "8"]
    assert (plan.classes["3"].images, plan.classes["8"].images) == (15, 15)
    data = load_prepared(workspace.prepared)
    assert len(data.images) == 1797
    for fold in plan.measured_folds:
        split = data.split(fold)
        sides = [set(data.groups[rows].tolist()) for rows in (split.train, split.val, split.test)]
        assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
        assert sum(data.labels[split.train] == 3) == 9
        assert 30 <= sum(data.labels[split.test] == 3) <= 45
