"""The mixing policy in a person's own training script: batches of an augmented data set, mixed as in the measured arm.

    images = AugmentedImages("augmented", transform=mine, synthetic_transform=None)
    mix = SyntheticMix(images, batch=64, steps=400, seed=0)
    for step, (x, y) in enumerate(DataLoader(images, batch_sampler=mix)):
        x, targets = mix.blend(x, y, step)

Owns the order of the images, and the blending where the policy wants that. The draws are those of
`synthgen.classifier.draws`: every class equally often, of each class the share of synthetic images that the policy
gives it.
"""

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, from_numpy
from torch.utils.data import Sampler

from synthgen.dataset.blending import blend_images, blend_rows, draw_blend
from synthgen.dataset.mixing import MixingPolicy, sure_rows
from synthgen.dataset.sampling import BalancedBatches
from synthgen.dataset.shards import REAL, SYNTHETIC
from synthgen.dataset.torch_dataset import AugmentedImages
from synthgen.errors import ConfigError
from synthgen.seeding import numpy_generator


class SyntheticMix(Sampler[list[int]]):
    """Batches of indices into an `AugmentedImages`, as `DataLoader(batch_sampler=...)` takes them.

    A class without synthetic images takes its own reals for that share, so that origin never tells the label. Each
    pass gives the same batches; another `seed` gives others. Under a policy that blends, a list holds beyond its
    `batch` images one real image for each synthetic one, which `blend` puts into it.

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
        self._labels, self._certain = images.labels, images.sureness
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
        """Lists of indices: real images, then synthetic ones, then the partners that `blend` takes, if any."""
        reals = _batches(self._labels, self._real, self.batch, self.seed, "reals")
        made = _batches(self._labels, self._synthetic, self.batch, self.seed, "synthetic")
        partners = _batches(self._labels, self._real, self.batch, self.seed, "partners")
        for step in range(self.steps):
            n, factor = self._count(step), self.policy.factor(step, self.steps)
            weights = self.policy.weights(self._occurring, synthetic=False, factor=factor)
            rows = self._real[reals.take(self.batch - n, weights)]
            if n:
                weights = self.policy.weights(self._occurring, synthetic=True, factor=factor)
                rows = np.concatenate([rows, self._synthetic[made.take(n, weights)]])
                if self.policy.blend != "none":
                    # drawn in the order of their labels, as the synthetic ones: like would meet like
                    order = self._generator(step).permutation(n)
                    rows = np.concatenate([rows, self._real[partners.take(n, weights)][order]])
            yield rows.tolist()

    @cached_property
    def _sureness(self) -> list[NDArray[np.float32]]:
        """Of each step's images (batch,): `blend` is given none of their indices, so all are drawn once more."""
        return [self._certain[rows[: self.batch]] for rows in self]

    def _generator(self, step: int) -> np.random.Generator:
        return numpy_generator(self.seed, "synthetic mix", "blend", step)

    def blend(self, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """A batch as the measured arm sees it: partners blended in, labels as rows, synthetic images by their weight.

        Under a policy with `labels: agreement` rows of synthetic images hold the teacher's sureness.

        Args:
            images: (N, C, H, W) floating point, of the list of indices of this `step`, on any device.
            labels: (N,) int64.
            step: 0 to steps - 1.
        Returns:
            (batch, C, H, W) images, and (batch, n_classes) float32 targets whose sums are the weights of the images in
            the loss: the mean over a batch is `-(targets * logits.log_softmax(1)).sum() / targets.sum()`.
        Raises:
            ConfigError: images that are not of this step, or not floating point.
        """
        n, n_classes = self._count(step), len(self.policy.shares)
        n_partners = n if self.policy.blend != "none" else 0
        if len(images) != self.batch + n_partners or not images.is_floating_point():
            raise ConfigError(
                f"step {step} has {self.batch} images and {n_partners} to blend in, floating point; given were "
                f"{len(images)} of {images.dtype}. Count the steps of the loader from 0 and convert in `transform`"
            )
        first, own = self.batch - n, labels[: self.batch].cpu().numpy()
        certain = self._sureness[step] if self.policy.labels == "agreement" else np.ones(self.batch, np.float32)
        targets = sure_rows(own, certain, n_classes)  # (batch, n_classes)
        targets[first:] *= np.float32(self.policy.loss_weight)
        if n_partners:
            rng = self._generator(step)
            rng.permutation(n)  # that of the indices
            height, width = images.shape[2:]
            found = draw_blend(self.policy.blend, self.policy.blend_alpha, n, (height, width), rng)
            shapes = (torch.from_numpy(shape).to(images.device) for shape in (found.weights, found.boxes))
            mixed = blend_images(images[first : self.batch], images[self.batch :], *shapes)
            images = torch.cat([images[:first], mixed])
            targets[first:] = blend_rows(targets[first:], labels[self.batch :].cpu().numpy(), found.shares)
        return images, torch.from_numpy(targets).to(images.device)


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
