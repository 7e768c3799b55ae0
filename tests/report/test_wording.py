import math
import unicodedata
from html import unescape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthgen.report.wording import (
    count,
    decimal,
    gain_text,
    interval,
    joined,
    markdown_text,
    percent,
    points,
    visible_name,
)


@given(st.text(max_size=60))
def test_nothing_invisible_survives(text: str) -> None:
    shown = visible_name(text)
    assert not [
        c
        for c in shown
        if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")
        or unicodedata.bidirectional(c) in ("RLO", "LRO", "RLE", "LRE", "PDF", "RLI", "LRI", "FSI", "PDI")
    ]
    shown.encode("utf-8")


@given(st.text(max_size=60))
def test_markdown_reads_as_the_visible_name_and_holds_no_mark(text: str) -> None:
    marked = markdown_text(text)
    assert not set(marked) & set("`*[]<>|\\~${}\"'@:!\n\r")
    assert unescape(marked) == (visible_name(text) or "(empty)")


@given(st.text(min_size=200, max_size=400))
def test_long_names_are_cut(text: str) -> None:
    assert len(visible_name(text)) <= 120


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0413, "+4.1"), (-0.0413, "−4.1"), (0.0004, "0.0"), (-0.0004, "0.0"), (None, "–"), (math.nan, "–"), (True, "–")],
)
def test_points(value: float | None, text: str) -> None:
    assert points(value) == text


def test_numbers() -> None:
    assert percent(0.875) == "87.5\u00a0%"
    assert percent(None) == percent(math.inf) == "–"
    assert decimal(-0.125, 2) == "−0.12"
    assert count(12345) == "12\u202f345"
    assert interval({"mean": 0.0, "low": -0.1, "high": 0.05}) == "−10.0 to +5.0"
    assert gain_text({"mean": 0.04, "low": 0.01, "high": 0.07}) == "+4.0 (+1.0 to +7.0)"
    assert gain_text({"mean": None, "low": -1.0, "high": 1.0}) == "–"
    assert gain_text(None) == interval(None) == interval({}) == "–"


def test_lists() -> None:
    assert [joined(items) for items in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]
