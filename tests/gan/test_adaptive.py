"""The strength controller against the paper's rule, and the overfitting signals against their definitions."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from synthgen.errors import ArtifactError, ConfigError, TrainingError
from synthgen.gan.adaptive import AdaptiveStrength, overfitting_held_out, overfitting_sign


def test_the_ramp_takes_as_long_as_it_says() -> None:
    controller = AdaptiveStrength(0.0, target=0.6, ramp_kimg=500.0)
    for _ in range(500_000 // 256 // 4):
        controller.update(0.9, 256 * 4)
    assert controller.strength == pytest.approx(1.0, abs=0.003)
    for _ in range(250_000 // 256 // 4):
        controller.update(0.1, 256 * 4)
    assert controller.strength == pytest.approx(0.5, abs=0.003)


def test_one_step_is_the_rule_of_the_paper() -> None:
    for signal, sign in ((0.61, 1), (0.6, 0), (0.59, -1), (-1.0, -1)):
        controller = AdaptiveStrength(0.5, target=0.6, ramp_kimg=100.0)
        controller.update(signal, 4096)
        assert controller.strength == pytest.approx(0.5 + sign * 4096 / 100_000)


@given(st.lists(st.tuples(st.floats(-1, 1), st.integers(0, 10**7)), max_size=30))
def test_strength_stays_a_probability_and_survives_a_resume(updates: list[tuple[float, int]]) -> None:
    whole, resumed = AdaptiveStrength(0.2, 0.6, 50.0), AdaptiveStrength(0.2, 0.6, 50.0)
    for signal, n_images in updates:
        whole.update(signal, n_images)
        fresh = AdaptiveStrength(0.0, 0.6, 50.0)
        fresh.load(resumed.state())
        resumed = fresh
        resumed.update(signal, n_images)
        assert 0.0 <= whole.strength <= 1.0
        assert whole.strength == resumed.strength


@pytest.mark.parametrize("signal", [math.nan, math.inf, -math.inf])
def test_a_signal_that_is_not_finite_is_refused(signal: float) -> None:
    controller = AdaptiveStrength(0.3, 0.6, 50.0)
    with pytest.raises(TrainingError, match="not finite"):
        controller.update(signal, 100)
    assert controller.strength == 0.3


@pytest.mark.parametrize(
    ("strength", "target", "ramp_kimg"),
    [
        (-0.1, 0.6, 50.0),
        (1.1, 0.6, 50.0),
        (math.nan, 0.6, 50.0),
        (0.0, 1.0, 50.0),
        (0.0, -1.0, 50.0),
        (0.0, math.nan, 50.0),
        (0.0, 0.6, 0.0),
        (0.0, 0.6, math.inf),
    ],
)
def test_settings_that_cannot_work_are_refused(strength: float, target: float, ramp_kimg: float) -> None:
    with pytest.raises(ConfigError):
        AdaptiveStrength(strength, target, ramp_kimg)


@pytest.mark.parametrize("stored", [-0.01, 1.01, math.nan])
def test_a_damaged_state_is_refused(stored: float) -> None:
    controller = AdaptiveStrength(0.3, 0.6, 50.0)
    with pytest.raises(ArtifactError, match="outside"):
        controller.load(stored)
    assert controller.strength == 0.3


def test_the_sign_is_the_share_called_real_less_the_share_called_fake() -> None:
    real = torch.tensor([3.0, 0.5, -0.1, 2.0, 0.0])
    assert overfitting_sign(real, torch.zeros(5), relative=False).item() == pytest.approx((3 - 1) / 5)


def test_the_relative_sign_does_not_see_a_constant() -> None:
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.randn(40, generator=generator) + 0.5, torch.randn(40, generator=generator) - 0.5
    middle = (real.mean().item() + fake.mean().item()) / 2
    expected = sum(math.copysign(1, r - middle) for r in real.tolist()) / 40
    for constant in (0.0, 7.0, -50.0):
        found = overfitting_sign(real + constant, fake + constant, relative=True).item()
        assert found == pytest.approx(expected)
    assert overfitting_sign(torch.full((4,), 9.0), torch.full((4,), 8.0), relative=True).item() == 1.0
    assert overfitting_sign(torch.full((4,), 9.0), torch.full((4,), 9.0), relative=True).item() == 0.0


def test_held_out_reals_between_training_reals_and_fakes() -> None:
    train, fake = torch.tensor([1.0, 3.0]), torch.tensor([-4.0])
    assert overfitting_held_out(train, torch.tensor([2.0, 2.0, 2.0]), fake) == pytest.approx(0.0)
    assert overfitting_held_out(train, torch.tensor([-4.0]), fake) == pytest.approx(1.0)
    # (2 - 0.5) / (2 - -4)
    assert overfitting_held_out(train, torch.tensor([0.5]), fake) == pytest.approx(0.25)
    assert overfitting_held_out(train + 10, torch.tensor([10.5]), fake + 10) == pytest.approx(0.25)


def test_a_discriminator_that_tells_nothing_apart_is_not_overfitted() -> None:
    same = torch.zeros(3)
    assert overfitting_held_out(same, same, same) == 0.0


def test_held_out_without_images_is_refused() -> None:
    with pytest.raises(TrainingError, match="held-out"):
        overfitting_held_out(torch.zeros(3), torch.zeros(0), torch.zeros(3))
