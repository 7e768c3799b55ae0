"""`source.unlabelled` through `plan`, `prepare` and `evaluate`: read as labelled images are, and never a test image."""

import csv
import hashlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML
from scipy.ndimage import gaussian_filter

from synthgen.dataset.prepared import load_prepared
from synthgen.dataset.unlabelled import load_unlabelled
from synthgen.errors import ConfigError, SourceError
from synthgen.stages.evaluate import run_evaluate
from synthgen.stages.plan import run_plan
from synthgen.stages.prepare import run_prepare
from synthgen.stages.verify import _look_at_pixels
from synthgen.stages.workspace import Workspace

RAW = "data/raw"
FOLDER = "data/raw/.unlabelled"
COUNTS = {"good": 21, "hole": 12}


def set_params(root: Path, unlabelled: str | None = FOLDER, arms: tuple[str, ...] = ("balanced",), **changed: object):
    params = {
        "source": {"type": "imagefolder", "path": RAW, "unlabelled": unlabelled},
        "plan": {"folds": 3, "scarce": ["hole"]},
        "prepare": {"image_size": 16, "channels": 1},
        "classifier": {"width": 4, "steps": 20, "batch": 16, "lr": 0.01},
        "evaluate": {"arms": list(arms), "crossfit": True},
        "challenge": {"arms": ["balanced+synthetic"]},
    }
    for section, values in changed.items():
        params[section] = {**params.get(section, {}), **values}  # type: ignore[dict-item]
    with (root / "params.yaml").open("w", encoding="utf-8") as stream:
        YAML().dump(params, stream)


def picture(seed: int, hole: bool) -> Image.Image:
    smooth = gaussian_filter(np.random.default_rng(seed).standard_normal((32, 32)), 2.0)
    pixels = 128 + 30 * smooth / smooth.std()
    if hole:
        pixels[8:22, 6:20] = 0
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def save(root: Path, name: str, image: Image.Image, **options: object) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """21 good and 12 holes, and 10 unlabelled pictures of each kind in two folders."""
    for k, (name, count) in enumerate(COUNTS.items()):
        for i in range(count):
            save(tmp_path, f"{RAW}/{name}/{name}{i}.png", picture(100 * k + i, name == "hole"))
        for i in range(10):
            save(tmp_path, f"{FOLDER}/{name[0]}/deep/{i}.png", picture(1000 + 100 * k + i, name == "hole"))
    set_params(tmp_path)
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


def test_they_stand_beside_the_labelled_images_and_change_nothing_else(project: Path) -> None:
    folder = both(project)
    found = load_unlabelled(folder)
    assert found is not None and found.verified().shape == (20, 16, 16, 1)
    oracle = [np.asarray(picture(1000 + 100 * k + i, k == 1)) for k in range(2) for i in range(10)]
    means = sorted(float(image.mean()) for image in oracle)
    assert sorted(image.mean() for image in found.images) == pytest.approx(means, abs=1.0)
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["unlabelled"]["n_images"], summary["unlabelled"]["n_dropped"]) == (20, {})
    assert quarantined(folder) == []  # the folder itself is no file that was put aside
    assert _look_at_pixels(folder) == 33 + 20
    with_them, plan = digests(folder), [(project / name).read_bytes() for name in ("plan.yaml", "folds.csv")]
    set_params(project, None)
    without = digests(both(project))
    assert [(project / name).read_bytes() for name in ("plan.yaml", "folds.csv")] == plan
    assert {name for name in with_them if with_them[name] != without.get(name)} == {
        "unlabelled/images.npy",
        "unlabelled/manifest.parquet",
        "summary.json",
        "quarantine.csv",
    }
    assert load_unlabelled(folder) is None
    assert "unlabelled" not in json.loads((folder / "summary.json").read_text())


def test_a_planted_test_image_is_dropped_and_counted(project: Path) -> None:
    """Of every fold: a copy as it is, one encoded again, one in other light, and one at another size."""
    data = load_prepared(both(project))
    names = sorted(path.relative_to(project / RAW).as_posix() for path in (project / RAW).glob("[gh]*/*.png"))
    planted: dict[str, str] = {}
    for j in range(3):
        row = int(data.split(f"f{j}").test[0])
        source = project / RAW / names[row]
        image = Image.open(source)
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=85)
        for kind, content in (
            ("same.png", source.read_bytes()),
            ("again.jpg", stream.getvalue()),
        ):
            (project / FOLDER / f"{j}-{kind}").write_bytes(content)
            planted[f".unlabelled/{j}-{kind}"] = names[row]
        save(project, f"{FOLDER}/{j}-light.png", image.point(lambda value: round(0.85 * value + 10)))
        save(project, f"{FOLDER}/{j}-large.png", image.resize((96, 96), Image.Resampling.BICUBIC))
        planted |= {f".unlabelled/{j}-{kind}.png": names[row] for kind in ("light", "large")}
    folder = both(project)
    dropped = {source: (reason, detail) for source, reason, detail in quarantined(folder)}
    assert dropped.keys() == planted.keys()
    for source, (reason, detail) in dropped.items():
        assert reason == "labelled_copy" and planted[source] in detail
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["unlabelled"]["n_dropped"] == {"labelled_copy": 12}
    assert (summary["unlabelled"]["n_images"], summary["n_quarantined"]) == (20, 12)
    found = load_unlabelled(folder)
    assert found is not None and not set(found.sha256.tolist()) & set(data.sha256.tolist())


def test_bad_files_are_put_aside_and_the_others_stay(project: Path) -> None:
    folder = project / FOLDER
    (folder / "page.png").write_text("<html>")
    (folder / "empty.png").write_bytes(b"")
    (folder / "cut.png").write_bytes((folder / "g/deep/0.png").read_bytes()[:200])
    (folder / "out.png").symlink_to(project / RAW / "good" / "good0.png")
    (folder / "up").symlink_to(project / RAW / "good")
    (folder / ".hidden.png").write_bytes((folder / "g/deep/1.png").read_bytes())
    frames = [picture(5, False), picture(6, False)]
    save(project, f"{FOLDER}/film.gif", frames[0], save_all=True, append_images=frames[1:])
    save(project, f"{FOLDER}/bomb.png", Image.new("1", (700, 700)))
    save(project, f"{FOLDER}/heavy.bmp", Image.new("RGB", (400, 400)))
    os.mkfifo(folder / "pipe")
    set_params(project, prepare={"max_pixels": 400_000, "max_bytes": 300_000})
    prepared = both(project)
    assert {source: reason for source, reason, _ in quarantined(prepared)} == {
        ".unlabelled/page.png": "not_image",
        ".unlabelled/empty.png": "empty_file",
        ".unlabelled/cut.png": "damaged",
        ".unlabelled/out.png": "symlink",
        ".unlabelled/up": "symlink",
        ".unlabelled/.hidden.png": "hidden",
        ".unlabelled/film.gif": "animated",
        ".unlabelled/bomb.png": "too_many_pixels",
        ".unlabelled/heavy.bmp": "too_many_bytes",
        ".unlabelled/pipe": "not_regular",
    }
    assert json.loads((prepared / "summary.json").read_text())["unlabelled"]["n_images"] == 20


@pytest.mark.parametrize(
    ("unlabelled", "message"),
    [
        ("data/elsewhere", r"does not lie inside source\.path.*data/raw/\.unlabelled"),
        ("data/raw", r"does not lie inside"),
        ("data/raw/../x", r"does not lie inside"),
        ("data/raw/more", r"read as the class 'more'.*data/raw/\.unlabelled"),
    ],
)
def test_a_folder_in_another_place_is_refused(project: Path, unlabelled: str, message: str) -> None:
    set_params(project, unlabelled)
    with pytest.raises(ConfigError, match=message):
        run_plan(Workspace(project))


def test_the_masks_have_a_folder_of_their_own(project: Path) -> None:
    set_params(project, prepare={"masks": f"{FOLDER}/masks"})
    with pytest.raises(ConfigError, match=r"overlap"):
        run_plan(Workspace(project))


def test_a_folder_without_a_usable_image_is_refused(project: Path) -> None:
    run_plan(Workspace(project))
    folder = project / FOLDER
    folder.rename(project / "moved")
    for make, message in (
        (lambda: None, r"is no folder.*source\.unlabelled: null"),
        (lambda: folder.symlink_to(project / "moved"), r"is no folder"),
        (lambda: (folder.unlink(), folder.mkdir()), r"holds no file"),
        (lambda: (folder / "a.png").write_text("no"), r"source\.unlabelled: no usable image.*1 not_image"),
        (
            lambda: (folder / "b.png").write_bytes((project / RAW / "good/good1.png").read_bytes()),
            r"none of the 1 images .*labelled_copy \(equals good/good1\.png\)",
        ),
    ):
        make()
        with pytest.raises(SourceError, match=message):
            run_prepare(Workspace(project))


def test_where_links_drop_most_of_the_folder_the_settings_are_named(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Numbers 0 to 20 are labelled: a gap of 2 links a run of them to 21 and on, for as long as it lasts."""
    folder = project / FOLDER
    for part in ("g", "h"):
        for path in (folder / part / "deep").iterdir():
            path.rename(folder / f"{21 + int(path.stem) + 10 * (part == 'h')}.png")
    set_params(project, prepare={"groups": {"id_gap": 2}})
    run_plan(Workspace(project))
    remedy = r"20 of 20 images are linked.*correlation None, id_gap 2.*prepare\.groups\.correlation.*id_gap"
    with pytest.raises(SourceError, match=rf"none of the 20 images .*labelled_object.*{remedy}"):
        run_prepare(Workspace(project))
    for i in range(8):
        save(project, f"{FOLDER}/{100 + 10 * i}.png", picture(5000 + i, False))
    caplog.clear()
    run_prepare(Workspace(project))
    summary = json.loads((project / "data/prepared/summary.json").read_text())
    assert summary["unlabelled"]["n_images"] == 8
    told = [line for line in summary["warnings"] if "20 of 28 images are linked" in line]
    assert len(told) == 1 and told[0] in caplog.messages
    for i in range(8, 20):
        save(project, f"{FOLDER}/{100 + 10 * i}.png", picture(5000 + i, False))
    run_prepare(Workspace(project))
    summary = json.loads((project / "data/prepared/summary.json").read_text())
    assert summary["unlabelled"]["n_dropped"] == {"labelled_object": 20}
    assert not any("are linked" in line for line in summary["warnings"])  # half is not most


def test_groups_of_the_user_are_warned_of_in_the_log_and_in_the_summary(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = sorted((project / RAW).glob("[gh]*/*.png"))
    lines = [f"{path.relative_to(project / RAW)},{path.parent.name},{i // 2}" for i, path in enumerate(files)]
    (project / RAW / "labels.csv").write_text("\n".join(["path,label,group", *lines]) + "\n")
    set_params(project, source={"type": "csv"})
    summary = json.loads((both(project) / "summary.json").read_text())
    told = [line for line in summary["warnings"] if "33 labelled images have a group of your own" in line]
    assert len(told) == 1 and told[0] in caplog.messages


def test_who_needs_them_is_refused_without(project: Path) -> None:
    for arms, challengers in (
        (("pseudo_labelled",), ["balanced+synthetic"]),
        (("real",), ["pseudo_labelled+synthetic"]),
    ):
        set_params(project, None, arms=arms, challenge={"arms": challengers})
        with pytest.raises(ConfigError, match=r"pseudo_labelled.* needs images without a label.*source\.unlabelled"):
            run_plan(Workspace(project))
    set_params(project, None)
    both(project)
    with pytest.raises(ConfigError, match=r"pseudo_labelled needs images without a label.*source\.unlabelled"):
        run_evaluate(Workspace(project), "pseudo_labelled", torch.device("cpu"), n_workers=1)


def test_arm_json_says_how_many_pseudo_labels_each_training_had(project: Path) -> None:
    set_params(
        project,
        arms=("pseudo_labelled",),
        classifier={"width": 8, "steps": 50},
        evaluate={"crossfit": False},
        transforms={"rotate": 2.0, "shift": 0.02},
    )
    both(project)
    run_evaluate(Workspace(project), "pseudo_labelled", torch.device("cpu"), n_workers=1)
    said = json.loads((project / "data/evaluation/pseudo_labelled/arm.json").read_text())
    for fold in ("f0", "f1", "f2"):
        counts = said["folds"][fold]["pseudo_labels"]
        assert set(counts) == {"good", "hole"}
        assert all(len(n) == 2 and max(n) <= 20 for n in counts.values())  # two repeats
    # a black square is learned in fifty steps, so that somebody was sure of something
    assert sum(sum(said["folds"][fold]["pseudo_labels"]["hole"]) for fold in ("f0", "f1", "f2")) > 0
