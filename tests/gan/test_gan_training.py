"""Training, resuming, failing and sampling: repeatable to the last bit, learning, and never left in ruins."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from synthgen.config import (
    AdaptiveSection,
    GeneratorSection,
    MonitorSection,
    PretrainSection,
    StopSection,
    TransformsSection,
)
from synthgen.errors import ArtifactError, DivergedError, TrainingError
from synthgen.gan import training
from synthgen.gan.architectures.interface import Discriminator
from synthgen.gan.architectures.shape import GanShape
from synthgen.gan.checkpoint import TrainedGan, failure_of, generator_digest, load_gan, save_failure, save_gan
from synthgen.gan.game import Game
from synthgen.gan.history import ClassTick
from synthgen.gan.monitors import Monitor
from synthgen.gan.pixels import to_uint8, to_unit_range
from synthgen.gan.sampling import sample_batch, sample_images
from synthgen.gan.training import GanRun, train_gan

CPU = torch.device("cpu")
SLUGS = ["up", "down"]
STEPS_PER_TICK, N_STEPS = 5, 30
LENGTH = N_STEPS * 16 / 1000  # kimg


class Killed(BaseException):
    """As sudden as a signal: nothing may catch it and tidy up."""


def _shape(side: int = 8, **keywords: object) -> GanShape:
    small = {"latents": 8, "embedding": 4, "channels": 4, "max_channels": 8, **keywords}
    return GanShape.of(GeneratorSection(**small), side, 1, 2)  # type: ignore[arg-type]


def _section(**keywords: object) -> PretrainSection:
    return PretrainSection(**{"batch": 16, "tick_kimg": STEPS_PER_TICK * 0.016, **keywords})  # type: ignore[arg-type]


def _bars(n: int = 40, side: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Class 0: bright upper half; class 1: bright lower half."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 2
    images = rng.integers(0, 60, (n, side, side, 1))
    images[labels == 0, : side // 2] += 180
    images[labels == 1, side // 2 :] += 180
    return images.astype(np.uint8), labels.astype(np.int64)


def _pixels(images: np.ndarray) -> np.ndarray:
    return (images.reshape(len(images), -1) / np.float32(127.5) - 1.0).astype(np.float32)


def _monitor(side: int = 8) -> Monitor:
    images, labels = _bars(60, side)
    section = MonitorSection(samples_per_class=8, reals_per_class=20)
    return Monitor(_pixels, images[:40], labels[:40], images[40:], labels[40:], section, np.random.default_rng(0))


def _train(
    shape: GanShape | None = None, section: PretrainSection | None = None, kimg: float = LENGTH, **keywords: Any
) -> GanRun:
    shape, section = shape or _shape(), section or _section()
    images, labels = _bars(side=shape.image_size)
    return train_gan(
        images, labels, shape, section, TransformsSection(), **{"kimg": kimg, "seed": 1, "device": CPU, **keywords}
    )


def _gan(run: GanRun) -> TrainedGan:
    return TrainedGan(run.generator, run.discriminator, {"slugs": SLUGS}, generator_digest(run.generator, SLUGS))


def _assert_same(a: GanRun, b: GanRun) -> None:
    assert _gan(a).digest == _gan(b).digest
    ours, theirs = a.discriminator.state_dict(), b.discriminator.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (a.history, a.classes, a.rollbacks) == (b.history, b.classes, b.rollbacks)
    assert (a.best, a.stopped) == (b.best, b.stopped)
    assert len(a.grids) == len(b.grids)
    assert all(np.array_equal(x, y) for x, y in zip(a.grids, b.grids, strict=True))


def _patch_play(monkeypatch: pytest.MonkeyPatch, before: Callable[[Game], None]) -> None:
    """`before` is called at the start of every step."""
    play = Game.play

    def patched(game: Game, *arguments: Any, **keywords: Any) -> None:
        before(game)
        play(game, *arguments, **keywords)

    monkeypatch.setattr(Game, "play", patched)


def _killed_after(n_steps: int, monkeypatch: pytest.MonkeyPatch, train: Callable[[], GanRun]) -> None:
    left = [n_steps]

    def count_down(_: Game) -> None:
        if left[0] == 0:
            raise Killed
        left[0] -= 1

    with monkeypatch.context() as patch:
        _patch_play(patch, count_down)
        with pytest.raises(Killed):
            train()


# The same again


def test_pixels_survive_the_way_to_the_network_and_back() -> None:
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    unit = to_unit_range(images)
    assert unit.min() == -1.0
    assert unit.max() == 1.0
    np.testing.assert_array_equal(to_uint8(unit), images)


def test_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    first, second, other = _train(), _train(), _train(seed=2)
    _assert_same(first, second)
    assert _gan(first).digest != _gan(other).digest
    assert [tick.kimg for tick in first.history] == pytest.approx([0.08 * k for k in range(1, 7)])
    assert first.grids[-1].shape == (2, training.N_GRID_PER_CLASS, 8, 8, 1)
    assert first.best == 5  # nothing judges: the last one it is
    assert not first.generator.training
    assert not any(p.requires_grad for p in (*first.generator.parameters(), *first.discriminator.parameters()))


def test_torchs_global_generator_is_neither_used_nor_moved() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = _train(_shape(dropout=0.2), kimg=0.08)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    _assert_same(first, _train(_shape(dropout=0.2), kimg=0.08))


def test_a_monitor_that_only_looks_changes_no_weight() -> None:
    plain, watched = _train(), _train(monitor=_monitor())
    assert watched.best is not None
    for a, b in zip(plain.history, watched.history, strict=True):
        assert (a.d_loss, a.g_loss, a.d_gradient) == (b.d_loss, b.g_loss, b.d_gradient)
        assert b.score is not None
        assert b.overfitting is not None
    assert len(watched.classes) == 2 * len(watched.history)


# Killed and started again

WAYS: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "adam": ({}, {}),
    "rmsprop": ({}, {"optimizer": "rmsprop", "d_steps": 2, "tick_kimg": 0.16}),
    "ada": ({}, {"adaptive": AdaptiveSection(target=0.01, ramp_kimg=0.3)}),
    "lecam": ({}, {"loss": "hinge", "lecam": 0.3}),
    "progressive": ({"progressive": True}, {}),
    "style": ({"architecture": "style"}, {}),
    "class ramp": ({}, {"class_ramp": 0.6}),
    "dropout and label noise": (
        {"architecture": "dcgan", "dropout": 0.2},
        {"loss": "non_saturating", "label_noise": 0.1, "label_smoothing": 0.1},
    ),
}


@pytest.mark.parametrize(("way", "watched"), [("adam", False), *((way, True) for way in WAYS)])
def test_killed_and_started_again_it_ends_as_if_nothing_had_happened(
    way: str, watched: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, values = WAYS[way]
    side = 16 if way == "progressive" else 8
    shape, section = _shape(side, **network), _section(**values)
    kimg = LENGTH * section.d_steps

    def train(scratch: Path | None = tmp_path / "state") -> GanRun:
        return _train(shape, section, kimg, scratch=scratch, monitor=_monitor(side) if watched else None)

    whole = train(None)
    if way == "ada":
        assert len({tick.transform_strength for tick in whole.history}) > 2  # there is something to restore
    for n_steps in (2, 13, 6):  # before the first state, in the middle of a tick, and again
        _killed_after(n_steps, monkeypatch, train)
    states = sorted(path.name for path in (tmp_path / "state").iterdir())
    # 13 steps reach the states after 5 and 10, 6 more the one after 15
    assert states == ["state-000000000010", "state-000000000015"]
    again = train()
    _assert_same(whole, again)
    _assert_same(whole, train())  # killed after the last state, before the folder was written


def test_fault_23_with_its_newest_state_damaged_it_still_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def train() -> GanRun:
        return _train(scratch=tmp_path, monitor=_monitor())

    _killed_after(18, monkeypatch, train)
    newest = max(tmp_path.iterdir())
    content = bytearray((newest / "tensors.safetensors").read_bytes())
    content[-1] ^= 1
    (newest / "tensors.safetensors").write_bytes(bytes(content))
    _assert_same(train(), _train(monitor=_monitor()))
    assert "going on from an earlier state" in caplog.text


def test_without_scratch_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _train(kimg=0.08)
    assert list(tmp_path.iterdir()) == []


# Ruin


def _poison(monkeypatch: pytest.MonkeyPatch, is_bad: Callable[[Game], bool]) -> None:
    loss = Game._discriminator_loss

    def patched(game: Game, *arguments: Any, **keywords: Any) -> Tensor:
        return loss(game, *arguments, **keywords) * (math.nan if is_bad(game) else 1.0)

    monkeypatch.setattr(Game, "_discriminator_loss", patched)


def test_fault_20_a_loss_that_is_not_finite_is_taken_back_with_another_seed_and_a_lower_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    healthy = _train()
    attempts: list[int] = []
    reseed = Game.reseed
    monkeypatch.setattr(Game, "reseed", lambda game, attempt: attempts.append(attempt) or reseed(game, attempt))  # type: ignore[func-returns-value]
    _poison(monkeypatch, lambda game: game.step == 12 and game.lr_factor == 1.0)
    run = _train()
    assert attempts == [1]
    assert [rollback.kimg for rollback in run.rollbacks] == pytest.approx([0.24])
    assert "no longer finite" in run.rollbacks[0].reason
    assert [tick.kimg for tick in run.history] == [tick.kimg for tick in healthy.history]
    assert run.history[:2] == healthy.history[:2]
    assert run.history[2] != healthy.history[2]
    assert [(tick.lr_factor, tick.rollbacks) for tick in run.history] == [(1.0, 0)] * 2 + [(0.5, 1)] * 4
    for network in (run.generator, run.discriminator):
        assert all(torch.isfinite(tensor).all() for tensor in network.state_dict().values())


def test_killed_around_a_roll_back_it_still_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _poison(monkeypatch, lambda game: (game.step, game.lr_factor) in {(12, 1.0), (13, 0.5), (22, 0.25)})
    whole = _train()
    assert len(whole.rollbacks) == 3
    for n_steps in (14, 12, 9):  # before it is noticed, after one has been taken back, after two
        _killed_after(n_steps, monkeypatch, lambda: _train(scratch=tmp_path))
    _assert_same(_train(scratch=tmp_path), whole)


@pytest.mark.parametrize("allowed", [0, 2])
def test_ruin_again_and_again_ends_in_an_error_that_names_the_limit(
    allowed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    _patch_play(monkeypatch, lambda game: steps.append(game.step))
    _poison(monkeypatch, lambda game: game.step >= 7)
    with pytest.raises(DivergedError, match=rf"after {allowed} roll-back.*pretrain\.stop\.max_rollbacks.*g_lr"):
        _train(section=_section(stop=StopSection(max_rollbacks=allowed)))
    assert len(steps) == 5 + 5 * (allowed + 1)  # each time noticed within a tick


def test_fault_19_a_class_that_collapses_after_it_was_well_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    end_tick = Game.end_tick

    def collapsing(game: Game, n_images: int) -> dict[str, float]:
        if game.step == 15 and game.lr_factor == 1.0:
            for tensor in game.average.network.outputs.parameters():  # type: ignore[union-attr, operator]
                tensor.zero_()
        return end_tick(game, n_images)

    monkeypatch.setattr(Game, "end_tick", collapsing)
    run = _train(section=_section(stop=StopSection(collapse_ratio=0.02)), monitor=_monitor())
    assert len(run.rollbacks) == 1
    assert "has collapsed" in run.rollbacks[0].reason
    assert len(run.history) == 6
    assert all(row.diversity_ratio > 0.02 for row in run.classes)


# Too little memory


@pytest.mark.parametrize("half", ["_discriminator_loss", "_generator_loss"])
def test_fault_34_out_of_memory_once_goes_on_with_half_of_the_batch_at_a_time(
    half: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loss = getattr(Game, half)
    sizes: list[int] = []

    def patched(game: Game, rows: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        if game.step >= 7 and len(rows) > 8:
            raise torch.OutOfMemoryError("no memory")
        sizes.append(len(rows))
        result: Tensor = loss(game, rows, *arguments, **keywords)
        return result

    monkeypatch.setattr(Game, half, patched)
    run = _train()
    assert [tick.n_parts for tick in run.history] == [1, 2, 2, 2, 2, 2]
    assert sizes == [16] * 7 + [8] * 2 * 25
    assert run.rollbacks == []
    assert "in 2 parts" in caplog.text
    assert all(torch.isfinite(tensor).all() for tensor in run.generator.state_dict().values())


def test_no_memory_at_all_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> Tensor:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(Game, "_discriminator_loss", never)
    with pytest.raises(TrainingError, match=r"4 images at a time; lower pretrain\.network\.channels"):
        _train()


# The best tick and the end


class _Scripted(Monitor):
    """Scores by a script; keeps what it was shown."""

    def __init__(self, scores: list[float | None]) -> None:
        self.scores, self.samples, self.judges = scores, [], []  # type: ignore[var-annotated]

    def sample_labels(self) -> np.ndarray:
        return np.repeat([0, 1], 2)

    def measure(self, samples: np.ndarray, kimg: float) -> list[ClassTick]:
        score = self.scores[len(self.samples)]
        self.samples.append(samples)
        return [ClassTick(kimg, label, 9, score, 0.5, 0.5, 0.5, 0.5, 1.0, 1.0) for label in (0, 1)]

    def overfitting(self, discriminator: Discriminator, fakes: Tensor, fake_labels: Tensor) -> float | None:
        self.judges.append({k: v.clone() for k, v in discriminator.state_dict().items()})
        return 0.1


def test_the_best_tick_wins_not_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores: list[float | None] = [0.9, 0.5, 0.2, 0.4, None, 0.3]
    monitor = _Scripted(scores)
    averages: list[str] = []
    end_tick = Game.end_tick
    monkeypatch.setattr(
        Game,
        "end_tick",
        lambda game, n: averages.append(generator_digest(game.average.network, SLUGS)) or end_tick(game, n),  # type: ignore[func-returns-value]
    )
    run = _train(monitor=monitor)
    assert [tick.score for tick in run.history] == pytest.approx(scores)  # type: ignore[comparison-overlap]
    assert run.best == 2  # and a tick that could not be scored does not win
    assert generator_digest(run.generator, SLUGS) == averages[2]
    assert len(set(averages)) == 6
    for name, tensor in run.discriminator.state_dict().items():
        assert torch.equal(tensor, monitor.judges[2][name])
    assert len(run.history) == len(run.grids) == 6


def test_no_tick_before_the_class_input_is_whole_can_be_the_best() -> None:
    run = _train(section=_section(class_ramp=0.5), monitor=_Scripted([0.01, 0.01, 0.01, 0.9, 0.8, 0.85]))
    assert run.best == 4
    assert run.generator.class_share == run.discriminator.class_share == 1.0


def test_no_tick_before_a_network_is_grown_can_be_the_best() -> None:
    section = _section(grow_until=0.5)
    run = _train(_shape(16, progressive=True), section, monitor=_Scripted([0.01, 0.01, 0.5, 0.9, 0.8, 0.85]))
    assert run.best is not None
    assert run.best >= 2
    assert run.generator.growth == run.discriminator.growth == 2.0


def test_it_ends_early_on_a_plateau_and_stays_ended_after_a_kill(tmp_path: Path) -> None:
    section = _section(stop=StopSection(plateau_ticks=2))
    run = _train(section=section, monitor=_Scripted([0.5, 0.4, 0.6, 0.7]), scratch=tmp_path)
    assert run.stopped == "no better score in 2 ticks"
    assert (run.best, len(run.history)) == (1, 4)
    _assert_same(run, _train(section=section, monitor=_Scripted([]), scratch=tmp_path))


# What training is for


def test_it_learns_which_half_is_bright() -> None:
    shape = _shape(channels=8, max_channels=16)
    run = _train(shape, _section(tick_kimg=4.0, real_transforms=0.1), kimg=4.0)
    for label in (0, 1):
        images = sample_batch(run.generator, label, 3, batch=32, truncation=1.0, device=CPU).images.astype(float)
        upper, lower = images[:, :4].mean(), images[:, 4:].mean()
        assert (upper > lower + 40) == (label == 0)


def test_a_class_without_images_is_refused() -> None:
    with pytest.raises(TrainingError, match="no training image"):
        _train(weights={0: 0.5, 5: 0.5})


def test_one_image_of_one_class_trains() -> None:
    images, labels = _bars()
    run = train_gan(images[:1], labels[:1], _shape(), _section(), TransformsSection(), kimg=0.08, seed=1, device=CPU)
    assert np.isfinite(run.history[-1].d_loss)


def test_classes_can_be_shown_by_their_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[dict[int, float] | None] = []
    batches = training.BalancedBatches

    def recording(labels: np.ndarray, batch: int, rng: np.random.Generator, weights: dict[int, float] | None) -> Any:
        shares.append(weights)
        return batches(labels, batch, rng, weights)

    monkeypatch.setattr(training, "BalancedBatches", recording)
    images, labels = _bars()
    kept = np.concatenate([np.flatnonzero(labels == 0)[:16], np.flatnonzero(labels == 1)[:4]])
    for temper in (0.0, 0.5, 1.0):
        train_gan(
            images[kept], labels[kept], _shape(), _section(class_temper=temper), TransformsSection(),
            kimg=0.016, seed=1, device=CPU,
        )  # fmt: skip
    assert shares == [None, {0: 4.0, 1: 2.0}, {0: 16.0, 1: 4.0}]


def test_adaptation_starts_from_the_shared_weights() -> None:
    start = _gan(_train())
    run = _train(kimg=0.016, start=start, weights={0: 0.5, 1: 0.5}, lr_factor=1e-6)
    for name, tensor in start.generator.state_dict().items():
        if tensor.is_floating_point() and "running" not in name:
            assert torch.allclose(tensor, run.generator.state_dict()[name], atol=1e-5), name
    assert generator_digest(start.generator, SLUGS) == start.digest  # the start is left alone


def test_an_adaptation_is_killed_and_resumed_like_any_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = _gan(_train(_shape(16), kimg=0.08))

    def train(scratch: Path | None = tmp_path) -> GanRun:
        return _train(
            _shape(16), start=start, weights={0: 0.8, 1: 0.2}, lr_factor=0.3, freeze_blocks=1, scratch=scratch
        )

    _killed_after(17, monkeypatch, train)
    _assert_same(train(), train(None))


# On disk, and sampling


def test_checkpoint_round_trip_and_a_flipped_byte(tmp_path: Path) -> None:
    gan = _gan(_train(kimg=0.08))
    save_gan(tmp_path, gan)
    loaded = load_gan(tmp_path, CPU)
    assert loaded.digest == gan.digest
    assert failure_of(tmp_path) is None
    weights = tmp_path / "generator.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 0x40
    weights.write_bytes(bytes(content))
    with pytest.raises(ArtifactError, match=r"generator\.safetensors"):
        load_gan(tmp_path, CPU)


def test_a_failure_has_its_reason_and_no_weights(tmp_path: Path) -> None:
    save_failure(tmp_path, {"slugs": SLUGS}, "it ran away")
    assert failure_of(tmp_path) == "it ran away"
    with pytest.raises(ArtifactError, match="it ran away"):
        load_gan(tmp_path, CPU)


def test_fault_31_a_pickle_is_not_opened(tmp_path: Path) -> None:
    gan = _gan(_train(kimg=0.08))
    save_gan(tmp_path, gan)
    canary = tmp_path / "canary"

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path(canary).touch, ())  # type: ignore[return-value]

    torch.save({"x": Bomb()}, tmp_path / "generator.safetensors")
    with pytest.raises(ArtifactError):
        load_gan(tmp_path, CPU)
    assert not canary.exists()


@pytest.mark.parametrize("kind", ["resnet", "dcgan", "style"])
def test_each_image_can_be_made_again_from_seed_and_position(kind: str) -> None:
    gan = _gan(_train(_shape(architecture=kind), kimg=0.08))
    sampled = sample_images(gan.generator, gan.discriminator, 1, 40, seed=9, batch=16, truncation=1.0, device=CPU)
    assert len(sampled.images) == 48  # whole batches
    for i in (0, 17, 47):
        again = sample_batch(gan.generator, 1, int(sampled.seeds[i]), batch=16, truncation=1.0, device=CPU)
        np.testing.assert_array_equal(again.images[sampled.positions[i]], sampled.images[i])
    assert len({(int(s), int(p)) for s, p in zip(sampled.seeds, sampled.positions, strict=True)}) == 48


@pytest.mark.parametrize("kind", ["resnet", "dcgan", "style"])
def test_truncation_makes_samples_of_every_kind_more_alike(kind: str) -> None:
    gan = _gan(_train(_shape(architecture=kind), kimg=0.48))
    spread = [
        sample_batch(gan.generator, 1, 3, batch=64, truncation=truncation, device=CPU)
        .images.astype(float)
        .std(0)
        .mean()
        for truncation in (1.0, 0.3)
    ]
    assert spread[1] < 0.7 * spread[0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_runs_on_cuda() -> None:
    run = _train(device=torch.device("cuda"), monitor=_monitor())
    assert np.isfinite(run.history[-1].g_loss)
