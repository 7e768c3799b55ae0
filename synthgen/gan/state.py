"""The whole state of an unfinished training on disk, so that a killed one goes on where it was.

Owns a git-ignored scratch folder of one training, which its caller names by a digest of everything that decides the
training: another config or other images never find it. A state is a safetensors file and values in JSON that hold the
sha256 of both, written beside and renamed; the last two are kept, and a damaged one falls back to the one before.
"""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from synthgen.artifacts import TEMPORARY_SUFFIX, atomic_folder, digest_of, read_json, sha256_file, write_json
from synthgen.errors import ArtifactError

logger = logging.getLogger(__name__)

N_KEPT = 2


@dataclass(frozen=True)
class Snapshot:
    """Everything that a training needs to go on.

    Attributes:
        tensors: name -> tensor on the CPU, owned by the snapshot.
        values: JSON values: step, sampler states, history...
    """

    tensors: dict[str, Tensor]
    values: dict[str, Any]


def _states(folder: Path) -> list[Path]:
    return sorted(folder.glob("state-[0-9]*"), reverse=True)


def save_snapshot(folder: Path, snapshot: Snapshot, step: int) -> None:
    """Writes the state after `step` steps and forgets all but the last two.

    Raises:
        ArtifactError: the disk is full or cannot be written; earlier states are kept.
    """
    with atomic_folder(folder / f"state-{step:012d}") as partial:
        tensors = partial / "tensors.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in snapshot.tensors.items()}, tensors)
        digests = {"sha256": sha256_file(tensors), "values_sha256": digest_of(snapshot.values)}
        write_json(partial / "values.json", {**digests, **snapshot.values})
    written = [state for state in _states(folder) if int(state.name.removeprefix("state-")) <= step]
    for other in set(_states(folder)) - set(written[:N_KEPT]):
        # older ones, and damaged ones of later steps, which would shadow what was written now
        shutil.rmtree(other, ignore_errors=True)


def load_snapshot(folder: Path) -> Snapshot | None:
    """The newest whole state in `folder`, or None; what a kill left half-written is removed."""
    for partial in folder.glob(f".state-*{TEMPORARY_SUFFIX}"):
        shutil.rmtree(partial, ignore_errors=True)
    for state in _states(folder):
        try:
            values = read_json(state / "values.json")
            tensors = state / "tensors.safetensors"
            expected = (values.pop("sha256"), values.pop("values_sha256"))
            if expected != (sha256_file(tensors), digest_of(values)):
                raise ArtifactError(f"{tensors} or its values are not what was written")
            return Snapshot(load_file(tensors), values)
        except (ArtifactError, OSError, KeyError, AttributeError, TypeError, SafetensorError) as error:
            logger.warning("%s cannot be used (%s); going on from an earlier state", state, error)
    return None


def remove_snapshots(folder: Path) -> None:
    """Forgets a finished training."""
    shutil.rmtree(folder, ignore_errors=True)
