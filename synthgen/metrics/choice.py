"""Which classical arm a fold's user would have picked, without looking at the fold's test side.

Owns the score, its paired error and the rule that makes a choice of them. Repeats, parts and files belong to the
caller, and so does the order of arms by regularisation: it hands in rows of inner cross-fitting (or of validation,
where there was none) and gets a name and all scores back.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from synthgen.errors import MeasurementError
from synthgen.metrics.classification import confusion_counts, f1_per_class, mean_present, recall_per_class

ChoiceMetric = Literal["balanced_accuracy", "scarce_recall", "macro_f1"]
Rows = tuple[NDArray[np.int64], NDArray[np.floating], NDArray[np.str_]]
"""(n,) labels, (n, K) logits and (n,) groups of the same images in the same order for every arm."""


def choice_score(
    labels: NDArray[np.int64], logits: NDArray[np.floating], metric: ChoiceMetric, scarce_labels: Sequence[int]
) -> float:
    """The number that arms are chosen by, in [0, 1]; nan if no class it needs has rows.

    Args:
        labels: (n,) int64; logits: (n, K).
        metric: `scarce_recall` is the mean recall of `scarce_labels`, the others are over all classes.
    """
    counts = confusion_counts(labels, np.asarray(logits).argmax(axis=1), logits.shape[1])
    if metric == "macro_f1":
        return mean_present(f1_per_class(counts))
    recall = recall_per_class(counts)
    return mean_present(recall[list(scarce_labels)] if metric == "scarce_recall" else recall)


def score_influence(
    labels: NDArray[np.int64],
    predicted: NDArray[np.int64],
    n_classes: int,
    metric: ChoiceMetric,
    classes: Sequence[int],
) -> NDArray[np.float64]:
    """How much each row moves the score: the delta method's influences, which sum to 0.

    Of the mean of `TP/n` over classes (recall) it is `(right - TP/n) / n` for rows of the class. Of the mean of
    `F1 = 2 TP/(n + m)`, m the rows that are given the class, it is `(2 right - F1 (is + is given)) / (n + m)`.

    Args:
        labels, predicted: (n,) int64.
        n_classes: K.
        metric: of the score; `balanced_accuracy` and `scarce_recall` differ in `classes` alone.
        classes: that the score is a mean over; at least one has rows.
    Returns:
        (n,) float64.
    """
    counts = confusion_counts(labels, predicted, n_classes)
    found = np.zeros(len(labels))
    present = _present(labels, classes)
    for label in present:
        own, said = labels == label, predicted == label
        if metric == "macro_f1":
            f1 = f1_per_class(counts)[label]
            found += (2.0 * (own & said) - f1 * (own.astype(np.float64) + said)) / (own.sum() + said.sum())
        else:
            found[own] += (said[own] - said[own].mean()) / own.sum()
    return found / len(present)


def paired_error(
    labels: NDArray[np.int64], groups: NDArray[np.str_], difference: NDArray[np.float64], classes: Sequence[int]
) -> float:
    """Standard error of a difference between two scores that were measured on the same images.

    Rows of one group (an object in several photographs, an image predicted in several repeats) count as one draw: the
    variance is the sum over groups of the squared sum of their influences. Those of a class with G groups are first
    scaled by `sqrt(G/(G-1))`, as a variance of G draws is; a class with one group has none, so it is given the largest
    that a difference in [-1, 1] can have, and does not decide alone.

    Args:
        labels, groups: (n,) of each row.
        difference: (n,) of one arm's influences (`score_influence`) minus the other's.
        classes: that the score is a mean over.
    Returns:
        the error; inf where no class has rows.

    Source: Liang and Zeger 1986, Biometrika 73 (sums within clusters).
    """
    present = _present(labels, classes)
    if not present:
        return math.inf
    scaled = np.array(difference, dtype=np.float64)
    n_alone = 0
    for label in np.unique(labels):
        rows = labels == label
        n_groups = len(np.unique(groups[rows]))
        if n_groups > 1:
            scaled[rows] *= math.sqrt(n_groups / (n_groups - 1))
        elif label in present:
            n_alone += 1
    sums = np.bincount(np.unique(groups, return_inverse=True)[1], weights=scaled)
    return math.sqrt(float(sums @ sums) + n_alone / len(present) ** 2)


def _present(labels: NDArray[np.int64], classes: Sequence[int]) -> list[int]:
    return [label for label in classes if np.any(labels == label)]


def choose_arm(
    candidates: Mapping[str, Rows],
    metric: ChoiceMetric,
    scarce_labels: Sequence[int],
    *,
    regularised: Sequence[str] = (),
    errors: float = 0.0,
) -> tuple[str, dict[str, float]]:
    """The most regularised of the classical arms whose score cannot be told from the best one.

    A few dozen images of the scarce classes hardly tell the better arms apart; the luckiest of them is not the best.
    So an arm whose score lies within `errors` standard errors of the best score, each error that of the paired
    difference (`paired_error`), is as good as it, and of those the most regularised is taken. With `errors` 0 the best
    score decides; ties go to the arm that stands first.

    Args:
        candidates: arm -> rows of one fold, pooled over inner parts (`Predictions.selection`), in the order of
            `evaluate.arms`.
        metric: `challenge.choice`.
        scarce_labels: labels of the scarce classes.
        regularised: arms from the most to the least regularised; one that is not among them comes last.
        errors: `challenge.choice_errors`, at least 0.
    Returns:
        The arm's name, and the scores of all arms that have one.

    Raises:
        MeasurementError: no candidate, no candidate with a score, or candidates with different images.

    Source: a paired form of the one-standard-error rule, Breiman, Friedman, Olshen and Stone 1984, section 3.4.3.
    """
    if not candidates:
        raise MeasurementError("no classical arm to choose from; name at least one in evaluate.arms")
    scores = {
        arm: choice_score(labels, logits, metric, scarce_labels) for arm, (labels, logits, _) in candidates.items()
    }
    scores = {arm: score for arm, score in scores.items() if not math.isnan(score)}
    if not scores:
        raise MeasurementError(
            f"no arm has a {metric}: the rows to choose on hold no image of the classes it needs; "
            "use challenge.choice: balanced_accuracy or more folds"
        )
    # max() keeps the first of equal arms; 12 digits, so that the order of a sum decides no tie.
    best = max(scores, key=lambda arm: round(scores[arm], 12))
    if errors == 0.0:
        return best, scores
    labels, logits, groups = candidates[best]
    classes = scarce_labels if metric == "scarce_recall" else range(logits.shape[1])

    def influence(of_logits: NDArray[np.floating]) -> NDArray[np.float64]:
        return score_influence(labels, of_logits.argmax(axis=1), logits.shape[1], metric, classes)

    of_best = influence(logits)

    def as_good(arm: str) -> bool:
        their_labels, their_logits, their_groups = candidates[arm]
        if not (np.array_equal(labels, their_labels) and np.array_equal(groups, their_groups)):
            raise MeasurementError(
                f"arms {best} and {arm} were predicted on different images, and cannot be told apart pair by pair: "
                "run `dvc repro` for both"
            )
        error = paired_error(labels, groups, of_best - influence(their_logits), classes)
        return scores[best] - scores[arm] <= errors * error + 1e-12

    equals = [arm for arm in scores if arm == best or as_good(arm)]
    place = {arm: k for k, arm in enumerate(regularised)}
    return min(equals, key=lambda arm: place.get(arm, len(place))), scores
