"""Tables of bench-gain: `python benchmarks/gain_table.py [SET ...] [--write]`, from benchmarks/results/gain/*.json.

Prints Markdown; with --write it replaces the tables in docs/results.md between the marks of each set. The unit is the
split (of the tiles: the fold of a partition): repeats were averaged before. Two baselines stand in it: the classical
arm that cross-fitting chose in the split, which is what a user would have had, and the classical arm with the best mean
on the test images, which nobody could have chosen.
"""

import argparse
import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bench_data import ROOT
from gain_sets import SETS, GainSet
from numpy.typing import NDArray

from synthgen.metrics.intervals import bounds, fold_estimate

RESULTS = ROOT / "benchmarks" / "results" / "gain"
PAGE = ROOT / "docs" / "results.md"
LEVEL = 0.025


@dataclass(frozen=True)
class Units:
    """Numbers of a set, units in rows.

    Attributes:
        names: `split 0`, ... or `split 0 f0`, ...
        recall: arm -> (n,) mean recall of the scarce classes; balanced, auc, others likewise: balanced accuracy, mean
            one-against-rest AUC of the scarce classes, mean recall of the other classes.
        chosen: (n,) names of the classical arms that cross-fitting chose; empty where no `best+` arm ran.
    """

    names: list[str]
    recall: dict[str, NDArray[np.float64]]
    balanced: dict[str, NDArray[np.float64]]
    auc: dict[str, NDArray[np.float64]]
    others: dict[str, NDArray[np.float64]]
    chosen: list[str]

    def of_chosen(self, values: dict[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        """(n,) numbers of the arm that was chosen in each unit."""
        return np.array([values[arm][i] for i, arm in enumerate(self.chosen)])


def read_units(record: dict[str, Any]) -> Units:
    """Units of all splits; nan where a unit lacks an arm, and an arm that fewer than two units have is left out."""
    scarce, names, rows, chosen = set(record["scarce"]), [], [], []
    for split, entry in sorted(record["splits"].items(), key=lambda item: int(item[0])):
        for fold, numbers in entry["folds"].items():
            names.append(f"split {split}" + (f" {fold}" if len(entry["folds"]) > 1 else ""))
            rows.append(numbers["arms"])
            chosen.append(numbers.get("chosen", ""))
    counts = Counter(arm for row in rows for arm in row)
    arms = [arm for arm, count in counts.items() if count >= min(2, len(rows))]

    def mean_recall(row: dict[str, Any], arm: str, wanted: bool) -> float:
        values = row.get(arm, {}).get("recall", {})
        known = [value for slug, value in values.items() if (slug in scarce) is wanted and value is not None]
        return float(np.mean(known)) if known else float("nan")

    return Units(
        names,
        {arm: np.array([mean_recall(row, arm, True) for row in rows]) for arm in arms},
        {arm: _numbers(rows, arm, "balanced_accuracy") for arm in arms},
        {arm: _numbers(rows, arm, "scarce_auc") for arm in arms},
        {arm: np.array([mean_recall(row, arm, False) for row in rows]) for arm in arms},
        chosen,
    )


def _numbers(rows: list[dict[str, Any]], arm: str, name: str) -> NDArray[np.float64]:
    return np.array([row[arm][name] if arm in row else np.nan for row in rows], dtype=np.float64)


def interval(differences: NDArray[np.float64], overlap: float) -> str:
    """Mean in points with its 95 % interval over units (Student's t; corrected where splits overlap) and n."""
    known = differences[~np.isnan(differences)]
    estimate = fold_estimate(known, overlap)
    if estimate.n < 2:
        return f"{100 * estimate.mean:+.1f}, n = {estimate.n}" if estimate.n else "–"
    low, high = bounds(estimate, LEVEL, LEVEL)
    return f"{100 * estimate.mean:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}], n = {estimate.n}"


def table(one: GainSet, record: dict[str, Any]) -> str:
    """The table of one set as Markdown."""
    units = read_units(record)
    classical = [arm for arm in units.recall if "+" not in arm]
    made = [arm for arm in units.recall if "+" in arm]
    everywhere = [arm for arm in classical if not np.isnan(units.recall[arm]).any()]
    best = max(everywhere, key=lambda arm: units.recall[arm].mean())
    n_splits = len(record["splits"])
    lines = [
        f"{one.title}: {n_splits} of {one.n_splits} splits, {len(units.names)} units. Bar: {one.bar}.",
        "Best classical arm by the mean of its scarce recall on the test images: "
        f"`{best}`. Chosen by cross-fitting: {_counts(units.chosen)}.",
        "",
        "| arm | scarce recall | recall of the others | balanced accuracy | scarce AUC | scarce recall over the chosen "
        f"| over `{best}` | error against the chosen |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    has_choice = all(units.chosen)
    for arm in [*classical, *made]:
        recall = units.recall[arm]
        over_chosen, error = "", ""
        if has_choice:
            baseline = units.of_chosen(units.recall)
            over_chosen = interval(recall - baseline, one.overlap)
            known = ~np.isnan(recall)
            error = f"{100 * ((1 - recall[known].mean()) / (1 - baseline[known].mean()) - 1):+.0f} %"
        over_best = "" if arm == best else interval(recall - units.recall[best], one.overlap)
        numbers = [recall, units.others[arm], units.balanced[arm], units.auc[arm]]
        shown = " | ".join(f"{100 * np.nanmean(values):.2f}" for values in numbers)
        n_known = int((~np.isnan(recall)).sum())
        name = f"`{arm}`" if n_known == len(recall) else f"`{arm}` ({n_known} units)"
        lines.append(f"| {name} | {shown} | {over_chosen} | {over_best} | {error} |")
    if has_choice:
        lines += ["", "Balanced accuracy over the chosen classical arm:", ""]
        balanced = units.of_chosen(units.balanced)
        lines += [f"- `{arm}` {interval(units.balanced[arm] - balanced, one.overlap)}" for arm in made]
    if one.with_masks:
        lines += _without_masks(one, units, classical, made)
    if "balanced" in classical:
        lines += ["", "Scarce recall over `balanced`, plain class-balanced sampling:", ""]
        lines += [f"- `{arm}` {interval(units.recall[arm] - units.recall['balanced'], one.overlap)}" for arm in made]
    kinds = {json.dumps([entry["params"], _counting(entry["versions"])]) for entry in record["splits"].values()}
    if len(kinds) > 1:
        lines += [
            "",
            f"The splits were measured with {len(kinds)} different sets of parameters or versions. The means of an arm "
            "that not all have are of other splits than those beside them: compare it by its paired differences.",
        ]
    held = [sum(entry["seconds"].values()) * entry.get("cores", 2) for entry in record["splits"].values()]
    minutes = sum(held) / 60 / n_splits
    lines += [
        "",
        f"Time of a split: {minutes:.0f} core-minutes. Again, with the parameters of today: "
        f"`python benchmarks/gain.py {one.name}`.",
    ]
    return "\n".join(lines) + "\n"


def _counting(versions: dict[str, int]) -> list[int]:
    """The versions on which an arm's predictions and their numbers depend."""
    return [versions[part] for part in ("dataset", "gan", "selection", "classifier", "metrics")]


def _without_masks(one: GainSet, units: Units, classical: list[str], made: list[str]) -> list[str]:
    """Arms with synthetic images, and those with masks, against the best classical arm that needs no masks."""
    best = max((arm for arm in classical if arm not in one.with_masks), key=lambda arm: np.nanmean(units.balanced[arm]))
    lines = [
        "",
        f"Over `{best}`, the classical arm without masks that has the best mean balanced accuracy on the test images:",
        "",
        "| arm | balanced accuracy | scarce AUC | recall of the others |",
        "| --- | --- | --- | --- |",
    ]
    for arm in [*(arm for arm in one.with_masks if arm in classical), *made]:
        kinds = (units.balanced, units.auc, units.others)
        shown = " | ".join(interval(values[arm] - values[best], one.overlap) for values in kinds)
        lines.append(f"| `{arm}` | {shown} |")
    return lines


def _counts(chosen: list[str]) -> str:
    found = sorted({arm: chosen.count(arm) for arm in chosen if arm}.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{arm} {count}" for arm, count in found) or "not yet"


def write_tables(texts: dict[str, str]) -> None:
    """Replaces what stands between the marks of each set in docs/results.md; a set without marks is an error."""
    page = PAGE.read_text(encoding="utf-8")
    for name, text in texts.items():
        start, end = f"<!-- {name}: start -->", f"<!-- {name}: end -->"
        if start not in page or end not in page:
            sys.exit(f"docs/results.md has no marks {start} and {end}")
        head, rest = page.split(start, 1)
        page = f"{head}{start}\n{text}{end}{rest.split(end, 1)[1]}"
    PAGE.write_text(page, encoding="utf-8")


def main() -> None:
    """Prints or writes the tables of the sets that have results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("sets", nargs="*", choices=[*sorted(SETS), []])
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    texts = {}
    for name, one in SETS.items():
        path: Path = RESULTS / f"{name}.json"
        if path.exists() and (not arguments.sets or name in arguments.sets):
            texts[name] = table(one, json.loads(path.read_text(encoding="utf-8")))
    if arguments.write:
        write_tables(texts)
    else:
        sys.stdout.write("\n".join(f"### {name}\n{text}" for name, text in texts.items()))


if __name__ == "__main__":
    main()
