"""Which classical arm a fold's user would have picked, without looking at the fold's test side.

Owns the choice and its tie rule. Repeats, parts and files belong to the caller: it hands in rows of
inner cross-fitting (or of validation, where there was none) and gets a name and all scores back.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from synthgen.errors import MeasurementError
from synthgen.metrics.classification import confusion_counts, f1_per_class, mean_present, recall_per_class

ChoiceMetric = Literal["balanced_accuracy", "scarce_recall", "macro_f1"]
Rows = tuple[NDArray[np.int64], NDArray[np.floating]]


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


def choose_arm(
    candidates: Mapping[str, Rows], metric: ChoiceMetric, scarce_labels: Sequence[int]
) -> tuple[str, dict[str, float]]:
    """The classical arm with the best score; ties go to the arm that stands first.

    Args:
        candidates: arm -> ((n,) labels, (n, K) logits) of one fold, pooled over inner parts
            (`Predictions.selection`), in the order of `evaluate.arms`.
        metric: `challenge.choice`.
        scarce_labels: labels of the scarce classes.
    Returns:
        The arm's name, and the scores of all arms that have one.

    Raises:
        MeasurementError: no candidate, or no candidate with a score.
    """
    if not candidates:
        raise MeasurementError("no classical arm to choose from; name at least one in evaluate.arms")
    scores = {arm: choice_score(labels, logits, metric, scarce_labels) for arm, (labels, logits) in candidates.items()}
    scores = {arm: score for arm, score in scores.items() if not math.isnan(score)}
    if not scores:
        raise MeasurementError(
            f"no arm has a {metric}: the rows to choose on hold no image of the classes it needs; "
            "use challenge.choice: balanced_accuracy or more folds"
        )
    # max() keeps the first of equal arms; 12 digits, so that the order of a sum decides no tie.
    return max(scores, key=lambda arm: round(scores[arm], 12)), scores
