"""What synthetic images are worth in real ones, against curves whose inverse is known."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthgen.errors import MeasurementError
from synthgen.metrics.worth import FARTHEST, learning_exponent, worth_in_reals

COUNTS = (5.0, 10.0, 20.0)


def curve(a: float, b: float, counts: tuple[float, ...] = COUNTS) -> np.ndarray:
    return a * np.asarray(counts) ** -b


@given(a=st.floats(0.1, 1.0), b=st.floats(0.1, 1.5))
def test_a_power_law_gives_its_exponent(a: float, b: float) -> None:
    errors = curve(a, b)
    if errors.min() > 2e-3:
        assert learning_exponent(COUNTS, errors) == pytest.approx(b, rel=1e-6)


@given(b=st.floats(0.2, 1.2), times=st.floats(0.3, 6.0), folds=st.integers(2, 8))
def test_an_arm_with_the_error_of_m_images_is_worth_m_images(b: float, times: float, folds: int) -> None:
    errors = np.tile(curve(0.9, b), (folds, 1))
    synthetic = np.full(folds, float(curve(0.9, b, (20.0 * times,))[0]))
    if min(errors.min(), synthetic.min()) < 2e-3:
        return
    found = worth_in_reals(COUNTS, errors, synthetic)
    assert found.equivalent == pytest.approx(20.0 * times, rel=1e-6)
    assert found.more[0] == pytest.approx(20.0 * (times - 1), rel=1e-6, abs=1e-6)
    # folds that agree leave no doubt
    assert found.low == pytest.approx(found.equivalent, rel=1e-6)
    assert found.high == pytest.approx(found.equivalent, rel=1e-6)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    truth, inside, runs = 30.0, 0, 300
    for _ in range(runs):
        errors = curve(0.6, 0.6) * rng.lognormal(0.0, 0.1, (10, 3))
        synthetic = curve(0.6, 0.6, (truth,))[0] * rng.lognormal(0.0, 0.1, 10)
        found = worth_in_reals(COUNTS, errors, synthetic)
        inside += found.low <= truth <= found.high
    # binomial(300, 0.95): 3.5 standard errors below is 0.906
    assert 0.906 <= inside / runs <= 0.995


def test_no_number_where_the_curve_does_not_fall_or_was_not_measured() -> None:
    flat = worth_in_reals(COUNTS, np.full((5, 3), 0.2), np.full(5, 0.1))
    assert math.isnan(flat.equivalent)
    assert (flat.low, flat.high) == (0.0, math.inf)
    assert "did not lower" in flat.reason
    far = worth_in_reals(COUNTS, np.tile(curve(0.9, 0.3), (5, 1)), np.full(5, 0.01))
    assert math.isnan(far.equivalent)
    assert f"{FARTHEST:g} times" in far.reason
    # hardly falling, and the challenger a little worse: the reviewer's case, in which -12 of 12 images was said once
    flat_curve = np.tile([0.301, 0.3005, 0.300], (5, 1))
    lost = worth_in_reals((3.0, 6.0, 12.0), flat_curve, np.full(5, 0.32))
    assert math.isnan(lost.equivalent)
    assert "where the curve begins" in lost.reason
    unsure = np.array([[0.05], [0.60], [0.05]]) * np.array([4.0, 2.0, 1.0]).clip(max=1.5)
    wide = worth_in_reals(COUNTS, unsure, unsure[:, 2] * np.array([0.2, 1.0, 0.2]))
    assert wide.low == 0.0 or wide.low >= COUNTS[0]
    assert wide.high == math.inf or wide.high <= FARTHEST * COUNTS[-1]
    alone = worth_in_reals(COUNTS, curve(0.9, 0.5)[None], np.array([0.15]))
    assert (alone.low, alone.high) == (0.0, math.inf)


@pytest.mark.parametrize("counts", [(5.0,), (5.0, 5.0), (10.0, 5.0), (0.0, 5.0)])
def test_counts_that_are_no_curve_are_refused(counts: tuple[float, ...]) -> None:
    with pytest.raises(MeasurementError):
        worth_in_reals(counts, np.full((3, len(counts)), 0.2), np.full(3, 0.1))


def test_shared_training_data_widen_the_interval_by_the_corrected_variance() -> None:
    rng = np.random.default_rng(3)
    errors = curve(0.6, 0.6) * rng.lognormal(0.0, 0.02, (5, 3))
    synthetic = curve(0.6, 0.6, (25.0,))[0] * rng.lognormal(0.0, 0.02, 5)
    plain = worth_in_reals(COUNTS, errors, synthetic)
    wider = worth_in_reals(COUNTS, errors, synthetic, ratio=0.25)
    # (1/5 + 1/4) over 1/5 in the variance, on the log scale
    assert math.log(wider.high / wider.equivalent) == pytest.approx(1.5 * math.log(plain.high / plain.equivalent))
