"""The Parquet source: images as Hugging Face stores them.

Owns turning label columns into class names and rows into items, batch by batch, whatever the size of
a row group. Refuses synthetic rows: an image that a generator made must never be counted as real.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from synthgen.dataset.raw import (
    SPLIT_NAMES,
    BytesPayload,
    QuarantineRow,
    RawContent,
    RawItem,
    RefusedError,
    Source,
    Split,
    kind_reason,
    order_classes,
)
from synthgen.errors import SourceError

BATCH_ROWS = 64


@dataclass(frozen=True)
class _ParquetFile:
    """One file of a data set: where it lies, what it is called, which split, and the names of integer labels."""

    path: Path
    name: str
    split: Split | None
    label_names: list[str] | None
    columns: list[str]
    n_rows: int

    def source(self, row: int) -> str:
        return f"{self.name}#{row:09d}"

    def batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        try:
            # Without pre-buffering pages are read as they are needed, not a row group at once.
            with pq.ParquetFile(self.path, pre_buffer=False, buffer_size=1 << 20) as reader:
                yield from reader.iter_batches(batch_size=BATCH_ROWS, columns=columns, use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise SourceError(f"{self.path} is damaged: {error}") from error

    def class_name(self, label: Any) -> str | None:
        if label is None or label == "" or self.label_names is None:
            return None if label is None or label == "" else str(label)
        return self.label_names[label] if 0 <= label < len(self.label_names) else None


def open_parquet(path: Path) -> Source:
    """One Parquet file, or a folder of them at any depth, in the Hugging Face image layout.

    `image` is struct<bytes, path> or binary; `label` is text or an integer, named by the ClassLabel
    feature in the file's Hugging Face metadata where there is one; `group` (text) is optional. A file
    name that starts with `train`, `val`, `valid`, `validation` or `test` gives the split.

    Raises:
        SourceError: no file, a damaged one, other columns, a split for some files only, or rows whose
            `origin` is `synthetic`.
    """
    if path.is_dir():
        found = [entry for entry in sorted(path.rglob("*.parquet")) if not entry.name.startswith(".")]
        named = [(entry, entry.relative_to(path).as_posix()) for entry in found]
    else:
        named = [(path, path.name)]
    quarantine: list[QuarantineRow] = []
    files: list[_ParquetFile] = []
    for entry, name in named:
        reason = kind_reason(entry.lstat().st_mode) if entry is not path and not entry.is_dir() else None
        if reason is not None:
            quarantine.append(QuarantineRow(name, reason, "not read"))
        elif not entry.is_dir():
            files.append(_open_parquet_file(entry, name))
    if not files:
        raise SourceError(f"{path} holds no .parquet file; check source.path in params.yaml")
    files.sort(key=lambda file: file.source(0))
    unsplit = [file.name for file in files if file.split is None]
    if 0 < len(unsplit) < len(files):
        raise SourceError(f"{path}: {unsplit[0]} has no split in its name while others do; call it train-....parquet")
    classes = {name for file in files for name in file.label_names or []}
    for file in files:
        classes |= _label_values(file)
    n_rows = sum(file.n_rows for file in files)
    return Source(order_classes(classes), n_rows, lambda: _parquet_items(files), quarantine)


def _open_parquet_file(path: Path, name: str) -> _ParquetFile:
    try:
        with pq.ParquetFile(path) as reader:
            schema, n_rows = reader.schema_arrow, reader.metadata.num_rows
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"{path} is not a readable Parquet file: {error}") from error
    if not {"image", "label"} <= set(schema.names):
        raise SourceError(f"{path} has columns {schema.names}; `image` and `label` are needed, rename them")
    image, label = schema.field("image").type, schema.field("label").type
    fields = (
        {image.field(i).name: image.field(i).type for i in range(image.num_fields)} if pa.types.is_struct(image) else {}
    )
    binary = fields.get("bytes", image)
    if not (pa.types.is_binary(binary) or pa.types.is_large_binary(binary)):
        raise SourceError(f"{path}: column image is {image}; struct<bytes: binary, path: string> or binary is needed")
    text = pa.types.is_string(label) or pa.types.is_large_string(label) or pa.types.is_dictionary(label)
    if not (text or pa.types.is_integer(label)):
        raise SourceError(f"{path}: column label is {label}; an integer or text is needed")
    columns = ["image", "label", *(name for name in ("group", "origin") if name in schema.names)]
    names = None if text else _label_names(schema.metadata or {}, path)
    match = re.match(r"(train|validation|valid|val|test)(?![a-z])", Path(name).name)
    return _ParquetFile(path, name, SPLIT_NAMES[match[1]] if match else None, names, columns, n_rows)


def _label_names(metadata: dict[bytes, bytes], path: Path) -> list[str] | None:
    if b"huggingface" not in metadata:
        return None
    try:
        feature = json.loads(metadata[b"huggingface"])["info"]["features"]["label"]
        names = feature.get("names")
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # metadata of another tool's making; the integers themselves are then the names
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise SourceError(f"{path}: ClassLabel names are not a list of text")
    return names


def _label_values(file: _ParquetFile) -> set[str]:
    names: set[str] = set()
    for batch in file.batches([column for column in ("label", "origin") if column in file.columns]):
        if "origin" in file.columns and "synthetic" in batch["origin"].to_pylist():
            raise SourceError(f"{file.path} holds synthetic rows (column origin); only real images are measured on")
        names |= {name for label in batch["label"].unique().to_pylist() if (name := file.class_name(label)) is not None}
    return names


@dataclass(frozen=True)
class _NoPayload:
    """A row that has nothing to read; refused in its turn, so that it reaches the quarantine list."""

    reason: str
    detail: str
    nbytes: int = 0

    def read(self, max_bytes: int) -> RawContent:
        raise RefusedError(self.reason, self.detail)


def _parquet_items(files: list[_ParquetFile]) -> Iterator[RawItem]:
    for file in files:
        row = 0
        for batch in file.batches(file.columns):
            groups = batch["group"].to_pylist() if "group" in file.columns else [None] * len(batch)
            for image, label, group in zip(batch["image"].to_pylist(), batch["label"].to_pylist(), groups, strict=True):
                class_name = file.class_name(label)
                data = image.get("bytes") if isinstance(image, dict) else image
                payload: BytesPayload | _NoPayload
                if class_name is None:
                    payload = _NoPayload("no_label", f"label {label!r}")
                elif data is None:
                    payload = _NoPayload("no_image", "no bytes in the row; a path alone is not followed")
                else:
                    payload = BytesPayload(data)
                shown = None if group is None else str(group)
                yield RawItem(file.source(row), class_name or "", file.split, shown, payload)
                row += 1
