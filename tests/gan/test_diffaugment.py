"""DiffAugment against its definition: shifts are shifts, holes are holes, gradients pass."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from synthgen.config import TransformsSection
from synthgen.errors import ConfigError
from synthgen.gan.diffaugment import color, cutout, diffaugment, jitter_reals, translation


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_translation_is_an_integer_shift_with_zeros_outside() -> None:
    x = torch.randn(64, 2, 8, 8, generator=_generator())
    moved = translation(x, 0.25, _generator(1))
    seen = set()
    for before, after in zip(x, moved, strict=True):
        padded = torch.nn.functional.pad(before, (2, 2, 2, 2))
        matches = [
            (dy, dx) for dy in range(5) for dx in range(5) if torch.equal(padded[:, dy : dy + 8, dx : dx + 8], after)
        ]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) > 15  # of 25 possible shifts


def test_cutout_removes_one_square_and_nothing_else() -> None:
    x = torch.ones(50, 1, 10, 10)
    cut = cutout(x, 0.4, _generator(2))
    holes = (cut == 0).sum(dim=(1, 2, 3))
    assert set(torch.unique(cut).tolist()) == {0.0, 1.0}
    assert holes.max() == 16
    assert holes.min() >= 4  # a corner of the square at least
    for hole in (cut == 0).squeeze(1):
        rows, columns = np.nonzero(hole.numpy())
        assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)


def test_nothing_changes_at_strength_zero() -> None:
    x = torch.randn(4, 1, 8, 8)
    assert torch.equal(diffaugment(x, _generator(), translate=0.0, cut=0.0), x)
    assert torch.equal(jitter_reals(x, TransformsSection(), 0.0, _generator()), x)


def test_gradients_pass_where_pixels_stay() -> None:
    x = torch.randn(4, 3, 8, 8, requires_grad=True)
    diffaugment(x, _generator(), with_color=True).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_color_keeps_grey_images_grey() -> None:
    grey = torch.randn(5, 1, 6, 6, generator=_generator()).expand(-1, 3, -1, -1)
    out = color(grey, _generator(3))
    assert torch.allclose(out[:, 0], out[:, 1], atol=1e-6)


def test_jitter_stays_in_range_differs_per_image_and_repeats_with_its_seed() -> None:
    x = torch.rand(16, 1, 16, 16, generator=_generator()) * 2 - 1
    one = jitter_reals(x[:1].expand(16, -1, -1, -1), TransformsSection(), 1.0, _generator(4))
    assert one.abs().max() <= 1.0
    assert len({image.numpy().tobytes() for image in one}) == 16
    again = jitter_reals(x[:1].expand(16, -1, -1, -1), TransformsSection(), 1.0, _generator(4))
    assert torch.equal(one, again)


def test_flip_mirrors_about_half_of_the_images() -> None:
    x = torch.rand(200, 1, 8, 8, generator=_generator()) * 2 - 1
    out = jitter_reals(x, TransformsSection(), 0.0, _generator(5), flip=True)
    mirrored = [torch.allclose(b, a.flip(-1), atol=1e-5) for a, b in zip(x, out, strict=True)]
    kept = [torch.allclose(b, a, atol=1e-5) for a, b in zip(x, out, strict=True)]
    assert all(m or k for m, k in zip(mirrored, kept, strict=True))
    assert 70 <= sum(mirrored) <= 130


SHAPES = [(12, 1, 32, 32), (6, 3, 64, 64), (5, 3, 28, 20), (1, 2, 8, 8)]


def _translation_by_definition(x: Tensor, ratio: float, generator: torch.Generator) -> Tensor:
    """The reference implementation's advanced indexing, with the draws of ours."""
    n, _, height, width = x.shape
    reach_y, reach_x = round(height * ratio), round(width * ratio)
    shift_y = torch.randint(-reach_y, reach_y + 1, (n, 1, 1), generator=generator)
    shift_x = torch.randint(-reach_x, reach_x + 1, (n, 1, 1), generator=generator)
    padded = functional.pad(x, (1, 1, 1, 1))
    rows = (torch.arange(height).view(1, height, 1) + shift_y + 1).clamp(0, height + 1)
    columns = (torch.arange(width).view(1, 1, width) + shift_x + 1).clamp(0, width + 1)
    return padded.permute(0, 2, 3, 1)[torch.arange(n).view(n, 1, 1), rows, columns].permute(0, 3, 1, 2)


def _color_by_definition(x: Tensor, generator: torch.Generator) -> Tensor:
    n = len(x)
    brightness, saturation, contrast = (torch.rand((n, 1, 1, 1), generator=generator) for _ in range(3))
    x = x + (brightness - 0.5)
    x = (x - x.mean(1, keepdim=True)) * (saturation * 2) + x.mean(1, keepdim=True)
    return (x - x.mean((1, 2, 3), keepdim=True)) * (contrast + 0.5) + x.mean((1, 2, 3), keepdim=True)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("ratio", [0.125, 0.5])
def test_translation_and_its_gradient_are_those_of_indexing(
    shape: tuple[int, int, int, int], memory_format: torch.memory_format, ratio: float
) -> None:
    for seed in range(3):
        values = torch.randn(shape, generator=_generator(seed)).contiguous(memory_format=memory_format)
        ours, theirs = values.clone().requires_grad_(), values.clone().requires_grad_()
        moved = translation(ours, ratio, _generator(seed))
        expected = _translation_by_definition(theirs, ratio, _generator(seed))
        assert torch.equal(moved, expected)
        assert moved.is_contiguous(memory_format=memory_format)
        upstream = torch.randn(shape, generator=_generator(seed + 50))
        moved.backward(upstream)  # type: ignore[no-untyped-call]
        expected.backward(upstream)  # type: ignore[no-untyped-call]
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.equal(ours.grad, theirs.grad)


def test_color_is_the_formula() -> None:
    x = torch.randn(7, 3, 9, 9, generator=_generator())
    assert torch.allclose(color(x, _generator(1)), _color_by_definition(x, _generator(1)), atol=1e-6)


def test_gradients_of_all_transforms_hold_against_finite_differences_twice() -> None:
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64, generator=_generator()).requires_grad_()

    def transformed(values: Tensor) -> Tensor:
        return diffaugment(values, _generator(3), translate=0.4, cut=0.4, with_color=True).square()

    assert torch.autograd.gradcheck(transformed, (x,))
    assert torch.autograd.gradgradcheck(transformed, (x,))


@pytest.mark.parametrize("probability", [1, 1.0])
def test_certainty_draws_nothing_for_the_choice(probability: float) -> None:
    x = torch.randn(8, 3, 16, 16, generator=_generator())
    one, two = _generator(1), _generator(1)
    chosen = diffaugment(x, one, with_color=True, probability=probability)
    step = cutout(translation(color(x, two), 0.125, two), 0.2, two)
    assert torch.equal(chosen, step)
    assert torch.equal(one.get_state(), two.get_state())


@pytest.mark.parametrize("probability", [0.0, torch.tensor(0.0)])
def test_probability_0_changes_nothing_at_all(probability: float | Tensor) -> None:
    x = torch.randn(16, 3, 16, 16, generator=_generator())
    assert torch.equal(diffaugment(x, _generator(1), with_color=True, probability=probability), x)


def test_probability_1_as_a_tensor_changes_every_image() -> None:
    x = torch.randn(64, 1, 16, 16, generator=_generator()) + 5.0
    out = diffaugment(x, _generator(1), translate=0.0, cut=0.5, probability=torch.tensor(1.0))
    assert bool((out == 0).flatten(1).any(1).all())


@pytest.mark.parametrize("as_tensor", [True, False])
def test_each_transform_is_applied_to_the_share_it_says_independently(as_tensor: bool) -> None:
    probability, n = 0.3, 4000
    x = torch.rand(1, 1, 16, 16, generator=_generator()).add(1.0).expand(n, -1, -1, -1)
    given = torch.tensor(probability) if as_tensor else probability
    bound = 5 * math.sqrt(probability * (1 - probability) / n)
    colored = (color(x, _generator(1), given) != x).flatten(1).any(1)
    moved = (translation(x, 0.25, _generator(2), given) != x).flatten(1).any(1)
    cut = (cutout(x, 0.5, _generator(3), given) == 0).flatten(1).any(1)
    assert colored.float().mean().item() == pytest.approx(probability, abs=bound)
    # 1 of 81 shifts is no shift
    assert moved.float().mean().item() == pytest.approx(probability * 80 / 81, abs=bound)
    assert cut.float().mean().item() == pytest.approx(probability, abs=bound)
    # in one call: holes of 8 x 8 at most appear with and without a shift
    both = diffaugment(x, _generator(4), translate=0.25, cut=0.5, probability=given)
    untouched = (both == x).flatten(1).all(1)
    assert untouched.float().mean().item() == pytest.approx((1 - probability) * (1 - probability * 80 / 81), abs=0.04)


@pytest.mark.parametrize("probability", [-0.1, 1.1, math.nan])
def test_what_is_no_probability_is_refused(probability: float) -> None:
    with pytest.raises(ConfigError, match="outside"):
        diffaugment(torch.zeros(1, 1, 8, 8), _generator(), probability=probability)


def test_gradients_pass_images_that_are_not_chosen_unchanged() -> None:
    x = torch.randn(8, 3, 8, 8, requires_grad=True)
    diffaugment(x, _generator(), with_color=True, probability=0.0).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize("shape", SHAPES)
def test_jitter_is_torchs_affine_grid_and_the_brightness_formula(shape: tuple[int, int, int, int]) -> None:
    section, strength, n = TransformsSection(), 0.7, shape[0]
    x = torch.rand(shape, generator=_generator()) * 2 - 1
    draws = _generator(6)

    def uniform(*size: int) -> Tensor:
        return torch.rand(size, generator=draws) * 2 - 1

    angle = uniform(n) * math.radians(section.rotate) * strength
    scale = 1.0 + uniform(n) * section.scale * strength
    shear = torch.tan(uniform(n) * math.radians(section.shear) * strength)
    shift = uniform(n, 2) * 2 * section.shift * strength
    mirror = torch.where(torch.rand(n, generator=draws) < 0.5, -1.0, 1.0)
    gain = 1.0 + uniform(n, 1, 1, 1) * section.brightness * strength
    expected = []
    for i in range(n):
        turn = torch.tensor([[angle[i].cos(), -angle[i].sin()], [angle[i].sin(), angle[i].cos()]]) / scale[i]
        matrix = turn @ torch.tensor([[1.0, shear[i]], [0.0, 1.0]])
        matrix[0] *= mirror[i]
        theta = torch.cat([matrix, shift[i].view(2, 1)], dim=1).unsqueeze(0)  # (1, 2, 3)
        grid = functional.affine_grid(theta, [1, *shape[1:]], align_corners=False)
        moved = functional.grid_sample(x[i : i + 1], grid, padding_mode="reflection", align_corners=False)
        expected.append(((moved + 1) * gain[i] - 1).clamp(-1, 1))
    assert torch.allclose(jitter_reals(x, section, strength, _generator(6), flip=True), torch.cat(expected), atol=1e-4)
