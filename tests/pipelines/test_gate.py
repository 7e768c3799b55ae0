"""What passes the gate and what does not; what is not known does not."""

import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.dvc import PipelineError
from pipelines.gate import Gate, Keep, Promote, copied_shares, judge
from synthgen.dataset.acceptance import Acceptance

ROOT = Path(__file__).resolve().parents[2]


def gain(*verdicts, low=0.0, exploratory=False):
    return {
        "gain": {f"c{i}": {"verdict": verdict} for i, verdict in enumerate(verdicts)},
        "overall": {"balanced_accuracy": {"mean": 0.1, "low": low, "high": 0.2}},
        "looks": {"look": 2 if exploratory else 1, "exploratory": exploratory},
    }


def test_what_helps_and_hurts_none_is_promoted():
    decision = judge(gain("helps", "no evidence"), {"c0": 0.2, "c1": 0.0})
    assert decision == Promote("helps c0 and hurts none")


@pytest.mark.parametrize(
    ("content", "copied", "reason"),
    [
        (None, {}, "no gain was measured"),
        (gain("no evidence", "promising"), {}, "no scarce class has the verdict `helps`"),
        (gain("helps", "hurts"), {}, "hurts c1"),
        (gain("helps"), {"c0": 0.21}, "21 % of the candidates of c0 copied a training image, the limit is 20 %"),
        (gain("helps"), {"c0": math.nan}, "nan % of the candidates"),
        (gain("helps"), None, "is not known"),
        (gain("helps", low=-0.01), {}, r"may lose 1\.0 points \(lower bound\); the limit is 1\.0"),
        (gain("helps", low=None), {}, "no lower bound"),
        (gain("helps", low=math.nan), {}, "no lower bound"),
        ({}, {}, "lacks 'gain'"),
        ({"gain": []}, {}, "not of the known form"),
    ],
)
def test_what_is_kept_and_why(content, copied, reason):
    decision = judge(content, copied)
    assert isinstance(decision, Keep)
    assert re.search(reason, decision.reason)


def test_every_reason_is_named():
    decision = judge(gain("hurts", low=-0.5), {"c0": 0.9})
    assert decision.reason.count(";") == 4


@pytest.mark.parametrize(
    ("gate", "content"),
    [
        (Gate(needs_help=False), gain("no evidence")),
        (Gate(allows_harm=True), gain("helps", "hurts")),
        (Gate(least_balanced_accuracy=-0.05), gain("helps", low=-0.04)),
        (Gate(most_copied=0.5), gain("helps")),
    ],
)
def test_each_limit_can_be_changed(gate, content):
    copied = {"c0": 0.4 if gate.most_copied > 0.2 else 0.0}
    assert isinstance(judge(content, copied), Keep)
    assert isinstance(judge(content, copied, gate), Promote)


def test_a_second_look_counts_unless_told_otherwise():
    content = gain("helps", exploratory=True)
    assert isinstance(judge(content, {}), Promote)
    assert "look 2" in judge(content, {}, Gate(takes_exploratory=False)).reason


@pytest.mark.parametrize("limits", [{"most_copied": math.nan}, {"most_copied": -0.1}, {"least_balanced_accuracy": 2}])
def test_limits_that_mean_nothing_are_refused(limits):
    with pytest.raises(PipelineError, match=r"not in \["):
        Gate(**limits)


@given(
    st.lists(st.sampled_from(["helps", "hurts", "promising", "no evidence", "cannot tell"]), max_size=4),
    st.floats(),
    st.one_of(st.none(), st.dictionaries(st.sampled_from(["c0", "c1"]), st.floats())),
)
def test_promoted_exactly_if_every_condition_holds(verdicts, low, copied):
    decision = judge(gain(*verdicts, low=low), copied)
    passes = (
        "helps" in verdicts
        and "hurts" not in verdicts
        and math.isfinite(low)
        and low > -0.01
        and copied is not None
        and all(share <= 0.2 for share in copied.values())
    )
    assert isinstance(decision, Promote) is passes


def test_shares_of_copies():
    accepted = {
        "crack": Acceptance(candidates=200, accepted=100, rejected={"copies_a_real": 50, "teacher_disagrees": 50}),
        "fray": Acceptance(candidates=0, accepted=0),
    }
    assert copied_shares(accepted) == {"crack": 0.25, "fray": 0.0}


def test_the_committed_measurement_of_this_repository_is_judged():
    content = json.loads((ROOT / "metrics" / "gain.json").read_text())
    assert isinstance(judge(content, {}), Keep | Promote)
    assert "not of the known form" not in judge(content, {}).reason
