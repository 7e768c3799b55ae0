"""`synthgen challenge --arm ARM`: one arm with synthetic images in every fold and repeat.

A `best+...` arm first chooses, inside each fold and without its test side, the best classical arm by
cross-fitting, then trains that arm plus synthetic images. Writes `data/evaluation/ARM/`.
"""

from typing import Any

import numpy as np
import torch

from synthgen.artifacts import atomic_folder, write_json
from synthgen.classifier.arms import BEST_ARMS, ArmSpec, SyntheticPool, challenge_arm, classical_arm
from synthgen.classifier.job_cache import kept_predictions
from synthgen.classifier.jobs import fold_jobs, run_jobs, worker_count
from synthgen.classifier.training import SyntheticImages
from synthgen.dataset.predictions import load_predictions, save_predictions
from synthgen.dataset.prepared import PreparedData, load_prepared
from synthgen.dataset.shards import read_images
from synthgen.metrics.choice import choose_arm
from synthgen.stages.evaluate import SCHEMA
from synthgen.stages.training_context import build_context
from synthgen.stages.workspace import Workspace


def run_challenge(workspace: Workspace, arm_name: str, device: torch.device, n_workers: int | None = None) -> None:
    """Trains and predicts one arm with synthetic images.

    Raises:
        ConfigError: no such arm.
        ArtifactError: an evaluation or a shard is missing.
        TrainingError: see `train_classifier`.
    """
    config, folds = workspace.config, workspace.plan.measured_folds
    workers = worker_count(n_workers)
    data = load_prepared(workspace.prepared)
    details = choose_in_folds(workspace, data) if arm_name in BEST_ARMS else {fold: {} for fold in folds}
    arms = {
        fold: challenge_arm(arm_name, classical_arm(str(detail["arm"])) if detail else None)
        for fold, detail in details.items()
    }
    pools = {fold: load_pool(workspace, fold, arm.synthetic_pool, data) for fold, arm in arms.items()}
    synthetic = {fold: images for fold, (images, _) in pools.items()}
    context = build_context(workspace, data, list(arms.values()), synthetic, device=device, n_workers=workers)
    jobs = [job for fold in folds for job in fold_jobs(data, arms[fold], fold, config.evaluate.repeats, crossfit=False)]
    with kept_predictions(workspace.root, arm_name) as scratch:
        predictions = run_jobs(jobs, context, n_workers=workers, description=f"challenge {arm_name}", scratch=scratch)
        with atomic_folder(workspace.evaluation(arm_name)) as partial:
            save_predictions(partial / "predictions.parquet", predictions)
            write_json(
                partial / "arm.json",
                {
                    "schema": SCHEMA,
                    "arm": arm_name,
                    "description": _describe(arm_name, arms),
                    "folds": {
                        fold: {**(details[fold] or {"arm": arm_name}), "stand_ins": pools[fold][1]} for fold in folds
                    },
                    "repeats": config.evaluate.repeats,
                    "share": config.challenge.share,
                },
            )


def _describe(arm_name: str, arms: dict[str, ArmSpec]) -> str:
    if arm_name in BEST_ARMS:
        return f"the fold's best classical arm + synthetic ({BEST_ARMS[arm_name]})"
    return next(iter(arms.values())).description


def choose_in_folds(workspace: Workspace, data: PreparedData) -> dict[str, dict[str, Any]]:
    """Fold -> `{"arm": chosen classical arm, "scores": {ARM: cross-fitted score}}`; no test row is read."""
    config, plan = workspace.config, workspace.plan
    scarce = [data.slugs.index(slug) for slug in plan.scarce_slugs]
    predictions = {
        arm: load_predictions(workspace.evaluation(arm) / "predictions.parquet") for arm in config.evaluate.arms
    }
    chosen: dict[str, dict[str, Any]] = {}
    for fold in plan.measured_folds:
        candidates = {arm: rows.selection(fold) for arm, rows in predictions.items()}
        arm, scores = choose_arm(candidates, config.challenge.choice, scarce)
        chosen[fold] = {"arm": arm, "scores": {name: round(score, 6) for name, score in scores.items()}}
    return chosen


def load_pool(
    workspace: Workspace, fold: str, pool: SyntheticPool, data: PreparedData
) -> tuple[SyntheticImages, dict[str, str]]:
    """The images from which the synthetic share of every batch is drawn, some for each class that trains.

    A class whose samples were refused takes those of the shared GAN, else its own training images as they are: left
    out, it would be the one class that is never synthetic, and origin would tell the label.

    Args:
        pool: `default`, or `shared`: the samples of the shared GAN, also for classes with a GAN of their own.
    Returns:
        the images, and `{SLUG: what stands in}` for the classes that have none of their own.
    """
    folder = workspace.synthetic(fold)
    train = data.split(fold).train
    images, labels = [], []
    stand_ins: dict[str, str] = {}
    for label, slug in enumerate(data.slugs):
        own, shared = folder / f"{slug}.parquet", folder / f"{slug}.shared.parquet"
        content = read_images(shared if pool == "shared" and shared.exists() else own)
        if not len(content.labels) and shared.exists():
            content = read_images(shared)
            stand_ins[slug] = "shared"
        found = content.images
        if not len(found):
            found = data.verified(train[data.labels[train] == label])
            stand_ins[slug] = "real"
        if len(found):
            images.append(found)
            labels.append(np.full(len(found), label, dtype=np.int64))
    if all(stand_ins.get(slug) == "real" for slug in data.slugs):
        return SyntheticImages(np.zeros((0, *data.images.shape[1:]), np.uint8), np.zeros(0, np.int64)), stand_ins
    return SyntheticImages(np.concatenate(images), np.concatenate(labels)), stand_ins
