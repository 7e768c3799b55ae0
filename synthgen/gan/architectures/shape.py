"""The numbers that fix the shapes of a generator and its discriminator, and nothing else.

Owns `GanShape`, which model.json holds and the generator digest covers. Refuses sizes that no architecture is made for.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

from synthgen.config import (
    Activation,
    Architecture,
    Conditioning,
    DiscriminatorNorm,
    GeneratorOutput,
    GeneratorSection,
)
from synthgen.errors import ConfigError

SIZES = (8, 16, 28, 32, 64, 128)
AUTO_NORM: dict[Architecture, DiscriminatorNorm] = {"resnet": "spectral", "dcgan": "batch"}
FIRST_GROWN_SIDE = 7
"""A progressive GAN starts at 8 px; at 7 for images of 28 px, which halve to 14 and 7."""


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
        (others): see `GeneratorSection`.
    """

    image_size: int
    image_channels: int
    n_classes: int
    latents: int
    embedding: int
    channels: int
    max_channels: int
    minibatch_std: float
    architecture: Architecture = "resnet"
    conditioning: Conditioning = "projection"
    auxiliary: bool = False
    activation: Activation = "leaky_relu"
    output: GeneratorOutput = "tanh"
    d_norm: DiscriminatorNorm = "none"
    dropout: float = 0.0
    progressive: bool = False
    low_size: int = 32

    def __post_init__(self) -> None:
        """Refuses what cannot be built.

        Raises:
            ConfigError: another side, or a number of channels other than 1 or 3.
        """
        if self.image_size not in SIZES or self.image_channels not in {1, 3}:
            raise ConfigError(
                f"a GAN of {self.image_size} px and {self.image_channels} channel(s) cannot be built; sides are "
                f"{', '.join(map(str, SIZES))} px, channels 1 or 3 (prepare.image_size, prepare.channels)"
            )

    @classmethod
    def of(cls, section: GeneratorSection, image_size: int, image_channels: int, n_classes: int) -> "GanShape":
        """The shape that a config section asks for."""
        values = section.model_dump()
        if section.d_norm == "auto":
            values["d_norm"] = AUTO_NORM.get(section.architecture, "none")
        return cls(image_size, image_channels, n_classes, **values)

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

    @property
    def first_level(self) -> int:
        """Doublings of the seed after which a progressive GAN shows its first image; the full number if it is none."""
        if not self.progressive:
            return self.n_halvings
        return 0 if self.seed_size >= FIRST_GROWN_SIDE else 1

    def channels_at(self, halvings: int) -> int:
        """Channels after `halvings` halvings of the full side."""
        return min(self.max_channels, self.channels << halvings)

    def side_at(self, halvings: int) -> int:
        """Side after `halvings` halvings of the full side, in px."""
        return self.image_size >> halvings
