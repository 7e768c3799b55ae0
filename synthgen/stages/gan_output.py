"""What `pretrain`, `adapt` and `scratch` share around the loop: a fold's training images, and writing a trained GAN.

Owns the content of `models/FOLD/...` beside the weights: history, classes, grids, what was trained on and held out. A
training that came to ruin leaves the same folder, without weights and with the reason.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from synthgen.artifacts import atomic_folder, digest_of, write_json
from synthgen.dataset.prepared import PreparedData, load_prepared, masks_of_index, rows_of_index
from synthgen.errors import TrainingError
from synthgen.gan.architectures.shape import GanShape
from synthgen.gan.checkpoint import TrainedGan, generator_digest, save_failure, save_gan
from synthgen.gan.history import ClassTick, Tick, write_rows
from synthgen.gan.training import GanRun
from synthgen.stages.workspace import Workspace
from synthgen.versions import VERSIONS

MIN_GRID_SIDE = 32


@dataclass(frozen=True)
class TrainingImages:
    """The images that generators of a fold may see, checked against their sha256.

    Attributes:
        data: the prepared data that they are of.
        images: (n, H, W, C) uint8; labels: (n,) int64; groups: (n,) names of objects; sha256: n pixel digests.
        masks: (n, H, W) bool, the user's regions; all False where an image has none. None: no masks were given.
    """

    data: PreparedData
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    groups: NDArray[np.str_]
    sha256: list[str]
    masks: NDArray[np.bool_] | None = None


def training_images(workspace: Workspace, fold: str, slugs: list[str]) -> TrainingImages:
    """Reads the training images of `slugs` in `fold`.

    Raises:
        TrainingError: no image at all.
        ArtifactError: pixels or masks that are not those of the fold's index.
    """
    data = load_prepared(workspace.prepared)
    index = workspace.fold_index(fold)
    rows = rows_of_index(data, index, slugs)
    if len(rows) == 0:
        raise TrainingError(
            f"fold {fold}: none of {', '.join(slugs)} has a training image; see data/prepared/quarantine.csv"
        )
    return TrainingImages(
        data,
        data.verified(rows),
        data.labels[rows],
        data.groups[rows],
        data.sha256[rows].tolist(),
        masks_of_index(data, index, rows),
    )


def shape_for(workspace: Workspace, data: PreparedData) -> GanShape:
    """Network shape for this data and params.yaml."""
    _, height, _, channels = data.images.shape
    return GanShape.of(workspace.config.pretrain.network, height, channels, len(data.slugs))


def scratch_folder(workspace: Workspace, stage: str, decides: dict[str, Any]) -> Path:
    """Where the unfinished state of one training lies; another config or other images give another folder.

    Args:
        workspace: the project.
        stage: verb of the command line.
        decides: JSON values of everything that decides the training, beside params.yaml.
    """
    config = workspace.config
    key = digest_of(
        {
            "stage": stage,
            "pretrain": config.pretrain.model_dump(mode="json"),
            "transforms": config.transforms.model_dump(mode="json"),
            "version": VERSIONS["gan"],
            "torch": torch.__version__,
            **decides,
        }
    )
    return workspace.scratch / f"{stage}-{key[:24]}"


def write_run(
    folder: Path,
    run: GanRun,
    about: dict[str, Any],
    trained_on: list[str],
    beside: Callable[[Path], None] | None = None,
) -> None:
    """Writes a finished training into `folder`, all or nothing.

    Args:
        folder: `models/FOLD/...`.
        run: what `train_gan` returned.
        about: kind, fold, slugs, seed, and what was asked for.
        trained_on: pixel sha256 of every image that the weights have seen or were judged by.
        beside: writes what else belongs into the folder.
    """
    digest = generator_digest(run.generator, about["slugs"])
    seen = sorted(set(trained_on))
    best = None if run.best is None else run.history[run.best].kimg
    course = {
        "best_kimg": best,
        "stopped": run.stopped,
        "rollbacks": [asdict(rollback) for rollback in run.rollbacks],
        "trained_on": digest_of(seen),
    }
    with atomic_folder(folder) as partial:
        save_gan(partial, TrainedGan(run.generator, run.discriminator, {**about, **course}, digest))
        write_json(partial / "trained_on.json", seen)
        write_rows(partial / "history.csv", Tick, run.history)
        write_rows(partial / "classes.csv", ClassTick, run.classes)
        (partial / "grids").mkdir()
        for tick, grid in zip(run.history, run.grids, strict=True):
            save_grid(partial / "grids" / f"{round(tick.kimg * 1000):09d}.png", grid)
        save_grid(partial / "grid.png", run.grids[-1 if run.best is None else run.best])
        if beside is not None:
            beside(partial)


def write_failure(folder: Path, about: dict[str, Any], trained_on: list[str], reason: str) -> None:
    """Writes down that a class has no generator of its own, so that the pipeline goes on without it."""
    seen = sorted(set(trained_on))
    with atomic_folder(folder) as partial:
        save_failure(partial, {**about, "trained_on": digest_of(seen)}, reason)
        write_json(partial / "trained_on.json", seen)


def save_grid(path: Path, grid: NDArray[np.uint8]) -> None:
    """Writes (rows, columns, H, W, C) uint8 images as one PNG, small ones enlarged by whole pixels."""
    n_rows, n_columns, height, width, channels = grid.shape
    sheet = grid.transpose(0, 2, 1, 3, 4).reshape(n_rows * height, n_columns * width, channels)
    factor = max(1, -(-MIN_GRID_SIDE // height))
    sheet = sheet.repeat(factor, axis=0).repeat(factor, axis=1)
    Image.fromarray(sheet[..., 0] if channels == 1 else sheet).save(path)
