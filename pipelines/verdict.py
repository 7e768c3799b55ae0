"""The verdict of metrics/gain.json as a Markdown table for Prefect's pages.

Owns its wording and escaping; refuses to compute: numbers and verdicts are `synthgen.metrics.gain`'s.
"""

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synthgen.artifacts import read_json
from synthgen.errors import ArtifactError

SCHEMA = 1


def read_gain(project: Path) -> dict[str, Any] | None:
    """metrics/gain.json of a project, or None where there is none.

    Raises:
        ArtifactError: damaged, or of another schema.
    """
    path = project / "metrics" / "gain.json"
    if not path.exists():
        return None
    gain = read_json(path)
    if not isinstance(gain, dict) or gain.get("schema") != SCHEMA:
        raise ArtifactError(f"{path} is not of schema {SCHEMA}; run `dvc repro compare` with this version")
    return gain


def escape_text(text: str) -> str:
    """Text of others for a Markdown page, on one line: no Markdown, no HTML, no way out of a table's cell."""
    escaped = html.escape(" ".join(text.split()))
    return "".join(f"&#{ord(mark)};" if mark in "|`*_[]\\!~" else mark for mark in escaped)


def _points(gain: Mapping[str, Any]) -> str:
    mean, low, high = (100 * gain[key] if gain[key] is not None else None for key in ("mean", "low", "high"))
    if mean is None:
        return "unknown"
    return f"{mean:+.1f}" + (f" ({low:+.1f} to {high:+.1f})" if low is not None and high is not None else "")


def verdict_table(gain: Mapping[str, Any]) -> str:
    """Markdown: the claim, a row per scarce class, and the arms.

    Args:
        gain: content of metrics/gain.json (docs/schema.md).
    Returns:
        Text in which nothing that came from class names is markup.
    Raises:
        ArtifactError: a field of the schema is missing.
    """
    try:
        return "\n".join(_lines(gain)) + "\n"
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"metrics/gain.json lacks {error}; run `dvc repro compare` with this version") from error


def _lines(gain: Mapping[str, Any]) -> list[str]:
    classes = gain["data"]["classes"]
    lines = [
        f"# Verdict: {escape_text(gain['verdict'])}",
        "",
        f"{escape_text(gain['claim'])}",
        "",
        f"Gain in percentage points, with its {100 * gain['confidence']:.0f} % interval.",
        "",
        "| scarce class | recall | after offsets | test groups | verdict | why |",
        "| --- | ---: | ---: | ---: | --- | --- |",
    ]
    for slug, row in gain["gain"].items():
        name = classes.get(slug, {}).get("class_name", slug)
        points = f"{_points(row['recall'])} | {_points(row['after_offsets'])} | {row['n_test_groups']}"
        lines.append(
            f"| {escape_text(name)} | {points} | {escape_text(row['verdict'])} | {escape_text(row['reason'])} |"
        )
    lines += ["", "| arm | balanced accuracy | macro-F1 | recall of scarce classes |", "| --- | ---: | ---: | ---: |"]
    for arm, scores in gain["arms"].items():
        figures = " | ".join(f"{scores[key]:.3f}" for key in ("balanced_accuracy", "macro_f1", "scarce_recall"))
        lines.append(f"| {escape_text(arm)} | {figures} |")
    return lines
