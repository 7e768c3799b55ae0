"""The score and the standard error that policies are compared by."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthgen.errors import MeasurementError
from synthgen.metrics.paired_scores import ValidationRows, paired_difference, quadratic_scores, row_weights


def test_a_sure_answer_scores_one_or_nothing_and_no_answer_scores_the_middle() -> None:
    logits = np.array([[50.0, 0.0], [50.0, 0.0], [0.0, 0.0]])
    # half Brier of (1/2, 1/2): 1/2 (1/4 + 1/4)
    np.testing.assert_allclose(quadratic_scores(logits, np.array([0, 1, 1])), [1.0, 0.0, 0.75], atol=1e-12)


@given(st.floats(0.05, 0.95), st.floats(0.05, 0.95))
def test_nobody_gains_by_saying_another_chance_than_the_true_one(truth: float, said: float) -> None:
    def expected(chance: float) -> float:
        logits = np.log(np.array([[chance, 1 - chance]]))
        right, wrong = (quadratic_scores(logits, np.array([label]))[0] for label in (0, 1))
        return float(truth * right + (1 - truth) * wrong)

    assert expected(truth) >= expected(said) - 1e-12


def _rows(labels: list[int], groups: list[str], folds: list[int] | None = None) -> ValidationRows:
    return ValidationRows(np.array(folds or [0] * len(labels)), np.array(labels), np.array(groups))


def _all(rows: ValidationRows) -> np.ndarray:
    return row_weights(rows, np.ones(len(rows.labels), bool))


def test_classes_weigh_the_same_and_rows_that_are_not_kept_nothing() -> None:
    rows = _rows([0, 0, 0, 1, 1], list("abcde"))
    kept = np.array([True, True, True, True, False])
    np.testing.assert_allclose(row_weights(rows, kept), [1 / 6, 1 / 6, 1 / 6, 1 / 2, 0])
    np.testing.assert_allclose(row_weights(rows, kept, [1]), [0, 0, 0, 1, 0])
    with pytest.raises(MeasurementError, match="no validation image of a class that counts"):
        row_weights(rows, kept, [2])


def test_one_class_of_single_photographs_gives_the_textbook_standard_error() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(0.1, 0.3, 40)
    rows = _rows([0] * 40, [f"g{i}" for i in range(40)])
    found = paired_difference(np.stack([values, values]), rows, _all(rows))
    assert found.mean == pytest.approx(values.mean())
    assert found.error == pytest.approx(values.std(ddof=1) / math.sqrt(40))
    assert found.n == 40


def test_copies_of_one_object_do_not_make_a_result_surer() -> None:
    generator = np.random.default_rng(1)
    values = generator.normal(0.1, 0.3, 20)
    single = _rows([0] * 20, [f"g{i}" for i in range(20)])
    once = paired_difference(np.stack([values] * 2), single, _all(single))
    rows = _rows([0] * 100, [f"g{i}" for i in range(20) for _ in range(5)])
    five = paired_difference(np.stack([np.repeat(values, 5)] * 2), rows, _all(rows))
    assert five.error == pytest.approx(once.error)
    assert five.mean == pytest.approx(once.mean)


def test_luck_of_a_training_that_lifts_all_rows_counts() -> None:
    rows = _rows([0] * 30 + [1] * 30, [f"g{i}" for i in range(60)], [0, 1, 2] * 20)
    luck = np.array([[0.1, -0.2, 0.1], [-0.1, 0.2, -0.1]])[:, rows.folds]
    found = paired_difference(luck, rows, _all(rows))
    # each fold holds a third of the rows: variance of the mean over 2 repeats, summed over folds
    expected = np.sum(np.array([0.02, 0.08, 0.02]) / 9) / 2
    assert found.mean == pytest.approx(0.0)
    assert found.error == pytest.approx(math.sqrt(expected))


def test_the_error_is_the_spread_of_the_mean_over_new_samples() -> None:
    generator = np.random.default_rng(2)
    labels, groups = [0] * 60 + [1] * 12, [f"g{i // 3}" for i in range(72)]
    folds = [i % 3 for i in range(24) for _ in range(3)]
    rows = _rows(labels, groups, folds)
    means, errors = [], []
    for _ in range(300):
        objects = np.repeat(generator.normal(0, 0.2, 24), 3)
        luck = generator.normal(0, 0.05, (3, 3))[:, rows.folds]
        found = paired_difference(objects + luck + generator.normal(0, 0.1, (3, 72)), rows, _all(rows))
        means.append(found.mean)
        errors.append(found.error)
    assert np.mean(errors) / np.std(means) == pytest.approx(1.1, abs=0.2)  # on the side of "cannot tell"


def test_one_repeat_or_one_object_a_class_says_nothing_about_spread() -> None:
    rows = _rows([0, 0, 1], ["a", "b", "c"])
    assert math.isinf(paired_difference(np.zeros((1, 3)), rows, _all(rows)).error)
    lonely = _rows([0, 1], ["a", "b"])
    assert math.isinf(paired_difference(np.zeros((2, 2)), lonely, _all(lonely)).error)
    with pytest.raises(MeasurementError, match="at least one row"):
        _rows([], [])
