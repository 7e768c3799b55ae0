"""`synthgen evaluate --arm ARM`: one classical arm in every fold and repeat, and cross-fitted inside each fold.

Reads the prepared data alone, so that a new generator never re-runs a classical arm. Writes `data/evaluation/ARM/`.
"""

import torch

from synthgen.artifacts import atomic_folder, write_json
from synthgen.classifier.arms import classical_arm
from synthgen.classifier.job_cache import kept_predictions
from synthgen.classifier.jobs import count_pseudo_labels, fold_jobs, run_jobs, worker_count
from synthgen.classifier.pasted_pool import describe_regions
from synthgen.dataset.predictions import save_predictions
from synthgen.dataset.prepared import load_prepared
from synthgen.stages.training_context import build_context
from synthgen.stages.workspace import Workspace

SCHEMA = 1


def run_evaluate(workspace: Workspace, arm_name: str, device: torch.device, n_workers: int | None = None) -> None:
    """Trains and predicts one classical arm.

    Raises:
        ConfigError: no such arm, or one that needs unlabelled images where there are none.
        TrainingError: see `train_classifier`.
    """
    arm = classical_arm(arm_name)
    section = workspace.config.evaluate
    workers = worker_count(n_workers)
    data = load_prepared(workspace.prepared)
    context = build_context(workspace, data, [arm], {}, device=device, n_workers=workers)
    folds = workspace.plan.measured_folds
    regions = describe_regions(arm, context, folds)
    jobs = [job for fold in folds for job in fold_jobs(data, arm, fold, section.repeats, section.crossfit)]
    with kept_predictions(workspace.root, arm_name) as scratch:
        predictions = run_jobs(jobs, context, n_workers=workers, description=f"evaluate {arm_name}", scratch=scratch)
        pseudo = count_pseudo_labels(jobs, context, scratch)
        with atomic_folder(workspace.evaluation(arm_name)) as partial:
            save_predictions(partial / "predictions.parquet", predictions)
            write_json(
                partial / "arm.json",
                {
                    "schema": SCHEMA,
                    "arm": arm_name,
                    "description": arm.description,
                    "folds": {
                        fold: {"arm": arm_name, **regions.get(fold, {}), **pseudo.get(fold, {})} for fold in folds
                    },
                    "repeats": section.repeats,
                },
            )
