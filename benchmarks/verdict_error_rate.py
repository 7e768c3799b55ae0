"""Measures how often the verdicts err: `python benchmarks/verdict_error_rate.py [--experiments 1000] [--json FILE]`.

Prints a Markdown table (docs/method.md holds one): a row per kind of simulated experiment, with the
share of experiments in which at least one scarce class is said to be helped or hurt. In a null that
share is an error; in the last rows the gain is real and the share is power.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from simulated_experiments import Scenario, null_differences, simulate

from synthgen.config import CompareSection
from synthgen.metrics.gain import ClassFacts, compare_arms
from synthgen.metrics.intervals import correction_ratio, fold_estimate, holm_levels, p_above_zero, resolution_error

SCENARIOS = {
    "null, 2 classes, 6 test images a fold": Scenario(),
    "null, 3 classes, 3 test images a fold": Scenario(n_scarce=3, n_test=3, n_val=3),
    "null, 2 classes, 30 test images a fold": Scenario(n_test=30, n_val=10),
    "null, 2 classes, 15 test images a fold, 3 of one object": Scenario(n_test=15, n_val=15, images_per_group=3),
    "null, skill from shared data 0.3": Scenario(shared=0.3, n_test=12),
    "null, skill from shared data 0.6": Scenario(shared=0.6, n_test=12),
    "null, skill from shared data 0.6, 10 folds": Scenario(shared=0.6, n_test=12, n_folds=10),
    "null, 1 class, 30 test images, shared data 0.6": Scenario(shared=0.6, n_scarce=1, n_test=30, n_val=10),
    "null, 3 folds": Scenario(n_folds=3),
    "bias shift +1 logit, no gain": Scenario(shift=1.0, n_test=12),
    "bias shift +2 logits, no gain, 30 test images": Scenario(shift=2.0, n_test=30, n_val=10),
    "null, frozen test set, 20 images, 5 seeds": Scenario(frozen=True, n_test=20),
    "null, frozen test set, 20 images, 10 seeds": Scenario(frozen=True, n_test=20, n_folds=10),
    "null, frozen test set, 60 images in 20 groups": Scenario(frozen=True, n_test=60, images_per_group=3),
    "bias shift +1 logit, frozen test set, 20 images": Scenario(frozen=True, n_test=20, shift=1.0),
    "gain +1 logit, 12 test images a fold": Scenario(gain=1.0, n_test=12, n_val=10),
    "gain +2 logits, 12 test images a fold": Scenario(gain=2.0, n_test=12, n_val=10),
    "gain +2 logits, 30 test images a fold": Scenario(gain=2.0, n_test=30, n_val=10),
    "gain +2 logits, frozen test set, 60 images": Scenario(gain=2.0, n_test=60, frozen=True, n_val=10),
}


def measure(scenario: Scenario, n_experiments: int, seed: int) -> dict[str, float]:
    """Shares of experiments with at least one verdict of each kind, and the mean recall gain."""
    rules = CompareSection(n_bootstrap=400)
    facts = [ClassFacts(f"c{k}", f"class {k}", 1, 1) for k in range(scenario.n_scarce + scenario.n_plentiful)]
    seen = dict.fromkeys(("helps", "hurts", "promising", "cannot tell", "raw alone"), 0)
    found, gains = 0, []
    for number in range(n_experiments):
        experiment = simulate(scenario, np.random.default_rng([seed, number]))
        record, estimates = compare_arms(
            experiment, facts, n_images=1, n_groups=1, rules=rules, digest=f"{seed} {number}"
        )
        verdicts = [entry["verdict"] for entry in record["gain"].values()]
        for verdict in seen:
            seen[verdict] += verdict in verdicts
        found += verdicts.count("helps")
        gains.append(np.mean([entry["recall"]["mean"] for entry in record["gain"].values()]))
        adjusted, _ = holm_levels([p_above_zero(estimates.recall[k]) for k in experiment.scarce], 0.025)
        seen["raw alone"] += min(adjusted) <= 0.025
    return {
        **{verdict: count / n_experiments for verdict, count in seen.items()},
        "helps per class": found / n_experiments / scenario.n_scarce,
        "mean gain": float(np.mean(gains)),
    }


def raw_error_rates(n_experiments: int, seed: int) -> None:
    """Prints how often the raw test alone errs, by how much of the folds' spread comes from shared training data."""
    shares = (0.0, 0.25, 0.5, 0.75, 0.95)
    print(f"| {n_experiments} nulls each, percent above 0 | " + " | ".join(f"{share:g}" for share in shares) + " |")
    print("| --- |" + " --- |" * len(shares))
    for n_folds, n_test, discordant in ((5, 6, 0.2), (5, 30, 0.15), (5, 200, 0.1), (10, 15, 0.15)):
        ratio = correction_ratio(n_test, n_test * (n_folds - 2), n_folds)
        tests = {"plain t": 0.0, "Nadeau and Bengio alone": n_test / (n_test * (n_folds - 2)), "this product": ratio}
        rows: dict[str, list[float]] = {name: [] for name in tests}
        for share in shares:
            generator = np.random.default_rng([seed, n_folds, n_test])
            draws = null_differences(generator, n_experiments, n_folds, n_test, discordant, share)
            for name, used in tests.items():
                found = 0
                for draw in draws:
                    floor = resolution_error(draw.ravel() / draw.size) if name == "this product" else 0.0
                    found += p_above_zero(fold_estimate(draw.mean(axis=1), used, floor)) < 0.025
                rows[name].append(100 * found / n_experiments)
        for name, rates in rows.items():
            cells = " | ".join(f"{rate:.1f}" for rate in rates)
            print(f"| {n_folds} folds, {n_test} test images a fold, {name} | {cells} |", flush=True)


def main() -> None:
    """Prints the table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiments", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="only scenarios whose name holds this text")
    parser.add_argument("--json", type=Path, default=None, help="also write the numbers to this file")
    parser.add_argument("--raw", action="store_true", help="the raw test alone instead, by correlation of the folds")
    arguments = parser.parse_args()
    if arguments.raw:
        raw_error_rates(arguments.experiments, arguments.seed)
        return
    columns = ("mean gain", "raw alone", "helps", "helps per class", "promising", "hurts", "cannot tell")
    print(f"| {arguments.experiments} experiments each, percent | " + " | ".join(columns) + " |")
    print("| --- |" + " --- |" * len(columns))
    results, started = {}, time.monotonic()
    for name, scenario in SCENARIOS.items():
        if arguments.only in name:
            results[name] = measure(scenario, arguments.experiments, arguments.seed)
            cells = " | ".join(f"{100 * results[name][column]:.1f}" for column in columns)
            print(f"| {name} | {cells} |", flush=True)
    print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
