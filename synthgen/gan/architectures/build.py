"""From a shape to its two networks.

Owns the choice of classes; refuses nothing that `GanShape` lets through.
"""

from typing import assert_never

from synthgen.gan.architectures.dcgan import DcganDiscriminator, DcganGenerator
from synthgen.gan.architectures.interface import Discriminator, Generator
from synthgen.gan.architectures.resnet import ResnetDiscriminator, ResnetGenerator
from synthgen.gan.architectures.shape import GanShape
from synthgen.gan.architectures.style import StyleGenerator
from synthgen.gan.architectures.super_resolution import SuperResolutionGenerator
from synthgen.gan.architectures.translate import TranslateGenerator


def build_generator(shape: GanShape) -> Generator:
    """A freshly initialised generator; initial weights come from torch's global generator."""
    match shape.architecture:
        case "resnet":
            return ResnetGenerator(shape)
        case "dcgan":
            return DcganGenerator(shape)
        case "style":
            return StyleGenerator(shape)
        case "translate_masked":
            return TranslateGenerator(shape, "masked")
        case "translate_free":
            return TranslateGenerator(shape, "free")
        case "super_resolution":
            return SuperResolutionGenerator(shape, shape.low_size)
        case _ as other:
            assert_never(other)


def build_discriminator(shape: GanShape) -> Discriminator:
    """A freshly initialised discriminator; all but `dcgan` have the residual one."""
    return DcganDiscriminator(shape) if shape.architecture == "dcgan" else ResnetDiscriminator(shape)
