"""Image-to-image generators in a fold: from its training images to the game that trains one, and to its samples.

Owns the choice of pictures: `free` changes pictures of plentiful classes (those of a plentiful class itself are made
from other classes'), `masked` changes composites of real regions on the backgrounds of the largest plentiful class,
where a class without regions gets patches of its own, so that a seam says nothing about the label. Refuses to choose
rows: all that is handed in may be trained on. Everything that decides stands in `TranslationRules`, which model.json
holds, so that samples can be made again without params.yaml.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from synthgen.config import Architecture, TransformsSection
from synthgen.dataset.pasted_pool import MAX_COMPOSITES, Regions, TrainImages, compose_pool, find_regions
from synthgen.dataset.pasting import PasteRanges
from synthgen.errors import ArtifactError, TrainingError
from synthgen.gan.content import Content, FreeContent, MaskedContent
from synthgen.gan.scenes import CompositePool, FreeScene, FreeWeights, MaskedScene, RealTransforms, Scene
from synthgen.seeding import numpy_generator

TranslationKind = Literal["free", "masked"]
KINDS: Mapping[Architecture, TranslationKind] = {"translate_free": "free", "translate_masked": "masked"}


@dataclass(frozen=True)
class TranslationRules:
    """What decides the content of a generator beside the training images.

    Attributes:
        kind: `free` or `masked`.
        scarce: labels whose pictures are neither backgrounds nor, for a scarce class, changed into another.
        n_labels: labels run below it.
        transforms: amplitudes of the jitter and of the changes of regions.
        strength: 0 to 1, of the jitter of reals and of free sources.
        flip: mirror half of them.
        seed: of weak masks and of the composites of the training.
    """

    kind: TranslationKind
    scarce: tuple[int, ...]
    n_labels: int
    transforms: TransformsSection
    strength: float
    flip: bool
    seed: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for model.json."""
        transforms = self.transforms.model_dump(mode="json")
        return {**asdict(self), "scarce": list(self.scarce), "transforms": transforms}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TranslationRules":
        """Reads what `as_dict` gave.

        Raises:
            ArtifactError: other keys or values.
        """
        try:
            transforms = TransformsSection.model_validate(values["transforms"])
            found = cls(**{**values, "scarce": tuple(values["scarce"]), "transforms": transforms})
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"model.json holds no usable content rules ({error}); run `dvc checkout` or train it again"
            ) from error
        if found.kind not in KINDS.values():
            raise ArtifactError(f"model.json: content kind {found.kind!r} is unknown; train it again")
        return found

    @property
    def jitter(self) -> RealTransforms:
        """Of reals, and of free sources."""
        return RealTransforms(self.transforms, self.strength, self.flip)


@dataclass(frozen=True)
class TranslationGame:
    """What `train_gan` is handed.

    Attributes:
        images: (n, H, W, C) uint8 and labels: (n,) int64 of the reals.
        scene: on the device of the training.
        judged_size: side of what D sees, in px.
        regions: label -> (where its regions come from, images with one); empty for `free`.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    scene: Scene
    judged_size: int
    regions: dict[int, tuple[str, int]]


def translation_game(
    train: TrainImages, rules: TranslationRules, n_shown: int, device: torch.device, *, keep_weight: float = 0.0
) -> TranslationGame:
    """The game of one training.

    Args:
        train: n training images that the GAN may see; `rows` count them from 0.
        rules: how.
        n_shown: images that the training shows; no more composites are made than that.
        device: of the training.
        keep_weight: of the mean absolute change inside a composite's mask (`masked`).
    Raises:
        TrainingError: no plentiful class, or no class with a region (`masked`).
    """
    if rules.kind == "free":
        scene = _free_scene(train, rules, device)
        return TranslationGame(train.images, train.labels, scene, int(train.images.shape[1]), {})
    return _masked_game(train, rules, n_shown, device, keep_weight)


def sampling_content(train: TrainImages, sha256: NDArray[np.str_], rules: TranslationRules) -> Content:
    """Where samples of a trained generator start from.

    Args:
        train: the images that the GAN was trained on, so that the same regions are found; `rows` count them from 0.
        sha256: (n,) their pixel digests.
        rules: those of the training.
    Raises:
        TrainingError: see `translation_game`.
    """
    if rules.kind == "free":
        return FreeContent(_free_scene(train, rules, torch.device("cpu")), sha256)
    return MaskedContent(train, sha256, _regions(train, rules), PasteRanges.of(rules.transforms))


def _free_scene(train: TrainImages, rules: TranslationRules, device: torch.device) -> FreeScene:
    plentiful = tuple(k for k in range(rules.n_labels) if k not in rules.scarce)
    images, labels = (torch.from_numpy(np.ascontiguousarray(x)).to(device) for x in (train.images, train.labels))
    return FreeScene(images, labels, plentiful, rules.jitter, FreeWeights(), n_labels=rules.n_labels)


def _regions(train: TrainImages, rules: TranslationRules) -> Regions:
    regions = find_regions(train, rules.scarce, numpy_generator(rules.seed, "weak masks"))
    if not regions.banks:
        raise TrainingError(
            "translate_masked: no class has a training image with a mask, and none was found by comparison with the "
            "plentiful class; set prepare.masks, or take pretrain.network.architecture translate_free"
        )
    return regions


def _masked_game(
    train: TrainImages, rules: TranslationRules, n_shown: int, device: torch.device, keep_weight: float
) -> TranslationGame:
    regions = _regions(train, rules)
    chance = numpy_generator(rules.seed, "composites")
    pool = compose_pool(train, regions, min(n_shown, MAX_COMPOSITES), PasteRanges.of(rules.transforms), chance)
    rows, masks = [], []
    for label in (int(k) for k in np.unique(train.labels)):
        if label in regions.banks:
            bank = regions.banks[label]
            rows.append(bank.rows)
            masks.append(bank.masks.astype(np.uint8) * np.uint8(255))
        else:
            # crops of untouched images from the places where this class's composites have their patches
            own = np.flatnonzero(train.labels == label)
            rows.append(own)
            masks.append(chance.choice(pool.masks[pool.labels == label], size=len(own)))
    chosen = np.concatenate(rows)
    images, labels = train.images[chosen], train.labels[chosen]
    scene = MaskedScene(
        torch.from_numpy(images).to(device),
        torch.from_numpy(np.concatenate(masks)).to(device),
        torch.from_numpy(labels).to(device),
        CompositePool(*(torch.from_numpy(x).to(device) for x in (pool.images, pool.masks, pool.labels))),
        rules.jitter,
        keep_weight=keep_weight,
        n_labels=rules.n_labels,
    )
    found: dict[int, tuple[str, int]] = {
        label: (origin, len(regions.banks[label].rows) if label in regions.banks else 0)
        for label, origin in regions.origins.items()
    }
    return TranslationGame(images, labels, scene, scene.crop_size, found)
