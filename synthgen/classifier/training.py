"""Training of one classifier in one arm: the same number of steps from the same weights in every arm.

Owns the loop: rates, losses, the order of steps. What each step is shown is decided before, in
`synthgen.classifier.draws`.
"""

import math

import torch
from torch import nn

from synthgen.classifier.arms import ArmSpec
from synthgen.classifier.draws import (
    RealImages,
    SyntheticImages,
    build_targets,
    class_prior,
    plan_draws,
    retrain_from,
)
from synthgen.classifier.losses import arm_loss
from synthgen.classifier.networks import last_layer, to_input
from synthgen.classifier.pretrained import Weights, build_network
from synthgen.config import ClassifierSection
from synthgen.errors import TrainingError
from synthgen.optim import Adam
from synthgen.seeding import derive_seed

HEAD_RATE = 25.0
"""Learning rate of a retrained last layer over that of the network: a fresh linear layer on fixed features is a convex
problem, and at the network's own rate it would not be solved in a fifth of the steps (docs/experiments.md)."""


def learning_rate_factor(step: int, steps: int) -> float:
    """In (0, 1]: a linear warm-up over the first twentieth, times a cosine that ends near 0.

    Args:
        step: 0 to steps - 1.
        steps: of the whole training.
    """
    warm_up = max(1, steps // 20)
    return min(1.0, (step + 1) / warm_up) * 0.5 * (1.0 + math.cos(math.pi * step / steps))


def _rate(arm: ArmSpec, step: int, steps: int) -> float:
    if arm.head == "joint":
        return learning_rate_factor(step, steps)
    first = retrain_from(steps)
    if step < first:
        return learning_rate_factor(step, first)
    return HEAD_RATE * learning_rate_factor(step - first, steps - first)


def build_mixer(arm: ArmSpec, n_classes: int, alpha: float) -> nn.Module | None:
    """MixUp, CutMix or either by chance, as `arm` wants; it draws from torch's global generator."""
    if arm.mix == "none":
        return None
    from torchvision.transforms import v2

    mixup, cutmix = v2.MixUp(alpha=alpha, num_classes=n_classes), v2.CutMix(alpha=alpha, num_classes=n_classes)
    choices: dict[str, nn.Module] = {"mixup": mixup, "cutmix": cutmix, "either": v2.RandomChoice([mixup, cutmix])}
    return choices[arm.mix]


def lower_precision(section: ClassifierSection, device: torch.device) -> torch.autocast:
    """The context of a forward pass: autocast to bfloat16 where `classifier.precision` says so; weights stay fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=section.precision == "bf16")


def train_classifier(
    arm: ArmSpec,
    reals: RealImages,
    synthetic: SyntheticImages | None,
    section: ClassifierSection,
    *,
    n_classes: int,
    real_share: float,
    mix_alpha: float,
    seed: int,
    device: torch.device,
    weights: Weights | None = None,
) -> nn.Module:
    """Trains one classifier.

    Args:
        arm: the way of training.
        reals, synthetic: what it may draw from.
        section: network, steps, batch, learning rate.
        n_classes: number of labels.
        real_share: see `plan_draws`.
        mix_alpha: Beta parameter of MixUp and CutMix.
        seed: of this fold and repeat, the same for all arms: initial weights and draws follow from it.
        device: to train on.
        weights: what `section.weights` names, to start from.
    Returns:
        the network in eval mode on `device`.
    Raises:
        TrainingError: nothing to draw from, or a loss that is not finite.
        ConfigError: see `build_network`.
    """
    draws = plan_draws(arm, reals, synthetic, section, real_share, seed)
    prior = torch.tensor(class_prior(draws, n_classes), dtype=torch.float32, device=device)
    targets = torch.from_numpy(build_targets(draws, n_classes)).to(device)
    sources = [torch.from_numpy(images).to(device) for images in draws.sources]
    size, channels = reals.images.shape[1], reals.images.shape[3]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(seed, "classifier"))
        network = build_network(section, size, channels, n_classes, weights).to(device).train()
        mix = build_mixer(arm, n_classes, mix_alpha)
        network = network.to(memory_format=torch.channels_last)  # 15 % faster, 8 px on a CPU
        optimizer = Adam(network.parameters(), lr=section.lr, weight_decay=section.weight_decay)
        last = torch.zeros((), device=device)
        for step in range(section.steps):
            if arm.head == "retrained" and step == retrain_from(section.steps):
                head = last_layer(network.eval().requires_grad_(False), n_classes)
                head.reset_parameters()
                head.requires_grad_(True)
                optimizer = Adam(head.parameters(), lr=section.lr, weight_decay=section.weight_decay)
            optimizer.lr = section.lr * _rate(arm, step, section.steps)
            drawn = [sources[k][torch.from_numpy(rows).to(device)] for k, rows in draws.rows_by_source(step)]
            x, y = to_input(torch.cat(drawn)), targets[step]
            if draws.partners is not None:
                x = draws.partners.blended(x, sources[0], step)
            if mix is not None:
                # it mixes neighbours, and a batch stands in the order of its labels
                order = torch.randperm(len(x)).to(device)
                x, y = mix(x[order], y[order])
            with lower_precision(section, device):
                logits = network(x).float()
            loss = arm_loss(arm, logits, y, prior, section.label_smoothing)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own signature
            optimizer.step()
            last = loss.detach()
    if not torch.isfinite(last):
        raise TrainingError(
            f"arm {arm.name}: the loss is {last.item()} after {section.steps} steps; lower classifier.lr"
        )
    return network.eval()
