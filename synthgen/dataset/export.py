"""An augmented data set as plain files, for tools that do not read Parquet.

Owns three layouts: ImageFolder, WebDataset and COCO-style. Paths hold slugs, class names stand in metadata. The PNG
bytes are those of the shards, so a synthetic image keeps saying so. Refuses a destination with content and shards
that no longer match their sha256; the destination appears complete or not at all.
"""

import csv
import io
import itertools
import json
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthgen.artifacts import atomic_folder, canonical_json, read_json, sha256_file
from synthgen.dataset.prepared import pixel_sha256
from synthgen.dataset.shards import REAL, SYNTHETIC, count_rows, iter_rows
from synthgen.errors import ArtifactError, ConfigError
from synthgen.progress import progress_bar
from synthgen.seeding import numpy_generator

LAYOUTS = ("imagefolder", "webdataset", "coco")
ORIGINS = (REAL, SYNTHETIC)
TAR_IMAGES = 5000
SLUG = re.compile(r"[a-z0-9_]{1,48}")

LABEL_COLUMNS = [
    "file",
    "label",
    "slug",
    "class_name",
    "origin",
    "source_sha256",
    "group",
    "generator_digest",
    "seed",
    "position",
]


@dataclass(frozen=True)
class ExportRow:
    """One image on its way out.

    Attributes:
        stem: `real-000001-0123abcd`, unique within the class.
        png: file content.
        size: (width, height).
        values: columns of the shard.
    """

    stem: str
    png: bytes
    size: tuple[int, int]
    values: Mapping[str, Any]

    @property
    def slug(self) -> str:
        """The class in paths."""
        return str(self.values["slug"])


def export_dataset(augmented: Path, destination: Path, layout: str, origins: Sequence[str] = ORIGINS) -> int:
    """Writes the data set of `augmented` below `destination`.

    Args:
        augmented: folder that `synthgen assemble` wrote.
        destination: a new or empty folder outside of it.
        layout: `imagefolder` (`SLUG/real-000001-SHA8.png`, `labels.csv`), `webdataset` (`train-000000.tar` with
            `.png`, `.cls` and `.json` per image, classes interleaved) or `coco` (`images/`, `annotations.json`).
        origins: which of `real`, `synthetic` to write.
    Returns:
        The number of images written.
    Raises:
        ConfigError: unknown layout or origin, or a destination that must not be written to.
        ArtifactError: the data set is missing or altered, or the disk is full.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"layout {layout!r} is unknown; choose one of {', '.join(LAYOUTS)}")
    unknown = [origin for origin in origins if origin not in ORIGINS]
    if unknown or not origins:
        raise ConfigError(f"origins {list(origins)} cannot be exported; choose from {', '.join(ORIGINS)}")
    target = _free_destination(augmented, destination)
    summary = read_json(augmented / "summary.json")
    shards = _checked_shards(augmented, summary, origins)
    writers: dict[str, Callable[[Path, Iterator[ExportRow], Mapping[str, Any]], None]] = {
        "imagefolder": _write_imagefolder,
        "webdataset": _write_webdataset,
        "coco": _write_coco,
    }
    n_rows = {path: count_rows(path) for path in shards}
    total = sum(n_rows.values())
    written = 0

    def counted(rows: Iterator[ExportRow]) -> Iterator[ExportRow]:
        nonlocal written
        for row in rows:
            yield row
            written += 1
            advance()

    with progress_bar("export", total) as advance, atomic_folder(target) as folder:
        rows = _interleaved(n_rows) if layout == "webdataset" else _in_order(shards)
        writers[layout](folder, counted(rows), summary)
        if target.exists():
            target.rmdir()  # only ever an empty folder: refuses if something appeared there meanwhile
    return written


def _free_destination(augmented: Path, destination: Path) -> Path:
    target, source = destination.resolve(), augmented.resolve()
    if target == source or source in target.parents or target in source.parents:
        raise ConfigError(f"destination {destination} overlaps with the data set {augmented}; choose a folder apart")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"destination {destination} is not an empty folder; choose a new one, nothing is overwritten")
    return target


def _checked_shards(augmented: Path, summary: Mapping[str, Any], origins: Sequence[str]) -> list[Path]:
    shards = []
    for slug in summary["slugs"]:
        if not SLUG.fullmatch(str(slug)):
            raise ArtifactError(f"{augmented / 'summary.json'} has the slug {slug!r}; a slug is [a-z0-9_]{{1,48}}")
        for origin in ORIGINS:
            if origin not in origins:
                continue
            path = augmented / f"{origin}-{slug}.parquet"
            expected = summary["files"].get(path.name, {}).get("sha256")
            if not path.is_file() or sha256_file(path) != expected:
                raise ArtifactError(f"{path} is missing or no longer matches summary.json; run `dvc checkout`")
            shards.append(path)
    return shards


def _rows_of(path: Path) -> Iterator[ExportRow]:
    origin, _, slug = path.stem.partition("-")
    for index, row in enumerate(iter_rows(path)):
        if row.values["slug"] != slug or row.values["origin"] != origin:
            raise ArtifactError(f"{path}: row {index} is of {row.values['slug']!r}, {row.values['origin']!r}")
        stem = f"{origin}-{index:06d}-{pixel_sha256(row.image)[:8]}"
        yield ExportRow(stem, row.png, (row.image.shape[1], row.image.shape[0]), row.values)


def _in_order(shards: Sequence[Path]) -> Iterator[ExportRow]:
    for path in shards:
        yield from _rows_of(path)


def _interleaved(n_rows: Mapping[Path, int]) -> Iterator[ExportRow]:
    # A tar is read front to back, so classes must not stand one after the other. Each draw takes the next
    # image of a shard with the probability of its share of what is left: a random order, streamed.
    generator = numpy_generator(0, "export", "order")
    streams = {path: _rows_of(path) for path in n_rows}
    left = dict(n_rows)
    paths = list(left)
    while sum(left.values()):
        position = int(generator.integers(sum(left.values())))
        for path in paths:
            if position < left[path]:
                left[path] -= 1
                yield next(streams[path])
                break
            position -= left[path]


def _cell(value: Any) -> str:
    return "" if value is None else str(value)


def _write_imagefolder(folder: Path, rows: Iterator[ExportRow], summary: Mapping[str, Any]) -> None:
    for slug in summary["slugs"]:
        (folder / slug).mkdir()
    with (folder / "labels.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(LABEL_COLUMNS)
        for row in rows:
            file = f"{row.slug}/{row.stem}.png"
            (folder / file).write_bytes(row.png)
            writer.writerow([file, *(_cell(row.values[name]) for name in LABEL_COLUMNS[1:])])


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    header = tarfile.TarInfo(name)
    header.size = len(content)
    header.mode = 0o644
    # mtime, owner and group stay at 0 and "": equal data give equal tars.
    tar.addfile(header, io.BytesIO(content))


def _write_webdataset(folder: Path, rows: Iterator[ExportRow], summary: Mapping[str, Any]) -> None:
    n_tars = 0
    while (first := next(rows, None)) is not None:
        name = folder / f"train-{n_tars:06d}.tar"
        with tarfile.open(name, "w", format=tarfile.USTAR_FORMAT) as tar:
            for row in itertools.chain([first], itertools.islice(rows, TAR_IMAGES - 1)):
                # The part of the name before its first dot is the sample's key; slugs and stems hold no dot.
                key = f"{row.slug}/{row.stem}"
                facts = {name: row.values[name] for name in LABEL_COLUMNS[1:]}
                _add(tar, f"{key}.cls", str(row.values["label"]).encode())
                _add(tar, f"{key}.json", json.dumps(facts, sort_keys=True, ensure_ascii=False).encode())
                _add(tar, f"{key}.png", row.png)
        n_tars += 1
    (folder / "classes.json").write_text(canonical_json(_classes(summary)), encoding="utf-8")


def _classes(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"label": label, "slug": slug, "class_name": summary["class_names"][label]}
        for label, slug in enumerate(summary["slugs"])
    ]


def _write_coco(folder: Path, rows: Iterator[ExportRow], summary: Mapping[str, Any]) -> None:
    images, annotations = [], []
    for slug in summary["slugs"]:
        (folder / "images" / slug).mkdir(parents=True)
    for number, row in enumerate(rows, start=1):
        file = f"{row.slug}/{row.stem}.png"
        (folder / "images" / file).write_bytes(row.png)
        width, height = row.size
        images.append({"id": number, "file_name": file, "width": width, "height": height})
        annotations.append(
            {
                "id": number,
                "image_id": number,
                # COCO counts categories from 1; the box is the whole image, since the label is of all of it.
                "category_id": int(row.values["label"]) + 1,
                "bbox": [0, 0, width, height],
                "area": width * height,
                "iscrowd": 0,
                "attributes": {name: row.values[name] for name in LABEL_COLUMNS[4:]},
            }
        )
    content = {
        "info": {"description": "Image labels in COCO's form; the licence of the raw data applies."},
        "licenses": [],
        "categories": [
            {"id": entry["label"] + 1, "name": entry["class_name"], "supercategory": "", "slug": entry["slug"]}
            for entry in _classes(summary)
        ],
        "images": images,
        "annotations": annotations,
    }
    (folder / "annotations.json").write_text(canonical_json(content), encoding="utf-8")
