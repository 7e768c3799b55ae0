"""The verdict as Markdown: the schema's numbers, and nobody's markup."""

import copy
import json

import pytest

from pipelines.verdict import read_gain, verdict_table
from synthgen.errors import ArtifactError


def gain(mean):
    return {"mean": mean, "low": mean - 0.05, "high": mean + 0.05, "n": 5}


GAIN = {
    "schema": 1,
    "claim": "Over 5 folds of 900 groups",
    "confidence": 0.95,
    "verdict": "helps",
    "data": {"classes": {"crack": {"class_name": "Crack"}}},
    "arms": {"real": {"balanced_accuracy": 0.8, "macro_f1": 0.75, "scarce_recall": 0.5}},
    "gain": {
        "crack": {
            "recall": gain(0.125),
            "after_offsets": gain(0.1),
            "verdict": "helps",
            "reason": "lower bound above 0",
            "n_test_groups": 40,
            "smallest_visible": 0.05,
        }
    },
}


def test_numbers_stand_in_their_rows():
    text = verdict_table(GAIN)
    assert "# Verdict: helps" in text
    assert "| Crack | +12.5 (+7.5 to +17.5) | +10.0 (+5.0 to +15.0) | 40 | helps | lower bound above 0 |" in text
    assert "| real | 0.800 | 0.750 | 0.500 |" in text


def test_unknown_numbers_are_said_to_be_unknown():
    content = copy.deepcopy(GAIN)
    content["gain"]["crack"]["recall"] = {"mean": None, "low": None, "high": None, "n": 0}
    assert "| Crack | unknown |" in verdict_table(content)


def test_class_names_are_no_markup_and_leave_no_cell():
    content = copy.deepcopy(GAIN)
    content["data"]["classes"]["crack"]["class_name"] = "<img src=x onerror=alert(1)> | [a](http://b)\n# `x`"
    text = verdict_table(content)
    assert "<img" not in text
    assert "](" not in text
    row = next(line for line in text.splitlines() if "onerror" in line)
    assert row.count("|") == 7


def test_file_of_another_schema_is_refused(tmp_path):
    assert read_gain(tmp_path) is None
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "gain.json").write_text(json.dumps({"schema": 2}))
    with pytest.raises(ArtifactError, match="schema 1"):
        read_gain(tmp_path)
    with pytest.raises(ArtifactError, match="lacks"):
        verdict_table({"schema": 1})
