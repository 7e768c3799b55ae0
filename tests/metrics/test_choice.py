import numpy as np
import pytest

from synthgen.classifier.arms import CLASSICAL_ARMS, REGULARISED
from synthgen.errors import MeasurementError
from synthgen.metrics.choice import choose_arm, paired_error

LABELS = np.asarray([0, 0, 0, 0, 1, 1])
GROUPS = np.asarray([f"g{k}" for k in range(6)])


def saying(*predicted):
    return LABELS, np.eye(2)[list(predicted)], GROUPS


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
    only_first = (np.zeros(3, dtype=np.int64), np.eye(2)[[0, 0, 1]], GROUPS[:3])
    with pytest.raises(MeasurementError, match="scarce_recall"):
        choose_arm({"a": only_first}, "scarce_recall", [1])


def test_every_classical_arm_has_one_place_by_regularisation():
    assert sorted(REGULARISED) == sorted(CLASSICAL_ARMS)


def drawn(seed, n_images=(40, 60), copies=1):
    """Labels, groups and a difference of rights of n images, each `copies` times over as repeats are."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], n_images)
    difference = rng.choice([-1.0, 0.0, 1.0], size=len(labels), p=[0.1, 0.6, 0.3])
    groups = np.asarray([f"g{k}" for k in range(len(labels))])
    return np.tile(labels, copies), np.tile(groups, copies), np.tile(difference, copies)


def test_the_paired_error_is_that_of_a_difference_of_means():
    labels, groups, difference = drawn(0)
    n = np.bincount(labels)
    variance = sum(difference[labels == k].var() / n[k] for k in (0, 1)) / 4 * len(labels) / (len(labels) - 1)
    assert paired_error(labels, groups, difference, [0, 1]) == pytest.approx(np.sqrt(variance))
    one = difference[labels == 1]
    assert paired_error(labels, groups, difference, [1]) == pytest.approx(one.std(ddof=1) / np.sqrt(len(one)))


def test_an_image_in_several_repeats_counts_once():
    assert paired_error(*drawn(0, copies=3), [0, 1]) == pytest.approx(paired_error(*drawn(0), [0, 1]))


def test_the_paired_error_is_what_a_bootstrap_over_objects_finds():
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1], [90, 150])
    groups = np.asarray([f"g{k // 3}" for k in range(240)])  # three photographs of each object, alike
    difference = np.repeat(rng.choice([-1.0, 0.0, 1.0], size=80, p=[0.15, 0.5, 0.35]), 3)
    by_group = [np.flatnonzero(groups == name) for name in np.unique(groups)]
    found = []
    for _ in range(4000):
        rows = np.concatenate([by_group[k] for k in rng.integers(0, 80, 80)])
        found.append(np.mean([difference[rows][labels[rows] == k].mean() for k in (0, 1)]))
    assert paired_error(labels, groups, difference, [0, 1]) == pytest.approx(np.std(found), rel=0.06)


@pytest.mark.parametrize("classes", [[], [2]])
def test_without_two_groups_nothing_is_known(classes):
    assert paired_error(LABELS, GROUPS, np.ones(6), classes) == np.inf
    assert paired_error(LABELS, np.full(6, "one"), np.ones(6), [0, 1]) == np.inf


def with_errors(labels, wrong):
    predicted = labels.copy()
    predicted[wrong] = 1 - predicted[wrong]
    return labels, np.eye(2)[predicted], np.asarray([f"g{k}" for k in range(len(labels))])


def test_of_arms_that_cannot_be_told_apart_the_most_regularised_is_chosen():
    labels = np.repeat([0, 1], [100, 20])
    arms = {
        "balanced": with_errors(labels, [100, 101]),
        "mild": with_errors(labels, [100, 102, 103]),  # one image more is wrong: within an error
        "strong": with_errors(labels, list(range(104, 114))),  # eight more
    }
    order = ["strong", "mild", "balanced"]
    assert choose_arm(arms, "balanced_accuracy", [1], regularised=order, errors=0.0)[0] == "balanced"
    assert choose_arm(arms, "balanced_accuracy", [1], regularised=order, errors=1.0)[0] == "mild"
    # the plain formula: 2 lost, 1 won of 20; 10 lost, 2 won
    gap, error = 1 / 20, np.sqrt((3 / 20 - (1 / 20) ** 2) / 20)
    assert gap < error
    gap, error = 8 / 20, np.sqrt((12 / 20 - (8 / 20) ** 2) / 20)
    assert error < gap < 4 * error
    assert choose_arm(arms, "balanced_accuracy", [1], regularised=order, errors=4.0)[0] == "strong"
    assert choose_arm(arms, "scarce_recall", [1], regularised=order, errors=1.0)[0] == "mild"
    assert choose_arm(arms, "macro_f1", [1], regularised=order, errors=1.0)[0] == "mild"
    # one that nobody has ordered comes last, and equal places go to the first
    assert choose_arm(arms, "balanced_accuracy", [1], regularised=[], errors=1.0)[0] == "balanced"


def test_arms_on_different_images_cannot_be_told_apart_pair_by_pair():
    with pytest.raises(MeasurementError, match="different images"):
        choose_arm(
            {"a": saying(0, 0, 0, 0, 1, 1), "b": (LABELS, np.eye(2)[[0, 0, 0, 0, 1, 1]], GROUPS[::-1])},
            "balanced_accuracy",
            [1],
            errors=1.0,
        )
