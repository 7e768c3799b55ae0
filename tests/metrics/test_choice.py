import numpy as np
import pytest

from synthgen.errors import MeasurementError
from synthgen.metrics.choice import choose_arm

LABELS = np.asarray([0, 0, 0, 0, 1, 1])


def saying(*predicted):
    return LABELS, np.eye(2)[list(predicted)]


def test_each_metric_chooses_its_own_best():
    arms = {
        "cautious": saying(0, 0, 0, 0, 0, 1),  # recalls 1, 1/2
        "bold": saying(1, 1, 1, 0, 1, 1),  # recalls 1/4, 1
    }
    assert choose_arm(arms, "scarce_recall", [1])[0] == "bold"
    assert choose_arm(arms, "balanced_accuracy", [1])[0] == "cautious"
    arm, scores = choose_arm(arms, "macro_f1", [1])
    assert arm == "cautious" and scores["cautious"] == pytest.approx((8 / 9 + 2 / 3) / 2)


def test_ties_go_to_the_first():
    same = saying(0, 0, 0, 1, 1, 1)
    assert choose_arm({"b": same, "a": same}, "balanced_accuracy", [1])[0] == "b"


def test_nothing_to_choose_by_is_refused():
    with pytest.raises(MeasurementError, match=r"evaluate\.arms"):
        choose_arm({}, "balanced_accuracy", [0])
    only_first = (np.zeros(3, dtype=np.int64), np.eye(2)[[0, 0, 1]])
    with pytest.raises(MeasurementError, match="scarce_recall"):
        choose_arm({"a": only_first}, "scarce_recall", [1])
