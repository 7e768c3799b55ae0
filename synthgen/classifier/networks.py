"""Classifier networks by name: a small default, torchvision's and timm's.

Owns construction from a name; refuses names that no library knows. Weights are random: every arm starts
from the same ones, and nothing is downloaded. Weights from a file: `synthgen.classifier.pretrained`.
"""

import copy

import torch
from torch import Tensor, nn

from synthgen.errors import ConfigError

SMALL = "small_cnn"


class SmallCnn(nn.Module):
    """Convolution, batch norm, pooling, ReLU, down to a side of at most 4; then the mean and a linear layer.

    ReLU after pooling gives the same values and gradients as before it, on a quarter of the values.
    """

    def __init__(self, image_size: int, image_channels: int, n_classes: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        c_in, c_out, side = image_channels, width, image_size
        while True:
            layers += [nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out)]
            if side <= 4:
                layers.append(nn.ReLU())
                break
            layers += [nn.MaxPool2d(2), nn.ReLU()]
            c_in, c_out, side = c_out, min(2 * c_out, 4 * width), side // 2
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(c_out, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float32 to (N, n_classes) logits."""
        x = self.features(images).mean(dim=(2, 3))  # (N, width of the last stage)
        logits: Tensor = self.head(x)
        return logits


class ThreeChannels(nn.Module):
    """Shows a grey image to a network made for colour."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """(N, 1, H, W) float32 to logits."""
        logits: Tensor = self.network(images.expand(-1, 3, -1, -1))
        return logits


def build_classifier(name: str, image_size: int, image_channels: int, n_classes: int, width: int) -> nn.Module:
    """A freshly initialised classifier.

    Args:
        name: `small_cnn`, a torchvision classification model (`resnet18`), or `timm:NAME`.
        image_size, image_channels, n_classes: of the data.
        width: channels of the first stage of `small_cnn`; the others have their own.
    Returns:
        module from (N, image_channels, image_size, image_size) float32 to (N, n_classes) logits.
    Raises:
        ConfigError: no such model, one that cannot take such images, or timm is not installed.
    """
    network: nn.Module
    if name == SMALL:
        return SmallCnn(image_size, image_channels, n_classes, width)
    if name.startswith("timm:"):
        try:
            import timm
        except ImportError as error:
            raise ConfigError(f"classifier.network {name!r} needs timm: pip install 'synthgen[timm]'") from error
        if not timm.is_model(name.removeprefix("timm:")):
            raise ConfigError(f"classifier.network {name!r}: timm knows no such model (timm.list_models())")
        network = timm.create_model(
            name.removeprefix("timm:"), pretrained=False, num_classes=n_classes, in_chans=image_channels
        )
        return _fitting(name, network, image_size, image_channels, n_classes)
    from torchvision import models

    if name not in models.list_models(module=models):
        raise ConfigError(
            f"classifier.network {name!r} is neither {SMALL}, a torchvision model (resnet18, ...) nor timm:NAME"
        )
    network = models.get_model(name, weights=None, num_classes=n_classes)
    shown = ThreeChannels(network) if image_channels == 1 else network
    return _fitting(name, shown, image_size, image_channels, n_classes)


def _fitting(name: str, network: nn.Module, image_size: int, image_channels: int, n_classes: int) -> nn.Module:
    """Hands `network` back if it turns such images into one row of logits each, in training too.

    Some models want 224 px, others give several outputs while they train: better said here than after an hour.
    """
    trial = copy.deepcopy(network).train()
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            logits = trial(torch.zeros(2, image_channels, image_size, image_size))
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        raise ConfigError(
            f"classifier.network {name!r} cannot take images of {image_size} px with {image_channels} channel(s) "
            f"({' '.join(str(error).split())[:120]}); take {SMALL} or resnet18, or raise prepare.image_size"
        ) from error
    if not isinstance(logits, Tensor) or logits.shape != (2, n_classes):
        raise ConfigError(
            f"classifier.network {name!r} does not give one row of {n_classes} logits per image while it trains; "
            f"take {SMALL} or resnet18"
        )
    return network


def last_layer_name(network: nn.Module, n_classes: int, who: str) -> str:
    """Name of the layer that turns features into logits.

    Args:
        network: a classifier; n_classes: its outputs.
        who: needs it, for the message.
    Raises:
        ConfigError: the network does not end in a linear layer of `n_classes` outputs.
    """
    named: list[tuple[str, nn.Module]] = list(network.named_modules())
    for name, module in reversed(named):
        if isinstance(module, nn.Linear) and module.out_features == n_classes:
            return name
    raise ConfigError(
        f"{who} needs a network that ends in a linear layer of {n_classes} outputs, "
        f"{type(network).__name__} does not; take {SMALL} or resnet18, or leave it out"
    )


def last_layer(network: nn.Module, n_classes: int) -> nn.Linear:
    """The layer that turns features into logits.

    Raises:
        ConfigError: see `last_layer_name`.
    """
    layer = network.get_submodule(last_layer_name(network, n_classes, "arm decoupled"))
    assert isinstance(layer, nn.Linear)
    return layer


def count_parameters(network: nn.Module) -> int:
    """Number of trained numbers."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def to_input(images: Tensor) -> Tensor:
    """(N, H, W, C) uint8 to (N, C, H, W) float32 in [-1, 1]."""
    return images.permute(0, 3, 1, 2).to(torch.float32).div(127.5).sub(1.0)
