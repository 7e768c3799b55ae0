"""One classifier training, and what all trainings of an arm share, as data.

Owns the records and the list of the trainings of a fold, with the names of their seeds. Trains nothing.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from synthgen.classifier.arms import ArmSpec
from synthgen.classifier.draws import SyntheticImages
from synthgen.classifier.pretrained import Weights
from synthgen.classifier.pseudo_labels import UnlabelledPool
from synthgen.config import ClassifierSection
from synthgen.dataset.pasted_pool import PasteRules
from synthgen.dataset.prepared import PreparedData
from synthgen.dataset.transforms import TransformBank

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
        real_share, mix_alpha: see `train_classifier`.
        seed: of the run.
        device: to train on.
        paste: for the arms `paste` and `paste_whole`; None where there are none.
        unlabelled: for the arm `pseudo_labelled`; None where there is none.
        weights: that every training starts from; None: random ones.
    """

    data: PreparedData
    images: NDArray[np.uint8]
    bank_rows: NDArray[np.int64]
    banks: dict[str, TransformBank]
    synthetic: dict[str, SyntheticImages]
    section: ClassifierSection
    real_share: float
    mix_alpha: float
    seed: int
    device: torch.device
    paste: PasteRules | None = None
    unlabelled: UnlabelledPool | None = None
    weights: Weights | None = None


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
