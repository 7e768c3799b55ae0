"""Generators that double a seed and discriminators that halve an image, whole or grown level by level.

Owns the order of blocks and the fading-in of new ones (Karras et al. 2018, arXiv:1710.10196, section 2); the blocks
themselves belong to `dcgan.py`, `resnet.py` and `style.py`. Level L is the seed doubled L times. Images are at full
side on both ends also while a progressive network is small: G enlarges its output by whole pixels, D averages its
input.
"""

from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from synthgen.gan.architectures.interface import Discriminator, Generator
from synthgen.gan.architectures.layers import limited
from synthgen.gan.architectures.shape import GanShape


def shown_levels(growth: float, shape: GanShape) -> tuple[int, float]:
    """The highest level in use and how far it is faded in, in (0, 1]."""
    growth = min(max(growth, float(shape.first_level)), float(shape.n_halvings))
    top = int(growth) if growth == int(growth) else int(growth) + 1
    return top, 1.0 if growth == top else growth - (top - 1)


class PyramidGenerator(Generator):
    """Seed, doubling blocks, image. A kind sets `seed` and `blocks`, and `to_image` through `build_outputs`."""

    def __init__(self, shape: GanShape) -> None:
        super().__init__(shape)
        self.blocks = nn.ModuleList()
        self.outputs = nn.ModuleList()
        self.embed: nn.Embedding  # set by the kind, where it is given a label

    def build_outputs(self, kernel: int) -> None:
        """One layer to pixels for each level that can be shown."""
        shape = self.shape
        self.outputs = nn.ModuleList(
            nn.Conv2d(shape.channels_at(shape.n_halvings - level), shape.image_channels, kernel, padding=kernel // 2)
            for level in range(shape.first_level, shape.n_halvings + 1)
        )

    def conditions(self, latents: Tensor, labels: Tensor) -> list[Tensor]:
        """The condition of the seed and of each block, n_halvings + 1 tensors of (N, width).

        Here latents, then the class embedding, the same everywhere; a prefix leaves the label out.
        """
        condition = latents * self.truncation
        if self.shape.conditioning != "none":
            condition = torch.cat([condition, self.embed(labels) * self.class_share], dim=1)
        return [condition] * (self.shape.n_halvings + 1)

    @abstractmethod
    def seed(self, condition: Tensor) -> Tensor:
        """(N, width) to (N, C, seed_size, seed_size)."""

    def to_pixels(self, x: Tensor, level: int, condition: Tensor) -> Tensor:
        """(N, C, h, w) features of a level and its condition to (N, image_channels, h, w)."""
        pixels: Tensor = self.outputs[level - self.shape.first_level](x)
        return pixels

    def forward(self, latents: Tensor, labels: Tensor, *content: Tensor) -> Tensor:
        """See `Generator.forward`."""
        conditions = self.conditions(latents, labels)
        top, faded_in = shown_levels(self.growth, self.shape)
        before = x = self.seed(conditions[0])
        for level in range(1, top + 1):
            before, x = x, self.blocks[level - 1](x, conditions[level])
        image = self.to_pixels(x, top, conditions[top])
        if faded_in < 1.0:
            smaller = self.to_pixels(before, top - 1, conditions[top - 1])
            image = torch.lerp(functional.interpolate(smaller, scale_factor=2.0), image, faded_in)
        image = self.finish(image)
        n_left = self.shape.n_halvings - top
        return functional.interpolate(image, scale_factor=float(1 << n_left)) if n_left else image


class PyramidDiscriminator(Discriminator):
    """Image, halving blocks, features. A kind sets `inputs`, `blocks` (highest level first) and `head`."""

    def __init__(self, shape: GanShape) -> None:
        super().__init__(shape)
        self.inputs = nn.ModuleList()
        self.blocks = nn.ModuleList()

    def build_inputs(self, activation: bool) -> None:
        """One layer from pixels for each level that can be shown, highest first."""
        shape = self.shape
        self.inputs = nn.ModuleList(
            nn.Sequential(
                limited(nn.Conv2d(shape.image_channels, shape.channels_at(shape.n_halvings - level), 1), shape.d_norm),
                nn.LeakyReLU(0.2) if activation else nn.Identity(),
            )
            for level in range(shape.n_halvings, shape.first_level - 1, -1)
        )

    @abstractmethod
    def head(self, x: Tensor) -> Tensor:
        """(N, C + 1, seed_size, seed_size) to (N, N_FEATURES)."""

    def trunk(self, images: Tensor, members: Tensor, n_members: int) -> Tensor:
        """See `Discriminator.trunk`."""
        top, faded_in = shown_levels(self.growth, self.shape)
        skipped = self.shape.n_halvings - top
        x = functional.avg_pool2d(images, 1 << skipped) if skipped else images
        y = self.inputs[skipped](x)
        for position in range(skipped, self.shape.n_halvings):
            y = self.blocks[position](y)
            if position == skipped and faded_in < 1.0:
                y = torch.lerp(self.inputs[skipped + 1](functional.avg_pool2d(x, 2)), y, faded_in)
        return self.head(self.spread(y, members, n_members))

    def stages(self) -> Iterator[nn.Module]:
        """See `Discriminator.stages`."""
        yield self.inputs
        yield from self.blocks
