"""Which version a new data set gets: the written rule, as pure functions.

Owns the rule and the names of version tags (`augmented@v1.2.3`, as GTO writes them). Refuses to touch files and git:
`pipelines.publish` brings the texts.

| what changed since the last version | number that rises |
| --- | --- |
| the columns of the shards in data/augmented | major |
| a class came, went, or got another name or label | minor |
| how the generator is made: strategy, network, `versions.gan` | minor |
| images, samples or measurements | patch |
| nothing | none: no new version |

The first version is v0.1.0.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipelines.dvc import AnswerError
from synthgen.artifacts import digest_of

__all__ = [
    "Change",
    "State",
    "Version",
    "change_between",
    "latest",
    "next_version",
    "parse_tag",
    "parse_version",
    "read_state",
]

NAME = "augmented"
DATA_PATH = "data/augmented"
_VERSION = re.compile(r"v?(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})", re.ASCII)


class Change(IntEnum):
    """How much changed between two states."""

    PATCH = 1
    MINOR = 2
    MAJOR = 3


@dataclass(frozen=True, order=True)
class Version:
    """A semantic version; ordered as such."""

    major: int
    minor: int
    patch: int

    def __str__(self) -> str:
        """`v1.2.3`."""
        return f"v{self.major}.{self.minor}.{self.patch}"

    @property
    def tag(self) -> str:
        """`augmented@v1.2.3`, the name of its git tag."""
        return f"{NAME}@{self}"

    def raised(self, change: Change) -> "Version":
        """The version after this one."""
        if change is Change.MAJOR:
            return Version(self.major + 1, 0, 0)
        if change is Change.MINOR:
            return Version(self.major, self.minor + 1, 0)
        return Version(self.major, self.minor, self.patch + 1)


FIRST = Version(0, 1, 0)


@dataclass(frozen=True)
class State:
    """What the rule looks at.

    Attributes:
        classes: slug -> (class name, label), as sorted items.
        generator: canonical JSON of strategy, network and `versions.gan`.
        data: digest of data/augmented as DVC knows it.
        measured: digest of metrics/gain.json, empty without one.
        schema: digest of the shards' columns, empty where it is not known.
    """

    classes: tuple[tuple[str, tuple[str, int]], ...]
    generator: str
    data: str
    measured: str
    schema: str


def parse_version(text: str) -> Version | None:
    """`v1.2.3` or `1.2.3` as a version; None for anything else."""
    match = _VERSION.fullmatch(text)
    return Version(*(int(number) for number in match.groups())) if match else None


def parse_tag(tag: str) -> Version | None:
    """The version of a tag `augmented@v1.2.3`; None for any other tag."""
    name, mark, number = tag.partition("@")
    return parse_version(number) if name == NAME and mark and number.startswith("v") else None


def latest(tags: Iterable[str]) -> Version | None:
    """The highest version among `tags`; None where there is none."""
    return max((version for tag in tags if (version := parse_tag(tag))), default=None)


def change_between(old: State, new: State) -> Change | None:
    """How much changed from `old` to `new`; None for nothing.

    A schema that is not known on one side (a version made elsewhere) counts as unchanged.
    """
    if old.schema and new.schema and old.schema != new.schema:
        return Change.MAJOR
    if (old.classes, old.generator) != (new.classes, new.generator):
        return Change.MINOR
    if (old.data, old.measured) != (new.data, new.measured):
        return Change.PATCH
    return None


def next_version(last: Version | None, old: State | None, new: State) -> Version | None:
    """The version that `new` gets; None where nothing changed since `last`.

    Args:
        last: the highest version so far, None before the first.
        old: its state; None where it cannot be read any more, which counts as a new generator.
        new: the state to be published.
    """
    if last is None:
        return FIRST
    change = Change.MINOR if old is None else change_between(old, new)
    return None if change is None else last.raised(change)


def _mapping(text: str, name: str) -> Mapping[str, Any]:
    try:
        value = YAML(typ="safe").load(text)
    except YAMLError as error:
        raise AnswerError(
            f"{name} of a version is no YAML ({type(error).__name__}); look at it with `git show`"
        ) from error
    if not isinstance(value, dict):
        raise AnswerError(f"{name} of a version is no mapping; look at it with `git show`")
    return value


def _networks(stages: Mapping[str, Any]) -> dict[str, Any]:
    # The lock holds the settings that a stage really ran with, also those of a matrix instance.
    found: dict[str, Any] = {}
    for name, stage in stages.items():
        settings = stage.get("params", {}).get("params.yaml", {})
        if name.partition("@")[0] in {"pretrain", "scratch"} and isinstance(settings.get("pretrain"), dict):
            found[name.partition("@")[0]] = settings["pretrain"].get("network")
    return found


def read_state(plan: str, lock: str, gain: str | None, schema: str) -> State:
    """The state of a version from the texts of its files.

    Args:
        plan: plan.yaml.
        lock: dvc.lock.
        gain: metrics/gain.json, None without one.
        schema: digest of the shards' columns.
    Raises:
        AnswerError: a text is not of its form.
    """
    planned, locked = _mapping(plan, "plan.yaml"), _mapping(lock, "dvc.lock")
    try:
        stages = locked.get("stages") or {}
        classes = {
            str(slug): (str(row["class_name"]), int(row["label"])) for slug, row in planned.get("classes", {}).items()
        }
        generator = {
            "strategy": planned.get("strategy"),
            "gan": planned.get("versions", {}).get("gan"),
            "networks": _networks(stages),
        }
        outputs = [out for stage in stages.values() for out in stage.get("outs", [])]
        data = [str(out.get("md5", "")) for out in outputs if out["path"] == DATA_PATH]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise AnswerError(
            f"plan.yaml or dvc.lock of a version lacks {error}; look at it with `git show TAG:plan.yaml`"
        ) from error
    return State(
        classes=tuple(sorted(classes.items())),
        generator=json.dumps(generator, sort_keys=True, default=str),
        data="".join(data),
        measured=digest_of(gain) if gain is not None else "",
        schema=schema,
    )
