"""What may be said about a gain: five verdicts, each with its reason in plain words.

Owns the rules (docs/method.md) and nothing of their arithmetic. `helps` has to be shown twice, raw
and after offsets, by bounds that account for several scarce classes; every doubt ends in a weaker word.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from synthgen.config import CompareSection
from synthgen.metrics.intervals import Estimate, bounds, holm_levels, p_above_zero, p_below_zero, smallest_visible

Verdict = Literal["helps", "hurts", "promising", "no evidence", "cannot tell"]

MAX_WIDTH = 0.5
"""An interval wider than 50 points that holds 0 is no finding of "no evidence": the test set cannot tell."""


@dataclass(frozen=True)
class ClassEvidence:
    """What is known about the gain of one scarce class.

    Attributes:
        recall, after_offsets: estimates of the gain.
        n_test_groups: test groups of the class in all.
        challenger_recall: mean over folds.
        best_classical: name and mean recall of the classical arm with the highest mean recall.
    """

    recall: Estimate
    after_offsets: Estimate
    n_test_groups: int
    challenger_recall: float
    best_classical: tuple[str, float]


@dataclass(frozen=True)
class ClassVerdict:
    """A verdict with the bounds it rests on.

    Attributes:
        recall, after_offsets: (low, high), Holm-adjusted.
        p_adjusted: Holm-adjusted one-sided p value of "no gain, raw or after offsets".
        smallest_visible: gain that would have been found in 80 of 100 such experiments.
    """

    verdict: Verdict
    reason: str
    recall: tuple[float, float]
    after_offsets: tuple[float, float]
    p_adjusted: float
    smallest_visible: float


def _points(value: float) -> str:
    return f"{100 * value:.1f} points"


def _seen(visible: float, room: float) -> str:
    if visible >= 1.0:
        return "no gain, however large, could have been seen"
    tight = f", and the baseline leaves room for {_points(room)} only" if visible > room else ""
    return f"the smallest gain that could have been seen is {_points(visible)}{tight}"


def _shown(evidence: ClassEvidence, low: float, low_after: float, rules: CompareSection) -> tuple[Verdict, str]:
    """The word for a class whose raw lower bound lies above 0."""
    arm, best = evidence.best_classical
    rises = f"recall rises by at least {_points(low)}"
    if low_after <= 0:
        shift = "once every arm may set its thresholds on validation, no gain is shown: it may be a mere shift of bias"
        return "no evidence", f"{rises}, but {shift}"
    if evidence.challenger_recall < best - 1e-12:
        higher = (
            f"the classical arm {arm} has a higher mean recall ({best:.3f} against {evidence.challenger_recall:.3f})"
        )
        return "no evidence", f"{rises}, but {higher}"
    if evidence.recall.n < rules.min_folds:
        return "promising", f"shown in {evidence.recall.n} folds, at least {rules.min_folds} are needed for a claim"
    return "helps", f"{rises}, and by {_points(low_after)} after offsets"


def _too_little(evidence: ClassEvidence, rules: CompareSection) -> str:
    """Why nothing at all can be said about a class; empty if something can."""
    if evidence.n_test_groups < rules.min_test_groups:
        return f"only {evidence.n_test_groups} test groups, at least {rules.min_test_groups} are needed"
    if evidence.recall.n < 2:
        return f"{evidence.recall.n} folds with test images say nothing about spread"
    return ""


def _judge(
    evidence: ClassEvidence,
    raw: tuple[float, float],
    low_after: float,
    visible: float,
    rules: CompareSection,
) -> tuple[Verdict, str]:
    low, high = raw
    gain = evidence.recall
    seen = _seen(visible, 1 - (evidence.challenger_recall - gain.mean) if gain.n else 1.0)
    if little := _too_little(evidence, rules):
        return "cannot tell", f"{little}; {seen}"
    if high < 0:
        return "hurts", f"recall falls by at least {_points(-high)}"
    if low > 0:
        return _shown(evidence, low, low_after, rules)
    if high - low > MAX_WIDTH:
        width = f"the interval is {_points(high - low)} wide, over the limit of {_points(MAX_WIDTH)}"
        return "cannot tell", f"{width}; {seen}"
    return "no evidence", f"the interval [{_points(low)}, {_points(high)}] holds 0; {seen}"


def judge_classes(evidence: Sequence[ClassEvidence], rules: CompareSection) -> list[ClassVerdict]:
    """Verdicts of all scarce classes together.

    "No gain" of a class is rejected only if it is rejected raw and after offsets (the larger of the two
    p values counts), and Holm's step-down over the classes then keeps the chance of any false `helps`
    at the one-sided level (1 - confidence) / 2. `hurts` is judged likewise on raw recall.

    Args:
        evidence: one per scarce class. rules: section `compare`.
    """
    level = (1 - rules.confidence) / 2
    p_gain = [max(p_above_zero(one.recall), p_above_zero(one.after_offsets)) for one in evidence]
    adjusted, levels_low = holm_levels(p_gain, level)
    _, levels_high = holm_levels([p_below_zero(one.recall) for one in evidence], level)
    verdicts = []
    for one, p_value, level_low, level_high in zip(evidence, adjusted, levels_low, levels_high, strict=True):
        raw = bounds(one.recall, level_low, level_high)
        after = bounds(one.after_offsets, level_low, level_high)
        visible = smallest_visible(one.recall, level / len(evidence))
        verdict, reason = _judge(one, raw, after[0], visible, rules)
        verdicts.append(ClassVerdict(verdict, reason, raw, after, p_value, visible))
    return verdicts


def overall_verdict(verdicts: dict[str, Verdict]) -> str:
    """One sentence over all scarce classes.

    Args:
        verdicts: class name -> verdict.
    """

    def named(verdict: Verdict) -> str:
        return ", ".join(name for name, given in verdicts.items() if given == verdict)

    parts = []
    for verdict, words in (
        ("helps", "synthetic images help {}"),
        ("hurts", "they hurt {}"),
        ("promising", "promising, with too few folds for a claim, for {}"),
        ("no evidence", "no evidence of a gain for {}"),
        ("cannot tell", "this test set cannot tell for {}"),
    ):
        if names := named(verdict):  # type: ignore[arg-type]  # the literals above
            parts.append(words.format(names))
    sentence = "; ".join(parts)
    advice = "" if named("helps") else "; train the classical arm without them"
    return f"{sentence[:1].upper()}{sentence[1:]}{advice}."
