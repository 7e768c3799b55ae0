"""`synthgen worth`: how many real images of the scarce classes the synthetic ones stand for.

Trains each fold's classical arm again on a part of its scarce images, which gives a learning curve, and places the
challenger on it. The parts are nested and hold whole objects. Writes metrics/worth.json; no verdict depends on it.
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from synthgen.artifacts import read_json, write_json
from synthgen.classifier.arms import ArmSpec, classical_arm, measured_arm
from synthgen.classifier.job_cache import kept_predictions
from synthgen.classifier.jobs import TrainingJob, run_jobs, worker_count
from synthgen.dataset.predictions import Predictions, load_predictions
from synthgen.dataset.prepared import PreparedData, load_prepared
from synthgen.errors import MeasurementError
from synthgen.metrics.classification import confusion_counts, recall_per_class
from synthgen.metrics.intervals import correction_ratio
from synthgen.metrics.outcomes import average_where_known
from synthgen.metrics.worth import Worth, unplaced, worth_in_reals
from synthgen.seeding import derive_seed
from synthgen.stages.training_context import build_context
from synthgen.stages.workspace import Workspace

SCHEMA = 1


def run_worth(workspace: Workspace, device: torch.device, n_workers: int | None = None) -> dict[str, Any]:
    """Measures the learning curve and writes metrics/worth.json; where there can be none, it says why.

    Returns:
        its contents.
    Raises:
        ArtifactError: an evaluation is missing.
        MeasurementError: no arm with synthetic images, or no scarce class.
        TrainingError: see `train_classifier`.
    """
    config, plan = workspace.config, workspace.plan
    data = load_prepared(workspace.prepared)
    scarce = scarce_labels(workspace)
    if not config.challenge.arms or not scarce:
        raise MeasurementError(
            "there is nothing to place on a learning curve: challenge.arms is empty or plan.yaml has no scarce class; "
            "name an arm in challenge.arms, or classes in plan.scarce"
        )
    challenger = measured_arm(config.challenge.arms)
    record = read_json(workspace.evaluation(challenger) / "arm.json")
    chosen = {fold: classical_arm(str(record["folds"][fold]["arm"])) for fold in plan.measured_folds}
    full = {fold: data.split(fold).train for fold in plan.measured_folds}
    n_real = _mean_count(data, full, scarce)
    at_all = [_scarce_error(_evaluated(workspace, chosen[fold].name), fold, scarce) for fold in full]
    synthetic = np.array([_scarce_error(_evaluated(workspace, challenger), fold, scarce) for fold in full])
    parts = _smaller_parts(workspace, data, scarce, n_real)
    counts = [*parts, n_real]
    curve = np.array([*_part_errors(workspace, data, chosen, parts, device, n_workers), at_all]).T  # (folds, counts)
    known = ~(np.isnan(curve).any(axis=1) | np.isnan(synthetic))
    if not known.any():
        placed = unplaced(n_real, 0, "no fold has a test image of a scarce class")
    elif not parts:
        placed = unplaced(n_real, int(known.sum()), "no class has enough objects for a smaller part of them")
    else:
        placed = worth_in_reals(counts, curve[known], synthetic[known], ratio=_overlap(data, scarce, full))
    result = {"schema": SCHEMA, "arm": challenger, **worth_record(placed, counts, curve[known], synthetic[known])}
    write_json(workspace.worth, result)
    return result


def _overlap(data: PreparedData, scarce: list[int], full: dict[str, NDArray[np.int64]]) -> float:
    """What folds that share training data add to the variance of a mean over them; 0 on a test set of one's own."""
    if data.frozen or len(full) < 2:
        return 0.0

    def mean_groups(rows: dict[str, NDArray[np.int64]]) -> float:
        return float(np.mean([len(np.unique(data.groups[r][np.isin(data.labels[r], scarce)])) for r in rows.values()]))

    tested = {fold: data.split(fold).test for fold in full}
    return correction_ratio(mean_groups(tested), mean_groups(full), len(full))


def _smaller_parts(
    workspace: Workspace, data: PreparedData, scarce: list[int], n_real: float
) -> dict[float, dict[str, NDArray[np.int64]]]:
    """Mean real images of a scarce class -> fold -> training rows, ascending; parts that are no smaller stay out."""
    parts: dict[float, dict[str, NDArray[np.int64]]] = {}
    for fraction in sorted(set(workspace.config.worth.fractions)):
        rows = {
            fold: thinned(data, fold, scarce, fraction, workspace.config.seed) for fold in workspace.plan.measured_folds
        }
        count = _mean_count(data, rows, scarce)
        if 0 < count < n_real and count > max(parts, default=0.0):
            parts[count] = rows
    return parts


def _part_errors(
    workspace: Workspace,
    data: PreparedData,
    chosen: dict[str, ArmSpec],
    parts: dict[float, dict[str, NDArray[np.int64]]],
    device: torch.device,
    n_workers: int | None,
) -> list[list[float]]:
    """Per part and fold the error of the fold's arm, trained on that part."""
    if not parts:
        return []
    workers, section = worker_count(n_workers), workspace.config
    scarce = scarce_labels(workspace)
    thinnest = dict.fromkeys(scarce, min(section.worth.fractions))
    context = build_context(
        workspace, data, list(chosen.values()), {}, device=device, n_workers=workers, thinnest=thinnest
    )
    errors = []
    for count, rows in parts.items():
        jobs = [
            TrainingJob(chosen[fold], fold, r, f"repeat {r}", rows[fold], [("test", data.split(fold).test)])
            for fold in chosen
            for r in range(section.evaluate.repeats)
        ]
        with kept_predictions(workspace.root, f"worth-{count:g}") as scratch:
            found = run_jobs(jobs, context, n_workers=workers, description=f"worth {count:g}", scratch=scratch)
        errors.append([_scarce_error(found, fold, scarce) for fold in chosen])
    return errors


def scarce_labels(workspace: Workspace) -> list[int]:
    """Labels of the scarce classes."""
    return [workspace.plan.classes[slug].label for slug in workspace.plan.scarce_slugs]


def thinned(data: PreparedData, fold: str, scarce: list[int], fraction: float, seed: int) -> NDArray[np.int64]:
    """Training rows of a fold with a part of the objects of each scarce class; smaller parts lie inside larger ones.

    Args:
        data: for rows, labels and groups.
        fold: `f0`, ...
        scarce: labels that are thinned out.
        fraction: of the objects of each, rounded up.
        seed: of the run; it orders the objects.
    Returns:
        (n,) int64, in the order of the fold's training rows.
    """
    train = data.split(fold).train
    keep = np.ones(len(train), dtype=bool)
    for label in scarce:
        own = data.labels[train] == label
        groups = sorted(set(data.groups[train[own]].tolist()), key=lambda group: derive_seed(seed, "worth", group))
        kept = groups[: math.ceil(fraction * len(groups))]
        keep &= ~own | np.isin(data.groups[train], kept)
    return train[keep]


def _mean_count(data: PreparedData, rows: dict[str, NDArray[np.int64]], scarce: list[int]) -> float:
    return float(np.mean([np.mean([np.sum(data.labels[found] == k) for k in scarce]) for found in rows.values()]))


def _evaluated(workspace: Workspace, arm: str) -> Predictions:
    return load_predictions(workspace.evaluation(arm) / "predictions.parquet")


def _scarce_error(predictions: Predictions, fold: str, scarce: list[int]) -> float:
    """1 - mean recall of the scarce classes in a fold, repeats averaged; nan without a test image of any of them."""
    test = predictions.aligned(fold, "test")
    recalls = [
        recall_per_class(confusion_counts(test.labels, logits.argmax(axis=1), logits.shape[1]))[scarce]
        for logits in test.logits
    ]
    return 1.0 - float(average_where_known(average_where_known(np.stack(recalls))))


def worth_record(
    worth: Worth, counts: list[float], curve: NDArray[np.float64], synthetic: NDArray[np.float64]
) -> dict[str, Any]:
    """Contents of metrics/worth.json (docs/schema.md); a bound that is open is null."""
    more = worth.more
    return {
        "n_folds": worth.n_folds,
        "n_real": round(worth.n_real, 2),
        "curve": [
            {"images": round(images, 2), "error": round(float(error), 6)}
            for images, error in zip(counts, curve.mean(axis=0), strict=True)
        ]
        if len(curve)
        else [],
        "error_with_synthetic": round(float(synthetic.mean()), 6) if len(synthetic) else None,
        "exponent": round(worth.exponent, 4) if math.isfinite(worth.exponent) else None,
        "more_real_images": {
            name: round(value, 2) if math.isfinite(value) and value > -worth.n_real else None
            for name, value in zip(("mean", "low", "high"), more, strict=True)
        },
        "reason": worth.reason,
    }
