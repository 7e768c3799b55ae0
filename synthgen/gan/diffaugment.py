"""Differentiable transforms that reals and fakes both pass through before D sees them.

Owns DiffAugment (Zhao et al. 2020, arXiv:2006.10738: color, translation, cutout) and the affine jitter that
reals get before the game. Every random number comes from the generator that is handed in.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from synthgen.config import TransformsSection


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device) * (high - low) + low


def color(x: Tensor, generator: torch.Generator) -> Tensor:
    """Random brightness, saturation and contrast, one draw per image; (N, C, H, W) to the same."""
    n = len(x)
    x = x + _uniform((n, 1, 1, 1), -0.5, 0.5, generator)
    grey = x.mean(dim=1, keepdim=True)
    x = (x - grey) * _uniform((n, 1, 1, 1), 0.0, 2.0, generator) + grey
    level = x.mean(dim=(1, 2, 3), keepdim=True)
    return (x - level) * _uniform((n, 1, 1, 1), 0.5, 1.5, generator) + level


def translation(x: Tensor, ratio: float, generator: torch.Generator) -> Tensor:
    """Shifts each image by up to `ratio` of its side, zeros outside; (N, C, H, W) to the same."""
    n, _, height, width = x.shape
    reach_y, reach_x = round(height * ratio), round(width * ratio)
    if reach_y == 0 and reach_x == 0:
        return x
    shift_y = torch.randint(-reach_y, reach_y + 1, (n, 1, 1), generator=generator, device=generator.device)
    shift_x = torch.randint(-reach_x, reach_x + 1, (n, 1, 1), generator=generator, device=generator.device)
    # one ring of zeros: indices beyond the border are clamped into it
    padded = functional.pad(x, (1, 1, 1, 1))
    rows = (torch.arange(height, device=x.device).view(1, height, 1) + shift_y + 1).clamp(0, height + 1)
    columns = (torch.arange(width, device=x.device).view(1, 1, width) + shift_x + 1).clamp(0, width + 1)
    batch = torch.arange(n, device=x.device).view(n, 1, 1)
    return padded.permute(0, 2, 3, 1)[batch, rows, columns].permute(0, 3, 1, 2)


def cutout(x: Tensor, ratio: float, generator: torch.Generator) -> Tensor:
    """Sets a square of `ratio` of the side to zero at a random place; (N, C, H, W) to the same."""
    n, _, height, width = x.shape
    size_y, size_x = int(height * ratio + 0.5), int(width * ratio + 0.5)
    if size_y == 0 or size_x == 0:
        return x
    top = torch.randint(0, height + (1 - size_y % 2), (n, 1, 1), generator=generator, device=generator.device)
    left = torch.randint(0, width + (1 - size_x % 2), (n, 1, 1), generator=generator, device=generator.device)
    rows = torch.arange(height, device=x.device).view(1, height, 1)
    columns = torch.arange(width, device=x.device).view(1, 1, width)
    inside_y = (rows >= top - size_y // 2) & (rows < top - size_y // 2 + size_y)
    inside_x = (columns >= left - size_x // 2) & (columns < left - size_x // 2 + size_x)
    return x * (~(inside_y & inside_x)).unsqueeze(1).to(x.dtype)


def diffaugment(
    x: Tensor, generator: torch.Generator, *, translate: float = 0.125, cut: float = 0.2, with_color: bool = False
) -> Tensor:
    """DiffAugment in the paper's order: color, translation, cutout.

    Args:
        x: (N, C, H, W) float32 in [-1, 1]; gradients pass through.
        generator: on the device of `x`.
        translate, cut: shares of the side.
        with_color: leave off for grey images.
    Returns:
        (N, C, H, W) float32.
    """
    if with_color:
        x = color(x, generator)
    return cutout(translation(x, translate, generator), cut, generator)


def jitter_reals(
    x: Tensor, section: TransformsSection, strength: float, generator: torch.Generator, *, flip: bool = False
) -> Tensor:
    """Label-preserving affine and brightness jitter of reals, so that the GAN sees more than its few images.

    Args:
        x: (N, C, H, W) float32 in [-1, 1].
        section: the transforms that keep the label (shared with the classical arms).
        strength: 0 to 1, factor on every amplitude of `section`.
        flip: mirror half of the images left to right.
    Returns:
        (N, C, H, W) float32 in [-1, 1]; borders are mirrored.
    """
    if strength == 0.0 and not flip:
        return x
    n = len(x)
    angle = _uniform((n,), -1, 1, generator) * math.radians(section.rotate) * strength
    scale = 1.0 + _uniform((n,), -1, 1, generator) * section.scale * strength
    shear = torch.tan(_uniform((n,), -1, 1, generator) * math.radians(section.shear) * strength)
    shift = _uniform((n, 2), -2, 2, generator) * section.shift * strength
    mirror = torch.ones(n, device=x.device)
    if flip:
        mirror = torch.where(_uniform((n,), 0, 1, generator) < 0.5, -1.0, 1.0)
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    theta = torch.stack(
        [
            torch.stack([mirror * cos, mirror * (cos * shear - sin), shift[:, 0]], dim=1),
            torch.stack([sin, sin * shear + cos, shift[:, 1]], dim=1),
        ],
        dim=1,
    )  # (N, 2, 3)
    grid = functional.affine_grid(theta, list(x.shape), align_corners=False)
    moved = functional.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    gain = 1.0 + _uniform((n, 1, 1, 1), -1, 1, generator) * section.brightness * strength
    return ((moved + 1.0) * gain - 1.0).clamp(-1.0, 1.0)
