"""`synthgen pretrain --fold FOLD`: the shared conditional GAN of all classes of one fold.

Reads the fold's train index and the pixels it names, and under `pretrain.unlabelled` the unlabelled ones; writes
`models/FOLD/shared/`.
"""

import logging
import shutil
from dataclasses import replace
from functools import partial as bound

import numpy as np
import torch
from numpy.typing import NDArray

from synthgen.artifacts import atomic_folder, read_json
from synthgen.config import BaseGanSection
from synthgen.dataset.prepared import load_prepared
from synthgen.dataset.unlabelled import UnlabelledImages, unlabelled_of_index
from synthgen.errors import ConfigError, LeakError
from synthgen.gan.checkpoint import load_gan
from synthgen.gan.distributed import ALONE, Peers
from synthgen.gan.state import remove_snapshots
from synthgen.gan.training import train_gan
from synthgen.seeding import derive_seed
from synthgen.stages.gan_output import scratch_folder, shape_for, training_images, write_run
from synthgen.stages.gan_watch import make_watch, save_watch
from synthgen.stages.translation import GameData, check_generator, prepare_game, rules_for
from synthgen.stages.workspace import Workspace

log = logging.getLogger(__name__)


def run_pretrain(workspace: Workspace, fold: str, device: torch.device, peers: Peers = ALONE) -> None:
    """Trains (or takes the pinned) shared GAN of `fold`, with `peers`, of which the first alone writes.

    Raises:
        ConfigError: an architecture that cannot work here, a GAN without labels, or a pinned GAN that is not the one
            named or not for these classes.
        LeakError: a pinned GAN that has seen images which this fold validates or tests on.
        TrainingError: see `train_gan`.
    """
    section = workspace.config.pretrain
    if section.base and fold in section.base:
        if peers.leads:
            _take_base(workspace, fold, section.base[fold])
        return
    if section.network.conditioning == "none":
        raise ConfigError(
            "pretrain.network.conditioning none: a shared GAN without a label cannot make labelled images; use "
            "projection, or plan.strategy scratch, where each class has a GAN of its own"
        )
    check_generator(workspace.config)
    training = training_images(workspace, fold, workspace.plan.slugs)
    seed = derive_seed(workspace.config.seed, "pretrain", fold)
    watch = make_watch(training, section.monitor, seed, device, looks=peers.leads)
    rules = rules_for(workspace, training, seed)
    game = prepare_game(training, watch.seen(training), rules, section.kimg, device, keep_weight=section.keep_weight)
    slugs = training.data.slugs
    decides = {"seed": seed, "slugs": slugs, "images": training.sha256, "device": device.type, **game.decides}
    shape, more = shape_for(workspace, training.data), None
    if section.unlabelled:
        more = unlabelled_of_index(workspace.prepared, workspace.fold_index(fold))
        game = _with_unlabelled(game, more, len(slugs))
        shape = replace(shape, n_classes=len(slugs) + 1)
        decides["unlabelled"] = more.sha256.tolist()
    scratch = scratch_folder(workspace, "pretrain", decides)
    run = train_gan(
        game.images,
        game.labels,
        shape,
        section,
        workspace.config.transforms,
        kimg=section.kimg,
        seed=seed,
        device=device,
        weights=None if more is None else _weights(game.labels, len(slugs), section.class_temper),
        monitor=watch.monitor(training, section.monitor, seed, device, conditional=True) if peers.leads else None,
        scene=game.scene,
        judged_size=game.judged_size,
        scratch=scratch,
        description=f"pretrain {fold}",
        peers=peers,
        n_shown=len(slugs),
    )
    if not peers.leads:
        return
    about = {"kind": "shared", "fold": fold, "slugs": slugs, "seed": seed, "kimg": section.kimg, **game.about}
    trained_on = training.sha256 + ([] if more is None else more.sha256.tolist())
    write_run(workspace.shared_model(fold), run, about, trained_on, bound(save_watch, watch=watch))
    remove_snapshots(scratch)


def _with_unlabelled(game: GameData, more: UnlabelledImages, label: int) -> GameData:
    """The reals with the unlabelled images as one class more, which nobody samples: no label of them can be wrong."""
    return replace(
        game,
        images=np.concatenate([game.images, more.verified()]),
        labels=np.concatenate([game.labels, np.full(len(more.sha256), label, dtype=np.int64)]),
        about={**game.about, "unlabelled": {"label": label, "n_images": len(more.sha256)}},
    )


def _weights(labels: NDArray[np.int64], unlabelled: int, temper: float) -> dict[int, float]:
    """Label -> share of the reals shown, by `class_temper`; unlabelled images come as often as a class on average."""
    found, counts = np.unique(labels[labels != unlabelled], return_counts=True)
    weights = {int(label): float(count) ** temper for label, count in zip(found, counts, strict=True)}
    return {**weights, unlabelled: sum(weights.values()) / len(weights)}


def _take_base(workspace: Workspace, fold: str, base: BaseGanSection) -> None:
    folder = workspace.root / base.path
    gan = load_gan(folder, torch.device("cpu"))
    if gan.digest != base.digest:
        raise ConfigError(
            f"pretrain.base.{fold}: {base.path} holds generator {gan.digest[:12]}, pinned is {base.digest[:12]}; "
            "fetch the pinned one or change the pin"
        )
    if gan.about["slugs"] != workspace.plan.slugs:
        raise ConfigError(
            f"pretrain.base.{fold}: {base.path} was trained for classes {gan.about['slugs']}, the plan has "
            f"{workspace.plan.slugs}; train a shared GAN for these classes"
        )
    data, shape = load_prepared(workspace.prepared), gan.generator.shape
    ours = (*data.images.shape[2:], len(data.slugs) + ("unlabelled" in gan.about))
    if (shape.image_size, shape.image_channels, shape.n_classes) != ours:
        raise ConfigError(
            f"pretrain.base.{fold}: {base.path} makes {shape.image_size} px images of {shape.image_channels} channels, "
            f"the prepared ones are {ours[0]} px of {ours[1]}; train a shared GAN for this size"
        )
    seen = set(read_json(folder / "trained_on.json"))
    index = workspace.fold_index(fold)
    held_out = {sha for part in ("val", "test") for sha in read_json(index / f"{part}.json")["pixel_sha256"]}
    group_of = dict(zip(data.sha256.tolist(), data.groups.tolist(), strict=True))
    seen_groups = {group_of[sha] for sha in seen & group_of.keys()}
    leaked = sorted(sha for sha in held_out if group_of.get(sha) in seen_groups)
    if leaked:
        raise LeakError(
            f"pretrain.base.{fold}: {base.path} has seen objects of {len(leaked)} images that fold {fold} validates or "
            f"tests on ({', '.join(sha[:12] for sha in leaked[:5])}); pin a GAN that has not seen them"
        )
    if ("unlabelled" in gan.about) != workspace.config.pretrain.unlabelled:
        said, saw = ("true", "never saw") if workspace.config.pretrain.unlabelled else ("false", "was also shown")
        log.warning(
            f"pretrain.unlabelled is {said}, but the GAN pinned for {fold}, {base.path}, {saw} unlabelled images; it "
            f"is taken as it is. Remove pretrain.base.{fold} to train one, or set pretrain.unlabelled to what the "
            "pinned one is"
        )
    with atomic_folder(workspace.shared_model(fold)) as partial:
        shutil.copytree(folder, partial, dirs_exist_ok=True)
