"""Which candidates are good enough to be trained on, and when a whole class is refused.

Owns the rules; sees only features and probabilities of training images and candidates. Rejects what the teacher
does not take for its label and what copies a training image; where the thresholds ask for it also what is far from
every real, what lies outside of the reals' manifold and what the teacher is too sure of. Refuses a class whose accepted
images have collapsed. Nothing is ranked by realism: ranking narrows a class to its middle.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from synthgen.config import SynthesizeSection
from synthgen.metrics.coverage import sample_density

NEIGHBOURS = 5
"""Neighbours that the ball around a real reaches to (Naeem et al. 2020); fewer where the class has no more."""
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
        rejected: reason -> number among the judged; a sample that breaks several rules counts for the first. With the
            accepted they add up to `n_judged`. Rules that are off have no entry, but for the two that always had one.
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


def density_among(candidates: NDArray[np.float32], reals: NDArray[np.float32], scale: float) -> NDArray[np.float64]:
    """(n,) density of each candidate among the reals of its class: balls of reals that hold it, over k.

    Args:
        candidates: (n, d) and reals: (m, d) features, m >= 1.
        scale: radius of the ball around a real that has no other real to reach to.
    Returns:
        (n,) densities with k = min(5, m - 1), so the least above 0 is 1 / k: 1 for two reals (both balls reach to the
        other real), 0.2 for six and more. A class of one real has the one ball of radius `scale`.
    """
    k = min(NEIGHBOURS, len(reals) - 1)
    if k == 0:
        return (nearest_distances(candidates, reals) < scale).astype(np.float64)
    return sample_density(reals, candidates, k)


@dataclass(frozen=True)
class _Rule:
    """One reason to reject: which candidates break it, and the threshold in params.yaml."""

    reason: str
    threshold: str
    broken: NDArray[np.bool_]
    is_optional: bool = True


def _rules(
    candidates: NDArray[np.float32],
    agreement: NDArray[np.float32],
    reals: NDArray[np.float32],
    nearest: NDArray[np.float32],
    scale: float,
    section: SynthesizeSection,
) -> list[_Rule]:
    # The order says for which reason a sample counts; the two oldest stay first, since the gate reads their counts.
    rules = [
        _Rule("teacher_disagrees", "min_agreement", agreement < section.min_agreement, is_optional=False),
        _Rule("copies_a_real", "min_nearest_ratio", nearest < section.min_nearest_ratio, is_optional=False),
    ]
    if section.max_nearest_ratio is not None:
        rules.append(_Rule("far_from_reals", "max_nearest_ratio", nearest > section.max_nearest_ratio))
    if section.min_density > 0.0:
        thin = density_among(candidates, reals, scale) < section.min_density
        rules.append(_Rule("outside_manifold", "min_density", thin))
    if section.max_agreement < 1.0:
        rules.append(_Rule("too_easy", "max_agreement", agreement > section.max_agreement))
    return rules


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
    rules = _rules(candidates, agreement, reals, nearest, scale, section)
    broken = np.stack([rule.broken for rule in rules])  # (rules, n)
    good = np.flatnonzero(~broken.any(axis=0))[:n_wanted]
    n_judged = int(good[-1]) + 1 if len(good) == n_wanted else len(candidates)
    first = broken[:, :n_judged].argmax(axis=0)[broken[:, :n_judged].any(axis=0)]  # of each rejected one
    counts = np.bincount(first, minlength=len(rules))
    rejected = {rule.reason: int(count) for rule, count in zip(rules, counts, strict=True)}
    spread = mean_pairwise_distance(reals[:: 1 + len(reals) // MAX_SPREAD])
    ratio = mean_pairwise_distance(candidates[good[:500]]) / spread if spread > 0.0 else 1.0
    refused = None
    least = max(2, round(section.min_accepted * n_wanted))
    if len(good) < least:
        refused = (
            f"only {len(good)} of {n_judged} candidates were accepted, {least} is the least (synthesize.min_accepted)"
            + _left_out(rules, rejected)
        )
    elif ratio < section.min_diversity_ratio:
        refused = (
            f"collapsed: accepted images differ {ratio:.2f} times as much as reals do, the limit is "
            f"{section.min_diversity_ratio} (synthesize.min_diversity_ratio)" + _left_out(rules, rejected)
        )
    accepted = good.astype(np.int64) if refused is None else good[:0].astype(np.int64)
    return Selection(accepted, nearest, n_judged, rejected, ratio, refused)


def _left_out(rules: list[_Rule], rejected: dict[str, int]) -> str:
    # A class that only optional rules emptied is not the generator's fault: the reason names them and the way out.
    parts = [
        f"{rejected[rule.reason]} by synthesize.{rule.threshold}"
        for rule in rules
        if rule.is_optional and rejected[rule.reason]
    ]
    return f"; left out {', '.join(parts)}: loosen it or raise synthesize.oversample" if parts else ""
