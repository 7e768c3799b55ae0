"""What `evaluate`, `challenge` and `synthesize` share: the verified reals of a run and their rendered variants."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from synthgen.classifier.arms import ArmSpec
from synthgen.classifier.jobs import TrainingContext, process_pool
from synthgen.classifier.training import SyntheticImages
from synthgen.dataset.prepared import PreparedData
from synthgen.dataset.transforms import Policy, TransformBank, render_bank
from synthgen.records import FINAL
from synthgen.stages.workspace import Workspace

BANK_FOLDER = ".synthgen/banks"


def policies_of(arms: list[ArmSpec]) -> list[Policy]:
    """Transform policies whose variants these arms draw from."""
    wanted: list[Policy] = [arm.transforms for arm in arms if arm.transforms]
    if any(arm.real_pool == "control" for arm in arms):
        wanted.append("mild")
    return sorted(set(wanted))


def variant_counts(data: PreparedData, folds: list[str], n_draws: int) -> NDArray[np.int64]:
    """How many variants of each pool image a balanced training can draw.

    Args:
        data: the prepared data.
        folds: measured folds.
        n_draws: steps x batch.
    Returns:
        (n,) int64 for the rows of `split("final").train`: in the fold where its class has the fewest images, no
        variant of an image is drawn twice.
    """
    rows = data.split(FINAL).train
    n_classes = len(data.slugs)
    fewest = np.full(n_classes, np.iinfo(np.int64).max)
    for fold in [*folds, FINAL]:
        counted = np.bincount(data.labels[data.split(fold).train], minlength=n_classes)
        # a fold without an image of a class draws none, and must not ask for a whole training's draws of each
        fewest = np.where(counted > 0, np.minimum(fewest, counted), fewest)
    per_class = np.ceil(n_draws / n_classes / fewest).astype(np.int64)
    counts: NDArray[np.int64] = np.maximum(per_class, 1)[data.labels[rows]]
    return counts


def build_context(
    workspace: Workspace,
    data: PreparedData,
    arms: list[ArmSpec],
    synthetic: dict[str, SyntheticImages],
    *,
    device: torch.device,
    n_workers: int,
) -> TrainingContext:
    """Verifies the images, renders what the arms need, and puts it together."""
    config = workspace.config
    section = config.evaluate
    images = data.verified(np.arange(len(data.labels), dtype=np.int64))
    pool = data.split(FINAL).train
    bank_rows = np.full(len(data.labels), -1, dtype=np.int64)
    bank_rows[pool] = np.arange(len(pool))
    n_draws = config.classifier.steps * config.classifier.batch
    counts = variant_counts(data, workspace.plan.measured_folds, n_draws)
    banks: dict[str, TransformBank] = {}
    with process_pool(n_workers) as executor:
        for policy in policies_of(arms):
            banks[policy] = render_bank(
                images[pool],
                data.sha256[pool].tolist(),
                counts,
                policy,
                config.transforms,
                seed=config.seed,
                cache=workspace.root / Path(BANK_FOLDER),
                executor=executor,
                n_chunks=4 * n_workers,
            )
    return TrainingContext(
        data=data,
        images=images,
        bank_rows=bank_rows,
        banks=banks,
        synthetic=synthetic,
        section=config.classifier,
        share=config.challenge.share,
        real_share=section.share,
        mix_alpha=section.mix_alpha,
        seed=config.seed,
        device=device,
    )
