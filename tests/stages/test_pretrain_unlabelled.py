"""`pretrain.unlabelled`: one class more in the shared GAN, seen in training and never sampled."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML

from synthgen.artifacts import read_json, sha256_file
from synthgen.config import parse_config
from synthgen.dataset.sampling import BalancedBatches
from synthgen.dataset.shards import read_images
from synthgen.dataset.unlabelled import INDEX_FILE, load_unlabelled
from synthgen.errors import ArtifactError, ConfigError, PlanError
from synthgen.gan.checkpoint import load_gan
from synthgen.gan.game import Game
from synthgen.records import load_plan
from synthgen.stages.adapt import run_adapt
from synthgen.stages.compare import procedure_digest
from synthgen.stages.plan import run_plan
from synthgen.stages.prepare import run_prepare
from synthgen.stages.pretrain import _weights, run_pretrain
from synthgen.stages.synthesize import run_synthesize
from synthgen.stages.workspace import Workspace

CPU = torch.device("cpu")
N_CLASSES, N_UNLABELLED = 3, 9


class Killed(BaseException):
    """As sudden as a signal."""


def params(unlabelled: str | None = "data/raw/.unlabelled", shown: bool = True) -> dict[str, object]:
    return {
        "seed": 3,
        "source": {"type": "imagefolder", "path": "data/raw", "unlabelled": unlabelled},
        "plan": {"folds": 3, "target": 6, "scarce": ["c"]},
        "prepare": {"image_size": 8, "channels": 1, "groups": {"id_gap": "off"}},
        "classifier": {"width": 4, "steps": 5, "batch": 16},
        "pretrain": {
            "kimg": 0.48,
            "batch": 32,
            "tick_kimg": 0.16,
            "ema": 0.9,
            "network": {"channels": 4, "max_channels": 8, "latents": 8, "embedding": 4},
            "monitor": {"samples_per_class": 4, "reals_per_class": 8, "feature_steps": 5},
            "unlabelled": shown,
        },
        "adapt": {"kimg": 0.16},
        "synthesize": {"min_agreement": 0.0, "min_nearest_ratio": 0.0, "min_diversity_ratio": 0.0, "teacher_steps": 5},
        "evaluate": {"arms": ["balanced"], "crossfit": False},
        "challenge": {"arms": ["best+synthetic"]},
    }


def set_params(root: Path, values: dict[str, object]) -> Workspace:
    with (root / "params.yaml").open("w", encoding="utf-8") as stream:
        YAML().dump(values, stream)
    return Workspace(root)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """After `prepare`: three classes of 18, 18 and 9 noise images, and 9 unlabelled ones, brighter than any."""
    rng = np.random.default_rng(0)
    for name, n, low in (("a", 18, 0), ("b", 18, 0), ("c", 9, 0), (".unlabelled", N_UNLABELLED, 200)):
        for i in range(n):
            path = tmp_path / "data/raw" / name / f"{name[-1]}{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(low, low + 56, (8, 8), dtype=np.uint8)).save(path)
    found = set_params(tmp_path, params())
    run_plan(found)
    run_prepare(found)
    return Workspace(tmp_path)


def height_of(path: Path) -> int:
    with Image.open(path) as image:
        return image.height


def digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_shared_gan_has_one_label_more_and_nobody_samples_it(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[np.ndarray] = []
    take = BalancedBatches.take

    def watched(self: BalancedBatches, *given: object, **named: object) -> np.ndarray:
        rows = take(self, *given, **named)  # type: ignore[arg-type]
        if len(self.labels) == N_CLASSES + 1:
            shown.append(rows)
        return rows

    monkeypatch.setattr(BalancedBatches, "take", watched)
    run_pretrain(workspace, "f0", CPU)
    folder = workspace.shared_model("f0")
    about = read_json(folder / "model.json")
    assert about["slugs"] == ["a", "b", "c"] and about["shape"]["n_classes"] == N_CLASSES + 1
    assert about["unlabelled"] == {"label": N_CLASSES, "n_images": N_UNLABELLED}
    more = load_unlabelled(workspace.prepared)
    assert more is not None and set(more.sha256.tolist()) < set(read_json(folder / "trained_on.json"))
    # shown as often as another class: the last nine rows are the unlabelled ones, a quarter of the draws
    rows = np.concatenate(shown)
    assert np.mean(rows > rows.max() - N_UNLABELLED) == pytest.approx(0.25, abs=0.01)
    # grids and monitors know the classes alone
    assert height_of(folder / "grid.png") == N_CLASSES * 32
    with (folder / "classes.csv").open(encoding="utf-8") as stream:
        assert {row["label"] for row in csv.DictReader(stream)} == {"0", "1", "2"}
    monkeypatch.undo()
    run_adapt(workspace, "f0", "c", CPU)
    adapted = load_gan(workspace.adapted_model("f0", "c"), CPU)
    assert adapted.generator.shape.n_classes == N_CLASSES + 1
    assert set(more.sha256.tolist()) < set(read_json(workspace.adapted_model("f0", "c") / "trained_on.json"))
    assert height_of(workspace.adapted_model("f0", "c") / "grid.png") == N_CLASSES * 32
    run_synthesize(workspace, "f0", CPU)
    for label, slug in enumerate(("a", "b", "c")):
        assert set(read_images(workspace.synthetic("f0") / f"{slug}.parquet").labels) <= {label}


def test_a_killed_pretrain_started_again_writes_the_same_bytes(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_pretrain(workspace, "f0", CPU)
    whole = digests(workspace.shared_model("f0"))
    played, done = Game.play, []

    def play(self: Game, *given: object, **named: object) -> None:
        if len(done) == 8:
            raise Killed
        done.append(1)
        played(self, *given, **named)  # type: ignore[arg-type]

    shutil.rmtree(workspace.shared_model("f0"))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Game, "play", play)
        run_pretrain(workspace, "f0", CPU)
    assert not workspace.shared_model("f0").exists()
    run_pretrain(workspace, "f0", CPU)
    assert digests(workspace.shared_model("f0")) == whole


@pytest.mark.parametrize("seen", [False, True])
def test_a_pinned_gan_that_saw_other_than_the_section_says_is_told_of(
    workspace: Workspace, seen: bool, caplog: pytest.LogCaptureFixture
) -> None:
    trained = set_params(workspace.root, params(shown=seen))
    run_pretrain(trained, "f0", CPU)
    shutil.copytree(trained.shared_model("f0"), workspace.root / "pinned")
    pin = {"path": "pinned", "digest": load_gan(workspace.root / "pinned", CPU).digest}
    for shown in (seen, not seen):
        values = params(shown=shown)
        values["pretrain"] = {**values["pretrain"], "base": {"f0": pin}}  # type: ignore[dict-item]
        caplog.clear()
        run_pretrain(set_params(workspace.root, values), "f0", CPU)
        told = [line for line in caplog.messages if line.startswith("pretrain.unlabelled is")]
        assert len(told) == (shown != seen)
        if told:
            assert ("never saw" if shown else "was also shown") in told[0] and "pretrain.base.f0" in told[0]
        assert digests(trained.shared_model("f0")) == digests(workspace.root / "pinned")


def test_off_the_train_indexes_and_the_plan_say_nothing(workspace: Workspace) -> None:
    root = workspace.root
    named = json.loads((workspace.fold_index("f0") / "train" / INDEX_FILE).read_text())["pixel_sha256"]
    more = load_unlabelled(workspace.prepared)
    assert more is not None and named == more.sha256.tolist()
    with_them = {k: v for k, v in digests(workspace.prepared).items() if INDEX_FILE not in k}
    assert load_plan(root / "plan.yaml").unlabelled_in_pretrain
    off = set_params(root, params(shown=False))
    with pytest.raises(PlanError, match=r"pretrain\.unlabelled: plan True, now False.*synthgen plan"):
        run_prepare(off)
    off = Workspace(root)
    run_plan(off)
    assert "unlabelled" not in (root / "plan.yaml").read_text()
    run_prepare(Workspace(root))
    assert digests(off.prepared) == with_them
    # and who asks for them without a new plan is told
    with pytest.raises(ArtifactError, match=r"unlabelled\.index\.json.*synthgen plan"):
        run_pretrain(set_params(root, params()), "f0", CPU)


def test_other_unlabelled_images_are_another_training(workspace: Workspace) -> None:
    index = workspace.fold_index("f0") / "train"
    before = digests(index)
    (workspace.root / "data/raw/.unlabelled/d0.png").unlink()
    run_prepare(workspace)
    changed = {name for name, digest in digests(index).items() if before[name] != digest}
    assert changed == {INDEX_FILE}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": {"unlabelled": None}}, r"pretrain\.unlabelled: true needs images without a label"),
        ({"plan": {"strategy": "scratch"}}, r"scratch trains no shared GAN"),
        (
            {"pretrain": {"network": {"architecture": "translate_free"}}},
            r"translate_free starts from pictures of known",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_plan(workspace: Workspace, change: dict[str, dict], message: str) -> None:
    values = params()
    for section, found in change.items():
        values[section] = {**values[section], **found}  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match=message):
        run_plan(set_params(workspace.root, values))


def test_shares_by_class_temper() -> None:
    labels = np.repeat([0, 1, 3], [16, 4, 100])
    assert _weights(labels, 3, 0.0) == {0: 1.0, 1: 1.0, 3: 1.0}
    assert _weights(labels, 3, 0.5) == {0: 4.0, 1: 2.0, 3: 3.0}


def test_a_config_without_unlabelled_images_reads_as_before(workspace: Workspace) -> None:
    """Its dump, on which digests of procedures and of unfinished trainings rest, has no new key."""
    config = parse_config(params(None, shown=False))
    dumped = config.model_dump(mode="json")
    assert "unlabelled" not in dumped["source"] and "unlabelled" not in dumped["pretrain"]
    assert parse_config(params()).model_dump()["pretrain"]["unlabelled"] is True
    without = params(None, shown=False)
    del without["source"]["unlabelled"], without["pretrain"]["unlabelled"]  # type: ignore[attr-defined]
    off = procedure_digest(set_params(workspace.root, without), ["balanced"])
    assert procedure_digest(set_params(workspace.root, params(None, shown=False)), ["balanced"]) == off
    assert procedure_digest(set_params(workspace.root, params()), ["balanced"]) != off
