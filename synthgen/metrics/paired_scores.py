"""Paired differences between two ways of training, row by row, on pooled validation images.

Owns the score that mixing policies are chosen by and the standard error of its class-balanced mean difference. Refuses
to choose: that is `synthgen.metrics.policy_search`. Why this score stands in docs/method.md, "Search".
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from synthgen.errors import MeasurementError
from synthgen.metrics.classification import log_sum_exp
from synthgen.metrics.intervals import Estimate

PRIOR_GROUPS = 4.0
"""Groups that the spread of all classes counts for in that of one class: three objects alone show no spread."""


@dataclass(frozen=True)
class ValidationRows:
    """Validation images of all measured folds, pooled; one row per fold and image.

    Attributes:
        folds: (n,) int64, index of the fold that validates the row.
        labels: (n,) int64.
        groups: (n,) str; photographs of one object share one.
    """

    folds: NDArray[np.int64]
    labels: NDArray[np.int64]
    groups: NDArray[np.str_]

    def __post_init__(self) -> None:
        if not len(self.labels) or not len(self.folds) == len(self.labels) == len(self.groups):
            raise MeasurementError(
                f"{len(self.folds)} folds, {len(self.labels)} labels and {len(self.groups)} groups: validation rows "
                "need one of each per row, and at least one row; raise plan.folds or add images"
            )

    @cached_property
    def cells(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(n,) index of each row's (label, group), and (m,) the label of each such cell."""
        _, group = np.unique(self.groups, return_inverse=True)
        codes, cell = np.unique(self.labels * (int(group.max()) + 1) + group, return_inverse=True)
        return cell.astype(np.int64), (codes // (int(group.max()) + 1)).astype(np.int64)


def quadratic_scores(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """One minus half the Brier score of each row: 1 for a sure right answer, 0 for a sure wrong one.

    It is proper (no prize for saying more or less than one knows) and bounded, so that one confidently wrong photograph
    cannot outweigh all others, as it can in the log-loss.

    Args:
        logits: (..., n, K).
        labels: (n,) int64 in [0, K).
    Returns:
        (..., n) float64 in [0, 1].
    Source: Gneiting and Raftery 2007, Strictly Proper Scoring Rules, JASA 102, section 3.1 (quadratic score).
    """
    values = np.asarray(logits, dtype=np.float64)
    chances = np.exp(values - log_sum_exp(values)[..., None])
    own = chances[..., np.arange(len(labels)), labels]
    result: NDArray[np.float64] = 1.0 - 0.5 * (np.sum(chances**2, axis=-1) - 2.0 * own + 1.0)
    return result


def row_weights(
    rows: ValidationRows, kept: NDArray[np.bool_], classes: Sequence[int] | None = None
) -> NDArray[np.float64]:
    """(n,) weights that sum to 1: every class that has a kept row weighs the same, and each of its rows the same.

    Args:
        rows: pooled.
        kept: (n,) bool; the others weigh 0.
        classes: labels that count; None: all.
    Raises:
        MeasurementError: no class that counts has a row.
    """
    counted = kept if classes is None else kept & np.isin(rows.labels, list(classes))
    n_rows = np.bincount(rows.labels[counted], minlength=int(rows.labels.max()) + 1)
    if not n_rows.any():
        raise MeasurementError(
            "no validation image of a class that counts: nothing can be chosen; use challenge.choice: "
            "balanced_accuracy, fewer folds, or more images"
        )
    each = 1.0 / (np.count_nonzero(n_rows) * np.maximum(n_rows, 1))
    return np.asarray(np.where(counted, each[rows.labels], 0.0))


def paired_difference(differences: NDArray[np.float64], rows: ValidationRows, weights: NDArray[np.float64]) -> Estimate:
    """Class-balanced mean of paired differences, with the standard error that objects and trainings imply.

    Two sources are added. *Objects*: within each class, the spread between groups; a class's own spread is pulled
    towards that of all classes as if `PRIOR_GROUPS` groups had shown the latter. *Trainings*: the spread between
    repeats of one fold, whose images are the same. What both share is counted twice, which errs towards "cannot tell".

    Args:
        differences: (R, n) candidate minus default, the same seeds in both; R repeats, rows as in `rows`.
        rows: pooled over folds.
        weights: (n,) of `row_weights`.
    Returns:
        mean in [-1, 1], standard error (inf with one repeat or one group a class), Satterthwaite's degrees of
        freedom, and how many groups stand behind it.
    """
    n_repeats = len(differences)
    average = differences.mean(axis=0)
    mean = float(weights @ average)
    objects, freedom = _object_variances(average, weights, rows)
    n_groups = len(np.unique(rows.groups[weights > 0]))
    if n_repeats < 2 or not len(objects):
        return Estimate(mean, math.inf, 0.0, n_groups)
    by_fold = np.stack([np.bincount(rows.folds, weights * one) for one in differences])  # (R, J)
    used = np.bincount(rows.folds, weights) > 0
    training = float(by_fold[:, used].var(axis=0, ddof=1).sum()) / n_repeats
    variances = np.append(objects, training)
    degrees = np.append(freedom, float(used.sum()) * (n_repeats - 1))
    total = float(variances.sum())
    if total == 0.0:
        return Estimate(mean, 0.0, float(degrees.sum()), n_groups)
    return Estimate(mean, math.sqrt(total), total**2 / float(np.sum(variances**2 / degrees)), n_groups)


def _object_variances(
    average: NDArray[np.float64], weights: NDArray[np.float64], rows: ValidationRows
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Per class its share of the variance of the mean, and degrees of freedom; empty where no class has two groups."""
    cell, label_of_cell = rows.cells
    n_labels = int(rows.labels.max()) + 1
    of_class = np.bincount(rows.labels, weights, minlength=n_labels)
    present = of_class > 0
    share = np.where(present, of_class, 1.0)
    means = np.bincount(rows.labels, weights * average, minlength=n_labels) / share
    residual = weights / share[rows.labels] * (average - means[rows.labels])
    sums = np.bincount(cell, residual, minlength=len(label_of_cell))
    occupied = np.bincount(cell, weights, minlength=len(label_of_cell)) > 0
    n_groups = np.bincount(label_of_cell[occupied], minlength=n_labels)[present].astype(np.float64)
    squares = np.bincount(label_of_cell, sums**2, minlength=n_labels)[present]
    spare = n_groups - 1.0
    if not spare.any():
        return np.zeros(0), np.zeros(0)
    spread = np.divide(n_groups**2 * squares, spare, out=np.zeros_like(squares), where=spare > 0)  # of one group
    typical = float(spare @ spread / spare.sum())
    pulled = (PRIOR_GROUPS * typical + spare * spread) / (PRIOR_GROUPS + spare)
    return of_class[present] ** 2 * pulled / n_groups, PRIOR_GROUPS + spare
