"""Two pieces of work done in turn, A/B/A/B, and how their times compare.

Owns the timing and its summary. Absolute times of a shared machine say little; the ratio of two things done one
after the other, several times, says something.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

ROUNDS = 3


@dataclass(frozen=True)
class Measured:
    """time(reference) / time(ours) over rounds: above 1 is faster than the reference.

    Attributes:
        median, least, most: of the ratio.
        ours, reference: median seconds of each side.
    """

    median: float
    least: float
    most: float
    ours: float
    reference: float

    def scaled(self, factor: float) -> "Measured":
        """The ratio times `factor`, where both sides did not do the same amount of work."""
        return Measured(self.median * factor, self.least * factor, self.most * factor, self.ours, self.reference)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def compare(
    ours: Callable[[], object],
    reference: Callable[[], object],
    device: torch.device,
    *,
    rounds: int = ROUNDS,
    warm_up: bool = True,
) -> Measured:
    """Times `ours` and `reference` in turn.

    Args:
        ours, reference: do the same amount of work each time.
        device: waited for before the clock is read.
        rounds: pairs of runs.
        warm_up: run each once before the clock starts.
    """
    if warm_up:
        ours()
        reference()
    pairs = [(_seconds(ours, device), _seconds(reference, device)) for _ in range(rounds)]
    ratios = [theirs / mine for mine, theirs in pairs]
    return Measured(
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        statistics.median(mine for mine, _ in pairs),
        statistics.median(theirs for _, theirs in pairs),
    )
