"""What `pretrain` and `adapt` share: loading a fold's training images and writing a trained GAN.

Owns the content of `models/FOLD/...` beside the weights: history, grids and the list of images trained on.
"""

import csv
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from synthgen.artifacts import atomic_folder, digest_of, write_json
from synthgen.dataset.prepared import PreparedData, load_prepared, rows_of_index
from synthgen.errors import TrainingError
from synthgen.gan.checkpoint import TrainedGan, generator_digest, save_gan
from synthgen.gan.networks import GanShape
from synthgen.gan.training import GanRun, Tick
from synthgen.stages.workspace import Workspace

MIN_GRID_SIDE = 32


def training_images(
    workspace: Workspace, fold: str, slugs: list[str]
) -> tuple[PreparedData, NDArray[np.uint8], NDArray[np.int64], list[str]]:
    """The images that generators of a fold may see, checked against their sha256.

    Args:
        workspace: the project.
        fold: whose train index is read.
        slugs: classes wanted.
    Returns:
        the prepared data, (n, H, W, C) uint8 images, (n,) int64 labels and their n pixel digests.
    Raises:
        TrainingError: no image at all.
    """
    data = load_prepared(workspace.prepared)
    rows = rows_of_index(data, workspace.fold_index(fold), slugs)
    if len(rows) == 0:
        raise TrainingError(
            f"fold {fold}: none of {', '.join(slugs)} has a training image; see data/prepared/quarantine.csv"
        )
    return data, data.verified(rows), data.labels[rows], data.sha256[rows].tolist()


def shape_for(workspace: Workspace, data: PreparedData) -> GanShape:
    """Network shape for this data and params.yaml."""
    _, height, _, channels = data.images.shape
    return GanShape.of(workspace.config.pretrain.network, height, channels, len(data.slugs))


def write_run(folder: Path, run: GanRun, about: dict[str, Any], trained_on: list[str]) -> None:
    """Writes a finished training into `folder`, all or nothing.

    Args:
        folder: `models/FOLD/...`.
        run: what `train_gan` returned.
        about: kind, fold, slugs, seed, and what was asked for.
        trained_on: pixel sha256 of every image that the weights have seen.
    """
    digest = generator_digest(run.generator, about["slugs"])
    seen = sorted(set(trained_on))
    with atomic_folder(folder) as partial:
        save_gan(
            partial, TrainedGan(run.generator, run.discriminator, {**about, "trained_on": digest_of(seen)}, digest)
        )
        write_json(partial / "trained_on.json", seen)
        with (partial / "history.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, [field.name for field in fields(Tick)], lineterminator="\n")
            writer.writeheader()
            writer.writerows({k: round(v, 6) for k, v in asdict(tick).items()} for tick in run.history)
        (partial / "grids").mkdir()
        for tick, grid in zip(run.history, run.grids, strict=True):
            save_grid(partial / "grids" / f"{round(tick.kimg * 1000):09d}.png", grid)
        save_grid(partial / "grid.png", run.grids[-1])


def save_grid(path: Path, grid: NDArray[np.uint8]) -> None:
    """Writes (rows, columns, H, W, C) uint8 images as one PNG, small ones enlarged by whole pixels."""
    n_rows, n_columns, height, width, channels = grid.shape
    sheet = grid.transpose(0, 2, 1, 3, 4).reshape(n_rows * height, n_columns * width, channels)
    factor = max(1, -(-MIN_GRID_SIDE // height))
    sheet = sheet.repeat(factor, axis=0).repeat(factor, axis=1)
    Image.fromarray(sheet[..., 0] if channels == 1 else sheet).save(path)
