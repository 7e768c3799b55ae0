"""The composites of one classifier training, in the arms `paste` and `paste_whole`.

Owns their seeds, their number and the rows they may be made of: the training rows of the job, never a row that it
predicts. How they are made is `synthgen.dataset.pasted_pool`'s.
"""

import importlib.metadata
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthgen.artifacts import sha256_bytes
from synthgen.classifier.arms import PASTING, ArmSpec
from synthgen.classifier.job_records import TrainingContext, TrainingJob
from synthgen.dataset.pasted_pool import (
    WHOLE_FEATHER,
    PastedPool,
    PasteRules,
    Regions,
    TrainImages,
    compose_pool,
    find_regions,
    whole_regions,
)
from synthgen.errors import TrainingError
from synthgen.seeding import numpy_generator


def build_pasted_pool(job: TrainingJob, context: TrainingContext) -> PastedPool | None:
    """The composites that a job draws its share of; None for arms that have none.

    Args:
        job: only its training rows are looked at.
        context: `context.paste` says how.
    Returns:
        as many as are drawn, up to `MAX_COMPOSITES`; the same for equal seed, fold, stream and rows.
    Raises:
        TrainingError: the context has no rules for pasting, or no class gives backgrounds.
    """
    n = context.section.steps * round(context.real_share * context.section.batch)
    if job.arm.real_pool not in PASTING or n == 0:
        return None
    rules = _rules(context)
    train = _train_images(context, job.train)
    rng = numpy_generator(context.seed, "pasted", job.fold, job.stream)
    if job.arm.real_pool == "paste":
        regions, ranges = _regions(context, train, job.fold), rules.ranges
    else:
        regions = whole_regions(train, rules.scarce, n, rng)
        ranges = replace(rules.ranges, anywhere=False, feather=WHOLE_FEATHER, shading=False)
    return compose_pool(train, regions, n, ranges, rng)


def describe_regions(arm: ArmSpec, context: TrainingContext, folds: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What arm.json says of the regions of `paste`: `{FOLD: {"regions": {SLUG: {origin, n}}, "backgrounds": SLUG}}`.

    `origin` is `masks` (the user's), `weak masks` or `none`; `n` counts images with a region among the fold's
    training rows. `{FOLD: {}}` for any other arm.

    Args:
        arm: the way of training.
        context: see `build_pasted_pool`.
        folds: measured folds.
    Raises:
        TrainingError: no class of a fold has a region, so that the arm would paste nothing.
    """
    record: dict[str, dict[str, Any]] = {fold: {} for fold in folds}
    if arm.real_pool != "paste":
        return record
    slugs = context.data.slugs
    for fold in folds:
        regions = _regions(context, _train_images(context, context.data.split(fold).train), fold)
        if not regions.banks:
            raise TrainingError(
                f"arm {arm.name}, fold {fold}: no class has a training image with a mask, and none was found by "
                "comparison with the plentiful class; set prepare.masks, or take paste_whole instead"
            )
        record[fold] = {
            "backgrounds": slugs[regions.background],
            "regions": {
                slugs[label]: {"origin": origin, "n": len(regions.banks[label].rows) if label in regions.banks else 0}
                for label, origin in regions.origins.items()
            },
        }
    return record


def pasting_identity(job: TrainingJob, context: TrainingContext) -> dict[str, Any] | None:
    """What decides a job's composites beside its rows and seeds, for its digest; None for arms that have none."""
    if job.arm.real_pool not in PASTING:
        return None
    masks = context.data.masks
    whole = job.arm.real_pool == "paste_whole" or masks is None
    return {
        "rules": asdict(_rules(context)),
        "masks": None if whole or masks is None else sha256_bytes(np.packbits(masks[job.train]).tobytes()),
        "scipy": importlib.metadata.version("scipy"),
    }


def _rules(context: TrainingContext) -> PasteRules:
    if context.paste is None:
        raise TrainingError("the arms paste and paste_whole need rules for pasting; set `paste` of the context")
    return context.paste


def _train_images(context: TrainingContext, rows: NDArray[np.int64]) -> TrainImages:
    data = context.data
    masks = None if data.masks is None else np.asarray(data.masks[rows])
    return TrainImages(context.images[rows], data.labels[rows], rows, masks, data.groups[rows])


def _regions(context: TrainingContext, train: TrainImages, fold: str) -> Regions:
    # one stream per fold: repeats, which share their rows, find the same weak masks
    return find_regions(train, _rules(context).scarce, numpy_generator(context.seed, "weak masks", fold))
