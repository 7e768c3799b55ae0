"""Intervals over folds, over seeds and test groups, and over several scarce classes.

Owns the arithmetic of the claim: the corrected variance of correlated folds, the floor that few test
groups set, Student's t, Holm's step-down and the smallest gain that could have been seen. Knows no
arms and no verdicts. Why each piece is there, and how often the whole errs, stands in docs/method.md.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from synthgen.errors import MeasurementError

BOOTSTRAP_CHUNK = 256


@dataclass(frozen=True)
class Estimate:
    """A mean difference, its standard error and what it rests on.

    Attributes:
        mean: in [-1, 1]; nan if nothing was measured.
        error: standard error; inf where one unit alone says nothing about spread.
        df: degrees of freedom of Student's t.
        n: folds (or generator seeds) behind it.
    """

    mean: float
    error: float
    df: float
    n: int


def overlap_of_folds(n_folds: int) -> float:
    """Mean share of training data that two folds have in common: (J - 3) / (J - 1).

    Fold j trains on all parts but j (test) and j + 1 (validation); averaged over all pairs of folds.
    """
    return max(0.0, (n_folds - 3) / (n_folds - 1)) if n_folds > 1 else 0.0


def correction_ratio(n_test: float, n_train: float, n_folds: int) -> float:
    """What is added to 1/J in the variance of the mean over folds.

    Nadeau and Bengio take n_test / n_train, that is a correlation of n_test / (n_test + n_train)
    between folds. Folds that share the part `o` of their training data have a correlation between 0
    (all spread comes from test images, seeds and generators) and `o` (all of it comes from training
    data). The ratio is kept between those of correlation o/2 and o: at 5 folds o/2 is exactly Nadeau
    and Bengio's value, at more folds theirs is too small, and a test part larger than the training
    part (simulated scarcity) cannot raise the correlation above `o`.

    Args:
        n_test, n_train: mean test and training size of a fold, in groups.
        n_folds: J >= 2.

    Raises:
        MeasurementError: no training groups or no test groups.

    Source: Nadeau and Bengio 2003, Machine Learning 52; Hoeffding's decomposition for the bound.
    """
    if n_train <= 0 or n_test <= 0:
        raise MeasurementError(f"a fold with {n_test} test and {n_train} training groups cannot be corrected for")
    overlap = overlap_of_folds(n_folds)
    lowest = (overlap / 2) / (1 - overlap / 2)
    highest = max(lowest, overlap / (1 - overlap))
    ratio = n_test / n_train
    return ratio if n_folds <= 3 else min(max(ratio, lowest), highest)


def resolution_error(contributions: NDArray[np.float64]) -> float:
    """Standard error that the test groups alone imply for a mean paired difference; never 0.

    Equal differences in all folds have no variance, yet 5 images cannot show a gain to within nothing.
    So half a pseudo-group is added to each cell of the paired table, as Agresti and Min do for matched
    proportions: for n groups, b won and c lost, the variance is
    ((b + c + 1) - (b - c)^2 / (n + 2)) / (n + 2)^2.

    Args:
        contributions: (G,) what each group adds to the mean difference (they sum to it).

    Source: Agresti and Min 2005, Statistics in Medicine 24.
    """
    n_groups = len(contributions)
    if not n_groups:
        return math.inf
    scaled = contributions * n_groups
    squares, total = float(np.sum(scaled**2)) + 1.0, float(np.sum(scaled))
    return math.sqrt(max(squares - total**2 / (n_groups + 2), 0.0)) / (n_groups + 2)


def fold_estimate(differences: NDArray[np.float64], ratio: float, floor: float = 0.0) -> Estimate:
    """Mean over folds with Nadeau and Bengio's corrected variance, (1/J + ratio) s^2.

    Args:
        differences: (J,) one number per fold, repeats averaged before.
        ratio: see `correction_ratio`; 0 gives the plain t interval.
        floor: standard error below which the fold spread is not believed (`resolution_error`).
    """
    n_folds = len(differences)
    if not n_folds:
        return Estimate(math.nan, math.inf, 0.0, 0)
    mean = float(np.mean(differences))
    if n_folds == 1:
        return Estimate(mean, math.inf, 0.0, 1)
    spread = float(np.var(differences, ddof=1))
    return Estimate(mean, max(math.sqrt((1 / n_folds + ratio) * spread), floor), n_folds - 1.0, n_folds)


def p_above_zero(estimate: Estimate) -> float:
    """One-sided p value of "the true mean is not above 0"; 1 where nothing is known."""
    if not math.isfinite(estimate.error) or math.isnan(estimate.mean):
        return 1.0
    if estimate.error == 0.0:
        return 0.0 if estimate.mean > 0 else 1.0
    return float(stdtr(estimate.df, -estimate.mean / estimate.error))


def p_below_zero(estimate: Estimate) -> float:
    """One-sided p value of "the true mean is not below 0"."""
    return p_above_zero(Estimate(-estimate.mean, estimate.error, estimate.df, estimate.n))


def t_quantile(level: float, df: float) -> float:
    """Student's t exceeded with probability `level`; inf without degrees of freedom."""
    return float(-stdtrit(df, level)) if df > 0 else math.inf


def bounds(estimate: Estimate, level_low: float, level_high: float) -> tuple[float, float]:
    """Lower and upper bound, each at its own one-sided level, within [-1, 1]."""
    if not math.isfinite(estimate.error) or math.isnan(estimate.mean):
        return -1.0, 1.0
    low = estimate.mean - t_quantile(level_low, estimate.df) * estimate.error
    high = estimate.mean + t_quantile(level_high, estimate.df) * estimate.error
    return max(low, -1.0), min(high, 1.0)


def smallest_visible(estimate: Estimate, level: float, power: float = 0.8) -> float:
    """True gain that a test at one-sided `level` finds with probability `power`, at this standard error.

    (t_level + t_(1 - power)) * error, at most 1 (then no gain could have been seen).
    """
    if not math.isfinite(estimate.error):
        return 1.0
    return min(1.0, (t_quantile(level, estimate.df) + t_quantile(1 - power, estimate.df)) * estimate.error)


def holm_levels(p_values: Sequence[float], level: float) -> tuple[list[float], list[float]]:
    """Holm's step-down: adjusted p values, and the level of each hypothesis's own one-sided bound.

    The k-th smallest of m p values is held against level / (m - k + 1); at the first that fails, the
    procedure stops and the rest share that level. So a bound at the returned level excludes 0 exactly
    where Holm rejects. These bounds carry the verdict class by class; they are not simultaneous
    intervals (Bonferroni's level / m for every class would be).

    Returns:
        (adjusted p values, levels), both in the order of `p_values`.

    Source: Holm 1979, Scandinavian Journal of Statistics 6.
    """
    n_tests = len(p_values)
    order = sorted(range(n_tests), key=lambda index: p_values[index])
    adjusted, levels = [1.0] * n_tests, [level] * n_tests
    highest, stopped_at = 0.0, 0.0
    for rank, index in enumerate(order):
        remaining = n_tests - rank
        highest = max(highest, min(1.0, remaining * p_values[index]))
        adjusted[index] = highest
        if not stopped_at and p_values[index] >= level / remaining:
            stopped_at = level / remaining
        levels[index] = stopped_at or level / remaining
    return adjusted, levels


def crossed_weights(
    n_seeds: int, n_groups: int, n_bootstrap: int, digest: str
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Weights of the two-way bootstrap: generator seeds and test groups, each drawn with replacement.

    Args:
        digest: text that the stream is seeded by (a digest of the data), so that equal data give equal numbers.
    Yields:
        (b, J) and (b, G) float64 counts, in chunks of replicates.

    Source: Owen 2007, The pigeonhole bootstrap, Annals of Applied Statistics 1 (its variance is on the safe side).
    """
    seed = int.from_bytes(hashlib.sha256(digest.encode()).digest()[:8], "big")
    generator = np.random.default_rng(seed)
    for start in range(0, n_bootstrap, BOOTSTRAP_CHUNK):
        size = min(BOOTSTRAP_CHUNK, n_bootstrap - start)
        seeds = generator.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), size=size)
        groups = generator.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=size)
        yield seeds.astype(np.float64), groups.astype(np.float64)


def crossed_estimate(
    differences: NDArray[np.float64],
    both: NDArray[np.float64],
    groups_only: NDArray[np.float64],
    n_groups: int,
    floor: float = 0.0,
) -> Estimate:
    """Mean over generator seeds on one test set, from bootstrap replicates of seeds and groups.

    The standard error is the replicates' spread; degrees of freedom after Satterthwaite from the
    seeds' share and the groups' share. A percentile interval over 5 seeds is too short, Student's t is not.

    Args:
        differences: (J,) one number per generator seed.
        both: (B,) replicates with seeds and groups drawn; groups_only: (B,) with groups drawn alone.
        n_groups: test groups drawn from.
        floor: see `fold_estimate`.
    """
    n_seeds = len(differences)
    if not n_seeds:
        return Estimate(math.nan, math.inf, 0.0, 0)
    mean = float(np.mean(differences))
    if n_seeds == 1 or n_groups < 2:
        return Estimate(mean, math.inf, 0.0, n_seeds)
    unbiased = n_groups / (n_groups - 1)
    by_seed = float(np.var(differences, ddof=1)) / n_seeds
    by_group = max(float(np.nanvar(groups_only)) * unbiased, floor**2)
    # Drawing n of n with replacement shrinks the seeds' share by (n - 1) / n: take the unbiased sum where it is larger.
    variance = max(float(np.nanvar(both)) * unbiased, by_seed, by_group)
    if variance == 0.0:
        return Estimate(mean, 0.0, n_seeds - 1.0, n_seeds)
    parts = by_seed**2 / (n_seeds - 1) + by_group**2 / (n_groups - 1)
    df = (by_seed + by_group) ** 2 / parts if parts > 0 else n_seeds - 1.0
    return Estimate(mean, math.sqrt(variance), df, n_seeds)
