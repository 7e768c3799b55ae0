"""The prepared data set on disk: one uint8 array, one manifest, one index per fold.

Owns reading and writing `data/prepared/` (docs/schema.md) and the rule that turns the manifest's
fold column into the rows of a fold. Refuses pixels and masks that no longer match their sha256.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from synthgen.artifacts import read_json, sha256_bytes, sha256_file
from synthgen.errors import ArtifactError
from synthgen.records import FINAL, FoldSplit

MANIFEST_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("source", pa.string()),
        ("class_name", pa.string()),
        ("slug", pa.string()),
        ("label", pa.int16()),
        ("file_sha256", pa.string()),
        ("pixel_sha256", pa.string()),
        ("group", pa.string()),
        ("fold", pa.int16()),
        ("role", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("mode", pa.string()),
    ]
)
MASKS_SUFFIX = ".masks.json"
"""Of the index of a class's masks; no slug has a dot, so it cannot be taken for the index of a class."""
ROLES = ("pool", "surplus", "val", "test")


def pixel_sha256(image: NDArray[np.uint8]) -> str:
    """Hex sha256 of prepared pixels: the shape as text, then the bytes in (H, W, C) order."""
    return sha256_bytes(repr(tuple(image.shape)).encode() + np.ascontiguousarray(image).tobytes())


def mask_sha256(mask: NDArray[np.bool_]) -> str:
    """Hex sha256 of a region (H, W): the shape as text, then a byte per pixel, 0 or 1."""
    return sha256_bytes(repr(tuple(mask.shape)).encode() + np.ascontiguousarray(mask).tobytes())


@dataclass(frozen=True)
class PreparedData:
    """Prepared images with one manifest row each.

    Attributes:
        images: (N, H, W, C) uint8, memory-mapped.
        labels: (N,) int64.
        groups: (N,) str, images of one object share it.
        sha256: (N,) str, of the prepared pixels.
        folds: (N,) int64; fold in which the row is tested (-1: never part of the folds).
        roles: (N,) str: `pool` (takes part in folds), `surplus` (simulated scarcity: tested in its
            fold, never trained on), `val` and `test` (the user's own frozen split).
        slugs, class_names: in label order.
        n_folds: number of parts that the pool is cut into, which is at least that of measured folds.
        frozen: whether the user's own test set is used.
        masks: (N, H, W) bool, the user's regions; all False where an image has none. None: no masks were given.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    groups: NDArray[np.str_]
    sha256: NDArray[np.str_]
    folds: NDArray[np.int64]
    roles: NDArray[np.str_]
    slugs: list[str]
    class_names: list[str]
    n_folds: int
    frozen: bool
    masks: NDArray[np.bool_] | None = None

    def _ordered(self, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        # Ordered by content, so that a row inserted elsewhere changes no random stream.
        rows = np.flatnonzero(chosen)
        return rows[np.argsort(self.sha256[rows], kind="stable")].astype(np.int64)

    def split(self, fold: str) -> FoldSplit:
        """Rows of `fold`.

        Without a frozen test set, fold j is tested on fold j, validated on fold j+1 and trained on
        the rest. With one, every fold is tested on it; the user's own validation images are used
        where there are any, else fold j of the pool. `final` trains on every pool row.
        """
        pool = self.roles == "pool"
        nothing = np.zeros(len(self.labels), dtype=bool)
        if fold == FINAL:
            return FoldSplit(fold, self._ordered(pool), self._ordered(nothing), self._ordered(nothing))
        j = self._index(fold)
        if self.frozen:
            own_val = self.roles == "val"
            val = own_val if own_val.any() else pool & (self.folds == j)
            test = self.roles == "test"
        else:
            val = pool & (self.folds == (j + 1) % self.n_folds)
            test = (pool | (self.roles == "surplus")) & (self.folds == j)
        return FoldSplit(fold, self._ordered(pool & ~val & ~test), self._ordered(val), self._ordered(test))

    def crossfit(self, fold: str) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """(train rows, held-out rows) for each inner part of `fold`; no row of its test side.

        The classical arm of a fold is chosen on the held-out rows of all parts together.
        """
        j = self._index(fold)
        inside = self.roles == "pool"
        if not self.frozen:
            inside &= self.folds != j
        parts = [k for k in range(self.n_folds) if np.any(inside & (self.folds == k))]
        return [(self._ordered(inside & (self.folds != k)), self._ordered(inside & (self.folds == k))) for k in parts]

    def _index(self, fold: str) -> int:
        j = int(fold[1:]) if fold[:1] == "f" and fold[1:].isdigit() else -1
        if not 0 <= j < self.n_folds:
            raise ArtifactError(f"fold {fold!r} does not exist; there are f0 to f{self.n_folds - 1} and {FINAL}")
        return j

    def verified(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """(n, H, W, C) uint8 images of `rows`, each checked against its sha256.

        Raises:
            ArtifactError: a byte changed since `prepare`, naming the row.
        """
        images = np.asarray(self.images[rows])
        for row, image in zip(rows, images, strict=True):
            if pixel_sha256(image) != self.sha256[row]:
                raise ArtifactError(
                    f"prepared image of row {row} no longer matches its sha256 {self.sha256[row][:12]}: "
                    "data/prepared/images.npy was altered; remove data/prepared and run `dvc checkout` or `dvc repro`"
                )
        return images


def rows_of_index(data: PreparedData, index: Path, slugs: list[str]) -> NDArray[np.int64]:
    """Rows that a fold's train index names, class after class, each in the order of its pixel sha256.

    Args:
        data: the prepared data.
        index: `folds/FOLD` of the prepared folder.
        slugs: classes wanted, in this order.
    Returns:
        (n,) int64 rows.
    Raises:
        ArtifactError: an index names an image that the prepared data does not hold.
    """
    row_of = {sha: row for row, sha in reversed(list(enumerate(data.sha256.tolist())))}
    rows: list[int] = []
    for slug in slugs:
        path = index / "train" / f"{slug}.json"
        for sha in read_json(path)["pixel_sha256"]:
            if sha not in row_of:
                raise ArtifactError(
                    f"{path} names image {sha[:12]}, which data/prepared does not hold; run `dvc repro prepare`"
                )
            rows.append(row_of[sha])
    return np.array(rows, dtype=np.int64)


def masks_of_index(data: PreparedData, index: Path, rows: NDArray[np.int64]) -> NDArray[np.bool_] | None:
    """The user's regions of `rows`, checked against those that a fold's train index names.

    Args:
        data: the prepared data.
        index: `folds/FOLD` of the prepared folder.
        rows: (n,) int64 training rows of the fold.
    Returns:
        (n, H, W) bool, all False where an image has none; None where no masks were given.
    Raises:
        ArtifactError: index and masks.npy disagree about an image.
    """
    if data.masks is None:
        return None
    named: dict[str, str] = {}
    for label in np.unique(data.labels[rows]):
        path = index / "train" / f"{data.slugs[label]}{MASKS_SUFFIX}"
        named |= read_json(path)["mask_sha256"] if path.exists() else {}
    masks: NDArray[np.bool_] = np.asarray(data.masks[rows])
    for row, mask in zip(rows, masks, strict=True):
        sha = str(data.sha256[row])
        if named.get(sha) != (mask_sha256(mask) if mask.any() else None):
            raise ArtifactError(
                f"{index / 'train'} names another mask of image {sha[:12]} than data/prepared/masks.npy holds; run "
                "`dvc repro prepare`"
            )
    return masks


def save_manifest(path: Path, columns: dict[str, Any]) -> None:
    """Writes manifest.parquet; `columns` holds one sequence per field of MANIFEST_SCHEMA."""
    pq.write_table(pa.table(columns, schema=MANIFEST_SCHEMA), path, compression="zstd")


def _load_masks(folder: Path, record: dict[str, Any] | None, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
    """masks.npy as the summary's `masks` describes it, mapped; None where it describes none."""
    if record is None:
        return None
    path = folder / "masks.npy"
    try:
        found = sha256_file(path)
        masks: NDArray[np.bool_] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); run `dvc repro prepare`") from error
    if found != record["sha256"] or masks.dtype != np.bool_ or masks.shape != shape:
        raise ArtifactError(
            f"{path} ({masks.dtype} {masks.shape}) no longer matches its sha256 {str(record['sha256'])[:12]} or the "
            f"shape {shape}: it was altered; remove data/prepared and run `dvc checkout` or `dvc repro`"
        )
    return masks


def load_prepared(folder: Path) -> PreparedData:
    """Opens `data/prepared/` (the images stay on disk until they are asked for).

    Raises:
        ArtifactError: a file is missing, array and manifest disagree, or the masks were altered.
    """
    summary = read_json(folder / "summary.json")
    try:
        manifest = pq.read_table(folder / "manifest.parquet")
        images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ArtifactError(f"{folder} cannot be read ({error}); run `dvc repro prepare`") from error
    if manifest.schema != MANIFEST_SCHEMA or len(manifest) != len(images):
        raise ArtifactError(
            f"{folder}: manifest ({len(manifest)} rows) and images ({len(images)}) do not fit; run `dvc repro prepare`"
        )

    def column(name: str, dtype: Any) -> NDArray[Any]:
        return np.asarray(manifest[name].to_pylist(), dtype=dtype)

    return PreparedData(
        images=images,
        labels=column("label", np.int64),
        groups=column("group", np.str_),
        sha256=column("pixel_sha256", np.str_),
        folds=column("fold", np.int64),
        roles=column("role", np.str_),
        slugs=list(summary["slugs"]),
        class_names=list(summary["class_names"]),
        n_folds=int(summary["n_folds"]),
        frozen=summary["mode"] == "frozen",
        masks=_load_masks(folder, summary.get("masks"), images.shape[:3]),
    )
