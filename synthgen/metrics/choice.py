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


def paired_error(
    labels: NDArray[np.int64], groups: NDArray[np.str_], difference: NDArray[np.float64], classes: Sequence[int]
) -> float:
    """Standard error of a difference of mean recalls between two arms, measured on the same images.

    Rows of one group (an object in several photographs, an image predicted in several repeats) count as one draw: the
    variance is that of the sums of their influences, `G/(G-1) sum_g (sum_i psi_i)^2` with
    `psi_i = (d_i - mean of d in its class) / (classes x rows of its class)`.

    Args:
        labels, groups, difference: (n,) of each row; 1 where one arm alone is right, -1 where the other is.
        classes: whose recalls are averaged; those without rows are left out.
    Returns:
        the error; inf where there are fewer than two groups.

    Source: Liang and Zeger 1986, Biometrika 73 (sums within clusters).
    """
    present = [label for label in classes if np.any(labels == label)]
    influence = np.zeros(len(labels))
    for label in present:
        rows = labels == label
        influence[rows] = (difference[rows] - difference[rows].mean()) / (len(present) * rows.sum())
    _, index = np.unique(groups[np.isin(labels, present)], return_inverse=True)
    n_groups = int(index.max()) + 1 if index.size else 0
    if n_groups < 2:
        return math.inf
    sums = np.bincount(index, weights=influence[np.isin(labels, present)])
    return math.sqrt(n_groups / (n_groups - 1) * float(sums @ sums))


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
    So an arm whose score lies within `errors` standard errors of the best score (of the paired difference,
    `paired_error`; under `macro_f1` that of the balanced accuracy) is as good as it, and of those the most regularised
    is taken. With `errors` 0 the best score decides; ties go to the arm that stands first.

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

    Source: the one-standard-error rule, Breiman, Friedman, Olshen and Stone 1984, section 3.4.3.
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
    right = logits.argmax(axis=1) == labels

    def as_good(arm: str) -> bool:
        their_labels, their_logits, their_groups = candidates[arm]
        if not (np.array_equal(labels, their_labels) and np.array_equal(groups, their_groups)):
            raise MeasurementError(
                f"arms {best} and {arm} were predicted on different images, and cannot be told apart pair by pair: "
                "run `dvc repro` for both"
            )
        difference = right.astype(np.float64) - (their_logits.argmax(axis=1) == labels)
        return scores[best] - scores[arm] <= errors * paired_error(labels, groups, difference, classes) + 1e-12

    equals = [arm for arm in scores if arm == best or as_good(arm)]
    place = {arm: k for k, arm in enumerate(regularised)}
    return min(equals, key=lambda arm: place.get(arm, len(place))), scores
