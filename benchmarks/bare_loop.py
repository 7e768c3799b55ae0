"""The limit for `train_gan`: forward, backward and step of the same networks, and nothing that could be left out.

Owns nothing but the comparison. Data and batches lie on the device before the clock starts; the same regularisers,
EMA, transforms and precision as `train_gan`; no history, no ticks, no checks, no progress bar.
"""

import numpy as np
import torch
from gan_case import GanCase
from torch import Tensor

from synthgen.dataset.sampling import BalancedBatches
from synthgen.gan.diffaugment import jitter_reals
from synthgen.gan.ema import MovingAverage
from synthgen.gan.losses import d_loss, g_loss
from synthgen.gan.regularisers import gradient_penalty
from synthgen.optim import Adam


class BareLoop:
    """A training whose data, batches and networks are in place."""

    def __init__(self, case: GanCase, seed: int = 0) -> None:
        self.case = case
        batches = BalancedBatches(case.labels, case.section.batch, np.random.default_rng(seed))
        rows = torch.from_numpy(np.stack([batches.take() for _ in range(case.steps)])).to(case.device)
        self.data = torch.from_numpy(case.images).to(case.device)
        self.labels = torch.from_numpy(case.labels).to(case.device)[rows]  # (steps, N)
        self.rows = rows
        # channels_last, as `train_gan`: the limit is that of the faster memory format
        generator, discriminator = case.networks(seed)
        self.generator = generator.to(memory_format=torch.channels_last)
        self.discriminator = discriminator.to(memory_format=torch.channels_last)
        self.average = MovingAverage(self.generator, case.section.ema)
        section = case.section
        self.g_optimizer = Adam(self.generator.parameters(), lr=section.g_lr, betas=section.betas)
        self.d_optimizer = Adam(self.discriminator.parameters(), lr=section.d_lr, betas=section.betas)
        self.noise = torch.Generator(case.device.type).manual_seed(seed)
        # as `train_gan`: bf16 on CUDA, and single precision for the double backward
        self.autocast = torch.autocast(case.device.type, torch.bfloat16, enabled=case.device.type == "cuda")

    def _reals(self, step: int) -> Tensor:
        case = self.case
        pixels = self.data[self.rows[step]].permute(0, 3, 1, 2).float().div(127.5).sub(1.0)  # (N, C, H, W)
        return jitter_reals(pixels, case.transforms, case.section.real_transforms, self.noise)

    def _fakes(self, y: Tensor) -> Tensor:
        latents = torch.randn(len(y), self.case.shape.latents, generator=self.noise, device=self.case.device)
        with self.autocast:
            fakes: Tensor = self.generator(latents, y).float()
        return fakes

    def train(self) -> None:
        """All steps."""
        case, section = self.case, self.case.section
        discriminator = self.discriminator
        is_fake = torch.arange(2 * section.batch, device=case.device) >= section.batch
        for step in range(case.steps):
            y = self.labels[step]
            labels = y.repeat(2)
            penalise = step % section.r1_every == 0
            with torch.no_grad():
                fakes = self._fakes(y)
            x = case.augment(torch.cat([self._reals(step), fakes]), self.noise).requires_grad_(penalise)
            with torch.autocast(case.device.type, enabled=False) if penalise else self.autocast:
                logits = discriminator(x, labels, is_fake).float()
            loss = d_loss(*logits.chunk(2))
            if penalise:
                r1, r2 = gradient_penalty(logits, x).chunk(2)
                weight = section.r1_every / 2
                loss = loss + (section.r1_gamma * r1.mean() + section.r2_gamma * r2.mean()) * weight
            self.d_optimizer.zero_grad()
            loss.backward()
            self.d_optimizer.step()

            discriminator.requires_grad_(False)
            x = case.augment(torch.cat([self._reals(step), self._fakes(y)]), self.noise)
            with self.autocast:
                real_logits, fake_logits = discriminator(x, labels, is_fake).float().chunk(2)
            loss = g_loss(real_logits.detach(), fake_logits)
            self.g_optimizer.zero_grad()
            loss.backward()
            self.g_optimizer.step()
            discriminator.requires_grad_(True)
            self.average.update()
