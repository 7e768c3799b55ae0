"""Residual networks: class-conditional norms in G, spectral norm and projection in D.

The blocks of BigGAN (Brock et al. 2019, arXiv:1809.11096, appendix B) with the first convolution of a block at the
smaller side, which costs a quarter and keeps the two convolutions. Enlarging by whole pixels before a convolution
leaves no checkerboard. The label enters G at 8 px and above only: conditional GANs of few images collapse where it
steers the seed (Shahbazi et al. 2022, arXiv:2201.06578).
"""

from torch import Tensor, nn
from torch.nn import functional

from synthgen.gan.architectures.layers import ConditionalNorm, Dropout, activate, limited
from synthgen.gan.architectures.pyramid import PyramidDiscriminator, PyramidGenerator
from synthgen.gan.architectures.shape import GanShape

FIRST_CONDITIONED_SIDE = 8


class ResnetUp(nn.Module):
    """Doubles the side: norm, activation, convolution, enlargement, norm, activation, convolution; plus a short cut."""

    def __init__(self, shape: GanShape, c_in: int, c_out: int, before: int, after: int) -> None:
        super().__init__()
        self.activation = shape.activation
        self.before, self.after = before, after
        self.norm_1, self.norm_2 = ConditionalNorm(c_in, before), ConditionalNorm(c_out, after)
        self.conv_1 = nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)
        self.conv_2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.shortcut = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(N, c_in, H, W) and (N, latents + embedding) to (N, c_out, 2H, 2W)."""
        y = self.conv_1(activate(self.norm_1(x, condition[:, : self.before]), self.activation))  # (N, c_out, H, W)
        y = functional.interpolate(y, scale_factor=2.0)  # (N, c_out, 2H, 2W)
        y = self.conv_2(activate(self.norm_2(y, condition[:, : self.after]), self.activation))  # (N, c_out, 2H, 2W)
        skipped: Tensor = functional.interpolate(self.shortcut(x), scale_factor=2.0)  # (N, c_out, 2H, 2W)
        out: Tensor = skipped + y
        return out


class ResnetGenerator(PyramidGenerator):
    """Noise to a seed, residual blocks, a last norm and a convolution to pixels."""

    def __init__(self, shape: GanShape) -> None:
        super().__init__(shape)
        deepest = shape.channels_at(shape.n_halvings)
        if shape.conditioning != "none":
            self.embed = nn.Embedding(shape.n_classes, shape.embedding)
        self.first = nn.Linear(shape.latents, deepest * shape.seed_size**2)
        self.blocks = nn.ModuleList(
            ResnetUp(shape, shape.channels_at(k), shape.channels_at(k - 1), self._width_at(k), self._width_at(k - 1))
            for k in range(shape.n_halvings, 0, -1)
        )
        self.last_norms = nn.ModuleList(
            ConditionalNorm(shape.channels_at(shape.n_halvings - level), self._width_at(shape.n_halvings - level))
            for level in range(shape.first_level, shape.n_halvings + 1)
        )
        self.build_outputs(kernel=3)

    def _width_at(self, halvings: int) -> int:
        # latents first, so that a prefix of the condition leaves the label out
        shape = self.shape
        labelled = shape.conditioning != "none" and shape.side_at(halvings) >= FIRST_CONDITIONED_SIDE
        return shape.latents + (shape.embedding if labelled else 0)

    def seed(self, condition: Tensor) -> Tensor:
        """(N, width) to (N, deepest, seed_size, seed_size), from the latents alone."""
        side = self.shape.seed_size
        x: Tensor = self.first(condition[:, : self.shape.latents])
        return x.view(len(condition), -1, side, side)  # (N, deepest, side, side)

    def to_pixels(self, x: Tensor, level: int, condition: Tensor) -> Tensor:
        """Norm, activation and convolution to (N, image_channels, h, w)."""
        norm = self.last_norms[level - self.shape.first_level]
        width = self._width_at(self.shape.n_halvings - level)
        x = activate(norm(x, condition[:, :width]), self.shape.activation)
        return super().to_pixels(x, level, condition)


class ResnetDown(nn.Module):
    """Halves the side: activation, strided convolution, activation, convolution; plus an averaged short cut."""

    def __init__(self, shape: GanShape, c_in: int, c_out: int) -> None:
        super().__init__()
        self.dropout = Dropout(shape.dropout)
        self.conv_1 = limited(nn.Conv2d(c_in, c_out, 4, stride=2, padding=1), shape.d_norm)
        self.conv_2 = limited(nn.Conv2d(c_out, c_out, 3, padding=1), shape.d_norm)
        self.shortcut = limited(nn.Conv2d(c_in, c_out, 1), shape.d_norm)
        self.norm_1 = nn.BatchNorm2d(c_in) if shape.d_norm == "batch" else nn.Identity()
        self.norm_2 = nn.BatchNorm2d(c_out) if shape.d_norm == "batch" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, c_in, H, W) to (N, c_out, H/2, W/2)."""
        y = self.conv_1(functional.leaky_relu(self.norm_1(x), 0.2))  # (N, c_out, H/2, W/2)
        y = self.conv_2(functional.leaky_relu(self.norm_2(y), 0.2))
        dropped: Tensor = self.dropout(y + self.shortcut(functional.avg_pool2d(x, 2)))
        return dropped


class ResnetDiscriminator(PyramidDiscriminator):
    """Residual blocks down to the seed's side, the within-class spread, one convolution, features."""

    def __init__(self, shape: GanShape) -> None:
        super().__init__(shape)
        self.build_inputs(activation=False)
        self.blocks = nn.ModuleList(
            ResnetDown(shape, shape.channels_at(k), shape.channels_at(k + 1)) for k in range(shape.n_halvings)
        )
        deepest = shape.channels_at(shape.n_halvings)
        self.whole = limited(nn.Linear((deepest + 1) * shape.seed_size**2, self.N_FEATURES), shape.d_norm)

    def spread(self, x: Tensor, members: Tensor, n_members: int) -> Tensor:
        """Activation, then as in `Discriminator.spread`."""
        return super().spread(functional.leaky_relu(x, 0.2), members, n_members)

    def head(self, x: Tensor) -> Tensor:
        """(N, deepest + 1, seed_size, seed_size) to (N, N_FEATURES)."""
        return functional.leaky_relu(self.whole(x.flatten(1)), 0.2)
