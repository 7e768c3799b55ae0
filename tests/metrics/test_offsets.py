import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.metrics import balanced_accuracy_score

from synthgen.errors import MeasurementError
from synthgen.metrics.offsets import PRIOR_SCALE, _centre, apply_offsets, fit_offsets


def problem(seed=0, counts=(40, 30, 4), spread=1.5):
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    return labels, generator.standard_normal((len(labels), len(counts))) + spread * np.eye(len(counts))[labels]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-20, 20), min_size=3, max_size=3), st.integers(0, 1000))
def test_a_constant_shift_is_removed_exactly(shift, seed):
    labels, logits = problem(seed)
    shift = np.asarray(shift)
    straight = apply_offsets(logits, fit_offsets(logits, labels))
    shifted = apply_offsets(logits + shift, fit_offsets(logits + shift, labels))
    difference = shifted - straight
    # Equal up to a constant over all classes, which changes no softmax.
    np.testing.assert_allclose(difference - difference[:1, :1], 0, atol=1e-6)


def test_matches_a_general_optimiser():
    labels, logits = problem(3)
    weights = 1 / (3 * np.bincount(labels)[labels])
    centre = _centre(logits, labels, np.arange(3))
    ridge = np.sum(weights**2) / PRIOR_SCALE**2

    def loss(deviation):
        scores = log_softmax(logits + centre + deviation, axis=1)[np.arange(len(labels)), labels]
        return -weights @ scores + 0.5 * ridge * np.sum(deviation**2)

    expected = centre + minimize(loss, np.zeros(3), method="BFGS", options={"gtol": 1e-9}).x
    np.testing.assert_allclose(fit_offsets(logits, labels), expected - expected.mean(), atol=1e-5)


def test_with_many_rows_every_class_gets_its_fair_share():
    labels, logits = problem(1, counts=(3000, 2000, 500))
    moved = apply_offsets(
        logits + np.asarray([3.0, 0.0, -3.0]), fit_offsets(logits + np.asarray([3.0, 0.0, -3.0]), labels)
    )
    weights = 1 / (3 * np.bincount(labels)[labels])
    np.testing.assert_allclose(weights @ softmax(moved, axis=1), 1 / 3, atol=0.01)


def test_offsets_restore_the_balanced_accuracy_that_a_shift_cost():
    labels, logits = problem(2, counts=(300, 300, 60))
    shift = np.asarray([4.0, 0.0, -4.0])
    val, test = np.arange(0, len(labels), 2), np.arange(1, len(labels), 2)

    def accuracy(scores):
        return balanced_accuracy_score(labels[test], scores[test].argmax(axis=1))

    offsets = fit_offsets((logits + shift)[val], labels[val])
    assert accuracy(logits + shift) < accuracy(logits) - 0.2
    assert accuracy(apply_offsets(logits + shift, offsets)) > accuracy(logits) - 0.03


def test_separable_and_extreme_logits_stay_finite():
    labels = np.repeat([0, 1, 2], 3)
    for scale in (1e-6, 1.0, 1e4):
        offsets = fit_offsets(scale * np.eye(3)[labels], labels)
        assert np.isfinite(offsets).all()
        np.testing.assert_allclose(offsets, 0, atol=1e-6 * scale)  # a symmetrical problem


def test_a_class_without_validation_images_is_moved_by_what_others_say_of_it():
    labels, logits = problem(4, counts=(40, 30, 4))
    logits, labels = logits[labels != 2], labels[labels != 2]
    shift = np.asarray([0.0, 0.0, 7.0])
    np.testing.assert_allclose(
        fit_offsets(logits, labels) - fit_offsets(logits + shift, labels), shift - 7 / 3, atol=1e-6
    )


def test_fewer_than_two_classes_give_no_offsets():
    assert not fit_offsets(np.zeros((0, 3)), np.zeros(0, dtype=np.int64)).any()
    assert not fit_offsets(np.ones((4, 3)), np.zeros(4, dtype=np.int64)).any()


def test_wrong_shapes_are_refused():
    with pytest.raises(MeasurementError):
        fit_offsets(np.zeros((3, 2)), np.zeros(2, dtype=np.int64))
    with pytest.raises(MeasurementError):
        fit_offsets(np.zeros((2, 2)), np.asarray([0, 2]))
