"""`synthgen pretrain --fold FOLD`: the shared conditional GAN of all classes of one fold.

Reads the fold's train index and the pixels it names; writes `models/FOLD/shared/`.
"""

import shutil

import torch

from synthgen.artifacts import atomic_folder, read_json
from synthgen.config import BaseGanSection
from synthgen.dataset.prepared import load_prepared
from synthgen.errors import ConfigError, LeakError
from synthgen.gan.checkpoint import load_gan
from synthgen.gan.training import train_gan
from synthgen.seeding import derive_seed
from synthgen.stages.gan_output import shape_for, training_images, write_run
from synthgen.stages.workspace import Workspace


def run_pretrain(workspace: Workspace, fold: str, device: torch.device) -> None:
    """Trains (or takes the pinned) shared GAN of `fold`.

    Raises:
        ConfigError: a pinned GAN that is not the one named or not for these classes.
        LeakError: a pinned GAN that has seen images which this fold validates or tests on.
        TrainingError: see `train_gan`.
    """
    section = workspace.config.pretrain
    if section.base and fold in section.base:
        _take_base(workspace, fold, section.base[fold])
        return
    data, images, labels, sha256 = training_images(workspace, fold, workspace.plan.slugs)
    seed = derive_seed(workspace.config.seed, "pretrain", fold)
    run = train_gan(
        images,
        labels,
        shape_for(workspace, data),
        section,
        workspace.config.transforms,
        kimg=section.kimg,
        seed=seed,
        device=device,
        description=f"pretrain {fold}",
    )
    about = {"kind": "shared", "fold": fold, "slugs": data.slugs, "seed": seed, "kimg": section.kimg}
    write_run(workspace.shared_model(fold), run, about, sha256)


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
    ours = (*data.images.shape[2:], len(data.slugs))
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
    with atomic_folder(workspace.shared_model(fold)) as partial:
        shutil.copytree(folder, partial, dirs_exist_ok=True)
