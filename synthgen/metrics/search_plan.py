"""How much of a search over mixing policies fits a budget: candidates, rungs and trainings, before any is run.

Owns the arithmetic of successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943): each rung trains what is left
`REPEATS` times more in every fold, then the better half stays. Knows neither scores nor clocks.
"""

import math
from dataclasses import dataclass

REPEATS = 2
"""Trainings per fold that a rung adds: two, since one alone shows no spread between trainings."""
VARIANT_RUNGS = 2
"""Rungs' worth of trainings that a policy with other shares of one class gets."""
DISAGREEMENT = 1.5
"""How many more candidates are expected to be trained than one fold keeps, since each fold keeps its own."""


@dataclass(frozen=True)
class SearchPlan:
    """What is meant to be trained.

    Attributes:
        n_candidates: policies in the first rung, the default among them.
        rungs: challengers of the default that a fold keeps in each rung.
        n_variants: policies with other shares of one class, tried in the end; 0 where the budget has no room.
        trainings: expected number, all folds.
    """

    n_candidates: int
    rungs: tuple[int, ...]
    n_variants: int
    trainings: int

    @property
    def variant_repeats(self) -> int:
        """Repeats in which a variant is compared."""
        return REPEATS * min(VARIANT_RUNGS, len(self.rungs))

    @property
    def n_looks(self) -> int:
        """Comparisons with the default from which the best may be taken."""
        return self.n_candidates - 1 + self.n_variants


def halvings(n_challengers: int) -> tuple[int, ...]:
    """Challengers in each rung: all, then the better half, rounded down, until one is left."""
    rungs = [n_challengers]
    while rungs[-1] > 1:
        rungs.append(rungs[-1] // 2)
    return tuple(rungs)


def least_trainings(n_folds: int) -> int:
    """Trainings that compare the default with one other policy: fewer choose nothing."""
    return 2 * REPEATS * n_folds


def plan_search(n_candidates: int, n_variants: int, n_folds: int, allowed: int) -> SearchPlan | None:
    """The largest search whose expected trainings do not exceed what is allowed.

    The variants of shares go first, then candidates from the end of the list.

    Args:
        n_candidates: wanted, the default among them; at least 2.
        n_variants: wanted.
        n_folds: measured folds.
        allowed: trainings.
    Returns:
        None where not even the default and one other policy fit (`least_trainings`).
    """
    for variants in (n_variants, 0):
        plan = _plan(n_candidates, variants, n_folds)
        if plan.trainings <= allowed:
            return plan
    for n in range(n_candidates - 1, 1, -1):
        plan = _plan(n, 0, n_folds)
        if plan.trainings <= allowed:
            return plan
    return None


def _plan(n_candidates: int, n_variants: int, n_folds: int) -> SearchPlan:
    rungs = halvings(n_candidates - 1)
    trained = [rungs[0], *(min(rungs[0], math.ceil(DISAGREEMENT * n)) for n in rungs[1:])]
    in_rungs = REPEATS * sum(n + 1 for n in trained)
    variants = math.ceil(DISAGREEMENT * n_variants) * REPEATS * min(VARIANT_RUNGS, len(rungs))
    return SearchPlan(n_candidates, rungs, n_variants, n_folds * (in_rungs + variants))
