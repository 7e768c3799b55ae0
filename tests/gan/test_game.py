"""One step of the game: what it changes, what it leaves alone, and the schedule it follows."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from synthgen.config import GeneratorSection, PretrainSection, TransformsSection
from synthgen.dataset.sampling import BalancedBatches
from synthgen.gan.architectures.build import build_discriminator, build_generator
from synthgen.gan.architectures.shape import GanShape
from synthgen.gan.ema import MovingAverage
from synthgen.gan.game import Game, Means, Progress, progress_at
from synthgen.gan.scenes import NoiseScene
from synthgen.seeding import numpy_generator

N_IMAGES = 40
WHOLE = Progress(lr=1.0, class_share=1.0, growth=9.0, lecam=True)


def _shape(side: int = 8, **keywords: object) -> GanShape:
    small = {"latents": 8, "embedding": 4, "channels": 4, "max_channels": 8, **keywords}
    return GanShape.of(GeneratorSection(**small), side, 1, 2)  # type: ignore[arg-type]


def _section(**keywords: object) -> PretrainSection:
    return PretrainSection(**{"batch": 16, "tick_kimg": 0.08, **keywords})  # type: ignore[arg-type]


def _game(shape: GanShape | None = None, section: PretrainSection | None = None, **keywords: object) -> Game:
    shape, section = shape or _shape(), section or _section()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = build_generator(shape), build_discriminator(shape)
    side = shape.image_size
    images = np.random.default_rng(0).integers(0, 256, (N_IMAGES, side, side, 1)).astype(np.uint8)
    labels = np.arange(N_IMAGES, dtype=np.int64) % 2
    scene = NoiseScene(torch.from_numpy(images), TransformsSection(), section.real_transforms, section.flip)
    batches = BalancedBatches(labels, section.batch, numpy_generator(1, "batches"))
    return Game(*networks, scene, batches, torch.from_numpy(labels), section, seed=1, lr_factor=1.0, **keywords)  # type: ignore[arg-type]


def _weights(game: Game) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in game.snapshot().tensors.items()}


def _differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> set[str]:
    assert a.keys() == b.keys()
    return {name for name in a if not torch.equal(a[name], b[name])}


# Snapshots

VARIANTS: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "adam": ({}, {}),
    "rmsprop": ({}, {"optimizer": "rmsprop", "loss": "hinge"}),
    "dcgan with dropout and label noise": (
        {"architecture": "dcgan", "dropout": 0.3},
        {"loss": "non_saturating", "label_noise": 0.1, "label_smoothing": 0.1},
    ),
    "resnet with dropout": ({"dropout": 0.3}, {}),
    "style": ({"architecture": "style"}, {}),
    "wasserstein": ({"d_norm": "none"}, {"loss": "wasserstein", "wasserstein_penalty": 10.0, "d_steps": 2}),
    "lecam, consistency, clipping": ({}, {"lecam": 0.3, "consistency": 1.0, "clip_gradients": 1.0}),
    "auxiliary": ({"auxiliary": True, "conditioning": "none"}, {}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_snapshot_covers_all_that_decides_the_next_steps(name: str) -> None:
    network, section = VARIANTS[name]
    game = _game(_shape(**network), _section(**section))
    for _ in range(3):
        game.play(WHOLE, look=False)
    game.means.read()  # as at a tick, which is when states are kept
    kept = game.snapshot()
    for _ in range(3):
        game.play(WHOLE, look=True)
    expected, means = _weights(game), game.end_tick(48)

    other = _game(_shape(**network), _section(**section))  # as another process would begin
    for _ in range(2):  # and even if it had played on, and drawn from torch's global generator
        other.play(WHOLE, look=False)
        torch.rand(7)
    other.restore(kept)
    assert not _differing(other.snapshot().tensors, kept.tensors)
    assert other.snapshot().values == kept.values
    for _ in range(3):
        other.play(WHOLE, look=True)
    assert not _differing(_weights(other), expected)
    assert other.end_tick(48) == pytest.approx(means, rel=1e-6)


def test_a_snapshot_is_a_copy() -> None:
    game = _game()
    kept = game.snapshot()
    before = {k: v.clone() for k, v in kept.tensors.items()}
    game.play(WHOLE, look=False)
    assert not _differing(kept.tensors, before)


def test_reseeding_changes_noise_and_batches_and_nothing_else() -> None:
    first, again, other = _game(), _game(), _game()
    first.reseed(1)
    again.reseed(1)
    other.reseed(2)
    assert torch.equal(first._latents(4), again._latents(4))
    assert not torch.equal(first._latents(4), other._latents(4))
    assert not torch.equal(_game()._latents(4), _game_reseeded()._latents(4))
    rows = [game.batches.take().tolist() for game in (first, again, other, _game())]
    assert rows[0] == rows[1]
    assert len({tuple(row) for row in rows}) == 3
    assert _differing(_weights(first), _weights(_game())) == {"random.noise"}


def _game_reseeded() -> Game:
    game = _game()
    game.reseed(1)
    return game


# One step


def test_a_step_moves_both_networks_and_the_average_and_counts() -> None:
    game = _game()
    before = _weights(game)
    game.play(WHOLE, look=False)
    changed = _differing(before, _weights(game))
    parts = {"generator", "discriminator", "average", "g_optimizer", "d_optimizer", "random"}
    assert {name.split(".")[0] for name in changed} == parts
    assert game.step == game.average.n == 1


def test_no_learning_rate_no_change_of_the_weights() -> None:
    game = _game()
    before = [p.clone() for p in (*game.generator.parameters(), *game.discriminator.parameters())]
    game.play(Progress(0.0, 1.0, 9.0, True), look=False)
    after = [*game.generator.parameters(), *game.discriminator.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("kind", ["resnet", "dcgan"])
@pytest.mark.parametrize("n_frozen", [1, 2])
def test_frozen_parts_of_the_discriminator_stay_as_they_are(kind: str, n_frozen: int) -> None:
    game = _game(_shape(16, architecture=kind, progressive=True), freeze_blocks=n_frozen)
    stages = list(game.discriminator.stages())
    before = [copy.deepcopy(list(stage.parameters())) for stage in stages]
    for _ in range(3):
        game.play(WHOLE, look=False)
    for k, (stage, old) in enumerate(zip(stages, before, strict=True)):
        same = [torch.equal(a, b) for a, b in zip(old, stage.parameters(), strict=True)]
        assert all(same) == (k < n_frozen), k
        assert all(p.requires_grad == (k >= n_frozen) for p in stage.parameters())


def test_the_class_share_and_the_growth_reach_every_network() -> None:
    game = _game(_shape(16, progressive=True))
    game.play(Progress(1.0, 0.25, 1.5, True), look=False)
    for network in (game.generator, game.discriminator, game.average.network):
        assert (network.class_share, network.growth) == (0.25, 1.5)


def test_images_are_shown_as_often_as_counted() -> None:
    game = _game(section=_section(d_steps=3))
    taken = []
    take = game.batches.take
    game.batches.take = lambda: taken.append(take()) or taken[-1]  # type: ignore[method-assign, func-returns-value]
    game.play(WHOLE, look=False)
    assert [len(rows) for rows in taken] == [16, 16, 16]


def test_penalties_come_every_so_many_steps() -> None:
    game = _game(section=_section(r1_every=4))
    counts = []
    for _ in range(9):
        game.play(WHOLE, look=False)
        counts.append(game.means.counts.get("r1", 0))
    assert counts == [1, 1, 1, 1, 2, 2, 2, 2, 3]


# A batch in parts


class _FixedScene(NoiseScene):
    """Shows each row the same real and the same fake, whatever the part it comes in."""

    def __init__(self, n: int) -> None:
        generator = torch.Generator().manual_seed(3)
        self.shown = torch.randn(n, 1, 8, 8, generator=generator)
        self.made = torch.randn(n, 1, 8, 8, generator=generator)
        self.rows = torch.zeros(0, dtype=torch.int64)

    def reals(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        self.rows = rows
        return self.shown[rows]

    def view(self, fakes: Tensor, content: tuple[Tensor, ...]) -> Tensor:
        return self.made[self.rows]


@pytest.mark.parametrize("loss", ["relativistic", "non_saturating", "hinge"])
@pytest.mark.parametrize(("batch", "n_parts"), [(16, 2), (16, 4), (18, 4)])
def test_parts_of_a_batch_give_the_gradients_of_the_whole(loss: str, batch: int, n_parts: int) -> None:
    section = _section(loss=loss, batch=batch, diffaugment_translation=0.0, diffaugment_cutout=0.0)
    game = _game(_shape(minibatch_std=0.0, d_norm="none"), section)
    game.scene = _FixedScene(N_IMAGES)
    start = game.snapshot()
    gradients: list[list[Tensor]] = []
    finish = game._finish

    def record(optimizer: object, parameters: list[Tensor], name: str, *, look: bool) -> None:
        if name == "d_gradient":
            gradients.append([p.grad.clone() for p in parameters if p.grad is not None])
        finish(optimizer, parameters, name, look=look)  # type: ignore[arg-type]

    game._finish = record  # type: ignore[assignment, method-assign]
    for parts in (1, n_parts):
        game.restore(start)
        game.n_parts = parts
        # the fixed fakes know nothing of G: its step has nothing to learn from
        game._generator_loss = lambda rows: sum(p.sum() for p in game.generator.parameters()) * 0.0  # type: ignore[assignment, method-assign]
        game.play(WHOLE, look=False)
    assert len(gradients[0]) == len(game.trained_by_d)
    for whole, split in zip(*gradients, strict=True):
        torch.testing.assert_close(split, whole, rtol=1e-3, atol=1e-6)


def test_every_part_sees_every_class() -> None:
    game = _game()
    game.n_parts = 4
    parts = game._parts()
    assert [len(rows) for rows in parts] == [4, 4, 4, 4]
    assert all(set(game.labels[rows].tolist()) == {0, 1} for rows in parts)


# The average, the means, the schedule


def test_the_moving_average_is_its_formula() -> None:
    generator = build_generator(_shape())
    average = MovingAverage(generator, 0.6)
    expected = {k: v.clone().double() for k, v in generator.state_dict().items()}
    draw = torch.Generator().manual_seed(0)
    for n in range(12):
        with torch.no_grad():
            for tensor in generator.state_dict().values():
                tensor.add_(
                    torch.ones_like(tensor)
                    if not tensor.is_floating_point()
                    else torch.randn(tensor.shape, generator=draw)
                )
        average.update()
        rate = min(0.6, (1 + n) / (10 + n))
        for name, tensor in generator.state_dict().items():
            floating = tensor.is_floating_point()
            expected[name] = rate * expected[name] + (1 - rate) * tensor.double() if floating else tensor.double()
    for name, tensor in average.network.state_dict().items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-4, atol=1e-5)
    assert average.n == 12
    assert not any(p.requires_grad for p in average.network.parameters())


def test_means_are_means_since_the_last_reading() -> None:
    means = Means()
    for value in (1.0, 2.0, 6.0):
        means.add("a", torch.tensor(value))
    means.add("b", torch.tensor(5, dtype=torch.int64))
    assert means.read() == {"a": 3.0, "b": 5.0}
    means.add("a", torch.tensor(7.0))
    assert means.read() == {"a": 7.0}
    assert means.read() == {}


def _schedules() -> st.SearchStrategy[PretrainSection]:
    return st.builds(
        lambda decay, ramp, grow: _section(lr_decay_from=decay, class_ramp=ramp, grow_until=grow),
        st.floats(0.01, 1.0),
        st.floats(0.0, 0.99),
        st.floats(0.01, 1.0),
    )


@settings(max_examples=200, deadline=None)
@given(_schedules(), st.integers(0, 2), st.integers(0, 4), st.lists(st.floats(0, 1, exclude_max=True), min_size=2))
def test_the_schedule_only_ever_goes_one_way(
    section: PretrainSection, first: int, n_new: int, done: list[float]
) -> None:
    last = first + n_new
    path = [progress_at(share, section, first, last) for share in sorted(done)]
    for before, after in pairwise(path):
        assert after.lr <= before.lr
        assert after.class_share >= before.class_share
        assert after.growth >= before.growth - 1e-9
    for progress in path:
        assert 0.0 <= progress.lr <= 1.0
        assert 0.0 <= progress.class_share <= 1.0
        assert first <= progress.growth <= last + 1e-9


@settings(max_examples=200, deadline=None)
@given(_schedules(), st.integers(1, 4))
def test_the_schedule_begins_and_ends_where_it_should(section: PretrainSection, n_new: int) -> None:
    begin, end = progress_at(0.0, section, 1, 1 + n_new), progress_at(1.0 - 1e-9, section, 1, 1 + n_new)
    assert begin.lr == 1.0
    assert begin.growth == 1.0
    assert begin.class_share == (0.0 if section.class_ramp else 1.0)
    assert not begin.lecam
    assert end.lecam
    assert end.class_share == 1.0
    if section.lr_decay_from < 0.999:
        assert end.lr < 1e-5
    if section.grow_until < 0.999:
        assert end.growth == 1 + n_new
    half = (section.lr_decay_from + 1.0) / 2
    assume(section.lr_decay_from < 0.999)
    assert progress_at(half, section, 1, 1).lr == pytest.approx(0.5)


def test_each_new_level_fades_in_over_the_first_half_of_its_time() -> None:
    # levels 1, 2, 3 share [0, 0.6): 0.2 each
    section = _section(grow_until=0.6)
    expected = {
        0.0: 1,
        0.1: 1,
        0.199: 1,
        0.225: 1.25,
        0.25: 1.5,
        0.3: 2,
        0.39: 2,
        0.45: 2.5,
        0.5: 3,
        0.59: 3,
        0.6: 3,
        0.9: 3,
    }
    for done, growth in expected.items():
        assert progress_at(done, section, 1, 3).growth == pytest.approx(growth, abs=1e-6), done


def test_batch_norm_in_the_judge_keeps_reals_and_fakes_apart_in_the_game() -> None:
    game = _game(_shape(16, architecture="dcgan"))
    norms = [module for module in game.discriminator.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    sizes: list[int] = []
    for norm in norms:
        norm.register_forward_pre_hook(lambda _module, inputs: sizes.append(len(inputs[0])))
    game.play(WHOLE, look=False)
    assert set(sizes) == {16}  # never the 32 of both together
