"""What the stages that train or sample from generators hand to image-to-image ones.

Owns which architectures the pipeline trains and what each needs, the check of that before hours of training, and the
rows that become sources: the fold's training rows without those held out for the monitor. The game itself is
`synthgen.gan.translation`'s.
"""

import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from synthgen.artifacts import digest_of, read_json, sha256_bytes
from synthgen.config import Config
from synthgen.dataset.pasted_pool import TrainImages
from synthgen.errors import ConfigError
from synthgen.gan.architectures.translate import SIZES
from synthgen.gan.checkpoint import TrainedGan
from synthgen.gan.content import Content
from synthgen.gan.projection import refuse_without_latents
from synthgen.gan.scenes import Scene
from synthgen.gan.translation import KINDS, TranslationRules, sampling_content, translation_game
from synthgen.records import Plan
from synthgen.stages.gan_output import TrainingImages, training_images
from synthgen.stages.gan_watch import HELD_OUT_FILE
from synthgen.stages.workspace import Workspace

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GameData:
    """What `train_gan` is handed beside the settings.

    Attributes:
        images: (n, H, W, C) uint8 and labels: (n,) int64, the reals.
        scene: None for generators from noise.
        judged_size: side of what D sees, in px; None: the whole image.
        about: what model.json says of the content.
        decides: what decides the training beside the images' digests.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    scene: Scene | None = None
    judged_size: int | None = None
    about: dict[str, Any] = field(default_factory=dict)
    decides: dict[str, Any] = field(default_factory=dict)


def check_generator(config: Config) -> None:
    """Looks at the architecture before hours of training, not after.

    Raises:
        ConfigError: an architecture that no stage trains, or one that cannot work with the other settings.
    """
    network = config.pretrain.network
    if config.synthesize.latents == "between_reals":
        refuse_without_latents(network.architecture)
    said = f"pretrain.network.architecture {network.architecture}"
    if network.architecture == "super_resolution":
        raise ConfigError(
            f"{said} starts from the samples of another generator, which no stage hands it yet; use resnet, dcgan, "
            "style, translate_free or translate_masked, or train it from Python with a scene (docs/gan.md)"
        )
    if network.architecture not in KINDS:
        return
    if config.plan.strategy == "scratch":
        raise ConfigError(
            f"{said} changes pictures of one class into another's, but plan.strategy scratch shows it one class "
            "alone; use plan.strategy shared or adapted"
        )
    if config.adapt.boundary is not None:
        raise ConfigError(
            f"{said} starts from pictures on the other side of the boundary that adapt.boundary draws samples to; set "
            "adapt.boundary null, or take architecture resnet, dcgan or style"
        )
    if config.prepare.image_size not in SIZES:
        raise ConfigError(
            f"{said} works at {', '.join(map(str, SIZES))} px, prepare.image_size is {config.prepare.image_size}; "
            "choose one of these"
        )
    if network.progressive:
        raise ConfigError(f"{said} starts from whole pictures and cannot grow; set pretrain.network.progressive false")
    if network.architecture == "translate_masked" and config.prepare.masks is None:
        logger.warning(
            "%s without prepare.masks: regions are found by comparison with the plentiful class, which works for "
            "spots and was wrong for most other defects; put PNG masks into data/raw/.masks and set prepare.masks "
            "(docs/schema.md), or take translate_free",
            said,
        )


def check_sources(config: Config, plan: Plan) -> None:
    """Says before any training that there is nothing to start from.

    Raises:
        ConfigError: image to image, and every class with images is scarce or there is only one.
    """
    architecture = config.pretrain.network.architecture
    if architecture not in KINDS:
        return
    filled = [slug for slug in plan.slugs if plan.classes[slug].images]
    if len(filled) < 2 or not set(filled) - set(plan.scarce_slugs):
        raise ConfigError(
            f"pretrain.network.architecture {architecture} starts from pictures of a plentiful class, but of "
            f"{len(filled)} classes with images {len(set(filled) & set(plan.scarce_slugs))} are scarce; leave a "
            "plentiful one out of plan.scarce, or use resnet, dcgan or style"
        )


def rules_for(workspace: Workspace, training: TrainingImages, seed: int) -> TranslationRules | None:
    """How `pretrain` plays, from params.yaml and plan.yaml; None for generators from noise."""
    config = workspace.config
    kind = KINDS.get(config.pretrain.network.architecture)
    if kind is None:
        return None
    slugs = training.data.slugs
    return TranslationRules(
        kind,
        tuple(slugs.index(slug) for slug in workspace.plan.scarce_slugs),
        len(slugs),
        config.transforms,
        config.pretrain.real_transforms,
        config.pretrain.flip,
        seed,
    )


def rules_of(gan: TrainedGan) -> TranslationRules | None:
    """How a trained GAN was made to play; None for generators from noise.

    Raises:
        ArtifactError: model.json holds unusable rules.
    """
    values = gan.about.get("content")
    return None if values is None else TranslationRules.from_dict(values)


def prepare_game(
    training: TrainingImages,
    seen: NDArray[np.bool_],
    rules: TranslationRules | None,
    kimg: float,
    device: torch.device,
    *,
    keep_weight: float,
) -> GameData:
    """The reals of a training, and its scene where it is image to image.

    Args:
        training: of the fold.
        seen: (n,) bool, images that the GAN trains on; no other becomes a real, a source or a region.
        rules: None for generators from noise.
        kimg: length of the training.
        device: of the training.
        keep_weight: see `translation_game`.
    Raises:
        TrainingError: see `translation_game`.
    """
    if rules is None:
        return GameData(training.images[seen], training.labels[seen])
    train = _train_images(training, seen)
    game = translation_game(train, rules, round(kimg * 1000), device, keep_weight=keep_weight)
    slugs = training.data.slugs
    regions = {slugs[label]: {"origin": origin, "n": n} for label, (origin, n) in game.regions.items()}
    about = {"content": rules.as_dict(), **({"regions": regions} if regions else {})}
    masks = None if train.masks is None else sha256_bytes(np.packbits(train.masks).tobytes())
    for slug in (slug for slug, entry in regions.items() if not entry["n"]):
        logger.warning("translate_masked: no region was found in class %s; its composites are its own patches", slug)
    return GameData(game.images, game.labels, game.scene, game.judged_size, about, {**about, "masks": masks})


class ContentSource:
    """What the generators of one fold sample from; found once for generators that share their rules."""

    def __init__(self, workspace: Workspace, fold: str) -> None:
        """Reads nothing yet."""
        self._workspace, self._fold = workspace, fold
        self._found: dict[str, Content] = {}

    def of(self, gan: TrainedGan) -> Content | None:
        """The content of a trained GAN of this fold; None for generators from noise.

        Raises:
            ArtifactError: model.json holds unusable rules, or images or masks were altered.
            TrainingError: see `sampling_content`.
        """
        rules = rules_of(gan)
        if rules is None:
            return None
        key = digest_of(rules.as_dict())
        if key not in self._found:
            workspace = self._workspace
            training = training_images(workspace, self._fold, workspace.plan.slugs)
            held_out = set(read_json(workspace.shared_model(self._fold) / HELD_OUT_FILE))
            seen = np.array([sha not in held_out for sha in training.sha256], dtype=np.bool_)
            train = _train_images(training, seen)
            self._found[key] = sampling_content(train, np.asarray(training.sha256, dtype=np.str_)[seen], rules)
        return self._found[key]


def _train_images(training: TrainingImages, seen: NDArray[np.bool_]) -> TrainImages:
    masks = None if training.masks is None else training.masks[seen]
    rows = np.arange(int(seen.sum()), dtype=np.int64)
    return TrainImages(training.images[seen], training.labels[seen], rows, masks, training.groups[seen])
