"""`synthgen scratch --fold FOLD --slug SLUG`: a GAN of one class, trained on that class alone.

The strategy `scratch` shares nothing between classes: an image more in one class re-runs no other class's
generator, at the price of what sharing teaches. Writes `models/FOLD/scratch-SLUG/`.
"""

import logging

import torch

from synthgen.errors import DivergedError
from synthgen.gan.distributed import ALONE, Peers
from synthgen.gan.state import remove_snapshots
from synthgen.gan.training import train_gan
from synthgen.seeding import derive_seed
from synthgen.stages.gan_output import scratch_folder, shape_for, training_images, write_failure, write_run
from synthgen.stages.gan_watch import make_watch
from synthgen.stages.translation import check_generator
from synthgen.stages.workspace import Workspace

logger = logging.getLogger(__name__)


def run_scratch(workspace: Workspace, fold: str, slug: str, device: torch.device, peers: Peers = ALONE) -> None:
    """Trains the GAN of `slug` in `fold` from nothing, with `peers`, of which the first alone writes.

    Raises:
        ConfigError: an architecture that cannot be trained on one class.
        TrainingError: see `train_gan`.
    """
    config = workspace.config
    check_generator(config)
    training = training_images(workspace, fold, [workspace.known_slug(slug)])
    seed = derive_seed(config.seed, "scratch", fold, slug)
    section = config.pretrain
    watch = make_watch(training, section.monitor, seed, device, looks=peers.leads)
    seen = watch.seen(training)
    about = {
        "kind": "scratch",
        "fold": fold,
        "slug": slug,
        "slugs": training.data.slugs,
        "seed": seed,
        "kimg": config.scratch.kimg,
    }
    folder = workspace.scratch_model(fold, slug)
    scratch = scratch_folder(workspace, "scratch", {**about, "images": training.sha256, "device": device.type})
    try:
        run = train_gan(
            training.images[seen],
            training.labels[seen],
            shape_for(workspace, training.data),
            section,
            config.transforms,
            kimg=config.scratch.kimg,
            seed=seed,
            device=device,
            monitor=watch.monitor(
                training, section.monitor, seed, device, conditional=section.network.conditioning != "none"
            )
            if peers.leads
            else None,
            scratch=scratch,
            description=f"scratch {fold} {slug}",
            peers=peers,
        )
    except DivergedError as error:
        logger.error("%s; class %s goes on without a generator", error, slug)
        if peers.leads:
            write_failure(folder, about, training.sha256, str(error))
    else:
        if peers.leads:
            write_run(folder, run, about, training.sha256)
    if peers.leads:
        remove_snapshots(scratch)
