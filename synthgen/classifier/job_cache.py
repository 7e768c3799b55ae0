"""Predictions of finished trainings, kept until their stage has written its output: what a killed stage goes on from.

Owns `.synthgen/scratch/classifier-ARM/`: a Parquet file and its sha256 per training, named by a digest of everything
that decides the result, so that another config, other rows, another bank, other synthetic images or another torch
never find a file there. Refuses, by having it trained again, a file that does not match its sha256.
"""

import logging
import platform
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from synthgen.artifacts import atomic_file, digest_of, sha256_bytes, sha256_file
from synthgen.classifier.job_records import TrainingContext, TrainingJob
from synthgen.classifier.pasted_pool import pasting_identity
from synthgen.classifier.pseudo_labels import pool_identity
from synthgen.dataset.predictions import Predictions, load_predictions, save_predictions
from synthgen.errors import ArtifactError, MeasurementError
from synthgen.versions import VERSIONS

SCRATCH_FOLDER = ".synthgen/scratch"

_log = logging.getLogger(__name__)


@contextmanager
def kept_predictions(root: Path, arm_name: str) -> Iterator[Path]:
    """The folder for the finished trainings of one arm; removed when the block ends without an error.

    Args:
        root: of the project.
        arm_name: what a run of another config left for this arm goes away with it.
    Yields:
        the folder, which may not exist yet.
    """
    folder = root / SCRATCH_FOLDER / f"classifier-{arm_name}"
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def job_digests(jobs: Sequence[TrainingJob], context: TrainingContext) -> list[str]:
    """What decides the predictions of each job, as a hex sha256.

    Args:
        jobs: in any number.
        context: shared by all.
    Returns:
        one digest per job: of the arm, the classifier section, shares, seeds, the rows trained on and predicted
        (pixel sha256, label, group), the content of the banks and of the synthetic images that the arm draws from,
        what composites are made of, the unlabelled images of `pseudo_labelled`,
        the device, the versions of torch, torchvision and numpy, and `synthgen.versions`.
    """
    shared = {
        "section": context.section.model_dump(),
        "real_share": context.real_share,
        "mix_alpha": context.mix_alpha,
        "seed": context.seed,
        "slugs": context.data.slugs,
        "device": context.device.type,
        "machine": platform.machine(),
        "libraries": _library_versions(),
        "versions": VERSIONS,
    }
    banks: dict[str, str] = {}
    pools: dict[str, str] = {}
    digests = []
    for job in jobs:
        policies = {job.arm.transforms, "mild" if job.arm.real_pool == "control" else None}
        for policy in (policy for policy in policies if policy and policy not in banks):
            bank = context.banks[policy]
            banks[policy] = digest_of([digest_of_array(bank.images), bank.starts.tolist()])
        if job.arm.mixing is not None and job.fold in context.synthetic and job.fold not in pools:
            pool = context.synthetic[job.fold]
            sureness = None if pool.sureness is None else digest_of_array(pool.sureness)
            pools[job.fold] = digest_of([digest_of_array(pool.images), pool.labels.tolist(), sureness])
        own = {
            "arm": asdict(job.arm),
            "fold": job.fold,
            "repeat": job.repeat,
            "stream": job.stream,
            "train": [*_identity(context, job.train), context.bank_rows[job.train].tolist()],
            "parts": [[name, *_identity(context, rows)] for name, rows in job.parts],
            "banks": {policy: banks[policy] for policy in policies if policy},
            "synthetic": pools.get(job.fold) if job.arm.mixing is not None else None,
            "pasted": pasting_identity(job, context),
        }
        if job.arm.real_pool == "pseudo_labelled" and context.unlabelled is not None:
            own["pseudo"] = pool_identity(context.unlabelled)
        digests.append(digest_of([shared, own]))
    return digests


def _identity(context: TrainingContext, rows: NDArray[np.int64]) -> list[Any]:
    data = context.data
    return [data.sha256[rows].tolist(), data.labels[rows].tolist(), data.groups[rows].tolist()]


def _library_versions() -> dict[str, str]:
    import importlib.metadata

    return {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "torchvision": importlib.metadata.version("torchvision"),
    }


def digest_of_array(array: NDArray[Any]) -> str:
    """Hex sha256 of dtype, shape and values."""
    values = np.ascontiguousarray(array)
    return sha256_bytes(f"{values.dtype.str}{values.shape}".encode() + values.tobytes())


def keep(folder: Path, digest: str, predictions: Predictions) -> None:
    """Writes the predictions of one finished training, atomically; its sha256 last, which makes them count.

    Raises:
        ArtifactError: the disk refuses.
        MeasurementError: logits that are not finite.
    """
    path = folder / f"{digest}.parquet"
    save_predictions(path, predictions)
    with atomic_file(path.with_suffix(".sha256")) as temporary:
        temporary.write_text(sha256_file(path) + "\n", encoding="ascii")


def find_kept(folder: Path, digest: str) -> Predictions | None:
    """The predictions kept under `digest`, or None where there are none or the file is damaged."""
    path = folder / f"{digest}.parquet"
    try:
        expected = path.with_suffix(".sha256").read_text(encoding="ascii").strip()
        if sha256_file(path) == expected:
            return load_predictions(path)
        _log.warning("%s no longer matches its sha256; that training is done again", path)
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, ArtifactError, MeasurementError) as error:
        _log.warning("%s cannot be read (%s); that training is done again", path, error)
    return None
