"""One step of the adversarial game, and all that changes while it is played.

Owns the two networks, their optimisers, the average, the random streams, and what a step does with them; knows neither
ticks nor files. Nothing in a step waits for the device. `snapshot` and `restore` cover everything that decides the next
step, to the last bit.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from synthgen.config import PretrainSection
from synthgen.dataset.sampling import BalancedBatches
from synthgen.gan.adaptive import AdaptiveStrength, overfitting_sign
from synthgen.gan.architectures.interface import Discriminator, Generator
from synthgen.gan.architectures.layers import Dropout
from synthgen.gan.architectures.style import StyleGenerator
from synthgen.gan.boundary import ThirdPlayer
from synthgen.gan.diffaugment import diffaugment
from synthgen.gan.distributed import ALONE, Peers
from synthgen.gan.ema import MovingAverage
from synthgen.gan.losses import LOSSES, Targets, auxiliary_loss, soft_targets
from synthgen.gan.regularisers import (
    LecamAnchors,
    clip_gradients,
    consistency,
    gradient_norm,
    gradient_penalty,
    lecam,
    wasserstein_penalty,
)
from synthgen.gan.scenes import Scene
from synthgen.gan.state import Snapshot
from synthgen.optim import Adam, Optimizer, RMSprop
from synthgen.seeding import numpy_generator, torch_generator

LECAM_DECAY = 0.99
RELATIVE_LOSSES = ("relativistic", "wasserstein")


class Means:
    """Running means of tensors on the device; read once a tick, which is the one time that anybody waits."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, name: str, value: Tensor) -> None:
        """Adds a () tensor to the mean called `name`."""
        value = value.detach().float()
        self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.counts[name] = self.counts.get(name, 0) + 1

    def read(self) -> dict[str, float]:
        """All means as numbers; starts afresh."""
        values = torch.stack(list(self.sums.values())).tolist() if self.sums else []
        found = {name: value / self.counts[name] for name, value in zip(self.sums, values, strict=True)}
        self.sums, self.counts = {}, {}
        return found


@dataclass(frozen=True)
class Progress:
    """What the share of a training that is done decides, besides the state of the game.

    Attributes:
        lr: factor on both learning rates.
        class_share: how much of the class input is let in, in [0, 1].
        growth: level of progressive networks.
        lecam: whether the anchors have settled.
        done: the share itself, in [0, 1).
    """

    lr: float
    class_share: float
    growth: float
    lecam: bool
    done: float = 0.0


def progress_at(done: float, section: PretrainSection, first_level: int, last_level: int) -> Progress:
    """The schedule.

    Args:
        done: share of the training, in [0, 1).
        section: `lr_decay_from`, `class_ramp`, `grow_until`.
        first_level, last_level: of a progressive network; equal for others.
    Returns:
        learning rates fall linearly to 0 from `lr_decay_from` on; the class input rises linearly over `class_ramp`
        (Shahbazi et al. 2022, arXiv:2201.06578); each new level is faded in over the first half of its time.
    """
    start = section.lr_decay_from
    lr = 1.0 if done < start else max(0.0, (1.0 - done) / max(1.0 - start, 1e-9))
    class_share = 1.0 if done >= section.class_ramp else done / section.class_ramp
    growth = float(last_level)
    n_new = last_level - first_level
    if n_new and done < section.grow_until:
        # n_new + 1 sides share the time until grow_until; the first has nothing to fade in
        place = done / section.grow_until * (n_new + 1)
        level = int(place)
        growth = first_level + level - 1 + min(1.0, 2.0 * (place - level)) if level else float(first_level)
    return Progress(lr, class_share, growth, lecam=done > 0.05, done=done)


class Game:
    """Two networks playing, or three; see `play`.

    Attributes:
        third: the classifier of a game of three, or None; set before the first step.
    """

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator,
        scene: Scene,
        batches: BalancedBatches,
        labels: Tensor,
        section: PretrainSection,
        *,
        seed: int,
        lr_factor: float,
        tick_length: int = 1,
        ema_updates: int = 0,
        freeze_blocks: int = 0,
        peers: Peers = ALONE,
    ) -> None:
        """Sets the board.

        Args:
            generator, discriminator: on one device.
            scene: what D is shown and what G is given.
            batches: rows of each step.
            labels: (n,) int64 of all rows, on the device.
            section: rates, losses, regularisers.
            seed: of the noise.
            lr_factor: on both learning rates.
            tick_length: steps from one snapshot to the next.
            ema_updates: updates that the average counts as done (1 where it starts from trained weights).
            freeze_blocks: first parts of D that stay as they are.
            peers: processes that play the same game, each on rows of its own.
        """
        self.peers = peers
        self.generator, self.discriminator = generator.train(), discriminator.train()
        self.scene, self.batches, self.labels, self.section = scene, batches, labels, section
        self.seed, self.device = seed, labels.device
        self.generator.requires_grad_(True)
        self.discriminator.requires_grad_(True)
        for part, _ in zip(self.discriminator.stages(), range(freeze_blocks), strict=False):
            part.requires_grad_(False)
        self.trained_by_d = [p for p in self.discriminator.parameters() if p.requires_grad]
        self.average = MovingAverage(generator, section.ema, ema_updates)
        # followed from a process's own rows
        self.followed = [generator.w_average] if isinstance(generator, StyleGenerator) else []
        self.g_optimizer = self._optimizer(list(generator.parameters()), section.g_lr)
        self.d_optimizer = self._optimizer(self.trained_by_d, section.d_lr)
        self.noise = torch_generator(seed, "noise", device=str(self.device))
        ada = section.adaptive
        self.strength = AdaptiveStrength(0.0, ada.target, ada.ramp_kimg) if ada else AdaptiveStrength(1.0, 0.5, 1.0)
        self.anchors = LecamAnchors.at_zero(self.device)
        self.lr_factor, self.n_parts, self.step = lr_factor, 1, 0
        self.means = Means()
        # rows of a whole tick go to the device at once: a copy per step would wait for it
        self.rows_per_tick = tick_length * section.d_steps
        self.waiting_rows: list[Tensor] = []
        bf16 = section.precision == "bf16" or (section.precision == "auto" and self.device.type == "cuda")
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=bf16)
        self.loss = LOSSES[section.loss]
        # compiled forms are for steps without a double backward, which torch cannot compile
        self.fast_g, self.fast_d = self._compiled()
        self._set_random()
        self.third: ThirdPlayer | None = None

    def _compiled(self) -> tuple[Any, Any]:
        # several processes draw and normalise through a mode that compiled code does not see
        if not (self.section.compile and self.device.type == "cuda" and self.peers.n == 1):
            return self.generator, self.discriminator.features
        return torch.compile(self.generator), torch.compile(self.discriminator.features)

    def _set_random(self) -> None:
        self.generator.random, self.generator.style_mixing = self.noise, self.section.style_mixing
        for module in self.discriminator.modules():
            if isinstance(module, Dropout):
                module.random = self.noise

    def _optimizer(self, parameters: Sequence[Tensor], lr: float) -> Optimizer:
        if self.section.optimizer == "rmsprop":
            return RMSprop(parameters, lr=lr)
        return Adam(parameters, lr=lr, betas=self.section.betas)

    def _latents(self, n: int) -> Tensor:
        return torch.randn(n, self.generator.shape.latents, generator=self.noise, device=self.device)

    def _transform(self, x: Tensor) -> Tensor:
        section = self.section
        if self.strength.strength == 0.0 or not (section.diffaugment_translation or section.diffaugment_cutout):
            return x
        return diffaugment(
            x,
            self.noise,
            translate=section.diffaugment_translation,
            cut=section.diffaugment_cutout,
            with_color=section.diffaugment_color and x.shape[1] == 3,
            probability=self.strength.strength,
        )

    def _parts(self) -> list[Tensor]:
        if not self.waiting_rows:
            drawn = np.stack([self.batches.take() for _ in range(self.rows_per_tick)])  # (rows_per_tick, batch)
            self.waiting_rows = list(torch.from_numpy(drawn).to(self.device).unbind(0))[::-1]
        rows = self.waiting_rows.pop()
        # every n-th row: a batch stands in the order of its labels, and a part wants all of them
        return [rows[k :: self.n_parts] for k in range(self.n_parts)]

    def play(self, progress: Progress, *, look: bool) -> None:
        """D's steps, the third player's if there is one, then G's step, then the average.

        Args:
            progress: the schedule at this step.
            look: also measure the gradients' norms (the tick's last step).
        """
        section = self.section
        self.g_optimizer.lr = section.g_lr * self.lr_factor * progress.lr
        self.d_optimizer.lr = section.d_lr * self.lr_factor * progress.lr
        for network in (self.generator, self.discriminator, self.average.network):
            network.class_share, network.growth = progress.class_share, progress.growth
        has_penalty = section.r1_gamma > 0.0 or section.r2_gamma > 0.0
        for turn in range(section.d_steps):
            penalise = has_penalty and (self.step * section.d_steps + turn) % section.r1_every == 0
            parts = self._parts()
            self.d_optimizer.zero_grad()
            for rows in parts:
                self._learn(rows, partial(self._discriminator_loss, progress=progress, penalise=penalise))
            self._finish(self.d_optimizer, self.trained_by_d, "d_gradient", look=look)
        if self.third is not None:
            self.third.learn(self.generator, self.scene, progress.done, progress.lr, self.n_parts, self.means.add)
        self.discriminator.requires_grad_(False)
        self.g_optimizer.zero_grad()
        for rows in parts:
            self._learn(rows, self._generator_loss)
        self._finish(self.g_optimizer, self.g_optimizer.parameters, "g_gradient", look=look)
        for parameter in self.trained_by_d:
            parameter.requires_grad_(True)
        self.peers.average_(self.followed)
        self.peers.agree()
        self.average.update()
        self.step += 1

    def _learn(self, rows: Tensor, loss_of: Callable[[Tensor], Tensor]) -> None:
        """Adds the gradients of a part of the batch; of several processes each adds those of its rows."""
        with self.peers.as_one(len(rows), self.noise, self.discriminator):
            own = self.peers.own_rows(rows)
            (loss_of(own) * (len(own) / self.section.batch)).backward()  # type: ignore[no-untyped-call]  # torch's own

    def _finish(self, optimizer: Optimizer, parameters: Sequence[Tensor], name: str, *, look: bool) -> None:
        self.peers.add_gradients(parameters)
        if self.section.clip_gradients is not None:
            norm = clip_gradients(parameters, self.section.clip_gradients)
            if look:
                self.means.add(name, norm)
        elif look:
            self.means.add(name, gradient_norm(parameters))
        optimizer.step()

    def _judge(self, x: Tensor, y: Tensor, is_fake: Tensor, *, exact: bool) -> tuple[Tensor, Tensor]:
        """Features and logits; `exact` keeps single precision and takes no compiled form, for double backward."""
        if exact:
            features = self.discriminator.features(x, y, is_fake)
            return features, self.discriminator.score(features, y)
        with self.autocast:
            features = self.fast_d(x, y, is_fake)
            return features, self.discriminator.score(features, y).float()

    def _pair(self, rows: Tensor, *, keep_graph: bool) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
        y = self.labels[rows]
        reals = self.scene.reals(rows, self.noise)
        content = self.scene.content(y, self.noise)
        with torch.set_grad_enabled(keep_graph), self.autocast:
            fakes = self.fast_g(self._latents(len(y)), y, *content).float()
        return y, reals, fakes, content

    def _discriminator_loss(self, rows: Tensor, progress: Progress, *, penalise: bool) -> Tensor:
        section, means = self.section, self.means
        y, reals, fakes, content = self._pair(rows, keep_graph=False)
        fakes = self.scene.view(fakes, content)
        both = torch.cat([reals, fakes])  # (2N, C, H, W), reals first
        x = self._transform(both).requires_grad_(penalise)
        labels, is_fake = y.repeat(2), torch.arange(2 * len(y), device=self.device) >= len(y)
        features, logits = self._judge(x, labels, is_fake, exact=penalise)
        real_logits, fake_logits = logits.chunk(2)
        loss = self.loss.discriminator(real_logits, fake_logits, self._targets(len(y)))
        real_mean, fake_mean = self.peers.means(real_logits.detach(), fake_logits.detach())
        means.add("d_loss", loss)
        if penalise:
            r1, r2 = gradient_penalty(logits, x).chunk(2)
            # lazy: every r1_every steps with r1_every times the weight (Karras et al. 2020, arXiv:1912.04958, B)
            weight = section.r1_every / 2
            loss = loss + (r1.mean() * section.r1_gamma + r2.mean() * section.r2_gamma) * weight
            means.add("r1", r1.mean())
            means.add("r2", r2.mean())
        if section.wasserstein_penalty:
            judge = self.discriminator
            penalty = wasserstein_penalty(lambda images: judge(images, y), x[: len(y)], x[len(y) :], self.noise)
            loss = loss + section.wasserstein_penalty * penalty
            means.add("r1", penalty)
        if section.lecam:
            if progress.lecam:
                loss = loss + section.lecam * lecam(real_logits, fake_logits, self.anchors)
            self.anchors.update(real_mean, fake_mean, LECAM_DECAY)
        if section.consistency:
            _, plain = self._judge(both, labels, is_fake, exact=penalise)
            loss = loss + section.consistency * consistency(plain, logits)
        if self.discriminator.shape.auxiliary:
            loss = loss + section.auxiliary_weight * auxiliary_loss(
                self.discriminator.classify(features).float(), labels
            )
        with torch.no_grad():
            middle = 0.5 * (real_mean + fake_mean)
            means.add("d_real", (real_logits > middle).float().mean())
            means.add("d_fake", (fake_logits < middle).float().mean())
            # relative to the middle of all rows, of which this process may have some only
            zero = middle if section.loss in RELATIVE_LOSSES else torch.zeros_like(middle)
            means.add("sign", overfitting_sign(real_logits - zero, fake_logits - zero, relative=False))
        return loss

    def _targets(self, n: int) -> Targets | None:
        section = self.section
        if section.loss != "non_saturating" or not (section.label_smoothing or section.label_noise):
            return None
        return soft_targets(n, section.label_smoothing, section.label_noise, self.noise)

    def _generator_loss(self, rows: Tensor) -> Tensor:
        section = self.section
        y, reals, made, content = self._pair(rows, keep_graph=True)
        fakes = self.scene.view(made, content)
        if self.loss.uses_reals_for_generator or self.discriminator.shape.d_norm == "batch":
            x, labels = self._transform(torch.cat([reals, fakes])), y.repeat(2)
            is_fake = torch.arange(2 * len(y), device=self.device) >= len(y)
            features, logits = self._judge(x, labels, is_fake, exact=False)
            real_logits, fake_logits = logits.chunk(2)
            fake_features = features[len(y) :]
        else:
            is_fake = torch.ones(len(y), dtype=torch.bool, device=self.device)
            fake_features, fake_logits = self._judge(self._transform(fakes), y, is_fake, exact=False)
            real_logits = fake_logits
        loss = self.loss.generator(real_logits.detach(), fake_logits) + self.scene.penalty(made, content)
        self.means.add("g_loss", loss)
        if self.discriminator.shape.auxiliary:
            loss = loss + section.auxiliary_weight * auxiliary_loss(
                self.discriminator.classify(fake_features).float(), y
            )
        if self.third is not None:
            loss = loss + self.third.pull(made, y, self.means.add)
        return loss

    def end_tick(self, n_images: int) -> dict[str, float]:
        """Means since the last tick; moves the adaptive strength by D's sureness about `n_images` training reals."""
        means = self.peers.mean_numbers(self.means.read())
        if self.section.adaptive is not None and means["sign"] == means["sign"]:
            self.strength.update(means["sign"], n_images)
        return means

    def reseed(self, attempt: int) -> None:
        """Other random streams from here on: the same ones would lead to the same ruin."""
        self.noise.manual_seed(torch_generator(self.seed, "retry", attempt).initial_seed())
        self.batches.reseed(numpy_generator(self.seed, "retry batches", attempt))
        self.waiting_rows = []
        if self.third is not None:
            self.third.reseed(attempt)

    def finished_networks(self) -> tuple[Generator, Discriminator]:
        """Copies of the average and of D in eval mode, without gradients."""
        copies = [copy.deepcopy(network) for network in (self.average.network, self.discriminator)]
        generator, discriminator = (network.eval().requires_grad_(False) for network in copies)
        assert isinstance(generator, Generator)
        assert isinstance(discriminator, Discriminator)
        return generator, discriminator

    def parts_of_state(self) -> dict[str, Mapping[str, Tensor]]:
        """Part -> name -> tensor in use, of all that a snapshot copies."""
        return {
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "average": self.average.network.state_dict(),
            "g_optimizer": self.g_optimizer.state_tensors(),
            "d_optimizer": self.d_optimizer.state_tensors(),
            "anchors": {"real": self.anchors.real, "fake": self.anchors.fake},
            "random": {"noise": self.noise.get_state()},
            **({} if self.third is None else self.third.parts_of_state()),
        }

    def snapshot(self) -> Snapshot:
        """A copy of all that decides the next step; taken between ticks, when no drawn row is waiting."""
        tensors = {
            f"{part}.{name}": tensor.detach().cpu().clone()
            for part, found in self.parts_of_state().items()
            for name, tensor in found.items()
        }
        values = {
            "step": self.step,
            "ema_updates": self.average.n,
            "strength": self.strength.state(),
            "lr_factor": self.lr_factor,
            "n_parts": self.n_parts,
            "batches": self.batches.state(),
            **({} if self.third is None else self.third.values()),
        }
        return Snapshot(tensors, values)

    @torch.no_grad()
    def restore(self, snapshot: Snapshot) -> None:
        """Goes back to a `snapshot`."""

        def part(name: str) -> dict[str, Tensor]:
            prefix = f"{name}."
            return {key.removeprefix(prefix): t for key, t in snapshot.tensors.items() if key.startswith(prefix)}

        self.generator.load_state_dict(part("generator"))
        self.discriminator.load_state_dict(part("discriminator"))
        self.average.network.load_state_dict(part("average"))
        self.g_optimizer.load_state_tensors(part("g_optimizer"))
        self.d_optimizer.load_state_tensors(part("d_optimizer"))
        self.anchors.real.copy_(snapshot.tensors["anchors.real"])
        self.anchors.fake.copy_(snapshot.tensors["anchors.fake"])
        self.noise.set_state(snapshot.tensors["random.noise"])
        values = snapshot.values
        self.step, self.average.n = values["step"], values["ema_updates"]
        self.strength.load(values["strength"])
        self.lr_factor, self.n_parts = values["lr_factor"], values["n_parts"]
        self.batches.restore(values["batches"])
        self.waiting_rows = []
        if self.third is not None:
            self.third.restore(part, values)
        # a step that was broken off in G's half leaves D without gradients
        for parameter in self.trained_by_d:
            parameter.requires_grad_(True)
        self.means = Means()
