"""What a training writes down at every tick: one row for the game, one row for each class.

Owns the two records and their tables; refuses nothing. Empty cells are what was not measured.
"""

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from synthgen.artifacts import atomic_file


@dataclass(frozen=True)
class Tick:
    """One row of history.csv: means since the last tick, and what the samples of the averaged generator look like.

    Attributes:
        kimg: real images shown so far, in thousands.
        d_loss, g_loss: in the units of the loss.
        r1, r2: squared gradient norms on reals and fakes, before gamma.
        d_real, d_fake: share of reals (fakes) whose logit is above (below) the mean of all logits; 0.5 at equilibrium.
        d_gradient, g_gradient: norms of all gradients together at the tick's last step.
        transform_strength: probability of DiffAugment's transforms.
        lr_factor: on both learning rates; falls with every roll-back.
        n_parts: parts that a batch is worked through in; above 1 where the device's memory was too small.
        rollbacks: how often the training was taken back so far.
        overfitting: where D puts held-out reals between training reals (0) and fakes (1).
        score: mean kernel distance over the classes, on own features; the lowest wins.
        precision, recall, density, coverage: means over the classes.
        diversity_ratio: the least of the classes.
        nearest_ratio: the least of the classes, see `ClassTick`.
        c_loss: cross entropy of the third player (`synthgen.gan.boundary`) on its reals and samples, label-smoothed.
        c_real: share of its reals, all classes equally often, that it names rightly.
        c_fake: share of G's samples of the adapted class that it names rightly; c_certainty: its mean probability of
            their label; boundary: their mean boundary term, before the weight.
    """

    kimg: float
    d_loss: float
    g_loss: float
    r1: float
    r2: float
    d_real: float
    d_fake: float
    d_gradient: float
    g_gradient: float
    transform_strength: float
    lr_factor: float
    n_parts: int
    rollbacks: int
    overfitting: float | None = None
    score: float | None = None
    precision: float | None = None
    recall: float | None = None
    density: float | None = None
    coverage: float | None = None
    diversity_ratio: float | None = None
    nearest_ratio: float | None = None
    c_loss: float | None = None
    c_real: float | None = None
    c_fake: float | None = None
    c_certainty: float | None = None
    boundary: float | None = None


THIRD_PLAYER = ("c_loss", "c_real", "c_fake", "c_certainty", "boundary")
"""Columns that history.csv has only where three played."""


@dataclass(frozen=True)
class ClassTick:
    """One row of classes.csv: one class at one tick.

    Attributes:
        kimg: as in `Tick`.
        label: the class.
        n_reals: real images compared with.
        kernel_distance: unbiased squared MMD on own features, near 0 for equal distributions.
        precision, recall, density, coverage: see `synthgen.metrics.coverage`.
        diversity_ratio: mean distance between samples over that between reals; near 0 where the class has collapsed.
        nearest_ratio: median nearest-training distance of samples over that of held-out reals (of training reals to
            each other where none are held out); near 0 where samples copy.
    """

    kimg: float
    label: int
    n_reals: int
    kernel_distance: float | None
    precision: float | None
    recall: float | None
    density: float | None
    coverage: float | None
    diversity_ratio: float
    nearest_ratio: float


@dataclass(frozen=True)
class Rollback:
    """A tick that was thrown away.

    Attributes:
        kimg: when.
        reason: what was seen.
    """

    kimg: float
    reason: str


def write_rows(path: Path, kind: type[Tick | ClassTick], rows: Sequence[Tick | ClassTick]) -> None:
    """Writes records as CSV, numbers rounded to six places, None as an empty cell; `THIRD_PLAYER` if there was one."""
    absent = {name for name in THIRD_PLAYER if all(getattr(row, name, None) is None for row in rows)}
    names = [field.name for field in fields(kind) if field.name not in absent]
    with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, names, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in asdict(row).items()} for row in rows)


def _cell(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value
