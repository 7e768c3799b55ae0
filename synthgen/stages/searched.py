"""What `synthgen search` chose, for the stages that use it: data/search/result.json, read and checked.

Owns the file's reading side. Refuses a result of other folds or other classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from synthgen.artifacts import read_json
from synthgen.dataset.mixing import MixingPolicy, read_policy
from synthgen.errors import ArtifactError, ConfigError
from synthgen.records import FINAL
from synthgen.stages.workspace import Workspace

SCHEMA = 1
SUMMARY_FIELDS = ("default", "expected_gain", "cost", "budget", "counts")


@dataclass(frozen=True)
class SearchedPolicies:
    """The choices of a search.

    Attributes:
        policies: fold (and `final`) -> policy; None: no synthetic images.
        names: fold (and `final`) -> what the candidate is called.
        summary: what tables and the report show.
    """

    policies: dict[str, MixingPolicy | None]
    names: dict[str, str]
    summary: dict[str, Any]


def read_searched(workspace: Workspace, class_names: Sequence[str]) -> SearchedPolicies:
    """Reads data/search/result.json.

    Raises:
        ArtifactError: missing, damaged, or of other classes or folds.
    """
    path = workspace.search_result
    record = read_json(path)
    try:
        chosen: Mapping[str, Any] = record["chosen"]
        policies = {
            unit: None if c["policy"] is None else read_policy(c["policy"], class_names) for unit, c in chosen.items()
        }
        names = {unit: str(c["candidate"]) for unit, c in chosen.items()}
        summary = {field: record[field] for field in SUMMARY_FIELDS}
        summary["chosen"] = {unit: {key: c[key] for key in ("candidate", "shrunk")} for unit, c in chosen.items()}
        fits = record["schema"] == SCHEMA and set(chosen) == {*workspace.plan.measured_folds, FINAL}
    except (KeyError, TypeError, AttributeError, ValidationError, ConfigError) as error:
        raise ArtifactError(f"{path} cannot be used ({error}); run `dvc repro` for the stage search again") from error
    if not fits:
        raise ArtifactError(
            f"{path} has choices for {', '.join(sorted(chosen))} in schema {record['schema']!r}; plan.yaml asks for "
            f"{', '.join([*workspace.plan.measured_folds, FINAL])} in schema {SCHEMA}: run `dvc repro` for search again"
        )
    return SearchedPolicies(policies, names, summary)
