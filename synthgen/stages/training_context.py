"""What `evaluate`, `challenge` and `synthesize` share: the verified reals of a run and their rendered variants."""

import math
from collections.abc import Mapping
from concurrent.futures import Executor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from synthgen.classifier.arms import PASTING, ArmSpec
from synthgen.classifier.draws import SyntheticImages
from synthgen.classifier.jobs import TrainingContext, process_pool
from synthgen.classifier.pretrained import load_weights
from synthgen.classifier.pseudo_labels import UnlabelledPool
from synthgen.dataset.mixing import MixingPolicy
from synthgen.dataset.pasted_pool import PasteRules
from synthgen.dataset.pasting import PasteRanges
from synthgen.dataset.prepared import PreparedData, pixel_sha256
from synthgen.dataset.transforms import Policy, TransformBank, render_bank
from synthgen.dataset.unlabelled import load_unlabelled
from synthgen.errors import ConfigError
from synthgen.records import FINAL
from synthgen.stages.workspace import Workspace

BANK_FOLDER = ".synthgen/banks"


def policies_of(arms: list[ArmSpec]) -> list[Policy]:
    """Transform policies whose variants these arms draw from."""
    wanted: list[Policy] = [arm.transforms for arm in arms if arm.transforms]
    if any(arm.real_pool == "control" for arm in arms):
        wanted.append("mild")
    return sorted(set(wanted))


def variant_counts(
    data: PreparedData, folds: list[str], n_draws: int, thinnest: Mapping[int, float] | None = None
) -> NDArray[np.int64]:
    """How many variants of each pool image a balanced training can draw.

    Args:
        data: the prepared data.
        folds: measured folds.
        n_draws: steps x batch.
        thinnest: label -> the least share of a fold's images of that class that a training has; of others it has all.
    Returns:
        (n,) int64 for the rows of `split("final").train`: in the fold where its class has the fewest images, no
        variant of an image is drawn twice.
    """
    rows = data.split(FINAL).train
    n_classes = len(data.slugs)
    least = np.array([(thinnest or {}).get(label, 1.0) for label in range(n_classes)])
    fewest = np.full(n_classes, np.iinfo(np.int64).max)
    for fold in [*folds, FINAL]:
        counted = np.bincount(data.labels[data.split(fold).train], minlength=n_classes)
        # a fold without an image of a class draws none, and must not ask for a whole training's draws of each
        left = np.maximum(np.floor(counted * least), 1).astype(np.int64)
        fewest = np.where(counted > 0, np.minimum(fewest, left), fewest)
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
    thinnest: Mapping[int, float] | None = None,
) -> TrainingContext:
    """Verifies the images, renders what the arms need, and puts it together; `thinnest`: see `variant_counts`.

    Raises:
        ArtifactError: a prepared image was altered.
        ConfigError: an arm that needs unlabelled images where there are none; or see `load_weights`.
    """
    config = workspace.config
    section = config.evaluate
    images = data.verified(np.arange(len(data.labels), dtype=np.int64))
    pool = data.split(FINAL).train
    bank_rows = np.full(len(data.labels), -1, dtype=np.int64)
    bank_rows[pool] = np.arange(len(pool))
    n_draws = config.classifier.steps * config.classifier.batch
    counts = variant_counts(data, workspace.plan.measured_folds, n_draws, thinnest)
    banks: dict[str, TransformBank] = {}
    unlabelled: UnlabelledPool | None = None
    with process_pool(n_workers) as executor:
        if any(arm.real_pool == "pseudo_labelled" for arm in arms):
            unlabelled = _unlabelled_pool(workspace, executor, 4 * n_workers)
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
        real_share=section.share,
        mix_alpha=section.mix_alpha,
        seed=config.seed,
        device=device,
        paste=_paste_rules(workspace, data) if any(arm.real_pool in PASTING for arm in arms) else None,
        unlabelled=unlabelled,
        weights=load_weights(workspace.root, config.classifier),
    )


def _unlabelled_pool(workspace: Workspace, executor: Executor | None, n_chunks: int) -> UnlabelledPool:
    """Every unlabelled image with enough variants for the pool's draws, were they spread over all of them."""
    config = workspace.config
    found = load_unlabelled(workspace.prepared)
    if found is None:
        raise ConfigError(
            "the arm pseudo_labelled needs images without a label, and data/prepared has none; name a folder of them "
            "in source.unlabelled, or take the arm out of evaluate.arms and challenge.arms"
        )
    images = found.verified()
    n_draws = config.classifier.steps * round(config.evaluate.share * config.classifier.batch)
    counts = np.full(len(images), max(1, math.ceil(n_draws / len(images))), dtype=np.int64)
    bank = render_bank(
        images,
        found.sha256.tolist(),
        counts,
        "classical",
        config.transforms,
        seed=config.seed,
        cache=workspace.root / Path(BANK_FOLDER),
        executor=executor,
        n_chunks=n_chunks,
    )
    return UnlabelledPool(images, found.sha256, bank)


def _paste_rules(workspace: Workspace, data: PreparedData) -> PasteRules:
    scarce = tuple(data.slugs.index(slug) for slug in workspace.plan.scarce_slugs)
    return PasteRules(PasteRanges.of(workspace.config.transforms), scarce)


def render_synthetic(
    workspace: Workspace, synthetic: SyntheticImages, policy: MixingPolicy, *, n_workers: int
) -> SyntheticImages:
    """The synthetic images as a training shows them: transformed variants where the policy wants them.

    Args:
        synthetic: as selected.
        policy: `transforms` and how many are drawn.
        n_workers: processes that render.
    Returns:
        every variant as an image of its own; as many of each as a training draws, so that none comes twice.
    """
    if policy.transforms == "none" or not len(synthetic.labels):
        return synthetic
    config = workspace.config
    n_draws = policy.share() * config.classifier.steps * config.classifier.batch
    n_each = max(1, math.ceil(n_draws / len(synthetic.labels)))
    with process_pool(n_workers) as executor:
        bank = render_bank(
            synthetic.images,
            [pixel_sha256(image) for image in synthetic.images],
            np.full(len(synthetic.labels), n_each, dtype=np.int64),
            "mild" if policy.transforms == "mild" else "classical",
            config.transforms,
            seed=config.seed,
            cache=workspace.root / Path(BANK_FOLDER),
            executor=executor,
            n_chunks=4 * n_workers,
        )
    sureness = None if synthetic.sureness is None else np.repeat(synthetic.sureness, n_each)
    return SyntheticImages(bank.images, np.repeat(synthetic.labels, n_each), sureness)
