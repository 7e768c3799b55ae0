"""Ten classifier trainings as `run_jobs` does them, against one after the other.

Owns the made-up data. On a GPU `run_jobs` trains them as one program; on a CPU it spreads them over processes, each
with the numbers of a training on its own.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from ratios import Measured, compare

from synthgen.classifier import jobs
from synthgen.classifier.arms import CLASSICAL_ARMS
from synthgen.classifier.draws import RealImages
from synthgen.classifier.job_records import TrainingContext, TrainingJob
from synthgen.classifier.together import Member, train_together
from synthgen.config import ClassifierSection
from synthgen.dataset.prepared import PreparedData

N_REPEATS = 10
N_IMAGES = 600
N_CLASSES = 10


def make_context(size: int, width: int, steps: int, device: torch.device) -> TrainingContext:
    """Random images of `size` px, one fold's worth."""
    images = np.random.default_rng(0).integers(0, 256, (N_IMAGES, size, size, 1), dtype=np.uint8)
    rows = np.arange(N_IMAGES)
    data = PreparedData(
        images=images,
        labels=rows % N_CLASSES,
        groups=rows.astype(np.str_),
        sha256=np.array([f"{row:064d}" for row in rows]),
        folds=rows // N_CLASSES % 3,
        roles=np.full(N_IMAGES, "pool"),
        slugs=[f"c{k}" for k in range(N_CLASSES)],
        class_names=[f"c{k}" for k in range(N_CLASSES)],
        n_folds=3,
        frozen=False,
    )
    return TrainingContext(
        data=data,
        images=images,
        bank_rows=rows,
        banks={},
        synthetic={},
        section=ClassifierSection(width=width, steps=steps),
        real_share=0.0,
        mix_alpha=0.3,
        seed=0,
        device=device,
    )


def _todo(context: TrainingContext) -> list[TrainingJob]:
    return jobs.fold_jobs(context.data, CLASSICAL_ARMS["balanced"], "f0", N_REPEATS, crossfit=False)


def repeats_against_in_turn(size: int, width: int, steps: int, device: torch.device, rounds: int) -> Measured:
    """`run_jobs` as the stages call it, against the same trainings one after the other in this process."""
    context = make_context(size, width, steps, device)
    todo = _todo(context)

    def in_turn() -> None:
        torch.set_num_threads(1)
        for job in todo:
            jobs.train_and_predict(job, context)

    def as_the_stages_do() -> None:
        jobs.run_jobs(todo, context, n_workers=jobs.worker_count(), description="repeats")

    return compare(as_the_stages_do, in_turn, device, rounds=rounds)


def bf16_against_fp32(size: int, width: int, steps: int, device: torch.device, rounds: int) -> Measured:
    """One training with `classifier.precision: bf16` against the same in fp32, on one thread."""
    context = make_context(size, width, steps, device)
    lower = replace(context, section=context.section.model_copy(update={"precision": "bf16"}))
    job = _todo(context)[0]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return compare(
            lambda: jobs.train_and_predict(job, lower),
            lambda: jobs.train_and_predict(job, context),
            device,
            rounds=rounds,
        )
    finally:
        torch.set_num_threads(threads)


def one_program_against_in_turn(size: int, width: int, steps: int, device: torch.device, rounds: int) -> Measured:
    """The ten as one batched program on one thread, whatever `pays_together` says, against one after the other."""
    context = make_context(size, width, steps, device)
    todo = _todo(context)
    settings: dict[str, Any] = {"n_classes": N_CLASSES, "real_share": 0.0, "mix_alpha": 0.3, "device": device}
    reals = RealImages(context.images, context.data.labels, context.bank_rows, image_rows=np.arange(N_IMAGES))
    members = [Member(reals, None, seed) for seed in range(N_REPEATS)]
    threads = torch.get_num_threads()

    def together() -> None:
        torch.set_num_threads(1)
        train_together(CLASSICAL_ARMS["balanced"], members, context.section, **settings)

    def in_turn() -> None:
        torch.set_num_threads(1)
        for job in todo:
            jobs.train_and_predict(job, context)

    try:
        return compare(together, in_turn, device, rounds=rounds)
    finally:
        torch.set_num_threads(threads)
