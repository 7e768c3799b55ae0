"""Near-duplicates: one photograph twice, after re-encoding, noise, a little other light or a small shift.

Owns the perceptual hash, the search for candidates that does not compare all pairs, and the confirmation on
pixels. Refuses pairs that merely look alike, as many handwritten ones do: a copy is far nearer than the
nearest other image of its class.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dct

from synthgen.config import GroupsSection
from synthgen.dataset.likeness import (
    COARSE_SIZE,
    PAIR_BATCH,
    Images,
    PairLikeness,
    Pairs,
    all_features,
    all_likely_pairs,
    view_images,
)

HASH_BITS = 64
HASH_SIDE = 32
HASH_BATCH = 1024
BUCKET_BLOCK = 2048
CLASS_SAMPLE = 256
MIN_CLASS_SAMPLE = 16
COARSE_SLACK = 0.03
COPY_RATIO = 0.4
LOWEST_COPY = 0.9
HIGHEST_COPY = 0.99

Hashes = NDArray[np.uint64]


def perceptual_hashes(images: Images) -> Hashes:
    """(N,) uint64: the 64 bits of imagehash's pHash for each image.

    Args:
        images: (N, S, S, C) uint8.
    Source: imagehash.phash (hash_size 8, highfreq_factor 4), computed for many images at once.
    """
    hashes = np.empty(len(images), dtype=np.uint64)
    for start in range(0, len(images), HASH_BATCH):
        batch = np.asarray(images[start : start + HASH_BATCH])
        small = np.stack([_hash_picture(image) for image in batch])  # (n, 32, 32)
        frequencies = dct(dct(small, axis=1), axis=2)[:, :8, :8].reshape(len(batch), HASH_BITS)
        bits = frequencies > np.median(frequencies, axis=1, keepdims=True)
        hashes[start : start + len(batch)] = np.packbits(bits, axis=1).view(">u8").ravel()
    return hashes


def _hash_picture(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).convert("L")
    return np.asarray(picture.resize((HASH_SIDE, HASH_SIDE), Image.Resampling.LANCZOS), dtype=np.float64)


def hash_candidates(hashes: Hashes, n_bits: int) -> Iterator[Pairs]:
    """Pairs whose hashes differ in at most `n_bits` bits, smaller row first, in pieces and each pair once.

    Two hashes that differ in b bits agree on at least one of b + 1 bands, so only rows that share a band are compared;
    a pair is reported by the first band that it shares.
    """
    edges = np.linspace(0, HASH_BITS, n_bits + 2).astype(int)
    masks = [np.uint64(((1 << int(high)) - 1) ^ ((1 << int(low)) - 1)) for low, high in pairwise(edges)]
    for number, mask in enumerate(masks):
        keys = hashes & mask
        order = np.argsort(keys, kind="stable")
        cuts = np.flatnonzero(np.diff(keys[order])) + 1
        for bucket in np.split(order, cuts):
            if len(bucket) > 1:
                yield from _within_bucket(hashes, np.sort(bucket), n_bits, masks[:number])


def _within_bucket(hashes: Hashes, bucket: NDArray[np.int64], n_bits: int, before: list[np.uint64]) -> Iterator[Pairs]:
    for first in range(0, len(bucket), BUCKET_BLOCK):
        left = bucket[first : first + BUCKET_BLOCK]
        for second in range(first, len(bucket), BUCKET_BLOCK):
            right = bucket[second : second + BUCKET_BLOCK]
            differences = hashes[left][:, None] ^ hashes[right][None, :]
            close = (np.bitwise_count(differences) <= n_bits) & (left[:, None] < right[None, :])
            for mask in before:
                close &= (differences & mask) != 0
            rows, columns = np.nonzero(close)
            if len(rows):
                yield np.stack([left[rows], right[columns]], axis=1)


def copy_thresholds(
    images: Images, class_names: Sequence[str], pixel_sha256: Sequence[str], likeness: PairLikeness
) -> NDArray[np.float32]:
    """(N,) float32: the correlation from which an image is a copy of another, by its class.

    In a sample of each class, the distance sqrt(2 - 2 r) of an image to its nearest other one is typical of different
    objects; a copy is nearer than 0.4 times its median, at r in [0.9, 0.99].
    """
    rows_of: dict[str, list[int]] = {}
    for row in sorted(range(len(class_names)), key=lambda row: pixel_sha256[row]):
        rows_of.setdefault(class_names[row], []).append(row)
    nearest: dict[str, float] = {}
    for name, rows in rows_of.items():
        distinct = list({pixel_sha256[row]: row for row in rows}.values())[:CLASS_SAMPLE]
        if len(distinct) >= MIN_CLASS_SAMPLE:
            features = view_images(images[np.asarray(distinct)], likeness.view, likeness.size)
            scored = all_likely_pairs(features, likeness.shift, -1.0, None)
            best = np.full(len(distinct), -1.0, dtype=np.float32)
            np.maximum.at(best, scored.pairs[:, 0], scored.scores)
            np.maximum.at(best, scored.pairs[:, 1], scored.scores)
            nearest[name] = float(np.median(np.sqrt(np.maximum(2 - 2 * best, 0))))
    typical = float(np.median(list(nearest.values()))) if nearest else 0.0
    by_class = {name: _copy_threshold(nearest.get(name, typical)) for name in rows_of}
    return np.asarray([by_class[name] for name in class_names], dtype=np.float32)


def _copy_threshold(nearest: float) -> float:
    return float(np.clip(1 - (COPY_RATIO * nearest) ** 2 / 2, LOWEST_COPY, HIGHEST_COPY))


def confirm_copies(
    images: Images, pairs: Pairs, thresholds: NDArray[np.float32], tolerance: float, likeness: PairLikeness
) -> Pairs:
    """The pairs that are copies: alike enough for their classes, and equal up to light and contrast within `tolerance`.

    Args:
        images: (N, S, S, C) uint8.
        pairs: (P, 2) int64 candidates.
        thresholds: (N,) from `copy_thresholds`; the higher one of a pair counts.
        tolerance: mean absolute difference of grey values, 0 to 255, left after brightness and contrast are fitted.
        likeness: measures pairs on grey images.
    """
    scored = likeness.score(pairs)
    needed = np.maximum(thresholds[pairs[:, 0]], thresholds[pairs[:, 1]])
    alike = scored.scores >= needed
    pairs, scores = pairs[alike], scored.scores[alike]
    kept = [np.empty((0, 2), dtype=np.int64)]
    for start in range(0, len(pairs), PAIR_BATCH):
        batch = pairs[start : start + PAIR_BATCH]
        spread = np.minimum(
            *(view_images(images[batch[:, side]], "grey", likeness.size).std(axis=(1, 2)) for side in (0, 1))
        )
        # After a least-squares fit the residual deviates by s * sqrt(1 - r^2), on average by 0.8 of that.
        left = 0.8 * spread * np.sqrt(np.maximum(1 - scores[start : start + PAIR_BATCH] ** 2, 0))
        kept.append(batch[left <= tolerance])
    return np.concatenate(kept)


def find_copies(
    images: Images,
    class_names: Sequence[str],
    pixel_sha256: Sequence[str],
    section: GroupsSection,
    *,
    sweep: bool,
) -> Pairs:
    """Finds near-duplicates among distinct images.

    Candidates are pairs with close perceptual hashes and, where `sweep` allows it, pairs that are alike at 16 pixels a
    side over small shifts (which the hash does not survive).

    Args:
        images: (N, S, S, C) uint8.
        class_names, pixel_sha256: N values.
        section: prepare.groups.
        sweep: whether all pairs may be compared, at low resolution.
    Returns:
        (P, 2) int64.
    """
    likeness = PairLikeness(images, "grey", HASH_SIDE, section.correlation_shift)
    thresholds = copy_thresholds(images, class_names, pixel_sha256, likeness)
    pieces = copy_candidates(images, float(thresholds.min()), section, sweep=sweep)
    found = [confirm_copies(images, pairs, thresholds, section.pixel_tolerance, likeness) for pairs in pieces]
    return np.unique(np.concatenate([np.empty((0, 2), dtype=np.int64), *found]), axis=0)


def copy_candidates(images: Images, lowest: float, section: GroupsSection, *, sweep: bool) -> Iterator[Pairs]:
    """Pairs that may be copies, in pieces; a pair may come twice.

    Args:
        images: (N, S, S, C) uint8.
        lowest: the lowest correlation that would make a pair a copy.
        section: prepare.groups.
        sweep: see `find_copies`.
    """
    yield from hash_candidates(perceptual_hashes(images), section.perceptual_bits)
    if sweep:
        coarse = all_features(images, "grey", COARSE_SIZE // 2 + 1)
        yield all_likely_pairs(
            coarse, section.correlation_shift, lowest - COARSE_SLACK, "groups: near-duplicates"
        ).pairs
