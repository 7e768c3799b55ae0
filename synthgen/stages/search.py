"""`synthgen search`: which mixing policy, for every fold and for the release, chosen on validation images alone.

Owns the trainings of the candidates, the budget and `data/search/result.json`. No test image is predicted or read here;
who is compared, kept and chosen is `synthgen.metrics.policy_search`'s. Runs only where an arm of `challenge.arms` is
`BASE+searched`.
"""

import logging
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from synthgen.artifacts import digest_of, read_json, write_json
from synthgen.classifier.arms import ArmSpec, classical_arm, searched_arm, trains_teacher
from synthgen.classifier.job_cache import job_digests, kept_predictions
from synthgen.classifier.job_records import TrainingContext, TrainingJob
from synthgen.classifier.jobs import run_jobs, worker_count
from synthgen.config import POLICIES, Config, SearchSection
from synthgen.dataset.mixing import policy_record
from synthgen.dataset.mixing_candidates import Candidate, list_candidates, share_variants
from synthgen.dataset.prepared import PreparedData, load_prepared
from synthgen.errors import ConfigError, MeasurementError
from synthgen.metrics.intervals import Estimate, bounds
from synthgen.metrics.paired_scores import ValidationRows, quadratic_scores
from synthgen.metrics.policy_search import Choice, Outcome, PolicySearch, search_units
from synthgen.metrics.search_plan import REPEATS, SearchPlan, least_trainings, plan_search
from synthgen.records import FINAL
from synthgen.stages.challenge import choose_in_folds, load_pool
from synthgen.stages.training_context import build_context, render_synthetic
from synthgen.stages.workspace import Workspace

SCHEMA = 1
SCRATCH = "search"
SPEED_FILE = "speed.json"
LEVEL = 0.025
"""One-sided level of the interval of the expected gain."""

_log = logging.getLogger(__name__)


class CandidateTrainer:
    """Trains candidates in every measured fold and scores validation rows; what was trained stays in memory.

    Attributes:
        rows: validation rows of all folds.
        scores: candidate -> (R, n) quadratic scores.
        hits: candidate -> (R, n), 1.0 where the label was right.
    """

    def __init__(
        self,
        workspace: Workspace,
        data: PreparedData,
        candidates: list[Candidate],
        scratch: Path,
        device: torch.device,
        n_workers: int,
    ):
        """Chooses the classical arm of each fold by cross-fitting and renders what these arms need."""
        self._workspace, self._data, self._scratch, self._n_workers = workspace, data, scratch, n_workers
        self.candidates = {candidate.name: candidate for candidate in candidates}
        self._splits = {fold: data.split(fold) for fold in workspace.plan.measured_folds}
        empty = [fold for fold, split in self._splits.items() if not len(split.val)]
        if empty:
            raise MeasurementError(
                f"fold {empty[0]} has no validation image, so nothing can be searched for; lower plan.folds or take "
                "BASE+searched out of challenge.arms"
            )
        chosen = choose_in_folds(workspace, data)
        self.bases: dict[str, ArmSpec] = {fold: classical_arm(chosen[fold]["arm"]) for fold in self._splits}
        self._context = build_context(
            workspace, data, list(self.bases.values()), {}, device=device, n_workers=n_workers
        )
        self.rows = self._validation_rows()
        self.scores: dict[str, NDArray[np.float64]] = {}
        self.hits: dict[str, NDArray[np.float64]] = {}

    @property
    def folds(self) -> list[str]:
        """Measured folds."""
        return list(self._splits)

    def tested_groups(self) -> dict[str, NDArray[np.str_]]:
        """Fold -> the groups of its test side."""
        return {fold: np.unique(self._data.groups[split.test]) for fold, split in self._splits.items()}

    def _validation_rows(self) -> ValidationRows:
        found = [(np.full(len(split.val), j), split.val) for j, split in enumerate(self._splits.values())]
        folds, rows = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return ValidationRows(folds, self._data.labels[rows], self._data.groups[rows])

    def train(self, name: str, repeats: int) -> NDArray[np.float64]:
        """Trains what is missing of a candidate.

        Args:
            name: of the candidate.
            repeats: trainings in every fold, those done before included.
        Returns:
            (repeats, n) quadratic scores, rows as in `rows`; the seeds of a repeat are the same for all candidates.
        Raises:
            ArtifactError: a shard is missing.
            TrainingError: see `train_classifier`.
        """
        done = len(self.scores.get(name, ()))
        if done < repeats:
            context, jobs = self._context_of(name), self._jobs(name, range(done, repeats))
            predictions = run_jobs(
                jobs, context, n_workers=self._n_workers, description=f"search {name}", scratch=self._scratch
            )
            logits = np.concatenate([predictions.aligned(fold, "val").logits for fold in self._splits], axis=1)
            scored = quadratic_scores(logits, self.rows.labels)  # (R, n)
            right = (logits.argmax(axis=2) == self.rows.labels).astype(np.float64)  # (R, n)
            nothing = np.zeros((0, len(self.rows.labels)))
            self.scores[name] = np.concatenate([self.scores.get(name, nothing), scored])
            self.hits[name] = np.concatenate([self.hits.get(name, nothing), right])
        return self.scores[name][:repeats]

    def _jobs(self, name: str, repeats: range) -> list[TrainingJob]:
        policy = self.candidates[name].policy
        return [
            TrainingJob(
                searched_arm(name, self.bases[fold], policy),
                fold,
                repeat,
                f"repeat {repeat}",
                split.train,
                [("val", split.val)],
            )
            for fold, split in self._splits.items()
            for repeat in repeats
        ]

    def _context_of(self, name: str) -> TrainingContext:
        policy = self.candidates[name].policy
        if policy is None:
            return self._context
        pools = {fold: load_pool(self._workspace, fold, policy, self._data)[0] for fold in self._splits}
        return replace(
            self._context,
            synthetic={
                fold: render_synthetic(self._workspace, images, policy, n_workers=self._n_workers)
                for fold, images in pools.items()
            },
        )

    def seconds_each(self, name: str) -> float:
        """Seconds of one training, from the first ones of a candidate; a killed search goes on with the same number."""
        path = self._scratch / SPEED_FILE
        digest = digest_of(job_digests(self._jobs(name, range(REPEATS)), self._context_of(name)))
        known = read_json(path) if path.exists() else {}
        if known.get("digest") == digest:
            return float(known["seconds"])
        # what a killed search left of these trainings would make them look faster than they are
        shutil.rmtree(self._scratch, ignore_errors=True)
        started = time.monotonic()
        self.train(name, REPEATS)
        seconds = (time.monotonic() - started) / (REPEATS * len(self._splits))
        write_json(path, {"digest": digest, "seconds": seconds})
        return seconds


def run_search(workspace: Workspace, device: torch.device, n_workers: int | None = None) -> None:
    """Searches among mixing policies and writes data/search/result.json.

    Raises:
        ConfigError: an unknown candidate, or a budget in which not even two policies can be compared.
        ArtifactError: an evaluation or a shard is missing.
        MeasurementError: there is no validation image to choose on.
        TrainingError: see `train_classifier`.
    """
    config, data = workspace.config, load_prepared(workspace.prepared)
    scarce = [data.slugs.index(slug) for slug in workspace.plan.scarce_slugs]
    candidates = list_candidates(
        {**POLICIES, **config.challenge.policies},
        config.search.candidates,
        data.class_names,
        scarce,
        has_shared=workspace.plan.strategy == "adapted",
        has_morphs=any(workspace.synthetic(workspace.plan.measured_folds[0]).glob("*.morphed.parquet")),
    )
    with kept_predictions(workspace.root, SCRATCH) as scratch:
        trainer = CandidateTrainer(workspace, data, candidates, scratch, device, worker_count(n_workers))

        def variants_of(base: str) -> list[str]:
            found = share_variants(trainer.candidates[base], data.slugs, scarce)
            trainer.candidates |= {variant.name: variant for variant in found}
            return [variant.name for variant in found]

        started = time.monotonic()
        seconds = None if config.search.trainings else trainer.seconds_each(candidates[0].name)
        n_variants = len(share_variants(candidates[0], data.slugs, scarce))
        allowed = allowed_trainings(config.search, len(trainer.folds), seconds)
        plan = plan_search(len(candidates), n_variants, len(trainer.folds), allowed)
        assert plan is not None  # allowed_trainings refuses less
        _log.info("%s", _announcement(plan, len(candidates), allowed))
        units, unit_of_row = search_units(trainer.rows, trainer.tested_groups())
        classes = scarce if config.challenge.choice == "scarce_recall" else None
        names = [candidate.name for candidate in candidates]
        search = PolicySearch(trainer.rows, units, names, plan, allowed, trainer.train, variants_of, classes)
        outcome = search.run()
        expected = {
            "score": _gain(search.expected_gain(outcome, unit_of_row, trainer.scores)),
            "balanced_accuracy": _gain(search.expected_gain(outcome, unit_of_row, trainer.hits)),
        }
        took = None if seconds is None else round(time.monotonic() - started, 1)
        record = {
            "schema": SCHEMA,
            "default": names[0],
            "bases": {fold: base.name for fold, base in trainer.bases.items()},
            "counts": "scarce classes" if classes else "all classes",
            "budget": {
                "minutes": None if seconds is None else config.search.minutes,
                "seconds_each": None if seconds is None else round(seconds, 4),
                "trainings": allowed,
            },
            "plan": _plan_record(plan, names),
            "candidates": _candidate_records(trainer, outcome, data.class_names),
            "chosen": {
                unit: _choice_record(outcome.choices[unit], trainer.candidates, data.class_names)
                for unit in [*trainer.folds, FINAL]
            },
            "expected_gain": expected,
            "cost": {
                "trainings": outcome.trainings,
                "steps": trained_steps(config, outcome.trainings, trainer.bases),
                "seconds": took,
                "rungs": outcome.rungs,
                "stopped": outcome.stopped,
            },
        }
        write_json(workspace.search_result, record)


def trained_steps(config: Config, trainings: int, bases: Mapping[str, ArmSpec]) -> int:
    """Optimizer steps of the trainings of candidates, and of the teachers that some bases train before each.

    Args:
        config: `classifier` and `evaluate.share`.
        trainings: in all, as many in every fold.
        bases: fold -> the arm that candidates are trained on top of.
    """
    with_teacher = [trains_teacher(base, config.evaluate.share, config.classifier.batch) for base in bases.values()]
    return config.classifier.steps * (trainings + trainings // len(bases) * sum(with_teacher))


def allowed_trainings(section: SearchSection, n_folds: int, seconds: float | None) -> int:
    """How many trainings the budget holds.

    Args:
        section: params.yaml, `search`.
        n_folds: measured folds.
        seconds: of one training; None where the budget is a number of trainings.
    Raises:
        ConfigError: too few to compare even two policies, naming what that takes.
    """
    least = least_trainings(n_folds)
    what = f"comparing even two policies takes {least} trainings (2 policies x {REPEATS} repeats x {n_folds} folds)"
    if section.trainings is not None:
        if section.trainings < least:
            raise ConfigError(f"search.trainings is {section.trainings}, but {what}; raise it to {least} or more")
        return section.trainings
    assert seconds is not None
    allowed = int(60.0 * section.minutes / max(seconds, 1e-6))
    if allowed < least:
        needed = math.ceil(least * seconds / 60.0 * 100.0 + 1.0) / 100.0  # to be on the safe side of rounding
        raise ConfigError(
            f"search.minutes is {section.minutes:g}, but {what} of {seconds:.2g} s here: raise it to {needed:g} or "
            "more, or take BASE+searched out of challenge.arms"
        )
    return allowed


def _announcement(plan: SearchPlan, n_candidates: int, allowed: int) -> str:
    left_out = n_candidates - plan.n_candidates
    shares = f", then {plan.n_variants} with other shares of one class" if plan.n_variants else ""
    return (
        f"search: {plan.n_candidates} policies{f' ({left_out} left out)' if left_out else ''}, halved to "
        f"{', '.join(str(n) for n in plan.rungs)} beside the default{shares}: about {plan.trainings} trainings of the "
        f"{allowed} that the budget holds"
    )


def _plan_record(plan: SearchPlan, names: list[str]) -> dict[str, Any]:
    return {
        "candidates": names[: plan.n_candidates],
        "left_out": names[plan.n_candidates :],
        "rungs": [{"challengers": n, "repeats": REPEATS} for n in plan.rungs],
        "variants": {"n": plan.n_variants, "repeats": plan.variant_repeats},
        "trainings": plan.trainings,
    }


def _candidate_records(trainer: CandidateTrainer, outcome: Outcome, class_names: list[str]) -> dict[str, Any]:
    """Every candidate as the release saw it: with all validation rows, at its last rung."""
    gains = outcome.gains[FINAL]
    records: dict[str, Any] = {}
    for name, repeats in outcome.repeats.items():
        policy = trainer.candidates[name].policy
        found = gains.get(name)
        records[name] = {
            "policy": None if policy is None else policy_record(policy, class_names),
            "repeats": repeats,
            "trainings": repeats * len(trainer.folds),
            "rungs": -(-repeats // REPEATS),
            "mean": None if found is None else round(found.mean, 6),
            "error": None if found is None else _finite(found.error),
        }
    return records


def _choice_record(choice: Choice, candidates: Mapping[str, Candidate], class_names: list[str]) -> dict[str, Any]:
    policy = candidates[choice.name].policy
    return {
        "candidate": choice.name,
        "policy": None if policy is None else policy_record(policy, class_names),
        "mean": round(choice.gain.mean, 6),
        "error": _finite(choice.gain.error),
        "shrunk": round(choice.shrunk.mean, 6),
        "needed": _finite(choice.needed),
        "repeats": choice.repeats,
    }


def _finite(value: float) -> float | None:
    return round(value, 6) if np.isfinite(value) else None


def _gain(estimate: Estimate) -> dict[str, Any]:
    low, high = bounds(estimate, LEVEL, LEVEL) if estimate.error else (estimate.mean, estimate.mean)
    return {"mean": round(estimate.mean, 6), "low": round(low, 6), "high": round(high, 6), "n": estimate.n}
