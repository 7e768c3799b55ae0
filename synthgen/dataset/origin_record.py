"""shortcut.json of `data/synthetic/FOLD/`: what the shortcut probe found for each pool of synthetic images.

Owns its form (docs/schema.md) and reading it back, checked. Measuring is the work of `synthgen.metrics.shortcut`.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from synthgen.artifacts import read_json
from synthgen.errors import ArtifactError

ORIGIN_FILE = "shortcut.json"


class ClassOrigin(BaseModel):
    """One class: images looked at, area under the curve with its standard error, or the reason why there is none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_real: int
    n_objects: int
    n_synthetic: int
    auc: float | None
    error: float | None
    reason: str | None


class PoolOrigin(BaseModel):
    """One pool: means over the classes that could be measured (None without any), and each class by its slug."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    auc: float | None
    error: float | None
    hit: float | None
    false_alarm: float | None
    classes: dict[str, ClassOrigin]


class OriginRecord(BaseModel):
    """The whole file; `pools` holds `default`, `shared` where classes have generators of their own, and
    `morphed` where morphs were made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    form: Literal[1] = 1
    pools: dict[str, PoolOrigin]

    def pool(self, name: str) -> PoolOrigin:
        """The pool of that name; where all classes share one generator, that is the default one."""
        return self.pools.get(name, self.pools["default"])


def read_origin(folder: Path) -> OriginRecord:
    """What the probe found in one fold.

    Args:
        folder: `data/synthetic/FOLD`.
    Raises:
        ArtifactError: missing, damaged or of another form.
    """
    path = folder / ORIGIN_FILE
    try:
        record = OriginRecord.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        dotted = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(
            f"{path}: {dotted}: {first['msg']}; run `dvc repro synthesize` to write it again"
        ) from error
    if "default" not in record.pools:
        raise ArtifactError(f"{path} has no pool `default`; run `dvc repro synthesize` to write it again")
    return record
