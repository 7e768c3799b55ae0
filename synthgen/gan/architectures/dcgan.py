"""DCGAN: strided convolutions only, batch norm, no pooling and no dense layer between image and features.

Source: Radford et al. 2016, arXiv:1511.06434, section 3. Conditional by class-conditional batch norm in G (with
`conditioning: projection`), or by the class embedding beside the latents at the seed (`concatenation`).
"""

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from synthgen.gan.architectures.layers import ConditionalNorm, Dropout, activate, limited
from synthgen.gan.architectures.pyramid import PyramidDiscriminator, PyramidGenerator
from synthgen.gan.architectures.shape import GanShape


class DcganNorm(nn.Module):
    """Batch norm, driven by the condition where the shape asks for projection, else with weights of its own."""

    def __init__(self, shape: GanShape, channels: int) -> None:
        super().__init__()
        self.conditional = shape.conditioning == "projection"
        self.norm = (
            ConditionalNorm(channels, shape.latents + shape.embedding) if self.conditional else nn.BatchNorm2d(channels)
        )

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(N, C, H, W) features and (N, width) to (N, C, H, W)."""
        normed: Tensor = self.norm(x, condition) if self.conditional else self.norm(x)
        return normed


class DcganUp(nn.Module):
    """Doubles the side: transposed convolution, norm, activation."""

    def __init__(self, shape: GanShape, c_in: int, c_out: int) -> None:
        super().__init__()
        self.activation = shape.activation
        self.up = nn.ConvTranspose2d(c_in, c_out, 4, stride=2, padding=1, bias=False)
        self.norm = DcganNorm(shape, c_out)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(N, c_in, H, W) features and (N, width) to (N, c_out, 2H, 2W)."""
        return activate(self.norm(self.up(x), condition), self.activation)


class DcganGenerator(PyramidGenerator):
    """Noise to a 4x4 or 7x7 seed, then transposed convolutions."""

    def __init__(self, shape: GanShape) -> None:
        super().__init__(shape)
        width = shape.latents + (shape.embedding if shape.conditioning != "none" else 0)
        deepest = shape.channels_at(shape.n_halvings)
        if shape.conditioning != "none":
            self.embed = nn.Embedding(shape.n_classes, shape.embedding)
        self.first = nn.Linear(width, deepest * shape.seed_size**2)
        self.first_norm = DcganNorm(shape, deepest)
        self.blocks = nn.ModuleList(
            DcganUp(shape, shape.channels_at(k), shape.channels_at(k - 1)) for k in range(shape.n_halvings, 0, -1)
        )
        self.build_outputs(kernel=3)

    def seed(self, condition: Tensor) -> Tensor:
        """(N, width) to (N, deepest, seed_size, seed_size)."""
        side = self.shape.seed_size
        x = self.first(condition).view(len(condition), -1, side, side)  # (N, deepest, side, side)
        return activate(self.first_norm(x, condition), self.shape.activation)


class DcganDown(nn.Module):
    """Halves the side: strided convolution, batch norm if wanted, leaky ReLU, dropout if wanted."""

    def __init__(self, shape: GanShape, c_in: int, c_out: int, *, is_first: bool) -> None:
        super().__init__()
        self.dropout = Dropout(shape.dropout)
        self.down = limited(nn.Conv2d(c_in, c_out, 4, stride=2, padding=1), shape.d_norm)
        # not on the layer that sees pixels: DCGAN, section 3
        has_norm = shape.d_norm == "batch" and not is_first
        self.norm = nn.BatchNorm2d(c_out) if has_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, c_in, H, W) to (N, c_out, H/2, W/2)."""
        dropped: Tensor = self.dropout(functional.leaky_relu(self.norm(self.down(x)), 0.2))
        return dropped


class DcganDiscriminator(PyramidDiscriminator):
    """Strided convolutions down to the seed's side, then one convolution over all of it."""

    def __init__(self, shape: GanShape) -> None:
        super().__init__(shape)
        widths = [shape.channels_at(k) for k in range(shape.n_halvings)]
        if shape.progressive:
            self.build_inputs(activation=True)
            widths = [widths[0], *(shape.channels_at(k) for k in range(1, shape.n_halvings + 1))]
        else:
            self.inputs = nn.ModuleList([nn.Identity()])
            widths = [shape.image_channels, *widths]
        self.blocks = nn.ModuleList(
            DcganDown(shape, c_in, c_out, is_first=k == 0) for k, (c_in, c_out) in enumerate(pairwise(widths))
        )
        deepest = shape.channels_at(shape.n_halvings)
        self.last = limited(nn.Conv2d(widths[-1], deepest, 3, padding=1), shape.d_norm)
        self.whole = limited(nn.Conv2d(deepest + 1, self.N_FEATURES, shape.seed_size), shape.d_norm)

    def spread(self, x: Tensor, members: Tensor, n_members: int) -> Tensor:
        """The last convolution at the seed's side, then as in `Discriminator.spread`."""
        return super().spread(functional.leaky_relu(self.last(x), 0.2), members, n_members)

    def head(self, x: Tensor) -> Tensor:
        """(N, deepest + 1, seed_size, seed_size) to (N, N_FEATURES)."""
        return functional.leaky_relu(self.whole(x).flatten(1), 0.2)

    def stages(self) -> Iterator[nn.Module]:
        """See `Discriminator.stages`."""
        yield from super().stages()
        yield self.last
