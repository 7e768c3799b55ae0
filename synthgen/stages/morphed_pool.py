"""What `synthesize` does under `synthesize.morphs`: morphs of each class, named as samples of a generator are.

Owns which images they start from (those handed in, so the caller answers for the fold), how batches are seeded, and
what acceptance.json says of the pairs. What a morph is belongs to `synthgen.morphing`.
"""

import logging

import numpy as np
from numpy.typing import NDArray

from synthgen.config import MorphSection
from synthgen.gan.sampling import Sampled, join_batches
from synthgen.morphing.morphs import Morpher
from synthgen.seeding import derive_seed

logger = logging.getLogger(__name__)


class MorphedPool:
    """The morphs of one fold."""

    def __init__(
        self,
        section: MorphSection,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        groups: NDArray[np.str_],
        sha256: NDArray[np.str_],
        slugs: list[str],
        *,
        seed: int,
        fold: str,
        batch: int,
    ) -> None:
        """Registers pairs of training images; seconds to a few minutes of one core.

        Args:
            section: of params.yaml.
            images: (n, H, W, C) uint8 training images of the fold; labels, groups, sha256: (n,) of them.
            slugs: in label order.
            seed: the run's.
            fold: names the streams.
            batch: samples that share a seed.
        """
        self._sha256, self._batch, self._slugs = sha256, batch, slugs
        self._names = (seed, "synthesize", fold)
        self._morpher = Morpher(images, labels, groups, sha256, section, seed=derive_seed(seed, "morphs", fold))
        for label, slug in enumerate(slugs):
            pairs = self.pairs(label)
            if pairs["tried"] and not pairs["fitted"]:
                logger.warning(
                    "morphs: no two images of class %s can be registered (%d pairs tried), so its samples are deformed "
                    "images and sharper than those of other classes; look at the grid, and leave the pool morphed to "
                    "data whose classes are shapes",
                    slug,
                    pairs["tried"],
                )

    @property
    def digest(self) -> str:
        """sha256 of what decides every sample: training images, seed and settings."""
        return self._morpher.digest

    def pairs(self, label: int) -> dict[str, int]:
        """How many pairs of a class were tried, and between how many morphs are made."""
        found = self._morpher.pairs.get(label)
        return {"tried": self._morpher.n_tried.get(label, 0), "fitted": 0 if found is None else len(found.first)}

    def sample(self, label: int, n: int) -> Sampled:
        """At least `n` candidates of a class, in whole batches; there is no discriminator, so all scores are 0."""
        seed = derive_seed(*self._names, f"{self._slugs[label]}.morphed")
        parts = []
        for k in range(max(1, -(-n // self._batch))):
            of_batch = derive_seed(seed, "batch", k)
            made = self._morpher.draw(label, self._batch, of_batch)
            parts.append(
                Sampled(
                    made.images,
                    np.full(self._batch, of_batch, dtype=np.int64),
                    np.arange(self._batch, dtype=np.int32),
                    np.zeros(self._batch, dtype=np.float32),
                    self._sha256[made.sources],
                )
            )
        return join_batches(parts)
