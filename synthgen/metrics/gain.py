"""From arms and folds to the contents of metrics/gain.json.

Owns the record's form (docs/schema.md): means per arm, gains with intervals, verdicts, the claim in
words. Arithmetic lives in `experiment` and `intervals`, the rules in `verdicts`.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthgen.config import CompareSection
from synthgen.metrics.classification import finite_or_none
from synthgen.metrics.experiment import Experiment, Gains, estimate_gains
from synthgen.metrics.intervals import Estimate, bounds
from synthgen.metrics.outcomes import ArmOutcomes, average_where_known
from synthgen.metrics.verdicts import ClassEvidence, ClassVerdict, judge_classes, overall_verdict

SCHEMA = 1


@dataclass(frozen=True)
class ClassFacts:
    """What the plan says about a class: name for people, real images and groups that may be trained on."""

    slug: str
    class_name: str
    images: int
    groups: int


def gain_entry(estimate: Estimate, low: float, high: float) -> dict[str, Any]:
    """GAIN of the schema; without any measured fold the mean is null and the interval [-1, 1]."""
    return {"mean": finite_or_none(estimate.mean), "low": low, "high": high, "n": estimate.n}


def _plain_gain(estimate: Estimate, confidence: float) -> dict[str, Any]:
    level = (1 - confidence) / 2
    return gain_entry(estimate, *bounds(estimate, level, level))


def _by_slug(values: NDArray[np.float64], facts: list[ClassFacts]) -> dict[str, float | None]:
    means = average_where_known(values)
    return {fact.slug: finite_or_none(means[label]) for label, fact in enumerate(facts)}


def summarise_arm(outcomes: ArmOutcomes, facts: list[ClassFacts], scarce: list[int]) -> dict[str, Any]:
    """Means over folds of one arm; null where no fold has test images of the class."""
    recall = average_where_known(outcomes.recall)
    return {
        "balanced_accuracy": float(outcomes.balanced_accuracy.mean()),
        "macro_f1": float(outcomes.macro_f1.mean()),
        "scarce_recall": finite_or_none(float(average_where_known(recall[scarce]))),
        "recall": _by_slug(outcomes.recall, facts),
        "precision": _by_slug(outcomes.precision, facts),
        "auc": _by_slug(outcomes.auc, facts),
        "average_precision": _by_slug(outcomes.average_precision, facts),
        "after_offsets": {
            "balanced_accuracy": float(outcomes.balanced_accuracy_after.mean()),
            "macro_f1": float(outcomes.macro_f1_after.mean()),
            "recall": _by_slug(outcomes.recall_after, facts),
        },
    }


def _evidence(experiment: Experiment, gains: Gains, label: int) -> ClassEvidence:
    means = {arm: float(average_where_known(experiment.outcomes[arm].recall)[label]) for arm in experiment.classical}
    best = max(means, key=lambda arm: means[arm])
    return ClassEvidence(
        recall=gains.recall[label],
        after_offsets=gains.recall_after[label],
        n_test_groups=experiment.test_groups(label),
        challenger_recall=float(average_where_known(experiment.outcomes[experiment.challenger].recall)[label]),
        best_classical=(best, means[best]),
    )


def _claim(experiment: Experiment) -> str:
    n_folds = len(experiment.folds)
    n_groups = len(np.unique(np.concatenate(list(experiment.groups))))
    if experiment.mode == "frozen":
        return f"difference on this test set ({n_groups:,} groups), over {n_folds} generator seeds"
    return f"expected difference on a new split, {n_folds} grouped folds, {n_groups:,} groups"


def _class_entry(evidence: ClassEvidence, verdict: ClassVerdict) -> dict[str, Any]:
    return {
        "recall": gain_entry(evidence.recall, *verdict.recall),
        "after_offsets": gain_entry(evidence.after_offsets, *verdict.after_offsets),
        "verdict": verdict.verdict,
        "reason": verdict.reason,
        "p_adjusted": verdict.p_adjusted,
        "n_test_groups": evidence.n_test_groups,
        "smallest_visible": verdict.smallest_visible,
    }


def compare_arms(
    experiment: Experiment,
    facts: list[ClassFacts],
    *,
    n_images: int,
    n_groups: int,
    rules: CompareSection,
    digest: str,
) -> tuple[dict[str, Any], Gains]:
    """Everything that gain.json holds except `n_repeats` and `looks`.

    Args:
        facts: K classes in label order.
        n_images, n_groups: real images and groups of the prepared data.
        rules: section `compare`.
        digest: of the test data; seeds the bootstrap.
    Returns:
        The record, and the challenger's gains (for folds.csv).

    Raises:
        MeasurementError: arms or folds that cannot be compared.
    """
    scarce = list(experiment.scarce)
    gains = estimate_gains(experiment, experiment.challenger, rules.n_bootstrap, digest)
    evidence = [_evidence(experiment, gains, label) for label in scarce]
    verdicts = judge_classes(evidence, rules)
    beside = {}
    for arm in experiment.outcomes:
        if arm not in experiment.classical and arm != experiment.challenger:
            other = estimate_gains(experiment, arm, rules.n_bootstrap, digest)
            beside[arm] = {facts[k].slug: _plain_gain(other.recall[k], rules.confidence) for k in scarce}
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "mode": experiment.mode,
        "n_folds": len(experiment.folds),
        "confidence": rules.confidence,
        "challenger": experiment.challenger,
        "claim": _claim(experiment),
        "data": {
            "n_images": n_images,
            "n_groups": n_groups,
            "classes": {
                fact.slug: {
                    "class_name": fact.class_name,
                    "images": fact.images,
                    "groups": fact.groups,
                    "scarce": label in scarce,
                    "test_groups": experiment.test_groups(label),
                }
                for label, fact in enumerate(facts)
            },
        },
        "chosen": dict(zip(experiment.folds, experiment.chosen, strict=True)),
        "chosen_counts": dict(Counter(experiment.chosen).most_common()),
        "arms": {arm: summarise_arm(outcomes, facts, scarce) for arm, outcomes in experiment.outcomes.items()},
        "gain": {
            facts[label].slug: _class_entry(one, verdict)
            for label, one, verdict in zip(scarce, evidence, verdicts, strict=True)
        },
        "overall": {
            "balanced_accuracy": _plain_gain(gains.balanced_accuracy, rules.confidence),
            "macro_f1": _plain_gain(gains.macro_f1, rules.confidence),
            "scarce_recall": _plain_gain(gains.scarce_recall, rules.confidence),
        },
        "beside": beside,
        "verdict": overall_verdict(
            {facts[label].class_name: verdict.verdict for label, verdict in zip(scarce, verdicts, strict=True)}
        ),
    }
    return record, gains
