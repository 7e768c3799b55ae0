import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from synthgen.errors import MeasurementError
from synthgen.metrics.intervals import (
    Estimate,
    bounds,
    correction_ratio,
    crossed_estimate,
    crossed_weights,
    fold_estimate,
    holm_levels,
    overlap_of_folds,
    p_above_zero,
    p_below_zero,
    resolution_error,
    smallest_visible,
)


@pytest.mark.parametrize("seed", range(5))
def test_without_correction_it_is_the_t_test(seed):
    sample = np.random.default_rng(seed).normal(0.02, 0.1, 6)
    estimate = fold_estimate(sample, 0.0)
    test = stats.ttest_1samp(sample, 0.0)
    np.testing.assert_allclose(bounds(estimate, 0.025, 0.025), test.confidence_interval(0.95))
    assert p_above_zero(estimate) == pytest.approx(stats.ttest_1samp(sample, 0.0, alternative="greater").pvalue)
    assert p_below_zero(estimate) == pytest.approx(stats.ttest_1samp(sample, 0.0, alternative="less").pvalue)


def test_correction_widens_by_the_published_factor():
    # Nadeau and Bengio: variance (1/J + n_test/n_train) s^2 instead of s^2 / J.
    sample = np.asarray([0.01, 0.03, 0.05, 0.02, 0.04])
    plain, corrected = fold_estimate(sample, 0.0), fold_estimate(sample, 1 / 3)
    assert corrected.error / plain.error == pytest.approx(math.sqrt((1 / 5 + 1 / 3) / (1 / 5)))
    assert corrected.df == 4


def test_overlap_is_what_the_folds_share():
    for n_folds in (3, 4, 5, 7, 10):
        trained = [set(range(n_folds)) - {j, (j + 1) % n_folds} for j in range(n_folds)]
        shares = [
            len(trained[a] & trained[b]) / (n_folds - 2) for a in range(n_folds) for b in range(n_folds) if a != b
        ]
        assert overlap_of_folds(n_folds) == pytest.approx(np.mean(shares))


def test_ratio_is_nadeau_and_bengio_at_five_folds_and_bounded_elsewhere():
    assert correction_ratio(20, 60, 5) == pytest.approx(1 / 3)
    assert correction_ratio(10, 80, 10) > 10 / 80
    assert correction_ratio(400, 60, 5) == pytest.approx(1.0)  # correlation 0.5, all training data
    assert correction_ratio(20, 20, 3) == pytest.approx(1.0)
    with pytest.raises(MeasurementError):
        correction_ratio(3, 0, 5)


def test_holm_by_hand():
    # Hand example, level 0.05: 0.01 <= 0.05/4, 0.013 <= 0.05/3, 0.03 > 0.05/2: stop.
    adjusted, levels = holm_levels([0.03, 0.01, 0.04, 0.013], 0.05)
    np.testing.assert_allclose(adjusted, [0.06, 0.04, 0.06, 0.039 if 0.039 > 0.04 else 0.04])
    np.testing.assert_allclose(levels, [0.05 / 2, 0.05 / 4, 0.05 / 2, 0.05 / 3])


@given(st.lists(st.floats(0.0, 1.0, exclude_min=True), min_size=1, max_size=8), st.sampled_from([0.025, 0.05]))
def test_bounds_at_holm_levels_exclude_zero_exactly_where_holm_rejects(p_values, level):
    adjusted, levels = holm_levels(p_values, level)
    for p_value, adjusted_p, own in zip(p_values, adjusted, levels, strict=True):
        assert adjusted_p >= p_value
        if abs(adjusted_p - level) > 1e-12:
            assert (adjusted_p < level) == (p_value < own)


def test_equal_differences_are_not_certain():
    # Five folds of one image each, all won: certain to the fold spread, not to five images.
    floor = resolution_error(np.full(5, 0.2))
    low, _ = bounds(fold_estimate(np.full(5, 1.0), 1 / 3, floor), 0.025, 0.025)
    assert 0 < low < 0.5
    tied = fold_estimate(np.zeros(5), 1 / 3, resolution_error(np.zeros(5)))
    assert p_above_zero(tied) == pytest.approx(0.5)
    assert p_above_zero(fold_estimate(np.zeros(5), 1 / 3)) == 1.0


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20))
def test_floor_is_agresti_and_min(won, lost, equal):
    n = won + lost + equal
    if n:
        contributions = np.concatenate([np.full(won, 1.0), np.full(lost, -1.0), np.zeros(equal)]) / n
        # Half added to each of the four cells: b + 1/2, c + 1/2 of n + 2 pairs.
        b, c, m = won + 0.5, lost + 0.5, n + 2
        assert resolution_error(contributions) ** 2 == pytest.approx((b + c - (b - c) ** 2 / m) / m**2)


def test_one_fold_or_none_knows_nothing():
    for sample in (np.asarray([]), np.asarray([0.3])):
        estimate = fold_estimate(sample, 1 / 3)
        assert bounds(estimate, 0.025, 0.025) == (-1.0, 1.0)
        assert p_above_zero(estimate) == p_below_zero(estimate) == 1.0
        assert smallest_visible(estimate, 0.025) == 1.0


def test_smallest_visible_gain_is_found_four_times_in_five():
    # At the true standard error: power of the t test from the noncentral t distribution.
    for df in (4, 9, 29):
        visible = smallest_visible(Estimate(0.0, 0.05, df, df + 1), 0.025)
        power = stats.nct.sf(stats.t.isf(0.025, df), df, visible / 0.05)
        assert power == pytest.approx(0.8, abs=0.02)


def test_bootstrap_weights_are_deterministic_and_count_draws():
    first = [np.concatenate(parts) for parts in zip(*crossed_weights(5, 7, 300, "a"), strict=True)]
    again = [np.concatenate(parts) for parts in zip(*crossed_weights(5, 7, 300, "a"), strict=True)]
    other = [np.concatenate(parts) for parts in zip(*crossed_weights(5, 7, 300, "b"), strict=True)]
    assert first[0].shape == (300, 5) and first[1].shape == (300, 7)
    assert (first[0].sum(axis=1) == 5).all() and (first[1].sum(axis=1) == 7).all()
    np.testing.assert_array_equal(first[1], again[1])
    assert not np.array_equal(first[1], other[1])


def test_crossed_estimate_covers_a_two_way_mean():
    # Seeds and groups both random: difference = seed effect + group effect + noise, true mean 0.1.
    generator, hits = np.random.default_rng(0), 0
    n_seeds, n_groups, n_experiments = 5, 20, 400
    weights = [np.concatenate(parts) for parts in zip(*crossed_weights(n_seeds, n_groups, 400, "x"), strict=True)]
    for _ in range(n_experiments):
        table = (
            0.1
            + 0.05 * generator.standard_normal((n_seeds, 1))
            + 0.3 * generator.standard_normal((1, n_groups))
            + 0.2 * generator.standard_normal((n_seeds, n_groups))
        )
        by_seed = weights[1] @ table.T / n_groups  # (B, J)
        both = np.einsum("bj,bj->b", weights[0] / n_seeds, by_seed)
        estimate = crossed_estimate(table.mean(axis=1), both, by_seed.mean(axis=1), n_groups)
        low, high = bounds(estimate, 0.025, 0.025)
        hits += low <= 0.1 <= high
    assert 0.93 <= hits / n_experiments <= 1.0
