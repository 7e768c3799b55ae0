"""How alike two photographs are: the highest correlation over small shifts, of grey or of high-passed images.

Owns the features and the two ways of comparing them: given pairs, and all pairs in blocks. Memory is
bounded by a block of `BLOCK` images against all others; refuses nothing, decides nothing.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from synthgen.progress import progress_bar

BLOCK = 1024
PAIR_BATCH = 512
STRIP = 8192
EMPTY_CONTRAST = 1e-2
COARSE_SIZE = 16
DETAIL_SIZE = 32
REFERENCE_SIZE = 64
N_NULL_IMAGES = 2500
N_NULL_NEIGHBOURS = 4

Floats = NDArray[np.float32]
Pairs = NDArray[np.int64]
View = Literal["grey", "detail", "coarse"]


class Images(Protocol):
    """(N, S, S, C) uint8 images that are read by rows: an array, a memory map or a `Subset`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, S, S, C)."""
        ...

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> NDArray[np.uint8]: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Subset:
    """Some rows of images that stay where they are."""

    images: Images
    rows: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, ...]:
        """As of an array that held these rows alone."""
        return (len(self.rows), *self.images.shape[1:])

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> NDArray[np.uint8]:
        return np.asarray(self.images[self.rows[rows]])

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Scored:
    """Pairs of rows with how alike they are.

    Attributes:
        pairs: (P, 2) int64.
        scores: (P,) float32 correlation in [-1, 1].
    """

    pairs: Pairs
    scores: Floats

    def at_least(self, threshold: float) -> "Scored":
        """The pairs that reach `threshold`."""
        chosen = self.scores >= threshold
        return Scored(self.pairs[chosen], self.scores[chosen])


def pool(images: Floats, size: int) -> Floats:
    """(N, S, S) float32 averaged down by halves while that leaves at least `size` pixels a side."""
    while images.shape[1] // 2 >= size and images.shape[1] % 2 == 0:
        n, side, _ = images.shape
        images = images.reshape(n, side // 2, 2, side // 2, 2).mean(axis=(2, 4), dtype=np.float32)
    return images


def view_images(images: NDArray[np.uint8], view: View, size: int) -> Floats:
    """Grey images, or their detail: without what a blur of a 16th of the side leaves, and without each column's mean.

    The detail of one object stays alike under other light; streaks that every object has are gone.

    Args:
        images: (N, S, S, C) uint8.
        view: `grey`, `detail`, or `coarse`: the detail at 32 pixels, averaged down after it was taken.
        size: averaged down by halves while that leaves at least `size` pixels a side.
    Returns:
        (N, s, s) float32.
    """
    if view == "coarse":
        return pool(view_images(images, "detail", DETAIL_SIZE), size)
    grey = pool(images.astype(np.float32).mean(axis=3), size)
    if view == "grey":
        return grey
    sigma = grey.shape[1] / 16
    blurred = gaussian_filter1d(gaussian_filter1d(grey, sigma, axis=1), sigma, axis=2)
    detail: Floats = grey - blurred
    detail -= detail.mean(axis=1, keepdims=True)
    return detail


def all_features(images: Images, view: View, size: int) -> Floats:
    """`view_images` of all images, made in blocks: (N, s, s) float32."""
    blocks = [view_images(images[start : start + BLOCK], view, size) for start in range(0, len(images), BLOCK)]
    return np.concatenate(blocks)


def scaled_shift(shift: int, size: int) -> int:
    """`shift` is given in pixels at a side of 64; below a side of 12 a shift is too large a part of the picture."""
    return (shift * size + REFERENCE_SIZE // 2) // REFERENCE_SIZE if size >= 12 else 0


def _window(features: Floats, margin: int, down: int, right: int) -> Floats:
    """(N, D) float32 unit vectors of the inner part, moved by (down, right)."""
    n, side, _ = features.shape
    inner = features[:, margin + down : side - margin + down, margin + right : side - margin + right]
    flat = inner.reshape(n, -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(flat, axis=1, keepdims=True)
    # An empty picture is like none, not like every other: its vector stays zero.
    unit: Floats = np.divide(flat, norms, out=np.zeros_like(flat), where=norms > EMPTY_CONTRAST * flat.shape[1] ** 0.5)
    return unit


def _moves(margin: int) -> list[tuple[int, int]]:
    steps = range(-margin, margin + 1)
    return [(down, right) for down in steps for right in steps]


class PairLikeness:
    """Likeness of given pairs, with features made from the images as they are needed."""

    def __init__(self, images: Images, view: View, size: int, shift: int) -> None:
        self.images = images
        self.view: View = view
        self.size = size
        self.shift = shift

    def score(self, pairs: Pairs) -> Scored:
        """Scores (P, 2) pairs of rows: the picture of the smaller row is moved over the other one's inner part."""
        pairs = np.sort(pairs, axis=1)
        scores = np.zeros(len(pairs), dtype=np.float32)
        for start in range(0, len(pairs), PAIR_BATCH):
            rows, places = np.unique(pairs[start : start + PAIR_BATCH], return_inverse=True)
            features = view_images(self.images[rows], self.view, self.size)
            places = places.reshape(-1, 2)
            scores[start : start + PAIR_BATCH] = _best_of_moves(
                features[places[:, 0]], features[places[:, 1]], self.shift
            )
        return Scored(pairs, scores)


def _best_of_moves(moved: Floats, other: Floats, shift: int) -> Floats:
    """(n,) highest correlation of windows of `moved` with the inner part of `other`, both (n, s, s)."""
    n, side, _ = moved.shape
    margin = scaled_shift(shift, side)
    inner = side - 2 * margin
    fixed = _window(other, margin, 0, 0).reshape(n, inner, inner)
    centred = moved - moved.mean(axis=(1, 2), keepdims=True)
    sums = _box_sums(centred.astype(np.float64), inner)
    squares = _box_sums(centred.astype(np.float64) ** 2, inner)
    norms = np.sqrt(np.maximum(squares - sums**2 / inner**2, 0))  # (n, 2 margin + 1, 2 margin + 1)
    best = np.full(n, -1.0, dtype=np.float32)
    for down, right in np.ndindex(norms.shape[1:]):
        # `fixed` has mean zero, so the window's own mean drops out of the product.
        window = centred[:, down : down + inner, right : right + inner]
        products = np.einsum("nij,nij->n", window, fixed)
        norm = norms[:, down, right]
        alike = np.divide(products, norm, out=np.zeros(n), where=norm > EMPTY_CONTRAST * inner)
        np.maximum(best, alike.astype(np.float32), out=best)
    return best


def _box_sums(values: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Sums over every window of `side` by `side`, for (n, s, s) values: (n, s - side + 1, s - side + 1)."""
    total = np.pad(values, ((0, 0), (1, 0), (1, 0))).cumsum(axis=1).cumsum(axis=2)
    rows = total[:, side:] - total[:, :-side]
    result: NDArray[np.float64] = rows[:, :, side:] - rows[:, :, :-side]
    return result


def all_likely_pairs(features: Floats, shift: int, threshold: float, description: str | None) -> Scored:
    """All pairs of rows that reach `threshold`, from a sweep in blocks over the upper triangle.

    Args:
        features: (N, s, s) float32 from `view_images`.
        shift: pixels at a side of 64.
        threshold: lowest correlation to report.
        description: what the progress bar says; None for no bar.
    Returns:
        Pairs with the smaller row first, sorted.
    """
    found = list(_sweep(features, scaled_shift(shift, features.shape[1]), threshold, description))
    if not found:
        return Scored(np.empty((0, 2), dtype=np.int64), np.empty(0, dtype=np.float32))
    pairs = np.concatenate([scored.pairs for scored in found])
    scores = np.concatenate([scored.scores for scored in found])
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    return Scored(pairs[order], scores[order])


def _sweep(features: Floats, margin: int, threshold: float, description: str | None) -> Iterator[Scored]:
    n_rows = len(features)
    blocks = [
        (first, second) for first in range(0, n_rows, BLOCK) for second in range(first - first % STRIP, n_rows, STRIP)
    ]
    with progress_bar(description, len(blocks)) if description and len(blocks) > 1 else nullcontext() as advance:
        for first, second in blocks:
            moved = features[first : first + BLOCK]
            other = _window(features[second : second + STRIP], margin, 0, 0).T
            best = np.full((len(moved), other.shape[1]), -1.0, dtype=np.float32)
            for move in _moves(margin):
                np.maximum(best, _window(moved, margin, *move) @ other, out=best)
            rows, columns = np.nonzero(best >= threshold)
            rows, columns = rows + first, columns + second
            upper = rows < columns
            if upper.any():
                found = np.stack([rows[upper], columns[upper]], axis=1)
                yield Scored(found, best[found[:, 0] - first, found[:, 1] - second])
            if advance is not None:
                advance()


def unlike_pairs(class_names: Sequence[str], pixel_sha256: Sequence[str], exclude: NDArray[np.int64]) -> Pairs:
    """Pairs of one class that nothing has linked: what likeness looks like among different objects.

    The images with the smallest digests, each with its next neighbours in that order within the class: one image
    more changes a few pairs only, so that thresholds taken from them hold still.

    Args:
        class_names, pixel_sha256: N values.
        exclude: (N,) component numbers; pairs inside a component are left out.
    Returns:
        (P, 2) int64.
    """
    chosen = sorted(range(len(pixel_sha256)), key=lambda row: pixel_sha256[row])[:N_NULL_IMAGES]
    by_class: dict[str, list[int]] = {}
    for row in chosen:
        by_class.setdefault(class_names[row], []).append(row)
    pairs = [
        (rows[i], rows[i + step])
        for rows in by_class.values()
        for step in range(1, N_NULL_NEIGHBOURS + 1)
        for i in range(len(rows) - step)
        if exclude[rows[i]] != exclude[rows[i + step]]
    ]
    return np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
