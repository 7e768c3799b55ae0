"""A/A runs: a classical arm against itself under other seeds should hardly ever be said to help.

    python benchmarks/a_against_a.py PROJECT [--runs N]     one split, N other seeds
    python benchmarks/a_against_a.py --splits [--runs N]    N independently drawn splits of the digits, two seeds each

PROJECT is one that `dvc repro` has finished; nothing in it is changed. With --splits the folds, and which threes and
eights stay, are drawn anew in every run from params.yaml under another seed; finished runs are kept in --folder, so
that a killed measurement goes on. In both, the second training of the arm stands in for the challenger in a copy of the
project, and `compare` gives its verdict.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from bench_data import ROOT
from ruamel.yaml import YAML

from synthgen.artifacts import read_json, write_json
from synthgen.stages.compare import run_compare
from synthgen.stages.evaluate import run_evaluate
from synthgen.stages.plan import run_plan
from synthgen.stages.prepare import run_prepare
from synthgen.stages.workspace import Workspace

ARM, CHALLENGER = "classical", "best+synthetic"
FIRST_SEED = 1000
CPU = torch.device("cpu")


def write_params(source: Path, target: Path, seed: int) -> None:
    """params.yaml with one classical arm, one challenger and another seed."""
    yaml = YAML()
    params = yaml.load(source / "params.yaml")
    params["evaluate"]["arms"], params["challenge"]["arms"] = [ARM], [CHALLENGER]
    params["evaluate"]["crossfit"] = False  # there is one arm to choose from
    params["seed"] = seed
    yaml.dump(params, target / "params.yaml")


def judge_second_training(copy: Path, seed: int) -> dict[str, Any]:
    """Trains the arm of a project again under `seed` in the challenger's place; gain.json's entries by scarce class."""
    original = copy / "data" / "evaluation" / ARM
    kept = copy / "kept"
    original.rename(kept)
    write_params(copy, copy, seed)
    run_evaluate(Workspace(copy), ARM, CPU)
    other = copy / "data" / "challenge" / CHALLENGER
    other.parent.mkdir(parents=True)
    original.rename(other)
    kept.rename(original)
    write_json(other / "arm.json", {**read_json(other / "arm.json"), "arm": CHALLENGER})
    gains: dict[str, Any] = run_compare(Workspace(copy))["gain"]
    return gains


def one_split(project: Path, seed: int) -> dict[str, Any]:
    """The arm of a finished project against itself under `seed`."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        for file in ("plan.yaml", "folds.csv"):
            shutil.copy(project / file, copy / file)
        shutil.copytree(project / "data" / "prepared", copy / "data" / "prepared")
        shutil.copytree(project / "data" / "evaluation" / ARM, copy / "data" / "evaluation" / ARM)
        write_params(project, copy, seed)
        return judge_second_training(copy, seed)


def drawn_split(seed: int) -> dict[str, Any]:
    """The arm against itself on folds that are drawn under `seed`."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        write_params(ROOT, copy, seed)
        run_plan(Workspace(copy))
        run_prepare(Workspace(copy))
        run_evaluate(Workspace(copy), ARM, CPU)
        return judge_second_training(copy, FIRST_SEED + seed)


def summary(found: list[dict[str, Any]]) -> str:
    """How often which verdict was given, by class and by run."""
    verdicts = Counter(entry["verdict"] for gains in found for entry in gains.values())
    runs = Counter(verdict for gains in found for verdict in {entry["verdict"] for entry in gains.values()})
    given = ", ".join(f"{verdict} {count}" for verdict, count in verdicts.most_common())
    return (
        f"{len(found)} runs, {verdicts.total()} verdicts: {given}; runs with at least one `helps`: {runs['helps']}, "
        f"with `hurts`: {runs['hurts']}\n"
    )


def main() -> None:
    """Prints a line per run and how often what was said."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("project", type=Path, nargs="?")
    parser.add_argument("--splits", action="store_true")
    parser.add_argument("--runs", type=int, default=None, help="default 5, with --splits 100")
    parser.add_argument("--folder", type=Path, default=ROOT / ".synthgen" / "a-against-a")
    arguments = parser.parse_args()
    if (arguments.project is None) is not arguments.splits:
        parser.error("name a PROJECT, or --splits")
    found = []
    for run in range(arguments.runs or (100 if arguments.splits else 5)):
        kept = arguments.folder / f"{run}.json"
        if arguments.splits and kept.exists():
            gains = json.loads(kept.read_text(encoding="utf-8"))
        elif arguments.splits:
            gains = drawn_split(run)
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_json(kept, gains)
        else:
            gains = one_split(arguments.project.resolve(), FIRST_SEED + run)
        found.append(gains)
        said = {slug: f"{entry['recall']['mean']:+.3f} {entry['verdict']}" for slug, entry in gains.items()}
        sys.stdout.write(f"run {run}: {said}\n")
        sys.stdout.flush()
    sys.stdout.write(summary(found))


if __name__ == "__main__":
    main()
