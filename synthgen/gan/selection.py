"""Which candidates are good enough to be trained on, and when a whole class is refused.

Owns the rules; sees only features and probabilities of training images and candidates. Rejects what the teacher
does not take for its label and what copies a training image; refuses a class whose accepted images have
collapsed. Nothing is ranked by realism: ranking narrows a class to its middle.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from synthgen.config import SynthesizeSection

MAX_SPREAD = 2000
"""All pairs of more reals than this would fill the memory; evenly spaced ones tell their spread as well."""


@dataclass(frozen=True)
class Selection:
    """Outcome for one class.

    Attributes:
        accepted: (m,) int64 candidate indices in their order, at most the number wanted.
        nearest_real: (n,) float32, distance to the nearest training image of the class over the median such
            distance among those images themselves; 0 is a copy.
        n_judged: candidates looked at until enough were accepted.
        rejected: reason -> number among the judged.
        diversity_ratio: mean distance between accepted images over that between training images.
        refused: why the whole class is refused, or None.
    """

    accepted: NDArray[np.int64]
    nearest_real: NDArray[np.float32]
    n_judged: int
    rejected: dict[str, int]
    diversity_ratio: float
    refused: str | None


def mean_pairwise_distance(features: NDArray[np.float32]) -> float:
    """Mean Euclidean distance between different rows of (n, d) features; 0 for fewer than two rows."""
    n = len(features)
    if n < 2:
        return 0.0
    squares = np.square(features.astype(np.float64)).sum(1)
    distances = np.sqrt(np.maximum(squares[:, None] + squares[None, :] - 2.0 * features @ features.T, 0.0))
    np.fill_diagonal(distances, 0.0)
    return float(distances.sum() / (n * (n - 1)))


def nearest_distances(queries: NDArray[np.float32], reals: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n,) Euclidean distance of each query to its nearest real."""
    found, _ = NearestNeighbors(n_neighbors=1).fit(reals).kneighbors(queries)
    return np.asarray(found[:, 0], dtype=np.float32)


def typical_distance(reals: NDArray[np.float32]) -> float:
    """Median distance of a real to its nearest other real; 0 for fewer than two."""
    if len(reals) < 2:
        return 0.0
    found, _ = NearestNeighbors(n_neighbors=2).fit(reals).kneighbors(reals)
    return float(np.median(found[:, 1]))


def select_samples(
    candidates: NDArray[np.float32],
    agreement: NDArray[np.float32],
    reals: NDArray[np.float32],
    fallback_distance: float,
    section: SynthesizeSection,
    n_wanted: int,
) -> Selection:
    """Accepts candidates of one class, in their order.

    Args:
        candidates: (n, d) features of candidates.
        agreement: (n,) teacher's probability of the label.
        reals: (m, d) features of the class's training images, m >= 1.
        fallback_distance: typical distance over all classes, used where the class has too few images for its own.
        section: thresholds.
        n_wanted: stop after so many.
    Returns:
        the selection; `accepted` is empty where the class is refused.
    """
    scale = typical_distance(reals) or fallback_distance or 1.0
    nearest = (nearest_distances(candidates, reals) / scale).astype(np.float32)
    disagrees = agreement < section.min_agreement
    copies = ~disagrees & (nearest < section.min_nearest_ratio)
    good = np.flatnonzero(~disagrees & ~copies)[:n_wanted]
    n_judged = int(good[-1]) + 1 if len(good) == n_wanted else len(candidates)
    rejected = {"teacher_disagrees": int(disagrees[:n_judged].sum()), "copies_a_real": int(copies[:n_judged].sum())}
    spread = mean_pairwise_distance(reals[:: 1 + len(reals) // MAX_SPREAD])
    ratio = mean_pairwise_distance(candidates[good[:500]]) / spread if spread > 0.0 else 1.0
    refused = None
    least = max(2, round(section.min_accepted * n_wanted))
    if len(good) < least:
        refused = (
            f"only {len(good)} of {n_judged} candidates were accepted, {least} is the least (synthesize.min_accepted)"
        )
    elif ratio < section.min_diversity_ratio:
        refused = (
            f"collapsed: accepted images differ {ratio:.2f} times as much as reals do, the limit is "
            f"{section.min_diversity_ratio} (synthesize.min_diversity_ratio)"
        )
    accepted = good.astype(np.int64) if refused is None else good[:0].astype(np.int64)
    return Selection(accepted, nearest, n_judged, rejected, ratio, refused)
