"""The third player: its term and its formula, the game of two left alone, resumed to the last bit, what it does."""

import copy
import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from synthgen.classifier.networks import SmallCnn
from synthgen.config import BoundarySection, GeneratorSection, PretrainSection, TransformsSection
from synthgen.errors import ConfigError
from synthgen.gan.architectures.build import build_generator
from synthgen.gan.architectures.shape import GanShape
from synthgen.gan.boundary import BoundaryRules, ThirdPlayer, check_boundary
from synthgen.gan.checkpoint import TrainedGan
from synthgen.gan.game import Game
from synthgen.gan.history import THIRD_PLAYER, Tick, write_rows
from synthgen.gan.losses import boundary_loss, log_odds
from synthgen.gan.scenes import FreeScene, FreeWeights, NoiseScene, RealTransforms
from synthgen.gan.training import GanRun, train_gan

CPU = torch.device("cpu")
SIDE, LABEL = 8, 1
PLAIN = TransformsSection(rotate=0.0, scale=0.0, shift=0.0, shear=0.0, brightness=0.0)


class Killed(BaseException):
    """As sudden as a signal."""


def _spots(n: int, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """A bright column whose place is the class: 1 to 3 (label 0, two thirds of the images) or 4 to 6 (label 1)."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) % 3 == 0).astype(np.int64)
    places = rng.uniform(1.0, 3.0, n) + 3.0 * labels
    columns = np.exp(-0.5 * (np.arange(SIDE) - places[:, None]) ** 2)  # (n, SIDE)
    images = 40 + 180 * columns[:, None, :] + rng.normal(0, 8, (n, SIDE, SIDE))
    return images.clip(0, 255).astype(np.uint8)[..., None], labels


def _network(seed: int = 0, n_classes: int = 2) -> SmallCnn:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SmallCnn(SIDE, 1, n_classes, 8)


def _rules(**keywords: Any) -> BoundaryRules:
    return BoundaryRules(BoundarySection(**keywords), LABEL, _network())


def _shape(**keywords: Any) -> GanShape:
    small = {"latents": 8, "embedding": 4, "channels": 4, "max_channels": 8, **keywords}
    return GanShape.of(GeneratorSection(**small), SIDE, 1, 2)


def _train(boundary: BoundaryRules | None, kimg: float = 0.32, **keywords: Any) -> GanRun:
    images, labels = _spots(60)
    section = PretrainSection(batch=16, tick_kimg=0.08, **keywords.pop("section", {}))
    shape = keywords.pop("shape", _shape())
    given = {"weights": {0: 0.5, LABEL: 0.5}, "seed": 1, "device": CPU, **keywords}
    return train_gan(images, labels, shape, section, PLAIN, kimg=kimg, boundary=boundary, **given)


def _weights(run: GanRun) -> dict[str, Tensor]:
    parts = {"g": run.generator.state_dict(), "d": run.discriminator.state_dict()}
    return {f"{part}.{name}": tensor for part, state in parts.items() for name, tensor in state.items()}


def _same(a: GanRun, b: GanRun) -> bool:
    ours, theirs = _weights(a), _weights(b)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


# The formulas


@given(
    arrays(np.float64, (6, 4), elements=st.floats(-8, 8)),
    arrays(np.int64, 6, elements=st.integers(0, 3)),
)
@settings(max_examples=50, deadline=None)
def test_log_odds_are_those_of_the_softmax(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> None:
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    own = p[np.arange(6), labels]
    others = p.sum(1, where=np.arange(4) != labels[:, None])
    found = log_odds(torch.from_numpy(logits), torch.from_numpy(labels)).numpy()
    np.testing.assert_allclose(found, np.log(own / others), atol=1e-9)
    assert ((found <= 1e-9) | (logits.argmax(1) == labels)).all()  # inside the band the label is the one named


@given(a=st.floats(-20, 20), q=st.floats(0.51, 0.98))
def test_the_term_is_the_distance_to_the_band_and_its_slope_leads_there(a: float, q: float) -> None:
    upper = math.log(q / (1 - q))
    odds = torch.tensor([a], dtype=torch.float64, requires_grad=True)
    term = boundary_loss(odds, q)
    assert term.item() == pytest.approx(max(0.0, a - upper) + max(0.0, -a), abs=1e-12)
    (slope,) = torch.autograd.grad(term.sum(), odds)
    assert slope.item() == (1.0 if a > upper else -1.0 if a < 0 else 0.0)


def test_descent_draws_a_sure_sample_to_the_boundary_and_a_lost_one_back_but_never_across() -> None:
    labels = torch.tensor([0, 0, 0])
    start = torch.tensor([[5.0, 0.0, -1.0], [0.2, -1.0, -1.0], [-4.0, 3.0, 0.0]])
    logits = start.clone().requires_grad_(True)
    for _ in range(400):
        (gradient,) = torch.autograd.grad(boundary_loss(log_odds(logits, labels), 0.75).sum(), logits)
        logits = (logits - 0.05 * gradient).detach().requires_grad_(True)
    p = logits.softmax(1)[:, 0]
    assert ((p > 0.49) & (p < 0.76)).all()
    assert torch.equal(logits[1], start[1])  # it was in the band


@pytest.mark.parametrize("certainty", [0.5, 1.0, 0.2, math.nan])
def test_a_band_that_is_none_is_refused(certainty: float) -> None:
    with pytest.raises(ConfigError, match=r"outside \(0.5, 1\)"):
        boundary_loss(torch.zeros(1), certainty)


# What it adds to G's loss


class Reader(nn.Module):
    """Two logits that are the image's first two pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :2] * self.scale


def _player(network: nn.Module | None = None, labels: NDArray[np.int64] | None = None, **keywords: Any) -> ThirdPlayer:
    rules = BoundaryRules(BoundarySection(**keywords), LABEL, network or _network())
    labels = np.arange(30, dtype=np.int64) % 2 if labels is None else labels
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=False)
    return ThirdPlayer(rules, labels, 16, seed=3, device=CPU, autocast=autocast)


def test_the_pull_is_the_weighted_mean_over_the_batch_of_the_class_alone() -> None:
    player = _player(Reader(), weight=0.7, certainty=0.75)
    player.in_play = True
    fakes = torch.randn(12, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).mul(4).requires_grad_(True)
    y = torch.arange(12) % 2
    noted: dict[str, Tensor] = {}
    pull = player.pull(fakes, y, noted.__setitem__)
    odds = (fakes.flatten(1)[:, 1] - fakes.flatten(1)[:, 0]).detach()[y == LABEL]
    term = (odds - math.log(3)).clamp(min=0) + (-odds).clamp(min=0)
    assert pull.item() == pytest.approx(0.7 * term.sum().item() / 12, rel=1e-5)
    (gradient,) = torch.autograd.grad(pull, fakes)
    assert not gradient[y != LABEL].any()
    slopes = gradient[y == LABEL].flatten(1)[:, 1] * 12 / 0.7
    torch.testing.assert_close(slopes, torch.where(odds > math.log(3), 1.0, torch.where(odds < 0, -1.0, 0.0)))
    assert all(p.grad is None and not p.requires_grad for p in player.network.parameters())
    numbers = ThirdPlayer.numbers(
        {name: value.item() for name, value in noted.items()} | {"c_loss": 0.0, "c_real": 0.0}
    )
    assert numbers["boundary"] == pytest.approx(term.mean().item(), rel=1e-5)
    assert numbers["c_certainty"] == pytest.approx(torch.sigmoid(odds).mean().item(), rel=1e-5)
    assert numbers["c_fake"] == pytest.approx((odds > 0).float().mean().item())


def test_parts_of_a_batch_add_up_to_the_whole() -> None:
    player = _player(weight=1.0)
    player.in_play = True
    fakes = torch.randn(16, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    y = (torch.arange(16) >= 5).long()

    def ignore(_: str, __: Tensor) -> None:
        return

    parts = [player.pull(fakes[k::3], y[k::3], ignore) * (len(y[k::3]) / 16) for k in range(3)]
    assert sum(parts).item() == pytest.approx(player.pull(fakes, y, ignore).item(), rel=1e-5)  # type: ignore[union-attr]


def test_during_the_warm_up_and_with_a_weight_of_0_nothing_is_added() -> None:
    fakes, y = torch.full((4, 1, SIDE, SIDE), 0.5, requires_grad=True), torch.ones(4, dtype=torch.int64)
    for weight, in_play in ((1.0, False), (0.0, True)):
        player = _player(weight=weight)
        player.in_play = in_play
        pull = player.pull(fakes, y, lambda *_: None)
        assert pull.item() == 0.0
        assert not pull.requires_grad


# Its turn


def test_it_learns_all_classes_equally_often_reals_and_samples_of_the_same_labels() -> None:
    images, labels = _spots(90)
    scene = NoiseScene(torch.from_numpy(images), PLAIN, 0.0, False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = build_generator(_shape()).train()
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    asked: list[Tensor] = []
    generator.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[1]))
    player = _player(labels=labels)
    noted: dict[str, list[float]] = {}
    for _ in range(40):
        player.learn(generator, scene, 0.0, 1.0, 2, lambda name, value: noted.setdefault(name, []).append(value.item()))
    counts = torch.bincount(torch.cat(asked)).tolist()
    assert counts == [40 * 8, 40 * 8]  # a third of the images is of class 1
    assert noted["c_loss"][-1] < noted["c_loss"][0]
    assert np.mean(noted["c_real"][-10:]) > 0.95
    assert generator.training
    assert all(torch.equal(before[name], tensor) for name, tensor in generator.state_dict().items())


# The game of two is left alone


@pytest.mark.parametrize("architecture", ["dcgan", "resnet", "style"])
def test_with_a_weight_of_0_the_game_of_two_is_played_to_the_last_bit(architecture: str) -> None:
    network = {"architecture": architecture}
    two = _train(None, shape=_shape(**network))
    watched = _train(_rules(weight=0.0, warmup=0.0), shape=_shape(**network))
    assert _same(two, watched)
    for a, b in zip(two.history, watched.history, strict=True):
        assert (a.d_loss, a.g_loss, a.g_gradient) == (b.d_loss, b.g_loss, b.g_gradient)
        assert all(getattr(a, name) is None for name in THIRD_PLAYER)
        assert all(math.isfinite(getattr(b, name)) for name in THIRD_PLAYER)
    pulled = _train(_rules(weight=1.0, warmup=0.0), shape=_shape(**network))
    assert not _same(two, pulled)


def test_in_bfloat16_too_a_weight_of_0_changes_nothing_and_the_term_is_of_single_precision() -> None:
    section = {"precision": "bf16"}
    assert _same(_train(None, kimg=0.08, section=section), _train(_rules(weight=0.0), kimg=0.08, section=section))
    player = _player(weight=1.0)
    player.in_play, player.autocast = True, torch.autocast("cpu", torch.bfloat16)
    fakes = torch.zeros(4, 1, SIDE, SIDE, requires_grad=True)
    pull = player.pull(fakes, torch.ones(4, dtype=torch.int64), lambda *_: None)
    assert pull.dtype == torch.float32
    run = _train(_rules(weight=1.0, warmup=0.0), kimg=0.08, section=section)
    assert all(torch.isfinite(tensor).all() for tensor in _weights(run).values())


def test_the_network_handed_in_is_left_as_it_was() -> None:
    rules = _rules()
    before = copy.deepcopy(rules.network.state_dict())
    _train(rules, kimg=0.08)
    assert all(torch.equal(before[name], tensor) for name, tensor in rules.network.state_dict().items())
    assert all(p.grad is None for p in rules.network.parameters())


def test_a_tick_of_the_warm_up_does_not_win() -> None:
    run = _train(_rules(warmup=0.6))  # four ticks; the term counts from the third on
    assert run.best == 3
    only_warm_up = _train(_rules(warmup=0.99), kimg=0.08)
    assert only_warm_up.best is None


def test_history_has_its_columns_only_where_it_played(tmp_path: Path) -> None:
    for boundary in (None, _rules()):
        write_rows(tmp_path / "history.csv", Tick, _train(boundary, kimg=0.08).history)
        with (tmp_path / "history.csv").open(newline="") as stream:
            columns = next(csv.reader(stream))
        assert [name for name in columns if name in THIRD_PLAYER] == ([] if boundary is None else list(THIRD_PLAYER))
        assert columns[-1] == ("nearest_ratio" if boundary is None else "boundary")


# Killed, taken back, out of memory


def _patched(monkeypatch: pytest.MonkeyPatch, before: Callable[[Game], None], work: Callable[[], GanRun]) -> GanRun:
    play = Game.play

    def patched(game: Game, *arguments: Any, **keywords: Any) -> None:
        before(game)
        play(game, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(Game, "play", patched)
        return work()


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_killed_and_started_again_it_ends_as_if_nothing_had_happened(
    optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(scratch: Path | None = tmp_path) -> GanRun:
        return _train(_rules(weight=1.0), scratch=scratch, section={"optimizer": optimizer})

    whole = train(None)
    for n_steps in (2, 12, 6):  # before the first state, in the middle of a tick, and again
        left = iter(range(n_steps))

        def count(_: Game, left: Any = left) -> None:
            if next(left, None) is None:
                raise Killed

        with pytest.raises(Killed):
            _patched(monkeypatch, count, train)
    again = train()
    assert _same(whole, again)
    assert whole.history == again.history


def test_taken_back_it_goes_on_from_the_state_before_with_other_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    healthy = _train(_rules(weight=1.0, warmup=0.0))
    learn = ThirdPlayer.learn
    seen: list[Tensor] = []

    def poisoned(player: ThirdPlayer, *arguments: Any) -> None:
        learn(player, *arguments)
        seen.append(player.optimizer.parameters[0].detach().clone())
        if len(seen) == 8:  # in the second tick of five steps
            with torch.no_grad():
                player.optimizer.parameters[0].fill_(math.nan)

    monkeypatch.setattr(ThirdPlayer, "learn", poisoned)
    run = _train(_rules(weight=1.0, warmup=0.0))
    assert len(run.rollbacks) == 1
    assert run.history[0] == healthy.history[0]
    assert run.history[1] != healthy.history[1]
    assert "no longer finite" in run.rollbacks[0].reason
    assert all(torch.isfinite(tensor).all() for tensor in _weights(run).values())
    assert not torch.equal(seen[10], seen[5])  # the first step of the second tick, twice, by other rows


def test_out_of_memory_the_classifier_works_in_parts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    learn = ThirdPlayer.learn
    refused = iter([True])

    def small(player: ThirdPlayer, *arguments: Any) -> None:
        if next(refused, False):
            raise torch.OutOfMemoryError
        learn(player, *arguments)

    monkeypatch.setattr(ThirdPlayer, "learn", small)
    run = _train(_rules(weight=1.0))
    assert {tick.n_parts for tick in run.history} == {2}


# What it refuses


def test_games_that_three_cannot_play_are_refused() -> None:
    images, labels = _spots(30)
    scene = NoiseScene(torch.from_numpy(images), PLAIN, 0.0, False)
    check_boundary(_rules(), labels, scene, 1)
    for present in (labels[labels == LABEL], labels[labels != LABEL]):
        with pytest.raises(ConfigError, match="and of another one"):
            check_boundary(_rules(), present, scene, 1)
    with pytest.raises(ConfigError, match="not by 2"):
        check_boundary(_rules(), labels, scene, 2)
    jitter = RealTransforms(PLAIN, 0.0, False)
    free = FreeScene(torch.from_numpy(images), torch.from_numpy(labels), (0,), jitter, FreeWeights(), n_labels=2)
    with pytest.raises(ConfigError, match="generators from noise"):
        check_boundary(_rules(), labels, free, 1)


# What it does


def test_samples_come_nearer_to_the_boundary_and_stay_of_their_class() -> None:
    """Judged by another classifier, on other images, than the one that played; under the default weight.

    Means over two games, since one ends elsewhere on another processor. At a weight of 1 one was seen to leave it.
    """
    images, labels = _spots(60)
    shape = GanShape.of(GeneratorSection(architecture="dcgan", d_norm="none", channels=8, latents=8), SIDE, 1, 2)
    section = PretrainSection(batch=32, g_lr=2e-3, d_lr=2e-3, tick_kimg=2.0, ema=0.98)
    others, other_labels = _spots(600, seed=7)
    judge = LogisticRegression(C=0.1).fit(others.reshape(600, -1) / 255.0, other_labels)
    latents = torch.randn(300, shape.latents, generator=torch.Generator().manual_seed(0))
    certainty: dict[bool, list[float]] = {False: [], True: []}
    right: dict[bool, list[float]] = {False: [], True: []}
    for seed in (2, 12):
        shared = train_gan(images, labels, shape, section, PLAIN, kimg=5.0, seed=seed, device=CPU)
        start = TrainedGan(shared.generator, shared.discriminator, {}, "")
        for plays in (False, True):
            run = train_gan(
                images,
                labels,
                shape,
                section,
                PLAIN,
                kimg=3.0,
                seed=3,
                device=CPU,
                start=start,
                lr_factor=0.5,
                weights={0: 0.5, LABEL: 0.5},
                boundary=_rules() if plays else None,
            )
            with torch.no_grad():
                made = run.generator(latents, torch.full((300,), LABEL))
            p = judge.predict_proba((made.flatten(1).numpy() + 1.0) / 2.0)[:, LABEL]
            certainty[plays].append(float(p.mean()))
            right[plays].append(float((p > 0.5).mean()))
    assert np.mean(right[False]) > 0.9
    assert np.mean(certainty[True]) < np.mean(certainty[False]) - 0.02
    assert np.mean(right[True]) > 0.9
