"""The losses against the papers' formulas and hand-made cases."""

import math

import pytest
import torch

from synthgen.gan.losses import d_loss, g_loss, gradient_penalty


def test_equal_logits_cost_ln_2_on_both_sides() -> None:
    logits = torch.tensor([0.3, -2.0, 5.0])
    assert d_loss(logits, logits).item() == pytest.approx(math.log(2))
    assert g_loss(logits, logits).item() == pytest.approx(math.log(2))


def test_losses_are_the_relativistic_pairing_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.randn(50, generator=generator), torch.randn(50, generator=generator)
    # Jolicoeur-Martineau 2019, eq. 7: -E log sigmoid(C(x_r) - C(x_f)), and with the roles exchanged for G
    assert d_loss(real, fake).item() == pytest.approx(-torch.sigmoid(real - fake).log().mean().item(), rel=1e-6)
    assert g_loss(real, fake).item() == pytest.approx(-torch.sigmoid(fake - real).log().mean().item(), rel=1e-6)


def test_losses_stay_finite_where_the_sigmoid_underflows() -> None:
    assert d_loss(torch.tensor([-1e4]), torch.tensor([1e4])).item() == pytest.approx(2e4)


def test_penalty_of_a_linear_discriminator_is_the_squared_norm_of_its_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(3, 5, 5, generator=generator)
    images = torch.randn(4, 3, 5, 5, generator=generator, requires_grad=True)
    penalty = gradient_penalty((images * weights).sum(dim=(1, 2, 3)), images)
    assert torch.allclose(penalty, torch.full((4,), weights.square().sum().item()))


def test_penalty_of_a_quadratic_discriminator_and_its_own_gradient() -> None:
    images = torch.tensor([[[[1.0, 2.0]]]], requires_grad=True)
    scale = torch.tensor(3.0, requires_grad=True)
    penalty = gradient_penalty(scale * images.square().sum(dim=(1, 2, 3)), images)
    # |2 s x|^2 = 4 s^2 |x|^2 = 4 * 9 * 5, and its derivative by s is 8 s |x|^2 = 120
    assert penalty.item() == pytest.approx(180.0)
    penalty.sum().backward()
    assert scale.grad is not None
    assert scale.grad.item() == pytest.approx(120.0)
