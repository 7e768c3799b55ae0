"""Links by what the pixels show: near-duplicates, runs of ids, and correlation of detail in other light.

Owns the calibration of `auto`: what likeness means is taken from pairs of one class that nothing connects, so
that handwritten digits, which are alike by nature, are not linked, and photographs of one tile are. Refuses
chains: where links of a calibrated method would put a large part of a class into one group, the weakest of
them are cut and the user is told.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from synthgen.config import GroupsSection
from synthgen.dataset.id_runs import IdRuns, find_runs, fixed_runs
from synthgen.dataset.likeness import (
    COARSE_SIZE,
    DETAIL_SIZE,
    Images,
    PairLikeness,
    Pairs,
    Scored,
    all_features,
    all_likely_pairs,
    unlike_pairs,
)
from synthgen.dataset.near_duplicates import find_copies

MAX_SWEPT = 25_000
MAX_DIRECT = 6_000
COARSE_SLACK = 0.3
LOWEST_CORRELATION = 0.75
HIGHEST_CORRELATION = 0.97
N_DEVIATIONS = 6.0
NEAR_SHARE = 0.7
MIN_UNLIKE = 20
CHAIN_IMAGES = 30
CHAIN_SHARE = 0.25
CHAIN_STEP = 0.02


@dataclass
class PixelLinks:
    """Links between distinct images.

    Attributes:
        links: method -> (P, 2) int64.
        warnings: what the user should know.
        settings: what `auto` was found to mean: `id_gap`, `correlation`, and `near_ids`, the correlation that
            suffices for near numbers.
    """

    links: dict[str, Pairs] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    settings: dict[str, float | int | None] = field(default_factory=dict)


def components(n_rows: int, pairs: Iterable[Pairs]) -> NDArray[np.int64]:
    """(n_rows,) int64 component of each row under the links of `pairs`, each (P, 2)."""
    links = np.concatenate([np.empty((0, 2), dtype=np.int64), *pairs])
    graph = coo_array((np.ones(len(links), dtype=np.int8), (links[:, 0], links[:, 1])), shape=(n_rows, n_rows))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


def link_by_pixels(
    *,
    images: Images,
    class_names: Sequence[str],
    sources: Sequence[str],
    pixel_sha256: Sequence[str],
    linked: NDArray[np.int64],
    section: GroupsSection,
) -> PixelLinks:
    """Links distinct images that show one object.

    All pairs are compared up to 25,000 images; beyond, only images with close perceptual hashes or neighbouring
    numbers are, and a warning says so.

    Args:
        images: (N, S, S, C) uint8.
        class_names, sources, pixel_sha256: N values.
        linked: (N,) component numbers of what is known to be one object already.
        section: prepare.groups.
    """
    result = PixelLinks()
    sweep = len(sources) <= MAX_SWEPT
    if not sweep:
        result.warnings.append(
            f"{len(sources)} images are over the {MAX_SWEPT} of which all pairs are compared: objects in other light "
            "or position are found by file numbers only; if there are such, give a group column or "
            "prepare.groups.id_pattern"
        )
    result.links["near_duplicates"] = find_copies(images, class_names, pixel_sha256, section, sweep=sweep)
    likeness = PairLikeness(images, "detail", DETAIL_SIZE, section.correlation_shift)
    linked = components(len(sources), [_chain(linked), result.links["near_duplicates"]])
    unlike = likeness.score(unlike_pairs(class_names, pixel_sha256, linked)).scores
    runs, chained = _runs(section, sources, likeness, unlike)
    guard = _ChainGuard(class_names, linked, result.warnings)
    guard.warn_of_copies(result.links["near_duplicates"])
    result.settings["id_gap"] = runs.gap
    result.links["id_runs"] = guard.cut(chained, "id_gap") if section.id_gap == "auto" else runs.pairs
    linked = components(len(sources), [_chain(linked), result.links["id_runs"]])
    guard.linked = linked
    # Calibrated once more: what the numbers connect no longer counts as unlike.
    unlike = likeness.score(unlike_pairs(class_names, pixel_sha256, linked)).scores
    threshold = correlation_threshold(section, images.shape[1], unlike)
    result.settings["correlation"] = threshold
    correlated = correlated_pairs(likeness, threshold, sweep=sweep)
    enough = _near_threshold(runs, unlike, threshold)
    result.settings["near_ids"] = enough
    near = near_numbers(runs, likeness, enough)
    if section.correlation == "auto":
        result.links["correlation"] = guard.cut(correlated, "correlation")
        guard.linked = components(len(sources), [_chain(linked), result.links["correlation"]])
        result.links["near_ids"] = guard.cut(near, "correlation")
    else:
        result.links["correlation"], result.links["near_ids"] = correlated.pairs, near.pairs
    return result


def _chain(component: NDArray[np.int64]) -> Pairs:
    """Links that give the components again."""
    order = np.argsort(component, kind="stable")
    pairs: Pairs = np.stack([order[:-1], order[1:]], axis=1)
    inside: Pairs = pairs[component[pairs[:, 0]] == component[pairs[:, 1]]]
    return inside


def _runs(
    section: GroupsSection, sources: Sequence[str], likeness: PairLikeness, unlike: NDArray[np.float32]
) -> tuple[IdRuns, Scored]:
    if section.id_gap == "auto":
        runs = find_runs(sources, likeness, unlike)
        return runs, likeness.score(runs.pairs)
    empty = np.empty((0, 2), dtype=np.int64)
    runs = IdRuns(None, empty, empty) if section.id_gap == "off" else fixed_runs(sources, section.id_gap)
    return runs, Scored(empty, np.empty(0, dtype=np.float32))


def correlation_threshold(section: GroupsSection, size: int, unlike: NDArray[np.float32]) -> float | None:
    """The correlation of detail from which two images show one object; None where it cannot tell.

    Under `auto`: six deviations above the median of unlike pairs, the deviation taken from their upper quartile (which
    a few pairs of one object among them do not move), at least 0.75, rounded up to a hundredth. Over 0.97,
    images of one class are too alike by nature.

    Args:
        section: prepare.groups.
        size: side of the images; below 32 there is too little detail for `auto`.
        unlike: correlations of pairs of one class that nothing connects.
    """
    if section.correlation == "off":
        return None
    if section.correlation != "auto":
        return section.correlation
    if size < DETAIL_SIZE or len(unlike) < MIN_UNLIKE:
        return None
    middle, upper = np.quantile(unlike, [0.5, 0.75])
    deviation = (upper - middle) / 0.6745
    threshold = float(np.ceil(100 * max(LOWEST_CORRELATION, middle + N_DEVIATIONS * deviation)) / 100)
    return threshold if threshold <= HIGHEST_CORRELATION else None


def correlated_pairs(likeness: PairLikeness, threshold: float | None, *, sweep: bool) -> Scored:
    """Pairs whose detail correlates by at least `threshold`; none without a threshold, or where `sweep` is off."""
    if threshold is None or not sweep:
        return Scored(np.empty((0, 2), dtype=np.int64), np.empty(0, dtype=np.float32))
    images, shift = likeness.images, likeness.shift
    if len(images) <= MAX_DIRECT:
        features = all_features(images, "detail", likeness.size)
        return all_likely_pairs(features, shift, threshold, "groups: correlation")
    # Many images: compare at 16 pixels first, and only what is half alike there at full detail.
    coarse = all_features(images, "coarse", COARSE_SIZE)
    candidates = all_likely_pairs(coarse, shift, threshold - COARSE_SLACK, "groups: correlation").pairs
    return likeness.score(candidates).at_least(threshold)


def _near_threshold(runs: IdRuns, unlike: NDArray[np.float32], threshold: float | None) -> float | None:
    """The correlation that suffices for near numbers: 70 % of the way from unlike pairs to `threshold`."""
    if threshold is None or runs.gap is None or len(unlike) < MIN_UNLIKE:
        return None
    low = float(np.quantile(unlike, 0.95))
    return low + NEAR_SHARE * (threshold - low)


def near_numbers(runs: IdRuns, likeness: PairLikeness, enough: float | None) -> Scored:
    """Pairs within a few gaps of each other whose detail correlates by at least `enough`; none where it is None."""
    if enough is None:
        return Scored(np.empty((0, 2), dtype=np.int64), np.empty(0, dtype=np.float32))
    return likeness.score(runs.near).at_least(enough)


class _ChainGuard:
    """Cuts the weakest links where they would put a large part of a class into one group."""

    def __init__(self, class_names: Sequence[str], linked: NDArray[np.int64], warnings: list[str]) -> None:
        self.names, self.labels = np.unique(np.asarray(class_names, dtype=np.str_), return_inverse=True)
        self.counts = np.bincount(self.labels)
        self.linked = linked
        self.warnings = warnings

    def cut(self, scored: Scored, setting: str) -> Pairs:
        """Links that are left once no group holds over 30 images and over a quarter of a class by them."""
        chained = self._chained(scored.pairs)
        if not chained:
            return scored.pairs
        kept = scored
        threshold = float(scored.scores.min())
        n_cut = 0
        while giants := self._chained(kept.pairs):
            threshold += CHAIN_STEP
            component = components(len(self.linked), [_chain(self.linked), kept.pairs])
            weak = np.isin(component[kept.pairs[:, 0]], list(giants)) & (kept.scores < threshold)
            n_cut += int(weak.sum())
            kept = Scored(kept.pairs[~weak], kept.scores[~weak])
        share = ", ".join(
            f"{n} of {self.counts[label]} of class {self.names[label]!r}" for label, n in chained.values()
        )
        self.warnings.append(
            f"prepare.groups.{setting}: auto would put {share} into one group; {n_cut} of {len(scored.pairs)} links, "
            "the weakest, were cut. If those images really show one object, say so with a group column or "
            f"prepare.groups.id_pattern; else set prepare.groups.{setting} to off"
        )
        return kept.pairs

    def warn_of_copies(self, pairs: Pairs) -> None:
        """Warns of copies of copies that fill a class; they are left together, for apart they would leak."""
        for label, count in self._chained(pairs).values():
            self.warnings.append(
                f"{count} of {self.counts[label]} images of class {str(self.names[label])!r} are near-duplicates of "
                "each other in a chain and stay in one group (frames of a film?)"
            )

    def _chained(self, pairs: Pairs) -> Mapping[int, tuple[int, int]]:
        """Component -> (label, images of it) for each group that is too large by these links."""
        if not len(pairs):
            return {}
        component = components(len(self.linked), [_chain(self.linked), pairs])
        grown = set(component[pairs[:, 0]].tolist())
        codes, n_images = np.unique(component * len(self.names) + self.labels, return_counts=True)
        giants = {}
        for code, count in zip(codes.tolist(), n_images.tolist(), strict=True):
            number, label = divmod(code, len(self.names))
            if number in grown and count > CHAIN_IMAGES and count > CHAIN_SHARE * self.counts[label]:
                giants[number] = (label, count)
        return giants
