"""Groups: every image of one object, so that all of them stay on one side of every split.

Owns the joining of links from all methods (the user's group column, a name pattern, equal pixels,
near-duplicates, runs of ids, correlation) into groups, and the refusal
of a pre-split set whose sides share an object. What looks at pixels stands in `same_object`.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np

from synthgen.config import GroupsSection
from synthgen.dataset.likeness import Images, Pairs, Subset
from synthgen.dataset.same_object import components, link_by_pixels
from synthgen.errors import ConfigError, LeakError

GROUP_DIGITS = 16
NAMED = 10


@dataclass(frozen=True)
class Groups:
    """Which rows show one object.

    Attributes:
        ids: N group ids: the first 16 hex digits of the smallest pixel sha256 in the group.
        n_links: method -> number of links between different images that it found.
        warnings: what the user should know, one line each.
        settings: what `auto` was found to mean: `id_gap`, `correlation` and `near_ids` (the correlation that suffices
            for near numbers); None where the method found no footing.
    """

    ids: list[str]
    n_links: dict[str, int]
    warnings: list[str] = field(default_factory=list)
    settings: dict[str, float | int | None] = field(default_factory=dict)


def chain_equal(keys: Iterable[object]) -> Pairs:
    """(P, 2) int64 links that chain rows of equal key; a key of None links nothing."""
    last: dict[object, int] = {}
    pairs = []
    for row, key in enumerate(keys):
        if key is None:
            continue
        if key in last:
            pairs.append((last[key], row))
        last[key] = row
    return np.asarray(pairs, dtype=np.int64).reshape(-1, 2)


def named_objects(sources: Sequence[str], id_pattern: str | None) -> list[str | None]:
    """The object that each file name names: the first capture group of `id_pattern` on the stem, None without a match.

    Raises:
        ConfigError: the pattern is no regular expression, or has no capture group.
    """
    if id_pattern is None:
        return [None] * len(sources)
    try:
        pattern = re.compile(id_pattern)
    except re.error as error:
        raise ConfigError(f"prepare.groups.id_pattern {id_pattern!r} is not a regular expression: {error}") from error
    if pattern.groups < 1:
        raise ConfigError(
            f"prepare.groups.id_pattern {id_pattern!r} has no capture group; put parentheses around the part of "
            "the name that names the object"
        )
    matches = [pattern.search(PurePosixPath(source).stem) for source in sources]
    return [match.group(1) if match else None for match in matches]


def find_leaks(groups: Sequence[str], splits: Sequence[str | None], sources: Sequence[str]) -> list[tuple[int, int]]:
    """(row on the training side, row of the same group on the val or test side); one pair for each such training row.

    Where a group stands on `val` and `test` but not on `train`, the val row takes the training row's place.
    """
    by_group: dict[str, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        by_group[group].append(row)
    order = {"train": 0, None: 0, "val": 1, "test": 2}
    leaks = []
    for rows in by_group.values():
        ranked = [order[splits[row]] for row in rows]
        last = max(ranked)
        anchor = min(
            (row for row, rank in zip(rows, ranked, strict=True) if rank == last), key=lambda row: sources[row]
        )
        leaks += [(row, anchor) for row, rank in zip(rows, ranked, strict=True) if rank < last]
    return sorted(leaks)


def refuse_leaks(leaks: Sequence[tuple[int, int]], splits: Sequence[str | None], sources: Sequence[str]) -> None:
    """Refuses a pre-split set of which two sides show the same object.

    Raises:
        LeakError: naming up to ten pairs and the remedy.
    """
    if not leaks:
        return
    pairs = [f"{sources[row]} ({splits[row] or 'train'}) ~ {sources[other]} ({splits[other]})" for row, other in leaks]
    raise LeakError(
        f"the data come split, but {len(leaks)} images show an object of another side: {_listed(pairs)}. A score on "
        "such a test set is too good. Remove them, or set prepare.groups.leaks to quarantine (which leaves out the "
        "train and val copies and keeps the test set as it is). Where the images really differ, lower "
        "prepare.groups.perceptual_bits, or set prepare.groups.correlation or id_gap to off"
    )


def _listed(pairs: Sequence[str]) -> str:
    more = f"; and {len(pairs) - NAMED} more" if len(pairs) > NAMED else ""
    return "; ".join(pairs[:NAMED]) + more


def find_groups(
    images: Images,
    *,
    class_names: Sequence[str],
    sources: Sequence[str],
    pixel_sha256: Sequence[str],
    user_groups: Sequence[str | None],
    section: GroupsSection,
) -> Groups:
    """Finds the images that show one object.

    Args:
        images: (N, H, W, C) uint8, may be memory-mapped.
        class_names, sources, pixel_sha256: N values, one per row.
        user_groups: N values of the user's own group column, None where there is none.
        section: prepare.groups.
    Returns:
        Groups in row order.
    Raises:
        ConfigError: `section.id_pattern` cannot be used.
    """
    n_rows = len(sources)
    certain = {
        "group_column": chain_equal(user_groups),
        "name_pattern": chain_equal(named_objects(sources, section.id_pattern)),
        "equal_pixels": chain_equal(pixel_sha256),
    }
    first: dict[str, int] = {}
    for row, digest in enumerate(pixel_sha256):
        first.setdefault(digest, row)
    rows = np.asarray(list(first.values()), dtype=np.int64)
    found = link_by_pixels(
        images=images if len(rows) == n_rows else Subset(images, rows),
        class_names=[class_names[row] for row in rows],
        sources=[sources[row] for row in rows],
        pixel_sha256=[pixel_sha256[row] for row in rows],
        linked=components(n_rows, certain.values())[rows],
        section=section,
    )
    links = {**certain, **{method: rows[pairs] for method, pairs in found.links.items()}}
    component = components(n_rows, links.values())
    smallest: dict[int, str] = {}
    for row, digest in enumerate(pixel_sha256):
        number = int(component[row])
        smallest[number] = min(smallest.get(number, digest), digest)
    ids = [smallest[int(number)][:GROUP_DIGITS] for number in component]
    return Groups(ids, {method: len(pairs) for method, pairs in links.items()}, found.warnings, found.settings)
