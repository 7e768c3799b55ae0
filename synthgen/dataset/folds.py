"""Which fold tests an image, remembered in folds.csv so that it never changes again.

Owns the assignment of groups to folds and folds.csv (`pixel_sha256,fold,role`, sorted). A known image keeps
its fold whatever is added; a group takes the fold of its known members; a new group goes where its
rarest class has the fewest groups. Refuses to move a known image: a new image that joins two groups
of different folds is an error that names it.
"""

import csv
import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from synthgen.errors import LeakError, PlanError

HEADER = ("pixel_sha256", "fold", "role")
FOLD_ROLES = ("pool", "surplus")
NAMED = 10


@dataclass(frozen=True)
class KnownImage:
    """What folds.csv remembers of one image: the fold that tests it, and whether it may be trained on (`pool`)."""

    fold: int
    role: str


def _hash(*parts: str | int) -> str:
    return hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).hexdigest()


def _known_fold(rows: list[int], pixel_sha256: Sequence[str], previous: Mapping[str, int], names: Sequence[str]) -> int:
    """Fold of a group's known members, -1 if there are none.

    Raises:
        LeakError: the known members stand in different folds.
    """
    by_fold: dict[int, list[str]] = defaultdict(list)
    for row in rows:
        if pixel_sha256[row] in previous:
            by_fold[previous[pixel_sha256[row]]].append(names[row])
    if len(by_fold) <= 1:
        return next(iter(by_fold), -1)
    new = sorted(names[row] for row in rows if pixel_sha256[row] not in previous)
    sides = "; ".join(f"f{fold}: {sorted(by_fold[fold])[0]}" for fold in sorted(by_fold))
    if new:
        shown = ", ".join(new[:NAMED])
        raise LeakError(
            f"new image {shown} shows the object of known images that stand in {len(by_fold)} different folds "
            f"({sides}); remove it, or draw all folds again with `synthgen plan --reassign` (a new experiment)"
        )
    raise LeakError(
        f"known images of one object stand in {len(by_fold)} different folds ({sides}): the grouping has changed "
        "since folds.csv was made. Undo the change of prepare.groups, or where id_gap or correlation is auto, pin it "
        "to the number in data/prepared/summary.json; else draw all folds again with `synthgen plan --reassign`"
    )


def assign_folds(
    groups: Sequence[str],
    strata: Sequence[str],
    pixel_sha256: Sequence[str],
    *,
    n_folds: int,
    previous: Mapping[str, int],
    seed: int,
    sources: Sequence[str] | None = None,
) -> NDArray[np.int64]:
    """Assigns every row's group to a fold, keeping what is known.

    New groups that hold several strata come first, then the others, each in the order of the hash of (seed, group); a
    group goes to the fold with the fewest groups of its rarest stratum, ties by the hash of (seed, group, fold).
    So on a fresh plan a stratum whose groups hold nothing else spreads within one group over the folds.

    Args:
        groups: N group ids.
        strata: N names of what is spread evenly: the class (and its role, under simulated scarcity).
        pixel_sha256: N digests by which images are remembered.
        n_folds: number of folds.
        previous: digest -> fold of images that were assigned before.
        seed: the run's seed; it changes ties and order only.
        sources: N names for messages; the digests if not given.
    Returns:
        (N,) int64 in [0, n_folds).
    Raises:
        LeakError: a group's known members stand in different folds.
        PlanError: a known fold is not below `n_folds`.
    """
    names = pixel_sha256 if sources is None else sources
    members: dict[str, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        members[group].append(row)
    held = {group: sorted({strata[row] for row in rows}) for group, rows in members.items()}
    n_groups = Counter(stratum for inside in held.values() for stratum in inside)
    counts: dict[str, list[int]] = {stratum: [0] * n_folds for stratum in n_groups}
    folds = np.full(len(groups), -1, dtype=np.int64)

    def place(group: str, fold: int) -> None:
        folds[members[group]] = fold
        for stratum in held[group]:
            counts[stratum][fold] += 1

    new = []
    for group in sorted(members):
        fold = _known_fold(members[group], pixel_sha256, previous, names)
        if fold >= n_folds:
            raise PlanError(
                f"folds.csv holds fold {fold}, but plan.folds is {n_folds}; set plan.folds back, or draw all folds "
                "again with `synthgen plan --reassign`"
            )
        if fold >= 0:
            place(group, fold)
        else:
            new.append(group)
    for group in sorted(new, key=lambda group: (len(held[group]) == 1, _hash(seed, "order", group))):
        rarest = min(held[group], key=lambda stratum: (n_groups[stratum], stratum))
        place(group, min(range(n_folds), key=lambda fold: (counts[rarest][fold], _hash(seed, group, fold))))
    return folds


def format_folds(known: Mapping[str, KnownImage]) -> str:
    """The text of folds.csv: sorted by digest, so that equal assignments give equal bytes."""
    lines = [",".join(HEADER), *(f"{sha},{image.fold},{image.role}" for sha, image in sorted(known.items()))]
    return "\n".join(lines) + "\n"


def read_folds(path: Path) -> dict[str, KnownImage]:
    """Reads folds.csv; an absent file is an empty memory.

    Returns:
        pixel sha256 -> what is remembered of the image.
    Raises:
        PlanError: the file is damaged, naming the line.
    """
    if not path.exists():
        return {}
    remedy = "restore it with git, or draw all folds again with `synthgen plan --reassign`"
    try:
        rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PlanError(f"{path} cannot be read ({error}); {remedy}") from error
    if not rows or tuple(rows[0]) != HEADER:
        raise PlanError(f"{path}: line 1 must be {','.join(HEADER)}; {remedy}")
    known: dict[str, KnownImage] = {}
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(HEADER) or not _is_digest(row[0]) or not row[1].isascii() or not row[1].isdigit():
            raise PlanError(
                f"{path}: line {number} is not a sha256, a fold and a role: {','.join(row)[:80]!r}; {remedy}"
            )
        if row[2] not in FOLD_ROLES or len(row[1]) > 4:
            raise PlanError(f"{path}: line {number}: fold {row[1][:9]} or role {row[2][:20]!r} is unknown; {remedy}")
        if row[0] in known:
            raise PlanError(f"{path}: line {number} repeats {row[0][:16]}; {remedy}")
        known[row[0]] = KnownImage(int(row[1]), row[2])
    return known


def _is_digest(text: str) -> bool:
    return len(text) == 64 and all(character in "0123456789abcdef" for character in text)
