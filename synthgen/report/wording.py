"""How names and numbers stand in text.

Owns the visible form of names that came from outside (control and bidirectional characters are shown, not
obeyed), their Markdown form, and the wording of shares, gains and intervals. Escaping for HTML is the
template engine's work (autoescape), never done here.
"""

import math
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

NAME_LIMIT = 120
MISSING = "–"
MINUS = "\u2212"

_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")
_UNPRINTABLE = frozenset({"Cc", "Cs", "Cn", "Co", "Zl", "Zp"})
_MARKDOWN_PLAIN = frozenset(" ,()/%+-")


def visible_name(text: object, limit: int = NAME_LIMIT) -> str:
    """`text` with every character that hides or reorders others written as its code point.

    Args:
        text: a class name, file name or reason, from anywhere.
        limit: longest result; the middle of a longer one is left out.
    """
    shown = "".join(
        f"\u27e8U+{ord(c):04X}\u27e9" if c in _BIDI or unicodedata.category(c) in _UNPRINTABLE else c for c in str(text)
    )
    if len(shown) > limit:
        half = (limit - 1) // 2
        shown = f"{shown[:half]}…{shown[-half:]}"
    return shown


def markdown_text(text: object) -> str:
    """`text` for a Markdown table cell or sentence: nothing in it can become markup, a link or HTML."""
    shown = visible_name(text)

    def safe(match: re.Match[str]) -> str:
        c = match.group()
        before, after = shown[: match.start()][-1:], shown[match.end() :][:1]
        inside_word = c == "_" and before.isalnum() and after.isalnum()
        # A combining mark (category M) is part of a letter.
        plain = c.isalnum() or c in _MARKDOWN_PLAIN or unicodedata.category(c).startswith("M") or inside_word
        return c if plain else f"&#{ord(c)};"

    return re.sub(r".", safe, shown, flags=re.DOTALL).replace("www", "&#119;ww") or "(empty)"


def _finite(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def percent(value: Any) -> str:
    """A share in [0, 1] as `87.5 %`; a dash where there is none."""
    number = _finite(value)
    return MISSING if number is None else f"{100 * number:.1f}\u00a0%"


def decimal(value: Any, digits: int = 3) -> str:
    """A plain number; a dash where there is none."""
    number = _finite(value)
    return MISSING if number is None else f"{number:.{digits}f}".replace("-", MINUS)


def points(value: Any) -> str:
    """A difference of shares in percentage points with its sign: `+4.1`."""
    number = _finite(value)
    if number is None:
        return MISSING
    rounded = round(100 * number, 1) + 0.0
    if rounded == 0:
        return "0.0"
    return f"{'+' if rounded > 0 else MINUS}{abs(rounded):.1f}"


def interval(gain: Mapping[str, Any] | None) -> str:
    """`low to high` of a GAIN in points; a dash where there is none."""
    if not gain or _finite(gain.get("low")) is None or _finite(gain.get("high")) is None:
        return MISSING
    return f"{points(gain['low'])} to {points(gain['high'])}"


def gain_text(gain: Mapping[str, Any] | None) -> str:
    """`+4.1 (+0.9 to +7.3)` of a GAIN in points; a dash where there is none."""
    if not gain or _finite(gain.get("mean")) is None:
        return MISSING
    between = interval(gain)
    return points(gain["mean"]) if between == MISSING else f"{points(gain['mean'])} ({between})"


def count(value: Any) -> str:
    """A whole number with thin spaces between thousands."""
    number = _finite(value)
    return MISSING if number is None else f"{round(number):,}".replace(",", "\u202f")


def joined(items: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""


def worth_sentence(worth: Mapping[str, Any]) -> str:
    """What the synthetic images are worth in real ones, as one sentence.

    Args:
        worth: contents of metrics/worth.json.
    """
    more, real = worth["more_real_images"], f"{worth['n_real']:.0f}"
    start = f"Beside {real} real images of a scarce class"
    if more["mean"] is None:
        return f"{start} the synthetic ones cannot be put into real ones: {worth['reason']}."
    high = "any number" if more["high"] is None else f"{more['high']:+.1f}"
    low = "any loss" if more["low"] is None else f"{more['low']:+.1f}"
    amount = f"{more['mean']:+.1f} ({low} to {high})"
    return f"{start} the synthetic ones are worth {amount} real images more, on average over those classes."
