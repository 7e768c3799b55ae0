"""Generator and discriminator: class-conditional, small, for 8 to 128 px.

Owns shapes only. No file is touched and no random number is drawn but the initial weights.
The structure is a DCGAN with conditional batch norm in G (Brock et al. 2019, arXiv:1809.11096, section 3.1:
class embedding and latents drive every normalisation) and projection in D (Miyato and Koyama 2018,
arXiv:1802.05637), with a within-class minibatch standard deviation (Karras et al. 2018, arXiv:1710.10196,
section 3, here over images of one label, so that collapse inside a class shows).
"""

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from synthgen.config import GeneratorSection


@dataclass(frozen=True)
class GanShape:
    """Everything that fixes the shapes of both networks.

    Attributes:
        image_size: 8, 16, 28, 32, 64 or 128 px, square.
        image_channels: 1 or 3.
        n_classes: labels run from 0 to n_classes - 1.
        latents: length of the latent vector.
        embedding: length of the class embedding.
        channels: channels at full resolution, doubled at each halving up to `max_channels`.
        minibatch_std: factor on the within-class standard deviation that D sees; 0 leaves it out.
    """

    image_size: int
    image_channels: int
    n_classes: int
    latents: int
    embedding: int
    channels: int
    max_channels: int
    minibatch_std: float

    @classmethod
    def of(cls, section: GeneratorSection, image_size: int, image_channels: int, n_classes: int) -> "GanShape":
        """The shape that a config section asks for."""
        return cls(image_size, image_channels, n_classes, **section.model_dump())

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for model.json and the generator digest."""
        return asdict(self)

    @property
    def seed_size(self) -> int:
        """Side of the smallest feature map: 7 for 28 px, else 4."""
        return 7 if self.image_size % 7 == 0 else 4

    @property
    def n_halvings(self) -> int:
        """How often the side doubles in G and halves in D."""
        return int(math.log2(self.image_size // self.seed_size))

    def channels_at(self, halvings: int) -> int:
        """Channels after `halvings` halvings of the full side."""
        return min(self.max_channels, self.channels << halvings)


class ConditionalNorm(nn.Module):
    """Batch norm whose scale and offset are linear in the condition."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.scale_and_offset = nn.Linear(condition, 2 * channels)
        nn.init.normal_(self.scale_and_offset.weight, 0.0, 0.02)
        nn.init.zeros_(self.scale_and_offset.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(N, C, H, W) features and (N, condition) to (N, C, H, W)."""
        scale, offset = self.scale_and_offset(condition)[:, :, None, None].chunk(2, dim=1)  # (N, C, 1, 1)
        normed: Tensor = self.norm(x)  # (N, C, H, W)
        return torch.addcmul(offset, normed, 1.0 + scale)


class GeneratorBlock(nn.Module):
    """Doubles the side: transposed convolution, conditional norm, leaky ReLU."""

    def __init__(self, c_in: int, c_out: int, condition: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(c_in, c_out, 4, stride=2, padding=1, bias=False)
        self.norm = ConditionalNorm(c_out, condition)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(N, c_in, H, W) features and (N, condition) to (N, c_out, 2H, 2W)."""
        return functional.leaky_relu(self.norm(self.up(x), condition), 0.2)  # (N, c_out, 2H, 2W)


class Generator(nn.Module):
    """Latents and label to image."""

    def __init__(self, shape: GanShape) -> None:
        super().__init__()
        self.shape = shape
        condition = shape.latents + shape.embedding
        deepest = shape.channels_at(shape.n_halvings)
        self.embed = nn.Embedding(shape.n_classes, shape.embedding)
        self.seed = nn.Linear(condition, deepest * shape.seed_size**2)
        self.seed_norm = ConditionalNorm(deepest, condition)
        self.blocks = nn.ModuleList(
            GeneratorBlock(shape.channels_at(k), shape.channels_at(k - 1), condition)
            for k in range(shape.n_halvings, 0, -1)
        )
        self.to_image = nn.Conv2d(shape.channels_at(0), shape.image_channels, 3, padding=1)

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        """Makes images.

        Args:
            latents: (N, latents) float32, standard normal.
            labels: (N,) int64.
        Returns:
            (N, C, H, W) float32 in [-1, 1].
        """
        condition = torch.cat([latents, self.embed(labels)], dim=1)  # (N, latents + embedding)
        side = self.shape.seed_size
        x = self.seed(condition).view(len(latents), -1, side, side)  # (N, deepest, side, side)
        x = functional.leaky_relu(self.seed_norm(x, condition), 0.2)
        for block in self.blocks:
            x = block(x, condition)
        return torch.tanh(self.to_image(x))


def within_class_std(x: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """Mean standard deviation over the images of the same label.

    Args:
        x: (N, C, H, W) features.
        labels: (N,) int64.
    Returns:
        (N, 1, H, W), constant over H and W: for each image, the mean over features of the standard
        deviation among the images of its label in this batch (0 for a label that occurs once).
    """
    flat = x.flatten(1)  # (N, F)
    member = functional.one_hot(labels, n_classes).to(x.dtype)  # (N, K)
    share = member / member.sum(0).clamp(min=1.0)  # (N, K), columns sum to 1
    mean = share.t() @ flat  # (K, F)
    variance = share.t() @ (flat - mean[labels]).square()  # (K, F)
    # the small constant keeps the square root's gradient finite for labels that occur once
    std = (variance + 1e-8).sqrt().mean(1)  # (K,)
    return std[labels].view(-1, 1, 1, 1).expand(-1, 1, x.shape[2], x.shape[3])


class Discriminator(nn.Module):
    """Image and label to one logit: how real the image looks as a member of its class."""

    def __init__(self, shape: GanShape) -> None:
        super().__init__()
        self.shape = shape
        widths = [shape.image_channels, *(shape.channels_at(k) for k in range(shape.n_halvings))]
        self.downs = nn.ModuleList(nn.Conv2d(c_in, c_out, 4, stride=2, padding=1) for c_in, c_out in pairwise(widths))
        deepest = shape.channels_at(shape.n_halvings)
        self.last = nn.Conv2d(widths[-1], deepest, 3, padding=1)
        self.dense = nn.Linear((deepest + 1) * shape.seed_size**2, 128)
        self.unconditional = nn.Linear(128, 1)
        self.project = nn.Embedding(shape.n_classes, 128)
        nn.init.normal_(self.project.weight, 0.0, 0.02)

    def forward(self, images: Tensor, labels: Tensor, fakes: Tensor | None = None) -> Tensor:
        """Judges images.

        Args:
            images: (N, C, H, W) float32 in [-1, 1].
            labels: (N,) int64.
            fakes: (N,) bool; reals and fakes judged in one batch keep a within-class spread of their own.
                None: all images are of one kind.
        Returns:
            (N,) float32 logits, the same as for two batches.
        """
        x = images
        for down in self.downs:
            x = functional.leaky_relu(down(x), 0.2)
        x = functional.leaky_relu(self.last(x), 0.2)  # (N, deepest, side, side)
        if self.shape.minibatch_std > 0.0:
            n_classes = self.shape.n_classes
            members, n_members = (labels, n_classes) if fakes is None else (labels + n_classes * fakes, 2 * n_classes)
            spread = self.shape.minibatch_std * within_class_std(x, members, n_members)
        else:
            spread = torch.zeros_like(x[:, :1])
        features = functional.leaky_relu(self.dense(torch.cat([x, spread], dim=1).flatten(1)), 0.2)  # (N, 128)
        logits: Tensor = self.unconditional(features).squeeze(1) + (features * self.project(labels)).sum(1)
        return logits
