"""What synthetic images are worth in real ones: the arm that has them, placed on a learning curve of real images.

Owns the curve and its inverse. Takes errors by fold and gives numbers of images back; trains nothing, and refuses to
place an arm on a curve that does not fall.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from synthgen.errors import MeasurementError
from synthgen.metrics.intervals import t_quantile

LEAST_ERROR = 1e-3
"""Errors below it count as it: a logarithm of no error at all says nothing."""
FARTHEST = 8.0
"""No equivalent number of images beyond this multiple of the real ones is stated: the curve was not measured there. To
the left the smallest number measured is the limit."""


@dataclass(frozen=True)
class Worth:
    """Real images that synthetic ones stand for, in a class of `n_real`.

    Attributes:
        n_real: mean number of real images of a scarce class that the arms trained on.
        equivalent: real images that the arm without synthetic ones would need for the same error; nan if unknown.
        low, high: interval of `equivalent` by the jackknife over folds; 0 and inf where one side is open.
        exponent: b of error = a n^-b.
        n_folds: folds behind it.
        reason: why there is no number; empty where there is one.
    """

    n_real: float
    equivalent: float
    low: float
    high: float
    exponent: float
    n_folds: int
    reason: str = ""

    @property
    def more(self) -> tuple[float, float, float]:
        """(mean, low, high) of the additional real images."""
        return self.equivalent - self.n_real, self.low - self.n_real, self.high - self.n_real


def unplaced(n_real: float, n_folds: int, reason: str, exponent: float = math.nan) -> Worth:
    """No number, and why."""
    return Worth(n_real, math.nan, 0.0, math.inf, exponent, n_folds, reason)


def learning_exponent(counts: Sequence[float], errors: NDArray[np.float64]) -> float:
    """b of error = a n^-b, by least squares of log error on log n.

    Args:
        counts: real images of a scarce class, ascending.
        errors: (len(counts),) in [0, 1].

    Source: learning curves as power laws, Hestness et al. 2017 (arXiv:1712.00409), section 2.
    """
    x = np.log(np.asarray(counts, dtype=np.float64))
    y = np.log(np.maximum(errors, LEAST_ERROR))
    x = x - x.mean()
    return float(-(x @ (y - y.mean())) / (x @ x))


def _log_ratio(counts: Sequence[float], errors: NDArray[np.float64], synthetic: NDArray[np.float64]) -> float:
    """log(equivalent / n) from folds' errors (J, C) and (J,); nan where the curve does not fall."""
    means = errors.mean(axis=0)
    exponent = learning_exponent(counts, means)
    if exponent <= 0:
        return math.nan
    here, there = max(float(means[-1]), LEAST_ERROR), max(float(synthetic.mean()), LEAST_ERROR)
    return (math.log(here) - math.log(there)) / exponent


def worth_in_reals(
    counts: Sequence[float],
    errors: NDArray[np.float64],
    synthetic: NDArray[np.float64],
    *,
    ratio: float = 0.0,
    level: float = 0.025,
) -> Worth:
    """Places the arm with synthetic images on the learning curve of the same arm without them.

    The curve goes through the error at all `counts` real images and falls (or rises, to the left) with the exponent
    that was fitted to all counts. Beyond `counts[-1]` it is an extrapolation, so it is stated up to `FARTHEST` times
    that number and no further.

    Args:
        counts: mean real images of a scarce class, ascending; the last are all that there are.
        errors: (J, len(counts)) 1 - mean recall of the scarce classes by fold, without synthetic images.
        synthetic: (J,) the same with them, at all real images.
        ratio: what is added to 1/J in the variance, as folds share training data (`intervals.correction_ratio`).
        level: one-sided, of each bound.

    Raises:
        MeasurementError: fewer than two counts, counts that do not rise, or shapes that do not fit.

    Source: Efron and Stein 1981 (Ann. Statist. 9) for the jackknife.
    """
    n_folds = len(synthetic)
    if errors.shape != (n_folds, len(counts)) or len(counts) < 2 or not n_folds:
        raise MeasurementError(
            f"errors {errors.shape} of {len(counts)} counts and {n_folds} folds do not fit; expected (folds, counts), "
            "at least two counts and one fold"
        )
    if any(b <= a for a, b in pairwise(counts)) or counts[0] <= 0:
        raise MeasurementError(f"counts {list(counts)} must be positive and rise")
    n_real = float(counts[-1])
    exponent = learning_exponent(counts, errors.mean(axis=0))
    log_ratio = _log_ratio(counts, errors, synthetic)
    if math.isnan(log_ratio):
        reason = "more real images did not lower the error of the arm without synthetic ones"
        return unplaced(n_real, n_folds, reason, exponent)
    if log_ratio > math.log(FARTHEST):
        reason = f"over {FARTHEST:g} times the real images there are, where no curve was measured"
        return unplaced(n_real, n_folds, reason, exponent)
    if log_ratio < math.log(counts[0] / n_real):
        reason = f"fewer than the {counts[0]:g} real images where the curve begins"
        return unplaced(n_real, n_folds, reason, exponent)
    low, high = _jackknife(counts, errors, synthetic, log_ratio, ratio, level)
    return Worth(
        n_real, n_real * math.exp(log_ratio), n_real * math.exp(low), n_real * math.exp(high), exponent, n_folds
    )


def _jackknife(
    counts: Sequence[float],
    errors: NDArray[np.float64],
    synthetic: NDArray[np.float64],
    log_ratio: float,
    ratio: float,
    level: float,
) -> tuple[float, float]:
    """Bounds of the log ratio, open where a fold less leaves no falling curve or one fold is all there is."""
    n_folds = len(synthetic)
    if n_folds < 2:
        return -math.inf, math.inf
    left_out = [_log_ratio(counts, np.delete(errors, j, axis=0), np.delete(synthetic, j)) for j in range(n_folds)]
    if any(math.isnan(value) for value in left_out):
        return -math.inf, math.inf
    error = math.sqrt((1 + n_folds * ratio) * (n_folds - 1) * float(np.var(left_out)))
    width = t_quantile(level, n_folds - 1.0) * error
    low, high = log_ratio - width, log_ratio + width
    return (
        low if low >= math.log(counts[0] / counts[-1]) else -math.inf,
        high if high <= math.log(FARTHEST) else math.inf,
    )
