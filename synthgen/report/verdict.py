"""The answer in plain words, composed from the verdict of each scarce class.

Owns the sentences and the order in which verdicts are told; adds no judgement of its own: the verdicts come
from `compare`. Sentences come in pieces, so that class names stay apart from text until they are escaped.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

HELPS, HURTS, PROMISING, NO_EVIDENCE, CANNOT_TELL = "helps", "hurts", "promising", "no evidence", "cannot tell"


@dataclass(frozen=True)
class VerdictForm:
    """How a verdict is shown: the symbol carries it where colour cannot, `style` names the colour."""

    text: str
    symbol: str
    style: str
    meaning: str


FORMS: dict[str, VerdictForm] = {
    HELPS: VerdictForm(
        "helps",
        "▲",
        "helps",
        "The whole interval lies above zero, raw and after offsets, in enough folds, "
        "and no classical arm has a higher mean recall.",
    ),
    PROMISING: VerdictForm(
        "promising",
        "◆",
        "promising",
        "The same, but with too few folds to claim it. Run more folds before relying on it.",
    ),
    NO_EVIDENCE: VerdictForm(
        "no evidence",
        "○",
        "none",
        "The interval includes zero, or the gain is gone after offsets, or a classical arm does as well. "
        "Train with the classical arm that was chosen.",
    ),
    CANNOT_TELL: VerdictForm(
        "cannot tell",
        "?",
        "cannot",
        "Too few test objects, or too wide an interval. The smallest gain that could have been seen is named.",
    ),
    HURTS: VerdictForm(
        "hurts", "▼", "hurts", "The whole adjusted interval lies below zero. Do not use them for this class."
    ),
}


@dataclass(frozen=True)
class Clause:
    """Part of the answer: text, then the classes that it is about, then the rest of the text."""

    before: str
    slugs: Sequence[str]
    after: str


@dataclass(frozen=True)
class Answer:
    """The answer to the page's question.

    Attributes:
        kind: the verdict whose colour the answer takes.
        lead: the first, short sentence.
        clauses: what holds for which classes.
        advice: what to do now.
    """

    kind: str
    lead: str
    clauses: Sequence[Clause]
    advice: str


def form_of(verdict: object) -> VerdictForm:
    """The form of a verdict; one that is not known is shown as it is, in neutral colour."""
    return FORMS.get(str(verdict), VerdictForm(str(verdict), "·", "none", ""))


_CLAUSES = {
    HELPS: (
        "Recall of ",
        " on real images that no part of the procedure had seen rises, and stays risen after offsets.",
    ),
    HURTS: ("Recall of ", " falls."),
    PROMISING: ("For ", " the gain looks real, but there are too few folds to claim it."),
    NO_EVIDENCE: ("For ", " no gain was found over the best way of training without them."),
    CANNOT_TELL: ("For ", " the test images cannot tell."),
}


def compose_answer(gain: Mapping[str, Any]) -> Answer:
    """Words for the verdicts in gain.json.

    Args:
        gain: `metrics/gain.json`.
    Returns:
        The answer; `kind` is `helps` only if no scarce class is hurt.
    """
    by_verdict: dict[str, list[str]] = {}
    for slug, entry in gain["gain"].items():
        by_verdict.setdefault(str(entry.get("verdict")), []).append(slug)
    clauses = [
        Clause(*_split(_CLAUSES[verdict], by_verdict[verdict]))
        for verdict in (HELPS, HURTS, PROMISING, NO_EVIDENCE, CANNOT_TELL)
        if verdict in by_verdict
    ]
    kind, lead = _lead(set(by_verdict), len(gain["gain"]))
    return Answer(kind, lead, clauses, _advice(kind, gain))


def _split(texts: tuple[str, str], slugs: list[str]) -> tuple[str, list[str], str]:
    return texts[0], slugs, texts[1]


# The first row whose verdicts all occur gives the answer: (verdicts, kind, if all classes agree, if not).
_LEADS: tuple[tuple[frozenset[str], str, str, str], ...] = (
    (frozenset({HELPS, HURTS}), NO_EVIDENCE, "", "For some classes yes, for others they do harm."),
    (frozenset({HELPS}), HELPS, "Yes.", "Yes, for some classes."),
    (frozenset({HURTS}), HURTS, "No, they do harm.", "No, and for some classes they do harm."),
    (frozenset({PROMISING}), PROMISING, "Perhaps.", "Perhaps, for some classes."),
    (frozenset({NO_EVIDENCE}), NO_EVIDENCE, "No gain was found.", "No gain was found."),
)


def _lead(found: set[str], n_classes: int) -> tuple[str, str]:
    if not n_classes:
        return NO_EVIDENCE, "No class is scarce, so there was nothing to compare."
    for verdicts, kind, agreed, mixed in _LEADS:
        if verdicts <= found:
            return kind, agreed if len(found) == 1 else mixed
    return CANNOT_TELL, "This data set is too small to tell."


def usual_arm(gain: Mapping[str, Any]) -> str | None:
    """The arm that the rule of choice takes on the rows of all folds; in older files the one chosen in most folds."""
    if gain.get("recommended"):
        return str(gain["recommended"])
    counts = Counter(gain.get("chosen", {}).values())
    return min(counts, key=lambda arm: (-counts[arm], arm)) if counts else None


def _advice(kind: str, gain: Mapping[str, Any]) -> str:
    usual = usual_arm(gain)
    arm = f"the arm “{usual}”" if usual else "the chosen classical arm"
    if kind == HELPS:
        return (
            f"Train with {arm} and add synthetic images of all classes, as the data card says, "
            "unless a class that matters to you is listed as harmed or undecided."
        )
    if any(entry.get("verdict") == HELPS for entry in gain["gain"].values()):
        return (
            "Use the synthetic images only if the classes that gain matter more to you than those that lose; "
            f"otherwise train with {arm} on real images alone."
        )
    if kind == PROMISING:
        return f"Until more folds confirm it, train with {arm} on real images alone."
    return f"Train with {arm} on real images alone."
