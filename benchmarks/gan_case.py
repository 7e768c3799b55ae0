"""The one GAN training that `make bench` times in three ways: 32 px, one channel, the default section.

Owns the data (random pixels, as no figure depends on what they show), the config and the networks of the loops that
are compared with `train_gan`.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthgen.config import PretrainSection, TransformsSection
from synthgen.gan.architectures.build import build_discriminator, build_generator
from synthgen.gan.architectures.interface import Discriminator, Generator
from synthgen.gan.architectures.shape import GanShape
from synthgen.gan.diffaugment import diffaugment

N_CLASSES = 10
PER_CLASS = 100


@dataclass(frozen=True)
class GanCase:
    """What all three loops train.

    Attributes:
        images: (n, 32, 32, 1) uint8; labels: (n,) int64.
        shape, section, transforms: defaults of params.yaml.
        steps: optimizer steps of each network.
        device: to train on.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    shape: GanShape
    section: PretrainSection
    transforms: TransformsSection
    steps: int
    device: torch.device

    @property
    def kimg(self) -> float:
        """The length as `train_gan` counts it."""
        return self.steps * self.section.batch / 1000

    def augment(self, x: Tensor, noise: torch.Generator) -> Tensor:
        """DiffAugment as the section asks for it; (N, C, H, W) to the same."""
        section = self.section
        return diffaugment(x, noise, translate=section.diffaugment_translation, cut=section.diffaugment_cutout)

    def networks(self, seed: int) -> tuple[Generator, Discriminator]:
        """Fresh networks on the device."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return (
                build_generator(self.shape).to(self.device).train(),
                build_discriminator(self.shape).to(self.device).train(),
            )


def make_case(steps: int, device: torch.device) -> GanCase:
    """The case with `steps` steps on `device`."""
    rng = np.random.default_rng(0)
    section = PretrainSection()
    return GanCase(
        images=rng.integers(0, 256, (N_CLASSES * PER_CLASS, 32, 32, 1), dtype=np.uint8),
        labels=np.arange(N_CLASSES * PER_CLASS) % N_CLASSES,
        shape=GanShape.of(section.network, 32, 1, N_CLASSES),
        section=section,
        transforms=TransformsSection(),
        steps=steps,
        device=device,
    )
