"""Images into a generator's latent space: for each the latent whose sample is most like it.

Owns the optimisation and what it says of its success. The features that it compares by are handed in, and so are the
images: they have to be of the training side. Refuses generators that start from other pictures. Touches no file.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthgen.config import ProjectionSection
from synthgen.errors import ConfigError
from synthgen.gan.architectures.interface import Generator
from synthgen.gan.pixels import to_uint8, to_unit_range
from synthgen.optim import Adam
from synthgen.seeding import torch_generator

FROM_NOISE = ("resnet", "dcgan", "style")
N_TRIED = 256
"""Random latents of which the ones most like an image are where its optimisation starts."""
TRIAL_SHARE = 0.2
"""Of the steps, which every start gets before the best start of an image goes on alone."""
LEARNING_RATE = 0.1
AT_ONCE = 128
"""Latents that are optimised side by side."""

DifferentiableFeatures = Callable[[Tensor], Tensor]
"""(N, C, H, W) float32 images in [-1, 1] to (N, k) float32 features of norm 1, with gradients."""


@dataclass(frozen=True)
class Projection:
    """Where images lie in latent space, and how like them the samples there are.

    Attributes:
        latents: (m, d) float32 on the CPU.
        pixel_error: (m,) float32, root mean square difference of the sample to its image, in shares of the range.
        random_pixel_error: (m,) float32, the same for random latents, their mean.
        feature_distance: (m,) float32, Euclidean distance of features of norm 1.
        random_feature_distance: (m,) float32, the same for random latents, their mean.
    """

    latents: Tensor
    pixel_error: NDArray[np.float32]
    random_pixel_error: NDArray[np.float32]
    feature_distance: NDArray[np.float32]
    random_feature_distance: NDArray[np.float32]


def refuse_without_latents(architecture: str) -> None:
    """Refuses generators whose samples a latent does not decide.

    Raises:
        ConfigError: image to image, or super-resolution.
    """
    if architecture not in FROM_NOISE:
        raise ConfigError(
            f"synthesize.latents between_reals needs a generator whose samples its latents decide "
            f"({', '.join(FROM_NOISE)}); {architecture} starts from other pictures: set synthesize.latents normal"
        )


def radial_prior(latents: Tensor) -> Tensor:
    """Minus the log density of a normal vector's length, per dimension and up to a constant.

    The density of the vector itself is highest at the origin, where no latent of a training lies in many dimensions;
    that of its length is highest at sqrt(d - 1), where nearly all of them lie.

    Args:
        latents: (N, d) float32.
    Returns:
        (N,) float32; length r has r^2 / 2d - (d - 1) / d log r (the chi distribution).
    """
    d = latents.shape[1]
    squares = latents.square().sum(1)  # (N,)
    return squares / (2 * d) - (d - 1) / (2 * d) * (squares + 1e-8).log()


class _Likeness:
    """How like a set of images samples are."""

    def __init__(self, images: Tensor, features: DifferentiableFeatures, section: ProjectionSection) -> None:
        self.images, self.section, self._features = images, section, features
        with torch.no_grad():
            self.of_images = features(images)  # (m, k)

    def differences(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squared differences of pixels and squared distances of features, (m,) each; sample i to image i."""
        pixels = (samples - self.images).square().flatten(1).mean(1)  # (m, C, H, W) -> (m,)
        features = (self._features(samples) - self.of_images).square().sum(1)  # (m,)
        return pixels, features

    def differences_to_all(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """The same of each image to each of n samples, (m, n) each."""
        pixels = _squared_distances(self.images.flatten(1), samples.flatten(1)) / self.images[0].numel()
        return pixels, _squared_distances(self.of_images, self._features(samples))

    def loss(self, differences: tuple[Tensor, Tensor], latents: Tensor) -> Tensor:
        """Pixels + features + the prior of the latents, weighted; of the shape of `differences`."""
        pixels, features = differences
        section = self.section
        return pixels + section.feature_weight * features + section.prior_weight * radial_prior(latents)


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(m, k) and (n, k) to (m, n)."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()


def project_images(
    generator: Generator,
    label: int,
    images: NDArray[np.uint8],
    features: DifferentiableFeatures,
    section: ProjectionSection,
    *,
    truncation: float,
    seed: int,
    device: torch.device,
) -> Projection:
    """Finds the latents whose samples are most like some images of one class.

    Each image starts from those of 256 random latents that are most like it (`section.restarts` of them). Adam lowers
    pixel error + feature distance + radial prior with a cosine schedule; after a fifth of the steps the best start goes
    on alone, and the best point that was met is kept. The latents themselves are changed in every architecture (under
    `style` they decide the style through its mapping).

    Args:
        generator: in eval mode on `device`, from noise; its weights are left as they are.
        label: class of the images.
        images: (m, H, W, C) uint8, m >= 1.
        features: compares images beside their pixels.
        section: steps, restarts and weights.
        truncation: as for the samples that will be drawn.
        seed: of the random latents, which are drawn on the CPU.
        device: to compute on.
    Returns:
        latents in the order of the images.
    Raises:
        ConfigError: see `refuse_without_latents`.
    Source: projection by optimisation: Zhu et al. 2016, arXiv:1609.03552, section 4.1; pixels and features: Abdal et
        al. 2019, arXiv:1904.03189, section 4.
    """
    refuse_without_latents(generator.shape.architecture)
    generator.truncation = truncation
    chance = torch_generator(seed, "projection")
    tried = torch.randn(N_TRIED, generator.shape.latents, generator=chance).to(device)
    n_each = max(1, AT_ONCE // section.restarts)
    parts = [
        _project(
            generator,
            label,
            to_unit_range(images[a : a + n_each]).to(device),
            tried,
            features=features,
            section=section,
        )
        for a in range(0, len(images), n_each)
    ]
    errors = [np.concatenate([part[k] for part in parts]) for k in range(1, 5)]
    return Projection(torch.cat([part[0] for part in parts]), *errors)


def _make(generator: Generator, latents: Tensor, label: int) -> Tensor:
    return generator(latents, torch.full((len(latents),), label, device=latents.device))  # type: ignore[no-any-return]


def _project(
    generator: Generator,
    label: int,
    images: Tensor,
    tried: Tensor,
    *,
    features: DifferentiableFeatures,
    section: ProjectionSection,
) -> tuple[Tensor, NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Latents (m, d) and the four errors (m,) of `Projection`, of images (m, C, H, W) in [-1, 1]."""
    m, restarts, device = len(images), section.restarts, images.device
    likeness = _Likeness(images, features, section)
    with torch.no_grad():
        samples = torch.cat([_make(generator, tried[a : a + AT_ONCE], label) for a in range(0, len(tried), AT_ONCE)])
        of_random = likeness.differences_to_all(samples)
        starts = likeness.loss(of_random, tried).topk(restarts, dim=1, largest=False).indices  # (m, restarts)
    several = _Likeness(images.repeat_interleave(restarts, dim=0), features, section)
    n_trial = max(1, round(TRIAL_SHARE * section.steps)) if restarts > 1 else 0
    found, losses = _descend(generator, label, several, tried[starts.flatten()], n_trial)  # (m restarts, d)
    winner = losses.view(m, restarts).argmin(1)  # (m restarts,) -> (m,)
    found = found.view(m, restarts, -1)[torch.arange(m, device=device), winner]  # (m restarts, d) -> (m, d)
    found, _ = _descend(generator, label, likeness, found, section.steps)
    with torch.no_grad():
        # rounded to whole grey levels, as a shard stores them
        made = to_unit_range(to_uint8(_make(generator, found, label))).to(device)
        of_found = likeness.differences(made)
    return (
        found.cpu(),
        _root(of_found[0]) / 2.0,
        _root(of_random[0]).mean(1) / 2.0,
        _root(of_found[1]),
        _root(of_random[1]).mean(1),
    )


def _descend(
    generator: Generator, label: int, likeness: _Likeness, starts: Tensor, n_steps: int
) -> tuple[Tensor, Tensor]:
    """The best latents (N, d) that `n_steps` of Adam met on the way from `starts` (N, d), and their losses (N,)."""
    latents = starts.clone().requires_grad_(True)
    best, lowest = starts.clone(), torch.full((len(starts),), math.inf, device=starts.device)
    optimizer = Adam([latents], lr=LEARNING_RATE)
    for step in range(n_steps + 1):
        loss = likeness.loss(likeness.differences(_make(generator, latents, label)), latents)  # (N,)
        better = loss.detach() < lowest
        best[better], lowest[better] = latents.detach()[better], loss.detach()[better]
        if step < n_steps:
            # of the latents alone: the weights of neither network get a gradient
            latents.grad = torch.autograd.grad(loss.sum(), latents)[0]
            optimizer.lr = LEARNING_RATE * 0.5 * (1.0 + math.cos(math.pi * step / n_steps))
            optimizer.step()
    return best, lowest


def _root(squares: Tensor) -> NDArray[np.float32]:
    return np.asarray(squares.sqrt().float().cpu().numpy())
