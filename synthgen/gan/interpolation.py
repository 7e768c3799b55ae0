"""Points between training images in a generator's latent space.

Owns the great-circle interpolation and the rule (anchors, seed) -> latents of a batch. How an image became an anchor is
`synthgen.gan.projection`'s; how anchors lie on disk is `synthgen.gan.anchor_file`'s. Touches no file.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthgen.errors import TrainingError
from synthgen.seeding import torch_generator

SMALLEST_SINE = 1e-7
"""Below it two directions are parallel or opposite: the arc is a point, or there is more than one."""


def slerp(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """Interpolates directions along the great circle and lengths linearly.

    A straight line between two normal latents leaves the shell in which nearly all latents of a training lie; the arc
    does not. Parallel and opposite vectors, and those of length 0, have no arc and are joined by a straight line.

    Args:
        a, b: (N, d) float32.
        weights: (N,) in [0, 1]; 0 gives `a`, 1 gives `b`.
    Returns:
        (N, d) float32; the angle to `a` is `weights` times that between `a` and `b`.
    Source: Shoemake 1985 (SIGGRAPH), section 3.3; for latents White 2016, arXiv:1609.04468, section 2.1.
    """
    x, y, t = a.double(), b.double(), weights.double().unsqueeze(1)  # (N, d), (N, d), (N, 1)
    x_length, y_length = x.norm(dim=1, keepdim=True), y.norm(dim=1, keepdim=True)
    u, v = x / x_length.clamp(min=1e-30), y / y_length.clamp(min=1e-30)
    # exact for small and for large angles, which arccos is not
    angle = 2.0 * torch.atan2((u - v).norm(dim=1, keepdim=True), (u + v).norm(dim=1, keepdim=True))
    sine = angle.sin()
    has_arc = (sine > SMALLEST_SINE) & (x_length > 0.0) & (y_length > 0.0)
    sine = torch.where(has_arc, sine, 1.0)
    direction = ((1.0 - t) * angle).sin() / sine * u + (t * angle).sin() / sine * v
    length = torch.lerp(x_length, y_length, t)
    return torch.where(has_arc, direction * length, torch.lerp(x, y, t)).float()


@dataclass(frozen=True)
class DrawnLatents:
    """Latents of one batch.

    Attributes:
        latents: (n, d) float32 on the CPU.
        sources: (n,) str, pixel sha256 of the training image that each lies nearer to.
    """

    latents: Tensor
    sources: NDArray[np.str_]


@dataclass(frozen=True)
class Anchors:
    """Training images of one class as points of a generator's latent space.

    Attributes:
        latents: (m, d) float32 on the CPU, m >= 1.
        objects: (m,) int64, the object that each image shows; pairs are of two objects where there are two.
        sha256: (m,) str, of the images' pixels.
        jitter: in [0, 1]; points are moved by up to this share of the arc to a random latent.
        neighbour: in (0, 1]; the same for a class of one object, which has no pairs.
    """

    latents: Tensor
    objects: NDArray[np.int64]
    sha256: NDArray[np.str_]
    jitter: float
    neighbour: float

    def __post_init__(self) -> None:
        """Refuses what nothing can be drawn from.

        Raises:
            TrainingError: no anchor, or columns of unequal length.
        """
        lengths = {len(self.latents), len(self.objects), len(self.sha256)}
        if len(lengths) != 1 or 0 in lengths or self.latents.ndim != 2:
            raise TrainingError(
                f"anchors are latents (m, d) with m objects and m digests, m >= 1; got {tuple(self.latents.shape)}, "
                f"{len(self.objects)} and {len(self.sha256)}: does the class have training images in this fold?"
            )

    def draw(self, n: int, seed: int) -> DrawnLatents:
        """Latents of a batch of `n`, the same for the same seed.

        Args:
            n: number of points.
            seed: of the batch.
        Returns:
            points on arcs between anchors of two objects at uniform weights; of one object: points near its anchors.
        """
        chance = torch_generator(seed, "between reals")
        m, d = self.latents.shape
        objects = torch.from_numpy(self.objects)
        first = torch.randint(m, (n,), generator=chance)
        weights = torch.rand(n, generator=chance)
        others = objects[first][:, None] != objects[None, :]  # (n, m) bool
        if bool(others.any()):
            second = torch.multinomial(others.float(), 1, generator=chance).squeeze(1)  # (n,)
            points = slerp(self.latents[first], self.latents[second], weights)
            nearer = torch.where(weights < 0.5, first, second)
        else:
            away = torch.randn(n, d, generator=chance)
            points = slerp(self.latents[first], away, weights * self.neighbour)
            nearer = first
        if self.jitter > 0.0:
            away, how_far = torch.randn(n, d, generator=chance), torch.rand(n, generator=chance)
            points = slerp(points, away, how_far * self.jitter)
        return DrawnLatents(points, self.sha256[nearer.numpy()])
