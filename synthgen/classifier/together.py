"""Several trainings of `small_cnn` as one batched program: repeats and inner parts of one arm, side by side.

Owns the stacking: K networks become one with grouped convolutions, batch norm over their K sets of channels and a
batched last layer, so that a step costs an accelerator as many kernel launches as for one network. Weights, draws,
learning rates, losses and mixing are those of `train_classifier`, and results agree to float tolerance. Refuses
other networks, which go one by one, and never runs on a CPU on its own account (see `pays_together`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from synthgen.classifier.arms import ArmSpec
from synthgen.classifier.draws import Draws, RealImages, SyntheticImages, build_targets, class_prior, plan_draws
from synthgen.classifier.losses import stacked_loss
from synthgen.classifier.networks import SMALL, SmallCnn, build_classifier, to_input
from synthgen.classifier.partners import no_partners
from synthgen.classifier.training import build_mixer, learning_rate_factor, lower_precision
from synthgen.config import ClassifierSection
from synthgen.dataset.blending import blend_images
from synthgen.errors import TrainingError
from synthgen.optim import Adam
from synthgen.seeding import derive_seed

MAX_TOGETHER = 32
_MEMORY_SHARE = 0.5
_COPIES_OF_ACTIVATIONS = 6  # convolution, norm, ReLU and pool, and about half of them again as gradients


@dataclass(frozen=True)
class Member:
    """One of the trainings that run together: what it may draw from, and its seed (see `train_classifier`)."""

    reals: RealImages
    synthetic: SyntheticImages | None
    seed: int


def pays_together(network: str, device: torch.device) -> bool:
    """Whether trainings of `network` on `device` are run together.

    On CUDA, for `small_cnn`. Not on a CPU: docs/performance.md has the measurement behind that.
    """
    return network == SMALL and device.type == "cuda"


class StackedCnn(nn.Module):
    """K `SmallCnn` of one shape as one network; group k of every layer is network k."""

    def __init__(self, networks: Sequence[SmallCnn]) -> None:
        """Copies the weights and the batch norm statistics of `networks`.

        Args:
            networks: at least one, all of one shape.
        """
        super().__init__()
        self.n_networks = len(networks)
        self.features = nn.Sequential(
            *(_widened(layers) for layers in zip(*(network.features for network in networks), strict=True))
        )
        self.head_weight = nn.Parameter(torch.stack([n.head.weight.detach() for n in networks]))  # (K, classes, d)
        self.head_bias = nn.Parameter(torch.stack([n.head.bias.detach() for n in networks]))  # (K, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of every network on images of its own.

        Args:
            images: (N, K * C, H, W) float32, channels of network k from k * C to (k + 1) * C.
        Returns:
            (K, N, n_classes) float32.
        """
        pooled = self.features(images).mean(dim=(2, 3))  # (N, K * d)
        apart = pooled.view(len(images), self.n_networks, -1).transpose(0, 1)  # (K, N, d)
        return torch.baddbmm(self.head_bias[:, None], apart, self.head_weight.transpose(1, 2))

    def copy_to(self, networks: Sequence[SmallCnn]) -> None:
        """Hands weights and statistics back to K networks of the shape they came from."""
        for place, wide in enumerate(self.features):
            for name, value in wide.state_dict().items():
                parts = value.chunk(self.n_networks) if value.ndim else [value] * self.n_networks
                for network, part in zip(networks, parts, strict=True):
                    network.features[place].state_dict()[name].copy_(part)
        for network, weight, bias in zip(networks, self.head_weight.detach(), self.head_bias.detach(), strict=True):
            network.head.load_state_dict({"weight": weight, "bias": bias})


def _widened(layers: Sequence[nn.Module]) -> nn.Module:
    """One layer that does to K sets of channels what each of `layers` does to its own."""
    first, k = layers[0], len(layers)
    wide: nn.Module
    if isinstance(first, nn.Conv2d):
        wide = nn.utils.skip_init(  # type: ignore[no-untyped-call]  # torch's own signature
            nn.Conv2d,
            k * first.in_channels,
            k * first.out_channels,
            first.kernel_size,
            padding=first.padding,
            groups=k,
            bias=first.bias is not None,
        )
    elif isinstance(first, nn.BatchNorm2d):
        wide = nn.BatchNorm2d(k * first.num_features)
    else:
        return first  # without weights: the same for any number of channels
    states = [layer.state_dict() for layer in layers]
    wide.load_state_dict(
        {name: torch.cat([s[name] for s in states]) if value.ndim else value for name, value in states[0].items()}
    )
    return wide


class _Mixing:
    """The draws that MixUp or CutMix makes in one training, without its images.

    Mixing is a weight per pixel between an image and its neighbour. A pair of a black and a white image shows that
    weight, whatever the mixer; the random stream is that of the training on its own.
    """

    def __init__(self, mixer: nn.Module, batch: int, size: int) -> None:
        self.mixer, self.batch = mixer, batch
        self.probe = torch.stack([torch.zeros(1, size, size), torch.ones(1, size, size)])  # (2, 1, H, W)
        self.state = torch.get_rng_state()

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of the next step: (N,) order of the batch, (H, W) weight of the image, () weight of its label."""
        torch.set_rng_state(self.state)
        order = torch.randperm(self.batch)
        shown, labels = self.mixer(self.probe, torch.tensor([0, 1]))
        self.state = torch.get_rng_state()
        return order, shown[1, 0], labels[1, 1]


@dataclass(frozen=True)
class _Images:
    """All that the networks draw from, once: (P, H, W, C) uint8 on the device, and (steps, K, N) rows of it."""

    pool: Tensor
    rows: Tensor


@dataclass(frozen=True)
class _Blending:
    """What goes into the images of every training: (steps, K, N) rows of the pool and weights, (.., 4) boxes."""

    rows: Tensor
    weights: Tensor
    boxes: Tensor

    def blended(self, images: Tensor, pool: Tensor, step: int, orders: Tensor | None) -> Tensor:
        """(K * N, C, H, W) images of a step with their partners in them, in the `orders` (K, N) of the batches."""
        rows, weights, boxes = self.rows[step], self.weights[step], self.boxes[step]
        if orders is not None:
            rows, weights = rows.gather(1, orders), weights.gather(1, orders)
            boxes = boxes.take_along_dim(orders[..., None], 1)
        partners = to_input(pool[rows.flatten()])
        return blend_images(images, partners, weights.flatten(), boxes.flatten(0, 1))


def _gather(draws: Sequence[Draws], device: torch.device) -> tuple[_Images, _Blending | None]:
    """Puts every array that occurs in `draws` (one of each network) on the device once."""
    starts: dict[int, int] = {}
    arrays: list[NDArray[np.uint8]] = []
    n_images = 0
    for array in (array for drawn in draws for array in drawn.sources):
        if id(array) not in starts:
            starts[id(array)] = n_images
            arrays.append(array)
            n_images += len(array)
    pool = torch.empty((n_images, *arrays[0].shape[1:]), dtype=torch.uint8, device=device)
    for array in arrays:
        start = starts[id(array)]
        pool[start : start + len(array)].copy_(torch.from_numpy(array))
    rows = np.stack(
        [drawn.rows + np.array([starts[id(array)] for array in drawn.sources])[drawn.source] for drawn in draws], axis=1
    )  # (steps, K, N)
    images = _Images(pool, torch.from_numpy(rows).to(device))
    if all(drawn.partners is None for drawn in draws):
        return images, None
    mixed = [drawn.partners or no_partners(drawn.rows.shape) for drawn in draws]
    partners = [m.rows + starts[id(drawn.sources[0])] for m, drawn in zip(mixed, draws, strict=True)]
    stacks = (partners, [m.blend.weights for m in mixed], [m.blend.boxes for m in mixed])
    return images, _Blending(*(torch.from_numpy(np.stack(stack, axis=1)).to(device) for stack in stacks))


def _stacked_targets(draws: Sequence[Draws], n_classes: int) -> Tensor:
    """(steps, K, N) labels, or (steps, K, N, n_classes) rows where a network needs them."""
    each = [build_targets(drawn, n_classes) for drawn in draws]
    if any(targets.ndim == 3 for targets in each):
        # one whose fold lacks the classes with synthetic images has labels alone
        eye = np.eye(n_classes, dtype=np.float32)
        each = [targets if targets.ndim == 3 else eye[targets] for targets in each]
    return torch.from_numpy(np.stack(each, axis=1))


def _fresh_networks(
    members: Sequence[Member], arm: ArmSpec, section: ClassifierSection, n_classes: int, mix_alpha: float
) -> tuple[list[SmallCnn], list[_Mixing]]:
    """The initial networks, and where the random stream of each stands after its weights were drawn."""
    networks, mixings = [], []
    size, channels = members[0].reals.images.shape[1], members[0].reals.images.shape[3]
    mixer = build_mixer(arm, n_classes, mix_alpha)
    for member in members:
        torch.manual_seed(derive_seed(member.seed, "classifier"))
        network = build_classifier(SMALL, size, channels, n_classes, section.width)
        assert isinstance(network, SmallCnn)
        networks.append(network)
        if mixer is not None:
            mixings.append(_Mixing(mixer, section.batch, size))
    return networks, mixings


def _mixed(x: Tensor, weights: Tensor) -> Tensor:
    """(N, K, C, H, W) images and (K, H, W) weights to each image mixed with the one before it in its batch."""
    w = weights[None, :, None]  # (1, K, 1, H, W)
    return w * x + (1.0 - w) * x.roll(1, 0)


def train_together(
    arm: ArmSpec,
    members: Sequence[Member],
    section: ClassifierSection,
    *,
    n_classes: int,
    real_share: float,
    mix_alpha: float,
    device: torch.device,
) -> list[SmallCnn]:
    """Trains one `small_cnn` per member, all at once.

    Args:
        arm: the way of training, of all.
        members: at least one; images of one size and number of channels, in any number.
        section, n_classes, real_share, mix_alpha, device: see `train_classifier`.
    Returns:
        the networks in eval mode on `device`, in the order of `members`; each is what `train_classifier` would have
        returned, to float tolerance.
    Raises:
        TrainingError: nothing to draw from, or a loss that is not finite.
    """
    n_networks = len(members)
    draws = [plan_draws(arm, m.reals, m.synthetic, section, real_share, m.seed) for m in members]
    prior = torch.tensor(
        np.stack([class_prior(drawn, n_classes) for drawn in draws]), dtype=torch.float32, device=device
    )  # (K, n_classes)
    targets = _stacked_targets(draws, n_classes).to(device)
    images, blending = _gather(draws, device)
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        torch.backends.cudnn.flags(benchmark=device.type == "cuda"),  # the same shapes in every step
    ):
        networks, mixings = _fresh_networks(members, arm, section, n_classes, mix_alpha)
        stacked = StackedCnn(networks).to(device).train().to(memory_format=torch.channels_last)
        optimizer = Adam(stacked.parameters(), lr=section.lr, weight_decay=section.weight_decay)
        losses = torch.zeros(n_networks, device=device)
        for step in range(section.steps):
            optimizer.lr = section.lr * learning_rate_factor(step, section.steps)
            rows, y, orders = images.rows[step], targets[step], None  # (K, N)
            if mixings:
                drawn = zip(*(mixing.draw() for mixing in mixings), strict=True)
                orders, weights, shares = (torch.stack(parts).to(device) for parts in drawn)
                rows = rows.gather(1, orders)
                y = y if y.is_floating_point() else functional.one_hot(y, n_classes).float()
                y = y.take_along_dim(orders[..., None], 1)
                shares = shares[:, None, None]
                y = shares * y + (1.0 - shares) * y.roll(1, 1)
            x = to_input(images.pool[rows.flatten()])  # (K * N, C, H, W)
            if blending is not None:
                x = blending.blended(x, images.pool, step, orders)
            x = x.view(*rows.shape, *x.shape[1:]).transpose(0, 1)  # (N, K, C, H, W)
            if mixings:
                x = _mixed(x, weights)
            wide = x.flatten(1, 2).contiguous(memory_format=torch.channels_last)  # (N, K * C, H, W)
            with lower_precision(section, device):
                logits = stacked(wide).float()
            each = stacked_loss(arm, logits, y, prior, section.label_smoothing)
            optimizer.zero_grad()
            each.sum().backward()  # type: ignore[no-untyped-call]  # torch's own signature
            optimizer.step()
            losses = each.detach()
    bad = torch.nonzero(~torch.isfinite(losses)).flatten().tolist()
    if bad:
        raise TrainingError(
            f"arm {arm.name}: the loss is {losses[bad[0]].item()} after {section.steps} steps in {len(bad)} of "
            f"{n_networks} trainings; lower classifier.lr"
        )
    networks = [network.to(device) for network in networks]
    stacked.copy_to(networks)
    return [network.eval() for network in networks]


def bytes_of_one(section: ClassifierSection, image_size: int, image_channels: int) -> int:
    """Device memory that one more network needs while it trains, in bytes; estimated from its activations.

    Args:
        section: batch and width.
        image_size, image_channels: of the images.
    """
    network = SmallCnn(image_size, image_channels, 2, section.width)
    n_values, side = image_channels * image_size**2, image_size
    for layer in network.features:
        if isinstance(layer, nn.Conv2d):
            n_values += _COPIES_OF_ACTIVATIONS * layer.out_channels * side**2
        elif isinstance(layer, nn.MaxPool2d):
            side //= 2
    return 4 * section.batch * n_values


def fitting_together(section: ClassifierSection, image_size: int, image_channels: int, device: torch.device) -> int:
    """How many networks to train at once: at most `MAX_TOGETHER`, and what half of the free memory holds."""
    if device.type != "cuda":
        return MAX_TOGETHER
    free, _ = torch.cuda.mem_get_info(device)
    room = int(_MEMORY_SHARE * free)
    return max(1, min(MAX_TOGETHER, room // bytes_of_one(section, image_size, image_channels)))
