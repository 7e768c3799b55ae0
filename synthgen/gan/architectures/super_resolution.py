"""Second stage: small pictures to 64 or 128 px.

Owns the network that takes a picture of one side to twice or four times that side by a bounded residual on its
bilinear enlargement, so that an untrained network already gives the enlarged picture. Refuses sides that do not
reach each other by doubling. What it is trained on is `synthgen.gan.scenes.SuperResolutionScene`. Touches no
file.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from synthgen.errors import ConfigError
from synthgen.gan.architectures.interface import Generator
from synthgen.gan.architectures.layers import ConditionalNorm
from synthgen.gan.architectures.shape import GanShape
from synthgen.gan.architectures.translate import step_within_range

N_BODY = 2


class BodyBlock(nn.Module):
    """Residual block at the low side: two convolutions, each behind a conditional norm and leaky ReLU."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(ConditionalNorm(channels, condition) for _ in range(2))
        self.convolutions = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(N, C, h, w) and (N, condition) to (N, C, h, w)."""
        out = x
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            out = convolution(functional.leaky_relu(norm(out, condition), 0.2))
        return x + out


class EnlargeBlock(nn.Module):
    """Doubles the side: transposed convolution, conditional norm, leaky ReLU."""

    def __init__(self, c_in: int, c_out: int, condition: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(c_in, c_out, 4, stride=2, padding=1, bias=False)
        self.norm = ConditionalNorm(c_out, condition)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(N, c_in, h, w) and (N, condition) to (N, c_out, 2h, 2w)."""
        return functional.leaky_relu(self.norm(self.up(x), condition), 0.2)


class SuperResolutionGenerator(Generator):
    """Latents, label and a small picture to a large one.

    Source: the residual on an enlarged picture of Ledig et al. 2017 (SRGAN, arXiv:1609.04802, section 2.1) and
    Kim et al. 2016 (VDSR, arXiv:1511.04587, section 3.1), with class and latents in every norm as in G's first stage.
    """

    def __init__(self, shape: GanShape, low_size: int) -> None:
        """Builds the network.

        Args:
            shape: of the large pictures.
            low_size: side of the small ones, at least 7; `image_size` is 2, 4, 8, ... times as long.
        Raises:
            ConfigError: `low_size` does not reach `image_size` by doubling.
        """
        super().__init__(shape)
        factor, rest = divmod(shape.image_size, max(low_size, 1))
        if low_size < 7 or rest or factor < 2 or factor & (factor - 1):
            raise ConfigError(
                f"{low_size} px does not reach {shape.image_size} px by doubling; use a half, a quarter or an eighth "
                "of it, at least 7 px"
            )
        self.low_size = low_size
        n_doublings = factor.bit_length() - 1
        condition = shape.latents + shape.embedding
        body = shape.channels_at(n_doublings)
        self.embed = nn.Embedding(shape.n_classes, shape.embedding)
        self.first = nn.Conv2d(shape.image_channels, body, 3, padding=1)
        self.body = nn.ModuleList(BodyBlock(body, condition) for _ in range(N_BODY))
        self.ups = nn.ModuleList(
            EnlargeBlock(shape.channels_at(k), shape.channels_at(k - 1), condition) for k in range(n_doublings, 0, -1)
        )
        self.to_image = nn.Conv2d(shape.channels_at(0), shape.image_channels, 3, padding=1)
        nn.init.normal_(self.to_image.weight, 0.0, 0.02)
        assert self.to_image.bias is not None
        nn.init.zeros_(self.to_image.bias)

    def forward(self, latents: Tensor, labels: Tensor, *content: Tensor) -> Tensor:
        """Enlarges pictures.

        Args:
            latents: (N, latents) float32, standard normal.
            labels: (N,) int64.
            content: small pictures (N, C, low_size, low_size) float32 in [-1, 1].
        Returns:
            (N, C, S, S) float32 in [-1, 1].
        """
        low = content[0]
        embedded = self.embed(labels) * self.class_share
        condition = torch.cat([latents * self.truncation, embedded], dim=1)  # (N, latents + embedding)
        x = self.first(low)  # (N, body, low_size, low_size)
        for block in self.body:
            x = block(x, condition)
        for up in self.ups:
            x = up(x, condition)
        side = self.shape.image_size
        base = functional.interpolate(low, size=(side, side), mode="bilinear", align_corners=False)  # (N, C, S, S)
        return base + step_within_range(base, self.to_image(x))
