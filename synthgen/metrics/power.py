"""What a test set could show at best, from its size alone: known before anything is trained.

Owns the smallest gain in recall that would be found in four of five experiments if everything went well: test groups
are won outright, none is lost, and folds (or generator seeds) agree, so that the standard error is the floor that the
number of test groups sets (`intervals.resolution_error`). Knows no results; what an experiment in fact could have shown
is `intervals.smallest_visible`.
"""

import math

from scipy.special import betaincinv

from synthgen.errors import MeasurementError
from synthgen.metrics.intervals import t_quantile

POWER = 0.8
MAX_GROUPS = 10_000_000


def groups_to_win(n_groups: int, level: float, df: float) -> float:
    """How many of the test groups must be won, and none lost, for the lower bound to lie above 0.

    It solves b / n = t_level * SE(b), where SE(b)^2 = ((b + 1) - b^2 / (n + 2)) / (n + 2)^2 is the floor of
    `resolution_error` with c = 0 lost; the test rejects for more than b groups.

    Args:
        n_groups: n, test groups of the class.
        level: one-sided level of the test.
        df: degrees of freedom of Student's t.
    Returns:
        a real number, which may exceed n.
    Source: Agresti and Min 2005, Statistics in Medicine 24.
    """
    c = (t_quantile(level, df) * n_groups / (n_groups + 2)) ** 2
    square = 1.0 + c / (n_groups + 2)
    return (c + math.sqrt(c**2 + 4.0 * square * c)) / (2.0 * square)


def smallest_gain_at_best(
    n_groups: int, *, n_folds: int, n_scarce: int, level: float, frozen: bool = False, power: float = POWER
) -> float:
    """The true gain in recall below which a test set finds less than `power` of the gains, even in the best case.

    The number of groups won is binomial with the true gain; b of them are needed (`groups_to_win`). The gain returned
    has P(won >= b) = `power` by the incomplete beta function, which for whole b is the binomial tail. As a test rejects
    for more than b groups, and groups come whole, its chance at this gain is at most `power`.

    Student's t has J - 1 degrees of freedom (J: folds that can hold a test group of the class), or n - 1 on the user's
    own test set, where agreeing generator seeds leave the groups as the only spread.

    Args:
        n_groups: test groups of the class, over all folds together.
        n_folds: J, measured folds or generator seeds.
        n_scarce: m, scarce classes that Holm's first step shares the level among.
        level: one-sided level of the verdict, (1 - confidence) / 2.
        frozen: the test set is the user's own.
        power: chance to find it, in (0, 1).
    Returns:
        a fraction in (0, 1); inf where no gain, however large, could be shown.
    Raises:
        MeasurementError: a count below 0, no scarce class, or a level or power out of range.
    """
    if n_groups < 0 or n_scarce < 1 or not 0.0 < level < 0.5 or not 0.0 < power < 1.0:
        raise MeasurementError(
            f"no gain can be worked out for {n_groups} test groups, {n_scarce} scarce classes, level {level} and power "
            f"{power}; groups must be 0 or more, classes 1 or more, the level in (0, 0.5), power in (0, 1)"
        )
    if n_groups < 2 or n_folds < 2:
        return math.inf
    df = n_groups - 1 if frozen else min(n_folds, n_groups) - 1
    needed = groups_to_win(n_groups, level / n_scarce, df)
    return math.inf if needed >= n_groups else float(betaincinv(needed, n_groups - needed + 1.0, power))


def groups_needed(
    gain: float, *, n_folds: int, n_scarce: int, level: float, frozen: bool = False, power: float = POWER
) -> int | None:
    """The fewest test groups with which `gain` could be shown in the best case; None where none could.

    That is so below two folds, and where over ten million groups would be needed (two folds, many scarce classes).

    Args:
        gain: wanted, in (0, 1).
        n_folds, n_scarce, level, frozen, power: see `smallest_gain_at_best`.
    Raises:
        MeasurementError: a gain that is not in (0, 1).
    """

    def enough(n_groups: int) -> bool:
        smallest = smallest_gain_at_best(
            n_groups, n_folds=n_folds, n_scarce=n_scarce, level=level, frozen=frozen, power=power
        )
        return smallest <= gain

    if not 0.0 < gain < 1.0:
        raise MeasurementError(f"a gain of {gain} is not in (0, 1)")
    if n_folds < 2 or not enough(MAX_GROUPS):
        return None
    low, high = 1, MAX_GROUPS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
