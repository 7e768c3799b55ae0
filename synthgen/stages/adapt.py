"""`synthgen adapt --fold FOLD --slug SLUG`: the shared GAN of a fold, fine-tuned to one scarce class.

The class is shown more often than the others, which stay in the game so that what was learned from them is kept.
Writes `models/FOLD/adapted-SLUG/`.
"""

import torch

from synthgen.artifacts import read_json
from synthgen.gan.checkpoint import load_gan
from synthgen.gan.training import train_gan
from synthgen.seeding import derive_seed
from synthgen.stages.gan_output import training_images, write_run
from synthgen.stages.workspace import Workspace


def run_adapt(workspace: Workspace, fold: str, slug: str, device: torch.device) -> None:
    """Adapts the shared GAN of `fold` to the class `slug`.

    Raises:
        ArtifactError: the shared GAN is missing or altered.
        TrainingError: see `train_gan`.
    """
    config = workspace.config
    section = config.adapt
    data, images, labels, sha256 = training_images(workspace, fold, workspace.plan.slugs)
    shared = workspace.shared_model(fold)
    start = load_gan(shared, device)
    own = workspace.plan.classes[workspace.known_slug(slug)].label
    others = sorted(set(labels.tolist()) - {own})
    weights = {label: section.shared_share / max(len(others), 1) for label in others}
    weights[own] = 1.0 - section.shared_share
    seed = derive_seed(config.seed, "adapt", fold, slug)
    run = train_gan(
        images,
        labels,
        start.generator.shape,
        config.pretrain,
        config.transforms,
        kimg=section.kimg,
        seed=seed,
        device=device,
        weights=weights,
        start=start,
        lr_factor=section.lr_factor,
        description=f"adapt {fold} {slug}",
    )
    about = {
        "kind": "adapted",
        "fold": fold,
        "slug": slug,
        "slugs": data.slugs,
        "seed": seed,
        "kimg": section.kimg,
        "started_from": start.digest,
    }
    write_run(workspace.adapted_model(fold, slug), run, about, sha256 + read_json(shared / "trained_on.json"))
