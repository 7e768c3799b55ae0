"""The search among mixing policies: what it does among equals, with one better, and what it may never look at."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.simulated_searches import BETTER, N_FOLDS, NAMES, simulate_search, typical_error
from synthgen.metrics.intervals import Estimate
from synthgen.metrics.paired_scores import ValidationRows
from synthgen.metrics.policy_search import (
    LEVEL,
    judge_level,
    needed_gain,
    shrink,
    validation_parts,
)
from synthgen.metrics.search_plan import REPEATS, halvings, least_trainings, plan_search


def test_among_equals_the_default_stays_and_the_reported_gain_is_no_winners_curse() -> None:
    n_searches = 200
    kept, reported, chosen_gains = 0, [], []
    for seed in range(n_searches):
        simulated = simulate_search(seed, variants=2)
        outcome = simulated.search.run()
        choice = outcome.choices["final"]
        kept += choice.name == "default"
        assert choice.name != "default" or (choice.gain.mean, choice.gain.error) == (0.0, np.inf)
        reported.append(simulated.expected_gain(outcome))
        chosen_gains.append(max(gain.mean for gain in outcome.gains["final"].values()))
    assert kept / n_searches >= 0.84
    # what the best looked like is far from 0, what is reported is not
    error = float(np.std(reported)) / np.sqrt(n_searches)
    assert abs(np.mean(reported)) < 3 * error + 1e-9
    assert np.mean(chosen_gains) > 0.03


def test_a_policy_better_by_three_standard_errors_and_more_is_chosen() -> None:
    true_gain = 3.0 * typical_error()
    chosen, reported = [], []
    for seed in range(100, 140):
        simulated = simulate_search(seed, {BETTER: true_gain})
        outcome = simulated.search.run()
        chosen.append(outcome.choices["final"].name)
        reported.append(simulated.expected_gain(outcome))
    # nine looks ask for 2.3 standard errors or so: a true 3 passes about three times in four, and nothing else does
    assert chosen.count(BETTER) >= 24
    assert set(chosen) <= {BETTER, "default"}
    assert 0.0 < np.mean(reported) < 1.2 * true_gain
    always = [
        simulate_search(seed, {BETTER: 2 * true_gain}).search.run().choices["final"].name for seed in range(100, 110)
    ]
    assert always.count(BETTER) >= 9


@settings(max_examples=8, deadline=None)
@given(st.permutations(NAMES[1:]), st.integers(0, 10_000))
def test_the_order_of_candidates_decides_nothing(order: list[str], seed: int) -> None:
    gains = {"c2": 0.08, "c6": 0.1}
    first = simulate_search(seed, gains).search.run()
    other = simulate_search(seed, gains, ["default", *order]).search.run()
    assert first.choices == other.choices
    assert first.repeats == other.repeats


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000))
def test_rows_that_a_unit_may_not_look_at_change_nothing_that_it_says(seed: int) -> None:
    search = simulate_search(seed, {"c3": 0.1}, variants=1).search
    hidden = ~search.units["f0"]
    expected = search.run()
    again = simulate_search(seed, {"c3": 0.1}, variants=1).search
    train = again.train

    def disturbed(name: str, repeats: int) -> np.ndarray:
        values = train(name, repeats).copy()
        values[:, hidden] = np.random.default_rng([1, *name.encode()]).normal(0, 5, values[:, hidden].shape)
        return values

    again.train = disturbed
    outcome = again.run()
    assert outcome.choices["f0"] == expected.choices["f0"]
    assert outcome.gains["f0"] == expected.gains["f0"]


def test_what_does_not_fit_is_not_trained() -> None:
    search = simulate_search(3).search
    search.allowed = search.plan.n_candidates * REPEATS * N_FOLDS
    outcome = search.run()
    assert (outcome.rungs, outcome.stopped) == (1, True)
    assert outcome.trainings == search.allowed
    assert set(outcome.repeats.values()) == {REPEATS}


def test_later_rungs_repeat_what_is_left_and_the_default() -> None:
    outcome = simulate_search(1).search.run()
    assert outcome.rungs == len(halvings(8)) == 4
    assert outcome.repeats["default"] == 4 * REPEATS
    assert sum(repeats == 4 * REPEATS for repeats in outcome.repeats.values()) <= 1 + N_FOLDS + 1


@given(st.integers(2, 40), st.integers(0, 30), st.integers(2, 10), st.integers(0, 20_000))
def test_a_plan_fits_its_budget_and_there_is_none_only_where_two_do_not_fit(
    n: int, v: int, j: int, allowed: int
) -> None:
    plan = plan_search(n, v, j, allowed)
    if plan is None:
        assert allowed < least_trainings(j)
        return
    assert plan.trainings <= allowed
    assert 2 <= plan.n_candidates <= n
    assert plan.rungs[0] == plan.n_candidates - 1
    assert plan.rungs[-1] == 1
    more = plan_search(n, v, j, allowed + 1)
    assert more is not None
    assert (more.n_candidates, more.n_variants) >= (plan.n_candidates, plan.n_variants)


def test_one_look_needs_one_standard_error_and_more_looks_need_more() -> None:
    assert judge_level(1) == pytest.approx(LEVEL)
    assert needed_gain(0.02, 1e6, 1) == pytest.approx(0.02, rel=1e-3)
    needed = [needed_gain(0.02, 50, m) for m in (1, 3, 12, 18)]
    assert needed == sorted(needed)
    # all of m independent comparisons stay below their limit with probability 1 - LEVEL
    assert (1 - judge_level(12)) ** 12 == pytest.approx(1 - LEVEL)
    assert needed_gain(float("inf"), 3, 1) == float("inf")


def test_shrinking_is_the_posterior_mean_of_a_normal_prior() -> None:
    seen = [Estimate(mean, 0.1, 20, 9) for mean in (-0.3, 0.1, 0.2, 0.4)]
    prior = np.mean([0.09, 0.01, 0.04, 0.16]) - 0.01
    expected = 0.4 * prior / (prior + 0.01)
    assert shrink(seen[3], seen).mean == pytest.approx(expected)
    assert shrink(seen[3], seen).error == pytest.approx(np.sqrt(1 / (1 / prior + 1 / 0.01)))
    alike = [Estimate(mean, 0.1, 20, 9) for mean in (-0.05, 0.1, 0.05)]
    assert shrink(alike[1], alike).mean == 0.0


def test_parts_hold_whole_groups_also_where_all_folds_validate_the_same_images() -> None:
    labels = np.tile(np.array([0, 0, 0, 0, 1, 1]), 3)
    groups = np.tile(np.array(["a", "b", "c", "d", "e", "f"]), 3)
    parts = validation_parts(ValidationRows(np.repeat(np.arange(3), 6), labels, groups), 3)
    assert len(set(parts.tolist())) == 3
    for group in set(groups.tolist()):
        assert len(set(parts[groups == group].tolist())) == 1
