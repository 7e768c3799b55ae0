"""What a generator is given and what a discriminator sees: the difference between the kinds of game.

Owns one object per kind that the training loop asks for reals, for the generator's content, for D's view of fakes and
for a further loss of G. Image data stays on the device as uint8; every random number comes from the generator handed
in, and no object here changes once built, so an exact resume has nothing to restore. Touches no file.

- `NoiseScene`: latents and label alone.
- `MaskedScene`: composites with a pasted region; D sees a crop around the region, because with few objects a class the
  background would tell D the class (EXPERIMENTS.md, 3).
- `FreeScene`: a real picture of another class, changed where the network likes.
- `SuperResolutionScene`: a small version of a real picture.
"""

import copy
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from synthgen.config import TransformsSection
from synthgen.errors import TrainingError
from synthgen.gan.diffaugment import jitter_reals

MIN_CROP = 16
# a change of this size on [-1, 1] (13 grey levels) counts as half a changed pixel
_VISIBLE = 0.1


class Scene(Protocol):
    """One kind of game."""

    def reals(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """D's view (N, C, S, S) float32 in [-1, 1] of training rows (N,) int64, transforms of reals included."""

    def content(self, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """What G is given beside latents and labels (N,) int64."""

    def view(self, fakes: Tensor, content: tuple[Tensor, ...]) -> Tensor:
        """D's view (N, C, S, S) of G's images (N, C, H, W); gradients pass."""

    def penalty(self, fakes: Tensor, content: tuple[Tensor, ...]) -> Tensor:
        """() further loss of G; 0 for none."""


@dataclass(frozen=True)
class RealTransforms:
    """How reals are jittered before D sees them.

    Attributes:
        section: amplitudes that keep the label.
        strength: 0 to 1, factor on all of them.
        flip: mirror half of the images left to right.
    """

    section: TransformsSection
    strength: float
    flip: bool

    def jittered(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """(N, C, H, W) float32 in [-1, 1] to the same."""
        return jitter_reals(x, self.section, self.strength, generator, flip=self.flip)


def unit_range(images: Tensor) -> Tensor:
    """(N, H, W, C) uint8 to (N, C, H, W) float32 in [-1, 1], on the device of `images`."""
    return images.permute(0, 3, 1, 2).float().div(127.5).sub(1.0)


class LabelRows:
    """Random rows by label, drawn on the device without synchronisation."""

    def __init__(self, rows_by_label: list[Tensor]) -> None:
        """Keeps, for each label, the (n_k,) int64 rows that may be drawn for it; an empty one is never drawn from."""
        device = rows_by_label[0].device
        counts = torch.tensor([len(rows) for rows in rows_by_label], device=device)
        self.counts = counts  # (K,)
        self.starts = counts.cumsum(0) - counts  # (K,)
        self.rows = torch.cat(rows_by_label)  # (sum of n_k,)

    def draw(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """(N,) int64 labels to (N,) int64 rows, each drawn with equal chance among those of its label."""
        u = torch.rand(len(labels), generator=generator, device=labels.device)
        n = self.counts[labels]
        within = torch.minimum((u * n).long(), n - 1)  # float rounding may give n itself
        return self.rows[self.starts[labels] + within]


class NoiseScene:
    """Latents and label to image; D sees whole images."""

    def __init__(self, images: Tensor, transforms: TransformsSection, strength: float, flip: bool) -> None:
        """Keeps the training images (n, H, W, C) uint8 on the device of the training."""
        self.images = images
        self.transforms = RealTransforms(transforms, strength, flip)

    def reals(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Jittered rows, (N, C, H, W)."""
        return self.transforms.jittered(unit_range(self.images[rows]), generator)

    def content(self, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Nothing; no random number is drawn."""
        return ()

    def view(self, fakes: Tensor, content: tuple[Tensor, ...]) -> Tensor:
        """The images as they are."""
        return fakes

    def penalty(self, fakes: Tensor, content: tuple[Tensor, ...]) -> Tensor:
        """0."""
        return fakes.new_zeros(())


def crop_side(image_size: int) -> int:
    """Side of the crop that D sees: half the image, at least 16 px, and a size that a discriminator is made for."""
    return max(MIN_CROP, 16 if image_size == 28 else image_size // 2)


def crop_around(images: Tensor, masks: Tensor, side: int) -> Tensor:
    """Square crops around the centre of mass of each mask, moved inside the image where they would leave it.

    Args:
        images: (N, C, H, W) float; gradients pass.
        masks: (N, 1, H, W) float, at least 0; an empty one is cropped in the middle.
        side: of the crop, at most H and W.
    Returns:
        (N, C, side, side).
    """
    n, _, height, width = images.shape
    weight = masks.squeeze(1) + 1e-6  # (N, H, W)
    total = weight.sum((1, 2))  # (N,)
    ys = torch.arange(height, device=images.device, dtype=weight.dtype)
    xs = torch.arange(width, device=images.device, dtype=weight.dtype)
    centre_y = (weight.sum(2) * ys).sum(1) / total  # (N,)
    centre_x = (weight.sum(1) * xs).sum(1) / total  # (N,)
    top = (centre_y - (side - 1) / 2).round().long().clamp(0, height - side)
    left = (centre_x - (side - 1) / 2).round().long().clamp(0, width - side)
    reach = torch.arange(side, device=images.device)
    rows = (top[:, None] + reach)[:, :, None]  # (N, side, 1)
    columns = (left[:, None] + reach)[:, None, :]  # (N, 1, side)
    batch = torch.arange(n, device=images.device)[:, None, None]
    return images.permute(0, 2, 3, 1)[batch, rows, columns].permute(0, 3, 1, 2)  # (N, C, side, side)


@dataclass(frozen=True)
class CompositePool:
    """Composites made ahead of the training by `dataset.pasting.paste`, on the device.

    They are made once: pasting runs on the CPU while the training holds the device, a few thousand of them times fresh
    latents are never used up within a training, and a pool that is a function of a seed needs no place in a
    checkpoint.

    Attributes:
        images: (P, H, W, C) uint8, regions pasted on real images of plentiful classes.
        masks: (P, H, W) uint8, soft masks of the regions, 255 inside.
        labels: (P,) int64, classes of the regions.
    """

    images: Tensor
    masks: Tensor
    labels: Tensor


class MaskedScene:
    """A composite with a pasted region becomes a picture; D sees crops around the region.

    Reals are images with a mask: of the region that shows their class, or, where a class has none, of a place where a
    composite of that class has its patch, so that every class is made and D sees crops of one kind from all of them.
    """

    def __init__(
        self,
        images: Tensor,
        masks: Tensor,
        labels: Tensor,
        pool: CompositePool,
        transforms: RealTransforms,
        *,
        keep_weight: float = 0.0,
        n_labels: int | None = None,
    ) -> None:
        """Keeps the data and checks that they fit each other.

        Args:
            images: (n, H, W, C) uint8, the rows that have a mask; the loop's rows count here.
            masks: (n, H, W) uint8, 255 inside, soft or hard; none empty.
            labels: (n,) int64.
            pool: what G starts from.
            transforms: of reals.
            keep_weight: of the mean absolute change of the composite, so that its region stays recognisable.
            n_labels: labels that may be asked for; None: those of the pool. One without composites gets any.
        Raises:
            TrainingError: an image without a mask, or a label without a composite.
        """
        n_empty = int((masks.flatten(1).amax(1) == 0).sum())
        if n_empty:
            raise TrainingError(
                f"{n_empty} of {len(images)} images have an empty mask; give a mask or leave these images out"
            )
        without = sorted(set(labels.tolist()) - set(pool.labels.tolist()))
        if without:
            raise TrainingError(f"no composite was pasted for labels {without}; paste some for every label trained")
        self.images = images
        self.masks = masks
        self.pool = pool
        self.transforms = transforms
        self.keep_weight = keep_weight
        n_labels = n_labels or int(pool.labels.max()) + 1
        self.rows = LabelRows([(pool.labels == k).nonzero().squeeze(1) for k in range(n_labels)])

    @property
    def crop_size(self) -> int:
        """Side of D's view; D's `GanShape.image_size`."""
        return crop_side(int(self.images.shape[1]))

    def reals(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Crops (N, C, crop_size, crop_size) around each real's own mask, both jittered together."""
        both = torch.cat([self.images[rows], self.masks[rows].unsqueeze(3)], dim=3)  # (N, H, W, C + 1)
        moved = self.transforms.jittered(unit_range(both), generator)  # (N, C + 1, H, W)
        return crop_around(moved[:, :-1], moved[:, -1:] + 1.0, self.crop_size)

    def content(self, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Composites (N, C, H, W) in [-1, 1] and soft masks (N, 1, H, W) in [0, 1], drawn from the pool by label."""
        drawn = self.rows.draw(labels, generator)
        return unit_range(self.pool.images[drawn]), self.pool.masks[drawn].unsqueeze(1).float().div(255.0)

    def view(self, fakes: Tensor, content: tuple[Tensor, ...]) -> Tensor:
        """Crops (N, C, crop_size, crop_size) around the pasted region."""
        return crop_around(fakes, content[1], self.crop_size)

    def penalty(self, fakes: Tensor, content: tuple[Tensor, ...]) -> Tensor:
        """`keep_weight` times the mean absolute change inside the mask, per pixel of mask."""
        if self.keep_weight == 0.0:
            return fakes.new_zeros(())
        area = (content[1].sum() * fakes.shape[1]).clamp(min=1.0)
        return self.keep_weight * ((fakes - content[0]).abs() * content[1]).sum() / area


@dataclass(frozen=True)
class FreeWeights:
    """Weights of the free game's further losses.

    Attributes:
        sparsity: of the share of the picture that visibly changes.
        identity: of the mean absolute change of a picture that already has the label.
        identity_share: of a training batch made up of such pictures; D sees what comes of them as fakes too, which
            leaves the equilibrium (fakes distributed as reals) where it is.
    """

    sparsity: float = 1.0
    identity: float = 5.0
    identity_share: float = 0.125


class FreeScene:
    """A real picture of another class becomes one of the label; D sees whole images."""

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        source_labels: tuple[int, ...],
        transforms: RealTransforms,
        weights: FreeWeights,
        *,
        n_labels: int | None = None,
    ) -> None:
        """Keeps the data.

        Args:
            images: (n, H, W, C) uint8 training images of all classes.
            labels: (n,) int64.
            source_labels: plentiful classes whose images are changed; a label is never made from itself, so the only
                plentiful class is made from all others.
            transforms: of reals and of sources.
            weights: of the penalty.
            n_labels: labels that may be asked for; None: those that occur.
        Raises:
            TrainingError: no source image for a label, or an identity share outside [0, 0.5].
        """
        if not 0.0 <= weights.identity_share <= 0.5:
            raise TrainingError(f"identity_share {weights.identity_share} is outside 0 to 0.5; most rows must change")
        self.images = images
        self.transforms = transforms
        self.weights = weights
        n_labels = n_labels or int(labels.max()) + 1
        by_label = [(labels == k).nonzero().squeeze(1) for k in range(n_labels)]
        sources = []
        for k in range(len(by_label)):
            others = [s for s in range(len(by_label)) if s != k and len(by_label[s])]
            named = [s for s in others if s in source_labels]
            if not named and k not in source_labels and len(by_label[k]):
                raise TrainingError(
                    f"label {k} has no source image: source labels are {source_labels}; name a plentiful class"
                )
            if not others:
                raise TrainingError(f"label {k} is the only one; image to image needs pictures of another class")
            sources.append(torch.cat([by_label[s] for s in named or others]))
        self.same = LabelRows(by_label)
        self.others = LabelRows(sources)

    def for_sampling(self) -> "FreeScene":
        """The same scene whose content holds no picture of the label itself: for samples and monitors."""
        scene = copy.copy(self)
        scene.weights = replace(self.weights, identity_share=0.0)
        return scene

    def reals(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Jittered rows, (N, C, H, W)."""
        return self.transforms.jittered(unit_range(self.images[rows]), generator)

    def draw(self, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows (N,) int64 of the sources for labels (N,) int64, and which of them (N,) bool already have the label."""
        share = self.weights.identity_share
        same = torch.rand(len(labels), generator=generator, device=labels.device) < share
        return torch.where(same, self.same.draw(labels, generator), self.others.draw(labels, generator)), same

    def content(self, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Sources (N, C, H, W) in [-1, 1], and which of them (N,) bool already have the label."""
        rows, same = self.draw(labels, generator)
        return self.reals(rows, generator), same

    def view(self, fakes: Tensor, content: tuple[Tensor, ...]) -> Tensor:
        """The images as they are."""
        return fakes

    def penalty(self, fakes: Tensor, content: tuple[Tensor, ...]) -> Tensor:
        """Share of the picture that visibly changes, and change where none is wanted.

        A pixel's change d (mean over colours) counts as d / (d + 0.1): the soft mask as far as it can be seen. A mask
        that is open over content equal to the source costs nothing and does no harm.
        """
        source, same = content
        change = (fakes - source).abs().mean(1)  # (N, H, W)
        share = (change / (change + _VISIBLE)).mean((1, 2))  # (N,)
        is_same = same.to(fakes.dtype)
        identity = (change.mean((1, 2)) * is_same).sum() / is_same.sum().clamp(min=1.0)
        return self.weights.sparsity * share.mean() + self.weights.identity * identity


class SuperResolutionScene:
    """A small version of a real picture becomes the picture; D sees whole images.

    Trained on reduced reals, so it needs no sample of the first stage; at sampling time the content is those samples.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        low_size: int,
        transforms: RealTransforms,
        *,
        consistency: float = 10.0,
    ) -> None:
        """Keeps the data.

        Args:
            images: (n, H, W, C) uint8 training images.
            labels: (n,) int64.
            low_size: side of the small pictures; divides H.
            transforms: of reals and of the pictures that are made small.
            consistency: weight of the penalty.
        Raises:
            TrainingError: `low_size` does not divide the side.
        """
        side = int(images.shape[1])
        if not 0 < low_size < side or side % low_size:
            raise TrainingError(f"{low_size} px does not divide {side} px; choose a half or a quarter of it")
        self.images = images
        self.low_size = low_size
        self.transforms = transforms
        self.consistency = consistency
        self.rows = LabelRows([(labels == k).nonzero().squeeze(1) for k in range(int(labels.max()) + 1)])

    def reduced(self, images: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, low_size, low_size) by the mean over each square."""
        return functional.avg_pool2d(images, images.shape[2] // self.low_size)

    def reals(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Jittered rows, (N, C, H, W)."""
        return self.transforms.jittered(unit_range(self.images[rows]), generator)

    def content(self, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Small pictures (N, C, low_size, low_size) in [-1, 1] of random reals of each label."""
        return (self.reduced(self.reals(self.rows.draw(labels, generator), generator)),)

    def view(self, fakes: Tensor, content: tuple[Tensor, ...]) -> Tensor:
        """The images as they are."""
        return fakes

    def penalty(self, fakes: Tensor, content: tuple[Tensor, ...]) -> Tensor:
        """`consistency` times the mean absolute difference between the output made small and the input."""
        return self.consistency * functional.l1_loss(self.reduced(fakes), content[0])
