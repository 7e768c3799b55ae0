"""Labelled images from a generator and named seeds; each can be made again.

Owns the rule (generator digest, seed, position) -> image: `seed` fixes a whole batch of latents and
`position` is the row in it, so that the arithmetic, and with it every last bit, is that of the first time. Image to
image, `seed` fixes the batch's content too, out of the fold's training images (`synthgen.gan.content`). Between reals,
`seed` fixes the points between anchors, which are handed in (`synthgen.gan.interpolation`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from synthgen.gan.architectures.interface import Discriminator, Generator
from synthgen.gan.content import Content
from synthgen.gan.interpolation import Anchors
from synthgen.gan.pixels import to_uint8
from synthgen.seeding import derive_seed


@dataclass(frozen=True)
class Sampled:
    """Images of one class with what is needed to make them again.

    Attributes:
        images: (n, H, W, C) uint8.
        seeds: (n,) int64; positions: (n,) int32.
        d_score: (n,) float32 discriminator logits.
        sources: (n,) str, pixel sha256 of the real picture that each was made from, or lies nearer to in latent space;
            None: made from noise.
    """

    images: NDArray[np.uint8]
    seeds: NDArray[np.int64]
    positions: NDArray[np.int32]
    d_score: NDArray[np.float32]
    sources: NDArray[np.str_] | None = None

    def take(self, chosen: NDArray[np.int64]) -> "Sampled":
        """The rows `chosen`, in that order."""
        sources = None if self.sources is None else self.sources[chosen]
        return Sampled(self.images[chosen], self.seeds[chosen], self.positions[chosen], self.d_score[chosen], sources)


def join_batches(parts: Sequence[Sampled]) -> Sampled:
    """One after the other; all of them have sources, or none."""
    sources = [part.sources for part in parts if part.sources is not None]
    return Sampled(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.seeds for part in parts]),
        np.concatenate([part.positions for part in parts]),
        np.concatenate([part.d_score for part in parts]),
        np.concatenate(sources) if sources else None,
    )


@torch.inference_mode()
def sample_batch(
    generator: Generator,
    label: int,
    seed: int,
    *,
    batch: int,
    truncation: float,
    device: torch.device,
    discriminator: Discriminator | None = None,
    content: Content | None = None,
    anchors: Anchors | None = None,
) -> Sampled:
    """One batch of one class.

    Args:
        generator: in eval mode on `device`.
        label: class to make.
        seed: names the batch of latents; drawn on the CPU, so that it is the same on every device.
        batch: number of images; part of what fixes the last bit.
        truncation: factor on the latents (`style`: on the distance from the mean style), in (0, 1]; below 1 trades
            variety for likeness.
        device: to compute on.
        discriminator: scores the images; None gives scores of 0.
        content: what an image-to-image generator starts from; None for one from noise.
        anchors: training images in latent space, between which latents are drawn; None: normal latents. Not for
            image-to-image generators, whose pictures a latent does not decide.
    Returns:
        the images in the order of their positions.
    """
    between = anchors.draw(batch, seed) if anchors is not None else None
    if between is not None:
        latents = between.latents
    else:
        latents = torch.randn(batch, generator.shape.latents, generator=torch.Generator().manual_seed(seed))
    labels = torch.full((batch,), label, device=device)
    generator.truncation = truncation
    given = content.draw(label, batch, seed) if content is not None else None
    tensors = tuple(tensor.to(device) for tensor in given.tensors) if given is not None else ()
    images = generator(latents.to(device), labels, *tensors)
    seen = content.view(images, tensors) if content is not None else images
    drawn_from = given or between
    scores = discriminator(seen, labels) if discriminator is not None else torch.zeros(batch)
    return Sampled(
        images=to_uint8(images),
        seeds=np.full(batch, seed, dtype=np.int64),
        positions=np.arange(batch, dtype=np.int32),
        d_score=scores.float().cpu().numpy(),
        sources=None if drawn_from is None else drawn_from.sources,
    )


def sample_images(
    generator: Generator,
    discriminator: Discriminator,
    label: int,
    n: int,
    *,
    seed: int,
    batch: int,
    truncation: float,
    device: torch.device,
    content: Content | None = None,
    anchors: Anchors | None = None,
) -> Sampled:
    """At least `n` candidates of one class, in whole batches.

    Args:
        seed: of this class, fold and pool; batch k has the seed derived from it and k.
        (others): see `sample_batch`.
    Returns:
        candidates in the order of their batches.
    """
    n_batches = max(1, -(-n // batch))
    parts = [
        sample_batch(
            generator,
            label,
            derive_seed(seed, "batch", k),
            batch=batch,
            truncation=truncation,
            device=device,
            discriminator=discriminator,
            content=content,
            anchors=anchors,
        )
        for k in range(n_batches)
    ]
    return join_batches(parts)
