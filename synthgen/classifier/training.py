"""Training of one classifier in one arm: the same number of steps from the same weights in every arm.

Owns the draws (reals, their rendered variants, the real and the synthetic pool) and the loop. All draws
of a training are decided before it begins, from seeds that do not depend on the arm.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from synthgen.classifier.arms import ArmSpec
from synthgen.classifier.networks import build_classifier, to_input
from synthgen.config import ClassifierSection
from synthgen.dataset.sampling import BalancedBatches, NaturalBatches
from synthgen.dataset.transforms import TransformBank
from synthgen.errors import TrainingError
from synthgen.optim import Adam
from synthgen.seeding import derive_seed, numpy_generator


@dataclass(frozen=True)
class RealImages:
    """Training reals of a fold.

    Attributes:
        images: (n, H, W, C) uint8, or (N, H, W, C) that hold more than the reals of the fold.
        labels: (n,) int64.
        bank_rows: (n,) int64, index of each image in the banks.
        transforms: variants under the arm's policy, or None.
        mild: variants for `control`, or None.
        image_rows: (n,) int64, index of each real in `images`; None: they are the reals, in this order.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    bank_rows: NDArray[np.int64]
    transforms: TransformBank | None = None
    mild: TransformBank | None = None
    image_rows: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class SyntheticImages:
    """Accepted synthetic images of a fold: (m, H, W, C) uint8 and (m,) int64 labels."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Draws:
    """All draws of one training from one source: (steps, n) int64 rows of `images`, and their labels."""

    images: NDArray[np.uint8]
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]


def _real_draws(
    reals: RealImages, sampler: BalancedBatches | NaturalBatches, bank: TransformBank | None, steps: int, seed: int
) -> Draws:
    drawn = np.stack([sampler.take() for _ in range(steps)])  # (steps, n)
    if bank is None:
        at = drawn if reals.image_rows is None else reals.image_rows[drawn]
        return Draws(reals.images, at, reals.labels[drawn])
    counts = np.diff(bank.starts)
    offsets = numpy_generator(seed, "offsets").integers(0, counts)
    variants = bank.variants(reals.bank_rows[drawn].ravel(), offsets).reshape(drawn.shape)
    return Draws(bank.images, variants, reals.labels[drawn])


def plan_draws(
    arm: ArmSpec,
    reals: RealImages,
    synthetic: SyntheticImages | None,
    section: ClassifierSection,
    share: float,
    real_share: float,
    seed: int,
) -> list[Draws]:
    """Decides every draw of a training.

    Args:
        arm: which sources it draws from.
        reals, synthetic: the sources.
        section: steps and batch.
        share: share of each batch from the synthetic pool, where the arm has one.
        real_share: share of each batch from the real pool (`duplicate`, `control`), where the arm has one.
        seed: of this fold and repeat, the same for all arms.
    Returns:
        one Draws per source; their batch sizes sum to `section.batch`.
    Raises:
        TrainingError: the synthetic pool is wanted but empty.
    """
    n_synthetic = round(share * section.batch) if arm.synthetic_pool != "none" else 0
    n_pool = round(real_share * section.batch) if arm.real_pool != "none" else 0
    n_real = section.batch - n_synthetic - n_pool
    if n_real < 1:
        raise TrainingError(f"arm {arm.name}: shares {share} and {real_share} leave no real image in a batch")
    rng = numpy_generator(seed, "reals")
    if arm.sampling == "balanced":
        sampler: BalancedBatches | NaturalBatches = BalancedBatches(reals.labels, n_real, rng)
    else:
        sampler = NaturalBatches(len(reals.labels), n_real, rng)
    bank = reals.transforms if arm.transforms else None
    draws = [_real_draws(reals, sampler, bank, section.steps, derive_seed(seed, "transforms"))]
    if n_pool:
        pool_sampler = BalancedBatches(reals.labels, n_pool, numpy_generator(seed, "pool"))
        mild = reals.mild if arm.real_pool == "control" else None
        draws.append(_real_draws(reals, pool_sampler, mild, section.steps, derive_seed(seed, "pool transforms")))
    if n_synthetic:
        if synthetic is None or len(synthetic.labels) == 0:
            raise TrainingError(
                f"arm {arm.name}: no synthetic image was accepted in this fold; see acceptance.json of its "
                "data/synthetic folder, then lower synthesize.min_agreement or train the generator longer"
            )
        rows = BalancedBatches(synthetic.labels, n_synthetic, numpy_generator(seed, "synthetic"))
        drawn = np.stack([rows.take() for _ in range(section.steps)])
        draws.append(Draws(synthetic.images, drawn, synthetic.labels[drawn]))
    return draws


def class_prior(labels: NDArray[np.int64], n_classes: int) -> NDArray[np.float64]:
    """(n_classes,) float64 share of each label among all draws of a training; never 0."""
    counts = np.bincount(labels.ravel(), minlength=n_classes).astype(np.float64)
    return np.asarray(np.maximum(counts, 0.5) / np.maximum(counts, 0.5).sum())


def learning_rate_factor(step: int, steps: int) -> float:
    """In (0, 1]: a linear warm-up over the first twentieth, times a cosine that ends near 0.

    Args:
        step: 0 to steps - 1.
        steps: of the whole training.
    """
    warm_up = max(1, steps // 20)
    return min(1.0, (step + 1) / warm_up) * 0.5 * (1.0 + math.cos(math.pi * step / steps))


def _loss(arm: ArmSpec, logits: Tensor, targets: Tensor, prior: Tensor, smoothing: float) -> Tensor:
    if arm.loss == "logit_adjusted":
        return functional.cross_entropy(logits + prior.log(), targets, label_smoothing=smoothing)
    if arm.loss == "weighted":
        weight = 1.0 / (prior * len(prior))
        return functional.cross_entropy(logits, targets, weight=weight, label_smoothing=smoothing)
    return functional.cross_entropy(logits, targets, label_smoothing=smoothing)


def build_mixer(arm: ArmSpec, n_classes: int, alpha: float) -> nn.Module | None:
    """MixUp, CutMix or either by chance, as `arm` wants; it draws from torch's global generator."""
    if arm.mix == "none":
        return None
    from torchvision.transforms import v2

    mixup, cutmix = v2.MixUp(alpha=alpha, num_classes=n_classes), v2.CutMix(alpha=alpha, num_classes=n_classes)
    choices: dict[str, nn.Module] = {"mixup": mixup, "cutmix": cutmix, "either": v2.RandomChoice([mixup, cutmix])}
    return choices[arm.mix]


def train_classifier(
    arm: ArmSpec,
    reals: RealImages,
    synthetic: SyntheticImages | None,
    section: ClassifierSection,
    *,
    n_classes: int,
    share: float,
    real_share: float,
    mix_alpha: float,
    seed: int,
    device: torch.device,
) -> nn.Module:
    """Trains one classifier.

    Args:
        arm: the way of training.
        reals, synthetic: what it may draw from.
        section: network, steps, batch, learning rate.
        n_classes: number of labels.
        share, real_share: see `plan_draws`.
        mix_alpha: Beta parameter of MixUp and CutMix.
        seed: of this fold and repeat, the same for all arms: initial weights and draws follow from it.
        device: to train on.
    Returns:
        the network in eval mode on `device`.
    Raises:
        TrainingError: nothing to draw from, or a loss that is not finite.
    """
    draws = plan_draws(arm, reals, synthetic, section, share, real_share, seed)
    labels = np.concatenate([d.labels for d in draws], axis=1)  # (steps, batch)
    prior = torch.tensor(class_prior(labels, n_classes), dtype=torch.float32, device=device)
    targets = torch.from_numpy(labels).to(device)
    sources = [(torch.from_numpy(d.images), d.rows) for d in draws]
    if device.type != "cpu":
        sources = [(images.to(device), rows) for images, rows in sources]
    size, channels = reals.images.shape[1], reals.images.shape[3]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(seed, "classifier"))
        network = build_classifier(section.network, size, channels, n_classes, section.width).to(device).train()
        mix = build_mixer(arm, n_classes, mix_alpha)
        network = network.to(memory_format=torch.channels_last)  # 15 % faster, 8 px on a CPU
        optimizer = Adam(network.parameters(), lr=section.lr, weight_decay=section.weight_decay)
        last = torch.zeros((), device=device)
        for step in range(section.steps):
            optimizer.lr = section.lr * learning_rate_factor(step, section.steps)
            batch = torch.cat([images[torch.from_numpy(rows[step]).to(images.device)] for images, rows in sources])
            x, y = to_input(batch.to(device)), targets[step]
            if mix is not None:
                # it mixes neighbours, and a batch stands in the order of its labels
                order = torch.randperm(len(x)).to(device)
                x, y = mix(x[order], y[order])
            loss = _loss(arm, network(x), y, prior, section.label_smoothing)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own signature
            optimizer.step()
            last = loss.detach()
    if not torch.isfinite(last):
        raise TrainingError(
            f"arm {arm.name}: the loss is {last.item()} after {section.steps} steps; lower classifier.lr"
        )
    return network.eval()
