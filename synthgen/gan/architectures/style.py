"""A style-based generator: mapping network, weight-modulated convolutions, noise inputs, style mixing, truncation.

Source: Karras et al. 2019, arXiv:1812.04948 (mapping, mixing regularisation 3.1, truncation B), and Karras et al.
2020, arXiv:1912.04958 (weight modulation and demodulation, 2.2; skip-free output here). Modulating the weights of one
convolution is the same as scaling its input channels by the style and its output channels by the demodulation: done
that way, no image needs a convolution of its own. The discriminator is the residual one.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from synthgen.gan.architectures.layers import activate
from synthgen.gan.architectures.pyramid import PyramidGenerator
from synthgen.gan.architectures.shape import GanShape

W_AVERAGE_DECAY = 0.995


class ModulatedConv(nn.Module):
    """A convolution whose input channels are scaled per image by a style, and whose outputs keep unit variance."""

    def __init__(self, c_in: int, c_out: int, kernel: int, width: int, *, demodulate: bool = True) -> None:
        super().__init__()
        self.demodulate = demodulate
        self.weight = nn.Parameter(torch.randn(c_out, c_in, kernel, kernel) / (c_in * kernel * kernel) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(c_out))
        self.style = nn.Linear(width, c_in)
        nn.init.normal_(self.style.weight, 0.0, width**-0.5)
        nn.init.ones_(self.style.bias)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """(N, c_in, H, W) and (N, width) to (N, c_out, H, W)."""
        style = self.style(w)  # (N, c_in)
        y = functional.conv2d(x * style[:, :, None, None], self.weight, padding=self.weight.shape[2] // 2)
        if self.demodulate:
            energy = self.weight.square().sum(dim=(2, 3))  # (c_out, c_in)
            scale = (style.square() @ energy.t() + 1e-8).rsqrt()  # (N, c_out)
            y = y * scale[:, :, None, None]
        return y + self.bias[:, None, None]


class StyledLayer(nn.Module):
    """Modulated convolution, noise, activation."""

    def __init__(self, shape: GanShape, c_in: int, c_out: int, side: int) -> None:
        super().__init__()
        self.activation = shape.activation
        self.conv = ModulatedConv(c_in, c_out, 3, shape.latents)
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.register_buffer("noise", torch.randn(1, 1, side, side))
        self.noise: Tensor

    def forward(self, x: Tensor, w: Tensor, random: torch.Generator | None) -> Tensor:
        """(N, c_in, H, W) and (N, width) to (N, c_out, H, W); fixed noise where `random` is None."""
        x = self.conv(x, w)
        noise = self.noise
        if random is not None:
            noise = torch.randn(len(x), 1, *x.shape[2:], generator=random, device=x.device)
        return activate(x + self.noise_strength * noise, self.activation)


class StyledUp(nn.Module):
    """Doubles the side by whole pixels, then two styled layers."""

    def __init__(self, shape: GanShape, c_in: int, c_out: int, side: int) -> None:
        super().__init__()
        self.layer_1 = StyledLayer(shape, c_in, c_out, side // 2)
        self.layer_2 = StyledLayer(shape, c_out, c_out, side)
        self.random: torch.Generator | None = None

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """(N, c_in, H, W) and (N, width) to (N, c_out, 2H, 2W)."""
        x = functional.interpolate(self.layer_1(x, w, self.random), scale_factor=2.0)  # (N, c_out, 2H, 2W)
        out: Tensor = self.layer_2(x, w, self.random)
        return out


class StyleGenerator(PyramidGenerator):
    """Latents and label through a mapping network to the styles of every block; the seed is learned and constant."""

    def __init__(self, shape: GanShape) -> None:
        super().__init__(shape)
        deepest, width = shape.channels_at(shape.n_halvings), shape.latents
        labelled = shape.conditioning != "none"
        if labelled:
            self.embed = nn.Embedding(shape.n_classes, shape.embedding)
        self.mapping = nn.Sequential(
            nn.Linear(width + (shape.embedding if labelled else 0), width),
            nn.LeakyReLU(0.2),
            nn.Linear(width, width),
            nn.LeakyReLU(0.2),
        )
        self.constant = nn.Parameter(torch.randn(1, deepest, shape.seed_size, shape.seed_size))
        self.first = StyledLayer(shape, deepest, deepest, shape.seed_size)
        self.blocks = nn.ModuleList(
            StyledUp(shape, shape.channels_at(k), shape.channels_at(k - 1), shape.side_at(k - 1))
            for k in range(shape.n_halvings, 0, -1)
        )
        self.outputs = nn.ModuleList(
            ModulatedConv(shape.channels_at(shape.n_halvings - level), shape.image_channels, 1, width, demodulate=False)
            for level in range(shape.first_level, shape.n_halvings + 1)
        )
        self.register_buffer("w_average", torch.zeros(shape.n_classes, width))
        self.w_average: Tensor

    def styles(self, latents: Tensor, labels: Tensor) -> Tensor:
        """(N, latents) and (N,) int64 to styles (N, latents)."""
        z = latents * (latents.square().mean(1, keepdim=True) + 1e-8).rsqrt()
        if self.shape.conditioning != "none":
            z = torch.cat([z, self.embed(labels) * self.class_share], dim=1)
        w: Tensor = self.mapping(z)
        return w

    def conditions(self, latents: Tensor, labels: Tensor) -> list[Tensor]:
        """The style of each level: two styles of a label mixed at a random level while training, truncated if asked."""
        n_levels = self.shape.n_halvings + 1
        w = self.styles(latents, labels)
        if self.training:
            self._follow(w.detach(), labels)
        for block in self.blocks:
            assert isinstance(block, StyledUp)
            block.random = self.random if self.training else None
        if self.truncation < 1.0:
            w = torch.lerp(self.w_average[labels], w, self.truncation)
        if not self.training or self.random is None:
            return [w] * n_levels
        draw = torch.rand(2, generator=self.random, device=w.device)
        other = self.styles(torch.randn(latents.shape, generator=self.random, device=w.device), labels)
        # one crossing for the batch, as a tensor: no synchronisation; beyond the last level nothing is mixed
        crossing = 1.0 + (draw[0] * (n_levels - 1)).floor() + n_levels * (draw[1] >= self.style_mixing)
        return [torch.where(crossing <= level, other, w) for level in range(n_levels)]

    @torch.no_grad()
    def _follow(self, w: Tensor, labels: Tensor) -> None:
        member = functional.one_hot(labels, self.shape.n_classes).to(w.dtype)  # (N, K)
        counts = member.sum(0)  # (K,)
        means = member.t() @ w / counts.clamp(min=1.0)[:, None]  # (K, width)
        rate = (1.0 - W_AVERAGE_DECAY) * (counts > 0).to(w.dtype)[:, None]
        self.w_average.lerp_(means, rate)

    def seed(self, condition: Tensor) -> Tensor:
        """(N, latents) styles to (N, deepest, seed_size, seed_size)."""
        x = self.constant.expand(len(condition), -1, -1, -1)
        first: Tensor = self.first(x, condition, self.random if self.training else None)
        return first

    def to_pixels(self, x: Tensor, level: int, condition: Tensor) -> Tensor:
        """A 1x1 modulated convolution to (N, image_channels, h, w)."""
        pixels: Tensor = self.outputs[level - self.shape.first_level](x, condition)
        return pixels
