import importlib.util
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from synthgen.artifacts import canonical_json
from synthgen.config import CompareSection
from synthgen.errors import MeasurementError
from synthgen.metrics.experiment import estimate_gains
from synthgen.metrics.gain import ClassFacts, compare_arms
from synthgen.metrics.outcomes import ArmFold, measure_arm


def _simulations():
    path = Path(__file__).parents[2] / "benchmarks" / "simulated_experiments.py"
    spec = importlib.util.spec_from_file_location("simulated_experiments", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


simulations = _simulations()
Scenario, simulate = simulations.Scenario, simulations.simulate
RULES = CompareSection(n_bootstrap=300)


def facts_for(experiment):
    return [ClassFacts(f"c{k}", f"class {k}", 10, 10) for k in range(experiment.n_classes)]


def compare(experiment, rules=RULES, digest="x"):
    return compare_arms(experiment, facts_for(experiment), n_images=1, n_groups=1, rules=rules, digest=digest)[0]


def share_of_helps(scenario, n_experiments, seed=0):
    found = 0
    for number in range(n_experiments):
        record = compare(simulate(scenario, np.random.default_rng([seed, number])))
        found += any(entry["verdict"] == "helps" for entry in record["gain"].values())
    return found


NULLS = {
    "few images": Scenario(n_scarce=3, n_test=3, n_val=3),
    "many images": Scenario(n_test=30),
    "shared training data": Scenario(n_test=12, shared=0.4),
    "bias shift": Scenario(n_test=12, shift=1.0),
    "frozen": Scenario(frozen=True, n_test=20),
    "frozen, bias shift": Scenario(frozen=True, n_test=20, shift=1.0),
}


@pytest.mark.parametrize("name", list(NULLS))
def test_nulls_get_no_helps(name):
    n_experiments = 25
    assert share_of_helps(NULLS[name], n_experiments) <= stats.binom.ppf(0.999, n_experiments, 0.025)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", list(NULLS))
def test_nulls_get_no_helps_in_a_thousand(name):
    assert share_of_helps(NULLS[name], 1000, seed=1) <= stats.binom.ppf(0.999, 1000, 0.025)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_large_gain_is_found(frozen):
    scenario = Scenario(gain=2.5, n_test=60 if frozen else 24, n_val=12, frozen=frozen)
    assert share_of_helps(scenario, 20) >= 12


def test_bias_shift_alone_would_have_passed_the_raw_test():
    # What the offsets are for: the raw gain is real and large, and the verdict still is not `helps`.
    record = compare(simulate(Scenario(shift=2.0, n_test=30, n_val=15), np.random.default_rng(0)))
    entry = record["gain"]["c0"]
    assert entry["recall"]["low"] > 0
    assert entry["verdict"] == "no evidence" and "bias" in entry["reason"]


def test_an_arm_against_itself_gains_exactly_nothing():
    experiment = simulate(Scenario(), np.random.default_rng(1))
    same = replace(
        experiment,
        outcomes={**experiment.outcomes, "best+synthetic": experiment.outcomes["classical"]},
        chosen=["classical"] * 5,
    )
    record = compare(same)
    for entry in record["gain"].values():
        assert entry["recall"]["mean"] == 0 and entry["recall"]["low"] < 0 < entry["recall"]["high"]
        assert entry["verdict"] in ("no evidence", "cannot tell")
    assert record["overall"]["macro_f1"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "n": 5}


@pytest.mark.parametrize("frozen", [False, True])
def test_record_is_deterministic_json_without_nan(frozen):
    def once():
        return canonical_json(compare(simulate(Scenario(frozen=frozen), np.random.default_rng(2))))

    assert once() == once()
    record = json.loads(once())
    assert ("on this test set" in record["claim"]) == frozen
    assert set(record["gain"]) == {"c0", "c1"}
    assert set(record["arms"]["classical"]["after_offsets"]) == {"balanced_accuracy", "macro_f1", "recall"}


def one_fold(labels, predicted_by_repeat, groups=None):
    labels = np.asarray(labels)
    logits = np.stack([np.eye(3)[np.asarray(predicted)] * 4.0 for predicted in predicted_by_repeat])
    groups = np.asarray([f"{id(labels)}-{i}" for i in range(len(labels))] if groups is None else groups)
    return ArmFold(
        labels,
        groups,
        logits,
        np.asarray([0, 1, 2]),
        np.asarray(["x", "y", "z"]),
        np.stack([np.eye(3) * 4.0] * len(logits)),
    )


def test_gain_by_hand():
    # Class 0 in two folds: fold a: baseline recall 1/2 in both repeats, challenger 1 and 1/2; fold b: 0 against 1.
    # Class 2 has no test image in fold b, so one fold alone stands behind it.
    labels = [[0, 0, 1, 2], [0, 1, 1, 1]]
    base = [one_fold(labels[0], [[0, 1, 1, 2]] * 2), one_fold(labels[1], [[1, 1, 1, 1]] * 2)]
    ours = [one_fold(labels[0], [[0, 0, 1, 2], [0, 1, 1, 2]]), one_fold(labels[1], [[0, 1, 1, 0]] * 2)]
    experiment = simulate(Scenario(n_folds=2), np.random.default_rng(0))
    experiment = replace(
        experiment,
        folds=["f0", "f1"],
        labels=[fold.labels for fold in base],
        groups=[np.asarray(list("abcd")), np.asarray(list("efgh"))],
        n_classes=3,
        scarce=[0, 2],
        train_groups=np.asarray([2.0, 2.0, 2.0]),
        outcomes={"classical": measure_arm(base), "best+synthetic": measure_arm(ours)},
        classical=["classical"],
        chosen=["classical", "classical"],
    )
    gains = estimate_gains(experiment, "best+synthetic", 10, "")
    np.testing.assert_allclose(gains.by_fold[:, 0], [0.25, 1.0])
    assert gains.recall[0].mean == pytest.approx(0.625) and gains.recall[0].n == 2
    np.testing.assert_allclose(gains.by_fold[1, 1], -1 / 3)
    assert gains.recall[2].n == 1 and math.isnan(gains.by_fold[1, 2])
    # Fold b: baseline recalls 0 and 1; challenger 1 and 2/3.
    assert gains.balanced_accuracy.mean == pytest.approx(((0.25 / 3) + (5 / 6 - 1 / 2)) / 2)
    # Variance of class 0: (1/2 + 1.5/2) s^2, s^2 = 0.28125, or the floor of 3 test groups, whichever is larger.
    corrected = math.sqrt((1 / 2 + 1.5 / 2) * 0.28125)
    assert gains.recall[0].error == pytest.approx(corrected)
    record = compare(experiment)
    assert record["gain"]["c2"]["verdict"] == "cannot tell"
    assert record["gain"]["c0"]["n_test_groups"] == 3


def test_a_class_never_tested_is_null_not_nan():
    experiment = simulate(Scenario(n_scarce=2), np.random.default_rng(3))
    outcomes = {arm: replace(one, recall=one.recall.copy()) for arm, one in experiment.outcomes.items()}
    labels = [np.where(labels == 0, 1, labels) for labels in experiment.labels]
    for one in outcomes.values():
        for name in ("recall", "recall_after", "auc", "average_precision"):
            getattr(one, name)[:, 0] = np.nan
    record = compare(replace(experiment, labels=labels, outcomes=outcomes))
    entry = record["gain"]["c0"]
    assert entry["recall"] == {"mean": None, "low": -1.0, "high": 1.0, "n": 0}
    assert entry["verdict"] == "cannot tell" and entry["n_test_groups"] == 0
    canonical_json(record)


def test_other_arms_stand_beside_without_a_verdict():
    experiment = simulate(Scenario(), np.random.default_rng(4))
    experiment = replace(
        experiment, outcomes={**experiment.outcomes, "best+shared": experiment.outcomes["best+synthetic"]}
    )
    record = compare(experiment)
    assert record["beside"]["best+shared"]["c0"]["mean"] == record["gain"]["c0"]["recall"]["mean"]
    assert set(record["beside"]) == {"best+shared"}


def test_impossible_comparisons_are_refused():
    experiment = simulate(Scenario(), np.random.default_rng(5))
    with pytest.raises(MeasurementError, match="no class is scarce"):
        replace(experiment, scarce=[])
    with pytest.raises(MeasurementError, match="baseline"):
        replace(experiment, chosen=["best+synthetic"] * 5)
    with pytest.raises(MeasurementError, match="no outcomes of nobody"):
        estimate_gains(experiment, "nobody", 10, "")
    with pytest.raises(MeasurementError, match="different test images"):
        estimate_gains(
            replace(experiment, mode="frozen", labels=[*experiment.labels[:4], experiment.labels[4][::-1]]),
            "best+synthetic",
            10,
            "",
        )
