"""Which rows go into which training batch, class-balanced or as they are.

Owns index streams for generators and classifiers; refuses classes without an image. The stream of a
class walks through shuffled copies of its rows, so that every image of a class is shown equally often.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthgen.errors import TrainingError

MIN_PER_CLASS = 4


class ClassStream:
    """Endless rows of one class: every image once, then all again in another order."""

    def __init__(self, rows: NDArray[np.int64], rng: np.random.Generator) -> None:
        self.rows = rows
        self.rng = rng
        self.waiting = rows[:0]

    def take(self, n: int) -> NDArray[np.int64]:
        """The next `n` rows, (n,) int64."""
        parts = [self.waiting]
        n_waiting = len(self.waiting)
        while n_waiting < n:
            parts.append(self.rng.permutation(self.rows))
            n_waiting += len(self.rows)
        joined = np.concatenate(parts)
        self.waiting = joined[n:]
        return joined[:n]


class BalancedBatches:
    """Batches in which classes occur by weight, each present class at least `MIN_PER_CLASS` times.

    With more classes than fit, a batch holds a random subset of them; over many batches all occur by weight.
    """

    def __init__(
        self,
        labels: NDArray[np.int64],
        batch: int,
        rng: np.random.Generator,
        weights: Mapping[int, float] | None = None,
    ) -> None:
        """Prepares the streams.

        Args:
            labels: (n,) int64, one per row.
            batch: rows of a batch.
            rng: owned by this object from now on.
            weights: label -> relative frequency; None gives every occurring label the same.
        Raises:
            TrainingError: a weighted class has no image.
        """
        present = np.unique(labels)
        chosen = dict.fromkeys(present.tolist(), 1.0) if weights is None else {k: w for k, w in weights.items() if w}
        missing = sorted(set(chosen) - set(present.tolist()))
        if missing or not chosen:
            raise TrainingError(f"labels {missing} have no training image; leave these classes out of the sampling")
        self.labels = np.array(sorted(chosen), dtype=np.int64)
        total = sum(chosen.values())
        self.shares = np.array([chosen[int(k)] / total for k in self.labels])
        self.batch = batch
        self.rng = rng
        self.streams = {int(k): ClassStream(np.flatnonzero(labels == k).astype(np.int64), rng) for k in self.labels}

    def _counts(self, batch: int) -> NDArray[np.int64]:
        n_classes = len(self.labels)
        room = max(1, batch // MIN_PER_CLASS)
        chosen = np.arange(n_classes)
        if n_classes > room:
            chosen = self.rng.choice(n_classes, size=room, replace=False, p=self.shares)
        shares = self.shares[chosen] / self.shares[chosen].sum()
        counts = np.zeros(n_classes, dtype=np.int64)
        counts[chosen] = np.floor(shares * batch).astype(np.int64)
        # the rest by chance, so that over many batches each class gets its share
        rest = batch - int(counts.sum())
        np.add.at(counts, self.rng.choice(chosen, size=rest, p=shares), 1)
        return counts

    def _weighted_counts(self, batch: int, weights: Mapping[int, float]) -> NDArray[np.int64]:
        wanted = np.array([weights[int(k)] for k in self.labels])
        wanted = wanted / wanted.sum() * batch
        counts: NDArray[np.int64] = np.floor(wanted).astype(np.int64)
        rest = batch - int(counts.sum())
        if rest:
            # by what was cut off, so that each class gets its share in expectation
            left = wanted - counts
            np.add.at(counts, self.rng.choice(len(counts), size=rest, p=left / left.sum()), 1)
        return counts

    def state(self) -> dict[str, Any]:
        """JSON values that decide every later batch."""
        waiting = {str(label): stream.waiting.tolist() for label, stream in self.streams.items()}
        return {"rng": self.rng.bit_generator.state, "waiting": waiting}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes back to a `state` of a sampler of the same rows."""
        self.rng.bit_generator.state = state["rng"]
        for label, stream in self.streams.items():
            stream.waiting = np.array(state["waiting"][str(label)], dtype=np.int64)

    def reseed(self, rng: np.random.Generator) -> None:
        """Goes on with other random numbers."""
        self.rng = rng
        for stream in self.streams.values():
            stream.rng = rng

    def take(self, n: int | None = None, weights: Mapping[int, float] | None = None) -> NDArray[np.int64]:
        """Rows of the next batch, ordered by label.

        Args:
            n: of another length than `batch`.
            weights: label -> relative frequency in this batch alone, some of them above 0; then a class may occur
                fewer times than `MIN_PER_CLASS`.
        Returns:
            (n,) int64.
        """
        if n == 0:
            return np.zeros(0, dtype=np.int64)
        n = self.batch if n is None else n
        counts = self._counts(n) if weights is None else self._weighted_counts(n, weights)
        return np.concatenate(
            [self.streams[int(k)].take(int(n)) for k, n in zip(self.labels, counts, strict=True) if n]
        )


class NaturalBatches:
    """Batches in which every image occurs equally often, so classes occur as they are."""

    def __init__(self, n_rows: int, batch: int, rng: np.random.Generator) -> None:
        self.stream = ClassStream(np.arange(n_rows, dtype=np.int64), rng)
        self.batch = batch

    def take(self, n: int | None = None) -> NDArray[np.int64]:
        """Rows of the next batch, (n,) int64; by default `batch` of them."""
        return self.stream.take(self.batch if n is None else n)
