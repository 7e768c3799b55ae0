"""The gate: may this version become the one that users take?

Owns the rule and its reasons; pure: values in, a decision out. Refuses to measure: gains and verdicts are of
metrics/gain.json, counts of copies of acceptance.json. What is not known does not pass.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.dvc import PipelineError
from synthgen.dataset.acceptance import Acceptance

__all__ = ["Gate", "Keep", "Promote", "copied_shares", "judge"]

COPIES = "copies_a_real"
HELPS = "helps"
HURTS = "hurts"


@dataclass(frozen=True)
class Gate:
    """The limits.

    Attributes:
        needs_help: some scarce class has to have the verdict `helps`.
        allows_harm: a scarce class may have the verdict `hurts`.
        most_copied: highest share of a class's candidates that copied a training image, in [0, 1]. The copies
            themselves are rejected; a generator that makes many of them has learned images, not a class.
        least_balanced_accuracy: the lower bound of the gain in balanced accuracy has to be above this, as a fraction
            (-0.01 is one percentage point lost).
        takes_exploratory: a verdict counts that was not the first look at these test images.
    """

    needs_help: bool = True
    allows_harm: bool = False
    most_copied: float = 0.2
    least_balanced_accuracy: float = -0.01
    takes_exploratory: bool = True

    def __post_init__(self) -> None:
        """Refuses limits that would let everything or nothing pass by accident (NaN compares as false)."""
        for name, value, low in (
            ("most_copied", self.most_copied, 0.0),
            ("least_balanced_accuracy", self.least_balanced_accuracy, -1.0),
        ):
            if not low <= value <= 1.0:
                raise PipelineError(f"gate: {name} is {value}, which is not in [{low:g}, 1]; change it")


@dataclass(frozen=True)
class Promote:
    """The version may be promoted; `reason` says what speaks for it."""

    reason: str


@dataclass(frozen=True)
class Keep:
    """The version stays unpromoted; `reason` holds everything that speaks against it."""

    reason: str


def copied_shares(acceptance: Mapping[str, Acceptance]) -> dict[str, float]:
    """Shard name -> share of its candidates that copied a training image; 0 where nothing was drawn."""
    return {
        name: entry.rejected.get(COPIES, 0) / entry.candidates if entry.candidates else 0.0
        for name, entry in sorted(acceptance.items())
    }


def judge(
    gain: Mapping[str, Any] | None, copied: Mapping[str, float] | None, gate: Gate | None = None
) -> Promote | Keep:
    """Whether a version passes.

    Args:
        gain: content of metrics/gain.json; None where nothing was measured.
        copied: shard -> share of copies (`copied_shares`); None where it is not known.
        gate: the limits; the default ones if None.
    Returns:
        `Promote` or `Keep`, with the reason in one line.
    """
    gate = gate or Gate()
    if gain is None:
        return Keep("no gain was measured (there is no metrics/gain.json)")
    try:
        against = [*_harms(gain, gate), *_memorised(copied, gate)]
        helped = sorted(slug for slug, row in gain["gain"].items() if row["verdict"] == HELPS)
    except (AttributeError, KeyError, TypeError) as error:
        return Keep(f"metrics/gain.json is not of the known form (it lacks {error})")
    if gate.needs_help and not helped:
        against.insert(0, "no scarce class has the verdict `helps`")
    if against:
        return Keep("; ".join(against))
    return Promote(f"helps {', '.join(helped)} and hurts none" if helped else "hurts none")


def _harms(gain: Mapping[str, Any], gate: Gate) -> list[str]:
    against = []
    hurt = sorted(slug for slug, row in gain["gain"].items() if row["verdict"] == HURTS)
    if hurt and not gate.allows_harm:
        against.append(f"hurts {', '.join(hurt)}")
    low = gain["overall"]["balanced_accuracy"]["low"]
    if low is None or not math.isfinite(low):
        against.append("the gain in balanced accuracy has no lower bound")
    elif low <= gate.least_balanced_accuracy:
        against.append(
            f"balanced accuracy may lose {-100 * low:.1f} points (lower bound); "
            f"the limit is {-100 * gate.least_balanced_accuracy:.1f}"
        )
    if gain["looks"]["exploratory"] and not gate.takes_exploratory:
        against.append(f"look {gain['looks']['look']} at the same test images is exploratory")
    return against


def _memorised(copied: Mapping[str, float] | None, gate: Gate) -> list[str]:
    if copied is None:
        return ["how many samples copied a training image is not known"]
    return [
        f"{100 * share:.0f} % of the candidates of {name} copied a training image, the limit is "
        f"{100 * gate.most_copied:.0f} %"
        for name, share in sorted(copied.items())
        if not share <= gate.most_copied
    ]
