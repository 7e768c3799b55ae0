"""Looking at every raw image once: accepted pixels to one array on disk, the rest to a list with reasons.

Owns the growing `.npy` file and the checks over all images. Memory holds the index
(names and digests) and a bounded number of images in flight, whatever the size of the data. Refuses
data in which the same pixels carry two labels, and classes that are left without an image.
"""

import logging
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from synthgen.artifacts import atomic_file
from synthgen.config import PrepareSection
from synthgen.dataset.decode import Accepted, Refusal
from synthgen.dataset.decode_pool import judge_items
from synthgen.dataset.raw import REASONS, QuarantineRow, RawItem, Source
from synthgen.errors import LeakError, SourceError
from synthgen.progress import progress_bar

__all__ = ["REASONS", "QuarantineRow", "Scan", "scan_source"]

MAX_PAIRS = 10

_PER_IMAGE = (
    "sources",
    "class_names",
    "splits",
    "user_groups",
    "file_sha256",
    "pixel_sha256",
    "widths",
    "heights",
    "modes",
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scan:
    """Prepared images with what is known of each; all lists have one entry per image, sorted by source.

    Attributes:
        images: (N, S, S, C) uint8, memory-mapped read-only.
        classes: class names in label order, each with at least one image to train on.
        sources, class_names, splits, user_groups: as the source gave them.
        file_sha256: of the raw file (of dtype, shape and bytes where the raw item is an array).
        pixel_sha256: of the prepared image, by `prepared.pixel_sha256`.
        widths, heights, modes: of the raw picture.
        quarantine: what is not used and why, sorted.
        notes: (source, text) for accepted images whose decoder warned.
    """

    images: NDArray[np.uint8]
    classes: list[str]
    sources: list[str] = field(default_factory=list)
    class_names: list[str] = field(default_factory=list)
    splits: list[str | None] = field(default_factory=list)
    user_groups: list[str | None] = field(default_factory=list)
    file_sha256: list[str] = field(default_factory=list)
    pixel_sha256: list[str] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    heights: list[int] = field(default_factory=list)
    modes: list[str] = field(default_factory=list)
    quarantine: list[QuarantineRow] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)

    def keep(self, rows: list[int]) -> None:
        """Keeps the given rows of every list, in that order."""
        for name in _PER_IMAGE:
            column = getattr(self, name)
            column[:] = [column[row] for row in rows]

    def add(self, item: RawItem, image: Accepted) -> None:
        """Appends one accepted image to every list."""
        self.sources.append(item.source)
        self.class_names.append(item.class_name)
        self.splits.append(item.split)
        self.user_groups.append(item.group)
        self.file_sha256.append(image.file_sha256)
        self.pixel_sha256.append(image.pixel_sha256)
        self.widths.append(image.width)
        self.heights.append(image.height)
        self.modes.append(image.mode)
        if image.note:
            self.notes.append((item.source, image.note))


def scan_source(source: Source, section: PrepareSection, images_path: Path, *, n_workers: int | None = None) -> Scan:
    """Judges and prepares every item, and writes the accepted images to `images_path`.

    Args:
        source: an opened source.
        section: image size, channels, caps and policies.
        images_path: the .npy file to write; it appears only when the scan has succeeded.
        n_workers: decoding processes; by default one per usable core, and none for few or tiny images.
    Returns:
        the index; `images` is mapped from `images_path`.
    Raises:
        SourceError: no image could be used, or a class is left without one to train on.
        LeakError: the same prepared pixels stand under two labels; names up to ten pairs.
        ArtifactError: the array could not be written.
    """
    shape = (section.image_size, section.image_size, section.channels)
    index = Scan(np.empty((0, *shape), np.uint8), [], quarantine=list(source.quarantine))
    with atomic_file(images_path) as temporary, temporary.open("w+b") as stream:
        header_bytes = stream.write(_npy_header(source.n_items, shape))
        with (
            progress_bar("prepare: images", source.n_items) as advance,
            closing(judge_items(source, section, n_workers, advance)) as judged,
        ):
            for item, result in judged:
                _take(index, stream, item, result)
        _refuse_two_labels(index)
        classes = _trainable_classes(source, index, section)
        _drop_other_classes(index, classes, stream, header_bytes, int(np.prod(shape)))
        stream.seek(0)
        stream.write(_npy_header(len(index.sources), shape))
    index.quarantine.sort()
    if index.notes:
        name, text = index.notes[0]
        _log.warning("%d images were read although their decoder warned, first %r: %s", len(index.notes), name, text)
    images = np.load(images_path, mmap_mode="r", allow_pickle=False)
    return replace(index, images=images, classes=classes)


def _take(index: Scan, stream: IO[bytes], item: RawItem, result: Accepted | Refusal) -> None:
    if isinstance(result, Refusal):
        index.quarantine.append(QuarantineRow(item.source, result.reason, result.detail))
    else:
        stream.write(result.pixels)
        index.add(item, result)


def _npy_header(n_images: int, shape: tuple[int, int, int]) -> bytes:
    # numpy pads the header so that the first axis may grow in place: every count gives the same length.
    header = BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (n_images, *shape)})
    return header.getvalue()


def _refuse_two_labels(index: Scan) -> None:
    first: dict[str, int] = {}
    pairs = []
    for row, digest in enumerate(index.pixel_sha256):
        other = first.setdefault(digest, row)
        if index.class_names[other] != index.class_names[row]:
            pairs.append((other, row))
    if pairs:
        shown = "; ".join(
            " = ".join(f"{index.sources[row]!a} ({index.class_names[row]!a})" for row in pair)
            for pair in pairs[:MAX_PAIRS]
        )
        raise LeakError(
            f"{len(pairs)} pairs of images have the same prepared pixels and two labels: {shown}"
            f"{' ...' if len(pairs) > MAX_PAIRS else ''}; keep each image under one label"
        )


def _trainable_classes(source: Source, index: Scan, section: PrepareSection) -> list[str]:
    """Classes with an accepted image outside `val` and `test`; the others are an error or skipped."""
    counts = Counter(
        name for name, split in zip(index.class_names, index.splits, strict=True) if split in (None, "train")
    )
    without = [name for name in source.class_names if counts[name] == 0]
    if not counts or (without and section.empty_class == "error"):
        reasons = Counter(row.reason for row in index.quarantine).most_common(3)
        why = ", ".join(f"{count} {reason} ({REASONS[reason]})" for reason, count in reasons) or "nothing"
        what = (
            f"class without a usable training image: {', '.join(map(ascii, without[:10]))}"
            if counts
            else "no usable image"
        )
        raise SourceError(
            f"{what}; put aside in all: {why}. Add or repair images"
            f"{', or set prepare.empty_class: skip' if counts else ''}"
        )
    return [name for name in source.class_names if counts[name] > 0]


def _drop_other_classes(index: Scan, classes: list[str], stream: IO[bytes], start: int, n_bytes: int) -> None:
    """Takes rows of skipped classes (they have test images only) out of the index and of the file."""
    wanted = set(classes)
    rows = [row for row, name in enumerate(index.class_names) if name in wanted]
    if len(rows) == len(index.sources):
        return
    for row in sorted(set(range(len(index.sources))) - set(rows)):
        index.quarantine.append(QuarantineRow(index.sources[row], "class_skipped", index.class_names[row]))
    for to, row in enumerate(rows):
        stream.seek(start + row * n_bytes)
        pixels = stream.read(n_bytes)
        stream.seek(start + to * n_bytes)
        stream.write(pixels)
    stream.seek(start + len(rows) * n_bytes)
    stream.truncate()
    index.keep(rows)
