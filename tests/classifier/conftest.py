"""A prepared data set in memory and what trainings on it share."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from synthgen.classifier.draws import SyntheticImages
from synthgen.classifier.job_records import TrainingContext
from synthgen.config import ClassifierSection
from synthgen.dataset.mixing import MixingPolicy
from synthgen.dataset.prepared import PreparedData, pixel_sha256
from synthgen.dataset.transforms import TransformBank


def mixing(share: float = 0.25, n_classes: int = 3, **changed: object) -> MixingPolicy:
    """The default policy, `share` of every class, with some fields changed."""
    return replace(MixingPolicy("synthetic", "default", (share,) * n_classes), **changed)


@pytest.fixture
def job_context() -> TrainingContext:
    """30 images of 3 classes in 3 folds; one bank, one synthetic pool."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30, 8, 8, 1), dtype=np.uint8)
    labels = np.arange(30) % 3
    data = PreparedData(
        images=images,
        labels=labels,
        groups=np.arange(30).astype(np.str_),
        sha256=np.array([pixel_sha256(image) for image in images]),
        folds=np.arange(30) // 3 % 3,
        roles=np.full(30, "pool"),
        slugs=["a", "b", "c"],
        class_names=["a", "b", "c"],
        n_folds=3,
        frozen=False,
    )
    bank = TransformBank(np.repeat(images, 2, axis=0), np.arange(0, 61, 2))
    return TrainingContext(
        data=data,
        images=images,
        bank_rows=np.arange(30),
        banks={"classical": bank, "mild": replace(bank)},
        synthetic={"f0": SyntheticImages(images[:6].copy(), labels[:6].copy())},
        section=ClassifierSection(width=4, steps=6, batch=8),
        real_share=0.25,
        mix_alpha=0.3,
        seed=0,
        device=torch.device("cpu"),
    )
