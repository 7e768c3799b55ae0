"""What the samples of a tick look like, class by class: fidelity, coverage, collapse, copies, overfitting.

Owns the reals that samples are compared with and the rules that call a tick ill. Sees training images only: some of the
plentiful classes' are held out from the GAN to judge it by. Features come from the caller's own network.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from synthgen.config import MonitorSection, StopSection
from synthgen.gan.adaptive import overfitting_held_out
from synthgen.gan.architectures.interface import Discriminator
from synthgen.gan.history import ClassTick, Tick
from synthgen.gan.pixels import to_unit_range
from synthgen.metrics.coverage import measure_coverage
from synthgen.metrics.fidelity import kernel_distance
from synthgen.metrics.memorisation import nearest_distances

FeatureFunction = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""(n, H, W, C) uint8 images to (n, d) float32 features."""

N_NEIGHBOURS = 5
LEAST_HELD_OUT = 16
"""Fewer held-out reals of a class cannot carry a distance between distributions; training reals then join them."""
HEALTHY = 3.0
"""A class counts as collapsed only after its diversity had been this many times the bound."""
MAX_LOSS = 1e4


def hold_out(
    labels: NDArray[np.int64], groups: NDArray[Any], section: MonitorSection, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Chooses the training images that the GAN does not see.

    Args:
        labels: (n,) int64; groups: (n,); photographs of one object share a group and stay together.
        section: share and the size of class below which nothing is held out.
        rng: for the choice.
    Returns:
        (n,) bool, True where held out.
    """
    chosen = np.zeros(len(labels), dtype=bool)
    if section.held_out == 0.0:
        return chosen
    found, counts = np.unique(labels, return_counts=True)
    wanted = np.where(counts < section.min_class_images, 0, np.round(section.held_out * counts))  # (K,)
    member = labels[:, None] == found  # (n, K) bool
    for k in range(len(found)):
        for group in rng.permutation(np.unique(groups[member[:, k]])):
            if member[chosen, k].sum() >= wanted[k]:
                break
            # a group may hold images of several classes: all of it goes, or, where a class cannot spare it, none
            members = groups == group
            if (member[chosen | members].sum(0) <= wanted).all():
                chosen |= members
    return chosen


@dataclass(frozen=True)
class ClassReals:
    """Real images of one class that samples are compared with.

    Attributes:
        label: the class.
        reference: (m, d) features of held-out reals, joined by training reals where they are few.
        train: (k, d) features of images that the GAN trains on.
        spread: mean distance between training reals.
        nearest: median distance of a held-out real to its nearest training real (of a training real to its nearest
            other where none are held out).
    """

    label: int
    reference: NDArray[np.float32]
    train: NDArray[np.float32]
    spread: float
    nearest: float


def mean_distance(features: NDArray[np.float32]) -> float:
    """Mean Euclidean distance between different rows of (n, d); 0 for fewer than two rows."""
    n = len(features)
    if n < 2:
        return 0.0
    return float(np.sqrt(_squared(features, features)).sum() / (n * (n - 1)))


def _squared(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    x, y = a.astype(np.float64), b.astype(np.float64)
    found = np.maximum((x**2).sum(1)[:, None] + (y**2).sum(1)[None, :] - 2.0 * x @ y.T, 0.0)
    if a is b:
        np.fill_diagonal(found, 0.0)
    return np.asarray(found)


class Monitor:
    """Compares samples with reals at every tick."""

    def __init__(
        self,
        features: FeatureFunction,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        held_out: NDArray[np.uint8],
        held_out_labels: NDArray[np.int64],
        section: MonitorSection,
        rng: np.random.Generator,
        *,
        conditional: bool = True,
    ) -> None:
        """Looks at the reals once.

        Args:
            features: own network, trained on training images or not at all.
            images, labels: (n, H, W, C) uint8 and (n,) int64 that the GAN trains on.
            held_out, held_out_labels: (m, H, W, C) uint8 and (m,) int64 of the training side that it does not see.
            section: how many of each class.
            rng: for the choice where there are more.
            conditional: False for a GAN that is given no label: all images then count as one class, label 0.
        """
        n_classes = len(np.unique(labels))
        self.n_samples, n_reals = section.samples_per_class, section.reals_per_class
        if not conditional:
            labels, held_out_labels = np.zeros_like(labels), np.zeros_like(held_out_labels)
            self.n_samples, n_reals = self.n_samples * n_classes, n_reals * n_classes
        self.features = features
        self.classes: list[ClassReals] = []
        self.train_sample: list[int] = []
        for label in np.unique(labels):
            rows = np.flatnonzero(labels == label)
            rows = rng.permutation(rows)[:n_reals]
            self.train_sample += rows[: self.n_samples].tolist()
            train = features(images[rows])
            others = held_out[held_out_labels == label][:n_reals]
            kept = features(others) if len(others) else train[:0]
            reference = kept if len(kept) >= LEAST_HELD_OUT else np.concatenate([kept, train])
            nearest = nearest_distances(kept, train) if len(kept) else self._among(train)
            typical = float(np.median(nearest)) if len(nearest) else 0.0
            self.classes.append(ClassReals(int(label), reference, train, mean_distance(train), typical))
        self.train_images = to_unit_range(images[self.train_sample])
        self.train_labels = torch.from_numpy(labels[self.train_sample])
        self.held_out_images = to_unit_range(held_out)
        self.held_out_labels = torch.from_numpy(held_out_labels)
        known = [reals.nearest for reals in self.classes if reals.nearest > 0.0]
        self.fallback = float(np.median(known)) if known else 1.0

    @staticmethod
    def _among(features: NDArray[np.float32]) -> NDArray[np.float64]:
        if len(features) < 2:
            return np.zeros(0)
        squares = _squared(features, features)
        np.fill_diagonal(squares, np.inf)
        return np.asarray(np.sqrt(squares.min(axis=1)))

    def sample_labels(self) -> NDArray[np.int64]:
        """(K * n_samples,) int64: the samples that `measure` wants, in this order."""
        return np.repeat([reals.label for reals in self.classes], self.n_samples).astype(np.int64)

    def measure(self, samples: NDArray[np.uint8], kimg: float) -> list[ClassTick]:
        """One row per class.

        Args:
            samples: (K * n_samples, H, W, C) uint8 in the order of `sample_labels`.
            kimg: of the tick.
        """
        features = self.features(samples)
        n = self.n_samples
        return [self._measure_class(reals, features[k * n : (k + 1) * n], kimg) for k, reals in enumerate(self.classes)]

    def _measure_class(self, reals: ClassReals, samples: NDArray[np.float32], kimg: float) -> ClassTick:
        finite = bool(np.isfinite(samples).all())
        k = min(N_NEIGHBOURS, len(reals.reference) - 1, len(samples) - 1)
        distance = kernel_distance(reals.reference, samples) if finite and len(reals.reference) > 1 else None
        found = measure_coverage(reals.reference, samples, k) if finite and k >= 1 else None
        nearest = nearest_distances(samples, reals.train) if finite else np.zeros(1)
        diversity = mean_distance(samples) / reals.spread if reals.spread > 0.0 and finite else 1.0
        return ClassTick(
            kimg=kimg,
            label=reals.label,
            n_reals=len(reals.reference),
            kernel_distance=distance,
            precision=found.precision if found else None,
            recall=found.recall if found else None,
            density=found.density if found else None,
            coverage=found.coverage if found else None,
            diversity_ratio=diversity,
            nearest_ratio=float(np.median(nearest)) / (reals.nearest or self.fallback),
        )

    @torch.no_grad()
    def overfitting(self, discriminator: Discriminator, fakes: torch.Tensor, fake_labels: torch.Tensor) -> float | None:
        """r_v of `discriminator`, or None where nothing is held out; see `overfitting_held_out`.

        Args:
            discriminator: on the device of `fakes`.
            fakes: (n, C, H, W) float32 in [-1, 1]; fake_labels: (n,) int64.
        """
        if not len(self.held_out_labels):
            return None
        was_training = discriminator.training
        discriminator.eval()
        device = fakes.device
        sides = [
            (self.train_images.to(device), self.train_labels.to(device)),
            (self.held_out_images.to(device), self.held_out_labels.to(device)),
            (fakes, fake_labels),
        ]
        # only classes with held-out reals: others would shift the mean of one side alone
        logits = []
        for images, labels in sides:
            judged = torch.isin(labels, sides[1][1])
            logits.append(discriminator(images[judged], labels[judged]))
        discriminator.train(was_training)
        return overfitting_held_out(*logits)


def summarise(rows: Sequence[ClassTick]) -> dict[str, float | None]:
    """What `Tick` says of its classes: means, and the least diversity and nearest-real ratio."""

    def mean(name: str) -> float | None:
        values = [value for row in rows if (value := getattr(row, name)) is not None]
        return float(np.mean(values)) if values else None

    return {
        "score": mean("kernel_distance"),
        "precision": mean("precision"),
        "recall": mean("recall"),
        "density": mean("density"),
        "coverage": mean("coverage"),
        "diversity_ratio": min(row.diversity_ratio for row in rows),
        "nearest_ratio": min(row.nearest_ratio for row in rows),
    }


def illness(tick: Tick, classes: Sequence[ClassTick], healthiest: dict[int, float], section: StopSection) -> str | None:
    """Why this tick has to be taken back, or None.

    Args:
        tick: means of the game.
        classes: of the samples; empty where they are not looked at.
        healthiest: label -> the highest diversity ratio so far.
        section: bound of collapse.
    """
    numbers = [tick.d_loss, tick.g_loss, tick.r1, tick.r2, tick.d_gradient, tick.g_gradient, tick.c_loss or 0.0]
    if not all(map(math.isfinite, numbers)):
        return f"the loss is no longer finite (d {tick.d_loss:.3g}, g {tick.g_loss:.3g})"
    if max(abs(tick.d_loss), abs(tick.g_loss)) > MAX_LOSS:
        return f"the loss has diverged (d {tick.d_loss:.3g}, g {tick.g_loss:.3g}, limit {MAX_LOSS:.0g})"
    for row in classes:
        if row.diversity_ratio < section.collapse_ratio <= healthiest.get(row.label, 0.0) / HEALTHY:
            return (
                f"class {row.label} has collapsed: its samples differ {row.diversity_ratio:.3f} times as much as its "
                f"reals do, after {healthiest[row.label]:.2f} (limit {section.collapse_ratio})"
            )
    return None


def reason_to_stop(history: Sequence[Tick], best: int | None, section: StopSection) -> str | None:
    """Why the training may end after the last tick of `history`, or None; `best` is the index of the best tick."""
    last = history[-1]
    if section.plateau_ticks and best is not None and len(history) - 1 - best >= section.plateau_ticks:
        return f"no better score in {section.plateau_ticks} ticks"
    recent = history[-section.equilibrium_ticks :] if section.equilibrium_ticks else []
    width = section.equilibrium_width
    if len(recent) == section.equilibrium_ticks > 0 and all(
        abs(tick.d_real - 0.5) <= width and abs(tick.d_fake - 0.5) <= width for tick in recent
    ):
        return f"equilibrium: D is right in {50 * (1 - 2 * width):.0f} to {50 * (1 + 2 * width):.0f} % of cases"
    if section.min_nearest_ratio and last.nearest_ratio is not None and last.nearest_ratio < section.min_nearest_ratio:
        return f"samples lie {last.nearest_ratio:.2f} times as near to training images as held-out reals do"
    return None
