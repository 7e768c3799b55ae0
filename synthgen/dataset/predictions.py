"""predictions.parquet: what an arm's classifiers said about every image, fold by fold.

Owns the file's form (docs/schema.md) and its alignment: arms and repeats are compared image by
image, so rows are handed out in one order, that of the pixel sha256. Refuses files whose repeats
hold different images, logits that are not finite, and labels that are no class.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from synthgen.artifacts import atomic_file
from synthgen.errors import ArtifactError, MeasurementError

PARTS = ("val", "test", "inner")
PREDICTIONS_SCHEMA = pa.schema(
    [
        ("fold", pa.string()),
        ("repeat", pa.int16()),
        ("part", pa.string()),
        ("pixel_sha256", pa.string()),
        ("group", pa.string()),
        ("label", pa.int16()),
        ("logits", pa.list_(pa.float32())),
    ]
)


@dataclass(frozen=True)
class AlignedLogits:
    """One part of one fold, the same images in the same order for every repeat and arm.

    Attributes:
        sha256: (n,) str, sorted.
        groups: (n,) str.
        labels: (n,) int64.
        logits: (R, n, K) float64, repeats in ascending order.
    """

    sha256: NDArray[np.str_]
    groups: NDArray[np.str_]
    labels: NDArray[np.int64]
    logits: NDArray[np.float64]


@dataclass(frozen=True)
class Predictions:
    """All rows of one arm's predictions.parquet.

    Attributes:
        folds, parts, sha256, groups: (N,) str.
        repeats: (N,) int64, 0 in part `inner`.
        labels: (N,) int64 in [0, K).
        logits: (N, K) float32 in label order, finite.
    """

    folds: NDArray[np.str_]
    repeats: NDArray[np.int64]
    parts: NDArray[np.str_]
    sha256: NDArray[np.str_]
    groups: NDArray[np.str_]
    labels: NDArray[np.int64]
    logits: NDArray[np.float32]

    @property
    def n_classes(self) -> int:
        """K, the width of the logits."""
        return int(self.logits.shape[1])

    def has(self, fold: str, part: str) -> bool:
        """Whether there is a row of that part in that fold."""
        return bool(np.any((self.folds == fold) & (self.parts == part)))

    def aligned(self, fold: str, part: str) -> AlignedLogits:
        """Rows of one part of one fold, by repeat and image.

        Raises:
            MeasurementError: no such rows, or repeats that hold different images.
        """
        chosen = np.flatnonzero((self.folds == fold) & (self.parts == part))
        if not chosen.size:
            raise MeasurementError(f"no {part!r} predictions of fold {fold}; run `dvc repro` for this arm again")
        repeats = np.unique(self.repeats[chosen])
        blocks = []
        for repeat in repeats:
            rows = chosen[self.repeats[chosen] == repeat]
            blocks.append(rows[np.argsort(self.sha256[rows], kind="stable")])
        first = blocks[0]
        for repeat, rows in zip(repeats, blocks, strict=True):
            if not _same_rows(self, first, rows):
                raise MeasurementError(
                    f"fold {fold}, part {part!r}: repeat {repeat} holds other images ({len(rows)}) than repeat "
                    f"{repeats[0]} ({len(first)}); repeats are compared image by image: run the arm again"
                )
        return AlignedLogits(
            sha256=self.sha256[first],
            groups=self.groups[first],
            labels=self.labels[first],
            logits=np.stack([self.logits[rows] for rows in blocks]).astype(np.float64),
        )

    def selection(self, fold: str) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.str_]]:
        """Labels (n,), logits (n, K) and groups (n,) on which the classical arm of a fold is chosen.

        The cross-fitted rows (part `inner`) where there are any. Else the validation rows of all folds but those of
        groups that this fold is tested on: a fold's own hold a handful of scarce images. Pooled over repeats; no row
        of the fold's test side.

        Raises:
            MeasurementError: the fold has neither.
        """
        here = self.folds == fold
        chosen = np.flatnonzero(here & (self.parts == "inner"))
        if not chosen.size:
            tested = np.unique(self.groups[here & (self.parts == "test")])
            chosen = np.flatnonzero((self.parts == "val") & ~np.isin(self.groups, tested))
        if not chosen.size:
            raise MeasurementError(f"fold {fold} has neither cross-fitted nor validation predictions to choose an arm")
        return self.labels[chosen], self.logits[chosen], self.groups[chosen]


def _same_rows(predictions: Predictions, first: NDArray[np.int64], other: NDArray[np.int64]) -> bool:
    return len(first) == len(other) and all(
        np.array_equal(column[first], column[other])
        for column in (predictions.sha256, predictions.labels, predictions.groups)
    )


def _check(predictions: Predictions, where: str) -> None:
    n = len(predictions.labels)
    columns = (predictions.folds, predictions.repeats, predictions.parts, predictions.sha256, predictions.groups)
    if predictions.logits.ndim != 2 or any(len(column) != n for column in (*columns, predictions.logits)):
        raise MeasurementError(f"{where}: columns of different length, or logits that are not (N, K)")
    if n and not np.isfinite(predictions.logits).all():
        bad = int(np.flatnonzero(~np.isfinite(predictions.logits).all(axis=1))[0])
        raise MeasurementError(
            f"{where}: row {bad} (fold {predictions.folds[bad]}, repeat {predictions.repeats[bad]}) has "
            "logits that are not finite: that training diverged; lower evaluate.classifier.lr and run the arm again"
        )
    if n and (predictions.labels.min() < 0 or predictions.labels.max() >= predictions.n_classes):
        raise MeasurementError(
            f"{where}: labels {predictions.labels.min()} to {predictions.labels.max()} do not fit "
            f"{predictions.n_classes} logits; run the arm again after `dvc repro prepare`"
        )
    unknown = set(np.unique(predictions.parts).tolist()) - set(PARTS)
    if unknown:
        raise MeasurementError(f"{where}: unknown part {sorted(unknown)}; known are {', '.join(PARTS)}")


def concatenate(pieces: list[Predictions]) -> Predictions:
    """All rows of `pieces`, in their order; each piece is one fold, repeat and part, or more."""
    return Predictions(
        folds=np.concatenate([piece.folds for piece in pieces]),
        repeats=np.concatenate([piece.repeats for piece in pieces]),
        parts=np.concatenate([piece.parts for piece in pieces]),
        sha256=np.concatenate([piece.sha256 for piece in pieces]),
        groups=np.concatenate([piece.groups for piece in pieces]),
        labels=np.concatenate([piece.labels for piece in pieces]),
        logits=np.concatenate([piece.logits for piece in pieces]),
    )


def one_part(
    fold: str,
    repeat: int,
    part: str,
    sha256: NDArray[np.str_],
    groups: NDArray[np.str_],
    labels: NDArray[np.int64],
    logits: NDArray[np.float32],
) -> Predictions:
    """Predictions of one classifier on one part of one fold; (n,) columns and (n, K) logits."""
    n = len(labels)
    return Predictions(
        folds=np.full(n, fold),
        repeats=np.full(n, repeat, dtype=np.int64),
        parts=np.full(n, part),
        sha256=np.asarray(sha256, dtype=np.str_),
        groups=np.asarray(groups, dtype=np.str_),
        labels=np.asarray(labels, dtype=np.int64),
        logits=np.asarray(logits, dtype=np.float32),
    )


def save_predictions(path: Path, predictions: Predictions) -> None:
    """Writes predictions.parquet atomically, rows sorted by fold, part, repeat and pixel sha256.

    Raises:
        MeasurementError: logits not finite, labels that are no class, unknown parts.
        ArtifactError: the disk refuses.
    """
    _check(predictions, str(path))
    order = np.lexsort((predictions.sha256, predictions.repeats, predictions.parts, predictions.folds))
    flat = pa.array(predictions.logits[order].reshape(-1), type=pa.float32())
    offsets = pa.array(np.arange(len(order) + 1, dtype=np.int32) * predictions.n_classes, type=pa.int32())
    table = pa.table(
        {
            "fold": pa.array(predictions.folds[order].tolist(), type=pa.string()),
            "repeat": pa.array(predictions.repeats[order].astype(np.int16)),
            "part": pa.array(predictions.parts[order].tolist(), type=pa.string()),
            "pixel_sha256": pa.array(predictions.sha256[order].tolist(), type=pa.string()),
            "group": pa.array(predictions.groups[order].tolist(), type=pa.string()),
            "label": pa.array(predictions.labels[order].astype(np.int16)),
            "logits": pa.ListArray.from_arrays(offsets, flat),
        },
        schema=PREDICTIONS_SCHEMA,
    )
    with atomic_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def load_predictions(path: Path) -> Predictions:
    """Reads and checks predictions.parquet.

    Raises:
        ArtifactError: missing, damaged or of another schema.
        MeasurementError: rows that cannot be compared (see `save_predictions`).
    """
    try:
        table = pq.read_table(path)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing; run the stage that writes it (dvc repro)") from error
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ArtifactError(f"{path} is damaged ({error}); run the stage that writes it again") from error
    if table.schema.names != PREDICTIONS_SCHEMA.names or table.num_rows == 0:
        raise ArtifactError(
            f"{path} holds columns {table.schema.names} in {table.num_rows} rows, expected "
            f"{PREDICTIONS_SCHEMA.names} in at least one; run the stage that writes it again"
        )
    table = table.combine_chunks()
    lists = table["logits"].combine_chunks()
    if isinstance(lists, pa.ChunkedArray):
        lists = lists.chunk(0)
    widths = np.unique(lists.value_lengths().to_numpy(zero_copy_only=False))
    if len(widths) != 1:
        raise ArtifactError(f"{path}: rows hold {widths.tolist()} logits, expected one number; run the arm again")

    def text(name: str) -> NDArray[Any]:
        return np.asarray(table[name].to_pylist(), dtype=np.str_)

    predictions = Predictions(
        folds=text("fold"),
        repeats=table["repeat"].to_numpy().astype(np.int64),
        parts=text("part"),
        sha256=text("pixel_sha256"),
        groups=text("group"),
        labels=table["label"].to_numpy().astype(np.int64),
        logits=lists.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, int(widths[0])),
    )
    _check(predictions, str(path))
    return predictions
