"""Image-to-image and second-stage generators: ranges, confinement, conditioning, and that they can learn."""

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synthgen.errors import ConfigError
from synthgen.gan.architectures.shape import GanShape
from synthgen.gan.architectures.super_resolution import SuperResolutionGenerator
from synthgen.gan.architectures.translate import (
    SIZES,
    TranslateGenerator,
    TranslateMode,
    dilate_softly,
    step_within_range,
)
from synthgen.optim import Adam

MODES = get_args(TranslateMode)


def shape_of(side, channels=1):
    return GanShape(side, channels, 3, latents=6, embedding=4, channels=4, max_channels=16, minibatch_std=0.0)


def built(make, *arguments):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make(*arguments)


def inputs(n, side, channels=1, seed=0):
    source = torch.Generator().manual_seed(seed)
    latents = torch.randn(n, 6, generator=source)
    labels = torch.randint(0, 3, (n,), generator=source)
    picture = torch.rand(n, channels, side, side, generator=source) * 2 - 1
    mask = torch.zeros(n, 1, side, side)
    mask[:, :, 5:9, 6:11] = 1.0
    return latents, labels, picture, mask


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("side", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_translate_keeps_size_and_range_and_every_weight_learns(mode, side, channels):
    network = built(TranslateGenerator, shape_of(side, channels), mode)
    latents, labels, picture, mask = inputs(3, side, channels)
    labels = torch.arange(3)
    content = (picture, mask) if mode == "masked" else (picture,)
    out = network(latents, labels, *content)
    assert out.shape == picture.shape and out.dtype == torch.float32
    assert out.min() >= -1 and out.max() <= 1
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert all(p.grad.abs().sum() > 0 for name, p in network.named_parameters() if "weight" in name)


def test_masked_changes_nothing_outside_the_dilated_mask_whatever_the_weights():
    network = built(TranslateGenerator, shape_of(64), "masked")
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(20.0)
    latents, labels, picture, mask = inputs(4, 64)
    mask[1] = 0.0
    out, opened = network.image_and_mask(latents, labels, picture, mask)
    reach = 2 * network.mask_radius
    far = torch.ones(64, 64, dtype=torch.bool)
    far[5 - reach : 9 + reach, 6 - reach : 11 + reach] = False
    assert torch.equal(out[:, 0, far], picture[:, 0, far]) and (opened[:, 0, far] == 0).all()
    assert torch.equal(out[1], picture[1])
    assert (out[0] - picture[0])[:, 5:9, 6:11].abs().mean() > 0.05
    assert out.min() >= -1 and out.max() <= 1


@pytest.mark.parametrize("mode", MODES)
def test_translate_answers_to_label_and_latents(mode):
    network = built(TranslateGenerator, shape_of(32), mode).eval()
    latents, _, picture, mask = inputs(2, 32)
    content = (picture, mask) if mode == "masked" else (picture,)
    with torch.no_grad():
        for module in network.modules():  # fresh conditional norms hardly answer to anything
            if hasattr(module, "scale_and_offset"):
                module.scale_and_offset.weight.normal_(0.0, 1.0, generator=torch.Generator().manual_seed(1))
        first = network(latents, torch.tensor([0, 1]), *content)
        other_label = network(latents, torch.tensor([2, 1]), *content)
        other_latents = network(latents.flip(0), torch.tensor([0, 1]), *content)
    assert (first[0] - other_label[0]).abs().max() > 1e-3 and torch.equal(first[1], other_label[1])
    assert (first - other_latents).abs().max() > 1e-3
    network.class_share = 0.0
    with torch.no_grad():
        assert torch.equal(
            network(latents, torch.tensor([0, 1]), *content), network(latents, torch.tensor([2, 0]), *content)
        )


def test_free_is_a_mixture_of_source_and_new_picture_by_its_mask():
    network = built(TranslateGenerator, shape_of(28, 3), "free")
    latents, labels, picture, _ = inputs(3, 28, 3)
    out, mask = network.image_and_mask(latents, labels, picture)
    assert mask.shape == (3, 1, 28, 28) and mask.min() > 0 and mask.max() < 1
    new = (out - (1 - mask) * picture) / mask
    assert new.abs().max() <= 1 + 1e-4
    with torch.no_grad():
        network.to_image.weight[3:].zero_()
        network.to_image.bias[3:].fill_(-200.0)  # the mask is shut
    assert torch.equal(network(latents, labels, picture), picture)
    assert torch.equal(
        network(latents, labels, picture, torch.ones(3, dtype=torch.bool)), network(latents, labels, picture)
    )


@settings(max_examples=80, deadline=None)
@given(st.floats(-1, 1), st.floats(-50, 50), st.floats(0, 1))
def test_a_step_never_leaves_the_range_and_zero_is_no_step(base, raw, share):
    x, r = torch.tensor([[[[base]]]]), torch.tensor([[[[raw]]]], requires_grad=True)
    step = step_within_range(x, r)
    assert abs(float(x + share * step.detach())) <= 1.0 + 1e-6
    t = float(torch.tanh(r.detach()))
    assert float(step.detach()) == pytest.approx(t * (1 - base) if t > 0 else t * (1 + base), abs=1e-6)
    assert float(step_within_range(x, torch.zeros_like(x))) == 0.0


@pytest.mark.parametrize("black_or_white", [-1.0, 1.0])
def test_a_step_has_a_gradient_at_black_and_at_white(black_or_white):
    raw = torch.full((1, 1, 1, 1), -0.5 * black_or_white, requires_grad=True)
    step_within_range(torch.full_like(raw, black_or_white).detach(), raw).sum().backward()
    assert raw.grad.abs().item() > 0.5


def test_soft_dilation_reaches_twice_the_radius_and_keeps_the_mask():
    mask = torch.zeros(1, 1, 20, 20)
    mask[0, 0, 10, 10] = 1.0
    grown = dilate_softly(mask, 2)
    ys, xs = grown[0, 0].nonzero().T
    assert (int(ys.min()), int(ys.max()), int(xs.min()), int(xs.max())) == (6, 14, 6, 14)
    assert grown[0, 0, 10, 10] == 1.0
    assert torch.allclose(dilate_softly(torch.ones(1, 1, 9, 9), 3), torch.ones(1, 1, 9, 9))


@pytest.mark.parametrize("mode", MODES)
def test_translate_learns_a_local_change(mode):
    """The class's change, dark or bright in the marked square, is learned from pairs in a few steps."""
    network = built(TranslateGenerator, shape_of(28), mode)
    optimizer = Adam(list(network.parameters()), lr=0.01, betas=(0.9, 0.99))
    losses = []
    for step in range(60):
        latents, _, picture, mask = inputs(12, 28, seed=step)
        labels = torch.arange(12) % 2
        wanted = torch.where(mask > 0, (labels.view(-1, 1, 1, 1) * 2.0 - 1.0).expand_as(picture), picture)
        content = (picture, mask) if mode == "masked" else (picture,)
        loss = (network(latents, labels, *content) - wanted).square().mul(mask).sum() / mask.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_unknown_modes_and_sides_are_refused():
    with pytest.raises(ConfigError, match="mode 'both'"):
        TranslateGenerator(shape_of(32), "both")
    with pytest.raises(ConfigError, match="not 16"):
        TranslateGenerator(shape_of(16), "free")


@pytest.mark.parametrize("side, low", [(64, 32), (128, 32), (128, 64), (28, 14), (28, 7)])
@pytest.mark.parametrize("channels", [1, 3])
def test_super_resolution_starts_as_enlargement_and_stays_in_range(side, low, channels):
    network = built(SuperResolutionGenerator, shape_of(side, channels), low)
    latents, labels, _, _ = inputs(3, low, channels)
    small = inputs(3, low, channels, seed=3)[2] if low > 10 else torch.rand(3, channels, low, low) * 2 - 1
    out = network(latents, labels, small)
    plain = torch.nn.functional.interpolate(small, scale_factor=side // low, mode="bilinear", align_corners=False)
    assert out.shape == (3, channels, side, side) and out.min() >= -1 and out.max() <= 1
    assert (out - plain).abs().mean() < 0.2
    with torch.no_grad():
        network.to_image.weight.zero_()
    assert torch.allclose(network(latents, labels, small), plain, atol=1e-6)


@pytest.mark.parametrize("low", [0, 6, 30, 64, 128])
def test_super_resolution_refuses_sides_that_do_not_double(low):
    with pytest.raises(ConfigError, match="by doubling"):
        SuperResolutionGenerator(shape_of(64), low)
