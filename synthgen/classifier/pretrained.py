"""Classifiers that start from weights on disk instead of random ones: the same file in every arm, a fresh last layer.

Owns reading `classifier.weights`, and the network around them: grey images shown as three channels, pixels scaled as
the weights expect them. Refuses pickles, other content than params.yaml names, and weights that do not fit the network.
Downloads nothing. What images the weights were trained on is not known here: docs/method.md says what that means.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from synthgen.artifacts import sha256_file
from synthgen.classifier.networks import ThreeChannels, build_classifier, last_layer_name
from synthgen.config import ClassifierSection
from synthgen.errors import ConfigError

RGB = 3
_COUNTER = "num_batches_tracked"  # of batch norm; some files leave it out, and nothing here reads it
_SHOWN = 3


@dataclass(frozen=True)
class Weights:
    """Trained weights as they stand in a file.

    Attributes:
        name: of the file, for messages.
        tensors: name -> values, on the CPU.
    """

    name: str
    tensors: Mapping[str, Tensor]


class Standardised(nn.Module):
    """Shows a network images whose channels are scaled as those it was trained on."""

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """`mean` and `std` of each channel, of pixels in [0, 1]."""
        super().__init__()
        self.network = network
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)  # (1, C, 1, 1)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float32 in [-1, 1] to logits."""
        logits: Tensor = self.network(((images + 1.0) / 2.0 - self.mean) / self.std)
        return logits


def load_weights(root: Path, section: ClassifierSection) -> Weights | None:
    """The weights that `section` names, or None where it names none.

    Args:
        root: of the project, which the path is relative to.
        section: `weights` is looked at.
    Raises:
        ConfigError: no such regular file, not in the safetensors format, or not of the sha256 that params.yaml names.
    """
    if section.weights is None:
        return None
    path = root / section.weights.file
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise ConfigError(f"classifier.weights.file: {path} is no regular file; name a safetensors file")
    try:
        found = sha256_file(path)
    except OSError as error:
        raise ConfigError(
            f"classifier.weights.file: {path} cannot be read ({error.strerror}); it is not downloaded"
        ) from error
    if found != section.weights.sha256:
        raise ConfigError(
            f"classifier.weights: {path} has the sha256 {found}, params.yaml names {section.weights.sha256}; if "
            "this is the file you mean, write its sha256 there: all arms are then trained again"
        )
    try:
        return Weights(section.weights.file, load_file(path))
    except (SafetensorError, OSError) as error:
        raise ConfigError(
            f"classifier.weights.file: {path} is no safetensors file ({error}); other formats are pickles, which can "
            "run code: convert it where you trust it (docs/method.md)"
        ) from error


def build_network(
    section: ClassifierSection, image_size: int, image_channels: int, n_classes: int, weights: Weights | None
) -> nn.Module:
    """The classifier that an arm trains, with its initial weights.

    Args:
        section: network, width, and how pixels are scaled for the weights.
        image_size, image_channels, n_classes: of the data.
        weights: of `load_weights`; None: random ones.
    Returns:
        module from (N, image_channels, image_size, image_size) float32 in [-1, 1] to (N, n_classes) logits. With
        `weights` all but its last layer is theirs; the last layer is drawn from torch's global generator.
    Raises:
        ConfigError: see `build_classifier`; or the weights are not those of this network, or were not handed in.
    """
    rules = section.weights
    if rules is None:
        return build_classifier(section.network, image_size, image_channels, n_classes, section.width)
    if weights is None:
        raise ConfigError(
            f"classifier.weights: {rules.file} was not handed to the training; that is an error of this program"
        )
    network = build_classifier(section.network, image_size, RGB, n_classes, section.width)
    head = last_layer_name(network, n_classes, "classifier.weights")
    own = {name: value for name, value in network.state_dict().items() if not name.startswith(f"{head}.")}
    given = {name: value for name, value in weights.tensors.items() if not name.startswith(f"{head}.")}
    _check_fit(section, weights.name, own, given)
    network.load_state_dict(given, strict=False)
    shown = ThreeChannels(network) if image_channels == 1 else network
    return Standardised(shown, rules.mean, rules.std)


def _check_fit(section: ClassifierSection, name: str, own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    missing = sorted(key for key in own.keys() - given.keys() if not key.endswith(_COUNTER))
    more = sorted(given.keys() - own.keys())
    shapes = sorted(key for key in own.keys() & given.keys() if own[key].shape != given[key].shape)
    for keys, what in ((missing, "lacks"), (more, "has, and the network has not,"), (shapes, "has in another shape")):
        if keys:
            raise ConfigError(
                f"classifier.weights: {name} {what} {', '.join(keys[:_SHOWN])}{' ...' if len(keys) > _SHOWN else ''} "
                f"({len(keys)} in all); are they weights of classifier.network {section.network}"
                f"{f' of width {section.width}' if section.network == 'small_cnn' else ''}, for three channels?"
            )
