"""Many classifier trainings of one arm: every fold, repeat and inner part, spread over the cores.

Owns where and in which order they run. On a CPU each runs on one thread in a process of its own, so that results do
not depend on how many run at once; on an accelerator trainings of one arm run together where that pays
(synthgen/classifier/together.py), else one after the other. What was finished before a kill is not trained again.
"""

import logging
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from synthgen.classifier.arms import CLASSICAL_ARMS, ArmSpec, trains_teacher
from synthgen.classifier.draws import RealImages
from synthgen.classifier.job_cache import find_kept, job_digests, keep
from synthgen.classifier.job_records import INNER, TrainingContext, TrainingJob, fold_jobs
from synthgen.classifier.pasted_pool import build_pasted_pool
from synthgen.classifier.prediction import predict_logits
from synthgen.classifier.pseudo_labels import (
    PseudoLabelled,
    choose_pseudo_labels,
    keep_counts,
    kept_counts,
    most_per_class,
)
from synthgen.classifier.together import Member, fitting_together, pays_together, train_together
from synthgen.classifier.training import train_classifier
from synthgen.cores import usable_cores
from synthgen.dataset.predictions import Predictions, concatenate, one_part
from synthgen.errors import ArtifactError, TrainingError
from synthgen.lifeline import end_worker_with_parent
from synthgen.progress import progress_bar
from synthgen.seeding import derive_seed

__all__ = [
    "INNER",
    "TrainingContext",
    "TrainingJob",
    "count_pseudo_labels",
    "fold_jobs",
    "process_pool",
    "run_jobs",
    "train_and_predict",
    "worker_count",
]

TEACHER = "classical"
"""The arm that labels the unlabelled images of `pseudo_labelled`, trained on the job's own rows with its own seed."""

_log = logging.getLogger(__name__)


def _shared_reals_of(job: TrainingJob, context: TrainingContext) -> RealImages:
    # the images of all rows stand on the device once: repeats and folds share most of theirs
    return RealImages(
        images=context.images,
        image_rows=job.train,
        labels=context.data.labels[job.train],
        bank_rows=context.bank_rows[job.train],
        transforms=context.banks.get(job.arm.transforms or ""),
        mild=context.banks.get("mild"),
        pasted=build_pasted_pool(job, context),
    )


def _reals_of(job: TrainingJob, context: TrainingContext) -> RealImages:
    return replace(_shared_reals_of(job, context), images=context.images[job.train], image_rows=None)


def _seed_of(job: TrainingJob, context: TrainingContext) -> int:
    return derive_seed(context.seed, "classifier", job.fold, job.stream)


def _predict(network: nn.Module, job: TrainingJob, context: TrainingContext) -> list[Predictions]:
    data = context.data
    return [
        one_part(
            job.fold,
            job.repeat,
            part,
            data.sha256[rows],
            data.groups[rows],
            data.labels[rows],
            predict_logits(network, context.images[rows], context.device),
        )
        for part, rows in job.parts
        if len(rows)
    ]


class _Done(NamedTuple):
    """What one finished job leaves: predictions, and pseudo labels by slug where its arm gives any."""

    predictions: list[Predictions]
    n_pseudo: dict[str, int] | None


def _train(arm: ArmSpec, reals: RealImages, job: TrainingJob, context: TrainingContext) -> nn.Module:
    return train_classifier(
        arm,
        reals,
        context.synthetic.get(job.fold),
        context.section,
        n_classes=len(context.data.slugs),
        real_share=context.real_share,
        mix_alpha=context.mix_alpha,
        seed=_seed_of(job, context),
        device=context.device,
        weights=context.weights,
    )


def _train_together(
    arm: ArmSpec, reals: Sequence[RealImages], jobs: Sequence[TrainingJob], context: TrainingContext
) -> Sequence[nn.Module]:
    members = [
        Member(own, context.synthetic.get(job.fold), _seed_of(job, context))
        for own, job in zip(reals, jobs, strict=True)
    ]
    return train_together(
        arm,
        members,
        context.section,
        n_classes=len(context.data.slugs),
        real_share=context.real_share,
        mix_alpha=context.mix_alpha,
        device=context.device,
    )


def _needs_teacher(arm: ArmSpec, context: TrainingContext) -> bool:
    return trains_teacher(arm, context.real_share, context.section.batch)


def _with_pseudo_labels(
    reals: RealImages, teacher: nn.Module, job: TrainingJob, context: TrainingContext
) -> RealImages:
    """`reals` with the unlabelled images that `teacher`, which was trained on these very rows, is sure of."""
    pool = context.unlabelled
    if pool is None:
        raise TrainingError(f"arm {job.arm.name} needs unlabelled images; set `unlabelled` of the context")
    section, slugs = context.section, context.data.slugs
    at_most = most_per_class(section.steps, round(context.real_share * section.batch), len(slugs))
    logits = predict_logits(teacher, pool.images, context.device)
    rows, labels = choose_pseudo_labels(logits, np.unique(context.data.labels[job.train]), at_most)
    return replace(reals, pseudo=PseudoLabelled(rows, labels, pool.bank))


def _run_job(job: TrainingJob, context: TrainingContext) -> _Done:
    reals = _reals_of(job, context)
    if _needs_teacher(job.arm, context):
        teacher = _train(CLASSICAL_ARMS[TEACHER], reals, job, context)
        reals = _with_pseudo_labels(reals, teacher, job, context)
    return _done(_train(job.arm, reals, job, context), reals, job, context)


def _done(network: nn.Module, reals: RealImages, job: TrainingJob, context: TrainingContext) -> _Done:
    counts = None if reals.pseudo is None else reals.pseudo.counts(context.data.slugs)
    return _Done(_predict(network, job, context), counts)


def train_and_predict(job: TrainingJob, context: TrainingContext) -> list[Predictions]:
    """Runs one job; one Predictions per part that has rows."""
    return _run_job(job, context).predictions


def _train_group(jobs: Sequence[TrainingJob], context: TrainingContext) -> list[_Done]:
    """Runs jobs of one arm as one program; what each leaves."""
    arm = jobs[0].arm
    reals = [_shared_reals_of(job, context) for job in jobs]
    if _needs_teacher(arm, context):
        teachers = _train_together(CLASSICAL_ARMS[TEACHER], reals, jobs, context)
        found = zip(reals, teachers, jobs, strict=True)
        reals = [_with_pseudo_labels(own, teacher, job, context) for own, teacher, job in found]
    networks = _train_together(arm, reals, jobs, context)
    return [_done(*left, context) for left in zip(networks, reals, jobs, strict=True)]


def _train_in_groups(jobs: Sequence[TrainingJob], context: TrainingContext) -> Iterator[tuple[TrainingJob, _Done]]:
    """Jobs with what they leave, in groups of one arm that fit the device; where one does not, in halves of it."""
    _, height, _, channels = context.images.shape
    at_once = fitting_together(context.section, height, channels, context.device)
    for _, of_arm in groupby(jobs, key=lambda job: job.arm):
        waiting = list(of_arm)
        while waiting:
            group = waiting[:at_once]
            try:
                done = _train_group(group, context)
            except torch.OutOfMemoryError:
                done = []
            if done:
                yield from zip(group, done, strict=True)
                waiting = waiting[len(group) :]
                continue
            # outside of `except`, whose traceback would hold the tensors of the attempt
            if len(group) == 1:
                raise TrainingError(
                    f"arm {group[0].arm.name}: {context.device} has too little memory for one training of batch "
                    f"{context.section.batch}; lower classifier.batch or classifier.width, or free the device"
                )
            at_once = (len(group) + 1) // 2
            _log.warning(
                "%s has too little memory for %d trainings at once; going on with %d",
                context.device,
                len(group),
                at_once,
            )
            if context.device.type == "cuda":
                torch.cuda.empty_cache()


_shared_context: list[TrainingContext] = []


def _start_single_threaded() -> None:
    end_worker_with_parent()
    torch.set_num_threads(1)


def _start_worker(context: TrainingContext) -> None:
    _start_single_threaded()
    _shared_context[:] = [context]


def _work(task: tuple[TrainingJob, Path | None, str]) -> list[Predictions]:
    return _train_and_keep(*task, _shared_context[0])


def _train_and_keep(job: TrainingJob, scratch: Path | None, digest: str, context: TrainingContext) -> list[Predictions]:
    return _kept(_run_job(job, context), scratch, digest)


def _kept(done: _Done, scratch: Path | None, digest: str) -> list[Predictions]:
    if scratch is not None and done.predictions:
        if done.n_pseudo is not None:
            keep_counts(scratch, digest, done.n_pseudo)  # first: what is kept last makes the training count
        keep(scratch, digest, concatenate(done.predictions))
    return done.predictions


def count_pseudo_labels(
    jobs: Sequence[TrainingJob], context: TrainingContext, scratch: Path
) -> dict[str, dict[str, Any]]:
    """What arm.json says of pseudo labels: `{FOLD: {"pseudo_labels": {SLUG: [n of each training]}}}`.

    Args:
        jobs: that `run_jobs` finished with this context and `scratch`; their order within a fold is kept.
        context: see `run_jobs`.
        scratch: folder of finished jobs.
    Returns:
        nothing of folds whose arm gives no pseudo labels.
    Raises:
        ArtifactError: a finished job left none, or they are damaged.
    """
    asked = [job for job in jobs if _needs_teacher(job.arm, context)]
    found: dict[str, dict[str, list[int]]] = {}
    for job, digest in zip(asked, job_digests(asked, context), strict=True):
        of_fold = found.setdefault(job.fold, {})
        for slug, n in kept_counts(scratch, digest, context.data.slugs).items():
            of_fold.setdefault(slug, []).append(n)
    return {fold: {"pseudo_labels": counts} for fold, counts in found.items()}


def worker_count(requested: int | None = None) -> int:
    """How many processes to use: what was asked for, else one per core that this process may use."""
    return usable_cores() if requested is None else max(1, requested)


@contextmanager
def process_pool(n_workers: int, context: TrainingContext | None = None) -> Iterator[Executor | None]:
    """A pool of processes with the context in their memory; None where one process is enough."""
    if n_workers <= 1:
        yield None
        return
    # fork hands the arrays over without copying them; elsewhere they are copied once per process
    method = "fork" if sys.platform == "linux" else "spawn"
    start = _start_single_threaded if context is None else partial(_start_worker, context)
    with ProcessPoolExecutor(n_workers, multiprocessing.get_context(method), initializer=start) as executor:
        yield executor


def _import_before_fork(jobs: Sequence[TrainingJob]) -> None:
    # MixUp imports it at first use, which takes seconds: once here, not in every process.
    if any(job.arm.mix != "none" for job in jobs):
        import torchvision.transforms.v2  # noqa: F401


def run_jobs(
    jobs: Sequence[TrainingJob],
    context: TrainingContext,
    *,
    n_workers: int,
    description: str,
    scratch: Path | None = None,
) -> Predictions:
    """Runs all jobs and gathers their predictions.

    Args:
        jobs: in any number.
        context: shared by all.
        n_workers: processes on a CPU; an accelerator is used by this process alone.
        description: for the progress bar.
        scratch: folder of finished jobs (see `kept_predictions`): those of an earlier, killed run are taken from it
            and not trained again, and each one is kept there as soon as it is finished. None keeps nothing.
    Returns:
        all predictions, in the order of the jobs; within a job those of an earlier run are sorted as in a file.
    Raises:
        TrainingError: see `train_classifier`; or an accelerator without memory for a single training.
        ArtifactError: `scratch` cannot be written.
    """
    digests = job_digests(jobs, context) if scratch is not None else [""] * len(jobs)
    pieces: list[list[Predictions]] = [[] for _ in jobs]
    missing = []
    for i, digest in enumerate(digests):
        found = _find_finished(jobs[i], context, scratch, digest) if scratch is not None else None
        if found is None:
            missing.append(i)
        else:
            pieces[i] = [found]
    if len(missing) < len(jobs):
        _log.info("%s: %d of %d trainings were finished before", description, len(jobs) - len(missing), len(jobs))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with progress_bar(description, len(jobs)) as advance:
            advance(len(jobs) - len(missing))
            tasks = [(jobs[i], scratch, digests[i]) for i in missing]
            for i, done in zip(missing, _run_missing(tasks, context, n_workers), strict=True):
                pieces[i] = done
                advance()
    finally:
        torch.set_num_threads(threads)
    return concatenate([piece for of_job in pieces for piece in of_job])


def _find_finished(job: TrainingJob, context: TrainingContext, scratch: Path, digest: str) -> Predictions | None:
    """What an earlier run kept of `job`; None where predictions, or the counts that belong to them, are not whole."""
    found = find_kept(scratch, digest)
    if found is not None and _needs_teacher(job.arm, context):
        try:
            kept_counts(scratch, digest, context.data.slugs)
        except (OSError, ArtifactError) as error:
            _log.warning("a training is done again, because its pseudo labels cannot be counted: %s", error)
            return None
    return found


def _run_missing(
    tasks: Sequence[tuple[TrainingJob, Path | None, str]], context: TrainingContext, n_workers: int
) -> Iterator[list[Predictions]]:
    """Predictions of each task, in order, kept before they are handed on."""
    jobs = [job for job, _, _ in tasks]
    joint = context.weights is None and all(job.arm.head == "joint" for job in jobs)
    if joint and pays_together(context.section.network, context.device):
        for (_, done), (_, scratch, digest) in zip(_train_in_groups(jobs, context), tasks, strict=True):
            yield _kept(done, scratch, digest)
    elif context.device.type != "cpu" or min(n_workers, len(tasks)) <= 1:
        for job, scratch, digest in tasks:
            yield _train_and_keep(job, scratch, digest, context)
    else:
        _import_before_fork(jobs)
        with process_pool(n_workers, context) as executor:
            assert executor is not None
            yield from executor.map(_work, tasks)
