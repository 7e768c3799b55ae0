"""The training loop of a conditional GAN, read top to bottom.

Owns one game from data to trained networks; refuses to hand back numbers that are not finite. The same
loop trains the shared GAN, adapts it to one class (start from `start`, `weights` that favour the class)
and trains from scratch. Durations are in kimg, thousands of real images shown to D.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from synthgen.config import PretrainSection, TransformsSection
from synthgen.dataset.sampling import BalancedBatches
from synthgen.errors import TrainingError
from synthgen.gan.checkpoint import TrainedGan
from synthgen.gan.diffaugment import diffaugment, jitter_reals
from synthgen.gan.losses import d_loss, g_loss, gradient_penalty
from synthgen.gan.networks import Discriminator, GanShape, Generator
from synthgen.optim import Adam
from synthgen.progress import progress_bar
from synthgen.seeding import derive_seed, numpy_generator, torch_generator

N_GRID_PER_CLASS = 8


@dataclass(frozen=True)
class Tick:
    """One row of history.csv: means since the last tick.

    Attributes:
        kimg: real images shown so far, in thousands.
        d_loss, g_loss: nats; ln 2 at equilibrium.
        r1, r2: squared gradient norms on reals and fakes, before gamma.
        d_real, d_fake: share of reals (fakes) whose logit is above (below) the mean of all logits; 0.5 at equilibrium.
    """

    kimg: float
    d_loss: float
    g_loss: float
    r1: float
    r2: float
    d_real: float
    d_fake: float


@dataclass
class GanRun:
    """What a training leaves: networks, the history and a sample grid of fixed latents per tick.

    Attributes:
        generator: EMA weights in eval mode; discriminator: the last weights in eval mode.
        history: one Tick per tick.
        grids: one (n_classes, N_GRID_PER_CLASS, H, W, C) uint8 array per tick.
    """

    generator: Generator
    discriminator: Discriminator
    history: list[Tick] = field(default_factory=list)
    grids: list[NDArray[np.uint8]] = field(default_factory=list)


def to_unit_range(images: NDArray[np.uint8]) -> Tensor:
    """(N, H, W, C) uint8 to (N, C, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def to_uint8(images: Tensor) -> NDArray[np.uint8]:
    """(N, C, H, W) float32 in [-1, 1] to (N, H, W, C) uint8, rounded."""
    scaled = images.add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def train_gan(  # noqa: PLR0915  # the loop is read top to bottom, in one place
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    shape: GanShape,
    section: PretrainSection,
    transforms: TransformsSection,
    *,
    kimg: float,
    seed: int,
    device: torch.device,
    weights: Mapping[int, float] | None = None,
    start: TrainedGan | None = None,
    lr_factor: float = 1.0,
    description: str = "gan",
) -> GanRun:
    """Trains a class-conditional GAN.

    Args:
        images: (n, H, W, C) uint8 training images, nothing else.
        labels: (n,) int64 below `shape.n_classes`.
        shape: of both networks.
        section: learning rates, regularisers, EMA, batch (section `pretrain`).
        transforms: amplitudes of the jitter of reals.
        kimg: how long.
        seed: of this training; equal seed, data and machine give equal weights.
        device: to train on.
        weights: label -> share of the reals shown; None shows every occurring class equally often.
        start: networks to start from instead of fresh ones.
        lr_factor: on both learning rates.
        description: for the progress bar.
    Returns:
        the EMA generator, the discriminator, and the history.
    Raises:
        TrainingError: a class without images, or a loss that is no longer finite.
    """
    # Set-up: one random stream per purpose.
    total = max(1, round(kimg * 1000 / section.batch))
    tick_length = max(1, round(section.tick_kimg * 1000 / section.batch))
    batches = BalancedBatches(labels, section.batch, numpy_generator(seed, "batches"), weights)
    noise = torch_generator(seed, "noise", device=device.type)
    fixed_noise = torch_generator(seed, "grid")

    # Data stays on the device as uint8.
    data = torch.from_numpy(np.ascontiguousarray(images)).to(device)  # (n, H, W, C)
    data_labels = torch.from_numpy(labels).to(device)
    grid_labels = torch.arange(shape.n_classes).repeat_interleave(N_GRID_PER_CLASS).to(device)
    grid_latents = torch.randn(len(grid_labels), shape.latents, generator=fixed_noise).to(device)

    # Networks, their average, optimisers.
    generator, discriminator = _networks(shape, start, seed)
    generator.to(device).train().requires_grad_(True)
    discriminator.to(device).train().requires_grad_(True)
    ema = AveragedModel(generator, multi_avg_fn=ramped_ema(section.ema), use_buffers=True)
    if start is not None:
        ema.module.load_state_dict(start.generator.state_dict())
        ema.n_averaged.fill_(1)
    g_rate, d_rate = section.g_lr * lr_factor, section.d_lr * lr_factor
    g_optimizer = Adam(generator.parameters(), lr=g_rate, betas=section.betas)
    d_optimizer = Adam(discriminator.parameters(), lr=d_rate, betas=section.betas)
    run = GanRun(generator, discriminator)
    is_fake = torch.arange(2 * section.batch, device=device) >= section.batch
    sums = torch.zeros(8, device=device)

    def augment(x: Tensor) -> Tensor:
        return diffaugment(
            x,
            noise,
            translate=section.diffaugment_translation,
            cut=section.diffaugment_cutout,
            with_color=section.diffaugment_color and shape.image_channels == 3,
        )

    def latents(n: int) -> Tensor:
        return torch.randn(n, shape.latents, generator=noise, device=device)

    with progress_bar(description, total) as advance:
        for step in range(total):
            decay = _decay(step / total, section.lr_decay_from)
            for optimizer, rate in ((g_optimizer, g_rate), (d_optimizer, d_rate)):
                optimizer.lr = rate * decay

            # Reals of this step, jittered; fakes carry the same labels.
            rows = torch.from_numpy(batches.take()).to(device)
            y = data_labels[rows]
            reals = data[rows].permute(0, 3, 1, 2).float().div(127.5).sub(1.0)  # (N, C, H, W)
            reals = jitter_reals(reals, transforms, section.real_transforms, noise, flip=section.flip)

            # Discriminator.
            with torch.no_grad():
                fakes = generator(latents(len(y)), y)
            penalise = section.r1_gamma > 0.0 and step % section.r1_every == 0
            x = augment(torch.cat([reals, fakes])).requires_grad_(penalise)  # (2N, C, H, W), reals first
            logits = discriminator(x, y.repeat(2), is_fake)
            real_logits, fake_logits = logits.chunk(2)
            loss = d_loss(real_logits, fake_logits)
            sums[0] += loss.detach()
            if penalise:
                r1, r2 = gradient_penalty(logits, x).chunk(2)
                # lazy: every r1_every steps with r1_every times the weight (Karras et al. 2020, arXiv:1912.04958, B)
                loss = loss + (r1 + r2).mean() * (section.r1_gamma / 2 * section.r1_every)
                sums[2] += r1.detach().mean()
                sums[3] += r2.detach().mean()
                sums[6] += 1
            d_optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own signature
            d_optimizer.step()
            with torch.no_grad():
                middle = 0.5 * (real_logits.mean() + fake_logits.mean())
                sums[4] += (real_logits > middle).float().mean()
                sums[5] += (fake_logits < middle).float().mean()

            # Generator.
            discriminator.requires_grad_(False)
            x = augment(torch.cat([reals, generator(latents(len(y)), y)]))
            real_logits, fake_logits = discriminator(x, y.repeat(2), is_fake).chunk(2)
            loss = g_loss(real_logits.detach(), fake_logits)
            g_optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own signature
            g_optimizer.step()
            discriminator.requires_grad_(True)
            ema.update_parameters(generator)
            sums[1] += loss.detach()
            sums[7] += 1

            # Once a tick: look at the numbers, keep a grid.
            advance()
            if (step + 1) % tick_length == 0 or step + 1 == total:
                tick = _tick((step + 1) * section.batch / 1000, sums)
                if not math.isfinite(tick.d_loss + tick.g_loss + tick.r1 + tick.r2):
                    raise TrainingError(
                        f"{description}: loss is no longer finite at {tick.kimg:.1f} kimg ({tick}); "
                        "lower pretrain.g_lr and pretrain.d_lr or raise pretrain.r1_gamma"
                    )
                run.history.append(tick)
                run.grids.append(_grid(ema.module, grid_latents, grid_labels, shape))
                sums.zero_()

    averaged = ema.module.eval().requires_grad_(False)
    assert isinstance(averaged, Generator)
    run.generator = averaged
    discriminator.eval().requires_grad_(False)
    return run


def ramped_ema(decay: float) -> Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | int], None]:
    """An exponential moving average that forgets its first steps sooner.

    Args:
        decay: of a long training; step n uses min(decay, (1 + n) / (10 + n)), so that a short training is not
            averaged over its own beginning (with 0.998 and 750 steps, a third of the weight would be).
    Returns:
        `multi_avg_fn` of `AveragedModel`: moves the averaged tensors in place; integers are copied.
    Source: the ramp of TensorFlow's ExponentialMovingAverage (`num_updates`).
    """

    @torch.no_grad()
    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], n: Tensor | int) -> None:
        rate = min(decay, (1.0 + float(n)) / (10.0 + float(n)))
        for old, new in zip(averaged, current, strict=True):
            if old.is_floating_point():
                old.lerp_(new, 1.0 - rate)
            else:
                old.copy_(new)

    return update


def _networks(shape: GanShape, start: TrainedGan | None, seed: int) -> tuple[Generator, Discriminator]:
    if start is not None:
        return copy.deepcopy(start.generator), copy.deepcopy(start.discriminator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights"))
        return Generator(shape), Discriminator(shape)


def _decay(progress: float, start: float) -> float:
    return 1.0 if progress < start else max(0.0, (1.0 - progress) / max(1.0 - start, 1e-9))


def _tick(kimg: float, sums: Tensor) -> Tick:
    d, g, r1, r2, d_real, d_fake, n_penalties, n = sums.tolist()
    n_penalties = max(n_penalties, 1.0)
    return Tick(kimg, d / n, g / n, r1 / n_penalties, r2 / n_penalties, d_real / n, d_fake / n)


@torch.no_grad()
def _grid(network: torch.nn.Module, latents: Tensor, labels: Tensor, shape: GanShape) -> NDArray[np.uint8]:
    network.eval()
    images = to_uint8(network(latents, labels))  # (K * n, H, W, C)
    network.train()
    return images.reshape(shape.n_classes, -1, *images.shape[1:])
