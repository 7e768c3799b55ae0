"""What a search among mixing policies chose, in words: for the page and for `synthgen verdict`.

Owns the sentences; reads the `search` part of metrics/gain.json and judges nothing.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from synthgen.records import FINAL
from synthgen.report.wording import count, decimal, gain_text


def search_lines(search: Mapping[str, Any]) -> list[str]:
    """One sentence each: what was chosen, what gain is expected, what it cost.

    Args:
        search: `search` of metrics/gain.json (docs/schema.md).
    """
    chosen = {unit: str(entry["candidate"]) for unit, entry in search["chosen"].items()}
    released = chosen.pop(FINAL, str(search["default"]))
    counted = Counter(chosen.values())
    folds = ", ".join(f"{name} in {n} of {len(chosen)}" for name, n in counted.most_common())
    kept = released == search["default"]
    choice = f"keeps the default policy ({released})" if kept else f"chose {released} instead of {search['default']}"
    expected, cost, budget = search["expected_gain"], search["cost"], search["budget"]
    n = decimal(budget["minutes"], 1)
    limit = f"{count(budget['trainings'])} trainings" + (f", as fit {n} minutes" if budget["minutes"] else "")
    took = f", {decimal(cost['seconds'] / 60, 1)} minutes" if cost["seconds"] is not None else ""
    early = "; it stopped there, since what comes next would not have fitted" if cost["stopped"] else ""
    return [
        f"For the release the search {choice}; in the folds it took: {folds}.",
        f"Expected gain over the default, on validation images that did not choose, in points: "
        f"{gain_text(expected['balanced_accuracy'])} of balanced accuracy, {gain_text(expected['score'])} of the score "
        "that it chose by.",
        f"It cost {count(cost['trainings'])} trainings{took}; the budget held {limit}{early}.",
    ]
