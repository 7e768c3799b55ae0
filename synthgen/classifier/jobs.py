"""Many classifier trainings of one arm: every fold, repeat and inner part, spread over the cores.

Owns the order and the seeds of the trainings. On a CPU each runs on one thread in a process of its own, so that
results do not depend on how many run at once; on an accelerator they run one after the other.
"""

import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from synthgen.classifier.arms import ArmSpec
from synthgen.classifier.prediction import predict_logits
from synthgen.classifier.training import RealImages, SyntheticImages, train_classifier
from synthgen.config import ClassifierSection
from synthgen.dataset.predictions import Predictions, concatenate, one_part
from synthgen.dataset.prepared import PreparedData
from synthgen.dataset.transforms import TransformBank
from synthgen.progress import progress_bar
from synthgen.seeding import derive_seed

INNER = "inner"


@dataclass(frozen=True)
class TrainingJob:
    """One training.

    Attributes:
        arm: the way of training.
        fold: `f0`, ...
        repeat: 0, 1, ...; 0 for an inner part.
        stream: what names its seeds beside the fold: the repeat, or the inner part; never the arm.
        train: (n,) rows to train on.
        parts: (name, rows) to predict afterwards.
    """

    arm: ArmSpec
    fold: str
    repeat: int
    stream: str
    train: NDArray[np.int64]
    parts: list[tuple[str, NDArray[np.int64]]]


@dataclass(frozen=True)
class TrainingContext:
    """What all trainings of an arm share.

    Attributes:
        data: labels, groups and digests of all rows.
        images: (N, H, W, C) uint8, verified.
        bank_rows: (N,) int64, index of a row in the banks (-1: not in them).
        banks: policy -> rendered variants.
        synthetic: fold -> accepted synthetic images.
        section: of the classifier.
        share, real_share, mix_alpha: see `train_classifier`.
        seed: of the run.
        device: to train on.
    """

    data: PreparedData
    images: NDArray[np.uint8]
    bank_rows: NDArray[np.int64]
    banks: dict[str, TransformBank]
    synthetic: dict[str, SyntheticImages]
    section: ClassifierSection
    share: float
    real_share: float
    mix_alpha: float
    seed: int
    device: torch.device


def fold_jobs(data: PreparedData, arm: ArmSpec, fold: str, repeats: int, crossfit: bool) -> list[TrainingJob]:
    """The trainings of one arm in one fold.

    Args:
        data: for the rows of the fold.
        arm: the way of training.
        fold: `f0`, ...
        repeats: trainings on the fold's train rows, predicting `val` and `test`.
        crossfit: also train on all but one inner part, for each part, predicting it (part `inner`).
    Returns:
        the jobs, repeats first.
    """
    split = data.split(fold)
    parts = [("val", split.val), ("test", split.test)]
    jobs = [TrainingJob(arm, fold, r, f"repeat {r}", split.train, parts) for r in range(repeats)]
    if crossfit:
        jobs += [
            TrainingJob(arm, fold, 0, f"inner {k}", train, [(INNER, held_out)])
            for k, (train, held_out) in enumerate(data.crossfit(fold))
        ]
    return jobs


def train_and_predict(job: TrainingJob, context: TrainingContext) -> list[Predictions]:
    """Runs one job; one Predictions per part that has rows."""
    data = context.data
    reals = RealImages(
        images=context.images[job.train],
        labels=data.labels[job.train],
        bank_rows=context.bank_rows[job.train],
        transforms=context.banks.get(job.arm.transforms or ""),
        mild=context.banks.get("mild"),
    )
    network = train_classifier(
        job.arm,
        reals,
        context.synthetic.get(job.fold),
        context.section,
        n_classes=len(data.slugs),
        share=context.share,
        real_share=context.real_share,
        mix_alpha=context.mix_alpha,
        seed=derive_seed(context.seed, "classifier", job.fold, job.stream),
        device=context.device,
    )
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


_shared_context: list[TrainingContext] = []


def _start_single_threaded() -> None:
    torch.set_num_threads(1)


def _start_worker(context: TrainingContext) -> None:
    torch.set_num_threads(1)
    _shared_context[:] = [context]


def _work(job: TrainingJob) -> list[Predictions]:
    return train_and_predict(job, _shared_context[0])


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
    # Both are imported at first use, by an optimizer and by MixUp, and take seconds: once here, not in every process.

    if any(job.arm.mix != "none" for job in jobs):
        import torchvision.transforms.v2  # noqa: F401


def run_jobs(jobs: Sequence[TrainingJob], context: TrainingContext, *, n_workers: int, description: str) -> Predictions:
    """Runs all jobs and gathers their predictions.

    Args:
        jobs: in any number.
        context: shared by all.
        n_workers: processes on a CPU; an accelerator is used by this process alone.
        description: for the progress bar.
    Returns:
        all predictions, in the order of the jobs.
    """
    pieces: list[Predictions] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with progress_bar(description, len(jobs)) as advance:
            if context.device.type != "cpu" or n_workers <= 1:
                for job in jobs:
                    pieces += train_and_predict(job, context)
                    advance()
            else:
                _import_before_fork(jobs)
                with process_pool(n_workers, context) as executor:
                    assert executor is not None
                    for done in executor.map(_work, jobs):
                        pieces += done
                        advance()
    finally:
        torch.set_num_threads(threads)
    return concatenate(pieces)
