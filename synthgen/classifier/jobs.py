"""Many classifier trainings of one arm: every fold, repeat and inner part, spread over the cores.

Owns where and in which order they run. On a CPU each runs on one thread in a process of its own, so that results do
not depend on how many run at once; on an accelerator trainings of one arm run together where that pays
(synthgen/classifier/together.py), else one after the other. What was finished before a kill is not trained again.
"""

import logging
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path

import torch
from torch import nn

from synthgen.classifier.job_cache import find_kept, job_digests, keep
from synthgen.classifier.job_records import INNER, TrainingContext, TrainingJob, fold_jobs
from synthgen.classifier.pasted_pool import build_pasted_pool
from synthgen.classifier.prediction import predict_logits
from synthgen.classifier.together import Member, fitting_together, pays_together, train_together
from synthgen.classifier.training import RealImages, train_classifier
from synthgen.dataset.predictions import Predictions, concatenate, one_part
from synthgen.errors import TrainingError
from synthgen.lifeline import end_worker_with_parent
from synthgen.progress import progress_bar
from synthgen.seeding import derive_seed

__all__ = [
    "INNER",
    "TrainingContext",
    "TrainingJob",
    "fold_jobs",
    "process_pool",
    "run_jobs",
    "train_and_predict",
    "worker_count",
]

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


def train_and_predict(job: TrainingJob, context: TrainingContext) -> list[Predictions]:
    """Runs one job; one Predictions per part that has rows."""
    network = train_classifier(
        job.arm,
        _reals_of(job, context),
        context.synthetic.get(job.fold),
        context.section,
        n_classes=len(context.data.slugs),
        real_share=context.real_share,
        mix_alpha=context.mix_alpha,
        seed=_seed_of(job, context),
        device=context.device,
    )
    return _predict(network, job, context)


def _train_group(jobs: Sequence[TrainingJob], context: TrainingContext) -> list[list[Predictions]]:
    """Runs jobs of one arm as one program; the predictions of each."""
    networks = train_together(
        jobs[0].arm,
        [
            Member(_shared_reals_of(job, context), context.synthetic.get(job.fold), _seed_of(job, context))
            for job in jobs
        ],
        context.section,
        n_classes=len(context.data.slugs),
        real_share=context.real_share,
        mix_alpha=context.mix_alpha,
        device=context.device,
    )
    return [_predict(network, job, context) for network, job in zip(networks, jobs, strict=True)]


def _train_in_groups(
    jobs: Sequence[TrainingJob], context: TrainingContext
) -> Iterator[tuple[TrainingJob, list[Predictions]]]:
    """Jobs with their predictions, in groups of one arm that fit the device; where one does not, in halves of it."""
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
    return _kept(train_and_predict(job, context), scratch, digest)


def _kept(done: list[Predictions], scratch: Path | None, digest: str) -> list[Predictions]:
    if scratch is not None and done:
        keep(scratch, digest, concatenate(done))
    return done


def worker_count(requested: int | None = None) -> int:
    """How many processes to use: what was asked for, else one per core that this process may use."""
    if requested is not None:
        return max(1, requested)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


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
        found = find_kept(scratch, digest) if scratch is not None else None
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


def _run_missing(
    tasks: Sequence[tuple[TrainingJob, Path | None, str]], context: TrainingContext, n_workers: int
) -> Iterator[list[Predictions]]:
    """Predictions of each task, in order, kept before they are handed on."""
    jobs = [job for job, _, _ in tasks]
    joint = all(job.arm.head == "joint" for job in jobs)
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
