"""What `synthesize` does under `synthesize.latents: between_reals`: anchors of each class, and how good they are.

Owns which training images are projected (those handed in, so the caller answers for the fold), the features they are
compared by, the file beside the shard and the record in acceptance.json. The optimisation is
`synthgen.gan.projection`'s.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from synthgen.classifier.networks import SmallCnn
from synthgen.classifier.prediction import unit_features
from synthgen.config import SynthesizeSection
from synthgen.errors import TrainingError
from synthgen.gan.anchor_file import SUFFIX, save_anchors
from synthgen.gan.checkpoint import TrainedGan
from synthgen.gan.interpolation import Anchors
from synthgen.gan.projection import Projection, project_images
from synthgen.gan.selection import typical_distance
from synthgen.seeding import derive_seed, numpy_generator

logger = logging.getLogger(__name__)


def choose_reals(objects: NDArray[np.int64], n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Rows of at most `n` images, in ascending order, of as many objects as possible.

    Args:
        objects: (m,) int64, the object that each image shows.
        n: the limit.
        rng: draws where there are more.
    Returns:
        (min(m, n),) int64.
    """
    if len(objects) <= n:
        return np.arange(len(objects), dtype=np.int64)
    order = rng.permutation(len(objects))
    seen: dict[int, int] = {}
    turn = np.empty(len(order), dtype=np.int64)  # how many images of its object come before each
    for place, row in enumerate(order):
        turn[place] = seen.get(int(objects[row]), 0)
        seen[int(objects[row])] = int(turn[place]) + 1
    return np.sort(order[np.argsort(turn, kind="stable")][:n]).astype(np.int64)


class RealAnchors:
    """Finds the training images of each class in each generator of a fold, and writes down where they were found."""

    def __init__(
        self,
        section: SynthesizeSection,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        groups: NDArray[np.str_],
        sha256: NDArray[np.str_],
        features: NDArray[np.float32],
        *,
        teacher: SmallCnn,
        fallback_distance: float,
        seed: int,
        fold: str,
        device: torch.device,
    ) -> None:
        """Keeps what is projected.

        Args:
            section: how.
            images, labels, groups, sha256: (n, H, W, C) uint8 and (n,) each, of the fold's training side alone.
            features: (n, k) float32, the teacher's of these images.
            teacher: its features are compared beside the pixels; in eval mode on `device`.
            fallback_distance: as for `select_samples`.
            seed: of the run; fold: names its streams.
            device: to compute on.
        """
        self._section, self._teacher, self._fallback = section, teacher, fallback_distance
        self._images, self._labels, self._sha256, self._features = images, labels, sha256, features
        self._objects = np.unique(groups, return_inverse=True)[1].astype(np.int64)
        self._seed, self._fold, self._device = seed, fold, device

    def find(self, folder: Path, name: str, label: int, gan: TrainedGan) -> tuple[Anchors, dict[str, Any]]:
        """Projects one class into one generator and writes `NAME.latents.safetensors`.

        Args:
            folder: the fold's synthetic images, being written.
            name: of the shard.
            label: of the class.
            gan: the generator.
        Returns:
            the anchors, and the record for acceptance.json.
        Raises:
            ConfigError: a generator that starts from other pictures.
            TrainingError: the class has no training image.
            ArtifactError: the file cannot be written.
        """
        section, rows = self._section.projection, np.flatnonzero(self._labels == label)
        if not len(rows):
            raise TrainingError(
                f"{self._fold} {name}: the training side has no image of this class, and between_reals "
                "draws between such images; set synthesize.latents: normal, or bring images of the class"
            )
        # one choice for all generators of a class
        rng = numpy_generator(self._seed, "projected reals", self._fold, label)
        chosen = rows[choose_reals(self._objects[rows], section.reals, rng)]
        found = project_images(
            gan.generator,
            label,
            self._images[chosen],
            lambda x: unit_features(self._teacher, x),
            section,
            truncation=self._section.truncation,
            seed=derive_seed(self._seed, "projection", self._fold, name),
            device=self._device,
        )
        anchors = Anchors(found.latents, self._objects[chosen], self._sha256[chosen], section.jitter, section.neighbour)
        save_anchors(folder / f"{name}{SUFFIX}", anchors, gan.digest)
        scale = typical_distance(self._features[rows]) or self._fallback or 1.0
        record = projection_record(found, len(np.unique(anchors.objects)), scale)
        if record["feature_ratio"] > 1.0:
            logger.warning(
                "%s %s: reals lie outside the generator's range: their projections differ from them %.1f times as much "
                "as the nearest other real does; samples between them are not between these reals",
                self._fold,
                name,
                record["feature_ratio"],
            )
        return anchors, record


def projection_record(found: Projection, n_objects: int, scale: float) -> dict[str, Any]:
    """How well the reals of one class were found, for acceptance.json.

    Args:
        found: of all reals projected.
        n_objects: that they show.
        scale: usual feature distance between a real and its nearest other one, as for `nearest_real` of a sample.
    Returns:
        errors of pixels (root mean square, share of the range) and features (over `scale`), means over reals, beside
        those of random latents; `outside` counts reals whose projection differs more from them than `scale`; `radius`
        is the mean length of the latents over that of a normal vector.
    """
    ratios = found.feature_distance / scale
    lengths = found.latents.norm(dim=1).mean().item()
    return {
        "reals": len(ratios),
        "objects": n_objects,
        "pixel_error": round(float(found.pixel_error.mean()), 4),
        "random_pixel_error": round(float(found.random_pixel_error.mean()), 4),
        "feature_ratio": round(float(ratios.mean()), 4),
        "random_feature_ratio": round(float(found.random_feature_distance.mean() / scale), 4),
        "outside": int((ratios > 1.0).sum()),
        "radius": round(lengths / found.latents.shape[1] ** 0.5, 4),
    }
