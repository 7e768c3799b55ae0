"""Runs of ids: photographs of one object that were taken in a row and numbered in a row.

Owns reading the number from file names and, under `auto`, the gap up to which consecutive numbers mean
one object. Refuses to link on numbers alone: a gap is taken only as far as consecutive images are
far more alike than two images of one class that nothing connects.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from synthgen.dataset.likeness import PairLikeness, Pairs

MIN_LINKS = 20
MIN_SHARE_NUMBERED = 0.9
MIN_SHARE_ALIKE = 0.55
NEAR_GAPS = 5
MAX_PAIRS_MEASURED = 20_000

_NUMBER = re.compile(r"(\d{1,15})(?!.*\d)", re.ASCII)


@dataclass(frozen=True)
class IdRuns:
    """What the numbers in file names say.

    Attributes:
        gap: greatest difference of consecutive numbers that links, None where the numbers mean nothing.
        pairs: (P, 2) int64 links.
        near: (Q, 2) int64 pairs within five gaps: not linked, but a lower likeness suffices for them.
    """

    gap: int | None
    pairs: Pairs
    near: Pairs


def file_numbers(sources: Sequence[str]) -> NDArray[np.int64]:
    """(N,) int64: the last number in each file's stem; -1 where there is none."""
    found = [_NUMBER.search(PurePosixPath(source).stem) for source in sources]
    return np.asarray([int(match.group(1)) if match else -1 for match in found], dtype=np.int64)


def consecutive(numbers: NDArray[np.int64], scopes: Sequence[str]) -> tuple[Pairs, NDArray[np.int64]]:
    """(P, 2) rows that follow each other by number within a scope, and (P,) their differences."""
    codes = np.unique(np.asarray(scopes, dtype=np.str_), return_inverse=True)[1]
    order = np.lexsort((numbers, codes))
    order = order[numbers[order] >= 0]
    pairs = np.stack([order[:-1], order[1:]], axis=1)
    inside = codes[pairs[:, 0]] == codes[pairs[:, 1]]
    return pairs[inside], (numbers[pairs[:, 1]] - numbers[pairs[:, 0]])[inside]


def fixed_runs(sources: Sequence[str], gap: int) -> IdRuns:
    """Links consecutive numbers within `gap`, as the user says; numbers count across all folders."""
    numbers = file_numbers(sources)
    pairs, gaps = consecutive(numbers, [""] * len(sources))
    return IdRuns(gap, pairs[gaps <= gap], pairs_within(numbers, [""] * len(sources), gap * NEAR_GAPS))


def find_runs(sources: Sequence[str], likeness: PairLikeness, unlike: NDArray[np.float32]) -> IdRuns:
    """Finds out whether, and up to which gap, consecutive numbers mean one object.

    Numbers are read across all folders if nearly all are different, else within each folder. A
    pair counts as alike if it is above 95 % of unlike pairs. The gap is the one that maximises the number of alike
    pairs within it beyond 55 % of all pairs within it.

    Args:
        sources: N file names.
        likeness: measures pairs of rows.
        unlike: likeness of pairs of one class that nothing connects.
    """
    nothing = IdRuns(None, np.empty((0, 2), dtype=np.int64), np.empty((0, 2), dtype=np.int64))
    numbers = file_numbers(sources)
    if len(unlike) < MIN_LINKS or np.mean(numbers >= 0) < MIN_SHARE_NUMBERED:
        return nothing
    together = [""] * len(sources)
    apart = [str(PurePosixPath(source).parent) for source in sources]
    scopes = together if _all_different(numbers, together) else apart
    if not _all_different(numbers, scopes):
        return nothing
    pairs, gaps = consecutive(numbers, scopes)
    closest = np.argsort(gaps, kind="stable")[:MAX_PAIRS_MEASURED]
    pairs, gaps = pairs[closest], gaps[closest]
    alike = likeness.score(pairs).scores > np.quantile(unlike, 0.95)
    excess = np.cumsum(alike - MIN_SHARE_ALIKE)
    # Pairs of equal gap stand or fall together.
    last = np.flatnonzero(np.diff(gaps, append=np.iinfo(np.int64).max) > 0)
    if not len(last):
        return nothing
    best = int(last[np.argmax(excess[last])])
    if excess[best] <= 0 or best + 1 < MIN_LINKS:
        return nothing
    gap = int(gaps[best])
    everything, all_gaps = consecutive(numbers, scopes)
    return IdRuns(gap, everything[all_gaps <= gap], pairs_within(numbers, scopes, gap * NEAR_GAPS))


def runs_across(sources: Sequence[str], setting: int | str, gap: int | None) -> IdRuns:
    """What numbers say of two sets of files of which one was calibrated before.

    Args:
        sources: N file names of both sets.
        setting: `prepare.groups.id_gap`; a number holds across all folders, as the user says.
        gap: what `auto` was found to mean in the set that was calibrated. It holds for both sets only if nearly all
            numbers are different: else they were counted anew in the other set and mean nothing there.
    Returns:
        links, and near numbers for which a lower likeness suffices; a gap of None where numbers mean nothing.
    """
    if isinstance(setting, int):
        return fixed_runs(sources, setting)
    numbers, scopes = file_numbers(sources), [""] * len(sources)
    if setting == "off" or gap is None or not _all_different(numbers, scopes):
        empty = np.empty((0, 2), dtype=np.int64)
        return IdRuns(None, empty, empty)
    pairs, gaps = consecutive(numbers, scopes)
    return IdRuns(gap, pairs[gaps <= gap], pairs_within(numbers, scopes, gap * NEAR_GAPS))


def _all_different(numbers: NDArray[np.int64], scopes: Sequence[str]) -> bool:
    return len(set(zip(scopes, numbers.tolist(), strict=True))) >= MIN_SHARE_NUMBERED * len(numbers)


def pairs_within(numbers: NDArray[np.int64], scopes: Sequence[str], reach: int) -> Pairs:
    """(Q, 2) rows of one scope whose numbers differ by at most `reach`, up to 64 places apart in their order."""
    found = [np.empty((0, 2), dtype=np.int64)]
    codes = np.unique(np.asarray(scopes, dtype=np.str_), return_inverse=True)[1]
    order = np.lexsort((numbers, codes))
    order = order[numbers[order] >= 0]
    for step in range(1, min(64, len(order))):
        left, right = order[:-step], order[step:]
        near = (codes[left] == codes[right]) & (numbers[right] - numbers[left] <= reach)
        if not near.any():
            break
        found.append(np.stack([left[near], right[near]], axis=1))
    return np.concatenate(found)
