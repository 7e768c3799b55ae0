"""The smallest gain at best: exact binomial chances beside it, its limits, and simulated experiments that find it."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from synthgen.errors import MeasurementError
from synthgen.metrics.intervals import correction_ratio, fold_estimate, p_above_zero, resolution_error, t_quantile
from synthgen.metrics.power import groups_needed, groups_to_win, smallest_gain_at_best

LEVEL = 0.025
GROUPS, FOLDS, CLASSES = st.integers(2, 3000), st.integers(2, 20), st.integers(1, 12)


def degrees(n, n_folds, *, frozen):
    return n - 1 if frozen else min(n, n_folds) - 1


def floor_of(won, n):
    contributions = np.zeros(n)
    contributions[:won] = 1 / n
    return resolution_error(contributions)


@given(n=st.integers(2, 400), n_folds=FOLDS, m=CLASSES, frozen=st.booleans())
def test_so_many_groups_won_are_just_enough_for_the_test(n, n_folds, m, frozen):
    df = degrees(n, n_folds, frozen=frozen)
    needed = groups_to_win(n, LEVEL / m, df)
    for won in {math.floor(needed), math.floor(needed) + 1}:
        if 0 <= won <= n and abs(won - needed) > 1e-6:
            assert (won / n > t_quantile(LEVEL / m, df) * floor_of(won, n)) == (won > needed)


@given(n=GROUPS, n_folds=FOLDS, m=CLASSES, frozen=st.booleans())
def test_the_chance_is_at_most_the_stated_one_and_short_of_it_by_less_than_one_group(n, n_folds, m, frozen):
    gain = smallest_gain_at_best(n, n_folds=n_folds, n_scarce=m, level=LEVEL, frozen=frozen)
    if gain == math.inf:
        return
    needed = groups_to_win(n, LEVEL / m, degrees(n, n_folds, frozen=frozen))
    assert stats.binom.sf(math.floor(needed), n, gain) <= 0.8 + 1e-9  # P(won > needed)
    assert stats.binom.sf(math.floor(needed) - 1, n, gain) >= 0.8 - 1e-9


@given(n=GROUPS, n_folds=FOLDS, m=CLASSES, frozen=st.booleans())
def test_more_groups_and_folds_help_and_more_classes_cost(n, n_folds, m, frozen):
    def smallest(n, n_folds, m):
        return smallest_gain_at_best(n, n_folds=n_folds, n_scarce=m, level=LEVEL, frozen=frozen)

    gain, slack = smallest(n, n_folds, m), 1e-9
    assert gain > 0
    assert smallest(n + 1, n_folds, m) <= gain + slack
    assert smallest(n, n_folds + 1, m) <= gain + slack
    assert smallest(n, n_folds, m + 1) >= gain - slack


@given(gain=st.floats(0.01, 0.9), n_folds=FOLDS, m=CLASSES, frozen=st.booleans())
def test_the_groups_needed_are_the_fewest(gain, n_folds, m, frozen):
    needed = groups_needed(gain, n_folds=n_folds, n_scarce=m, level=LEVEL, frozen=frozen)
    assert needed is not None
    assert smallest_gain_at_best(needed, n_folds=n_folds, n_scarce=m, level=LEVEL, frozen=frozen) <= gain
    assert smallest_gain_at_best(needed - 1, n_folds=n_folds, n_scarce=m, level=LEVEL, frozen=frozen) > gain


def test_what_cannot_be_shown_and_what_cannot_be_asked():
    assert smallest_gain_at_best(1, n_folds=5, n_scarce=1, level=LEVEL) == math.inf
    assert smallest_gain_at_best(500, n_folds=1, n_scarce=1, level=LEVEL) == math.inf
    assert groups_needed(0.05, n_folds=1, n_scarce=1, level=LEVEL) is None
    assert smallest_gain_at_best(4, n_folds=2, n_scarce=1, level=LEVEL) == math.inf  # t with one degree of freedom
    with pytest.raises(MeasurementError, match="0 scarce classes"):
        smallest_gain_at_best(5, n_folds=2, n_scarce=0, level=LEVEL)
    with pytest.raises(MeasurementError, match="not in"):
        groups_needed(0.0, n_folds=5, n_scarce=1, level=LEVEL)
    # two folds and many classes: nothing that a person could change, so no error
    assert groups_needed(0.05, n_folds=2, n_scarce=100, level=LEVEL) is None


def share_found(generator, gain, n, n_folds, m, *, even, n_experiments=1500):
    """Share of experiments in which whole groups won by chance, none lost, pass the test of `compare` at level / m."""
    per_fold, found = n // n_folds, 0
    ratio = correction_ratio(per_fold, per_fold * (n_folds - 2), n_folds)
    for won in generator.binomial(n, gain, n_experiments):
        groups = np.zeros(n)
        groups[:won] = 1.0
        if even:
            groups = groups.reshape(per_fold, n_folds).T  # (J, n / J): folds differ by one group at most
        else:
            groups = generator.permutation(groups).reshape(n_folds, per_fold)  # (J, n / J)
        estimate = fold_estimate(groups.mean(axis=1), ratio, resolution_error(groups.ravel() / n))
        found += p_above_zero(estimate) < LEVEL / m
    return found / n_experiments


@pytest.mark.parametrize(("n", "n_folds", "m"), [(60, 5, 1), (100, 5, 2), (200, 10, 3), (400, 5, 1)])
def test_in_the_best_case_about_four_of_five_experiments_find_it_and_few_find_half(n, n_folds, m):
    gain = smallest_gain_at_best(n, n_folds=n_folds, n_scarce=m, level=LEVEL)
    generator = np.random.default_rng([n, n_folds, m])
    found = share_found(generator, gain, n, n_folds, m, even=True)
    assert 0.68 < found < 0.83  # groups come whole: up to a group's worth below 0.8
    assert share_found(generator, gain / 2, n, n_folds, m, even=True) < 0.3
    # where chance also spreads the groups over folds, fewer find it: it is the best case
    assert share_found(generator, gain, n, n_folds, m, even=False, n_experiments=500) < found
