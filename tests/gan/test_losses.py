"""The losses against the papers' formulas and hand-made cases."""

import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from synthgen.errors import ConfigError
from synthgen.gan import losses, regularisers
from synthgen.gan.losses import LOSSES, LossName, Targets, auxiliary_loss, d_loss, g_loss, soft_targets

NAMES = get_args(LossName)


def _logits(seed: int = 0, n: int = 50) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, generator=generator), torch.randn(n, generator=generator)


def _log_sigmoid(x: Tensor) -> Tensor:
    return torch.log(1.0 / (1.0 + torch.exp(-x)))


def test_every_name_has_a_game_and_no_other() -> None:
    assert set(LOSSES) == set(NAMES)
    assert [name for name in NAMES if LOSSES[name].uses_reals_for_generator] == ["relativistic"]


def test_equal_logits_cost_ln_2_on_both_sides() -> None:
    logits = torch.tensor([0.3, -2.0, 5.0])
    assert d_loss(logits, logits).item() == pytest.approx(math.log(2))
    assert g_loss(logits, logits).item() == pytest.approx(math.log(2))


def test_relativistic_is_the_pairing_formula() -> None:
    real, fake = _logits()
    # Jolicoeur-Martineau 2019, eq. 7: -E log sigmoid(C(x_r) - C(x_f)), and with the roles exchanged for G
    assert d_loss(real, fake).item() == pytest.approx(-torch.sigmoid(real - fake).log().mean().item(), rel=1e-6)
    assert g_loss(real, fake).item() == pytest.approx(-torch.sigmoid(fake - real).log().mean().item(), rel=1e-6)
    game = LOSSES["relativistic"]
    assert torch.equal(game.discriminator(real, fake), d_loss(real, fake))
    assert torch.equal(game.generator(real, fake), g_loss(real, fake))


def test_losses_stay_finite_where_the_sigmoid_underflows() -> None:
    low, high = torch.tensor([-1e4]), torch.tensor([1e4])
    assert d_loss(low, high).item() == pytest.approx(2e4)
    for game in LOSSES.values():
        assert math.isfinite(game.discriminator(low, high).item())
        assert math.isfinite(game.generator(high, low).item())
    assert LOSSES["non_saturating"].discriminator(low, high).item() == pytest.approx(2e4)


def test_non_saturating_is_cross_entropy_without_targets() -> None:
    real, fake = _logits()
    game = LOSSES["non_saturating"]
    # Goodfellow et al. 2014, eq. 1 for D; -E log D(G(z)) for G, section 3
    expected = -(_log_sigmoid(real).mean() + torch.log(1 - torch.sigmoid(fake)).mean())
    assert game.discriminator(real, fake, None).item() == pytest.approx(expected.item(), rel=1e-5)
    assert game.generator(real, fake).item() == pytest.approx(-_log_sigmoid(fake).mean().item(), rel=1e-5)
    hard = Targets(torch.ones(50), torch.zeros(50))
    assert game.discriminator(real, fake, hard).item() == pytest.approx(expected.item(), rel=1e-5)
    zero = torch.zeros(3)
    assert game.discriminator(zero, zero, None).item() == pytest.approx(2 * math.log(2))


def test_non_saturating_follows_its_targets() -> None:
    real, fake = _logits()
    targets = soft_targets(50, 0.1, 0.3, torch.Generator().manual_seed(1))
    expected = torch.zeros(())
    for logits, target in ((real, targets.real), (fake, targets.fake)):
        p = torch.sigmoid(logits)
        expected = expected - (target * p.log() + (1 - target) * (1 - p).log()).mean()
    assert LOSSES["non_saturating"].discriminator(real, fake, targets).item() == pytest.approx(expected.item(), 1e-5)


def test_smoothed_cross_entropy_is_least_where_d_answers_the_target() -> None:
    at = torch.tensor([math.log(0.9 / 0.1)], requires_grad=True)
    targets = soft_targets(1, 0.1, 0.0, torch.Generator())
    LOSSES["non_saturating"].discriminator(at, torch.tensor([0.0]), targets).backward()  # type: ignore[no-untyped-call]
    assert at.grad is not None
    assert at.grad.item() == pytest.approx(0.0, abs=1e-6)


def test_hinge_is_the_formula() -> None:
    real, fake = _logits()
    game = LOSSES["hinge"]
    # Miyato et al. 2018, eq. 16 and 17: V_D = E[min(0, -1 + D(x))] + E[min(0, -1 - D(G(z)))], maximised
    value = torch.clamp(-1 + real, max=0).mean() + torch.clamp(-1 - fake, max=0).mean()
    assert game.discriminator(real, fake, None).item() == pytest.approx(-value.item(), rel=1e-6)
    assert game.generator(real, fake).item() == pytest.approx(-fake.mean().item(), rel=1e-6)
    assert game.discriminator(torch.full((4,), 1.5), torch.full((4,), -1.5), None).item() == 0.0


def test_wasserstein_is_the_formula() -> None:
    real, fake = _logits()
    game = LOSSES["wasserstein"]
    assert game.discriminator(real, fake, None).item() == pytest.approx((fake.mean() - real.mean()).item(), abs=1e-6)
    assert game.generator(real, fake).item() == pytest.approx(-fake.mean().item(), rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_every_game_pulls_the_two_sides_apart(name: LossName) -> None:
    real, fake = torch.zeros(4, requires_grad=True), torch.zeros(4, requires_grad=True)
    d_real, d_fake = torch.autograd.grad(LOSSES[name].discriminator(real, fake), [real, fake])
    (g_fake,) = torch.autograd.grad(LOSSES[name].generator(real, fake), [fake])
    assert bool((d_real < 0).all())
    assert bool((d_fake > 0).all())
    assert bool((g_fake < 0).all())


@pytest.mark.parametrize("name", ["relativistic", "hinge", "wasserstein"])
def test_other_games_ignore_targets(name: LossName) -> None:
    real, fake = _logits()
    targets = Targets(torch.full((50,), 0.3), torch.full((50,), 0.7))
    assert torch.equal(
        LOSSES[name].discriminator(real, fake, targets),
        LOSSES[name].discriminator(real, fake, None),
    )


@pytest.mark.parametrize("name", ["non_saturating", "hinge", "wasserstein"])
def test_a_generator_that_does_not_use_reals_does_not_change_with_them(name: LossName) -> None:
    real, fake = _logits()
    assert torch.equal(LOSSES[name].generator(real, fake), LOSSES[name].generator(real * 3, fake))


def test_smoothing_is_one_sided_and_draws_nothing_without_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    targets = soft_targets(5, 0.25, 0.0, generator)
    assert targets.real.tolist() == [0.75] * 5
    assert targets.fake.tolist() == [0.0] * 5
    assert torch.equal(generator.get_state(), before)


def test_noise_swaps_the_share_it_says() -> None:
    targets = soft_targets(20_000, 0.1, 0.2, torch.Generator().manual_seed(0))
    for side in (targets.real, targets.fake):
        assert side.unique().tolist() == pytest.approx([0.0, 0.9])
    # 5 standard deviations of a share of 20,000: 5 * sqrt(0.2 * 0.8 / 20000) = 0.014
    assert (targets.real == 0.0).float().mean().item() == pytest.approx(0.2, abs=0.015)
    assert (targets.fake != 0.0).float().mean().item() == pytest.approx(0.2, abs=0.015)
    swapped = (targets.real == 0.0) & (targets.fake != 0.0)
    assert swapped.float().mean().item() == pytest.approx(0.04, abs=0.008)  # independent: 0.2 * 0.2


@given(smoothing=st.floats(), noise=st.floats())
def test_soft_targets_are_probabilities_or_refused(smoothing: float, noise: float) -> None:
    if 0.0 <= smoothing < 1.0 and 0.0 <= noise <= 0.5:
        targets = soft_targets(8, smoothing, noise, torch.Generator().manual_seed(0))
        assert bool(((torch.stack([targets.real, targets.fake]) >= 0) & (targets.real <= 1)).all())
    else:
        with pytest.raises(ConfigError, match="outside"):
            soft_targets(8, smoothing, noise, torch.Generator())


def test_auxiliary_loss_is_minus_the_log_likelihood_of_the_class() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(20, 4, generator=generator), torch.randint(0, 4, (20,), generator=generator)
    shares = logits.exp() / logits.exp().sum(1, keepdim=True)
    expected = -torch.stack([shares[i, label].log() for i, label in enumerate(labels.tolist())]).mean()
    assert auxiliary_loss(logits, labels).item() == pytest.approx(expected.item(), rel=1e-5)
    assert auxiliary_loss(torch.zeros(3, 7), torch.tensor([0, 3, 6])).item() == pytest.approx(math.log(7))


def test_the_penalty_is_still_found_here() -> None:
    assert losses.gradient_penalty is regularisers.gradient_penalty
