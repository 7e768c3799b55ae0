"""`synthgen scratch --fold FOLD --slug SLUG`: a GAN of one class, trained on that class alone.

The strategy `scratch` shares nothing between classes: an image more in one class re-runs no other class's
generator, at the price of what sharing teaches. Writes `models/FOLD/scratch-SLUG/`.
"""

import torch

from synthgen.gan.training import train_gan
from synthgen.seeding import derive_seed
from synthgen.stages.gan_output import shape_for, training_images, write_run
from synthgen.stages.workspace import Workspace


def run_scratch(workspace: Workspace, fold: str, slug: str, device: torch.device) -> None:
    """Trains the GAN of `slug` in `fold` from nothing.

    Raises:
        TrainingError: see `train_gan`.
    """
    config = workspace.config
    data, images, labels, sha256 = training_images(workspace, fold, [workspace.known_slug(slug)])
    seed = derive_seed(config.seed, "scratch", fold, slug)
    run = train_gan(
        images,
        labels,
        shape_for(workspace, data),
        config.pretrain,
        config.transforms,
        kimg=config.scratch.kimg,
        seed=seed,
        device=device,
        description=f"scratch {fold} {slug}",
    )
    about = {
        "kind": "scratch",
        "fold": fold,
        "slug": slug,
        "slugs": data.slugs,
        "seed": seed,
        "kimg": config.scratch.kimg,
    }
    write_run(workspace.scratch_model(fold, slug), run, about, sha256)
