import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

from synthgen.errors import MeasurementError
from synthgen.metrics.classification import (
    area_under_roc,
    average_precision_of,
    class_metrics,
    confusion_counts,
    finite_or_none,
    one_against_rest,
)


def random_problem(seed, n=60, k=4):
    generator = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(k), generator.integers(0, k, n - k)])
    logits = generator.standard_normal((n, k)) + 1.2 * np.eye(k)[labels]
    return labels, logits


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_scikit_learn(seed):
    labels, logits = random_problem(seed)
    ours, predicted = class_metrics(labels, logits), logits.argmax(axis=1)
    np.testing.assert_allclose(ours.recall, recall_score(labels, predicted, average=None))
    np.testing.assert_allclose(ours.precision, precision_score(labels, predicted, average=None))
    np.testing.assert_allclose(ours.f1, f1_score(labels, predicted, average=None))
    assert ours.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert ours.macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro"))
    odds = one_against_rest(logits)
    for label in range(4):
        assert ours.auc[label] == pytest.approx(roc_auc_score(labels == label, odds[:, label]))
        assert ours.average_precision[label] == pytest.approx(average_precision_score(labels == label, odds[:, label]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=2, max_size=40))
def test_ranking_with_ties_agrees_with_scikit_learn(rows):
    positive = np.asarray([True, False] + [row[0] for row in rows])
    scores = np.asarray([0.0, 0.0] + [float(row[1]) for row in rows])
    assert area_under_roc(positive, scores) == pytest.approx(roc_auc_score(positive, scores))
    assert average_precision_of(positive, scores) == pytest.approx(average_precision_score(positive, scores))


def test_hand_example():
    # Class 0: 3 of 4 right; class 1: 1 of 2; nothing is ever predicted as class 2, which has one image.
    labels = np.asarray([0, 0, 0, 0, 1, 1, 2])
    logits = np.eye(3)[[0, 0, 0, 1, 1, 0, 1]]
    ours = class_metrics(labels, logits)
    np.testing.assert_allclose(ours.recall, [3 / 4, 1 / 2, 0])
    np.testing.assert_allclose(ours.precision[:2], [3 / 4, 1 / 3])
    assert math.isnan(ours.precision[2])
    assert ours.balanced_accuracy == pytest.approx((3 / 4 + 1 / 2) / 3)
    assert ours.f1[2] == 0


def test_a_class_without_images_takes_no_part():
    labels = np.asarray([0, 0, 1, 1])
    logits = np.eye(3)[[0, 2, 1, 1]]
    ours = class_metrics(labels, logits)
    assert math.isnan(ours.recall[2]) and math.isnan(ours.auc[2]) and math.isnan(ours.f1[2])
    assert ours.precision[2] == 0
    assert ours.balanced_accuracy == pytest.approx(0.75)
    assert ours.macro_f1 == pytest.approx(f1_score(labels, [0, 2, 1, 1], labels=[0, 1], average="macro"))


def test_null_stands_for_nan_in_json():
    assert json.dumps([finite_or_none(math.nan), finite_or_none(math.inf), finite_or_none(0.5)]) == "[null, null, 0.5]"


def test_odds_order_as_the_softmax_and_do_not_saturate():
    logits = np.asarray([[800.0, 0.0, 1.0], [900.0, 0.0, 1.0], [0.0, 1.0, 2.0]])
    odds = one_against_rest(logits)
    assert np.isfinite(odds).all() and odds[1, 0] > odds[0, 0]
    small = logits[2] - logits[2].max()
    chances = np.exp(small) / np.exp(small).sum()
    np.testing.assert_allclose(odds[2], np.log(chances / (1 - chances)))


@pytest.mark.parametrize(("labels", "predicted"), [([], []), ([0, 3], [0, 0]), ([0, -1], [0, 0]), ([0], [0, 1])])
def test_unusable_labels_are_refused(labels, predicted):
    with pytest.raises(MeasurementError):
        confusion_counts(np.asarray(labels, dtype=np.int64), np.asarray(predicted, dtype=np.int64), 3)
