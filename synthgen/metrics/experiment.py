"""All arms of one experiment, and the gain of one arm over the baseline as estimates.

Owns pairing: in fold j the baseline is the classical arm chosen in fold j, compared on the same test
images. Estimates come from the folds (`folds` mode) or from generator seeds and test groups of the
user's own test set (`frozen` mode). Judges nothing: see `synthgen.metrics.verdicts`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from synthgen.errors import MeasurementError
from synthgen.metrics.intervals import (
    Estimate,
    correction_ratio,
    crossed_estimate,
    crossed_weights,
    fold_estimate,
    resolution_error,
)
from synthgen.metrics.outcomes import ArmOutcomes, average_where_known


@dataclass(frozen=True)
class Experiment:
    """What was run: arms, folds, test images and which arm stands against which.

    Attributes:
        mode: `folds` (a fold is another test part) or `frozen` (a fold is another generator seed, one test set).
        folds: J names.
        labels, groups: per fold (n,) int64 and (n,) str, rows as in every `ArmOutcomes`.
        n_classes: K; scarce: labels of the scarce classes, ascending.
        train_groups: (K,) mean number of groups per class that a fold trains on.
        outcomes: arm -> its outcomes.
        classical: arms that train on real images alone; chosen: the baseline in each fold, one of them.
        challenger: the arm on trial.
    """

    mode: Literal["folds", "frozen"]
    folds: Sequence[str]
    labels: Sequence[NDArray[np.int64]]
    groups: Sequence[NDArray[np.str_]]
    n_classes: int
    scarce: Sequence[int]
    train_groups: NDArray[np.float64]
    outcomes: dict[str, ArmOutcomes]
    classical: Sequence[str]
    chosen: Sequence[str]
    challenger: str

    def __post_init__(self) -> None:
        missing = {*self.chosen, *self.classical, self.challenger} - set(self.outcomes)
        if missing:
            raise MeasurementError(f"no outcomes of {', '.join(sorted(missing))}; run their evaluate stages")
        strangers = set(self.chosen) - set(self.classical)
        if strangers or len(self.chosen) != len(self.folds):
            raise MeasurementError(f"each fold needs one classical arm as baseline, got {list(self.chosen)}")
        if not self.scarce:
            raise MeasurementError("no class is scarce, so there is no gain to measure; see plan.scarce in params.yaml")

    def test_groups(self, label: int) -> int:
        """Number of test groups of a class in all folds together."""
        found = [groups[labels == label] for labels, groups in zip(self.labels, self.groups, strict=True)]
        return len(np.unique(np.concatenate(found)))


@dataclass(frozen=True)
class Gains:
    """Estimates of one arm's gain over the baseline.

    Attributes:
        recall, recall_after: one estimate per class, raw and after offsets.
        balanced_accuracy, macro_f1, scarce_recall: over classes.
        by_fold: (J, K) differences in recall, nan without test images.
    """

    recall: list[Estimate]
    recall_after: list[Estimate]
    balanced_accuracy: Estimate
    macro_f1: Estimate
    scarce_recall: Estimate
    by_fold: NDArray[np.float64]


def _baseline(experiment: Experiment, name: str) -> NDArray[np.float64]:
    return np.stack([getattr(experiment.outcomes[arm], name)[j] for j, arm in enumerate(experiment.chosen)])


def _difference(experiment: Experiment, arm: str, name: str) -> NDArray[np.float64]:
    return np.asarray(getattr(experiment.outcomes[arm], name) - _baseline(experiment, name))


def _row_differences(experiment: Experiment, arm: str, name: str) -> list[NDArray[np.float64]]:
    """Per fold (n,) share of repeats right, arm minus baseline."""
    rows = []
    for j, (labels, chosen) in enumerate(zip(experiment.labels, experiment.chosen, strict=True)):
        ours = (getattr(experiment.outcomes[arm], name)[j] == labels).mean(axis=0)
        theirs = (getattr(experiment.outcomes[chosen], name)[j] == labels).mean(axis=0)
        rows.append(ours - theirs)
    return rows


def _row_weights(experiment: Experiment, classes: Sequence[int]) -> list[NDArray[np.float64]]:
    """Per fold (n,) weights under which row differences sum to the mean over folds of the mean recall of `classes`."""
    present = [[label for label in classes if np.any(labels == label)] for labels in experiment.labels]
    n_used = sum(bool(here) for here in present)
    weights = []
    for labels, here in zip(experiment.labels, present, strict=True):
        row = np.zeros(len(labels))
        for label in here:
            chosen = labels == label
            row[chosen] = 1.0 / (n_used * len(here) * chosen.sum())
        weights.append(row)
    return weights


def _floor(experiment: Experiment, rows: list[NDArray[np.float64]], classes: Sequence[int]) -> float:
    weights = np.concatenate(_row_weights(experiment, classes))
    used = weights > 0
    _, index = np.unique(np.concatenate(list(experiment.groups))[used], return_inverse=True)
    contributions = np.bincount(index, weights=(weights * np.concatenate(rows))[used])
    return resolution_error(contributions.astype(np.float64))


def _mean_test_groups(experiment: Experiment, label: int | None) -> float:
    counts = [
        len(np.unique(groups if label is None else groups[labels == label]))
        for labels, groups in zip(experiment.labels, experiment.groups, strict=True)
    ]
    return float(np.mean(counts))


def _fold_gains(experiment: Experiment, arm: str) -> Gains:
    n_folds = len(experiment.folds)
    every, scarce = range(experiment.n_classes), list(experiment.scarce)
    overall_ratio = correction_ratio(_mean_test_groups(experiment, None), float(experiment.train_groups.sum()), n_folds)
    rows = {name: _row_differences(experiment, arm, name) for name in ("predicted", "predicted_after")}

    def of_class(differences: NDArray[np.float64], label: int, predicted: str) -> Estimate:
        known = differences[~np.isnan(differences[:, label]), label]
        if not known.size:
            return fold_estimate(known, 0.0)
        ratio = correction_ratio(_mean_test_groups(experiment, label), float(experiment.train_groups[label]), n_folds)
        return fold_estimate(known, ratio, _floor(experiment, rows[predicted], [label]))

    by_fold = _difference(experiment, arm, "recall")
    after = _difference(experiment, arm, "recall_after")
    scarce_by_fold = average_where_known(by_fold[:, scarce], axis=1)
    raw_rows = rows["predicted"]
    return Gains(
        recall=[of_class(by_fold, label, "predicted") for label in every],
        recall_after=[of_class(after, label, "predicted_after") for label in every],
        balanced_accuracy=fold_estimate(
            _difference(experiment, arm, "balanced_accuracy"), overall_ratio, _floor(experiment, raw_rows, every)
        ),
        macro_f1=fold_estimate(_difference(experiment, arm, "macro_f1"), overall_ratio),
        scarce_recall=fold_estimate(
            scarce_by_fold[~np.isnan(scarce_by_fold)], overall_ratio, _floor(experiment, raw_rows, scarce)
        ),
        by_fold=by_fold,
    )


def _resampled(
    experiment: Experiment, arm: str, name: str, index: NDArray[np.int64], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(b, J, K) recall and (b, J, K) F1 of `arm` in resampled test sets, repeats averaged; nan for absent classes."""
    n_groups, n_classes, labels = weights.shape[1], experiment.n_classes, experiment.labels[0]

    def weighted(rows: NDArray[np.int64], classes: NDArray[np.int64]) -> NDArray[np.float64]:
        counts = np.bincount(index[rows] * n_classes + classes, minlength=n_groups * n_classes)
        return weights @ counts.reshape(n_groups, n_classes).astype(np.float64)

    every = np.arange(len(labels))
    true = weighted(every, labels)
    recall, f1 = [], []
    for j in range(len(experiment.folds)):
        source = experiment.outcomes[experiment.chosen[j] if arm == "" else arm]
        recall_repeats, f1_repeats = [], []
        for predicted in getattr(source, name)[j]:
            right = np.flatnonzero(predicted == labels)
            hits = weighted(right, labels[right])
            absent = true == 0
            recall_repeats.append(np.where(absent, np.nan, hits / np.where(absent, 1.0, true)))
            said = np.where(absent, 1.0, weighted(every, predicted) + true)
            f1_repeats.append(np.where(absent, np.nan, 2 * hits / said))
        recall.append(np.mean(recall_repeats, axis=0))
        f1.append(np.mean(f1_repeats, axis=0))
    return np.stack(recall, axis=1), np.stack(f1, axis=1)


def _frozen_gains(experiment: Experiment, arm: str, n_bootstrap: int, digest: str) -> Gains:
    n_seeds, scarce = len(experiment.folds), list(experiment.scarce)
    first = experiment.labels[0]
    if any(not np.array_equal(first, labels) for labels in experiment.labels):
        raise MeasurementError("mode is `frozen` but folds hold different test images; run `synthgen plan` again")
    names, index = np.unique(experiment.groups[0], return_inverse=True)
    both: dict[str, list[NDArray[np.float64]]] = {}
    alone: dict[str, list[NDArray[np.float64]]] = {}
    for seed_weights, group_weights in crossed_weights(n_seeds, len(names), n_bootstrap, digest):
        pieces: dict[str, NDArray[np.float64]] = {}  # name -> (b, J, ...)
        ours, our_f1 = _resampled(experiment, arm, "predicted", index, group_weights)
        theirs, their_f1 = _resampled(experiment, "", "predicted", index, group_weights)
        pieces["recall"] = ours - theirs
        pieces["balanced_accuracy"] = average_where_known(ours - theirs, axis=2)
        pieces["scarce_recall"] = average_where_known((ours - theirs)[:, :, scarce], axis=2)
        pieces["macro_f1"] = average_where_known(our_f1 - their_f1, axis=2)
        ours, _ = _resampled(experiment, arm, "predicted_after", index, group_weights)
        theirs, _ = _resampled(experiment, "", "predicted_after", index, group_weights)
        pieces["recall_after"] = ours - theirs
        for name, piece in pieces.items():
            both.setdefault(name, []).append(np.einsum("bj,bj...->b...", seed_weights / n_seeds, piece))
            alone.setdefault(name, []).append(piece.mean(axis=1))
    joined = {name: (np.concatenate(both[name]), np.concatenate(alone[name])) for name in both}
    by_fold = _difference(experiment, arm, "recall")
    after = _difference(experiment, arm, "recall_after")
    raw_rows = _row_differences(experiment, arm, "predicted")
    after_rows = _row_differences(experiment, arm, "predicted_after")

    def of_class(name: str, differences: NDArray[np.float64], rows: list[NDArray[np.float64]], label: int) -> Estimate:
        known = differences[~np.isnan(differences[:, label]), label]
        if not known.size:
            return fold_estimate(known, 0.0)
        two_way, groups_only = (replicates[:, label] for replicates in joined[name])
        n_groups = experiment.test_groups(label)
        return crossed_estimate(known, two_way, groups_only, n_groups, _floor(experiment, rows, [label]))

    def overall(name: str, differences: NDArray[np.float64], classes: Sequence[int]) -> Estimate:
        floor = _floor(experiment, raw_rows, classes) if classes else 0.0
        known = differences[~np.isnan(differences)]
        return crossed_estimate(known, *joined[name], n_groups=len(names), floor=floor)

    every = list(range(experiment.n_classes))
    return Gains(
        recall=[of_class("recall", by_fold, raw_rows, label) for label in every],
        recall_after=[of_class("recall_after", after, after_rows, label) for label in every],
        balanced_accuracy=overall("balanced_accuracy", _difference(experiment, arm, "balanced_accuracy"), every),
        macro_f1=overall("macro_f1", _difference(experiment, arm, "macro_f1"), []),
        scarce_recall=overall("scarce_recall", average_where_known(by_fold[:, scarce], axis=1), scarce),
        by_fold=by_fold,
    )


def estimate_gains(experiment: Experiment, arm: str, n_bootstrap: int, digest: str) -> Gains:
    """Gain of `arm` over the baseline chosen in each fold.

    Args:
        n_bootstrap, digest: replicates and seed text of the two-way bootstrap (`frozen` mode).

    Raises:
        MeasurementError: an arm without outcomes, or folds that cannot be corrected for.
    """
    if arm not in experiment.outcomes:
        raise MeasurementError(f"no outcomes of {arm}; there are {', '.join(experiment.outcomes)}")
    if experiment.mode == "frozen":
        return _frozen_gains(experiment, arm, n_bootstrap, digest)
    return _fold_gains(experiment, arm)
