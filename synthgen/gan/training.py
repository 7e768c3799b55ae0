"""The training loop of a conditional GAN, read top to bottom.

Owns one game from data to trained networks: ticks, what is measured at them, when to take a tick back, when to stop,
and going on after a kill. The same loop trains the shared GAN, adapts it to one class (`start`, and `weights` that
favour the class), trains from scratch, and trains image-to-image generators (`scene`). Durations are in kimg, thousands
of real images shown to D.
"""

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthgen.config import PretrainSection, TransformsSection
from synthgen.dataset.sampling import BalancedBatches
from synthgen.errors import DivergedError, TrainingError
from synthgen.gan.architectures.build import build_discriminator, build_generator
from synthgen.gan.architectures.interface import Discriminator, Generator
from synthgen.gan.architectures.shape import GanShape
from synthgen.gan.boundary import BoundaryRules, ThirdPlayer, check_boundary
from synthgen.gan.checkpoint import TrainedGan
from synthgen.gan.distributed import ALONE, Peers
from synthgen.gan.game import Game, progress_at
from synthgen.gan.history import ClassTick, Rollback, Tick
from synthgen.gan.monitors import Monitor, illness, reason_to_stop, summarise
from synthgen.gan.pixels import to_uint8
from synthgen.gan.regularisers import initialise
from synthgen.gan.scenes import FreeScene, NoiseScene, Scene
from synthgen.gan.state import Snapshot, load_snapshot, save_snapshot
from synthgen.progress import Advance, progress_bar
from synthgen.seeding import derive_seed, numpy_generator, torch_generator

logger = logging.getLogger(__name__)

N_GRID_PER_CLASS = 8
SAMPLE_BATCH = 256
LEAST_PART = 4
"""Images in a part of a batch; an accelerator too small for that is too small."""


@dataclass
class GanRun:
    """What a training leaves.

    Attributes:
        generator: averaged weights of the best tick, in eval mode; discriminator: D's weights of that tick.
        history: one Tick per tick that was kept; classes: one row per class and tick.
        grids: one (n_shown, N_GRID_PER_CLASS, H, W, C) uint8 array of fixed latents per tick.
        rollbacks: ticks that were taken back.
        best: index in `history` of the tick whose weights these are.
        stopped: why before the budget was spent, or None.
    """

    generator: Generator
    discriminator: Discriminator
    history: list[Tick] = field(default_factory=list)
    classes: list[ClassTick] = field(default_factory=list)
    grids: list[NDArray[np.uint8]] = field(default_factory=list)
    rollbacks: list[Rollback] = field(default_factory=list)
    best: int | None = None
    stopped: str | None = None


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
    freeze_blocks: int = 0,
    scene: Scene | None = None,
    judged_size: int | None = None,
    boundary: BoundaryRules | None = None,
    monitor: Monitor | None = None,
    scratch: Path | None = None,
    description: str = "gan",
    peers: Peers = ALONE,
    n_shown: int | None = None,
) -> GanRun:
    """Trains a class-conditional GAN.

    Args:
        images: (n, H, W, C) uint8 training images, nothing else.
        labels: (n,) int64 below `shape.n_classes`.
        shape: of the generator.
        section: learning rates, losses, regularisers, average, batch (section `pretrain`).
        transforms: amplitudes of the jitter of reals.
        kimg: how long.
        seed: of this training; equal seed, data and machine give equal weights.
        device: to train on.
        weights: label -> share of the reals shown; None: by `section.class_temper`, as a rule all equally often.
        start: networks to start from instead of fresh ones.
        lr_factor: on both learning rates.
        freeze_blocks: first parts of D that stay as they are.
        scene: what D is shown and G is given; None: whole images from noise.
        judged_size: side of what D is shown, in px, where the scene shows crops.
        boundary: the third player's part; None: a game of two.
        monitor: judges the samples of every tick; None: only the game's own numbers, and the last tick wins.
        scratch: folder for the state of this very training (see `synthgen.gan.state`); None: a kill loses it.
        description: for the progress bar and messages.
        peers: processes that train this very GAN together, each calling this function with the same arguments; the
            first alone needs the monitor.
        n_shown: grids show the labels below it; None: all. A label above is there to be learned from, not to be made.
    Returns:
        the averaged generator and the discriminator of the best tick, and the history; grids in the first process.
    Raises:
        ConfigError: a batch that the processes cannot share, or see `check_boundary`.
        TrainingError: a class without images, or too little memory.
        DivergedError: ruin after `stop.max_rollbacks` roll-backs.
    """
    # The board: data on the device as uint8, one random stream per purpose.
    peers.require_even(section.batch)
    total = max(1, round(kimg * 1000 / (section.batch * section.d_steps)))
    n_per_step = section.batch * section.d_steps
    tick_length = min(total, max(1, round(section.tick_kimg * 1000 / n_per_step)))
    generator, discriminator = _networks(shape, judged_size, start, section, seed)
    # convolutions of this size are a tenth to a fifth faster so
    generator = generator.to(device).to(memory_format=torch.channels_last)
    discriminator = discriminator.to(device).to(memory_format=torch.channels_last)
    if scene is None:
        data = torch.from_numpy(np.ascontiguousarray(images)).to(device)  # (n, H, W, C)
        scene = NoiseScene(data, transforms, section.real_transforms, section.flip)
    batches = BalancedBatches(
        labels, section.batch, numpy_generator(seed, "batches"), weights or _tempered(labels, section.class_temper)
    )
    game = Game(
        generator,
        discriminator,
        scene,
        batches,
        torch.from_numpy(labels).to(device),
        section,
        seed=seed,
        lr_factor=lr_factor,
        tick_length=tick_length,
        ema_updates=0 if start is None else 1,
        freeze_blocks=freeze_blocks,
        peers=peers,
    )
    game.third = _third_player(boundary, game, labels, tick_length)
    shown = _Showcase(shape, scene, monitor, seed, device, shape.n_classes if n_shown is None else n_shown)
    run = GanRun(generator, discriminator)
    best = _restore(scratch, game, run)
    _require_same_state(game)
    last_good = game.snapshot()

    with progress_bar(description, total) if peers.leads else _no_bar() as advance:
        advance(game.step)
        while game.step < total and run.stopped is None:
            progress = progress_at(game.step / total, section, shape.first_level, shape.n_halvings)
            at_tick = (game.step + 1) % tick_length == 0 or game.step + 1 == total
            try:
                game.play(progress, look=at_tick)
            except torch.OutOfMemoryError as error:
                peers.report_out_of_memory(error)
                _work_in_smaller_parts(game, last_good, section.batch, description, error)
                continue
            advance()
            if not at_tick:
                continue

            # Once a tick: look at the numbers and at samples.
            tick = _tick(game, n_per_step, tick_length, len(run.rollbacks))
            tick, classes = _of_first(peers, *(shown.look(tick, game) if peers.leads else (tick, [])))
            reason = illness(tick, classes, _healthiest(run.classes), section.stop)
            if reason is not None:
                _take_back(game, last_good, run, Rollback(tick.kimg, reason), section, description)
                continue
            run.history.append(tick)
            run.classes += classes
            if peers.leads:
                run.grids.append(shown.grid(game))
            # a tick of before the third player's term counts would win, being nearer to the reals
            three = game.third is None or game.third.in_play
            is_whole = progress.class_share == 1.0 and progress.growth == shape.n_halvings and three
            if is_whole and _is_better(tick, run):
                run.best, best = len(run.history) - 1, _networks_of(game)
            if is_whole:
                run.stopped = reason_to_stop(run.history, run.best, section.stop)

            # A good state to fall back on, in memory and on disk.
            _require_same_state(game)
            last_good = game.snapshot()
            if scratch is not None and peers.leads:
                save_snapshot(scratch, _whole_state(last_good, run, best), game.step)

    run.generator, run.discriminator = game.finished_networks()
    if best is not None:
        run.generator.load_state_dict(best["generator"])
        run.discriminator.load_state_dict(best["discriminator"])
    for network in (run.generator, run.discriminator):
        network.class_share, network.growth = 1.0, float(network.shape.n_halvings)
    return run


class _Showcase:
    """Samples of fixed latents and fixed content, so that ticks can be compared."""

    def __init__(
        self, shape: GanShape, scene: Scene, monitor: Monitor | None, seed: int, device: torch.device, n_shown: int
    ) -> None:
        # samples for people and monitors are never made from a picture of their own class
        self.scene = scene.for_sampling() if isinstance(scene, FreeScene) else scene
        self.shape, self.monitor, self.seed, self.device = shape, monitor, seed, device
        self.grid_labels = torch.arange(n_shown).repeat_interleave(N_GRID_PER_CLASS)

    @torch.no_grad()
    def _samples(self, game: Game, labels: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """(n, C, H, W) samples of the averaged generator, and (n, C, S, S) what D would be shown of them."""
        latents = torch.randn(len(labels), self.shape.latents, generator=torch_generator(self.seed, name))
        chance = torch_generator(self.seed, name, "content", device=str(self.device))
        network = game.average.network
        network.eval()
        made, seen = [], []
        for first in range(0, len(labels), SAMPLE_BATCH):
            y = labels[first : first + SAMPLE_BATCH].to(self.device)
            content = self.scene.content(y, chance)
            fakes = network(latents[first : first + SAMPLE_BATCH].to(self.device), y, *content)
            made.append(fakes)
            seen.append(self.scene.view(fakes, content))
        network.train()
        return torch.cat(made), torch.cat(seen)

    def grid(self, game: Game) -> NDArray[np.uint8]:
        """(n_shown, N_GRID_PER_CLASS, H, W, C) uint8."""
        images = to_uint8(self._samples(game, self.grid_labels, "grid")[0])
        return images.reshape(-1, N_GRID_PER_CLASS, *images.shape[1:])

    def look(self, tick: Tick, game: Game) -> tuple[Tick, list[ClassTick]]:
        """The tick with what its samples look like, and the classes."""
        if self.monitor is None:
            return tick, []
        labels = torch.from_numpy(self.monitor.sample_labels())
        made, seen = self._samples(game, labels, "monitor")
        classes = self.monitor.measure(to_uint8(made), tick.kimg)
        overfitting = None
        if seen.shape == made.shape:
            overfitting = self.monitor.overfitting(game.discriminator, seen, labels.to(self.device))
        means: dict[str, Any] = summarise(classes)
        return replace(tick, overfitting=overfitting, **means), classes


@contextmanager
def _no_bar() -> Iterator[Advance]:
    """For processes that show nothing."""
    yield lambda n_done=1, note="": None


def _of_first(peers: Peers, tick: Tick, classes: list[ClassTick]) -> tuple[Tick, list[ClassTick]]:
    """What the first process saw, so that all take the same decisions."""
    if peers.n == 1:
        return tick, classes
    seen = peers.from_first([asdict(tick), [asdict(row) for row in classes]])
    return Tick(**seen[0]), [ClassTick(**row) for row in seen[1]]


def _require_same_state(game: Game) -> None:
    if game.peers.n > 1:
        tensors = [tensor for part in game.parts_of_state().values() for tensor in part.values()]
        game.peers.require_equal("weights, random numbers or steps", [*tensors, torch.tensor(float(game.step))])


def _networks(
    shape: GanShape, judged_size: int | None, start: TrainedGan | None, section: PretrainSection, seed: int
) -> tuple[Generator, Discriminator]:
    if start is not None:
        return copy.deepcopy(start.generator), copy.deepcopy(start.discriminator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights"))
        generator = build_generator(shape)
        discriminator = build_discriminator(replace(shape, image_size=judged_size or shape.image_size))
        for network in (generator, discriminator):
            initialise(network, section.initialisation)
    return generator, discriminator


def _third_player(
    boundary: BoundaryRules | None, game: Game, labels: NDArray[np.int64], tick_length: int
) -> ThirdPlayer | None:
    if boundary is None:
        return None
    check_boundary(boundary, labels, game.scene, game.peers.n)
    return ThirdPlayer(
        replace(boundary, network=copy.deepcopy(boundary.network)),
        labels,
        game.section.batch,
        seed=game.seed,
        device=game.device,
        autocast=game.autocast,
        steps_per_tick=tick_length,
    )


def _tempered(labels: NDArray[np.int64], temper: float) -> dict[int, float] | None:
    """Label -> count to the power of `temper`; None for 0, all equally often."""
    if temper == 0.0:
        return None
    found, counts = np.unique(labels, return_counts=True)
    return {int(label): float(count) ** temper for label, count in zip(found, counts, strict=True)}


def _tick(game: Game, n_per_step: int, tick_length: int, n_rollbacks: int) -> Tick:
    means = game.end_tick(n_per_step * tick_length)
    names = ("d_loss", "g_loss", "r1", "r2", "d_real", "d_fake", "d_gradient", "g_gradient")
    third = {} if game.third is None else game.third.numbers(means)
    return Tick(
        kimg=game.step * n_per_step / 1000,
        **{name: means.get(name, 0.0) for name in names},
        transform_strength=game.strength.strength,
        lr_factor=game.lr_factor,
        n_parts=game.n_parts,
        rollbacks=n_rollbacks,
        **third,
    )


def _healthiest(rows: list[ClassTick]) -> dict[int, float]:
    found: dict[int, float] = {}
    for row in rows:
        found[row.label] = max(found.get(row.label, 0.0), row.diversity_ratio)
    return found


def _is_better(tick: Tick, run: GanRun) -> bool:
    so_far = None if run.best is None else run.history[run.best].score
    # without scores the last tick wins; once there was one, a tick whose samples could not be scored does not
    return so_far is None or (tick.score is not None and tick.score < so_far)


def _networks_of(game: Game) -> dict[str, dict[str, Tensor]]:
    return {
        "generator": {k: v.detach().cpu().clone() for k, v in game.average.network.state_dict().items()},
        "discriminator": {k: v.detach().cpu().clone() for k, v in game.discriminator.state_dict().items()},
    }


def _take_back(
    game: Game, last_good: Snapshot, run: GanRun, rollback: Rollback, section: PretrainSection, description: str
) -> None:
    run.rollbacks.append(rollback)
    n_allowed = section.stop.max_rollbacks
    if len(run.rollbacks) > n_allowed:
        raise DivergedError(
            f"{description}: {rollback.reason} at {rollback.kimg:.1f} kimg, after {n_allowed} roll-back(s) with other "
            "seeds and lower rates (pretrain.stop.max_rollbacks); lower pretrain.g_lr and pretrain.d_lr or raise "
            "pretrain.r1_gamma"
        )
    logger.warning("%s: %s at %.1f kimg; taken back", description, rollback.reason, rollback.kimg)
    lr_factor = game.lr_factor * section.stop.rollback_lr
    game.restore(last_good)
    game.lr_factor = lr_factor
    game.reseed(len(run.rollbacks))


def _work_in_smaller_parts(
    game: Game, last_good: Snapshot, batch: int, description: str, error: torch.OutOfMemoryError
) -> None:
    n_parts, n_processes = 2 * game.n_parts, game.peers.n
    n_rows = batch // (game.n_parts * n_processes)
    if n_rows // 2 < LEAST_PART:
        raise TrainingError(
            f"{description}: the device's memory is too small for {n_rows} images at a time; lower "
            "pretrain.network.channels or prepare.image_size"
        ) from error
    logger.warning("%s: out of memory; a batch of %d is worked through in %d parts", description, batch, n_parts)
    game.restore(last_good)
    game.n_parts = n_parts
    if game.device.type == "cuda":
        torch.cuda.empty_cache()


def _whole_state(snapshot: Snapshot, run: GanRun, best: dict[str, dict[str, Tensor]] | None) -> Snapshot:
    tensors = dict(snapshot.tensors)
    for part, found in (best or {}).items():
        tensors |= {f"best.{part}.{name}": tensor for name, tensor in found.items()}
    tensors |= {f"grid.{k:06d}": torch.from_numpy(grid) for k, grid in enumerate(run.grids)}
    history: dict[str, Any] = {
        "history": [asdict(tick) for tick in run.history],
        "classes": [asdict(row) for row in run.classes],
        "rollbacks": [asdict(rollback) for rollback in run.rollbacks],
        "best": run.best,
        "stopped": run.stopped,
    }
    return Snapshot(tensors, {**snapshot.values, "run": history})


def _restore(scratch: Path | None, game: Game, run: GanRun) -> dict[str, dict[str, Tensor]] | None:
    """Goes on from the newest state in `scratch`, if there is one; returns the best networks so far."""
    snapshot = load_snapshot(scratch) if scratch is not None else None
    if snapshot is None:
        return None
    game.restore(snapshot)
    saved = snapshot.values["run"]
    run.history = [Tick(**row) for row in saved["history"]]
    run.classes = [ClassTick(**row) for row in saved["classes"]]
    run.rollbacks = [Rollback(**row) for row in saved["rollbacks"]]
    run.best, run.stopped = saved["best"], saved["stopped"]
    grids = sorted(name for name in snapshot.tensors if name.startswith("grid."))
    run.grids = [snapshot.tensors[name].numpy() for name in grids]
    best: dict[str, dict[str, Tensor]] = {}
    for name, tensor in snapshot.tensors.items():
        if name.startswith("best."):
            _, part, key = name.split(".", 2)
            best.setdefault(part, {})[key] = tensor
    return best or None
