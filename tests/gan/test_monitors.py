"""What the monitor says of samples whose truth is known, what it holds out, and when it ends a training."""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from synthgen.config import GeneratorSection, MonitorSection, StopSection
from synthgen.gan.architectures.build import build_discriminator
from synthgen.gan.architectures.interface import Discriminator
from synthgen.gan.architectures.shape import GanShape
from synthgen.gan.history import ClassTick, Tick
from synthgen.gan.monitors import MAX_LOSS, Monitor, hold_out, illness, mean_distance, reason_to_stop, summarise

SECTION = MonitorSection(samples_per_class=32, reals_per_class=60, held_out=0.25)


def _pixels(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return (images.reshape(len(images), -1) / np.float32(127.5) - 1.0).astype(np.float32)


def _images(n_per_class: int, seed: int, n_classes: int = 2) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Noise around a brightness of each class's own."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(n_classes), n_per_class)
    middle = 60 + 120 * labels[:, None, None, None] / max(n_classes - 1, 1)
    images = rng.normal(middle, 25.0, (len(labels), 4, 4, 1)).clip(0, 255)
    return images.astype(np.uint8), labels.astype(np.int64)


def _monitor(section: MonitorSection = SECTION, n_held_out: int = 40) -> Monitor:
    images, labels = _images(80, 1)
    held, held_labels = _images(n_held_out, 2)
    return Monitor(_pixels, images, labels, held, held_labels, section, np.random.default_rng(0))


# What is measured


def test_mean_distance_is_the_mean_of_all_pairs() -> None:
    x = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    pairs = [np.linalg.norm(x[i] - x[j]) for i in range(7) for j in range(7) if i != j]
    assert mean_distance(x) == pytest.approx(float(np.mean(pairs)), rel=1e-5)
    assert mean_distance(x[:1]) == 0.0
    assert mean_distance(np.repeat(x[:1], 5, axis=0)) == pytest.approx(0.0, abs=1e-6)


def test_samples_like_reals_are_near_diverse_and_no_copies() -> None:
    monitor = _monitor()
    samples, labels = _images(32, 3)
    np.testing.assert_array_equal(monitor.sample_labels(), labels)
    for row in monitor.measure(samples, 4.0):
        assert row.kimg == 4.0
        assert row.kernel_distance == pytest.approx(0.0, abs=0.02)
        assert row.diversity_ratio == pytest.approx(1.0, abs=0.1)
        assert row.nearest_ratio == pytest.approx(1.0, abs=0.2)
        assert row.coverage is not None
        assert row.coverage > 0.8
        assert row.n_reals == 40


def test_copies_of_training_images_lie_at_no_distance() -> None:
    images, labels = _images(80, 1)
    section = SECTION.model_copy(update={"reals_per_class": 80})
    monitor = _monitor(section)
    copies = np.concatenate([images[labels == k][:32] for k in (0, 1)])
    for row in monitor.measure(copies, 1.0):
        assert row.nearest_ratio == pytest.approx(0.0, abs=1e-3)
        assert row.diversity_ratio == pytest.approx(1.0, abs=0.15)


def test_fault_19_one_image_again_and_again_has_no_diversity() -> None:
    monitor = _monitor()
    samples, _ = _images(1, 3)
    collapsed = np.repeat(samples, 32, axis=0)
    for row in monitor.measure(collapsed, 1.0):
        assert row.diversity_ratio == pytest.approx(0.0, abs=1e-4)
        assert row.recall == 0.0


def test_the_wrong_class_is_farther_than_the_right_one() -> None:
    monitor = _monitor()
    samples, _ = _images(32, 3)
    right = monitor.measure(samples, 1.0)
    wrong = monitor.measure(np.concatenate([samples[32:], samples[:32]]), 1.0)
    for good, bad in zip(right, wrong, strict=True):
        assert good.kernel_distance is not None
        assert bad.kernel_distance is not None
        assert bad.kernel_distance > good.kernel_distance + 0.1
        assert bad.precision == 0.0


def test_kernel_distance_is_the_papers_formula() -> None:
    monitor = _monitor()
    samples, _ = _images(32, 3)
    row = monitor.measure(samples, 1.0)[0]
    x, y = monitor.classes[0].reference.astype(float), _pixels(samples[:32]).astype(float)

    def k(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        return float((a @ b / len(a) + 1.0) ** 3)

    xx = np.mean([k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    yy = np.mean([k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    xy = np.mean([k(a, b) for a in x for b in y])
    assert row.kernel_distance == pytest.approx(float(xx + yy - 2 * xy), rel=1e-6)


def test_few_held_out_reals_are_joined_by_training_reals() -> None:
    assert [len(c.reference) for c in _monitor(n_held_out=15).classes] == [75, 75]
    assert [len(c.reference) for c in _monitor(n_held_out=16).classes] == [16, 16]
    assert [len(c.reference) for c in _monitor(n_held_out=0).classes] == [60, 60]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_class_of_few_images_is_measured_as_far_as_it_goes(n: int) -> None:
    images, labels = _images(n, 1)
    monitor = Monitor(_pixels, images, labels, images[:0], labels[:0], SECTION, np.random.default_rng(0))
    samples, _ = _images(32, 3)
    for row in monitor.measure(samples, 1.0):
        assert (row.kernel_distance is None) == (n == 1)
        assert math.isfinite(row.diversity_ratio)
        assert math.isfinite(row.nearest_ratio)


def test_features_that_are_not_finite_make_no_noise() -> None:
    monitor = _monitor()
    monitor.features = lambda images: np.full((len(images), 16), np.nan, dtype=np.float32)
    rows = monitor.measure(_images(32, 3)[0], 1.0)
    assert all(row.kernel_distance is None and row.coverage is None for row in rows)
    assert summarise(rows)["score"] is None


def test_the_summary_takes_means_and_the_worst() -> None:
    rows = [_row(0, 0.9, kernel_distance=1.0, nearest_ratio=0.8), _row(1, 0.2, kernel_distance=None), _row(2, 0.5)]
    found = summarise(rows)
    assert found["score"] == pytest.approx((1.0 + 0.1) / 2)
    assert found["diversity_ratio"] == 0.2
    assert found["nearest_ratio"] == 0.8


class _Brightness(Discriminator):
    """Its logit is the mean of the image."""

    def trunk(self, images: Tensor, members: Tensor, n_members: int) -> Tensor:
        raise AssertionError("the logit is the mean of the image")

    def stages(self) -> Iterator[nn.Module]:
        raise AssertionError("a mean has no stages")

    def forward(self, images: Tensor, labels: Tensor, fakes: Tensor | None = None) -> Tensor:
        assert not self.training
        return images.mean((1, 2, 3))


def test_overfitting_is_the_place_of_held_out_reals_between_training_reals_and_fakes() -> None:
    # ADA, eq. 1: r_v = (E[D_train] - E[D_val]) / (E[D_train] - E[D_gen]); class 1 has nothing held out
    images = np.zeros((40, 8, 8, 1), np.uint8)
    labels = np.repeat([0, 1], 20)
    images[labels == 0], images[labels == 1] = 204, 17
    held = np.full((4, 8, 8, 1), 153, np.uint8)
    monitor = Monitor(_pixels, images, labels, held, np.zeros(4, np.int64), SECTION, np.random.default_rng(0))
    judge = _Brightness(GanShape.of(GeneratorSection(), 8, 1, 2)).train()
    fakes = torch.full((6, 1, 8, 8), 51 / 127.5 - 1.0)
    found = monitor.overfitting(judge, fakes, torch.tensor([0, 0, 0, 1, 1, 1]))
    assert found == pytest.approx((204 - 153) / (204 - 51), abs=1e-5)
    assert judge.training
    empty = Monitor(_pixels, images, labels, held[:0], np.zeros(0, np.int64), SECTION, np.random.default_rng(0))
    assert empty.overfitting(judge, fakes, torch.zeros(6, dtype=torch.int64)) is None


def test_looking_for_overfitting_changes_nothing() -> None:
    images, labels = _images(80, 1)
    shape = GanShape.of(GeneratorSection(architecture="dcgan", channels=4), 8, 1, 2)
    big = np.repeat(np.repeat(images, 2, 1), 2, 2)
    monitor = Monitor(_pixels, big, labels, big[:20], labels[:20], SECTION, np.random.default_rng(0))
    judge = build_discriminator(shape).train()
    before = {k: v.clone() for k, v in judge.state_dict().items()}
    monitor.overfitting(judge, torch.zeros(4, 1, 8, 8), torch.tensor([0, 0, 1, 1]))
    assert all(torch.equal(before[k], v) for k, v in judge.state_dict().items())


# What is held out


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(1, 80),
    n_groups=st.integers(1, 80),
    share=st.floats(0.0, 0.9),
    least=st.integers(1, 60),
    seed=st.integers(0, 999),
)
def test_groups_stay_whole_and_small_classes_are_left_alone(
    n: int, n_groups: int, share: float, least: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.choice(4, n, p=[0.6, 0.3, 0.08, 0.02]).astype(np.int64)
    groups = rng.integers(0, n_groups, n)  # of several classes too
    section = MonitorSection(held_out=share, min_class_images=least)
    out = hold_out(labels, groups, section, np.random.default_rng(seed))
    assert out.shape == labels.shape
    for group in np.unique(groups):
        assert len(set(out[groups == group].tolist())) == 1
    for label in np.unique(labels):
        own = labels == label
        if own.sum() < least:
            assert not out[own].any()
        assert out[own].sum() <= round(share * own.sum())
    np.testing.assert_array_equal(out, hold_out(labels, groups, section, np.random.default_rng(seed)))


def test_single_photographs_are_held_out_to_the_share_asked_for() -> None:
    labels = np.repeat([0, 1, 2], [100, 41, 39])
    out = hold_out(labels, np.arange(180), MonitorSection(held_out=0.1), np.random.default_rng(0))
    assert [int(out[labels == k].sum()) for k in range(3)] == [10, 4, 0]


# When a tick is ill, and when it is enough


def _tick(**keywords: object) -> Tick:
    names = [field.name for field in dataclasses.fields(Tick) if field.default is dataclasses.MISSING]
    return Tick(**{**dict.fromkeys(names, 0.5), "n_parts": 1, "rollbacks": 0, **keywords})  # type: ignore[arg-type]


def _row(label: int, diversity: float, **keywords: object) -> ClassTick:
    values: dict[str, object] = {"kernel_distance": 0.1, "nearest_ratio": 1.0, **keywords}
    values |= dict.fromkeys(("precision", "recall", "density", "coverage"), 0.5)
    return ClassTick(kimg=1.0, label=label, n_reals=9, diversity_ratio=diversity, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["d_loss", "g_loss", "r1", "r2", "d_gradient", "g_gradient"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_fault_20_numbers_that_are_not_finite_are_an_illness(name: str, value: float) -> None:
    assert "no longer finite" in str(illness(_tick(**{name: value}), [], {}, StopSection()))


def test_losses_out_of_all_bounds_are_an_illness() -> None:
    assert illness(_tick(d_loss=MAX_LOSS), [], {}, StopSection()) is None
    assert "diverged" in str(illness(_tick(g_loss=-1.01 * MAX_LOSS), [], {}, StopSection()))


def test_collapse_counts_only_after_the_class_was_well() -> None:
    section = StopSection(collapse_ratio=0.1)
    sick = [_row(0, 0.9), _row(1, 0.05)]
    assert illness(_tick(), sick, {}, section) is None  # it has never been better: it may still be learning
    assert illness(_tick(), sick, {0: 0.9, 1: 0.29}, section) is None
    reason = illness(_tick(), sick, {0: 0.9, 1: 0.31}, section)
    assert reason is not None
    assert "class 1 has collapsed" in reason
    assert illness(_tick(), [_row(1, 0.1)], {1: 0.9}, section) is None
    assert illness(_tick(), sick, {0: 0.9, 1: 0.9}, StopSection(collapse_ratio=0.0)) is None


def test_a_plateau_stops_after_so_many_ticks_without_a_better_score() -> None:
    section = StopSection(plateau_ticks=3)
    history = [_tick() for _ in range(6)]
    assert reason_to_stop(history, 2, section) == "no better score in 3 ticks"
    assert reason_to_stop(history, 3, section) is None
    assert reason_to_stop(history, None, section) is None
    assert reason_to_stop(history, 0, StopSection()) is None


def test_equilibrium_needs_both_halves_for_so_many_ticks_in_a_row() -> None:
    section = StopSection(equilibrium_ticks=2, equilibrium_width=0.05)
    at, off = _tick(d_real=0.54, d_fake=0.46), _tick(d_real=0.54, d_fake=0.44)
    assert "equilibrium" in str(reason_to_stop([off, at, at], 0, section))
    assert "45 to 55 %" in str(reason_to_stop([at, at], 0, section))
    assert reason_to_stop([at, off], 0, section) is None
    assert reason_to_stop([off, at], 0, section) is None
    assert reason_to_stop([at], 0, section) is None


def test_samples_that_come_too_near_to_training_images_stop_the_training() -> None:
    section = StopSection(min_nearest_ratio=0.5)
    assert "0.40 times" in str(reason_to_stop([_tick(nearest_ratio=0.4)], 0, section))
    assert reason_to_stop([_tick(nearest_ratio=0.5)], 0, section) is None
    assert reason_to_stop([_tick(nearest_ratio=None)], 0, section) is None
    assert reason_to_stop([_tick(nearest_ratio=0.0)], 0, StopSection()) is None
