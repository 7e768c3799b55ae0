"""Layers that several architectures share.

Owns conditional normalisation, the within-class spread that D sees, dropout, and activations by name. Refuses nothing.
"""

from typing import assert_never

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from synthgen.config import Activation, DiscriminatorNorm


class ConditionalNorm(nn.Module):
    """Batch norm whose scale and offset are linear in the condition (Brock et al. 2019, arXiv:1809.11096, 3.1)."""

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


def within_class_std(x: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """Mean standard deviation over the images of the same label.

    Args:
        x: (N, C, H, W) features.
        labels: (N,) int64.
    Returns:
        (N, 1, H, W), constant over H and W: for each image, the mean over features of the standard
        deviation among the images of its label in this batch (0 for a label that occurs once).
    Source: Karras et al. 2018, arXiv:1710.10196, section 3, here inside a label, so that collapse of a class shows.
    """
    flat = x.flatten(1)  # (N, F)
    member = functional.one_hot(labels, n_classes).to(x.dtype)  # (N, K)
    share = member / member.sum(0).clamp(min=1.0)  # (N, K), columns sum to 1
    mean = share.t() @ flat  # (K, F)
    variance = share.t() @ (flat - mean[labels]).square()  # (K, F)
    # the small constant keeps the square root's gradient finite for labels that occur once
    std = (variance + 1e-8).sqrt().mean(1)  # (K,)
    return std[labels].view(-1, 1, 1, 1).expand(-1, 1, x.shape[2], x.shape[3])


def activate(x: Tensor, activation: Activation) -> Tensor:
    """The generator's activation; any shape to the same."""
    match activation:
        case "relu":
            return functional.relu(x)
        case "leaky_relu":
            return functional.leaky_relu(x, 0.2)
        case "selu":
            return functional.selu(x)
        case _ as other:
            assert_never(other)


class Dropout(nn.Module):
    """Sets a share of the features to 0 while training, by random numbers of the game's own, which a resume restores.

    Attributes:
        random: their source; None takes torch's global one.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.random: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same, with the same mean."""
        if not self.training or self.share == 0.0:
            return x
        kept = torch.rand(x.shape, generator=self.random, device=x.device) >= self.share
        return x * kept / (1.0 - self.share)


def limited(layer: nn.Module, norm: DiscriminatorNorm) -> nn.Module:
    """`layer`, its spectral norm held at 1 where D asks for that (Miyato et al. 2018, arXiv:1802.05957)."""
    return spectral_norm(layer) if norm == "spectral" else layer
