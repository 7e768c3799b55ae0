"""Which way the strokes of one picture have to move to become those of another: dense registration on a coarse grid.

Owns the fields, how they are found and how a picture follows one. A field is a few displacements on a grid over the
picture, in shares of its side, smoothly filled in between, so it says the same at every size. Knows no classes and
touches no file.

Source: free-form deformations of Rueckert et al. 1999 (Nonrigid registration using free-form deformations, IEEE TMI
18(8)), with a bicubic grid, squared differences, and a coarse-to-fine blur.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from synthgen.optim import Adam

GRID = 7
"""Displacements along each side of the picture."""
WORKING_SIDE = 32
"""Larger pictures are registered at a half, a quarter, ... of their side, until they are no larger."""
STEPS = 60
RATE = 0.009
"""Of Adam, in shares of the side: a quarter of a pixel of 28 a step."""
BLURS = (0.09, 0.055, 0.03)
"""Standard deviations of the blur, in shares of the side; each lasts for a third of the steps."""
STIFFNESS = 0.2
"""Weight of the squared differences between neighbouring displacements (in shares of the side, summed) beside the
mean squared difference of the pictures."""


@dataclass(frozen=True)
class Registered:
    """Fields that carry pictures onto others.

    Attributes:
        fields: (n, 2, GRID, GRID) float32, displacement to the right and downwards of where each point of the target
            finds its grey level in the source, in shares of the side.
        explained: (n,) float32, at most 1: the share of the squared difference of the two pictures that following the
            field takes away. 1 for a perfect fit, about 0 for none.
    """

    fields: Tensor
    explained: Tensor


def warp(images: Tensor, fields: Tensor) -> Tensor:
    """Pictures that follow fields: point p of the result is point p + field(p) of the picture.

    Args:
        images: (N, C, S, S) float; beyond its edge a picture goes on as at its edge.
        fields: (N, 2, GRID, GRID) in shares of the side; 0 changes nothing.
    Returns:
        (N, C, S, S), bilinearly interpolated; gradients pass to both.
    """
    side = images.shape[2]
    moved = functional.interpolate(fields, size=(side, side), mode="bicubic", align_corners=True)  # (N, 2, S, S)
    # the sampling grid runs from -1 to 1 over the side, from the middle of the first pixel to that of the last
    line = torch.linspace(-1.0, 1.0, side, dtype=images.dtype, device=images.device)
    down, right = torch.meshgrid(line, line, indexing="ij")
    grid = torch.stack([right, down], dim=-1) + 2.0 * moved.permute(0, 2, 3, 1)  # (N, S, S, 2)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=True)


def register(sources: Tensor, targets: Tensor) -> Registered:
    """Fields that carry each source onto its target.

    Args:
        sources, targets: (n, C, S, S) float in [0, 1]; colours are averaged.
    Returns:
        n fields and how well they fit; where both pictures are equal, a field near 0 that explains nothing.
    """
    source, target = _small(sources), _small(targets)
    side = source.shape[2]
    fields = torch.zeros(len(source), 2, GRID, GRID, requires_grad=True)
    optimizer = Adam([fields], lr=RATE)  # every pair is found by itself: losses are summed, Adam's scale is elementwise
    blurred = [(_blurred(source, share * side), _blurred(target, share * side)) for share in BLURS]
    for step in range(STEPS):
        start, goal = blurred[min(step * len(BLURS) // STEPS, len(BLURS) - 1)]
        difference = (warp(start, fields) - goal).square().mean((1, 2, 3))  # (n,)
        optimizer.zero_grad()
        (difference + STIFFNESS * _unevenness(fields)).sum().backward()  # type: ignore[no-untyped-call]  # torch's own
        optimizer.step()
    found = fields.detach()
    start, goal = blurred[-1]
    before = (start - goal).square().mean((1, 2, 3))
    after = (warp(start, found) - goal).square().mean((1, 2, 3))
    return Registered(found, torch.where(before > 1e-8, 1.0 - after / before.clamp(min=1e-8), 0.0))


def _small(images: Tensor) -> Tensor:
    grey = images.mean(dim=1, keepdim=True)
    while grey.shape[2] > WORKING_SIDE:
        grey = functional.avg_pool2d(grey, 2)
    return grey


def _blurred(images: Tensor, sigma: float) -> Tensor:
    """(n, 1, S, S) under a Gaussian of `sigma` pixels; the edge goes on outside."""
    reach = max(1, round(3.0 * sigma))
    x = torch.arange(-reach, reach + 1, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (x / sigma).square())
    kernel = kernel / kernel.sum()
    wide = functional.pad(images, (reach, reach, reach, reach), mode="replicate")
    rows = functional.conv2d(wide, kernel.view(1, 1, 1, -1))
    return functional.conv2d(rows, kernel.view(1, 1, -1, 1))


def _unevenness(fields: Tensor) -> Tensor:
    """(n,) sum of squared differences between neighbours of the grid."""
    down = (fields[:, :, 1:] - fields[:, :, :-1]).square().sum((1, 2, 3))
    right = (fields[:, :, :, 1:] - fields[:, :, :, :-1]).square().sum((1, 2, 3))
    return down + right
