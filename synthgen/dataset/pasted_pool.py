"""Composites: real regions of all classes on plentiful backgrounds.

For the classical arms `paste` and `paste_whole`, and what `translate_masked` starts from (gan.translation).

Owns which regions and backgrounds one training may use and how many composites each class gets. Every class gets
equally many, and every composite has a seam of the same shapes, so that a seam says nothing about the label: the class
of the backgrounds gets patches of its own without a region, a class without regions gets its own images, warped inside
such a patch where they stand. Refuses to choose rows: all that is handed in may be trained on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from synthgen.dataset.masks import MIN_PLENTIFUL, WeakMaskRules, weak_masks
from synthgen.dataset.pasting import DefectBank, PasteRanges, paste
from synthgen.errors import TrainingError

MAX_COMPOSITES = 4096
"""Of one training; where more are drawn, each is shown several times."""
MIN_FOUND = 0.5
CHANCE = 0.01
"""Weak masks of a class count where they are found in this share of its images, and so often by chance at most."""
SEMI_AXES = (0.35, 0.6)
CENTRE = (0.3, 0.7)
WHOLE_FEATHER = 1 / 10
"""`paste_whole`: half axes and centre of the ellipse, and width of its border, as shares of the side."""

Origin = Literal["masks", "weak masks", "none"]


@dataclass(frozen=True)
class PasteRules:
    """What all trainings of a paste arm share.

    Attributes:
        ranges: how far a region is changed.
        scarce: labels whose images are never backgrounds.
    """

    ranges: PasteRanges
    scarce: tuple[int, ...]


@dataclass(frozen=True)
class TrainImages:
    """The real images of one training: nothing else may become a region or a background.

    Attributes:
        images: (n, H, W, C) uint8.
        labels: (n,) int64.
        rows: (n,) int64, rows of the data set.
        masks: (n, H, W) bool, the user's; all False where there is none. None: no masks were given.
        groups: (n,) str, images of one object share it; None: every image is an object of its own.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    rows: NDArray[np.int64]
    masks: NDArray[np.bool_] | None = None
    groups: NDArray[np.str_] | None = None

    def of(self, chosen: NDArray[np.int64] | NDArray[np.bool_], masks: NDArray[np.bool_]) -> DefectBank:
        """The chosen images as regions, with `masks` (m, H, W) bool."""
        return DefectBank(self.images[chosen], masks, self.labels[chosen], self.rows[chosen])


@dataclass(frozen=True)
class Regions:
    """Regions of one training by label; labels without any have none here.

    Attributes:
        banks: label -> its regions.
        origins: label -> where they come from, for every occurring label but that of the backgrounds.
        background: label of the backgrounds.
    """

    banks: Mapping[int, DefectBank]
    origins: Mapping[int, Origin]
    background: int


@dataclass(frozen=True)
class PastedPool:
    """Composites of one training.

    Attributes:
        images: (m, H, W, C) uint8.
        masks: (m, H, W) uint8, opacity of what was pasted, 255 inside; the image is its background where it is 0.
        labels: (m,) int64, as many of each occurring label.
        region_rows, background_rows: (m,) int64 rows of the data set that each is made of.
    """

    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    labels: NDArray[np.int64]
    region_rows: NDArray[np.int64]
    background_rows: NDArray[np.int64]


def background_label(labels: NDArray[np.int64], scarce: Sequence[int]) -> int:
    """The label with the most images that is not scarce; the lower one of two that tie.

    Raises:
        TrainingError: every label is scarce.
    """
    counts = np.bincount(labels)
    counts[[k for k in scarce if k < len(counts)]] = 0
    if not counts.any():
        raise TrainingError(
            f"labels {np.unique(labels).tolist()} are all scarce, so that none gives backgrounds; leave a plentiful "
            "one out of plan.scarce, or remove paste and paste_whole from evaluate.arms"
        )
    return int(counts.argmax())


def find_regions(train: TrainImages, scarce: Sequence[int], rng: np.random.Generator) -> Regions:
    """Regions for the arm `paste`: the user's masks, or weak ones for classes without a mask in this training.

    A class has no regions where weak masks are found in fewer than `MIN_FOUND` of its images, or in so few that
    images of the plentiful class would show as many with a probability above `CHANCE` (binomial).

    Args:
        train: what may be looked at.
        scarce: labels that give no backgrounds.
        rng: for weak masks.
    Raises:
        TrainingError: every label is scarce.
    """
    background = background_label(train.labels, scarce)
    banks: dict[int, DefectBank] = {}
    origins: dict[int, Origin] = {}
    given = np.zeros(len(train.labels), dtype=np.bool_) if train.masks is None else train.masks.any(axis=(1, 2))
    unmarked = []
    for label in (int(k) for k in np.unique(train.labels) if k != background):
        chosen = np.flatnonzero((train.labels == label) & given)
        origins[label] = "masks" if len(chosen) else "none"
        if train.masks is not None and len(chosen):
            banks[label] = train.of(chosen, np.asarray(train.masks[chosen]))
        else:
            unmarked.append(label)
    good = np.flatnonzero(train.labels == background)
    if unmarked and len(good) >= MIN_PLENTIFUL:
        rows = np.flatnonzero(np.isin(train.labels, unmarked))
        rules = WeakMaskRules()
        groups = None if train.groups is None else train.groups[good]
        found = weak_masks(train.images[rows], train.images[good], rng, rules, groups)
        for label in unmarked:
            own = [(row, mask) for row, mask in zip(rows, found, strict=True) if train.labels[row] == label]
            kept = [(row, mask.pixels) for row, mask in own if mask is not None]
            by_chance = float(stats.binom.sf(len(kept) - 1, len(own), 1.0 - rules.quantile))
            if len(kept) >= MIN_FOUND * len(own) and by_chance <= CHANCE:
                banks[label] = train.of(np.array([row for row, _ in kept]), np.stack([pixels for _, pixels in kept]))
                origins[label] = "weak masks"
    return Regions(banks, origins, background)


def whole_regions(train: TrainImages, scarce: Sequence[int], n: int, rng: np.random.Generator) -> Regions:
    """Regions for the arm `paste_whole`: ellipses of random place and size, whatever they cover.

    Args:
        train: what may be used.
        scarce: labels that give no backgrounds.
        n: composites wanted; a region is made for each, and every image of a label gives equally many, up to one.
        rng: chooses images, places and sizes.
    Raises:
        TrainingError: every label is scarce.
    """
    background = background_label(train.labels, scarce)
    banks = {}
    labels = [int(k) for k in np.unique(train.labels) if k != background]
    n_each = _n_each(n, len(labels) + 1)
    for label in labels:
        chosen = _spread(np.flatnonzero(train.labels == label), n_each, rng)
        banks[label] = train.of(chosen, ellipses(n_each, train.images.shape[1:3], rng))
    return Regions(banks, dict.fromkeys(labels, "none"), background)


def ellipses(n: int, size: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.bool_]:
    """(n, H, W) bool: ellipses of random half axes (`SEMI_AXES`) and centre (`CENTRE`), none empty.

    Args:
        n: how many.
        size: H and W.
        rng: every random number comes from here.
    """
    height, width = size
    axes = rng.uniform(*SEMI_AXES, (n, 2, 1, 1))
    centres = rng.uniform(*CENTRE, (n, 2, 1, 1))
    ys, xs = np.mgrid[0:height, 0:width] + 0.5
    y, x = (ys / height - centres[:, 0]) / axes[:, 0], (xs / width - centres[:, 1]) / axes[:, 1]  # (n, H, W)
    inside: NDArray[np.bool_] = np.square(y) + np.square(x) <= 1.0
    return inside


def compose_pool(
    train: TrainImages, regions: Regions, n: int, ranges: PasteRanges, rng: np.random.Generator
) -> PastedPool:
    """Composites for every occurring label, equally many of each.

    Args:
        train: what regions and backgrounds are taken from.
        regions: of `find_regions` or `whole_regions`.
        n: composites wanted; up to `MAX_COMPOSITES` are made, at least one per label.
        ranges: how far a region is changed.
        rng: every random number comes from here.
    Returns:
        the composites, ordered by label.
    """
    labels = np.unique(train.labels)
    n_each = _n_each(n, len(labels))
    shapes = _shapes(regions, train.images.shape[1:3], rng)
    made = [_of_label(train, regions, int(label), n_each, shapes, ranges, rng) for label in labels]
    return PastedPool(
        np.concatenate([pool.images for pool in made]),
        np.concatenate([pool.masks for pool in made]),
        np.concatenate([pool.labels for pool in made]),
        np.concatenate([pool.region_rows for pool in made]),
        np.concatenate([pool.background_rows for pool in made]),
    )


def compose_label(
    train: TrainImages, regions: Regions, label: int, n: int, ranges: PasteRanges, rng: np.random.Generator
) -> PastedPool:
    """`n` composites of one label, as `compose_pool` makes them.

    Args:
        train, regions, ranges, rng: see `compose_pool`.
        label: wanted.
        n: composites wanted; all of them are made.
    Raises:
        TrainingError: no image of the label, or none to put its regions on.
    """
    needed = regions.background if label in regions.banks else label
    if not (train.labels == needed).any():
        raise TrainingError(
            f"label {label}: no training image of label {needed} to make composites of; leave the label out"
        )
    return _of_label(train, regions, label, n, _shapes(regions, train.images.shape[1:3], rng), ranges, rng)


def _of_label(
    train: TrainImages,
    regions: Regions,
    label: int,
    n: int,
    shapes: NDArray[np.bool_],
    ranges: PasteRanges,
    rng: np.random.Generator,
) -> PastedPool:
    if label in regions.banks:
        return _on_backgrounds(train, regions, label, n, ranges, rng)
    return _own_patches(train, regions, label, shapes[rng.integers(0, len(shapes), n)], ranges, rng)


def _n_each(n: int, n_labels: int) -> int:
    return -(-min(n, MAX_COMPOSITES) // n_labels)


def _shapes(regions: Regions, size: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.bool_]:
    """(m, H, W) bool: shapes of the regions, as often from each label; ellipses where there are no regions."""
    if not regions.banks:
        return ellipses(256, size, rng)
    most = max(len(bank.labels) for bank in regions.banks.values())
    return np.concatenate(
        [bank.masks[_spread(np.arange(len(bank.masks)), most, rng)] for bank in regions.banks.values()]
    )


def _on_backgrounds(
    train: TrainImages, regions: Regions, label: int, n: int, ranges: PasteRanges, rng: np.random.Generator
) -> PastedPool:
    bank = regions.banks[label]
    backgrounds = _spread(np.flatnonzero(train.labels == regions.background), n, rng)
    labels = np.full(n, label, dtype=np.int64)
    pasted = paste(train.images[backgrounds], bank, labels, rng, ranges)
    return PastedPool(pasted.images, pasted.masks, labels, bank.rows[pasted.bank_rows], train.rows[backgrounds])


def _own_patches(
    train: TrainImages,
    regions: Regions,
    label: int,
    shapes: NDArray[np.bool_],
    ranges: PasteRanges,
    rng: np.random.Generator,
) -> PastedPool:
    """Composites of a label without regions: seams of the same `shapes` (n, H, W), and nothing from another class.

    The class of the backgrounds takes patches from other images of its own. Any other class keeps each image and has
    it warped inside the shape where it stands: a patch from elsewhere could hide what the label is about.
    """
    n = len(shapes)
    own = np.flatnonzero(train.labels == label)
    backgrounds = _spread(own, n, rng)
    sources = backgrounds
    if label != regions.background:
        ranges = replace(ranges, anywhere=False, horizontal_flip=False, vertical_flip=False)
    elif len(own) > 1:
        at = np.searchsorted(own, backgrounds)
        sources = own[(at + rng.integers(1, len(own), n)) % len(own)]
    # a label of its own for each pair, so that `paste` puts every patch on the background that was chosen for it
    each = np.arange(n, dtype=np.int64)
    bank = DefectBank(train.images[sources], shapes, each, train.rows[sources])
    pasted = paste(train.images[backgrounds], bank, each, rng, ranges)
    labels = np.full(n, label, dtype=np.int64)
    return PastedPool(pasted.images, pasted.masks, labels, train.rows[sources], train.rows[backgrounds])


def _spread(rows: NDArray[np.int64], n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(n,) of `rows`, each equally often up to one, in random order."""
    rounds = -(-n // len(rows))
    chosen: NDArray[np.int64] = np.concatenate([rng.permutation(rows) for _ in range(rounds)])[:n]
    return chosen
