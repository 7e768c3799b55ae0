"""Image to image: a real picture of a plentiful class and a label become a picture of a scarce class.

Owns one U-Net in two modes. `masked`: the picture already carries a pasted region, and only the dilated soft mask
around it may change. `free`: the network chooses where to change, by a soft mask of its own. The class enters by
conditional norms in the decoder and nowhere below 7x7 (28 px) or 8x8, where a class input makes small conditional
GANs collapse. Refuses nothing but a wrong size: what a mask means and how a result is judged is
`synthgen.gan.scenes`. Touches no file.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from synthgen.errors import ConfigError
from synthgen.gan.architectures.interface import Generator
from synthgen.gan.architectures.layers import ConditionalNorm
from synthgen.gan.architectures.shape import GanShape

TranslateMode = Literal["masked", "free"]
SIZES = (28, 32, 64, 128)
# sigmoid(-2) = 0.12: the free mode begins with small changes, but with a gradient that is far from vanishing
_SOFT_MASK_START = -2.0


def step_within_range(base: Tensor, raw: Tensor) -> Tensor:
    """A change of `base` that cannot leave [-1, 1] and whose gradient does not vanish at black or white.

    With t = tanh(raw), the change goes the share t of the way to white (t > 0) or -t of the way to black.

    Args:
        base: (N, C, H, W) float in [-1, 1].
        raw: (N, C, H, W) float, any value; 0 changes nothing.
    Returns:
        (N, C, H, W) residual r with base + m * r in [-1, 1] for every m in [0, 1].
    """
    share = torch.tanh(raw)
    return functional.relu(share) * (1.0 - base) - functional.relu(-share) * (1.0 + base)


def dilate_softly(mask: Tensor, radius: int) -> Tensor:
    """Grows a soft mask by `radius` pixels and blurs its rim over as many.

    Args:
        mask: (N, 1, H, W) float in [0, 1].
        radius: pixels, at least 1.
    Returns:
        (N, 1, H, W) float in [0, 1]; 0 farther than 2 * radius from the mask, 1 where the mask is 1.
    """
    grown = functional.max_pool2d(mask, 2 * radius + 1, stride=1, padding=radius)
    return functional.avg_pool2d(grown, 2 * radius + 1, stride=1, padding=radius, count_include_pad=False)


class EncoderBlock(nn.Module):
    """Halves the side: strided convolution, batch norm, leaky ReLU; knows nothing of the label."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(c_in, c_out, 4, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        """(N, c_in, H, W) to (N, c_out, H / 2, W / 2)."""
        return functional.leaky_relu(self.norm(self.down(x)), 0.2)


class DecoderBlock(nn.Module):
    """Doubles the side, adds the encoder's features of that side, conditional norm, leaky ReLU.

    Adding instead of stacking, and no further convolution at the full side, halve the cost: most of it is spent there.
    """

    def __init__(self, c_in: int, c_skip: int, condition: int, *, refined: bool) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(c_in, c_skip, 3, padding=1, bias=False)
        self.norm = ConditionalNorm(c_skip, condition)
        self.refine = nn.Conv2d(c_skip, c_skip, 3, padding=1) if refined else None

    def forward(self, x: Tensor, skip: Tensor, condition: Tensor) -> Tensor:
        """(N, c_in, H, W), (N, c_skip, 2H, 2W) and (N, condition) to (N, c_skip, 2H, 2W)."""
        # enlarged without a transposed convolution, whose chequered pattern would betray every changed region
        up = functional.interpolate(self.reduce(x), scale_factor=2, mode="bilinear", align_corners=False)
        x = functional.leaky_relu(self.norm(up + skip, condition), 0.2)  # (N, c_skip, 2H, 2W)
        return x if self.refine is None else functional.leaky_relu(self.refine(x), 0.2)


class TranslateGenerator(Generator):
    """Latents, label and a source picture to a picture of that label.

    Source: U-Net of Ronneberger et al. 2015 (arXiv:1505.04597), conditional norms of Brock et al. 2019
    (arXiv:1809.11096, section 3.1); a residual inside a mask as in Duan et al. 2023 (DFMGAN, arXiv:2303.02389,
    section 3), soft masks as in Pumarola et al. 2018 (GANimation, arXiv:1807.09251, section 4.1).
    """

    def __init__(self, shape: GanShape, mode: TranslateMode) -> None:
        """Builds the network.

        Args:
            shape: of the pictures; `channels` at full side, doubled at each halving up to `max_channels`.
            mode: `masked` or `free`.
        Raises:
            ConfigError: an unknown mode, or a side that the U-Net does not cover.
        """
        super().__init__(shape)
        if mode not in {"masked", "free"}:
            raise ConfigError(f"translate mode {mode!r} is unknown; use masked or free")
        if shape.image_size not in SIZES:
            raise ConfigError(f"translate works at sides {SIZES}, not {shape.image_size}; set prepare.image_size")
        self.mode = mode
        n_levels = shape.n_halvings - (0 if shape.seed_size == 7 else 1)  # bottom of 7x7 or 8x8
        condition = shape.latents + shape.embedding
        n_inputs = shape.image_channels + (1 if mode == "masked" else 0)
        self.mask_radius = max(1, shape.image_size // 32)
        self.embed = nn.Embedding(shape.n_classes, shape.embedding)
        self.first = nn.Conv2d(n_inputs, shape.channels_at(0), 3, padding=1)
        self.downs = nn.ModuleList(
            EncoderBlock(shape.channels_at(k), shape.channels_at(k + 1)) for k in range(n_levels)
        )
        deepest = shape.channels_at(n_levels)
        self.bottom = nn.Conv2d(deepest, deepest, 3, padding=1, bias=False)
        self.bottom_norm = ConditionalNorm(deepest, condition)
        self.ups = nn.ModuleList(
            DecoderBlock(shape.channels_at(k + 1), shape.channels_at(k), condition, refined=k > 0)
            for k in reversed(range(n_levels))
        )
        n_outputs = shape.image_channels + (1 if mode == "free" else 0)
        self.to_image = nn.Conv2d(shape.channels_at(0), n_outputs, 3, padding=1)
        # a game that starts from hardly changed composites starts where pasting alone ends
        nn.init.normal_(self.to_image.weight, 0.0, 0.02)
        assert self.to_image.bias is not None
        nn.init.zeros_(self.to_image.bias)

    def forward(self, latents: Tensor, labels: Tensor, *content: Tensor) -> Tensor:
        """Makes pictures.

        Args:
            latents: (N, latents) float32, standard normal.
            labels: (N,) int64, the classes wanted.
            content: masked: composites (N, C, H, W) float32 in [-1, 1] and soft masks (N, 1, H, W) in [0, 1];
                free: sources (N, C, H, W) float32 in [-1, 1] (what else a scene hands on is not looked at).
        Returns:
            (N, C, H, W) float32 in [-1, 1].
        """
        return self.image_and_mask(latents, labels, *content)[0]

    def image_and_mask(self, latents: Tensor, labels: Tensor, *content: Tensor) -> tuple[Tensor, Tensor]:
        """The pictures, and the soft mask through which they differ from the source.

        Args:
            latents, labels, content: as in `forward`.
        Returns:
            (N, C, H, W) float32 in [-1, 1], and (N, 1, H, W) float32 in [0, 1].
        """
        source = content[0]
        raw = self._raw(latents, labels, source if self.mode == "free" else torch.cat(content[:2], dim=1))
        if self.mode == "masked":
            mask = dilate_softly(content[1], self.mask_radius)
            return source + mask * step_within_range(source, raw), mask
        n_colours = self.shape.image_channels
        mask = torch.sigmoid(raw[:, n_colours:] + _SOFT_MASK_START)  # (N, 1, H, W)
        return torch.lerp(source, torch.tanh(raw[:, :n_colours]), mask), mask

    def _raw(self, latents: Tensor, labels: Tensor, x: Tensor) -> Tensor:
        embedded = self.embed(labels) * self.class_share
        condition = torch.cat([latents * self.truncation, embedded], dim=1)  # (N, latents + embedding)
        x = functional.leaky_relu(self.first(x), 0.2)  # (N, c0, S, S)
        skips = [x]
        for down in self.downs:
            x = down(x)
            skips.append(x)
        x = functional.leaky_relu(self.bottom_norm(self.bottom(skips.pop()), condition), 0.2)  # (N, deepest, s, s)
        for up in self.ups:
            x = up(x, skips.pop(), condition)
        raw: Tensor = self.to_image(x)  # (N, C or C + 1, S, S)
        return raw
