"""Every architecture at every side, and what each promises, against the papers' formulas written plainly."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from synthgen.config import GeneratorSection
from synthgen.errors import ConfigError
from synthgen.gan.architectures.build import build_discriminator, build_generator
from synthgen.gan.architectures.interface import Discriminator, Generator
from synthgen.gan.architectures.layers import Dropout, within_class_std
from synthgen.gan.architectures.pyramid import PyramidGenerator, shown_levels
from synthgen.gan.architectures.shape import SIZES, GanShape
from synthgen.gan.architectures.style import ModulatedConv, StyledLayer, StyleGenerator
from synthgen.gan.regularisers import gradient_penalty

KINDS = ("resnet", "dcgan", "style")
CONDITIONINGS = ("projection", "concatenation", "none")


def _shape(side: int = 32, colours: int = 1, n_classes: int = 3, **keywords: object) -> GanShape:
    small = {"latents": 8, "embedding": 4, "channels": 4, "max_channels": 16, **keywords}
    return GanShape.of(GeneratorSection(**small), side, colours, n_classes)  # type: ignore[arg-type]


def _networks(shape: GanShape, seed: int = 0) -> tuple[Generator, Discriminator]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_generator(shape), build_discriminator(shape)


def _draw(*size: int, seed: int = 1) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def _goes_through(shape: GanShape) -> None:
    generator, discriminator = _networks(shape)
    labels = torch.tensor([0, 0, 1, 2])
    for growth in np.arange(shape.first_level, shape.n_halvings + 0.1, 0.5):
        generator.growth = discriminator.growth = float(growth)
        images = generator(_draw(4, shape.latents), labels)
        assert images.shape == (4, shape.image_channels, shape.image_size, shape.image_size)
        assert images.dtype == torch.float32
        assert images.abs().max() <= 1.0
        assert images.std() > 0.0
        logits = discriminator(images, labels)
        assert logits.shape == (4,)
        assert torch.isfinite(logits).all()
        features = discriminator.features(images, labels)
        assert features.shape == (4, Discriminator.N_FEATURES)


@pytest.mark.parametrize(("kind", "side", "colours"), [*itertools.product(KINDS, SIZES, (1, 3))])
def test_every_size_and_channel_count_goes_through_both_networks(kind: str, side: int, colours: int) -> None:
    _goes_through(_shape(side, colours, architecture=kind))


@pytest.mark.parametrize(("kind", "side"), [*itertools.product(KINDS, (8, 28, 32, 64, 128))])
def test_every_level_of_growth_goes_through_both_networks(kind: str, side: int) -> None:
    shape = _shape(side, architecture=kind, progressive=True)
    assert shape.first_level == {8: 1, 28: 0, 32: 1, 64: 1, 128: 1}[side]
    _goes_through(shape)


@pytest.mark.parametrize(
    ("kind", "conditioning", "auxiliary", "progressive"),
    [*itertools.product(KINDS, CONDITIONINGS, (False, True), (False, True))],
)
def test_every_conditioning_goes_through(kind: str, conditioning: str, auxiliary: bool, progressive: bool) -> None:
    shape = _shape(28, 3, architecture=kind, conditioning=conditioning, auxiliary=auxiliary, progressive=progressive)
    _goes_through(shape)
    _, discriminator = _networks(shape)
    assert hasattr(discriminator, "classify") == auxiliary
    if auxiliary:
        features = discriminator.features(_draw(4, 3, 28, 28), torch.tensor([0, 1, 2, 0]))
        assert discriminator.classify(features).shape == (4, 3)


@pytest.mark.parametrize("norm", ["none", "batch", "spectral"])
@pytest.mark.parametrize("kind", ["resnet", "dcgan"])
def test_every_norm_of_the_discriminator_with_dropout_and_both_outputs(kind: str, norm: str) -> None:
    for output, activation in (("tanh", "selu"), ("sigmoid", "relu")):
        _goes_through(_shape(32, architecture=kind, d_norm=norm, dropout=0.3, output=output, activation=activation))


@pytest.mark.parametrize(("side", "colours"), [(27, 1), (256, 3), (32, 2), (32, 4), (0, 1)])
def test_sides_and_channels_that_cannot_be_built_are_refused(side: int, colours: int) -> None:
    with pytest.raises(ConfigError, match=r"prepare\.image_size"):
        _shape(side, colours)


def test_channels_of_the_published_recipe_at_28_px() -> None:
    # EXPERIMENTS.md, recipe rp: G 64 at 7 px, 32, 16; D 16, 32, 64
    shape = GanShape.of(GeneratorSection(), 28, 1, 10)
    assert (shape.seed_size, shape.n_halvings) == (7, 2)
    assert [shape.channels_at(k) for k in (2, 1, 0)] == [64, 32, 16]


# What the label may and may not reach


def _taps(generator: PyramidGenerator, latents: Tensor, labels: Tensor) -> list[tuple[int, Tensor]]:
    """(side, output) of every convolution and every norm, in order."""
    found: list[tuple[int, Tensor]] = []
    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d)
    hooks = [
        module.register_forward_hook(lambda _m, _i, out: found.append((out.shape[2], out)))
        for module in generator.modules()
        if isinstance(module, kinds)
    ]
    found.append((generator.shape.seed_size, generator.seed(generator.conditions(latents, labels)[0])))
    generator(latents, labels)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("side", [8, 28, 32, 128])
def test_no_label_below_8_px_in_resnet(side: int) -> None:
    generator, _ = _networks(_shape(side, architecture="resnet"))
    assert isinstance(generator, PyramidGenerator)
    with torch.no_grad():
        for parameter in generator.parameters():  # so that no condition is too small to be seen
            parameter.add_(0.1 * _draw(*parameter.shape))
    latents = _draw(5, 8)
    maps = [_taps(generator, latents, torch.full((5,), label)) for label in (0, 2)]
    below = [torch.equal(a, b) for (s, a), (_, b) in zip(*maps, strict=True) if s < 8]
    above = [torch.equal(a, b) for (s, a), (_, b) in zip(*maps, strict=True) if s >= 8]
    assert len(below) > 0
    assert all(below)
    assert not above[-1]  # the image does depend on it
    gradients = [
        torch.autograd.grad(out.sum(), generator.embed.weight, allow_unused=True, retain_graph=True)[0]
        for s, out in maps[0]
        if s < 8 and out.requires_grad
    ]
    assert all(gradient is None or not gradient.any() for gradient in gradients)


@pytest.mark.parametrize(("kind", "conditioning"), [*itertools.product(KINDS, CONDITIONINGS)])
def test_without_class_share_no_network_knows_the_label(kind: str, conditioning: str) -> None:
    # without the within-class spread: which images form a class is not the label, but it does depend on it
    shape = _shape(32, architecture=kind, conditioning=conditioning, minibatch_std=0.0)
    generator, discriminator = _networks(shape)
    with torch.no_grad():
        for parameter in (*generator.parameters(), *discriminator.parameters()):
            parameter.add_(0.1 * _draw(*parameter.shape))
    latents, images = _draw(4, 8), _draw(4, 1, 32, 32)
    some, others = torch.tensor([0, 1, 2, 0]), torch.tensor([2, 2, 1, 1])
    generator.eval()
    discriminator.eval()
    for share in (1.0, 0.0):
        generator.class_share = discriminator.class_share = share
        blind = share == 0.0 or conditioning == "none"
        assert torch.equal(generator(latents, some), generator(latents, others)) == blind
        assert torch.equal(discriminator(images, some), discriminator(images, others)) == blind


# Growth


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_grown_network_is_the_one_that_never_grew(kind: str) -> None:
    grown, grown_d = _networks(_shape(32, architecture=kind, progressive=True))
    plain, plain_d = _networks(_shape(32, architecture=kind, d_norm="none"))
    grown_d = build_discriminator(dataclasses.replace(grown_d.shape, d_norm="none"))
    own = plain.state_dict()
    last = len(grown.outputs) - 1  # type: ignore[arg-type]
    theirs = {
        name.replace(f"outputs.{last}.", "outputs.0.").replace(f"last_norms.{last}.", "last_norms.0."): tensor
        for name, tensor in grown.state_dict().items()
        if not name.startswith(("outputs.", "last_norms.")) or name.split(".")[1] == str(last)
    }
    assert own.keys() == theirs.keys()
    plain.load_state_dict(theirs)
    latents, labels = _draw(4, 8), torch.tensor([0, 1, 2, 0])
    torch.testing.assert_close(grown.eval()(latents, labels), plain.eval()(latents, labels))
    if kind == "dcgan":
        return  # its discriminator reads pixels through a layer more where it grows
    plain_d.load_state_dict({k: v for k, v in grown_d.state_dict().items() if k in plain_d.state_dict()})
    images = _draw(4, 1, 32, 32)
    torch.testing.assert_close(grown_d(images, labels), plain_d(images, labels))


@pytest.mark.parametrize("kind", KINDS)
def test_a_half_faded_generator_shows_the_mean_of_both_sides(kind: str) -> None:
    generator, _ = _networks(_shape(32, architecture=kind, progressive=True))
    generator.eval()
    latents, labels = _draw(4, 8), torch.tensor([0, 1, 2, 0])

    def raw(growth: float) -> Tensor:
        generator.growth = growth
        return torch.atanh(generator(latents, labels).double())

    torch.testing.assert_close(raw(2.5), (raw(2.0) + raw(3.0)) / 2, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(raw(1.25), 0.75 * raw(1.0) + 0.25 * raw(2.0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("level", "block"), [(1, 4), (2, 2)])
def test_a_growing_generator_shows_enlarged_pixels_and_its_judge_averages_them(
    kind: str, level: int, block: int
) -> None:
    generator, discriminator = _networks(_shape(32, 3, architecture=kind, progressive=True, d_norm="none"))
    generator.growth = discriminator.growth = float(level)
    labels = torch.tensor([0, 1])
    images = generator.eval()(_draw(2, 8), labels)
    small = images[:, :, ::block, ::block]
    assert torch.equal(small.repeat_interleave(block, 2).repeat_interleave(block, 3), images)
    # D sees the mean of each block of pixels and nothing finer
    noise = _draw(2, 3, 32, 32)
    noise -= functional.avg_pool2d(noise, block).repeat_interleave(block, 2).repeat_interleave(block, 3)
    torch.testing.assert_close(
        discriminator(images + noise, labels), discriminator(images, labels), atol=1e-4, rtol=1e-4
    )


def test_the_half_faded_judge_mixes_the_two_entries() -> None:
    shape = _shape(16, progressive=True, d_norm="none", minibatch_std=0.0)
    _, judge = _networks(shape)
    images, members = _draw(3, 1, 16, 16), torch.tensor([0, 1, 2])
    new, old = judge.inputs  # type: ignore[misc]
    judge.growth = 1.5
    entered = 0.5 * judge.blocks[0](new(images)) + 0.5 * old(functional.avg_pool2d(images, 2))  # type: ignore[index]
    expected = judge.head(judge.spread(judge.blocks[1](entered), members, 3))  # type: ignore[index, operator]
    torch.testing.assert_close(judge.trunk(images, members, 3), expected)


def test_shown_levels_stay_inside_the_network() -> None:
    shape = _shape(64, progressive=True)
    assert shown_levels(-3.0, shape) == (1, 1.0)
    assert shown_levels(1.0, shape) == (1, 1.0)
    assert shown_levels(1.25, shape) == (2, 0.25)
    assert shown_levels(99.0, shape) == (4, 1.0)


# Style


@pytest.mark.parametrize(("kernel", "demodulate"), [(3, True), (3, False), (1, False)])
def test_modulated_convolution_is_one_convolution_per_image(kernel: int, demodulate: bool) -> None:
    # Karras et al. 2020, eq. 1 and 3: w' = s_i w, w'' = w' / sqrt(sum w'^2 + eps), one kernel for each image
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = ModulatedConv(5, 6, kernel, 7, demodulate=demodulate)
    nn.init.normal_(layer.bias, generator=torch.Generator().manual_seed(2))
    x, w = _draw(4, 5, 9, 9), _draw(4, 7, seed=3)
    style = layer.style(w)
    weight = layer.weight[None] * style[:, None, :, None, None]  # (N, c_out, c_in, k, k)
    if demodulate:
        weight = weight / (weight.square().sum((2, 3, 4), keepdim=True) + 1e-8).sqrt()
    grouped = functional.conv2d(x.reshape(1, 20, 9, 9), weight.flatten(0, 1), padding=kernel // 2, groups=4)
    expected = grouped.reshape(4, 6, 9, 9) + layer.bias[:, None, None]
    torch.testing.assert_close(layer(x, w), expected, rtol=1e-4, atol=1e-5)


def _style(seed: int = 0) -> StyleGenerator:
    generator, _ = _networks(_shape(16, architecture="style"), seed)
    assert isinstance(generator, StyleGenerator)
    with torch.no_grad():
        for module in generator.modules():
            if isinstance(module, StyledLayer):
                module.noise_strength.fill_(0.5)
    return generator


def test_noise_is_fixed_where_it_samples_and_drawn_where_it_trains() -> None:
    generator = _style()
    latents, labels = _draw(4, 8), torch.tensor([0, 1, 2, 0])
    generator.random = torch.Generator().manual_seed(1)
    trained = [generator.train()(latents, labels) for _ in range(2)]
    assert not torch.allclose(*trained)
    sampled = [generator.eval()(latents, labels) for _ in range(2)]
    assert torch.equal(*sampled)
    state = generator.random.get_state()
    generator(latents, labels)
    assert torch.equal(state, generator.random.get_state())
    alone = torch.cat([generator(latents[k : k + 1], labels[k : k + 1]) for k in range(4)])
    torch.testing.assert_close(alone, sampled[0], rtol=1e-4, atol=1e-5)  # no image depends on its neighbours


def test_truncation_leads_to_the_mean_of_the_class() -> None:
    generator = _style()
    for _ in range(3):
        generator.train()(_draw(16, 8), torch.arange(16) % 3)
    generator.eval()
    latents, labels = _draw(6, 8, seed=4), torch.tensor([0, 0, 1, 1, 2, 2])
    generator.truncation = 1e-9
    images = generator(latents, labels)
    torch.testing.assert_close(images[::2], images[1::2])
    assert not torch.allclose(images[0], images[2])
    torch.testing.assert_close(generator.conditions(latents, labels)[0], generator.w_average[labels])
    generator.truncation = 0.5
    w = generator.styles(latents, labels)
    torch.testing.assert_close(generator.conditions(latents, labels)[-1], (w + generator.w_average[labels]) / 2)


def test_the_class_mean_of_styles_follows_the_classes_that_occur() -> None:
    generator = _style()
    latents = _draw(6, 8)
    labels = torch.tensor([0, 0, 0, 2, 2, 2])
    w = generator.styles(latents, labels)
    generator.train()(latents, labels)
    expected = torch.stack([0.005 * w[:3].mean(0), torch.zeros(8), 0.005 * w[3:].mean(0)])
    torch.testing.assert_close(generator.w_average, expected)


def test_styles_are_mixed_at_one_level_and_all_levels_share_a_label() -> None:
    generator = _style().train()
    generator.random = torch.Generator().manual_seed(0)
    latents, labels = _draw(4, 8), torch.tensor([0, 1, 2, 0])
    w = generator.styles(latents, labels)
    mixed = 0
    for _ in range(60):
        levels = generator.conditions(latents, labels)
        own = [torch.equal(level, w) for level in levels]
        assert own[0]  # the coarsest style is never given away
        assert own == sorted(own, reverse=True)  # one crossing
        mixed += not all(own)
    assert 45 <= mixed < 60  # nine times of ten


@pytest.mark.parametrize("kind", ["resnet", "dcgan"])
def test_truncation_scales_the_latents_of_the_others(kind: str) -> None:
    generator, _ = _networks(_shape(16, architecture=kind))
    latents, labels = _draw(4, 8), torch.tensor([0, 1, 2, 0])
    expected = generator.eval()(latents * 0.5, labels)
    generator.truncation = 0.5
    torch.testing.assert_close(generator(latents, labels), expected)


# The discriminator


@pytest.mark.parametrize("kind", ["resnet", "dcgan"])
@pytest.mark.parametrize("progressive", [False, True])
def test_spectral_norm_holds_every_weight_of_the_trunk_at_one(kind: str, progressive: bool) -> None:
    shape = _shape(28, 3, architecture=kind, d_norm="spectral", progressive=progressive)
    _, discriminator = _networks(shape)
    with torch.no_grad():
        for _ in range(100):
            discriminator(_draw(4, 3, 28, 28), torch.tensor([0, 1, 2, 0]))
    discriminator.eval()
    heads = {"unconditional", "project"}
    weights = {
        name: module.weight
        for name, module in discriminator.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and name not in heads
    }
    assert len(weights) >= 4
    for name, weight in weights.items():
        matrix = weight.detach().numpy().reshape(len(weight), -1)
        largest = np.linalg.svd(matrix, compute_uv=False)[0]
        used = name.startswith(("blocks", "last", "whole")) or name.startswith("inputs.0")
        assert largest == pytest.approx(1.0, abs=0.02 if used else 0.2), name


def test_within_class_std_is_numpys_per_label() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(9, 4, 3, 3)).astype(np.float32)
    labels = np.array([0, 0, 0, 2, 2, 2, 2, 1, 0])
    found = within_class_std(torch.from_numpy(x), torch.from_numpy(labels), 3).numpy()
    assert found.shape == (9, 1, 3, 3)
    for label in (0, 2):
        expected = x[labels == label].reshape((labels == label).sum(), -1).std(axis=0).mean()
        np.testing.assert_allclose(found[labels == label], expected, rtol=1e-4)
    assert found[labels == 1].max() < 1e-3  # one image has no spread


def test_collapse_within_a_class_is_visible_to_the_discriminator() -> None:
    same = torch.ones(6, 4, 3, 3)
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    mixed = same.clone()
    mixed[3:] = -1.0  # classes differ, but inside each class all images are equal
    assert within_class_std(mixed, labels, 2).max() < 1e-3


def test_std_gradient_is_finite_for_a_class_that_occurs_once() -> None:
    x = torch.randn(3, 2, 2, 2, requires_grad=True)
    within_class_std(x, torch.tensor([0, 1, 1]), 2).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize(
    "keywords",
    [
        {"architecture": "resnet"},
        {"architecture": "resnet", "conditioning": "concatenation"},
        {"architecture": "resnet", "d_norm": "batch"},
        {"architecture": "dcgan"},
        {"architecture": "dcgan", "progressive": True},
        {"architecture": "dcgan", "d_norm": "none"},
    ],
)
def test_reals_and_fakes_in_one_batch_get_the_logits_and_penalties_of_two(keywords: dict[str, object]) -> None:
    # with batch norm that is only so if each kind is normalised by its own statistics
    shape = _shape(16, **keywords)
    _, network = _networks(shape)
    if shape.d_norm == "spectral":
        network.eval()  # training moves the singular vectors at every use
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    reals, fakes = _draw(6, 1, 16, 16).requires_grad_(), (3.0 + 2.0 * _draw(6, 1, 16, 16, seed=2)).requires_grad_()
    apart = [network(reals, labels), network(fakes, labels)]
    penalties = torch.cat([gradient_penalty(logits, x) for logits, x in zip(apart, (reals, fakes), strict=True)])
    both = torch.cat([reals, fakes]).detach().requires_grad_()
    together = network(both, labels.repeat(2), torch.arange(12) >= 6)
    torch.testing.assert_close(together, torch.cat(apart), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient_penalty(together, both), penalties, rtol=1e-3, atol=1e-6)


def test_projection_adds_the_product_of_features_and_embedding() -> None:
    # Miyato and Koyama 2018, eq. 3: f(x, y) = y' V phi(x) + psi(phi(x))
    _, network = _networks(_shape(16, minibatch_std=0.0))
    assert isinstance(network.project, nn.Embedding)
    labels = torch.tensor([0, 1, 2, 2])
    phi = network.eval().features(_draw(4, 1, 16, 16), labels)
    v, psi = network.project.weight.detach().numpy(), network.unconditional(phi).detach().numpy()[:, 0]
    for share in (1.0, 0.3):
        network.class_share = share
        expected = psi + share * (v[labels.numpy()] * phi.detach().numpy()).sum(1)
        np.testing.assert_allclose(network.score(phi, labels).detach().numpy(), expected, rtol=1e-4, atol=1e-6)


def test_dropout_keeps_the_mean_and_draws_from_the_generator_it_was_given() -> None:
    layer = Dropout(0.3)
    x = torch.ones(200, 200)
    layer.random = torch.Generator().manual_seed(1)
    found = layer.train()(x)
    assert sorted(found.unique().tolist()) == pytest.approx([0.0, 1 / 0.7])
    assert found.mean() == pytest.approx(1.0, abs=0.02)
    layer.random.manual_seed(1)
    assert torch.equal(layer(x), found)
    assert torch.equal(layer.eval()(x), x)
