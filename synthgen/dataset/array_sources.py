"""Sources made of arrays: the embedded digits and NumPy archives.

Owns reading arrays row by row without holding them: an archive of any size needs the memory of one
row. Refuses pickled objects, floats and channels-first arrays.
"""

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from synthgen.dataset.raw import ArrayPayload, RawItem, Source, Split, order_classes
from synthgen.errors import SourceError

# More raw pixels than this are worth a process pool.
COSTLY_PIXELS = 50_000_000
MAX_LABEL_BYTES = 2_000_000_000

_PARTS: dict[str, Split] = {"train": "train", "val": "val", "test": "test"}


def open_digits() -> Source:
    """scikit-learn's optical digits: 1,797 pictures of 8 x 8, values 0 to 16 scaled to 0 to 255."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    pixels = np.rint(loaded.images * (255.0 / 16.0)).astype(np.uint8)  # (1797, 8, 8)
    labels = loaded.target

    def items() -> Iterator[RawItem]:
        for row, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            yield RawItem(f"digits/{row:04d}", str(label), None, None, ArrayPayload(image))

    return Source([str(label) for label in range(10)], len(pixels), items, costly=False)


@dataclass(frozen=True)
class _Part:
    """Arrays of one split inside an archive.

    Attributes:
        split: None where the archive has a plain `x` and `y`.
        member: name of the pixel array inside the archive.
        shape: (N, H, W) or (N, H, W, C).
        class_names: (N,) one per row.
    """

    split: Split | None
    member: str
    shape: tuple[int, ...]
    class_names: list[str]

    def source(self, row: int) -> str:
        return f"{self.member}/{row:09d}"


def open_npz(path: Path) -> Source:
    """A NumPy archive with `x_train`, `y_train`, optionally `x_val`, `y_val`, `x_test`, `y_test`; or `x`, `y`.

    Pixels are uint8, uint16 or bool, (N, H, W) or (N, H, W, C); labels are integers or text; an optional
    text array `class_names` names integer labels.

    Raises:
        SourceError: missing or damaged, pickled, another dtype or layout, or lengths that differ.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}
            parts = _find_parts(archive, members, path)
            names = _read_labels(archive, "class_names", path) if "class_names" in members else None
            loaded = [_load_part(archive, part, names, path) for part in parts]
    except (OSError, zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
        raise SourceError(f"{path} is not a readable NumPy archive: {error}; check source.path") from error
    declared = [str(name) for name in names] if names is not None else []
    found = {name for part in loaded for name in part.class_names}
    loaded.sort(key=lambda part: part.source(0))
    n_pixels = sum(int(np.prod(part.shape)) for part in loaded)

    def items() -> Iterator[RawItem]:
        for part in loaded:
            for row, pixels in enumerate(_iter_rows(path, part.member, len(part.class_names))):
                yield RawItem(part.source(row), part.class_names[row], part.split, None, ArrayPayload(pixels))

    classes = order_classes([*declared, *found])
    return Source(classes, sum(len(part.class_names) for part in loaded), items, costly=n_pixels > COSTLY_PIXELS)


def _find_parts(archive: zipfile.ZipFile, members: set[str], path: Path) -> list[tuple[Split | None, str, str]]:
    parts: list[tuple[Split | None, str, str]] = [
        (split, f"x_{name}", f"y_{name}") for name, split in _PARTS.items() if f"x_{name}" in members
    ]
    if "x" in members and not parts:
        parts = [(None, "x", "y")]
    if not parts or parts[0][0] not in (None, "train"):
        raise SourceError(f"{path} holds {sorted(members)}; x_train and y_train, or x and y, are needed")
    without = [x for _, x, y in parts if y not in members]
    if without:
        raise SourceError(f"{path}: {without[0]} has no labels; add {without[0].replace('x', 'y', 1)}")
    for _, x, y in parts:
        if any(archive.getinfo(f"{name}.npy").flag_bits & 1 for name in (x, y)):
            raise SourceError(f"{path} is encrypted; save it with numpy.savez")
    return parts


def _read_header(stream: IO[bytes], what: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = npy.read_magic(stream)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran_order, dtype = read(stream)
    if dtype.hasobject:
        raise SourceError(f"{what} holds pickled objects, which are never loaded; save numbers or text arrays")
    if fortran_order and len(shape) > 1:
        raise SourceError(f"{what} is stored column by column; save it with numpy.ascontiguousarray")
    return shape, dtype


def _read_labels(archive: zipfile.ZipFile, member: str, path: Path) -> NDArray[Any]:
    what = f"{path}: {member}"
    with archive.open(f"{member}.npy") as stream:
        shape, dtype = _read_header(stream, what)
        n_bytes = int(np.prod(shape)) * dtype.itemsize
        if n_bytes > MAX_LABEL_BYTES:
            raise SourceError(f"{what} claims {n_bytes} bytes, over the limit of {MAX_LABEL_BYTES}")
        values = np.frombuffer(_read_exactly(stream, n_bytes, what), dtype=dtype).reshape(shape)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or values.dtype.kind not in "iuUS":
        raise SourceError(f"{what} has shape {values.shape} and type {values.dtype}; (N,) integers or text are needed")
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8")
    return values


def _load_part(
    archive: zipfile.ZipFile, part: tuple[Split | None, str, str], names: NDArray[Any] | None, path: Path
) -> _Part:
    split, x, y = part
    what = f"{path}: {x}"
    with archive.open(f"{x}.npy") as stream:
        shape, dtype = _read_header(stream, what)
    if dtype.kind not in "ub" or dtype.itemsize > 2:
        raise SourceError(f"{what} is {dtype}; uint8 (or uint16) pixels are needed, scale and convert it")
    if len(shape) not in (3, 4) or 0 in shape:
        raise SourceError(f"{what} has shape {shape}; (N, H, W) or (N, H, W, C) is needed")
    if len(shape) == 4 and shape[3] not in (1, 2, 3, 4):
        first = " (channels first? transpose it with x.transpose(0, 2, 3, 1))" if shape[1] in (1, 2, 3, 4) else ""
        raise SourceError(f"{what} has shape {shape}; 1 to 4 channels are expected last{first}")
    labels = _read_labels(archive, y, path)
    if len(labels) != shape[0]:
        raise SourceError(f"{path}: {x} has {shape[0]} rows and {y} has {len(labels)}")
    if names is not None and labels.dtype.kind in "iu":
        if labels.min() < 0 or labels.max() >= len(names):
            raise SourceError(
                f"{path}: {y} goes from {labels.min()} to {labels.max()}, but class_names has {len(names)} entries"
            )
        labels = names[labels]
    return _Part(split, x, shape, [str(label) for label in labels])


def _iter_rows(path: Path, member: str, n_rows: int) -> Iterator[NDArray[Any]]:
    """Rows of one array, read from the archive as a stream."""
    what = f"{path}: {member}"
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{member}.npy") as stream:
            shape, dtype = _read_header(stream, what)
            n_bytes = int(np.prod(shape[1:])) * dtype.itemsize
            for _ in range(n_rows):
                yield np.frombuffer(_read_exactly(stream, n_bytes, what), dtype=dtype).reshape(shape[1:])
    except (OSError, zipfile.BadZipFile, ValueError, EOFError) as error:
        raise SourceError(f"{what} is damaged: {error}") from error


def _read_exactly(stream: IO[bytes], n_bytes: int, what: str) -> bytes:
    data = stream.read(n_bytes)
    if len(data) != n_bytes:
        raise SourceError(f"{what} is cut off: {len(data)} of {n_bytes} bytes of a row are there")
    return data
