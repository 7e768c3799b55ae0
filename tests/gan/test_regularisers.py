"""Penalties, anchors, clipping and first weights against the papers' formulas and hand-made cases."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from synthgen.gan.regularisers import (
    LecamAnchors,
    clip_gradients,
    consistency,
    gradient_norm,
    gradient_penalty,
    initialise,
    lecam,
    wasserstein_penalty,
)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _smooth_critic(images: Tensor) -> Tensor:
    return torch.tanh(images * torch.linspace(-1, 1, images[0].numel()).view(images.shape[1:])).sum(dim=(1, 2, 3))


def test_penalty_of_a_linear_discriminator_is_the_squared_norm_of_its_weights() -> None:
    weights = torch.randn(3, 5, 5, generator=_generator())
    images = torch.randn(4, 3, 5, 5, generator=_generator(1), requires_grad=True)
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


def test_wasserstein_penalty_of_a_linear_critic_is_its_norm_less_one_squared() -> None:
    weights = torch.randn(1, 4, 4, generator=_generator()).requires_grad_()
    reals, fakes = torch.randn(6, 1, 4, 4), torch.randn(6, 1, 4, 4)
    penalty = wasserstein_penalty(lambda x: (x * weights).sum(dim=(1, 2, 3)), reals, fakes, _generator())
    norm = weights.detach().norm()
    assert penalty.item() == pytest.approx(((norm - 1) ** 2).item(), rel=1e-5)
    penalty.backward()  # type: ignore[no-untyped-call]
    # d (|w| - 1)^2 / dw = 2 (|w| - 1) w / |w|
    assert weights.grad is not None
    assert torch.allclose(weights.grad, 2 * (norm - 1) * weights.detach() / norm, atol=1e-5)


def test_wasserstein_penalty_is_algorithm_1_line_by_line() -> None:
    reals, fakes = torch.randn(5, 2, 3, 3, generator=_generator(1)), torch.randn(5, 2, 3, 3, generator=_generator(2))
    share = torch.rand((5, 1, 1, 1), generator=_generator(3))
    expected = []
    for i in range(5):
        between = (share[i] * reals[i] + (1 - share[i]) * fakes[i]).unsqueeze(0).requires_grad_()
        _smooth_critic(between).backward()  # type: ignore[no-untyped-call]
        assert between.grad is not None
        expected.append((between.grad.square().sum().sqrt().item() - 1) ** 2)
    penalty = wasserstein_penalty(_smooth_critic, reals, fakes, _generator(3))
    assert penalty.item() == pytest.approx(sum(expected) / 5, rel=1e-5)


def test_wasserstein_penalty_at_a_flat_critic_is_one_and_its_gradient_finite() -> None:
    weights = torch.zeros(1, 2, 2, requires_grad=True)
    images = torch.ones(3, 1, 2, 2)
    penalty = wasserstein_penalty(lambda x: (x * weights).sum(dim=(1, 2, 3)), images, images, _generator())
    assert penalty.item() == 1.0
    penalty.backward()  # type: ignore[no-untyped-call]
    assert weights.grad is not None
    assert bool(weights.grad.isfinite().all())


def test_wasserstein_penalty_leaves_no_gradient_on_the_images() -> None:
    fakes = torch.randn(2, 1, 2, 2, requires_grad=True)
    wasserstein_penalty(_smooth_critic, torch.randn(2, 1, 2, 2), fakes, _generator())
    assert fakes.grad is None


def test_lecam_is_equation_3() -> None:
    real, fake = torch.randn(9, generator=_generator()), torch.randn(9, generator=_generator(1))
    anchors = LecamAnchors(torch.tensor(0.7), torch.tensor(-0.4))
    expected = sum((r + 0.4) ** 2 for r in real.tolist()) / 9 + sum((f - 0.7) ** 2 for f in fake.tolist()) / 9
    assert lecam(real, fake, anchors).item() == pytest.approx(expected, rel=1e-5)
    assert lecam(torch.full((3,), -0.4), torch.full((3,), 0.7), anchors).item() == 0.0


def test_lecam_pulls_both_sides_together() -> None:
    real, fake = torch.tensor([2.0], requires_grad=True), torch.tensor([-2.0], requires_grad=True)
    lecam(real, fake, LecamAnchors(torch.tensor(1.0), torch.tensor(-1.0))).backward()  # type: ignore[no-untyped-call]
    assert real.grad is not None
    assert fake.grad is not None
    assert real.grad.item() == pytest.approx(2 * (2 - -1))
    assert fake.grad.item() == pytest.approx(2 * (-2 - 1))


def test_anchors_are_moving_averages_and_move_in_place() -> None:
    anchors = LecamAnchors.at_zero(torch.device("cpu"))
    real_average, fake_average = 0.0, 0.0
    kept = anchors.real
    for step in range(20):
        real = torch.randn(8, generator=_generator(step), requires_grad=True)
        fake = torch.randn(8, generator=_generator(step + 100))
        anchors.update(real, fake, 0.9)
        # eq. 4: alpha = decay * alpha + (1 - decay) * batch mean
        real_average = 0.9 * real_average + 0.1 * real.mean().item()
        fake_average = 0.9 * fake_average + 0.1 * fake.mean().item()
    assert anchors.real.item() == pytest.approx(real_average, abs=1e-6)
    assert anchors.fake.item() == pytest.approx(fake_average, abs=1e-6)
    assert anchors.real is kept
    assert not anchors.real.requires_grad


def test_anchors_may_move_between_the_loss_and_its_backward() -> None:
    anchors = LecamAnchors(torch.tensor(1.0), torch.tensor(-1.0))
    real, fake = torch.tensor([2.0], requires_grad=True), torch.tensor([-2.0], requires_grad=True)
    loss = lecam(real, fake, anchors)
    anchors.update(real, fake, 0.5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert real.grad is not None
    assert real.grad.item() == pytest.approx(6.0)


def test_consistency_is_the_mean_squared_difference() -> None:
    a, b = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 0.0, 1.0])
    assert consistency(a, b).item() == pytest.approx((0 + 4 + 9) / 3)
    assert consistency(a, a).item() == 0.0


def _with_gradients(values: list[list[float]]) -> list[Tensor]:
    parameters = []
    for row in values:
        parameter = torch.zeros(len(row), requires_grad=True)
        parameter.grad = torch.tensor(row)
        parameters.append(parameter)
    return parameters


def test_the_norm_is_that_of_all_gradients_together() -> None:
    parameters = [*_with_gradients([[3.0, 0.0], [4.0]]), torch.ones(5, requires_grad=True)]
    assert gradient_norm(parameters).item() == pytest.approx(5.0)
    assert gradient_norm(iter(parameters)).item() == pytest.approx(5.0)
    assert gradient_norm([torch.ones(2, requires_grad=True)]).item() == 0.0


@pytest.mark.parametrize("max_norm", [0.1, 2.5, 5.0, 80.0])
def test_clipping_is_that_of_torch_and_gives_the_norm_before(max_norm: float) -> None:
    values = [[3.0, 0.0], [4.0]]
    ours, theirs = _with_gradients(values), _with_gradients(values)
    before = clip_gradients(iter(ours), max_norm)
    nn.utils.clip_grad_norm_(theirs, max_norm)
    assert before.item() == pytest.approx(5.0)
    assert gradient_norm(ours).item() == pytest.approx(min(max_norm, 5.0), rel=1e-4)
    for a, b in zip(ours, theirs, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.equal(a.grad, b.grad)


def test_clipping_does_not_hide_divergence() -> None:
    parameters = _with_gradients([[math.nan, 1.0], [2.0]])
    assert math.isnan(clip_gradients(parameters, 1.0).item())
    assert parameters[1].grad is not None
    assert bool(parameters[1].grad.isnan().all())


def _network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(16, 64, 3),
        nn.BatchNorm2d(64),
        nn.ConvTranspose2d(64, 32, 4, bias=False),
        nn.GroupNorm(4, 32),
        nn.BatchNorm2d(32, affine=False),
        nn.Flatten(),
        nn.Linear(256, 128),
        nn.Embedding(40, 60),
    )


def _initialised(kind: str, network: nn.Module) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        initialise(network, kind)  # type: ignore[arg-type]
    return network


def test_default_changes_nothing_and_draws_nothing() -> None:
    network = _network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.get_rng_state()
    initialise(network, "default")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_normal_is_that_of_dcgan() -> None:
    network = _network()
    embedding = network[7].weight.clone()
    _initialised("normal", network)
    for at in (0, 2, 6):
        weight = network[at].weight
        n = weight.numel()
        assert weight.mean().item() == pytest.approx(0.0, abs=5 * 0.02 / math.sqrt(n))
        assert weight.std().item() == pytest.approx(0.02, rel=5 / math.sqrt(2 * n))
    for at in (1, 3):
        assert network[at].weight.mean().item() == pytest.approx(1.0, abs=5 * 0.02 / math.sqrt(32))
        assert 0.01 < network[at].weight.std().item() < 0.03
    assert all(not network[at].bias.any() for at in (0, 1, 3, 6))
    assert torch.equal(network[7].weight, embedding)


def test_orthogonal_gives_orthonormal_rows_or_columns() -> None:
    network = _network()
    scale = network[1].weight.clone()
    _initialised("orthogonal", network)
    for at in (0, 2, 6, 7):
        matrix = network[at].weight.flatten(1)
        gram = matrix @ matrix.t() if matrix.shape[0] <= matrix.shape[1] else matrix.t() @ matrix
        assert torch.allclose(gram, torch.eye(len(gram)), atol=1e-5)
    assert not network[0].bias.any()
    assert not network[6].bias.any()
    assert torch.equal(network[1].weight, scale)


@pytest.mark.parametrize("kind", ["normal", "orthogonal"])
@pytest.mark.parametrize("training", [True, False])
def test_weights_under_spectral_norm_are_reached_and_normed(kind: str, training: bool) -> None:
    network = nn.Sequential(parametrizations.spectral_norm(nn.Conv2d(8, 16, 3)), nn.LeakyReLU())
    network.train(training)
    old = network[0].parametrizations.weight.original.clone()
    _initialised(kind, network)
    new = network[0].parametrizations.weight.original
    assert not torch.equal(new, old)
    assert network[0].training is training
    assert new.requires_grad
    network.eval()
    # 15 power iterations on 16 close singular values come within some percent of 1 from below
    assert 1.0 - 1e-4 <= torch.linalg.matrix_norm(network[0].weight.flatten(1), 2).item() < 1.15


def test_equal_seeds_give_equal_weights() -> None:
    one, two = (_initialised("orthogonal", _network()).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
