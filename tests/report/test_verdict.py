import itertools
from typing import Any

import pytest

from synthgen.report.verdict import CANNOT_TELL, FORMS, HELPS, HURTS, NO_EVIDENCE, PROMISING, compose_answer, form_of


def gain_of(*verdicts: str, chosen: tuple[str, ...] = ("mixup", "mixup", "classical")) -> dict[str, Any]:
    return {
        "gain": {f"c{i}": {"verdict": verdict} for i, verdict in enumerate(verdicts)},
        "chosen": {f"f{i}": arm for i, arm in enumerate(chosen)},
    }


@pytest.mark.parametrize("verdicts", list(itertools.product(FORMS, repeat=3)))
def test_every_class_is_told_once_and_harm_is_never_hidden(verdicts: tuple[str, ...]) -> None:
    answer = compose_answer(gain_of(*verdicts))
    told = [slug for clause in answer.clauses for slug in clause.slugs]
    assert sorted(told) == ["c0", "c1", "c2"]
    assert (answer.kind == HELPS) == (HELPS in verdicts and HURTS not in verdicts)
    assert answer.lead.startswith("Yes") == (answer.kind == HELPS)
    if HURTS in verdicts:
        assert "harm" in answer.lead
    if HELPS not in verdicts:
        assert "on real images alone" in answer.advice
        assert "mixup" in answer.advice


@pytest.mark.parametrize(
    ("verdict", "lead"),
    [
        (HELPS, "Yes."),
        (HURTS, "No, they do harm."),
        (PROMISING, "Perhaps."),
        (NO_EVIDENCE, "No gain was found."),
        (CANNOT_TELL, "This data set is too small to tell."),
    ],
)
def test_leads(verdict: str, lead: str) -> None:
    assert compose_answer(gain_of(verdict, verdict)).lead == lead


def test_no_scarce_class_and_unknown_verdict() -> None:
    assert "nothing to compare" in compose_answer(gain_of()).lead
    assert form_of("<b>new</b>").style == "none"
    assert len({form.symbol for form in FORMS.values()}) == len(FORMS)
