"""Simulated scarcity: plentiful classes made scarce on purpose, so that the truth stays at hand.

Owns which images stay in the `pool`, which become `surplus` (tested, never trained on) and which are
dropped. Keeps whole groups, and keeps what was kept before: a new image takes no other image's place.
"""

import difflib
from collections import defaultdict
from collections.abc import Mapping, Sequence

from synthgen.config import ScarcitySection
from synthgen.errors import ConfigError

DROPPED = "dropped"


def nearest_name(name: str, known: Sequence[str]) -> str:
    """The name of `known` that looks most like `name`, as a hint in a message; empty if none is known."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return f"; did you mean {near[0]!r}?" if near else ""


def simulate_scarcity(
    section: ScarcitySection | None,
    class_names: Sequence[str],
    groups: Sequence[str],
    pixel_sha256: Sequence[str],
    previous: Mapping[str, str],
) -> list[str]:
    """Decides the role of each row: `pool`, `surplus` or `dropped`.

    Of each class in `section.keep`, groups stay in the pool as long as their images of the class fit into the
    kept number: first those whose images were in the pool before, then the others, each in the order of
    their smallest pixel sha256. Where not even one group fits, the first one stays whole. An image that joins a kept
    group at a later plan becomes surplus (it is tested in its group's fold).

    Args:
        section: what to keep, or None for no simulation.
        class_names, groups, pixel_sha256: N values, one per row.
        previous: pixel sha256 -> role at the last plan.
    Returns:
        N roles.
    Raises:
        ConfigError: a class of `section.keep` does not exist.
    """
    roles = ["pool"] * len(class_names)
    if section is None:
        return roles
    known = sorted(set(class_names))
    for class_name, n_keep in section.keep.items():
        if class_name not in known:
            hint = nearest_name(class_name, known)
            raise ConfigError(f"source.simulate_scarcity.keep: class {class_name!r} does not exist{hint}")
        members: dict[str, list[int]] = defaultdict(list)
        for row, name in enumerate(class_names):
            if name == class_name:
                members[groups[row]].append(row)
        for row in _surplus_rows(list(members.values()), n_keep, pixel_sha256, previous):
            roles[row] = "surplus" if section.surplus == "test" else DROPPED
    return roles


def _surplus_rows(
    members: list[list[int]], n_keep: int, pixel_sha256: Sequence[str], previous: Mapping[str, str]
) -> list[int]:
    before = [[row for row in rows if previous.get(pixel_sha256[row]) == "pool"] for rows in members]
    known = sorted((rows for rows in before if rows), key=lambda rows: min(pixel_sha256[row] for row in rows))
    new = sorted(
        (rows for rows, kept in zip(members, before, strict=True) if not kept),
        key=lambda rows: min(pixel_sha256[row] for row in rows),
    )
    pool: set[int] = set()
    # What joins a kept group later becomes surplus, else it would push another group out.
    for candidates in (known, new):
        for rows in candidates:
            if len(pool) + len(rows) <= n_keep:
                pool.update(rows)
        if candidates and not pool:
            pool.update(candidates[0])
    return [row for rows in members for row in rows if row not in pool]
