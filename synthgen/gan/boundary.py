"""The third player of an adaptation: a classifier whose decision boundary draws G's samples of one class near.

Owns its network, optimiser, rows and random numbers, its turn and what it adds to G's loss; refuses to know how the
network is built (the stage hands it in, as it does the monitor's), files, and samples made from pictures. It takes no
number from the game's own random stream and leaves no trace in G's statistics: with a weight of 0 the game of two is
played to the last bit.

The game is that of Mullick, Datta and Das 2019 (GAMO, arXiv:1903.09730) and of Vandenhende et al. 2019
(arXiv:1903.03496): the classifier learns reals and samples, G makes samples that it finds hard, and D, which judges by
class, keeps them inside the class. Ours differs in two things, both for stability. GAMO's G maximises the classifier's
error, which has no bound and is best served by images of another class; here the term ends before the boundary and
turns round beyond it (`synthgen.gan.losses.boundary_loss`). And the classifier is shown samples of all classes at the
rate of the reals, not of the scarce class alone: else it would learn that a generator's texture means that class.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from synthgen.config import BoundarySection
from synthgen.dataset.sampling import BalancedBatches
from synthgen.errors import ConfigError
from synthgen.gan.architectures.interface import Generator
from synthgen.gan.losses import boundary_loss, log_odds
from synthgen.gan.scenes import NoiseScene, Scene
from synthgen.optim import Adam
from synthgen.seeding import numpy_generator, torch_generator

LABEL_SMOOTHING = 0.1
"""Of the classifier's cross entropy: without it a few images make it ever surer, and no band would mean a thing."""
WEIGHT_DECAY = 1e-3

Note = Callable[[str, Tensor], None]
"""Adds a () tensor to the mean of that name."""


@dataclass(frozen=True)
class BoundaryRules:
    """What `train_gan` is handed for a game of three.

    Attributes:
        section: weight, band and rates (section `adapt.boundary`).
        label: the class whose samples are drawn towards the boundary.
        network: fresh; (N, C, H, W) float32 in [-1, 1] to (N, n_classes) logits. It is copied.
    """

    section: BoundarySection
    label: int
    network: nn.Module


def check_boundary(rules: BoundaryRules, labels: NDArray[np.int64], scene: Scene, n_processes: int) -> None:
    """Refuses games that three cannot play.

    Args:
        rules: of the game.
        labels: (n,) of the training images.
        scene: of the game.
        n_processes: that train together.
    Raises:
        ConfigError: one class only, or none of the class adapted; image to image; several processes.
    """
    present = sorted(set(labels.tolist()))
    if len(present) < 2 or rules.label not in present:
        raise ConfigError(
            f"adapt.boundary needs training images of class {rules.label} and of another one, there are classes "
            f"{present}; set adapt.boundary null"
        )
    if not isinstance(scene, NoiseScene):
        raise ConfigError(
            "adapt.boundary is for generators from noise; image-to-image ones start on the other side of the boundary: "
            "set adapt.boundary null, or pretrain.network.architecture resnet, dcgan or style"
        )
    if n_processes > 1:
        raise ConfigError(
            f"adapt.boundary is played by one process, not by {n_processes}; start the stage without torchrun, or set "
            "adapt.boundary null"
        )


class ThirdPlayer:
    """The classifier of one game.

    Attributes:
        in_play: whether its term counts yet (`warmup`).
    """

    def __init__(
        self,
        rules: BoundaryRules,
        labels: NDArray[np.int64],
        batch: int,
        *,
        seed: int,
        device: torch.device,
        autocast: torch.autocast,
        steps_per_tick: int = 1,
    ) -> None:
        """Takes its place.

        Args:
            rules: what to play; `rules.network` is taken over, on `device`.
            labels: (n,) int64 of the training images.
            batch: reals of a turn, all classes equally often, and as many samples.
            seed: of the training.
            device: of the training.
            autocast: precision of the forward passes.
            steps_per_tick: steps from one snapshot to the next.
        """
        self.section, self.label, self.seed = rules.section, rules.label, seed
        self.network = rules.network.to(device).to(memory_format=torch.channels_last)
        self.network.requires_grad_(True)
        self.optimizer = Adam(self.network.parameters(), lr=self.section.lr, weight_decay=WEIGHT_DECAY)
        self.batches = BalancedBatches(labels, batch, numpy_generator(seed, "classifier batches"))
        self.labels = torch.from_numpy(labels).to(device)
        self.noise = torch_generator(seed, "classifier noise", device=str(device))
        self.autocast, self.steps_per_tick = autocast, steps_per_tick
        self.waiting_rows: list[Tensor] = []
        self.in_play = False

    def _rows(self) -> Tensor:
        # a tick's rows at once, as the game takes its own
        if not self.waiting_rows:
            drawn = np.stack([self.batches.take() for _ in range(self.steps_per_tick)])  # (steps_per_tick, batch)
            self.waiting_rows = list(torch.from_numpy(drawn).to(self.labels.device).unbind(0))[::-1]
        return self.waiting_rows.pop()

    def learn(self, generator: Generator, scene: Scene, done: float, lr: float, n_parts: int, note: Note) -> None:
        """Its turn: one step on reals of all classes and as many samples of the same labels.

        Args:
            generator: makes the samples as it will once trained, in eval mode; it is left as it was.
            scene: shows the reals, jittered as D sees them.
            done: share of the training, in [0, 1).
            lr: factor on `section.lr`.
            n_parts: parts that the batch is worked through in.
            note: takes `c_loss` and `c_real`.
        """
        self.in_play = done >= self.section.warmup
        self.network.train().requires_grad_(True)
        self.optimizer.lr = self.section.lr * lr
        self.optimizer.zero_grad()
        rows = self._rows()
        for part in (rows[k::n_parts] for k in range(n_parts)):
            (self._loss(part, generator, scene, note) * (len(part) / len(rows))).backward()  # type: ignore[no-untyped-call]  # torch's own
        self.optimizer.step()

    def _loss(self, rows: Tensor, generator: Generator, scene: Scene, note: Note) -> Tensor:
        y = self.labels[rows]
        reals = scene.reals(rows, self.noise)
        latents = torch.randn(len(y), generator.shape.latents, generator=self.noise, device=y.device)
        generator.eval()  # in train mode this batch would enter its running statistics
        with torch.no_grad(), self.autocast:
            samples = generator(latents, y).float()
        generator.train()
        with self.autocast:
            logits = self.network(torch.cat([reals, samples])).float()  # (2N, n_classes), reals first
        loss = functional.cross_entropy(logits, y.repeat(2), label_smoothing=LABEL_SMOOTHING)
        note("c_loss", loss)
        note("c_real", (logits[: len(y)].argmax(1) == y).float().mean())
        return loss

    def pull(self, fakes: Tensor, y: Tensor, note: Note) -> Tensor:
        """What it adds to G's loss.

        Args:
            fakes: (N, C, H, W) float32 in [-1, 1], G's, with its graph.
            y: (N,) int64 their labels.
            note: takes what `numbers` reads.
        Returns:
            () float32: `weight` times the mean over the N samples, of which those of other classes count as 0, so that
            for each sample of the class the term stands beside the GAN's loss with just this weight; 0 in the warm-up.
        """
        weight = self.section.weight if self.in_play else 0.0
        # running statistics: a sample is judged by itself, not by the company that G's batch keeps
        self.network.eval().requires_grad_(False)
        with torch.set_grad_enabled(weight > 0.0):
            with self.autocast:
                logits = self.network(fakes).float()  # (N, n_classes)
            odds = log_odds(logits, y)
            own = (y == self.label).float()
            term = (boundary_loss(odds, self.section.certainty) * own).mean()
        note("boundary", term)
        note("c_own", own.mean())
        note("c_fake", ((logits.argmax(1) == y) * own).mean())
        note("c_certainty", (torch.sigmoid(odds) * own).mean())
        return weight * term if weight > 0.0 else fakes.new_zeros(())

    @staticmethod
    def numbers(means: Mapping[str, float]) -> dict[str, float]:
        """What a tick says of it (`synthgen.gan.history.Tick`), from the means of what was noted."""
        own = max(means["c_own"], 1e-12)
        of_class = {name: means[name] / own for name in ("c_fake", "c_certainty", "boundary")}
        return {"c_loss": means["c_loss"], "c_real": means["c_real"], **of_class}

    def parts_of_state(self) -> dict[str, Mapping[str, Tensor]]:
        """Part -> name -> tensor in use, for a snapshot."""
        return {
            "classifier": self.network.state_dict(),
            "c_optimizer": self.optimizer.state_tensors(),
            "c_random": {"noise": self.noise.get_state()},
        }

    def values(self) -> dict[str, Any]:
        """JSON values for a snapshot."""
        return {"classifier_batches": self.batches.state()}

    def restore(self, part: Callable[[str], dict[str, Tensor]], values: Mapping[str, Any]) -> None:
        """Goes back to a snapshot.

        Args:
            part: name of a part of `parts_of_state` -> its tensors.
            values: the snapshot's.
        """
        self.network.load_state_dict(part("classifier"))
        self.optimizer.load_state_tensors(part("c_optimizer"))
        self.noise.set_state(part("c_random")["noise"])
        self.batches.restore(values["classifier_batches"])
        self.waiting_rows = []

    def reseed(self, attempt: int) -> None:
        """Other random streams from here on."""
        self.noise.manual_seed(torch_generator(self.seed, "classifier retry", attempt).initial_seed())
        self.batches.reseed(numpy_generator(self.seed, "classifier retry batches", attempt))
        self.waiting_rows = []
