"""acceptance.json of `data/synthetic/FOLD/`: how many candidates of each shard were kept, and why others were not.

Owns reading it back, checked. Writing is the work of the stage that selects.
"""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from synthgen.artifacts import read_json
from synthgen.errors import ArtifactError

SHARD_SUFFIX = ".parquet"


class Acceptance(BaseModel):
    """Selection of one shard.

    `rejected` counts candidates by reason; `refused` says why the whole shard was emptied, if it was;
    `generator_digest` is empty where there was no generator; `diversity_ratio` is the spread of accepted samples over
    that of real ones; `projection` says how well training images were found in latent space, where samples were drawn
    between them; `pairs` how many pairs of training images morphs were tried between, and between how many they are.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    candidates: int
    accepted: int
    rejected: dict[str, int] = {}
    generator_digest: str = ""
    refused: str | None = None
    diversity_ratio: float | None = None
    projection: dict[str, float] | None = None
    pairs: dict[str, int] | None = None

    @property
    def rate(self) -> float | None:
        """Accepted over candidates; None where nothing was drawn."""
        return self.accepted / self.candidates if self.candidates else None


def read_acceptance(path: Path) -> dict[str, Acceptance]:
    """Shard name (`synthgen.dataset.pools`) -> its selection.

    Raises:
        ArtifactError: missing, damaged or of another form.
    """
    values: Any = read_json(path)
    if isinstance(values, dict) and isinstance(values.get("shards"), dict):
        values = values["shards"]
    if not isinstance(values, dict):
        raise ArtifactError(f"{path} is not an object of shards; run `dvc repro synthesize` to write it again")
    try:
        return {
            name.removesuffix(SHARD_SUFFIX): Acceptance.model_validate(entry)
            for name, entry in values.items()
            if isinstance(entry, dict)
        }
    except ValidationError as error:
        first = error.errors()[0]
        dotted = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(
            f"{path}: {dotted}: {first['msg']}; run `dvc repro synthesize` to write it again"
        ) from error
