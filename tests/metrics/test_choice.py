import numpy as np
import pytest

from synthgen.classifier.arms import CLASSICAL_ARMS, REGULARISED
from synthgen.errors import MeasurementError
from synthgen.metrics.choice import choice_score, choose_arm, paired_error, score_influence

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


def arm_of(rng, labels, right):
    """What an arm says of two classes if it is right with a probability of `right`."""
    return np.where(rng.random(len(labels)) < right, labels, 1 - labels)


def difference_of(labels, one, other, metric="balanced_accuracy", classes=(0, 1)):
    return score_influence(labels, one, 2, metric, classes) - score_influence(labels, other, 2, metric, classes)


def score_of(labels, predicted, metric):
    return choice_score(labels, np.eye(2)[predicted], metric, [1])


@pytest.mark.parametrize("metric", ["balanced_accuracy", "scarce_recall", "macro_f1"])
def test_influences_are_what_a_little_more_weight_of_a_row_changes(metric):
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [30, 12])
    predicted = arm_of(rng, labels, 0.7)
    classes = [1] if metric == "scarce_recall" else [0, 1]
    found = score_influence(labels, predicted, 2, metric, classes)
    assert found.sum() == pytest.approx(0.0, abs=1e-12)
    # 10,000 copies of all rows and one more of row k: the change, times the number of rows that one row stands for
    copies = 10_000
    before = score_of(labels, predicted, metric)
    for k in (0, 5, 29, 30, 41):
        weights = np.full(len(labels), copies)
        weights[k] += 1
        after = score_of(np.repeat(labels, weights), np.repeat(predicted, weights), metric)
        assert found[k] == pytest.approx((after - before) * copies, rel=2e-3, abs=1e-6)


def test_the_paired_error_of_recalls_is_that_of_independent_means():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [40, 6])
    one, other = arm_of(rng, labels, 0.9), arm_of(rng, labels, 0.6)
    groups = np.asarray([f"g{k}" for k in range(46)])
    gained = (one == labels).astype(float) - (other == labels)
    # each class with its own n - 1, as six images are few
    variance = sum(gained[labels == k].var(ddof=1) / np.sum(labels == k) for k in (0, 1)) / 4
    assert paired_error(labels, groups, difference_of(labels, one, other), [0, 1]) == pytest.approx(np.sqrt(variance))
    thrice = [np.tile(column, 3) for column in (labels, groups, one, other)]
    repeated = difference_of(thrice[0], thrice[2], thrice[3])
    # an image in several repeats counts once
    assert paired_error(thrice[0], thrice[1], repeated, [0, 1]) == pytest.approx(np.sqrt(variance))


@pytest.mark.parametrize("metric", ["balanced_accuracy", "macro_f1"])
def test_the_paired_error_is_what_a_bootstrap_over_objects_finds(metric):
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1], [90, 150])
    groups = np.asarray([f"g{k // 3:02}" for k in range(240)])  # three photographs of each object, alike
    one, other = (np.repeat(arm_of(rng, labels[::3], right), 3) for right in (0.9, 0.7))
    found = []
    for _ in range(2000):
        drawn = np.concatenate([rng.choice(30, 30), 30 + rng.choice(50, 50)])
        rows = (3 * drawn[:, None] + np.arange(3)).ravel()
        found.append(score_of(labels[rows], one[rows], metric) - score_of(labels[rows], other[rows], metric))
    error = paired_error(labels, groups, difference_of(labels, one, other, metric), [0, 1])
    assert error == pytest.approx(np.std(found), rel=0.08)


def test_one_object_does_not_decide():
    labels = np.repeat([0, 1], [100, 3])
    groups = np.asarray([f"g{k}" for k in range(100)] + ["the only one"] * 3)
    wrong = np.where(np.arange(103) >= 100, 1 - labels, labels)
    arms = {"plain": (labels, np.eye(2)[labels], groups), "strong": (labels, np.eye(2)[wrong], groups)}
    for metric in ("balanced_accuracy", "scarce_recall"):
        assert choose_arm(arms, metric, [1], regularised=["strong", "plain"], errors=1.0)[0] == "strong"
    assert paired_error(labels, groups, np.zeros(103), [1]) == 1.0
    assert paired_error(labels, groups, np.zeros(103), [2]) == np.inf


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
    # by hand: of 20 images 2 are lost and 1 is won, a gap of less than one error; or 10 are lost and 2 won, of more
    best = arms["balanced"][1].argmax(axis=1)
    for arm, n_lost, n_won, low, high in (("mild", 2, 1, 0.0, 1.0), ("strong", 10, 2, 1.0, 4.0)):
        gap = (n_lost - n_won) / 20
        theirs = difference_of(labels, best, arms[arm][1].argmax(axis=1), "scarce_recall", [1])
        error = paired_error(labels, arms[arm][2], theirs, [1])
        assert error == pytest.approx(np.sqrt(((n_lost + n_won) / 20 - gap**2) / 19))
        assert low < gap / error < high
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
