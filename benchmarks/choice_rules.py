"""Measures rules that choose the classical arm: `python benchmarks/choice_rules.py PROJECT [PROJECT ...]`.

Each PROJECT has its classical arms (`python benchmarks/gain.py SET --until classical` leaves one a split in
.synthgen/gain/SET/). Each rule chooses an arm from what the classical arms said of the rows that it is chosen on, and a
Markdown table says how that arm does on the test images: in the mean over the folds of a set's projects, and over all
where there are several sets. Seconds a project.

With `--rehearsals N` every arm is also trained in rehearsals, about two minutes of a core each for the six arms of
MNIST: as many plentiful classes as there are scarce ones are cut down to as many images as those have, and what was cut
off, hundreds of real images, is predicted. The scarce classes keep theirs; of each other class a third is held out.
What was trained is kept in PROJECT/.synthgen/rehearsal/.
"""

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gain_sets import SETS
from gain_table import interval
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from synthgen.artifacts import atomic_file
from synthgen.classifier.arms import REGULARISED, classical_arm
from synthgen.classifier.jobs import TrainingJob, train_and_predict
from synthgen.dataset.predictions import Predictions, concatenate, load_predictions
from synthgen.dataset.prepared import PreparedData, load_prepared
from synthgen.metrics.choice import choose_arm
from synthgen.metrics.classification import confusion_counts, mean_present, recall_per_class
from synthgen.records import Plan, load_plan
from synthgen.seeding import derive_seed
from synthgen.stages.training_context import build_context
from synthgen.stages.workspace import Workspace

PART = "inner"
"""Only a name: predictions have a part, and none is called rehearsal."""
PLAIN = "cross-fitted balanced accuracy: the best"
WITHIN = "within {:g} standard errors of it the most regularised"
ERRORS = (0.5, 1.0, 1.5, 2.0)
LOSS = "cross-fitted class-balanced log-loss, temperature fitted"
REHEARSED = "rehearsals"
BOTH = "mean of cross-fitted and rehearsed balanced accuracy"
HEAD = "| rule | scarce recall | over the first rule | balanced accuracy | chosen |\n| --- | --- | --- | --- | --- |"
BEST = "the best on the test images, which nobody knows"


class Rehearsal(NamedTuple):
    """Rows to train on, rows to predict, and the labels of the classes that were cut down."""

    train: NDArray[np.int64]
    held_out: NDArray[np.int64]
    cut: NDArray[np.int64]


def rehearse(data: PreparedData, fold: str, scarce: list[int], number: int, seed: int) -> Rehearsal:
    """One rehearsal of a fold; every image is its own object (the sets it is used for have no larger groups)."""
    train = data.split(fold).train
    labels = data.labels[train]
    counts = sorted(int(np.sum(labels == label)) for label in scarce)
    plentiful = [k for k in range(len(data.slugs)) if k not in scarce and np.any(labels == k)]
    rng = np.random.default_rng(derive_seed(seed, "rehearsal", fold, str(number)))
    cut = rng.permutation(plentiful)[: min(len(scarce), len(plentiful) // 2)]
    kept, held_out = [], []
    for label in range(len(data.slugs)):
        own = rng.permutation(train[labels == label])
        if label in scarce:
            n_held_out = 0
        elif label in cut:
            n_held_out = len(own) - counts[cut.tolist().index(label)]
        else:
            n_held_out = len(own) // 3
        n_kept = len(own) - n_held_out
        first, last = (own[:n_kept], own[n_kept:]) if label in cut else (own[n_held_out:], own[:n_held_out])
        kept.append(first)
        held_out.append(last)
    return Rehearsal(np.concatenate(kept), np.concatenate(held_out), cut)


def rehearsed_scores(workspace: Workspace, plan: Plan, data: PreparedData, arm: str, n: int) -> dict[str, float]:
    """Fold -> balanced accuracy in rehearsals, classes that were cut down standing for the scarce ones."""
    path = workspace.root / ".synthgen" / "rehearsal" / f"{arm}-{n}.npz"
    scarce = [plan.classes[slug].label for slug in plan.scarce_slugs]
    todo = {
        (fold, k): rehearse(data, fold, scarce, k, workspace.config.seed)
        for fold in plan.measured_folds
        for k in range(n)
    }
    if not path.exists():
        spec = classical_arm(arm)
        context = build_context(workspace, data, [spec], {}, device=torch.device("cpu"), n_workers=1)
        found: dict[str, Any] = {}
        for (fold, k), rehearsal in todo.items():
            job = TrainingJob(spec, fold, 0, f"rehearsal {k}", rehearsal.train, [(PART, rehearsal.held_out)])
            predicted = concatenate(train_and_predict(job, context))
            found |= {f"{fold}.{k}.labels": predicted.labels, f"{fold}.{k}.logits": predicted.logits}
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **found)
    share = len(scarce) / len(data.slugs)
    scores: dict[str, list[float]] = defaultdict(list)
    with np.load(path) as kept:
        for (fold, k), rehearsal in todo.items():
            recall = _recall(kept[f"{fold}.{k}.labels"], kept[f"{fold}.{k}.logits"])
            others = np.delete(recall, [*scarce, *rehearsal.cut])
            scores[fold].append(share * mean_present(recall[rehearsal.cut]) + (1 - share) * mean_present(others))
    return {fold: float(np.mean(values)) for fold, values in scores.items()}


def _recall(labels: NDArray[np.int64], logits: NDArray[np.floating]) -> NDArray[np.float64]:
    return recall_per_class(confusion_counts(labels, logits.argmax(axis=1), logits.shape[1]))


def balanced_log_loss(labels: NDArray[np.int64], logits: NDArray[np.floating]) -> float:
    """Mean over classes of their mean log-loss, at the temperature that makes it smallest."""
    weights = (1.0 / np.bincount(labels, minlength=logits.shape[1]).clip(1))[labels]
    weights /= weights.sum()

    def loss(log_temperature: float) -> float:
        scaled = logits.astype(np.float64) / np.exp(log_temperature)
        return float(weights @ (logsumexp(scaled, axis=1) - scaled[np.arange(len(labels)), labels]))

    return float(minimize_scalar(loss, bounds=(-4.0, 4.0), method="bounded").fun)


class Outcome(NamedTuple):
    """What an arm does on the test images of a fold, mean over repeats."""

    arm: str
    scarce_recall: float
    balanced_accuracy: float


def outcomes_of(project: Path, n: int) -> list[dict[str, Outcome]]:
    """Per measured fold: rule -> what the arm that it chooses does on the test images."""
    workspace = Workspace(project)
    plan = load_plan(project / "plan.yaml")  # also one of an older synthgen: its arms stand beside it
    data = load_prepared(workspace.prepared)
    scarce = [plan.classes[slug].label for slug in plan.scarce_slugs]
    arms = workspace.config.evaluate.arms
    predictions: dict[str, Predictions] = {
        arm: load_predictions(workspace.evaluation(arm) / "predictions.parquet") for arm in arms
    }
    rehearsed = {arm: rehearsed_scores(workspace, plan, data, arm, n) for arm in arms} if n else {}
    found = []
    for fold in plan.measured_folds:
        tested: dict[str, Outcome] = {}
        for arm in arms:
            test = predictions[arm].aligned(fold, "test")
            recall = np.mean([_recall(test.labels, repeat) for repeat in test.logits], axis=0)
            tested[arm] = Outcome(arm, mean_present(recall[scarce]), mean_present(recall))
        rows = {arm: predictions[arm].selection(fold) for arm in arms}
        best, crossfitted = choose_arm(rows, "balanced_accuracy", scarce)
        rules = {PLAIN: best}
        for errors in ERRORS:
            rules[WITHIN.format(errors)] = choose_arm(
                rows, "balanced_accuracy", scarce, regularised=REGULARISED, errors=errors
            )[0]
        rules[LOSS] = max(arms, key=lambda arm, rows=rows: -balanced_log_loss(*rows[arm][:2]))
        if rehearsed:
            again = {arm: rehearsed[arm][fold] for arm in arms}
            rules[REHEARSED] = max(arms, key=lambda arm, again=again: again[arm])
            rules[BOTH] = max(arms, key=lambda arm, again=again, own=crossfitted: own[arm] + again[arm])
        rules[BEST] = max(arms, key=lambda arm, tested=tested: tested[arm].balanced_accuracy)
        chosen = {rule: tested[arm] for rule, arm in rules.items()}
        found.append(chosen | {f"always `{arm}`": tested[arm] for arm in arms})
    return found


def main() -> None:
    """Prints one table per set: the folder that a project stands in."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("projects", nargs="+", type=Path, metavar="PROJECT")
    parser.add_argument("--rehearsals", type=int, default=0, help="trainings of an arm in a fold (default none)")
    arguments = parser.parse_args()
    if arguments.rehearsals < 0:
        parser.error(f"--rehearsals {arguments.rehearsals}: at least 0")
    torch.set_num_threads(1)
    sets: dict[str, list[dict[str, Outcome]]] = defaultdict(list)
    for project in arguments.projects:
        sets[project.resolve().parent.name] += outcomes_of(project, arguments.rehearsals)
    for name, folds in sets.items():
        print_table(name, folds)
    if len(sets) > 1:
        print_table("all", [fold for folds in sets.values() for fold in folds])


def print_table(name: str, folds: list[dict[str, Outcome]]) -> None:
    """One line per rule that all folds have; arms that are in some sets only have none.

    Intervals are those of the gain table, wider where splits overlap; over several sets there is a mean alone.
    """
    overlap = SETS[name].overlap if name in SETS else None
    print(f"\n{name}, {len(folds)} folds\n\n{HEAD}")
    for rule in [rule for rule in folds[0] if all(rule in fold for fold in folds)]:
        kept = [fold[rule] for fold in folds]
        chosen = ", ".join(f"{arm} {n}" for arm, n in _counts([one.arm for one in kept]))
        recall, accuracy = (100 * float(np.mean(values)) for values in zip(*[one[1:] for one in kept], strict=True))
        gains = np.array([fold[rule].scarce_recall - fold[PLAIN].scarce_recall for fold in folds])
        over = f"{100 * gains.mean():+.2f}" if overlap is None else interval(gains, overlap)
        print(f"| {rule} | {recall:.2f} | {'' if rule == PLAIN else over} | {accuracy:.2f} | {chosen} |")


def _counts(names: list[str]) -> list[tuple[str, int]]:
    return sorted(((name, names.count(name)) for name in set(names)), key=lambda pair: (-pair[1], pair[0]))


if __name__ == "__main__":
    main()
