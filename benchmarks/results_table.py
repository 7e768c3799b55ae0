"""The tables of docs/results.md, written from a project's metrics/gain.json.

python benchmarks/results_table.py PROJECT
"""

import json
import sys
from pathlib import Path
from typing import Any


def percent(value: float | None) -> str:
    """A share as a percentage with one decimal; a dash where there is none."""
    return "–" if value is None else f"{100 * value:.1f}"


def interval(gain: dict[str, Any]) -> str:
    """A gain in points with its interval and the number of folds."""
    if gain["mean"] is None or gain["low"] is None or gain["high"] is None:
        return percent(gain["mean"])
    mean, low, high = (100 * gain[name] for name in ("mean", "low", "high"))
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}], n = {gain['n']}"


def results_markdown(project: Path) -> str:
    """Arms and gains as Markdown tables."""
    record = json.loads((project / "metrics" / "gain.json").read_text(encoding="utf-8"))
    classes = record["data"]["classes"]
    scarce = [slug for slug, facts in classes.items() if facts["scarce"]]
    counts = ", ".join(
        f"{slug} {facts['images']} images of {facts['groups']} objects" for slug, facts in classes.items()
    )
    lines = [
        f"Claim: {record['claim']}. Classes: {counts}.",
        f"Classical arm chosen in each fold: {', '.join(f'{f} {a}' for f, a in record['chosen'].items())}.",
        f"Look at this test data: number {record['looks']['look']}"
        + (", exploratory." if record["looks"]["exploratory"] else "."),
        "",
        "| arm | balanced accuracy | macro-F1 | "
        + " | ".join(f"recall {slug}" for slug in scarce)
        + " | recall of the others |",
        "| --- | --- | --- | --- |" + " --- |" * len(scarce),
    ]
    for arm, values in record["arms"].items():
        others = [values["recall"][slug] for slug in classes if slug not in scarce]
        recalls = " | ".join(percent(values["recall"][slug]) for slug in scarce)
        recalls += f" | {percent(sum(others) / len(others))}"
        lines.append(
            f"| `{arm}` | {percent(values['balanced_accuracy'])} | {percent(values['macro_f1'])} | {recalls} |"
        )
    lines += [
        "",
        f"Gain of `{record['challenger']}` over the chosen classical arm, points of recall:",
        "",
        "| class | gain | after offsets | smallest visible | verdict |",
        "| --- | --- | --- | --- | --- |",
    ]
    for slug, entry in record["gain"].items():
        lines.append(
            f"| {slug} | {interval(entry['recall'])} | {interval(entry['after_offsets'])} | "
            f"{percent(entry['smallest_visible'])} | {entry['verdict']} |"
        )
    lines += ["", "| over all classes | gain |", "| --- | --- |"]
    lines += [f"| {name.replace('_', ' ')} | {interval(gain)} |" for name, gain in record["overall"].items()]
    for arm, gains in record["beside"].items():
        told = "; ".join(f"{slug} {interval(gain)}" for slug, gain in gains.items() if slug in scarce)
        lines.append(f"| beside it, `{arm}` | {told} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(results_markdown(Path(sys.argv[1])))
