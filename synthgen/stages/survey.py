"""What the raw data hold: scanned, grouped, given roles and folds. `plan` writes it down, `prepare` checks it.

Owns the one rule that both stages share, so that a plan fits exactly if both would say the same.
"""

import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from synthgen.config import Config
from synthgen.dataset.folds import KnownImage, assign_folds
from synthgen.dataset.groups import find_groups, find_leaks, refuse_leaks
from synthgen.dataset.scan import QuarantineRow, Scan, scan_source
from synthgen.dataset.scarcity import DROPPED, simulate_scarcity
from synthgen.dataset.slugs import make_slugs
from synthgen.dataset.sources import open_source
from synthgen.errors import ConfigError, SourceError
from synthgen.lifeline import mark_token, own_mark, token_is_dead

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Survey:
    """One row per image that takes part; rows left out are in `quarantine` or were dropped by simulated scarcity.

    Attributes:
        scan: all scanned images and their facts.
        rows: (n,) int64 rows of `scan` that take part, in its order.
        groups, roles: n values, in the order of `rows`.
        folds: (n,) int64; -1 for images of the user's own val and test sides.
        class_names: in label order.
        slugs: class name -> slug.
        quarantine: files not used and why, sorted.
        n_links: grouping method -> number of links.
        grouping_settings: what `auto` was found to mean.
        warnings: what the user should know, one line each.
        frozen: whether the data come with a test side of their own.
    """

    scan: Scan
    rows: NDArray[np.int64]
    groups: list[str]
    roles: list[str]
    folds: NDArray[np.int64]
    class_names: list[str]
    slugs: dict[str, str]
    quarantine: list[QuarantineRow]
    n_links: dict[str, int]
    grouping_settings: dict[str, float | int | None]
    warnings: list[str]
    frozen: bool

    def column(self, values: Sequence[str]) -> list[str]:
        """`values` (one per scanned row) of the rows that take part."""
        return [values[row] for row in self.rows]

    @property
    def known(self) -> dict[str, KnownImage]:
        """What folds.csv has to remember."""
        sha256 = self.column(self.scan.pixel_sha256)
        return {
            digest: KnownImage(int(fold), role)
            for digest, fold, role in zip(sha256, self.folds, self.roles, strict=True)
            if fold >= 0
        }


@contextmanager
def scratch_folder(root: Path) -> Iterator[Path]:
    """A git-ignored folder below `root/.synthgen` that is removed at the end."""
    parent = root / ".synthgen" / "scan"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for left in parent.iterdir():
            if token_is_dead(left.name.partition("_")[0]):  # by a scan that was killed
                shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=parent, prefix=f"{mark_token(own_mark())}_") as folder:
            yield Path(folder)
    except OSError as error:
        raise SourceError(
            f"cannot scan the raw data with scratch space in {parent}: {error.strerror or error}; free space or make "
            "the folder writable, then run the same command again"
        ) from error


def survey_source(config: Config, root: Path, previous: Mapping[str, KnownImage], scratch: Path) -> Survey:
    """Scans the raw data and decides group, role and fold of every image.

    Args:
        config: params.yaml.
        root: the project folder.
        previous: what folds.csv remembers.
        scratch: folder for the scanned images; they stay readable while it exists.
    Raises:
        SourceError: nothing usable, or fewer than two classes.
        LeakError: one image with two labels, sides of a pre-split set that share an object, or a new
            image that joins two folds.
        ConfigError: a setting that names no class, or too few folds.
    """
    scan = scan_source(open_source(config.source, root, config.prepare), config.prepare, scratch / "images.npy")
    class_names = scan.classes
    if len(class_names) < 2:
        raise SourceError(
            f"{config.source.path}: {len(class_names)} class with usable images ({', '.join(class_names) or 'none'}); "
            "a classifier needs at least 2. Check source.type and source.path"
        )
    frozen = "test" in scan.splits
    if not frozen and config.plan.folds < 3:
        raise ConfigError(
            f"plan.folds is {config.plan.folds}, but a fold is tested on one part, validated on the next and trained "
            "on the rest: set it to 3 or more, or bring a test split of your own"
        )
    found = find_groups(
        scan.images,
        class_names=scan.class_names,
        sources=scan.sources,
        pixel_sha256=scan.pixel_sha256,
        user_groups=scan.user_groups,
        section=config.prepare.groups,
    )
    quarantine, warnings = list(scan.quarantine), list(found.warnings)
    splits = scan.splits
    if not frozen and "val" in splits:
        warnings.append(
            f"the data have a val side ({splits.count('val')} images) but no test side: both sides join the folds"
        )
        splits = [None] * len(splits)
    roles = _split_roles(splits)
    leaks = find_leaks(found.ids, splits, scan.sources)
    if config.prepare.groups.leaks == "refuse":
        refuse_leaks(leaks, splits, scan.sources)
    for row, other in leaks:
        roles[row] = DROPPED
        quarantine.append(QuarantineRow(scan.sources[row], "leak", f"shows the object of {scan.sources[other]}"))
    _simulate(config, scan, groups=found.ids, roles=roles, previous=previous, frozen=frozen)
    rows = np.flatnonzero(np.asarray(roles) != DROPPED).astype(np.int64)
    groups = [found.ids[row] for row in rows]
    kept_roles = [roles[row] for row in rows]
    folds = _assign(config, scan, rows=rows, groups=groups, roles=kept_roles, previous=previous)
    for warning in warnings:
        log.warning(warning)
    return Survey(
        scan=scan,
        rows=rows,
        groups=groups,
        roles=kept_roles,
        folds=folds,
        class_names=class_names,
        slugs=make_slugs(class_names),
        quarantine=sorted(quarantine, key=lambda row: (row.source, row.reason, row.detail)),
        n_links=found.n_links,
        grouping_settings=found.settings,
        warnings=warnings,
        frozen=frozen,
    )


def _split_roles(splits: Sequence[str | None]) -> list[str]:
    return [split if split in {"val", "test"} else "pool" for split in splits]


def _simulate(
    config: Config,
    scan: Scan,
    *,
    groups: Sequence[str],
    roles: list[str],
    previous: Mapping[str, KnownImage],
    frozen: bool,
) -> None:
    """Sets the roles of pool rows in place; where the user has a test side, surplus has no use and is dropped."""
    pool = [row for row, role in enumerate(roles) if role == "pool"]
    simulated = simulate_scarcity(
        config.source.simulate_scarcity,
        [scan.class_names[row] for row in pool],
        [groups[row] for row in pool],
        [scan.pixel_sha256[row] for row in pool],
        {digest: image.role for digest, image in previous.items()},
    )
    for row, role in zip(pool, simulated, strict=True):
        roles[row] = DROPPED if frozen and role == "surplus" else role


def _assign(
    config: Config,
    scan: Scan,
    *,
    rows: NDArray[np.int64],
    groups: Sequence[str],
    roles: Sequence[str],
    previous: Mapping[str, KnownImage],
) -> NDArray[np.int64]:
    inside = [i for i, role in enumerate(roles) if role in {"pool", "surplus"}]
    folds = np.full(len(rows), -1, dtype=np.int64)
    folds[inside] = assign_folds(
        [groups[i] for i in inside],
        [f"{scan.class_names[rows[i]]}/{roles[i]}" for i in inside],
        [scan.pixel_sha256[rows[i]] for i in inside],
        n_folds=config.plan.folds,
        previous={digest: image.fold for digest, image in previous.items()},
        seed=config.seed,
        sources=[scan.sources[rows[i]] for i in inside],
    )
    return folds


def count_groups(survey: Survey) -> dict[str, Counter[str]]:
    """Role -> class name -> number of groups."""
    names = survey.column(survey.scan.class_names)
    seen = set(zip(survey.roles, names, survey.groups, strict=True))
    counts: dict[str, Counter[str]] = {}
    for role, name, _ in seen:
        counts.setdefault(role, Counter())[name] += 1
    return counts


def count_test_groups(survey: Survey) -> dict[str, int]:
    """Class name -> groups that are tested: the user's test side, else pool and surplus over all folds together."""
    tested = {"test"} if survey.frozen else {"pool", "surplus"}
    names = survey.column(survey.scan.class_names)
    seen = {
        (name, group) for role, name, group in zip(survey.roles, names, survey.groups, strict=True) if role in tested
    }
    counts = Counter(name for name, _ in seen)
    return {name: counts[name] for name in survey.class_names}


def count_images(survey: Survey) -> dict[str, Counter[str]]:
    """Role -> class name -> number of images."""
    counts: dict[str, Counter[str]] = {}
    for role, name in zip(survey.roles, survey.column(survey.scan.class_names), strict=True):
        counts.setdefault(role, Counter())[name] += 1
    return counts
