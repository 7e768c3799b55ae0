"""Parquet shards: many images of one class in one file that Hugging Face datasets, pandas and polars open.

Owns the schema of docs/schema.md "Shards", writing (same rows, same bytes) and reading back to arrays.
Refuses a file of another schema, a damaged image, and a real image whose pixels no longer match their
sha256. Every image in a shard has one size.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from synthgen.artifacts import atomic_file
from synthgen.dataset.prepared import pixel_sha256
from synthgen.dataset.provenance import Provenance, decode_png, encode_png
from synthgen.errors import ArtifactError

REAL = "real"
SYNTHETIC = "synthetic"
TRAIN = "train"

SHARD_SCHEMA = pa.schema(
    [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("label", pa.int64()),
        ("class_name", pa.string()),
        ("slug", pa.string()),
        ("origin", pa.string()),
        ("split", pa.string()),
        ("fold", pa.string()),
        ("source_sha256", pa.string()),
        ("group", pa.string()),
        ("generator_digest", pa.string()),
        ("seed", pa.int64()),
        ("position", pa.int32()),
        ("d_score", pa.float32()),
        ("teacher_agreement", pa.float32()),
        ("nearest_real", pa.float32()),
    ]
)
REPEATED_COLUMNS = ["label", "class_name", "slug", "origin", "split", "fold", "group", "generator_digest", "seed"]

# A reader that streams holds one row group: at most 1,024 images or about 4 MB of pixels.
MAX_GROUP_ROWS = 1024
MAX_GROUP_BYTES = 4_000_000

_MISSING: dict[pa.DataType, Any] = {pa.string(): "", pa.int64(): -1, pa.int32(): -1, pa.float32(): float("nan")}
_DTYPES: dict[pa.DataType, Any] = {
    pa.string(): np.str_,
    pa.int64(): np.int64,
    pa.int32(): np.int32,
    pa.float32(): np.float32,
}


@dataclass(frozen=True)
class SyntheticRows:
    """Accepted synthetic images of one class, with what makes each again and its scores.

    Attributes:
        images: (n, H, W, C) uint8.
        seeds: (n,) int64, the batch of latents.
        positions: (n,) int32, the row in that batch.
        d_score: (n,) float32, discriminator logits.
        teacher_agreement: (n,) float32 in [0, 1], teacher's probability of the label.
        nearest_real: (n,) float32, feature distance to the nearest training image over the median
            such distance among reals.
        sources: (n,) str, pixel sha256 of the real image that each was made from; None: made from noise.
    """

    images: NDArray[np.uint8]
    seeds: NDArray[np.int64]
    positions: NDArray[np.int32]
    d_score: NDArray[np.float32]
    teacher_agreement: NDArray[np.float32]
    nearest_real: NDArray[np.float32]
    sources: NDArray[np.str_] | None = None


@dataclass(frozen=True)
class ShardContent:
    """A whole shard as arrays.

    Attributes:
        images: (n, H, W, C) uint8.
        labels: (n,) int64.
        columns: the further columns that were asked for, (n,) each; a value that rows of this origin
            do not have reads as "", -1 or NaN.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    columns: dict[str, NDArray[Any]]


@dataclass(frozen=True)
class ShardRow:
    """One row while streaming: the PNG as it stands in the shard, and the other columns by name."""

    png: bytes
    image: NDArray[np.uint8]
    values: Mapping[str, Any]


def shard_schema(class_names: Sequence[str]) -> pa.Schema:
    """SHARD_SCHEMA with the metadata by which Hugging Face datasets sees an Image and a ClassLabel.

    Args:
        class_names: all classes in label order.
    Source: datasets.Features, key `huggingface` of the Arrow schema's metadata.
    """
    features: dict[str, Any] = {}
    for field in SHARD_SCHEMA:
        if field.name == "image":
            features[field.name] = {"_type": "Image"}
        elif field.name == "label":
            features[field.name] = {"names": list(class_names), "_type": "ClassLabel"}
        else:
            dtype = {pa.float32(): "float32"}.get(field.type, str(field.type))
            features[field.name] = {"dtype": dtype, "_type": "Value"}
    info = json.dumps({"info": {"features": features}}, ensure_ascii=False, sort_keys=False)
    return SHARD_SCHEMA.with_metadata({b"huggingface": info.encode()})


def write_synthetic_shard(
    path: Path,
    rows: SyntheticRows,
    *,
    label: int,
    class_name: str,
    slug: str,
    fold: str,
    generator_digest: str,
    class_names: list[str],
) -> None:
    """Writes the accepted synthetic images of one class; no rows give an empty, readable shard.

    Raises:
        ArtifactError: columns of unequal length or another dtype, or the file cannot be written.
    """
    columns_given = {name: getattr(rows, name) for name in SyntheticRows.__dataclass_fields__}
    lengths = {name: len(values) for name, values in columns_given.items() if values is not None}
    if len(set(lengths.values())) != 1:
        raise ArtifactError(f"synthetic rows of {slug!r} have columns of unequal length: {lengths}")
    _check_class(label, class_name, class_names)

    def columns(start: int, stop: int) -> dict[str, list[Any]]:
        made = [
            Provenance(generator_digest, int(seed), int(position))
            for seed, position in zip(rows.seeds[start:stop], rows.positions[start:stop], strict=True)
        ]
        return {
            "image": [
                _image(rows.images[start + i], provenance, SYNTHETIC, start + i, pixel_sha256(rows.images[start + i]))
                for i, provenance in enumerate(made)
            ],
            "generator_digest": [generator_digest] * len(made),
            "seed": [provenance.seed for provenance in made],
            "position": [provenance.position for provenance in made],
            "d_score": rows.d_score[start:stop].tolist(),
            "teacher_agreement": rows.teacher_agreement[start:stop].tolist(),
            "nearest_real": rows.nearest_real[start:stop].tolist(),
            **({} if rows.sources is None else {"source_sha256": rows.sources[start:stop].tolist()}),
        }

    constants = _constants(SYNTHETIC, TRAIN, fold, label=label, class_name=class_name, slug=slug)
    _write(path, rows.images, constants, columns, class_names)


def write_real_shard(
    path: Path,
    images: NDArray[np.uint8],
    sha256: Sequence[str] | NDArray[np.str_],
    groups: Sequence[str] | NDArray[np.str_],
    *,
    label: int,
    class_name: str,
    slug: str,
    split: str,
    fold: str,
    class_names: list[str],
) -> None:
    """Writes real images of one class, each checked against its sha256.

    Args:
        images: (n, H, W, C) uint8.
        sha256: (n,) of the prepared pixels.
        groups: (n,) the object that each image shows.
    Raises:
        ArtifactError: unequal lengths, pixels that do not match, or the file cannot be written.
    """
    if not len(images) == len(sha256) == len(groups):
        raise ArtifactError(
            f"real rows of {slug!r} have {len(images)} images, {len(sha256)} sha256 and {len(groups)} groups"
        )
    _check_class(label, class_name, class_names)

    def columns(start: int, stop: int) -> dict[str, list[Any]]:
        for index in range(start, stop):
            _check_pixels(images[index], str(sha256[index]), path, index)
        return {
            "image": [_image(images[i], None, REAL, i, str(sha256[i])) for i in range(start, stop)],
            "source_sha256": [str(value) for value in sha256[start:stop]],
            "group": [str(value) for value in groups[start:stop]],
        }

    constants = _constants(REAL, split, fold, label=label, class_name=class_name, slug=slug)
    _write(path, images, constants, columns, class_names)


def _check_class(label: int, class_name: str, class_names: Sequence[str]) -> None:
    if not 0 <= label < len(class_names) or class_names[label] != class_name:
        raise ArtifactError(f"label {label} is not the position of {class_name!r} in the {len(class_names)} classes")


def _check_pixels(image: NDArray[np.uint8], expected: str, path: Path, index: int) -> None:
    found = pixel_sha256(image)
    if found != expected:
        raise ArtifactError(
            f"{path}: real image {index} has pixels of sha256 {found[:12]}, its row says {expected[:12]}: "
            "one of the two was altered; run `dvc checkout`, or `dvc repro` to write it again"
        )


def _constants(origin: str, split: str, fold: str, *, label: int, class_name: str, slug: str) -> dict[str, Any]:
    return {"label": label, "class_name": class_name, "slug": slug, "origin": origin, "split": split, "fold": fold}


def _image(
    image: NDArray[np.uint8], provenance: Provenance | None, origin: str, index: int, sha256: str
) -> dict[str, Any]:
    return {"bytes": encode_png(image, provenance), "path": f"{origin}-{index:06d}-{sha256[:8]}.png"}


def _write(path: Path, images: NDArray[np.uint8], constants: dict[str, Any], columns: Any, names: list[str]) -> None:
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ArtifactError(f"images of a shard are uint8 (n, H, W, C), got {images.dtype} {images.shape}")
    schema = shard_schema(names)
    step = max(1, min(MAX_GROUP_ROWS, MAX_GROUP_BYTES // max(1, int(np.prod(images.shape[1:])))))
    with (
        atomic_file(path) as temporary,
        pq.ParquetWriter(
            temporary,
            schema,
            compression="zstd",
            compression_level=3,
            use_dictionary=REPEATED_COLUMNS,
            write_statistics=REPEATED_COLUMNS,
        ) as writer,
    ):
        for start in range(0, len(images), step):
            stop = min(start + step, len(images))
            filled = {name: [value] * (stop - start) for name, value in constants.items()} | columns(start, stop)
            arrays = [pa.array(filled.get(f.name, [None] * (stop - start)), type=f.type) for f in schema]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema), row_group_size=step)


def _open(path: Path) -> pq.ParquetFile:
    try:
        shard = pq.ParquetFile(path)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing; run the stage that writes it (dvc repro)") from error
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(f"{path} is not a readable Parquet shard ({error}); run `dvc checkout`") from error
    if not shard.schema_arrow.equals(SHARD_SCHEMA, check_metadata=False):
        shard.close()
        found = {field.name for field in shard.schema_arrow}
        missing = [field.name for field in SHARD_SCHEMA if field.name not in found]
        raise ArtifactError(
            f"{path} has another schema than docs/schema.md (missing columns: {', '.join(missing) or 'none'}; "
            "else types or order differ); it was written by another version: run the stage again"
        )
    return shard


def count_rows(path: Path) -> int:
    """Number of images in a shard, from its footer alone.

    Raises:
        ArtifactError: missing, damaged or of another schema.
    """
    with _open(path) as shard:
        return int(shard.metadata.num_rows)


def iter_rows(path: Path) -> Iterator[ShardRow]:
    """Streams a shard row group by row group; real pixels are checked against their sha256.

    Raises:
        ArtifactError: missing, of another schema, a damaged image, or altered pixels.
    """
    with _open(path) as shard:
        index = 0
        for group in range(shard.num_row_groups):
            for values in _read_group(shard, path, group).to_pylist():
                yield _row(path, index, values)
                index += 1


def _read_group(shard: pq.ParquetFile, path: Path, group: int) -> pa.Table:
    try:
        return shard.read_row_group(group)
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(f"{path} is damaged ({error}); run `dvc checkout`") from error


def _row(path: Path, index: int, values: dict[str, Any]) -> ShardRow:
    png = (values["image"] or {}).get("bytes")
    if png is None or values["label"] is None or values["origin"] not in (REAL, SYNTHETIC):
        raise ArtifactError(f"{path}: row {index} lacks its image, label or origin; run the stage that wrote it again")
    try:
        image = decode_png(png)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: row {index}: {error}") from error
    if values["origin"] == REAL:
        _check_pixels(image, str(values["source_sha256"]), path, index)
    return ShardRow(png, image, values)


def read_rows(path: Path, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """(n, H, W, C) uint8 images of some rows, in their order; only their row groups are decoded.

    Args:
        rows: (n,) ascending row numbers.
    Raises:
        ArtifactError: a row that does not exist, or see `iter_rows`.
    """
    wanted, images, first = set(rows.tolist()), [], 0
    with _open(path) as shard:
        if wanted and not 0 <= min(wanted) <= max(wanted) < shard.metadata.num_rows:
            raise ArtifactError(f"{path} has {shard.metadata.num_rows} rows, row {max(wanted)} was asked for")
        for group in range(shard.num_row_groups):
            n_rows = shard.metadata.row_group(group).num_rows
            inside = sorted(row - first for row in wanted if first <= row < first + n_rows)
            if inside:
                values = _read_group(shard, path, group).take(inside).to_pylist()
                images += [_row(path, first + i, entry).image for i, entry in zip(inside, values, strict=True)]
            first += n_rows
    return np.stack(images) if images else np.zeros((0, 1, 1, 1), dtype=np.uint8)


def read_images(path: Path, columns: Sequence[str] = ()) -> ShardContent:
    """A whole shard as arrays.

    Args:
        columns: names of further columns wanted (of SHARD_SCHEMA, `image` and `label` apart).
    Raises:
        ArtifactError: an unknown column, images of several sizes, or see `iter_rows`.
    """
    known = {field.name: field.type for field in SHARD_SCHEMA if field.name != "image"}
    unknown = [name for name in columns if name not in known]
    if unknown:
        raise ArtifactError(f"a shard has no column {', '.join(unknown)}; it has {', '.join(known)}")
    rows = list(iter_rows(path))
    shapes = {row.image.shape for row in rows}
    if len(shapes) > 1:
        raise ArtifactError(f"{path} holds images of several sizes ({sorted(shapes)}); a shard has one size")
    images = np.stack([row.image for row in rows]) if rows else np.zeros((0, 0, 0, 0), dtype=np.uint8)

    def column(name: str) -> NDArray[Any]:
        missing = _MISSING[known[name]]
        values = [missing if row.values[name] is None else row.values[name] for row in rows]
        return np.asarray(values, dtype=_DTYPES[known[name]])

    return ShardContent(images, column("label"), {name: column(name) for name in columns})
