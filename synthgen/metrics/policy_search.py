"""Successive halving over mixing policies, done again for every fold from the same trainings.

Owns who stays, who is chosen and what gain is expected. A *unit* is one choice: it may look at all validation rows but
those of the groups that it reports on. Trainings come from the caller, who learns no unit's scores. Refuses the noise
of many looks: a policy replaces the default only where that would befall at most 16 % of searches among equals. The
rules and what they cost stand in docs/method.md, "Search".
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from synthgen.metrics.intervals import Estimate, t_quantile
from synthgen.metrics.paired_scores import ValidationRows, paired_difference, row_weights
from synthgen.metrics.search_plan import REPEATS, SearchPlan

LEVEL = 0.1587
"""One-sided level of one standard error: how often a search among equal policies may leave the default."""

Scores = NDArray[np.float64]
"""(R, n): score of every validation row in every repeat."""


@dataclass(frozen=True)
class Choice:
    """What one unit chose.

    Attributes:
        name: of the policy.
        gain: over the default, as it chose (the best of many: too high on average).
        shrunk: the same after pulling all candidates towards 0 by empirical Bayes.
        needed: mean that the best candidate had to exceed.
        repeats: behind the numbers.
    """

    name: str
    gain: Estimate
    shrunk: Estimate
    needed: float
    repeats: int


@dataclass(frozen=True)
class Outcome:
    """What a search found.

    Attributes:
        choices: unit -> its choice.
        gains: unit -> candidate -> gain over the default, at the candidate's last rung in that unit.
        repeats: candidate -> repeats trained in every fold.
        trainings: candidates x repeats x folds.
        rungs: that were run.
        stopped: whether the next trainings would not have fitted what was allowed.
    """

    choices: dict[str, Choice]
    gains: dict[str, dict[str, Estimate]]
    repeats: dict[str, int]
    trainings: int
    rungs: int
    stopped: bool


def judge_level(n_looks: int) -> float:
    """Level of each of `n_looks` comparisons, so that equal policies replace the default in 16 % at most (Šidák).

    Comparisons with one default are positively dependent, so the true share is below (Šidák 1967, JASA 62).
    """
    return 1.0 - math.pow(1.0 - LEVEL, 1.0 / max(n_looks, 1))


def needed_gain(error: float, df: float, n_looks: int) -> float:
    """What the best of `n_looks` must exceed; one standard error where there is one look and df is large."""
    return t_quantile(judge_level(n_looks), df) * error if df > 0 and math.isfinite(error) else math.inf


def shrink(estimate: Estimate, all_of_them: Sequence[Estimate]) -> Estimate:
    """An estimate pulled towards 0 as much as the spread of all candidates says.

    Candidates' true gains are taken as normal around 0 (the default); their variance is what the observed squares
    exceed the squared errors by. The best of many is then not the luckiest of many.

    Source: Efron and Morris 1973, JASA 68 (empirical Bayes, unequal variances by moments).
    """
    known = [one for one in all_of_them if math.isfinite(one.error)]
    if not known or not math.isfinite(estimate.error):
        return Estimate(0.0, estimate.error, estimate.df, estimate.n)
    # fsum, so that the order of candidates does not show in the last digit
    spread = max(0.0, math.fsum(one.mean**2 - one.error**2 for one in known) / len(known))
    total = spread + estimate.error**2
    kept = spread / total if total > 0 else 0.0
    return Estimate(kept * estimate.mean, math.sqrt(kept) * estimate.error, estimate.df, estimate.n)


@dataclass
class PolicySearch:
    """One search; `run` does it.

    Attributes:
        rows: validation rows of all folds.
        units: name -> (n,) bool, rows that the unit may look at.
        names: candidates in their order, the default first.
        plan: what fits.
        allowed: trainings at most.
        train: (candidate, repeats) -> (repeats, n) scores, the same seeds for every candidate.
        variants_of: candidate -> names of the same policy with another share of one class.
        classes: labels that count; None: all.
    """

    rows: ValidationRows
    units: Mapping[str, NDArray[np.bool_]]
    names: Sequence[str]
    plan: SearchPlan
    allowed: int
    train: Callable[[str, int], Scores]
    variants_of: Callable[[str], Sequence[str]]
    classes: Sequence[int] | None = None
    _scores: dict[str, Scores] = field(default_factory=dict)
    _weights: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._weights = {unit: row_weights(self.rows, kept, self.classes) for unit, kept in self.units.items()}

    def run(self) -> Outcome:
        """Halves, chooses, tries the shares of single classes, and says what it cost."""
        default, challengers = self.names[0], list(self.names[1 : self.plan.n_candidates])
        alive = dict.fromkeys(self.units, challengers)
        last: dict[str, dict[str, int]] = {unit: {} for unit in self.units}
        repeats, rungs_run, stopped = 0, 0, False
        for n_kept in self.plan.rungs:
            kept = {unit: self._better(unit, names, n_kept, repeats) for unit, names in alive.items()}
            union = [name for name in challengers if any(name in names for names in kept.values())]
            if not self._fits([default, *union], repeats + REPEATS):
                stopped = True
                break
            alive, repeats, rungs_run = kept, repeats + REPEATS, rungs_run + 1
            self._train([default, *union], repeats)
            for unit, names in alive.items():
                last[unit] |= dict.fromkeys(names, repeats)
        gains = {
            unit: {name: self._gain(unit, name, default, n) for name, n in names.items()}
            for unit, names in last.items()
        }
        choices = {
            unit: self._choose(unit, self._better(unit, names, 1, repeats), gains[unit], repeats)
            for unit, names in alive.items()
        }
        if self.plan.n_variants and not stopped:
            stopped = not self._try_variants(choices, gains)
        counts = {name: len(scores) for name, scores in self._scores.items()}
        return Outcome(choices, gains, counts, self._n_folds * sum(counts.values()), rungs_run, stopped)

    @property
    def _n_folds(self) -> int:
        return len(np.unique(self.rows.folds))

    def _fits(self, names: Sequence[str], repeats: int) -> bool:
        trained = {name: len(scores) for name, scores in self._scores.items()}
        wanted = {**trained, **{name: max(repeats, trained.get(name, 0)) for name in names}}
        return self._n_folds * sum(wanted.values()) <= self.allowed

    def _train(self, names: Sequence[str], repeats: int) -> None:
        for name in names:
            if len(self._scores.get(name, ())) < repeats:
                self._scores[name] = self.train(name, repeats)

    def _gain(self, unit: str, name: str, base: str, repeats: int) -> Estimate:
        differences = self._scores[name][:repeats] - self._scores[base][:repeats]
        return paired_difference(differences, self.rows, self._weights[unit])

    def _better(self, unit: str, names: Sequence[str], n_kept: int, repeats: int) -> list[str]:
        """The `n_kept` of `names` with the best mean score, in their order; ties go to those that stand first."""
        if len(names) <= n_kept:
            return list(names)
        weights = self._weights[unit]
        # 12 digits, so that the order of a sum decides no tie
        means = {name: round(float(weights @ self._scores[name][:repeats].mean(axis=0)), 12) for name in names}
        best = sorted(names, key=lambda name: -means[name])[:n_kept]
        return [name for name in names if name in best]

    def _choose(self, unit: str, finalists: Sequence[str], gains: Mapping[str, Estimate], repeats: int) -> Choice:
        default = self.names[0]
        found = gains[finalists[0]]
        needed = needed_gain(found.error, found.df, self.plan.n_looks)
        if found.mean > needed:
            return Choice(finalists[0], found, shrink(found, list(gains.values())), needed, repeats)
        return Choice(default, _NO_GAIN, _NO_GAIN, needed, repeats)

    def _try_variants(self, choices: dict[str, Choice], gains: dict[str, dict[str, Estimate]]) -> bool:
        """Tries other shares of single classes in each unit's choice; False where they do not fit."""
        default, repeats = self.names[0], self.plan.variant_repeats
        of_base = {base: list(self.variants_of(base)) for base in dict.fromkeys(c.name for c in choices.values())}
        union = list(dict.fromkeys(chain.from_iterable(of_base.values())))
        if not self._fits(union, repeats):
            return False
        self._train(union, repeats)
        for unit, choice in choices.items():
            variants = of_base[choice.name]
            if not variants:
                continue
            over_base = {name: self._gain(unit, name, choice.name, repeats) for name in variants}
            gains[unit] |= {name: self._gain(unit, name, default, repeats) for name in variants}
            best = max(variants, key=lambda name: round(over_base[name].mean, 12))
            needed = needed_gain(over_base[best].error, over_base[best].df, self.plan.n_looks)
            if over_base[best].mean > needed:
                found = gains[unit][best]
                choices[unit] = Choice(best, found, shrink(found, list(gains[unit].values())), needed, repeats)
        return True

    def expected_gain(self, outcome: Outcome, unit_of_row: Sequence[str], scores: Mapping[str, Scores]) -> Estimate:
        """Gain over the default of the whole search, each row by the choice that was made without it.

        Args:
            outcome: of `run`.
            unit_of_row: for each row the unit that did not look at its group.
            scores: candidate -> (R, n), of any kind in [0, 1]: the score itself, or right and wrong.
        Returns:
            class-balanced mean with its standard error. No choice is measured on a row that it was made from, so the
            best is not the luckiest (cross-validation of the choice: Stone 1974, JRSS B 36).
        """
        names = np.array([outcome.choices[unit].name for unit in unit_of_row])
        used = sorted(set(names.tolist()))
        default = self.names[0]
        repeats = min(len(scores[name]) for name in [default, *used])
        differences = np.zeros((repeats, len(names)))
        for name in used:
            own = names == name
            differences[:, own] = scores[name][:repeats, own] - scores[default][:repeats, own]
        return paired_difference(
            differences, self.rows, row_weights(self.rows, np.ones(len(names), dtype=bool), self.classes)
        )


_NO_GAIN = Estimate(0.0, math.inf, math.inf, 0)
"""Of the default over itself: 0 by definition; nothing was measured that could have a spread."""


def validation_parts(rows: ValidationRows, n_folds: int) -> NDArray[np.int64]:
    """(n,) int64: parts of whole groups, on each of which the choice made from the others is measured.

    A group's part is the first fold that validates it; where all folds validate the same images (the user's own),
    groups are dealt to `n_folds` parts, class by class, in the order of their names.
    """
    groups, first = np.unique(rows.groups, return_index=True)
    part = {str(group): int(rows.folds[rows.groups == group].min()) for group in groups}
    if len(set(part.values())) < 2:
        order = sorted(zip(rows.labels[first].tolist(), groups.tolist(), strict=True))
        part = {group: i % max(n_folds, 2) for i, (_, group) in enumerate(order)}
    return np.array([part[str(group)] for group in rows.groups], dtype=np.int64)


def search_units(
    rows: ValidationRows, tested: Mapping[str, NDArray[np.str_]]
) -> tuple[dict[str, NDArray[np.bool_]], list[str]]:
    """Who chooses from which rows.

    Args:
        rows: of all folds.
        tested: fold -> groups of its test side, in the order of the folds.
    Returns:
        unit -> (n,) bool, rows that it may look at: a unit per fold, without the groups that the fold is tested on;
        `final`, with all rows; and one per part of `validation_parts` that no fold leaves out already. And for each row
        the unit that does not look at its group.
    """
    units = {fold: ~np.isin(rows.groups, groups) for fold, groups in tested.items()}
    units["final"] = np.ones(len(rows.labels), dtype=bool)
    parts = validation_parts(rows, len(tested))
    unit_of_part: dict[int, str] = {}
    for part in np.unique(parts).tolist():
        kept = parts != part
        same = next((unit for unit, mask in units.items() if np.array_equal(mask, kept)), None)
        unit_of_part[part] = same or f"without part {part}"
        units.setdefault(unit_of_part[part], kept)
    return units, [unit_of_part[part] for part in parts.tolist()]
