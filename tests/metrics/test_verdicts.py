import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from synthgen.config import CompareSection
from synthgen.metrics.intervals import Estimate, correction_ratio, fold_estimate, resolution_error
from synthgen.metrics.verdicts import ClassEvidence, judge_classes, overall_verdict


def _simulations():
    path = Path(__file__).parents[2] / "benchmarks" / "simulated_experiments.py"
    spec = importlib.util.spec_from_file_location("simulated_differences", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


simulations = _simulations()
RULES = CompareSection()
GOOD = Estimate(0.2, 0.03, 4.0, 5)
NOTHING = Estimate(0.0, 0.03, 4.0, 5)


def evidence(recall=GOOD, after=GOOD, n_test_groups=30, challenger=0.8, best=0.6):
    return ClassEvidence(recall, after, n_test_groups, challenger, ("classical", best))


def verdict_of(**facts):
    return judge_classes([evidence(**facts)], RULES)[0]


def test_helps_needs_everything():
    assert verdict_of().verdict == "helps"
    assert verdict_of(recall=NOTHING).verdict == "no evidence"
    few = verdict_of(n_test_groups=4)
    assert few.verdict == "cannot tell" and "only 4 test groups, at least 5" in few.reason
    shifted = verdict_of(after=NOTHING)
    assert shifted.verdict == "no evidence" and "bias" in shifted.reason
    beaten = verdict_of(best=0.85)
    assert beaten.verdict == "no evidence" and "classical" in beaten.reason
    assert verdict_of(best=0.8).verdict == "helps"  # not below is enough
    short = verdict_of(recall=Estimate(0.2, 0.01, 2.0, 3), after=Estimate(0.2, 0.01, 2.0, 3))
    assert short.verdict == "promising" and "3 folds" in short.reason


def test_hurts_and_cannot_tell_and_what_could_have_been_seen():
    assert verdict_of(recall=Estimate(-0.2, 0.03, 4.0, 5)).verdict == "hurts"
    wide = verdict_of(recall=Estimate(0.1, 0.2, 4.0, 5))
    assert wide.verdict == "cannot tell" and "smallest gain" in wide.reason
    assert wide.smallest_visible == pytest.approx((stats.t.isf(0.025, 4) + stats.t.isf(0.2, 4)) * 0.2)
    one_fold = verdict_of(recall=Estimate(0.5, math.inf, 0.0, 1), after=Estimate(0.5, math.inf, 0.0, 1))
    assert one_fold.verdict == "cannot tell" and one_fold.recall == (-1.0, 1.0)
    no_room = verdict_of(recall=Estimate(0.01, 0.05, 4.0, 5), challenger=0.99, best=0.9)
    assert "leaves room for" in no_room.reason


def test_more_classes_ask_for_more():
    border = Estimate(0.09, 0.03, 4.0, 5)  # t = 3: enough alone (2.78), not among three (3.96)
    assert judge_classes([evidence(border, border)], RULES)[0].verdict == "helps"
    assert [v.verdict for v in judge_classes([evidence(border, border)] * 3, RULES)] == ["no evidence"] * 3
    strong = Estimate(0.3, 0.03, 4.0, 5)
    # Holm: two strong ones leave the last at its own level.
    found = judge_classes([evidence(strong, strong), evidence(border, border), evidence(strong, strong)], RULES)
    assert [v.verdict for v in found] == ["helps"] * 3


def test_verdict_and_bounds_never_disagree():
    generator = np.random.default_rng(0)
    for _ in range(500):
        m = generator.integers(1, 4)
        classes = []
        for _ in range(m):
            mean, error = generator.normal(0, 0.2), generator.uniform(0.01, 0.1)
            classes.append(evidence(Estimate(mean, error, 4.0, 5), Estimate(mean / 2, error, 4.0, 5)))
        for verdict in judge_classes(classes, RULES):
            assert (verdict.verdict == "helps") == (verdict.recall[0] > 0 and verdict.after_offsets[0] > 0)
            assert (verdict.verdict == "helps") == (verdict.p_adjusted < 0.025)
            assert (verdict.verdict == "hurts") == (verdict.recall[1] < 0)


def test_overall_sentence():
    assert overall_verdict({"fray": "helps", "crack": "no evidence"}) == (
        "Synthetic images help fray; no evidence of a gain for crack."
    )
    assert overall_verdict({"a": "no evidence", "b": "no evidence"}).endswith("train the classical arm without them.")


@pytest.mark.parametrize(
    ("n_folds", "n_classes", "n_test", "discordant", "shared"),
    [(5, 2, 3, 0.4, 0.0), (5, 3, 6, 0.3, 0.25), (5, 2, 30, 0.2, 0.5), (5, 3, 30, 0.15, 0.5), (10, 2, 10, 0.3, 0.5)],
)
def test_error_rate_of_helps_in_simulated_nulls(n_folds, n_classes, n_test, discordant, shared):
    n_experiments = 1500
    generator = np.random.default_rng(n_test + n_folds)
    raw = [
        simulations.null_differences(generator, n_experiments, n_folds, n_test, discordant, shared)
        for _ in range(n_classes)
    ]
    ratio = correction_ratio(n_test, n_test * (n_folds - 2), n_folds)
    errors = 0
    for i in range(n_experiments):
        classes = []
        for differences in raw:
            floor = resolution_error(differences[i].ravel() / differences[i].size)
            estimate = fold_estimate(differences[i].mean(axis=1), ratio, floor)
            # After offsets as before, and no better classical arm: the two conditions that could only lower the rate.
            classes.append(evidence(estimate, estimate, n_folds * n_test, 1.0, 0.0))
        errors += any(verdict.verdict == "helps" for verdict in judge_classes(classes, RULES))
    assert errors <= stats.binom.ppf(0.999, n_experiments, 0.025)
