"""Unlabelled images of the user: which of them may be used, and how they lie beside the prepared set.

Owns `data/prepared/unlabelled/` (docs/schema.md) and the rule that no picture is used that the automatic links find to
show an object of a labelled image: that image may be a test image, and whoever trained on its copy would be tested on
what it has seen. What those links cannot see, the user's own groups above all, stays; a warning says so.
Links are those of `synthgen.dataset.groups` with the thresholds that were found on the labelled images; where they
chain, all of the chain is dropped, also where `auto` cut such a chain among the labelled images: there no folds could
be made of one giant group, while here a link too many costs images that nobody tests on, and one too few leaves a
view of a test image. Refuses more images than can be compared with each other.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from synthgen.artifacts import canonical_json, digest_of, read_json
from synthgen.config import GroupsSection
from synthgen.dataset.groups import chain_equal, named_objects
from synthgen.dataset.id_runs import IdRuns, runs_across
from synthgen.dataset.likeness import DETAIL_SIZE, Images, PairLikeness, Pairs, Subset
from synthgen.dataset.near_duplicates import HASH_SIDE, confirm_copies, copy_candidates, copy_thresholds
from synthgen.dataset.prepared import pixel_sha256
from synthgen.dataset.raw import QuarantineRow
from synthgen.dataset.same_object import MAX_SWEPT, components, correlated_pairs, near_numbers
from synthgen.dataset.scan import Scan
from synthgen.errors import ArtifactError, SourceError

FOLDER = "unlabelled"
INDEX_FILE = "unlabelled.index.json"
"""Beside the indexes of the classes; no slug has a dot, so it cannot be taken for one."""
COPY_ROWS = 1024
LEAK_REASONS = {
    "labelled_copy": "the same picture as a labelled image, or nearly",
    "labelled_object": "shows an object of a labelled image",
    "unlabelled_copy": "the same picture as another unlabelled image, or nearly",
}
MANIFEST_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("source", pa.string()),
        ("file_sha256", pa.string()),
        ("pixel_sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("mode", pa.string()),
    ]
)


@dataclass(frozen=True)
class Joined:
    """Two sets of images as one, each left where it is: rows of `first`, then rows of `second`."""

    first: Images
    second: Images

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, S, S, C) of both together."""
        return (len(self), *self.first.shape[1:])

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> NDArray[np.uint8]:
        wanted = np.arange(len(self))[rows]
        out = np.empty((len(wanted), *self.first.shape[1:]), dtype=np.uint8)
        inside = wanted < len(self.first)
        out[inside] = self.first[wanted[inside]]
        out[~inside] = self.second[wanted[~inside] - len(self.first)]
        return out

    def __len__(self) -> int:
        return len(self.first) + len(self.second)


@dataclass(frozen=True)
class Usable:
    """Which unlabelled images may be used.

    Attributes:
        rows: (m,) int64 rows of the scan, in the order of their pixel digests.
        dropped: the others, with a reason of `LEAK_REASONS` and the image that decided.
        warnings: which links of labelled images could not be drawn to unlabelled ones, one line each.
    """

    rows: NDArray[np.int64]
    dropped: list[QuarantineRow]
    warnings: list[str] = field(default_factory=list)


def find_usable(
    labelled: Scan, unlabelled: Scan, section: GroupsSection, settings: Mapping[str, float | int | None]
) -> Usable:
    """Drops every unlabelled image that links to what a labelled one shows, and copies among the rest.

    Args:
        labelled: all scanned labelled images, of every role, those left out of the folds too.
        unlabelled: scanned with the same settings.
        section: prepare.groups.
        settings: what `auto` was found to mean on the labelled images (`Groups.settings`).
    Returns:
        what is left, why the others are not, and which links could not be drawn.
    Raises:
        SourceError: more images than all pairs of are compared, so that a copy could stay hidden.
        ConfigError: `section.id_pattern` cannot be used.
    """
    left, dropped = _drop_equal(labelled, unlabelled)
    n_labelled, n_all = len(labelled.sources), len(labelled.sources) + len(left)
    if n_all > MAX_SWEPT:
        raise SourceError(
            f"source.unlabelled: {len(left)} different images beside {n_labelled} labelled ones are over the "
            f"{MAX_SWEPT} of which all pairs are compared, so that a test image among them could stay hidden; leave at "
            f"most {max(0, MAX_SWEPT - n_labelled)} there"
        )
    sources = [*labelled.sources, *(unlabelled.sources[row] for row in left)]
    images = Joined(labelled.images, Subset(unlabelled.images, left))
    copies = _copies(images, labelled, section)
    runs = runs_across(sources, section.id_gap, _whole(settings.get("id_gap")))
    component = components(n_all, [copies, *_object_links(images, sources, n_labelled, runs, section, settings)])
    shown: dict[int, str] = {}
    for number, source in zip(component[:n_labelled].tolist(), labelled.sources, strict=True):
        shown.setdefault(number, source)  # sorted by name: the first of each object
    near = {int(b): sources[a] for a, b in copies[::-1] if a < n_labelled}
    kept: list[int] = []
    for row in range(n_labelled, n_all):
        source = sources[row]
        if row in near:
            dropped.append(QuarantineRow(source, "labelled_copy", f"a near copy of {near[row]}"))
        elif int(component[row]) in shown:
            dropped.append(
                QuarantineRow(source, "labelled_object", f"shows the object of {shown[int(component[row])]}")
            )
        else:
            kept.append(row)
    kept, more = _drop_copies(kept, copies, sources)
    rows = left[np.asarray(kept, dtype=np.int64) - n_labelled]
    return Usable(rows, sorted([*dropped, *more]), _missing_links(labelled, runs, section, settings))


def _missing_links(
    labelled: Scan, runs: IdRuns, section: GroupsSection, settings: Mapping[str, float | int | None]
) -> list[str]:
    """A line for each kind of link among labelled images that says nothing of unlabelled ones."""
    warnings = []
    n_grouped = sum(group is not None for group in labelled.user_groups)
    if n_grouped:
        warnings.append(
            f"source.unlabelled: {n_grouped} labelled images have a group of your own, and unlabelled images have "
            "none: one of them that shows such an object is found only by name pattern, numbers or pixels, else used, "
            "though the object may be tested on. Leave no picture of a labelled object in the folder, or set "
            "prepare.groups.id_pattern"
        )
    if section.id_gap == "auto" and settings.get("id_gap") is not None and runs.gap is None:
        warnings.append(
            f"source.unlabelled: among labelled images file numbers within {settings['id_gap']} mean one object, but "
            "over labelled and unlabelled images together fewer than 90 % of the numbers are different, so they link "
            "no unlabelled image. If the numbers hold across both, set prepare.groups.id_gap to that gap; else leave "
            "no picture of a labelled object in the folder"
        )
    return warnings


def _drop_equal(labelled: Scan, unlabelled: Scan) -> tuple[NDArray[np.int64], list[QuarantineRow]]:
    """Rows in the order of their pixel digests without equal files or pixels, and the rows that were dropped."""
    known = {
        digest: source
        for digests in (labelled.pixel_sha256, labelled.file_sha256)
        for digest, source in zip(reversed(digests), reversed(labelled.sources), strict=True)
    }
    first: dict[str, str] = {}
    kept, dropped = [], []
    for row in sorted(range(len(unlabelled.sources)), key=lambda row: (unlabelled.pixel_sha256[row], row)):
        source, pixels = unlabelled.sources[row], unlabelled.pixel_sha256[row]
        other = known.get(pixels) or known.get(unlabelled.file_sha256[row])
        if other is not None:
            dropped.append(QuarantineRow(source, "labelled_copy", f"equals {other}"))
        elif pixels in first:
            dropped.append(QuarantineRow(source, "unlabelled_copy", f"equals {first[pixels]}"))
        else:
            first[pixels] = source
            kept.append(row)
    return np.asarray(kept, dtype=np.int64), dropped


def _copies(images: Joined, labelled: Scan, section: GroupsSection) -> Pairs:
    """(P, 2) near copies with an unlabelled image in them, smaller row first.

    A labelled image judges its copies by the threshold of its class, as among labelled images; two unlabelled ones
    are judged by the median of these, for nobody knows their class.
    """
    n_labelled = len(labelled.sources)
    likeness = PairLikeness(images, "grey", HASH_SIDE, section.correlation_shift)
    own = copy_thresholds(labelled.images, labelled.class_names, labelled.pixel_sha256, likeness)
    rest = np.full(len(images) - n_labelled, np.median(own), dtype=np.float32)
    across = np.concatenate([own, np.zeros_like(rest)])  # the higher one of a pair counts
    among = np.concatenate([own, rest])
    found = [np.empty((0, 2), dtype=np.int64)]
    for candidates in copy_candidates(images, float(own.min()), section, sweep=True):
        pairs = np.sort(candidates, axis=1)
        crossing = (pairs[:, 0] < n_labelled) & (pairs[:, 1] >= n_labelled)
        inner = pairs[:, 0] >= n_labelled
        for chosen, thresholds in ((crossing, across), (inner, among)):
            found.append(confirm_copies(images, pairs[chosen], thresholds, section.pixel_tolerance, likeness))
    return np.unique(np.concatenate(found), axis=0)


def _object_links(
    images: Joined,
    sources: Sequence[str],
    n_labelled: int,
    runs: IdRuns,
    section: GroupsSection,
    settings: Mapping[str, float | int | None],
) -> list[Pairs]:
    """Links by name pattern, id run, correlation and near numbers, as among labelled images; each (P, 2)."""
    names = chain_equal(named_objects(sources, section.id_pattern))
    likeness = PairLikeness(images, "detail", DETAIL_SIZE, section.correlation_shift)
    alike = correlated_pairs(likeness, settings.get("correlation"), sweep=True)
    # what links labelled images to each other was found before
    runs = replace(runs, near=runs.near[runs.near.max(axis=1, initial=0) >= n_labelled])
    near = near_numbers(runs, likeness, settings.get("near_ids"))
    return [names, runs.pairs, alike.pairs, near.pairs]


def _whole(value: float | int | None) -> int | None:
    return None if value is None else int(value)


def _drop_copies(rows: list[int], copies: Pairs, sources: Sequence[str]) -> tuple[list[int], list[QuarantineRow]]:
    """Keeps a row unless a kept one before it is its copy."""
    before: dict[int, list[int]] = {}
    for a, b in copies.tolist():
        before.setdefault(b, []).append(a)
    kept: set[int] = set()
    dropped = []
    for row in rows:
        copied = [other for other in before.get(row, []) if other in kept]
        if copied:
            dropped.append(QuarantineRow(sources[row], "unlabelled_copy", f"a near copy of {sources[copied[0]]}"))
        else:
            kept.add(row)
    return sorted(kept), dropped


@dataclass(frozen=True)
class UnlabelledImages:
    """Prepared unlabelled images, ordered by digest.

    Attributes:
        images: (m, H, W, C) uint8, memory-mapped.
        sha256: (m,) str, of the prepared pixels.
    """

    images: NDArray[np.uint8]
    sha256: NDArray[np.str_]

    def verified(self) -> NDArray[np.uint8]:
        """(m, H, W, C) uint8 in memory, each image checked against its sha256.

        Raises:
            ArtifactError: a byte changed since `prepare`, naming the row.
        """
        images = np.array(self.images)  # a copy: torch takes no read-only array
        for row, (image, digest) in enumerate(zip(images, self.sha256, strict=True)):
            if pixel_sha256(image) != digest:
                raise ArtifactError(
                    f"unlabelled image of row {row} no longer matches its sha256 {str(digest)[:12]}: "
                    f"data/prepared/{FOLDER}/images.npy was altered; remove data/prepared and run `dvc checkout` or "
                    "`dvc repro`"
                )
        return images


def write_unlabelled(folder: Path, scan: Scan, usable: Usable) -> dict[str, Any]:
    """Writes images.npy and manifest.parquet into `folder`, which is made.

    Args:
        folder: `unlabelled` of the prepared folder.
        scan: the unlabelled images.
        usable: which of them are written, and which are not.
    Returns:
        what summary.json says of them: `{sha256, n_images, n_dropped: {reason: n}}`, unreadable files included.
    """
    folder.mkdir()
    rows = usable.rows
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(rows), *scan.images.shape[1:])}
    with (folder / "images.npy").open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for start in range(0, len(rows), COPY_ROWS):
            stream.write(np.ascontiguousarray(scan.images[rows[start : start + COPY_ROWS]]).data)
    chosen = rows.tolist()
    digests = [scan.pixel_sha256[row] for row in chosen]
    columns = {
        "row": list(range(len(rows))),
        "source": [scan.sources[row] for row in chosen],
        "file_sha256": [scan.file_sha256[row] for row in chosen],
        "pixel_sha256": digests,
        "width": [scan.widths[row] for row in chosen],
        "height": [scan.heights[row] for row in chosen],
        "mode": [scan.modes[row] for row in chosen],
    }
    pq.write_table(pa.table(columns, schema=MANIFEST_SCHEMA), folder / "manifest.parquet", compression="zstd")
    reasons = Counter(row.reason for row in [*scan.quarantine, *usable.dropped])
    return {"sha256": digest_of(digests), "n_images": len(rows), "n_dropped": dict(sorted(reasons.items()))}


def write_unlabelled_index(index: Path, digests: Sequence[str]) -> None:
    """Names the unlabelled images in a fold's train index, so that the shared GAN is trained again where they change.

    Args:
        index: `folds/FOLD` of the prepared folder.
        digests: pixel sha256, in the order of images.npy.
    """
    (index / "train" / INDEX_FILE).write_text(canonical_json({"pixel_sha256": list(digests)}), encoding="utf-8")


def unlabelled_of_index(prepared: Path, index: Path) -> UnlabelledImages:
    """The unlabelled images, checked against those that a fold's train index names.

    Args:
        prepared: `data/prepared`.
        index: `folds/FOLD` inside.
    Raises:
        ArtifactError: the fold names none, or others.
    """
    path = index / "train" / INDEX_FILE
    found = load_unlabelled(prepared)
    named = read_json(path)["pixel_sha256"] if path.exists() else None
    if found is None or named is None or named != found.sha256.tolist():
        raise ArtifactError(
            f"{path} does not name the images of data/prepared/{FOLDER}; run `synthgen plan`, then `dvc repro`"
        )
    return found


def load_unlabelled(prepared: Path) -> UnlabelledImages | None:
    """Opens `data/prepared/unlabelled/`; None where the user brought no unlabelled images.

    Raises:
        ArtifactError: a file is missing, or array and manifest disagree.
    """
    folder = prepared / FOLDER
    if not folder.exists():
        return None
    try:
        manifest = pq.read_table(folder / "manifest.parquet")
        images: NDArray[np.uint8] = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ArtifactError(f"{folder} cannot be read ({error}); run `dvc repro prepare`") from error
    if manifest.schema != MANIFEST_SCHEMA or len(manifest) != len(images) or images.dtype != np.uint8:
        raise ArtifactError(
            f"{folder}: manifest ({len(manifest)} rows) and images ({len(images)}) do not fit; run `dvc repro prepare`"
        )
    return UnlabelledImages(images, np.asarray(manifest["pixel_sha256"].to_pylist(), dtype=np.str_))
