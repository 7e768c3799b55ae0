"""The mixing policy in a person's own training script: batches of an augmented data set, mixed as in the measured arm.

    images = AugmentedImages("augmented", transform=mine, synthetic_transform=None)
    loader = DataLoader(images, batch_sampler=SyntheticMix(images, batch=64, steps=400, seed=0))

Owns the order of the images. The draws are those of `synthgen.classifier.training`: every class equally often, of each
class the share of synthetic images that the policy gives it.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, from_numpy
from torch.utils.data import Sampler

from synthgen.dataset.mixing import MixingPolicy
from synthgen.dataset.sampling import BalancedBatches
from synthgen.dataset.shards import REAL, SYNTHETIC
from synthgen.dataset.torch_dataset import AugmentedImages
from synthgen.errors import ConfigError
from synthgen.seeding import numpy_generator


class SyntheticMix(Sampler[list[int]]):
    """Batches of indices into an `AugmentedImages`, as `DataLoader(batch_sampler=...)` takes them.

    A class without synthetic images takes its own reals for that share, so that origin never tells the label. Each
    pass gives the same batches; another `seed` gives others.

    Attributes:
        policy: that is applied.
        loss_weights: (n,) float32 by index: `policy.loss_weight` of synthetic images, 1 of real ones.
    """

    def __init__(
        self, images: AugmentedImages, *, batch: int, steps: int, seed: int = 0, policy: MixingPolicy | None = None
    ) -> None:
        """Looks at what there is to mix.

        Args:
            images: with both origins.
            batch: images of a batch.
            steps: batches of a whole training; schedules run over them.
            seed: of the draws.
            policy: None takes the one that came with the data set.
        Raises:
            ConfigError: a policy for other classes, no real or no synthetic image, or shares that leave no real one.
        """
        self.policy = images.policy if policy is None else policy
        if len(self.policy.shares) != len(images.class_names):
            raise ConfigError(
                f"policy {self.policy.name!r} has shares of {len(self.policy.shares)} classes, the data set has "
                f"{len(images.class_names)}; build it with `build_policy` for these classes"
            )
        self.batch, self.steps, self.seed = batch, steps, seed
        self._real = np.asarray(images.indices(REAL), dtype=np.int64)
        made = np.asarray(images.indices(SYNTHETIC), dtype=np.int64)
        made = made[self.policy.used(images.labels[made])]
        self._synthetic = _with_stand_ins(images, self._real, made)
        self._labels = images.labels
        self._occurring = np.unique(images.labels[self._real]) if len(self._real) else np.zeros(0, np.int64)
        n_synthetic = max(self._count(step) for step in range(steps)) if len(self._occurring) else 0
        if n_synthetic >= batch or not len(self._occurring):
            raise ConfigError(
                f"{len(self._real)} real images and a share of {self.policy.share():g} leave no real image in a batch "
                f"of {batch}; take origins real and synthetic, or lower the share"
            )
        weights = np.ones(len(images), dtype=np.float32)
        weights[images.indices(SYNTHETIC)] = self.policy.loss_weight
        self.loss_weights: Tensor = from_numpy(weights)

    def _count(self, step: int) -> int:
        return round(self.policy.share(self._occurring) * self.policy.factor(step, self.steps) * self.batch)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        """Lists of indices, real images first."""
        reals = _batches(self._labels, self._real, self.batch, self.seed, "reals")
        made = _batches(self._labels, self._synthetic, self.batch, self.seed, "synthetic")
        for step in range(self.steps):
            n, factor = self._count(step), self.policy.factor(step, self.steps)
            weights = self.policy.weights(self._occurring, synthetic=False, factor=factor)
            rows = self._real[reals.take(self.batch - n, weights)]
            if n:
                weights = self.policy.weights(self._occurring, synthetic=True, factor=factor)
                rows = np.concatenate([rows, self._synthetic[made.take(n, weights)]])
            yield rows.tolist()


def _batches(
    labels: NDArray[np.int64], rows: NDArray[np.int64], batch: int, seed: int, purpose: str
) -> BalancedBatches:
    return BalancedBatches(labels[rows], batch, numpy_generator(seed, "synthetic mix", purpose))


def _with_stand_ins(
    images: AugmentedImages, real: NDArray[np.int64], synthetic: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Synthetic indices, and the reals of the classes that have none."""
    if not len(synthetic):
        raise ConfigError("the data set has no synthetic image; read it with origins real and synthetic")
    without = np.setdiff1d(images.labels[real], images.labels[synthetic])
    return np.concatenate([synthetic, real[np.isin(images.labels[real], without)]])
