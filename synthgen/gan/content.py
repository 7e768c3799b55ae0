"""What a trained image-to-image generator is given for a batch of samples, and which real pictures that was made of.

Owns the rule (training images, label, seed) -> content. It is drawn on the CPU, so that it is the same on every device,
and from the images handed in alone: these have to be the ones of the training side. How the game was played with them
is `synthgen.gan.scenes`'; what becomes of the content is `synthgen.gan.sampling`'s. Touches no file.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthgen.dataset.pasted_pool import Regions, TrainImages, compose_label
from synthgen.dataset.pasting import PasteRanges
from synthgen.gan.scenes import FreeScene, crop_around, crop_side, unit_range
from synthgen.seeding import numpy_generator, torch_generator


@dataclass(frozen=True)
class Given:
    """Content of one batch.

    Attributes:
        tensors: on the CPU, as the generator's `forward` takes them after latents and labels; N rows each.
        sources: (N,) str, pixel sha256 of the real picture that each sample is a change of.
    """

    tensors: tuple[Tensor, ...]
    sources: NDArray[np.str_]


class Content(Protocol):
    """Where the content of samples comes from."""

    def draw(self, label: int, n: int, seed: int) -> Given:
        """Content of a batch of `n` samples of `label`, the same for the same seed."""

    def view(self, images: Tensor, tensors: tuple[Tensor, ...]) -> Tensor:
        """What D is shown (N, C, S, S) of samples (N, C, H, W), as in the training; `tensors` on their device."""


class FreeContent:
    """Real pictures of other classes, jittered as they were in the training."""

    def __init__(self, scene: FreeScene, sha256: NDArray[np.str_]) -> None:
        """Keeps a scene on the CPU and the digests (n,) of its images."""
        self.scene = scene.for_sampling()
        self.sha256 = sha256

    def draw(self, label: int, n: int, seed: int) -> Given:
        """Sources (n, C, H, W) in [-1, 1], and (n,) bool, all False: none of them has the label."""
        chance = torch_generator(seed, "content")
        rows, same = self.scene.draw(torch.full((n,), label), chance)
        return Given((self.scene.reals(rows, chance), same), self.sha256[rows.numpy()])

    def view(self, images: Tensor, tensors: tuple[Tensor, ...]) -> Tensor:
        """The images as they are."""
        return self.scene.view(images, tensors)


class MaskedContent:
    """Fresh composites: real regions on plentiful backgrounds, or patches of the class's own images."""

    def __init__(self, train: TrainImages, sha256: NDArray[np.str_], regions: Regions, ranges: PasteRanges) -> None:
        """Keeps what composites are made of.

        Args:
            train: n training images; its `rows` count them from 0.
            sha256: (n,) their digests.
            regions: of these images.
            ranges: how far a region is changed.
        """
        self.train, self.sha256, self.regions, self.ranges = train, sha256, regions, ranges

    def draw(self, label: int, n: int, seed: int) -> Given:
        """Composites (n, C, H, W) in [-1, 1] and soft masks (n, 1, H, W) in [0, 1]; the sources are the backgrounds."""
        chance = numpy_generator(seed, "content")
        pool = compose_label(self.train, self.regions, label, n, self.ranges, chance)
        masks = torch.from_numpy(pool.masks).unsqueeze(1).float().div(255.0)  # (n, 1, H, W)
        return Given((unit_range(torch.from_numpy(pool.images)), masks), self.sha256[pool.background_rows])

    def view(self, images: Tensor, tensors: tuple[Tensor, ...]) -> Tensor:
        """Crops around the pasted regions."""
        return crop_around(images, tensors[1], crop_side(images.shape[2]))
