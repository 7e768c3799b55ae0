"""The plan and the split of a fold: what stages hand to each other beside arrays.

Owns plan.yaml's form. `Plan` says which classes exist, which are scarce and what is made for them;
`FoldSplit` says which prepared rows a fold trains on, validates on and is tested on.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from ruamel.yaml import YAML

from synthgen.artifacts import atomic_file
from synthgen.config import read_yaml
from synthgen.errors import PlanError
from synthgen.versions import VERSIONS

FINAL = "final"
PLAN_COMMAND = "synthgen plan"

SEARCH_RUN = "policies"
SEARCH_RESULT = "data/search/result.json"
NOTHING_SEARCHED = "data/prepared/summary.json"
"""What `challenge` depends on where no arm is searched for: a file that it reads anyway, since DVC wants one."""

Strategy = Literal["adapted", "shared", "scratch"]


class ClassPlan(BaseModel):
    """One class of the plan.

    `label` is the integer that classifiers see; `images` and `groups` count prepared real images
    (test-only surplus and frozen test images left out); `target` is the number of synthetic images
    to make; `generator` is the one that makes them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    class_name: str
    label: int
    images: int
    groups: int
    scarce: bool
    target: int
    generator: Literal["adapted", "shared", "scratch"]


class Plan(BaseModel):
    """plan.yaml: written by `synthgen plan`, read by every stage and by dvc.yaml.

    `folds` are measured folds (`f0`...) followed by `final`; `parts` is the number of parts that the pool is cut into,
    that of measured folds but where `plan.generator_seeds` asks for fewer; `pretrain_folds`, `adapt_slugs` and
    `scratch_slugs` are what the matrices of those stages run over (empty where the strategy has no use for the stage).
    `search_runs` is the matrix of `search`, empty where no arm is searched for; `searched_policies` the file that
    `challenge` depends on.
    `scarce_slugs` (in the order of their labels), `targets` and `class_names` repeat what `pretrain` and `synthesize`
    depend on, without the counts beside it;
    `versions` are those of the parts that wrote the plan (synthgen/versions.py). `test_groups` counts per slug the
    groups that are tested, over all folds or on the user's own test set: for people; no stage depends on it.
    `unlabelled_in_pretrain` makes `prepare` name the unlabelled images in the train indexes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int
    mode: Literal["folds", "frozen"]
    strategy: Strategy
    folds: list[str]
    parts: int
    pretrain_folds: list[str]
    scarce_slugs: list[str]
    adapt_slugs: list[str]
    scratch_slugs: list[str]
    search_runs: list[str] = []
    searched_policies: str = NOTHING_SEARCHED
    targets: dict[str, int]
    class_names: dict[str, str]
    versions: dict[str, int]
    test_groups: dict[str, int] = {}
    unlabelled_in_pretrain: bool = False
    classes: dict[str, ClassPlan]

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # a plan that has nothing to do with unlabelled images keeps its bytes
        values: dict[str, Any] = handler(self)
        return {k: v for k, v in values.items() if k != "unlabelled_in_pretrain" or v}

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("folds"), list):
            values = {"parts": len([fold for fold in values["folds"] if fold != FINAL]), **values}
        if isinstance(values, dict) and isinstance(values.get("classes"), dict):
            plain = {k: v if isinstance(v, dict) else v.model_dump() for k, v in values["classes"].items()}
            repeated = {
                "scarce_slugs": _scarce(plain),
                "targets": {k: entry["target"] for k, entry in plain.items()},
                "class_names": {k: entry["class_name"] for k, entry in plain.items()},
            }
            return {**repeated, "versions": VERSIONS, **values}
        return values

    @model_validator(mode="after")
    def _agree(self) -> "Plan":
        if self.scarce_slugs != _scarce({slug: entry.model_dump() for slug, entry in self.classes.items()}):
            raise ValueError("scarce_slugs do not repeat which classes are scarce")
        if self.targets != {slug: entry.target for slug, entry in self.classes.items()}:
            raise ValueError("targets do not repeat the targets of classes")
        if self.class_names != {slug: entry.class_name for slug, entry in self.classes.items()}:
            raise ValueError("class_names do not repeat the names of classes")
        return self

    @property
    def slugs(self) -> list[str]:
        """Slugs in the order of their labels."""
        return sorted(self.classes, key=lambda slug: self.classes[slug].label)

    @property
    def measured_folds(self) -> list[str]:
        """All folds but `final`."""
        return [fold for fold in self.folds if fold != FINAL]


def _scarce(classes: dict[str, dict[str, Any]]) -> list[str]:
    """Slugs of the scarce classes in the order of their labels."""
    return sorted((k for k, entry in classes.items() if entry["scarce"]), key=lambda k: int(classes[k]["label"]))


@dataclass(frozen=True)
class FoldSplit:
    """Rows of the prepared arrays that one fold uses.

    Attributes:
        name: `f0`, ..., or `final`.
        train: (n,) int64 rows that generators, selection and classifiers may see, ordered by pixel sha256.
        val: (m,) int64 rows for offsets; empty in `final`.
        test: (k,) int64 rows read once, by `classifier.prediction`; empty in `final`.
    """

    name: str
    train: NDArray[np.int64]
    val: NDArray[np.int64]
    test: NDArray[np.int64]


def load_plan(path: Path) -> Plan:
    """Reads plan.yaml.

    Raises:
        PlanError: missing, damaged or of another form; says which command writes it.
    """
    if not path.exists():
        raise PlanError(f"{path} is missing; run `{PLAN_COMMAND}` first")
    try:
        return Plan.model_validate(read_yaml(path))
    except ValidationError as error:
        first = error.errors()[0]
        dotted = ".".join(str(part) for part in first["loc"])
        raise PlanError(f"{path}: {dotted}: {first['msg']}; run `{PLAN_COMMAND}` to write it again") from error


def save_plan(path: Path, plan: Plan) -> None:
    """Writes plan.yaml atomically, with a first line that says who owns the file."""
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.allow_unicode = True
    yaml.width = 120
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.write(f"# Written by `{PLAN_COMMAND}`; change params.yaml (section plan) instead of this file.\n")
        yaml.dump(plan.model_dump(), stream)
