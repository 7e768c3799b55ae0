"""One arm, measured in every fold: the arrays that gains are computed from.

Owns the averaging rule: repeats of a fold are averaged before anything else, since they share the
fold's images and generator. Holds raw results beside those after offsets fitted on validation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synthgen.errors import MeasurementError
from synthgen.metrics.classification import class_metrics, confusion_counts, f1_per_class, recall_per_class
from synthgen.metrics.offsets import apply_offsets, fit_offsets


@dataclass(frozen=True)
class ArmFold:
    """What one arm said in one fold.

    Attributes:
        labels: (n,) int64 test labels; groups: (n,) str test groups.
        logits: (R, n, K) float64 test logits.
        val_labels: (m,) int64, val_groups: (m,) str, val_logits: (R, m, K), for the offsets.
    """

    labels: NDArray[np.int64]
    groups: NDArray[np.str_]
    logits: NDArray[np.float64]
    val_labels: NDArray[np.int64]
    val_groups: NDArray[np.str_]
    val_logits: NDArray[np.float64]


@dataclass(frozen=True)
class ArmOutcomes:
    """One arm over J folds, repeats averaged; nan for a class without test images in a fold.

    Attributes:
        recall, precision, auc, average_precision: (J, K).
        balanced_accuracy, macro_f1: (J,).
        recall_after, balanced_accuracy_after, macro_f1_after: the same after offsets.
        predicted, predicted_after: per fold (R, n) int64 predicted labels, rows as in `ArmFold`.
    """

    recall: NDArray[np.float64]
    precision: NDArray[np.float64]
    auc: NDArray[np.float64]
    average_precision: NDArray[np.float64]
    balanced_accuracy: NDArray[np.float64]
    macro_f1: NDArray[np.float64]
    recall_after: NDArray[np.float64]
    balanced_accuracy_after: NDArray[np.float64]
    macro_f1_after: NDArray[np.float64]
    predicted: list[NDArray[np.int64]]
    predicted_after: list[NDArray[np.int64]]


def average_where_known(values: NDArray[np.float64], axis: int = 0) -> NDArray[np.float64]:
    """Mean along `axis` of the entries that are not nan; nan where there is none."""
    known = ~np.isnan(values)
    n_known = known.sum(axis=axis)
    total = np.where(known, values, 0.0).sum(axis=axis)
    return np.asarray(np.divide(total, n_known, out=np.full(total.shape, np.nan), where=n_known > 0))


def _fold_offsets(folds: Sequence[ArmFold], fold: ArmFold) -> NDArray[np.float64]:
    """(K,) offsets of the arm for one fold, from validation rows of all folds but those of the fold's test groups.

    One fold validates on a handful of scarce images, too few to set a threshold by. A bias of the arm shows in
    every fold, so all folds' validation rows serve; images that this fold is tested on stay out.
    """
    tested = np.unique(fold.groups)
    logits, labels = [], []
    for other in folds:
        kept = ~np.isin(other.val_groups, tested)
        logits.append(other.val_logits[:, kept].reshape(-1, other.val_logits.shape[2]))
        labels.append(np.tile(other.val_labels[kept], len(other.val_logits)))
    return fit_offsets(np.concatenate(logits), np.concatenate(labels))


def _after_offsets(
    folds: Sequence[ArmFold], fold: ArmFold
) -> tuple[NDArray[np.int64], NDArray[np.float64], float, float]:
    predicted = apply_offsets(fold.logits, _fold_offsets(folds, fold)).argmax(axis=2)  # (R, n)
    counts = [confusion_counts(fold.labels, row, fold.logits.shape[2]) for row in predicted]
    recall = average_where_known(np.stack([recall_per_class(count) for count in counts]))
    macro_f1 = float(average_where_known(np.stack([f1_per_class(count) for count in counts]), axis=1).mean())
    return predicted, recall, float(average_where_known(recall)), macro_f1


def measure_arm(folds: Sequence[ArmFold], *, ranking: bool = True) -> ArmOutcomes:
    """Measures one arm in every fold, raw and after offsets.

    Args:
        folds: what the arm said, fold by fold.
        ranking: whether AUC and average precision are computed (most of the time); else they are nan.

    Raises:
        MeasurementError: no fold, or labels that do not fit the logits.
    """
    if not folds:
        raise MeasurementError("an arm without folds cannot be measured")
    rows: dict[str, list[NDArray[np.float64]]] = {
        name: [] for name in ("recall", "precision", "auc", "average_precision", "recall_after")
    }
    numbers: dict[str, list[float]] = {
        name: [] for name in ("balanced_accuracy", "macro_f1", "balanced_accuracy_after", "macro_f1_after")
    }
    predicted, predicted_after = [], []
    for fold in folds:
        repeats = [class_metrics(fold.labels, logits, ranking=ranking) for logits in fold.logits]
        for name in ("recall", "precision", "auc", "average_precision"):
            rows[name].append(average_where_known(np.stack([getattr(repeat, name) for repeat in repeats])))
        for name in ("balanced_accuracy", "macro_f1"):
            numbers[name].append(float(np.mean([getattr(repeat, name) for repeat in repeats])))
        after, recall_after, balanced_after, f1_after = _after_offsets(folds, fold)
        rows["recall_after"].append(recall_after)
        numbers["balanced_accuracy_after"].append(balanced_after)
        numbers["macro_f1_after"].append(f1_after)
        predicted.append(fold.logits.argmax(axis=2))
        predicted_after.append(after)
    return ArmOutcomes(
        **{name: np.stack(values) for name, values in rows.items()},
        **{name: np.asarray(values) for name, values in numbers.items()},
        predicted=predicted,
        predicted_after=predicted_after,
    )
