"""Differentiable transforms that reals and fakes both pass through before D sees them.

Owns DiffAugment (Zhao et al. 2020, arXiv:2006.10738: color, translation, cutout) and the affine jitter that
reals get before the game, each image by itself. Every random number comes from the generator that is handed in;
the probability of a transform comes from outside (`synthgen.gan.adaptive`).
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from synthgen.config import TransformsSection
from synthgen.errors import ConfigError


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device) * (high - low) + low


def _applied(n: int, probability: float | Tensor, generator: torch.Generator) -> Tensor | None:
    """(n,) bool, which images a transform is applied to; None for all, and then nothing is drawn."""
    if isinstance(probability, (float, int)) and probability == 1.0:
        return None
    return torch.rand(n, generator=generator, device=generator.device) < probability


def color(x: Tensor, generator: torch.Generator, probability: float | Tensor = 1.0) -> Tensor:
    """Random brightness, saturation and contrast, one draw per image.

    Args:
        x: (N, C, H, W) float; gradients pass through.
        generator: on the device of `x`.
        probability: of an image being changed at all.
    Returns:
        (N, C, H, W); images that are not changed come back as they were.
    """
    n = len(x)
    applied = _applied(n, probability, generator)
    # in place on tensors made here: at batch sizes of interest, fresh memory costs more than the arithmetic
    y = x + _uniform((n, 1, 1, 1), -0.5, 0.5, generator)
    grey = y.mean(dim=1, keepdim=True)
    y = (y - grey).mul_(_uniform((n, 1, 1, 1), 0.0, 2.0, generator)).add_(grey)
    level = y.mean(dim=(1, 2, 3), keepdim=True)
    y = (y - level).mul_(_uniform((n, 1, 1, 1), 0.5, 1.5, generator)).add_(level)
    return y if applied is None else torch.where(applied.view(n, 1, 1, 1), y, x)


def translation(x: Tensor, ratio: float, generator: torch.Generator, probability: float | Tensor = 1.0) -> Tensor:
    """Shifts each image by up to `ratio` of its side, zeros outside.

    Args:
        x: (N, C, H, W) float; gradients pass through, of any order.
        ratio: share of the side.
        generator: on the device of `x`.
        probability: of an image being shifted.
    Returns:
        (N, C, H, W), in the memory format of `x`.
    """
    n, _, height, width = x.shape
    reach_y, reach_x = round(height * ratio), round(width * ratio)
    if reach_y == 0 and reach_x == 0:
        return x
    applied = _applied(n, probability, generator)
    shift_y = torch.randint(-reach_y, reach_y + 1, (n,), generator=generator, device=generator.device)
    shift_x = torch.randint(-reach_x, reach_x + 1, (n,), generator=generator, device=generator.device)
    if applied is not None:
        shift_y, shift_x = shift_y * applied, shift_x * applied
    shifted: Tensor = _Shift.apply(x, shift_y, shift_x, reach_y, reach_x)
    return shifted


class _Shift(torch.autograd.Function):
    """out[i, c, h, w] = x[i, c, h + shift_y[i], w + shift_x[i]], zero outside.

    The gradient of a shift is the shift back: a read like the forward pass, where autograd's own answer to advanced
    indexing would be a scattered addition (4 times the time of the forward pass on a CPU).
    """

    @staticmethod
    def forward(x: Tensor, shift_y: Tensor, shift_x: Tensor, reach_y: int, reach_x: int) -> Tensor:
        """Reads shifted rows out of a padded copy."""
        return _shift(x, shift_y, shift_x, reach_y, reach_x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int, int], output: Tensor) -> None:
        """Keeps the shifts, not the images."""
        _, shift_y, shift_x, ctx.reach_y, ctx.reach_x = inputs
        ctx.save_for_backward(shift_y, shift_x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        """The shift back, itself differentiable."""
        shift_y, shift_x = ctx.saved_tensors
        (grad,) = grads
        return _Shift.apply(grad, -shift_y, -shift_x, ctx.reach_y, ctx.reach_x), None, None, None, None


def _shift(x: Tensor, shift_y: Tensor, shift_x: Tensor, reach_y: int, reach_x: int) -> Tensor:
    n, channels, height, width = x.shape
    padded = functional.pad(x, (reach_x, reach_x, reach_y, reach_y))  # (N, C, H + 2 reach_y, W + 2 reach_x)
    # rows of pixels that lie together in memory: C planes of 1 value a pixel, or (channels_last) 1 plane of C values
    channels_last = not padded.is_contiguous() and padded.is_contiguous(memory_format=torch.channels_last)
    planes, values = (1, channels) if channels_last else (channels, 1)
    flat = (padded.permute(0, 2, 3, 1) if channels_last else padded.contiguous()).reshape(-1)
    # every row of W pixels is one of the overlapping windows of the flat memory; index_select copies them whole
    length = width * values
    windows = flat.as_strided((flat.numel() - length + 1, length), (1, 1))
    plane = torch.arange(n * planes, device=x.device).view(n, planes, 1) * padded.shape[2]
    row = torch.arange(reach_y, reach_y + height, device=x.device) + shift_y.view(n, 1, 1)
    start = (plane + row) * padded.shape[3] + shift_x.view(n, 1, 1) + reach_x  # (N, planes, H), in pixels
    rows = windows.index_select(0, (start * values).view(-1))  # (N * planes * H, W * values)
    if channels_last:
        return rows.view(n, height, width, channels).permute(0, 3, 1, 2)
    return rows.view(n, channels, height, width)


def cutout(x: Tensor, ratio: float, generator: torch.Generator, probability: float | Tensor = 1.0) -> Tensor:
    """Sets a square of `ratio` of the side to zero at a random place.

    Args:
        x: (N, C, H, W) float; gradients pass through.
        ratio: share of the side.
        generator: on the device of `x`.
        probability: of an image being cut.
    Returns:
        (N, C, H, W).
    """
    n, _, height, width = x.shape
    size_y, size_x = int(height * ratio + 0.5), int(width * ratio + 0.5)
    if size_y == 0 or size_x == 0:
        return x
    applied = _applied(n, probability, generator)
    top = torch.randint(0, height + (1 - size_y % 2), (n, 1, 1), generator=generator, device=generator.device)
    left = torch.randint(0, width + (1 - size_x % 2), (n, 1, 1), generator=generator, device=generator.device)
    rows = torch.arange(height, device=x.device).view(1, height, 1)
    columns = torch.arange(width, device=x.device).view(1, 1, width)
    inside_y = (rows >= top - size_y // 2) & (rows < top - size_y // 2 + size_y)  # (N, H, 1)
    inside_x = (columns >= left - size_x // 2) & (columns < left - size_x // 2 + size_x)  # (N, 1, W)
    if applied is not None:
        inside_y = inside_y & applied.view(n, 1, 1)
    return x * (~(inside_y & inside_x)).unsqueeze(1).to(x.dtype)


def diffaugment(
    x: Tensor,
    generator: torch.Generator,
    *,
    translate: float = 0.125,
    cut: float = 0.2,
    with_color: bool = False,
    probability: float | Tensor = 1.0,
) -> Tensor:
    """DiffAugment in the paper's order: color, translation, cutout.

    Args:
        x: (N, C, H, W) float32 in [-1, 1]; gradients pass through.
        generator: on the device of `x`.
        translate, cut: shares of the side.
        with_color: leave off for grey images.
        probability: with which each image undergoes each of the three, drawn independently (adaptive strength,
            Karras et al. 2020, arXiv:2006.06676, section 2.2): a float in [0, 1], or a () tensor on the device, which
            is believed, as looking at it would wait for the device. 1.0 draws nothing for the choice.
    Returns:
        (N, C, H, W) float32, in the memory format of `x`.
    Raises:
        ConfigError: a float probability outside [0, 1].
    """
    if not isinstance(probability, Tensor) and not 0.0 <= probability <= 1.0:
        raise ConfigError(f"probability of a transform is {probability}, outside [0, 1]; 1 applies all of them always")
    if with_color:
        x = color(x, generator, probability)
    return cutout(translation(x, translate, generator, probability), cut, generator, probability)


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
    a, b = mirror * cos, mirror * (cos * shear - sin)
    theta = torch.stack([a, b, shift[:, 0], sin, sin * shear + cos, shift[:, 1]], dim=1).view(n, 2, 3)
    moved = functional.grid_sample(
        x, _affine_grid(theta, x.shape[2], x.shape[3]), mode="bilinear", padding_mode="reflection", align_corners=False
    )
    gain = 1.0 + _uniform((n, 1, 1, 1), -1, 1, generator) * section.brightness * strength
    return moved.mul_(gain).add_(gain - 1.0).clamp_(-1.0, 1.0)  # (moved + 1) * gain - 1


def _affine_grid(theta: Tensor, height: int, width: int) -> Tensor:
    """(N, 2, 3) to (N, H, W, 2), as torch's `affine_grid` without align_corners, which takes 20 to 40 times as long."""
    # pixel centres in [-1, 1]
    ys = (torch.arange(height, device=theta.device) * 2 + 1).to(theta.dtype) / height - 1.0
    xs = (torch.arange(width, device=theta.device) * 2 + 1).to(theta.dtype) / width - 1.0
    along_x = theta[:, :, 0, None] * xs  # (N, 2, W)
    along_y = theta[:, :, 1, None] * ys + theta[:, :, 2, None]  # (N, 2, H)
    planes = along_x.unsqueeze(2) + along_y.unsqueeze(3)  # (N, 2, H, W)
    return planes.permute(0, 2, 3, 1)  # (N, H, W, 2)
