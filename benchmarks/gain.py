"""Measures the gain on real data sets: `python benchmarks/gain.py [SET ...] [--splits 0 1 2] [--jobs 2]`.

Without a SET all are measured, CIFAR-10-LT where there is a GPU; that takes about a day of two cores.
Each split is a project of its own in FOLDER/SET/ (--folder), run stage by stage, so that a killed run goes on where it
stopped and classical arms are not trained again when a policy or a generator changes: a stage runs where what it
depends on (its sections of params.yaml, versions, the stages before it) differs from what stands in `stages.json`.
Afterwards the split's numbers are written to benchmarks/results/gain/SET.json. `benchmarks/gain_table.py` makes the
tables. `final`, which no number needs, is not trained.
"""

import argparse
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np
import torch
from bench_data import ROOT
from gain_sets import SETS, GainSet, lay_out_project
from side_by_side import Turn, cores_of_this_process, groups_for, run_each

from synthgen.artifacts import digest_of, read_json, write_json
from synthgen.classifier.arms import split_arm
from synthgen.config import POLICIES, Config
from synthgen.dataset.predictions import load_predictions
from synthgen.device import resolve_device
from synthgen.errors import SynthgenError
from synthgen.metrics.outcomes import ArmFold, measure_arm
from synthgen.records import load_plan
from synthgen.stages.adapt import run_adapt
from synthgen.stages.challenge import run_challenge
from synthgen.stages.compare import run_compare
from synthgen.stages.evaluate import run_evaluate
from synthgen.stages.plan import run_plan
from synthgen.stages.prepare import run_prepare
from synthgen.stages.pretrain import run_pretrain
from synthgen.stages.scratch import run_scratch
from synthgen.stages.synthesize import run_synthesize
from synthgen.stages.workspace import Workspace
from synthgen.versions import VERSIONS

RESULTS = ROOT / "benchmarks" / "results" / "gain"
PARTS = ("classical", "models", "gan", "all")
NEEDS_GPU = ("cifar",)
log = logging.getLogger("gain")


class Ledger:
    """Which stages of a project are done, and with what; a stage whose key differs is run again."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "stages.json"
        self.done: dict[str, dict[str, Any]] = json.loads(self.path.read_text()) if self.path.exists() else {}

    def run(self, name: str, about: object, above: list[str], work: Callable[[], object]) -> None:
        """Runs `work` unless the stage was done with the same `about` on the same stages above it."""
        key = digest_of({"about": about, "above": {other: self.done[other]["key"] for other in above}})
        if self.done.get(name, {}).get("key") == key:
            return
        started = time.monotonic()
        work()
        seconds = time.monotonic() - started
        self.done[name] = {"key": key, "seconds": round(seconds, 1)}
        write_json(self.path, self.done)
        log.info("%s: %.0f s", name, seconds)


def run_project(folder: Path, until: str, device: torch.device) -> None:
    """Runs all stages of one split up to a part.

    Args:
        folder: laid out, with params.yaml.
        until: `classical`, `models` (the GANs), `gan` (with the samples) or `all`.
    """
    ledger = Ledger(folder)
    config = what_was_set(Workspace(folder).config)
    seed, transforms, classifier = config["seed"], config["transforms"], config["classifier"]
    ledger.run("plan", [seed, config["source"], config["plan"], config["prepare"]], [], lambda: _plan(folder))
    if load_plan(folder / "plan.yaml").versions != VERSIONS:
        _plan(folder)  # the same folds; which stages it concerns, their own keys say
    workspace = Workspace(folder)
    plan, versions = workspace.plan, workspace.plan.versions
    about: list[Any] = [seed, transforms, versions["gan"]]
    ledger.run("prepare", versions["dataset"], ["plan"], lambda: run_prepare(workspace))
    evaluate = {name: value for name, value in config["evaluate"].items() if name != "arms"}
    for arm in workspace.config.evaluate.arms:
        trained = [seed, transforms, classifier, evaluate, versions["classifier"]]
        ledger.run(f"evaluate {arm}", trained, ["prepare"], lambda arm=arm: run_evaluate(workspace, arm, device))
    if until == "classical":
        return
    for fold in plan.measured_folds:
        models = []
        if fold in plan.pretrain_folds:
            models.append(f"pretrain {fold}")
            ledger.run(
                models[0],
                [*about, config["pretrain"]],
                ["prepare"],
                lambda fold=fold: run_pretrain(workspace, fold, device),
            )
        for kind, slugs, work in (("adapt", plan.adapt_slugs, run_adapt), ("scratch", plan.scratch_slugs, run_scratch)):
            for slug in slugs:
                name = f"{kind} {fold} {slug}"
                ledger.run(
                    name,
                    [*about, config["pretrain"], config[kind]],
                    ["prepare", *models[:1]],
                    lambda fold=fold, slug=slug, work=work: work(workspace, fold, slug, device),
                )
                models.append(name)
        if until == "models":
            continue
        ledger.run(
            f"synthesize {fold}",
            [
                *about,
                classifier,
                config["synthesize"],
                *(versions[p] for p in ("selection", "morphs", "classifier", "probe")),
            ],
            models,
            lambda fold=fold: run_synthesize(workspace, fold, device),
        )
    if until in ("models", "gan"):
        return
    _challenge(workspace, ledger, config, device)


def what_was_set(config: Config) -> dict[str, Any]:
    """Section -> what stands in it other than the default: a setting that is new in the program changes nothing."""
    said = config.model_dump(mode="json", exclude_defaults=True)
    return {name: said.get(name, {}) for name in Config.model_fields} | {"seed": config.seed}


def _plan(folder: Path) -> None:
    for name in ("plan.yaml", "folds.csv"):
        (folder / name).unlink(missing_ok=True)
    run_plan(Workspace(folder))


def _challenge(workspace: Workspace, ledger: Ledger, config: dict[str, Any], device: torch.device) -> None:
    above = [f"evaluate {arm}" for arm in workspace.config.evaluate.arms]
    above += [f"synthesize {fold}" for fold in workspace.plan.measured_folds]
    arms = workspace.config.challenge.arms
    rule = workspace.config.challenge
    choice = [rule.choice, rule.choice_errors]
    shared = [config["transforms"], config["classifier"], config["evaluate"], *choice]
    policies = {**POLICIES, **workspace.config.challenge.policies}
    versions = [workspace.plan.versions[part] for part in ("classifier", "metrics", "probe")]
    for arm in arms:
        policy = policies[split_arm(arm, policies)[1]].model_dump(mode="json", exclude_defaults=True)
        ledger.run(
            f"challenge {arm}",
            [config["seed"], shared, policy, versions],
            above,
            lambda arm=arm: run_challenge(workspace, arm, device),
        )
    compared = [config["evaluate"], config["challenge"], config["compare"], workspace.plan.versions["metrics"]]
    ledger.run(
        "compare",
        compared,
        ["prepare", *above, *(f"challenge {arm}" for arm in arms)],
        lambda: run_compare(workspace),
    )


def measured_numbers(workspace: Workspace) -> dict[str, dict[str, Any]]:
    """fold -> {arm: {recall: {slug: share}, balanced_accuracy, auc, scarce_auc}, chosen: ARM}; repeats averaged."""
    plan, config = workspace.plan, workspace.config
    scarce = [plan.classes[slug].label for slug in plan.scarce_slugs]
    numbers: dict[str, dict[str, Any]] = {fold: {"arms": {}} for fold in plan.measured_folds}
    for arm in [*config.evaluate.arms, *config.challenge.arms]:
        path = workspace.evaluation(arm) / "predictions.parquet"
        if not path.exists():
            continue
        predictions = load_predictions(path)
        for fold in plan.measured_folds:
            test, val = predictions.aligned(fold, "test"), predictions.aligned(fold, "val")
            found = measure_arm(
                [ArmFold(test.labels, test.groups, test.logits, val.labels, val.groups, val.logits)], ranking=True
            )
            numbers[fold]["arms"][arm] = {
                "recall": {slug: _number(found.recall[0, plan.classes[slug].label]) for slug in plan.slugs},
                "recall_after": {slug: _number(found.recall_after[0, plan.classes[slug].label]) for slug in plan.slugs},
                "balanced_accuracy": _number(found.balanced_accuracy[0]),
                "scarce_auc": _number(np.nanmean(found.auc[0, scarce])),
            }
    for arm in config.challenge.arms:
        record = workspace.evaluation(arm) / "arm.json"
        if arm.startswith("best+") and record.exists():
            for fold, details in read_json(record)["folds"].items():
                numbers[fold]["chosen"] = details["arm"]
    return numbers


def _number(value: SupportsFloat) -> float | None:
    return round(float(value), 6) if np.isfinite(float(value)) else None


def keep_results(one: GainSet, split: int, folder: Path) -> None:
    """Puts the numbers of one split into the results of its set; other splits stay as they are."""
    path = RESULTS / f"{one.name}.json"
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"splits": {}}
    workspace = Workspace(folder)
    config = what_was_set(workspace.config)
    seconds = {name: entry["seconds"] for name, entry in Ledger(folder).done.items()}
    record["splits"][str(split)] = {
        "folds": measured_numbers(workspace),
        "seconds": seconds,
        "cores": len(cores_of_this_process()),
        "params": digest_of({name: value for name, value in config.items() if name not in ("seed", "report")}),
        "versions": workspace.plan.versions,
    }
    record["scarce"] = workspace.plan.scarce_slugs
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_json(path, record)


@dataclass(frozen=True)
class Split:
    """One project to run, on whatever cores it is given."""

    name: str
    number: int
    folder: Path
    until: str
    device: str
    forget: bool

    def __str__(self) -> str:
        """Its set and number."""
        return f"{self.name}, split {self.number}"


def run_split(split: Split, turn: Turn) -> None:
    """Runs the project and keeps its numbers; `turn` is held while they are written beside those of other splits."""
    form = f"%(asctime)s {split.name} {split.number}: %(message)s"
    logging.basicConfig(level=logging.INFO, format=form, datefmt="%H:%M:%S", force=True)  # also of the next split here
    one = SETS[split.name]
    log.info("started in %s", split.folder)
    lay_out_project(one, split.number, split.folder)
    try:
        run_project(split.folder, split.until, resolve_device(split.device))
    except SynthgenError as error:
        sys.exit(f"{split}: {error}")
    if split.until == "all":
        with turn:
            keep_results(one, split.number, split.folder)
        if split.forget:
            shutil.rmtree(split.folder)


def main() -> None:
    """Runs the asked splits of the asked sets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("sets", nargs="*", metavar="SET", help=f"of {', '.join(SETS)}; default all")
    parser.add_argument("--folder", type=Path, default=ROOT / ".synthgen" / "gain", help="where the projects stand")
    parser.add_argument("--splits", type=int, nargs="*", default=None, help="numbers of splits; default all")
    parser.add_argument("--until", choices=PARTS, default="all", help="stop after this part")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--jobs", type=int, default=1, help="splits at the same time, each on its own cores (default 1)"
    )
    parser.add_argument("--forget", action="store_true", help="remove a project when its numbers are kept")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.sets) - set(SETS))
    if unknown:
        parser.error(f"{', '.join(unknown)}: no such set; there are {', '.join(SETS)}")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    has_gpu = resolve_device(arguments.device).type == "cuda"
    splits = []
    for name in arguments.sets or SETS:
        if name in NEEDS_GPU and not has_gpu and not arguments.sets:
            sys.stderr.write(f"{name} is left out: it is sized for a GPU, and this machine has none\n")
            continue
        for number in range(SETS[name].n_splits) if arguments.splits is None else arguments.splits:
            folder = arguments.folder.resolve() / name / f"split-{number}"
            splits.append(Split(name, number, folder, arguments.until, arguments.device, arguments.forget))
    try:
        groups_for(arguments.jobs)
    except ValueError as error:
        parser.error(f"--jobs {arguments.jobs}: {error}")
    run_each(splits, run_split, arguments.jobs)


if __name__ == "__main__":
    main()
