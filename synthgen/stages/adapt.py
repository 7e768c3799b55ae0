"""`synthgen adapt --fold FOLD --slug SLUG`: the shared GAN of a fold, fine-tuned to one scarce class.

The class is shown more often than the others, which stay in the game so that what was learned from them is kept. With
`adapt.boundary` a classifier plays too (`synthgen.gan.boundary`); its network is the product's own small one.
Writes `models/FOLD/adapted-SLUG/`.
"""

import logging

import torch

from synthgen.artifacts import read_json
from synthgen.classifier.networks import SmallCnn
from synthgen.config import BoundarySection
from synthgen.errors import DivergedError
from synthgen.gan.boundary import BoundaryRules
from synthgen.gan.checkpoint import load_gan
from synthgen.gan.distributed import ALONE, Peers
from synthgen.gan.state import remove_snapshots
from synthgen.gan.training import train_gan
from synthgen.seeding import derive_seed
from synthgen.stages.gan_output import TrainingImages, scratch_folder, training_images, write_failure, write_run
from synthgen.stages.gan_watch import load_watch
from synthgen.stages.translation import prepare_game, rules_of
from synthgen.stages.workspace import Workspace

logger = logging.getLogger(__name__)


def run_adapt(workspace: Workspace, fold: str, slug: str, device: torch.device, peers: Peers = ALONE) -> None:
    """Adapts the shared GAN of `fold` to the class `slug`, with `peers`, of which the first alone writes.

    Raises:
        ArtifactError: the shared GAN is missing or altered.
        ConfigError: a third player that cannot play here, see `check_boundary`.
        TrainingError: see `train_gan`.
    """
    config = workspace.config
    section = config.adapt
    training = training_images(workspace, fold, workspace.plan.slugs)
    shared, folder = workspace.shared_model(fold), workspace.adapted_model(fold, slug)
    start = load_gan(shared, device)
    watch = load_watch(shared, training)
    game = prepare_game(
        training,
        watch.seen(training),
        rules_of(start),
        section.kimg,
        device,
        keep_weight=config.pretrain.keep_weight,
    )
    own = workspace.plan.classes[workspace.known_slug(slug)].label
    others = sorted(set(game.labels.tolist()) - {own})
    weights = {label: section.shared_share / max(len(others), 1) for label in others}
    weights[own] = 1.0 - section.shared_share
    seed = derive_seed(config.seed, "adapt", fold, slug)
    about = {
        "kind": "adapted",
        "fold": fold,
        "slug": slug,
        "slugs": training.data.slugs,
        "seed": seed,
        "kimg": section.kimg,
        "started_from": start.digest,
        **game.about,
    }
    decides = {
        **about,
        **game.decides,
        # without what is null: a key added later must not keep an unfinished training from going on
        "adapt": section.model_dump(mode="json", exclude_none=True),
        "images": training.sha256,
        "device": device.type,
    }
    scratch = scratch_folder(workspace, "adapt", decides)
    trained_on = training.sha256 + read_json(shared / "trained_on.json")
    try:
        run = train_gan(
            game.images,
            game.labels,
            start.generator.shape,
            config.pretrain,
            config.transforms,
            kimg=section.kimg,
            seed=seed,
            device=device,
            weights=weights,
            start=start,
            lr_factor=section.lr_factor,
            freeze_blocks=section.freeze_blocks,
            monitor=watch.monitor(
                training,
                config.pretrain.monitor,
                seed,
                device,
                conditional=config.pretrain.network.conditioning != "none",
            )
            if peers.leads
            else None,
            scene=game.scene,
            judged_size=game.judged_size,
            boundary=None if section.boundary is None else _boundary(section.boundary, training, own, seed),
            scratch=scratch,
            description=f"adapt {fold} {slug}",
            peers=peers,
            n_shown=len(training.data.slugs),
        )
    except DivergedError as error:
        logger.error("%s; class %s goes on without a generator of its own", error, slug)
        if peers.leads:
            write_failure(folder, about, trained_on, str(error))
    else:
        if peers.leads:
            write_run(folder, run, about, trained_on)
    if peers.leads:
        remove_snapshots(scratch)


def _boundary(section: BoundarySection, training: TrainingImages, label: int, seed: int) -> BoundaryRules:
    """The third player of the class `label`: fresh, for what learned to judge the GAN must not learn to be fooled."""
    _, side, _, channels = training.images.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "classifier"))
        network = SmallCnn(side, channels, len(training.data.slugs), section.width)
    return BoundaryRules(section, label, network)
