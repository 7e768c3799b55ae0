"""`synthgen challenge --arm BASE+POLICY`: one arm with synthetic images in every fold and repeat.

Where the base is `best` it first chooses, inside each fold and without its test side, the classical arm by
cross-fitting, then trains that arm plus synthetic images. Writes `data/challenge/ARM/`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from synthgen.artifacts import atomic_folder, write_json
from synthgen.classifier.arms import BEST, REGULARISED, ArmSpec, classical_arm, describe, searched_arm, split_arm
from synthgen.classifier.draws import SyntheticImages
from synthgen.classifier.job_cache import kept_predictions
from synthgen.classifier.jobs import count_pseudo_labels, fold_jobs, run_jobs, worker_count
from synthgen.config import POLICIES, SEARCHED_POLICY
from synthgen.dataset.acceptance import SHARD_SUFFIX
from synthgen.dataset.mixing import MixingPolicy, build_policy, policy_record
from synthgen.dataset.origin_record import read_origin
from synthgen.dataset.pools import shards_for
from synthgen.dataset.predictions import load_predictions, save_predictions
from synthgen.dataset.prepared import PreparedData, load_prepared
from synthgen.dataset.shards import read_images
from synthgen.errors import PlanError
from synthgen.metrics.choice import choose_arm
from synthgen.records import FINAL, PLAN_COMMAND
from synthgen.stages.evaluate import SCHEMA
from synthgen.stages.searched import SearchedPolicies, read_searched
from synthgen.stages.shortcut import mean_bits, origin_of_fold
from synthgen.stages.training_context import build_context, render_synthetic
from synthgen.stages.workspace import Workspace

AGREEMENT = "teacher_agreement"


def run_challenge(workspace: Workspace, arm_name: str, device: torch.device, n_workers: int | None = None) -> None:
    """Trains and predicts one arm with synthetic images.

    Raises:
        ConfigError: no such arm or policy.
        ArtifactError: an evaluation or a shard is missing.
        TrainingError: see `train_classifier`.
    """
    config, folds = workspace.config, workspace.plan.measured_folds
    workers = worker_count(n_workers)
    data = load_prepared(workspace.prepared)
    base, mixing = policies_in_folds(workspace, arm_name, data)
    details: dict[str, dict[str, Any]] = {fold: {"arm": base} for fold in folds}
    if base == BEST:
        details = choose_in_folds(workspace, data)
    arms = {
        fold: searched_arm(arm_name, classical_arm(str(details[fold]["arm"])), mixing.policies[fold]) for fold in folds
    }
    synthetic: dict[str, SyntheticImages] = {}
    for fold in folds:
        details[fold] |= {"stand_ins": {}, **mixing.record_of(fold, data.class_names)}
        if (policy := mixing.policies[fold]) is not None:
            images, stand_ins = load_pool(workspace, fold, policy, data)
            origin = origin_of_fold(policy, data.slugs, stand_ins, read_origin(workspace.synthetic(fold)))
            details[fold] |= {"stand_ins": stand_ins, "origin": origin}
            synthetic[fold] = render_synthetic(workspace, images, policy, n_workers=workers)
    context = build_context(workspace, data, list(arms.values()), synthetic, device=device, n_workers=workers)
    jobs = [job for fold in folds for job in fold_jobs(data, arms[fold], fold, config.evaluate.repeats, crossfit=False)]
    with kept_predictions(workspace.root, arm_name) as scratch:
        predictions = run_jobs(jobs, context, n_workers=workers, description=f"challenge {arm_name}", scratch=scratch)
        for fold, counts in count_pseudo_labels(jobs, context, scratch).items():
            details[fold] |= counts
        with atomic_folder(workspace.evaluation(arm_name)) as partial:
            save_predictions(partial / "predictions.parquet", predictions)
            write_json(
                partial / "arm.json",
                {
                    "schema": SCHEMA,
                    "arm": arm_name,
                    "description": _describe(base, mixing, list(arms.values())),
                    "folds": details,
                    "repeats": config.evaluate.repeats,
                    "share": round(mixing.released.share(), 6) if mixing.released else 0.0,
                    "policy": policy_record(mixing.released, data.class_names) if mixing.released else None,
                    "shortcut_bits": mean_bits(details),
                    **({"search": mixing.searched.summary} if mixing.searched else {}),
                },
            )


@dataclass(frozen=True)
class FoldPolicies:
    """How synthetic images are mixed in, fold by fold.

    Attributes:
        policies: fold -> policy; None: no synthetic images.
        released: what stands for all: the one policy, or that which the search chose for the release.
        searched: the search behind them; None: a policy of params.yaml, the same in all folds.
    """

    policies: dict[str, MixingPolicy | None]
    released: MixingPolicy | None
    searched: SearchedPolicies | None = None

    def record_of(self, fold: str, class_names: Sequence[str]) -> dict[str, Any]:
        """What arm.json says of one fold beside what it says of the arm."""
        if self.searched is None:
            return {}
        policy = self.policies[fold]
        return {
            "candidate": self.searched.names[fold],
            "policy": policy_record(policy, class_names) if policy else None,
        }


def policies_in_folds(workspace: Workspace, arm_name: str, data: PreparedData) -> tuple[str, FoldPolicies]:
    """The base of an arm and its policy in every fold.

    Raises:
        ConfigError: no such arm or policy.
        ArtifactError: the arm is searched for, and there is no usable result of `synthgen search`.
        PlanError: the arm is searched for, and plan.yaml knows nothing of it.
    """
    folds = workspace.plan.measured_folds
    policies = {**POLICIES, **workspace.config.challenge.policies}
    base, name = split_arm(arm_name, [*policies, SEARCHED_POLICY])
    if name == SEARCHED_POLICY and not workspace.plan.search_runs:
        raise PlanError(
            f"challenge.arms has {arm_name}, but plan.yaml was written without a search, so a result that lies in "
            f"data/search would be of another run; run `{PLAN_COMMAND}`, then `dvc repro`"
        )
    if name == SEARCHED_POLICY:
        found = read_searched(workspace, data.class_names)
        return base, FoldPolicies({fold: found.policies[fold] for fold in folds}, found.policies[FINAL], found)
    scarce = [data.slugs.index(slug) for slug in workspace.plan.scarce_slugs]
    policy = build_policy(name, policies[name], data.class_names, scarce)
    return base, FoldPolicies(dict.fromkeys(folds, policy), policy)


def _describe(base: str, mixing: FoldPolicies, arms: Sequence[ArmSpec]) -> str:
    mixed = describe(mixing.released) if mixing.released else "no synthetic images"
    if mixing.searched:
        mixed = f"what the search chose in the fold (for the release: {mixed})"
    if base == BEST:
        return f"the fold's classical arm + {mixed}"
    return f"{classical_arm(base).description} + {mixed}" if mixing.searched else arms[0].description


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
        arm, scores = choose_arm(
            candidates,
            config.challenge.choice,
            scarce,
            regularised=REGULARISED,
            errors=config.challenge.choice_errors,
        )
        chosen[fold] = {"arm": arm, "scores": {name: round(score, 6) for name, score in scores.items()}}
    return chosen


def load_pool(
    workspace: Workspace, fold: str, policy: MixingPolicy, data: PreparedData
) -> tuple[SyntheticImages, dict[str, str]]:
    """The images from which the synthetic share of every batch is drawn, some for each class that trains.

    A class whose samples were refused takes what stands in for them (the shared GAN's for an adapted one's), else its
    own training images as they are: left out, it would be the one class that is never synthetic, and origin would tell
    the label.

    Args:
        policy: its `pool` says which images (`synthgen.dataset.pools`).
    Returns:
        the images, and `{SLUG: what stands in}` for the classes that have none of their own.
    """
    folder = workspace.synthetic(fold)
    train = data.split(fold).train
    images, labels, sureness = [], [], []
    stand_ins: dict[str, str] = {}
    present = {path.name.removesuffix(SHARD_SUFFIX) for path in folder.glob(f"*{SHARD_SUFFIX}")}
    for label, slug in enumerate(data.slugs):
        found, sure = np.zeros((0, *data.images.shape[1:]), np.uint8), np.zeros(0, np.float32)
        for place, name in enumerate(shards_for(slug, policy.pool, present)):
            if not len(found):
                content = read_images(folder / f"{name}{SHARD_SUFFIX}", [AGREEMENT])
                found, sure = content.images, content.columns[AGREEMENT]
                if place:
                    stand_ins[slug] = "shared"
        if not len(found):
            found = data.verified(train[data.labels[train] == label])
            sure = np.ones(len(found), np.float32)
            stand_ins[slug] = "real"
        if len(found):
            images.append(found)
            labels.append(np.full(len(found), label, dtype=np.int64))
            sureness.append(sure)
    if all(stand_ins.get(slug) == "real" for slug in data.slugs):
        return SyntheticImages(np.zeros((0, *data.images.shape[1:]), np.uint8), np.zeros(0, np.int64)), stand_ins
    joined = np.concatenate(labels)
    used = policy.used(joined)
    certain = np.concatenate(sureness)[used] if policy.labels == "agreement" else None
    return SyntheticImages(np.concatenate(images)[used], joined[used], certain), stand_ins
