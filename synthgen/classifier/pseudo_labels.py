"""Pseudo labels: which unlabelled images a first training is sure of, in the arm `pseudo_labelled`.

Owns the threshold, the choice from a teacher's logits and what of it decides a job's digest. Hard labels, chosen once
after the teacher's training (Lee 2013, ICML workshop on representation learning); images untransformed for the teacher
and transformed for the student, the surest of each class, classes in balance (Xie et al. 2020, arXiv:1911.04252,
section 2). Trains nothing; `synthgen.classifier.jobs` does.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthgen.artifacts import digest_of, read_json, write_json
from synthgen.dataset.transforms import TransformBank
from synthgen.errors import ArtifactError

THRESHOLD = 0.95
"""Probability of the teacher from which an image gets its label."""
AGAIN = "run the same command again, which trains that part again"


@dataclass(frozen=True)
class UnlabelledPool:
    """Unlabelled images of a run, as all of its trainings share them.

    Attributes:
        images: (m, H, W, C) uint8, verified.
        sha256: (m,) str, of the pixels.
        bank: their variants under the transforms of the arm.
    """

    images: NDArray[np.uint8]
    sha256: NDArray[np.str_]
    bank: TransformBank


@dataclass(frozen=True)
class PseudoLabelled:
    """The unlabelled images of one training that have a label.

    Attributes:
        rows: (n,) int64, index in the bank, ascending.
        labels: (n,) int64.
        bank: variants of all unlabelled images.
    """

    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    bank: TransformBank

    def counts(self, slugs: Sequence[str]) -> dict[str, int]:
        """Slug -> number of pseudo labels."""
        found = np.bincount(self.labels, minlength=len(slugs))
        return {slug: int(n) for slug, n in zip(slugs, found, strict=True)}


def choose_pseudo_labels(
    logits: NDArray[np.float32], known: NDArray[np.int64], at_most: int, threshold: float = THRESHOLD
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The surest images of each class.

    Args:
        logits: (m, K) of the teacher.
        known: labels that the training has images of; no other is given.
        at_most: images of each class.
        threshold: lowest softmax probability, in [0, 1].
    Returns:
        (n,) int64 rows, ascending, and their (n,) int64 labels. Equally sure images go by their row.
    """
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True, initial=-np.inf)
    exponentials = np.exp(shifted)
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)  # (m, K)
    labels = probabilities.argmax(axis=1)
    sureness = probabilities.max(axis=1, initial=0.0)
    chosen = [np.zeros(0, dtype=np.int64)]
    for label in known:
        rows = np.flatnonzero((labels == label) & (sureness >= threshold))
        chosen.append(rows[np.argsort(-sureness[rows], kind="stable")][:at_most])
    rows = np.sort(np.concatenate(chosen)).astype(np.int64)
    return rows, labels[rows].astype(np.int64)


def most_per_class(steps: int, n_drawn: int, n_classes: int) -> int:
    """As many as a training draws of each class: `n_drawn` of each batch over all classes, rounded up."""
    return math.ceil(steps * n_drawn / n_classes)


def pool_identity(pool: UnlabelledPool) -> dict[str, Any]:
    """What decides pseudo labels and draws of them beside rows and seeds, for a job's digest."""
    return {"unlabelled": pool.sha256.tolist(), "variants": digest_of(pool.bank.starts.tolist()), "least": THRESHOLD}


def _path(folder: Path, digest: str) -> Path:
    return folder / f"{digest}.pseudo.json"


def keep_counts(folder: Path, digest: str, counts: Mapping[str, int]) -> None:
    """Keeps the number of pseudo labels of each class beside the predictions of one finished training.

    Raises:
        ArtifactError: the disk refuses.
    """
    write_json(_path(folder, digest), dict(counts))


def kept_counts(folder: Path, digest: str, slugs: Sequence[str]) -> dict[str, int]:
    """What `keep_counts` wrote.

    Args:
        folder, digest: as they were kept under.
        slugs: of all classes, each of which has a number.
    Raises:
        ArtifactError: it is not there, or damaged.
    """
    path = _path(folder, digest)
    found = read_json(path)
    if not isinstance(found, dict) or sorted(found) != sorted(slugs):
        raise ArtifactError(f"{path} is damaged (no number for each of {', '.join(slugs)}); {AGAIN}")
    wrong = next((value for value in found.values() if type(value) is not int or value < 0), None)
    if wrong is not None:
        raise ArtifactError(f"{path} is damaged ({wrong!r} is no number of images); {AGAIN}")
    return found
