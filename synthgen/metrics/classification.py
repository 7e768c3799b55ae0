"""How well logits tell classes apart: recall, precision, F1, AUC, average precision, by class and in all.

Owns the conventions for classes that are absent. A class without a test image has no recall, AUC or
average precision (nan) and takes no part in an average; a class that was never predicted has no
precision (nan). `finite_or_none` turns nan into null, since JSON holds no nan.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from synthgen.errors import MeasurementError


@dataclass(frozen=True)
class ClassMetrics:
    """One classifier on one test set.

    Attributes:
        recall, precision, f1, auc, average_precision: (K,) float64 in [0, 1], nan where undefined.
        balanced_accuracy: mean recall of the classes that have test images.
        macro_f1: mean F1 of the same classes.
    """

    recall: NDArray[np.float64]
    precision: NDArray[np.float64]
    f1: NDArray[np.float64]
    auc: NDArray[np.float64]
    average_precision: NDArray[np.float64]
    balanced_accuracy: float
    macro_f1: float


def confusion_counts(labels: NDArray[np.int64], predicted: NDArray[np.int64], n_classes: int) -> NDArray[np.int64]:
    """(K, K) int64 counts: row is the true label, column the predicted one.

    Raises:
        MeasurementError: no rows, different lengths, or a label outside [0, K).
    """
    if labels.shape != predicted.shape or labels.ndim != 1 or not labels.size:
        raise MeasurementError(f"labels {labels.shape} and predictions {predicted.shape} must be equal, (n,) and n > 0")
    if min(labels.min(), predicted.min()) < 0 or max(labels.max(), predicted.max()) >= n_classes:
        raise MeasurementError(f"a label is outside [0, {n_classes})")
    flat = np.bincount(labels * n_classes + predicted, minlength=n_classes * n_classes)
    return flat.reshape(n_classes, n_classes).astype(np.int64)


def _ratio(top: NDArray[np.int64], bottom: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.asarray(np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0))


def recall_per_class(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """(K,) share of each class's images that were predicted right; nan without images."""
    return _ratio(np.diag(counts), counts.sum(axis=1))


def precision_per_class(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """(K,) share of each class's predictions that were right; nan without predictions."""
    return _ratio(np.diag(counts), counts.sum(axis=0))


def f1_per_class(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """(K,) 2 TP / (2 TP + FP + FN); nan where the class has no images."""
    scores = _ratio(2 * np.diag(counts), counts.sum(axis=0) + counts.sum(axis=1))
    return np.where(counts.sum(axis=1) > 0, scores, np.nan)


def log_sum_exp(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """log of the sum of exponentials along the last axis, safe from overflow; finite input."""
    highest = values.max(axis=-1, keepdims=True)
    return np.asarray(np.log(np.exp(values - highest).sum(axis=-1)) + highest[..., 0])


def one_against_rest(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, K) log odds of each class against all others: orders as the softmax does, without saturating."""
    n_classes = logits.shape[1]
    if n_classes < 2:
        raise MeasurementError("one class alone cannot be told from others; at least 2 are needed")
    odds = np.empty(logits.shape)
    for label in range(n_classes):
        odds[:, label] = logits[:, label] - log_sum_exp(np.delete(logits, label, axis=1))
    return odds


def area_under_roc(positive: NDArray[np.bool_], scores: NDArray[np.float64]) -> float:
    """Chance that a positive outscores a negative, ties half (Mann and Whitney); both kinds must be there."""
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    ranks = float(rankdata(scores)[positive].sum())
    return (ranks - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)


def average_precision_of(positive: NDArray[np.bool_], scores: NDArray[np.float64]) -> float:
    """Sum over distinct thresholds of (recall gained) x precision, as in scikit-learn; a positive must be there."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(positive[order])
    # A threshold admits all equal scores at once, so only the last of equals counts.
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    precision = hits[last] / (last + 1)
    return float(np.sum(np.diff(hits[last], prepend=0) * precision) / hits[-1])


def ranking_per_class(
    labels: NDArray[np.int64], logits: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(K,) AUC and (K,) average precision of each class against the rest; nan for a class with none or all rows."""
    odds = one_against_rest(logits)
    auc = np.full(logits.shape[1], np.nan)
    average_precision = np.full(logits.shape[1], np.nan)
    for label in np.unique(labels):
        positive = labels == label
        if not positive.all():
            auc[label] = area_under_roc(positive, odds[:, label])
            average_precision[label] = average_precision_of(positive, odds[:, label])
    return auc, average_precision


def mean_present(values: NDArray[np.float64]) -> float:
    """Mean of the entries that are not nan; nan where there is none."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else math.nan


def class_metrics(labels: NDArray[np.int64], logits: NDArray[np.float64], *, ranking: bool = True) -> ClassMetrics:
    """Everything that is reported about one classifier on one test set.

    Args:
        labels: (n,) int64 in [0, K).
        logits: (n, K) finite.
        ranking: whether AUC and average precision are computed; else they are nan.

    Raises:
        MeasurementError: no rows, or labels that do not fit the logits.
    """
    counts = confusion_counts(labels, logits.argmax(axis=1), logits.shape[1])
    recall, f1 = recall_per_class(counts), f1_per_class(counts)
    unknown = np.full(logits.shape[1], np.nan)
    auc, average_precision = ranking_per_class(labels, logits) if ranking else (unknown, unknown)
    return ClassMetrics(
        recall=recall,
        precision=precision_per_class(counts),
        f1=f1,
        auc=auc,
        average_precision=average_precision,
        balanced_accuracy=mean_present(recall),
        macro_f1=mean_present(f1),
    )


def finite_or_none(value: float) -> float | None:
    """`value` for JSON: nan and infinities become null."""
    return float(value) if math.isfinite(value) else None
