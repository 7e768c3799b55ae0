"""The stages that train generators: killed and started again, kept apart by config, and a class that comes to ruin."""

import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from synthgen.artifacts import read_json, sha256_file
from synthgen.dataset.shards import read_images
from synthgen.errors import DivergedError
from synthgen.gan.checkpoint import failure_of
from synthgen.gan.game import Game
from synthgen.stages.adapt import run_adapt
from synthgen.stages.assemble import run_assemble
from synthgen.stages.challenge import run_challenge
from synthgen.stages.compare import run_compare
from synthgen.stages.evaluate import run_evaluate
from synthgen.stages.gan_output import scratch_folder
from synthgen.stages.plan import run_plan
from synthgen.stages.prepare import run_prepare
from synthgen.stages.pretrain import run_pretrain
from synthgen.stages.report import run_report
from synthgen.stages.scratch import run_scratch
from synthgen.stages.synthesize import run_synthesize
from synthgen.stages.workspace import Workspace

CPU = torch.device("cpu")
PARAMS = """
seed: 3
source: {type: digits, simulate_scarcity: {keep: {"3": 15, "8": 15}, surplus: test}}
plan: {folds: 3, target: 12, strategy: STRATEGY}
prepare: {image_size: 8, channels: 1}
classifier: {width: 8, steps: 20, batch: 32}
pretrain:
  kimg: 0.96
  batch: 32
  tick_kimg: 0.16
  ema: 0.9
  network: {channels: 4, max_channels: 8, latents: 8, embedding: 4}
  monitor: {samples_per_class: 8, reals_per_class: 20, feature_steps: 20}
adapt: {kimg: 0.48}
scratch: {kimg: 0.32}
synthesize: {min_agreement: 0.0, min_nearest_ratio: 0.0, min_diversity_ratio: 0.0, teacher_steps: 20, batch: 16}
evaluate: {arms: [balanced], repeats: 2, crossfit: false}
challenge: {arms: [best+synthetic]}
"""


class Killed(BaseException):
    """As sudden as a signal."""


def _prepared(folder: Path, strategy: str) -> Workspace:
    (folder / "data" / "raw").mkdir(parents=True)
    (folder / "params.yaml").write_text(PARAMS.replace("STRATEGY", strategy))
    workspace = Workspace(folder)
    run_plan(workspace)
    run_prepare(workspace)
    return workspace


@pytest.fixture(scope="module")
def adapted_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project after `prepare`."""
    return _prepared(tmp_path_factory.mktemp("adapted"), "adapted").root


@pytest.fixture(scope="module")
def pretrained_template(adapted_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same after `pretrain` of both folds and `final`."""
    folder = _copy(adapted_template, tmp_path_factory.mktemp("pretrained") / "project")
    for fold in folder.plan.pretrain_folds:
        run_pretrain(folder, fold, CPU)
    return folder.root


def _copy(template: Path, folder: Path) -> Workspace:
    shutil.copytree(template, folder)
    return Workspace(folder)


def _change(workspace: Workspace, old: str, new: str) -> Workspace:
    path = workspace.root / "params.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return Workspace(workspace.root)


def _digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def _unfinished(workspace: Workspace) -> list[str]:
    return sorted(path.name for path in workspace.scratch.glob("*/state-*"))


def _killed_after(n_steps: int, monkeypatch: pytest.MonkeyPatch, work: Callable[[], None]) -> None:
    left = [n_steps]
    play = Game.play

    def patched(game: Game, *arguments: Any, **keywords: Any) -> None:
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        play(game, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(Game, "play", patched)
        with pytest.raises(Killed):
            work()


def _ruined(monkeypatch: pytest.MonkeyPatch, work: Callable[[], None]) -> None:
    loss = Game._discriminator_loss

    def patched(game: Game, *arguments: Any, **keywords: Any) -> Tensor:
        return loss(game, *arguments, **keywords) * math.nan

    with monkeypatch.context() as patch:
        patch.setattr(Game, "_discriminator_loss", patched)
        work()


# Killed and started again


def test_a_killed_pretrain_started_again_writes_the_same_bytes(
    adapted_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = (_copy(adapted_template, tmp_path / name) for name in ("whole", "killed"))
    run_pretrain(whole, "f0", CPU)
    for n_steps in (3, 12, 8):
        _killed_after(n_steps, monkeypatch, lambda: run_pretrain(killed, "f0", CPU))
        assert not killed.shared_model("f0").exists()
    assert _unfinished(killed) == ["state-000000000010", "state-000000000015"]
    run_pretrain(killed, "f0", CPU)
    expected = _digests(whole.shared_model("f0"))
    assert {"model.json", "generator.safetensors", "history.csv", "classes.csv", "grid.png"} <= expected.keys()
    assert _digests(killed.shared_model("f0")) == expected
    for workspace in (whole, killed):
        assert not any(workspace.scratch.glob("*"))


def test_killed_adapt_and_scratch_started_again_write_the_same_bytes(
    pretrained_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = (_copy(pretrained_template, tmp_path / name) for name in ("whole", "killed"))
    for work, model in (
        (lambda w: run_adapt(w, "f0", "3", CPU), whole.adapted_model("f0", "3")),
        (lambda w: run_scratch(w, "f0", "8", CPU), whole.scratch_model("f0", "8")),
    ):
        work(whole)
        _killed_after(8, monkeypatch, lambda work=work: work(killed))  # type: ignore[misc]
        assert _unfinished(killed) == ["state-000000000005"]
        work(killed)
        assert _digests(killed.root / model.relative_to(whole.root)) == _digests(model)
        assert _unfinished(killed) == []


def test_a_killed_adapt_with_a_third_player_started_again_writes_the_same_bytes(
    pretrained_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, whole, killed = (_copy(pretrained_template, tmp_path / name) for name in ("plain", "whole", "killed"))
    run_adapt(plain, "f0", "3", CPU)
    whole, killed = (
        _change(w, "adapt: {kimg: 0.48}", "adapt: {kimg: 0.48, boundary: {width: 4}}") for w in (whole, killed)
    )
    run_adapt(whole, "f0", "3", CPU)
    _killed_after(8, monkeypatch, lambda: run_adapt(killed, "f0", "3", CPU))
    run_adapt(killed, "f0", "3", CPU)
    expected, of_two = _digests(whole.adapted_model("f0", "3")), _digests(plain.adapted_model("f0", "3"))
    assert _digests(killed.adapted_model("f0", "3")) == expected
    assert expected["generator.safetensors"] != of_two["generator.safetensors"]
    headers = [
        (w.adapted_model("f0", "3") / "history.csv").read_text().partition("\n")[0].split(",") for w in (plain, whole)
    ]
    assert headers[1] == [*headers[0], "c_loss", "c_real", "c_fake", "c_certainty", "boundary"]


def test_a_killed_training_of_another_config_is_not_taken_up(
    adapted_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = (_copy(adapted_template, tmp_path / name) for name in ("whole", "killed"))
    _killed_after(12, monkeypatch, lambda: run_pretrain(killed, "f0", CPU))
    whole, killed = (_change(w, "ema: 0.9", "ema: 0.8") for w in (whole, killed))
    run_pretrain(whole, "f0", CPU)
    run_pretrain(killed, "f0", CPU)
    assert _digests(killed.shared_model("f0")) == _digests(whole.shared_model("f0"))
    assert _unfinished(killed) == ["state-000000000005", "state-000000000010"]  # the other config can still go on


def test_scratch_folders_are_named_by_all_that_decides(adapted_template: Path, tmp_path: Path) -> None:
    workspace = _copy(adapted_template, tmp_path / "project")
    decides: dict[str, Any] = {"seed": 1, "images": ["a", "b"]}
    folders = [
        scratch_folder(workspace, "pretrain", decides),
        scratch_folder(workspace, "adapt", decides),
        scratch_folder(workspace, "pretrain", {**decides, "seed": 2}),
        scratch_folder(workspace, "pretrain", {**decides, "images": ["a", "c"]}),
        scratch_folder(_change(workspace, "batch: 32\n  tick", "batch: 16\n  tick"), "pretrain", decides),
        scratch_folder(_change(workspace, "seed: 3", "transforms: {rotate: 3.0}\nseed: 3"), "pretrain", decides),
    ]
    assert len(set(folders)) == len(folders)
    assert {folder.parent for folder in folders} == {workspace.scratch}
    again = _copy(adapted_template, tmp_path / "again")
    assert scratch_folder(again, "pretrain", decides).name == folders[0].name


# What a training leaves


def test_the_model_folder_tells_the_whole_course(pretrained_template: Path) -> None:
    folder = Workspace(pretrained_template).shared_model("f0")
    with (folder / "history.csv").open(newline="") as stream:
        ticks = list(csv.DictReader(stream))
    with (folder / "classes.csv").open(newline="") as stream:
        classes = list(csv.DictReader(stream))
    assert [float(tick["kimg"]) for tick in ticks] == pytest.approx([0.16 * k for k in range(1, 7)])
    assert len(classes) == 10 * len(ticks)
    assert all(math.isfinite(float(tick["score"])) for tick in ticks)
    assert len(list((folder / "grids").iterdir())) == len(ticks)
    about = read_json(folder / "model.json")
    scores = [float(tick["score"]) for tick in ticks]
    assert about["best_kimg"] == pytest.approx(0.16 * (1 + scores.index(min(scores))))
    best = folder / "grids" / f"{round(about['best_kimg'] * 1000):09d}.png"
    assert (folder / "grid.png").read_bytes() == best.read_bytes()  # the picture is of the weights beside it
    assert about["rollbacks"] == []


def test_held_out_images_are_of_the_training_side_and_whole_groups(pretrained_template: Path) -> None:
    workspace = Workspace(pretrained_template)
    folder = workspace.shared_model("f0")
    held_out, trained_on = set(read_json(folder / "held_out.json")), set(read_json(folder / "trained_on.json"))
    assert held_out
    assert held_out < trained_on  # what a generator was judged by counts as seen
    index = workspace.fold_index("f0")
    scarce = {sha for slug in ("3", "8") for sha in read_json(index / "train" / f"{slug}.json")["pixel_sha256"]}
    assert not held_out & scarce


# Ruin


@pytest.fixture(scope="module")
def ruined(pretrained_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A project whose class 3 diverges in every fold, taken to its report."""
    workspace = _copy(pretrained_template, tmp_path_factory.mktemp("ruined") / "project")
    with pytest.MonkeyPatch.context() as monkeypatch:
        for fold in workspace.plan.folds:
            _ruined(monkeypatch, lambda fold=fold: run_adapt(workspace, fold, "3", CPU))  # type: ignore[misc]
            run_adapt(workspace, fold, "8", CPU)
            run_synthesize(workspace, fold, CPU)
    run_assemble(workspace)
    for arm in workspace.config.evaluate.arms:
        run_evaluate(workspace, arm, CPU, n_workers=1)
    for arm in workspace.config.challenge.arms:
        run_challenge(workspace, arm, CPU, n_workers=1)
    run_compare(workspace)
    run_report(workspace)
    return workspace


def test_a_class_that_diverges_leaves_its_reason_and_no_weights(ruined: Workspace) -> None:
    folder = ruined.adapted_model("f0", "3")
    about = read_json(folder / "model.json")
    assert "no longer finite" in about["failed"]
    assert "pretrain.stop.max_rollbacks" in about["failed"]
    assert (about["kind"], about["slug"]) == ("adapted", "3")
    assert not (folder / "generator.safetensors").exists()
    assert read_json(folder / "trained_on.json")
    assert failure_of(ruined.adapted_model("f0", "8")) is None
    assert _unfinished(ruined) == []


def test_synthesize_refuses_that_class_with_the_reason_and_makes_the_others(ruined: Workspace) -> None:
    acceptance = read_json(ruined.synthetic("f0") / "acceptance.json")
    assert "no longer finite" in acceptance["3"]["refused"]
    assert acceptance["3"]["accepted"] == 0
    counts = {slug: len(read_images(ruined.synthetic("f0") / f"{slug}.parquet").labels) for slug in ruined.plan.slugs}
    assert counts.pop("3") == 0
    assert set(counts.values()) == {12}


def test_the_report_of_that_project_is_written_and_names_the_class(ruined: Workspace) -> None:
    page = (ruined.reports / "index.html").read_text(encoding="utf-8")
    assert "no longer finite" in page
    gain = read_json(ruined.metrics / "gain.json")
    assert json.dumps(gain["gain"]["3"])
    assert (ruined.augmented / "summary.json").exists()


def test_pretrain_that_diverges_is_an_error_for_there_is_nothing_to_go_on_with(
    adapted_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = _copy(adapted_template, tmp_path / "project")
    with pytest.raises(DivergedError, match="pretrain f0"):
        _ruined(monkeypatch, lambda: run_pretrain(workspace, "f0", CPU))
    assert not workspace.shared_model("f0").exists()
