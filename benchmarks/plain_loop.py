"""The GAN training that a practitioner writes in an afternoon: what `train_gan` is compared with.

Owns nothing but the comparison: a Dataset and a DataLoader, fp32 eager, `torch.optim.Adam`, torch's EMA and `.item()`
in every step; the same networks, losses, penalties, transforms and number of steps as `train_gan`. On a CPU it loads
in the training process, as workers would compete for its cores; on a GPU in four workers with pinned memory.
"""

from collections.abc import Iterator

import numpy as np
import torch
from gan_case import GanCase
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler

from synthgen.gan.diffaugment import jitter_reals
from synthgen.gan.losses import d_loss, g_loss
from synthgen.gan.regularisers import gradient_penalty


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Images as a textbook hands them out: float32 in [-1, 1], one at a time."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels = torch.from_numpy(self.images[index]).permute(2, 0, 1)  # (C, H, W)
        return pixels.float() / 127.5 - 1.0, int(self.labels[index])


def _loader(case: GanCase, noise: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    counts = np.bincount(case.labels)
    sampler = WeightedRandomSampler(
        (1.0 / counts[case.labels]).tolist(), case.steps * case.section.batch, generator=noise
    )
    on_gpu = case.device.type == "cuda"
    loader = DataLoader(
        ImageDataset(case.images, case.labels),
        batch_size=case.section.batch,
        sampler=sampler,
        drop_last=True,
        num_workers=4 if on_gpu else 0,
        pin_memory=on_gpu,
    )
    return iter(loader)


def train_plain(case: GanCase, seed: int = 0) -> list[tuple[float, float]]:
    """Trains for `case.steps` steps; the losses of each."""
    section, device = case.section, case.device
    generator, discriminator = case.networks(seed)
    ema = AveragedModel(generator, multi_avg_fn=get_ema_multi_avg_fn(section.ema), use_buffers=True)
    g_optimizer = torch.optim.Adam(generator.parameters(), lr=section.g_lr, betas=section.betas)
    d_optimizer = torch.optim.Adam(discriminator.parameters(), lr=section.d_lr, betas=section.betas)
    noise = torch.Generator(device.type).manual_seed(seed)
    is_fake = torch.arange(2 * section.batch, device=device) >= section.batch
    history = []
    for step, (loaded, labels) in enumerate(_loader(case, torch.Generator().manual_seed(seed))):
        reals, y = loaded.to(device), labels.to(device)
        reals = jitter_reals(reals, case.transforms, section.real_transforms, noise)

        with torch.no_grad():
            latents = torch.randn(len(y), case.shape.latents, generator=noise, device=device)
            fakes = generator(latents, y)
        penalise = step % section.r1_every == 0
        x = case.augment(torch.cat([reals, fakes]), noise).requires_grad_(penalise)
        logits = discriminator(x, y.repeat(2), is_fake)
        loss = d_loss(*logits.chunk(2))
        d_value = loss.item()
        if penalise:
            r1, r2 = gradient_penalty(logits, x).chunk(2)
            weight = section.r1_every / 2
            loss = loss + (section.r1_gamma * r1.mean() + section.r2_gamma * r2.mean()) * weight
        d_optimizer.zero_grad()
        loss.backward()
        d_optimizer.step()

        discriminator.requires_grad_(False)
        reals = jitter_reals(loaded.to(device), case.transforms, section.real_transforms, noise)
        latents = torch.randn(len(y), case.shape.latents, generator=noise, device=device)
        x = case.augment(torch.cat([reals, generator(latents, y)]), noise)
        real_logits, fake_logits = discriminator(x, y.repeat(2), is_fake).chunk(2)
        loss = g_loss(real_logits.detach(), fake_logits)
        g_optimizer.zero_grad()
        loss.backward()
        g_optimizer.step()
        discriminator.requires_grad_(True)
        ema.update_parameters(generator)
        history.append((d_value, loss.item()))
    return history
