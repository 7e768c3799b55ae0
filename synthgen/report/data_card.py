"""README.md of `data/augmented/`: what the data set holds, how it was made, and what it must not be used for.

Owns the card's facts and wording, with the header by which Hugging Face datasets finds the shards.
Refuses to state a licence of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from synthgen.report.environment import markdown_environment

# What EXPERIMENTS measured as the only mixing that does not hurt; the card recommends it whatever was tried.

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


@dataclass(frozen=True)
class CardClass:
    """One class of the card.

    Attributes:
        real, groups: training images and the objects that they show.
        cut: whether the class was made scarce on purpose.
        surplus: images taken out of training by that, and tested on; 0 where they were dropped.
        synthetic, candidates: accepted and drawn.
        generator: `adapted`, `shared`, `scratch` or `morphed`.
        refused: why there is no synthetic image of the class, if the gate refused them.
        between_reals: whether samples were drawn between training images in latent space.
    """

    slug: str
    class_name: str
    label: int
    scarce: bool
    real: int
    groups: int
    cut: bool
    surplus: int
    synthetic: int
    candidates: int
    generator: str
    generator_digest: str
    diversity_ratio: float | None
    refused: str | None
    between_reals: bool = False


@dataclass(frozen=True)
class CardContent:
    """All that the card says."""

    image_size: int
    channels: int
    mode: str
    surplus: str
    classes: Sequence[CardClass]
    share: float
    blend: str = "none"


def size_category(n_images: int) -> str:
    """Hugging Face's size category of a data set."""
    return next((name for limit, name in _SIZES if n_images < limit), "n>1M")


def render_data_card(content: CardContent) -> str:
    """The card as Markdown with a YAML header; equal content gives equal bytes."""
    n_real = sum(entry.real for entry in content.classes)
    n_synthetic = sum(entry.synthetic for entry in content.classes)
    values: Mapping[str, Any] = {
        "card": content,
        "n_real": n_real,
        "n_groups": sum(entry.groups for entry in content.classes),
        "n_synthetic": n_synthetic,
        "size": size_category(n_real + n_synthetic),
        "simulated": [entry for entry in content.classes if entry.cut],
        "refused": [entry for entry in content.classes if entry.refused],
        "share": content.share,
    }
    return markdown_environment().get_template("README.md.j2").render(values)
