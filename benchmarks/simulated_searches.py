"""Searches among made-up policies of known gains: how often the default is left without need, and the better one found.

Owns the simulated scores, which tests share, and the table of docs/method.md, "Search". Trains nothing. A score is the
ease of an image's object, plus a policy's taste for that object, the luck of a training and the policy's true gain.

    python benchmarks/simulated_searches.py --searches 400
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from synthgen.metrics.paired_scores import ValidationRows
from synthgen.metrics.policy_search import Outcome, PolicySearch, search_units
from synthgen.metrics.search_plan import plan_search

N_FOLDS = 3
NAMES = ("default", *(f"c{i}" for i in range(8)))
BETTER = "c5"
PER_CLASS = (8, 8, 4)
ENOUGH = 10_000
EASE, TASTE, LUCK, NOISE = 0.3, 0.1, 0.02, 0.05


@dataclass
class SimulatedSearch:
    """One search and what belongs to it.

    Attributes:
        search: to be run.
        unit_of_row: for each row the unit that does not look at its group.
    """

    search: PolicySearch
    unit_of_row: list[str]

    def expected_gain(self, outcome: Outcome) -> float:
        """What the search would report as expected gain."""
        scores = {name: self.search.train(name, repeats) for name, repeats in outcome.repeats.items()}
        return self.search.expected_gain(outcome, self.unit_of_row, scores).mean


def _rows(generator: np.random.Generator) -> ValidationRows:
    labels = np.concatenate([np.repeat(np.arange(len(PER_CLASS)), PER_CLASS) for _ in range(N_FOLDS)])
    folds = np.repeat(np.arange(N_FOLDS), sum(PER_CLASS))
    groups = np.array([f"g{i // 2}" for i in range(len(labels))])  # two photographs of each object
    order = generator.permutation(len(labels))
    return ValidationRows(folds[order].astype(np.int64), labels[order].astype(np.int64), groups[order])


def simulate_search(
    seed: int, gains: Mapping[str, float] | None = None, names: Sequence[str] = NAMES, variants: int = 0
) -> SimulatedSearch:
    """A search in which every policy has the gain that `gains` says over the default, else none.

    Args:
        seed: of everything; a policy's own draws depend on its name, not on its place.
        gains: policy -> true gain in score.
        names: the default first.
        variants: of every policy, with no gain over it.
    """
    generator = np.random.default_rng(seed)
    rows = _rows(generator)
    objects = np.unique(rows.groups, return_inverse=True)[1]
    n_objects = int(objects.max()) + 1
    ease = generator.normal(0, EASE, n_objects)[objects]

    def train(name: str, repeats: int) -> np.ndarray:
        own = np.random.default_rng([seed, *name.encode()])
        taste = own.normal(0, TASTE, n_objects)[objects]
        luck = own.normal(0, LUCK, (20, N_FOLDS))[:, rows.folds]
        noise = own.normal(0, NOISE, (20, len(rows.labels)))
        return (ease + taste + luck + noise + (gains or {}).get(name.partition(":")[0], 0.0))[:repeats]

    parts = {f"f{j}": np.unique(rows.groups[rows.folds == (j + 1) % N_FOLDS]) for j in range(N_FOLDS)}
    units, unit_of_row = search_units(rows, parts)
    plan = plan_search(len(names), variants, N_FOLDS, ENOUGH)
    assert plan is not None
    search = PolicySearch(
        rows, units, list(names), plan, ENOUGH, train, lambda base: [f"{base}:{i}" for i in range(variants)]
    )
    return SimulatedSearch(search, unit_of_row)


def typical_error(n_searches: int = 5) -> float:
    """Standard error that a candidate's gain has for the release, averaged."""
    errors = []
    for seed in range(n_searches):
        errors += [gain.error for gain in simulate_search(seed).search.run().gains["final"].values()]
    return float(np.mean(errors))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--searches", type=int, default=400)
    n = parser.parse_args().searches
    error = typical_error()
    print(
        "| true gain, standard errors | chosen, % | default stays, % | true gain | reported | of the best candidate |"
    )
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for k in (0, 1, 2, 3, 4, 6):
        chosen, reported, best = [], [], []
        for seed in range(1000, 1000 + n):
            simulated = simulate_search(seed, {BETTER: k * error}, variants=2)
            outcome = simulated.search.run()
            chosen.append(outcome.choices["final"].name.partition(":")[0] if k else outcome.choices["final"].name)
            reported.append(simulated.expected_gain(outcome))
            best.append(max(gain.mean for gain in outcome.gains["final"].values()))
        row = (100 * chosen.count(BETTER) / n, 100 * chosen.count("default") / n)
        means = (100 * k * error, 100 * np.mean(reported), 100 * np.mean(best))
        print(f"| {k} | {row[0]:.0f} | {row[1]:.0f} | " + " | ".join(f"{mean:.1f}" for mean in means) + " |")


if __name__ == "__main__":
    main()
