"""Points between anchors: the arc against its geometry, what a batch is drawn from, and the file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synthgen.errors import ArtifactError, TrainingError
from synthgen.gan.anchor_file import load_anchors, save_anchors
from synthgen.gan.interpolation import Anchors, slerp

DIGEST = "ab" * 32


def _angle(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    x, y = a.double(), b.double()
    return torch.arccos(((x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1))).clamp(-1.0, 1.0))


def _anchors(n: int, objects: list[int] | None = None, **keywords: float) -> Anchors:
    latents = torch.randn(n, 16, generator=torch.Generator().manual_seed(1))
    shown = np.array(objects if objects is not None else range(n), dtype=np.int64)
    sha256 = np.array([f"{i:064x}" for i in range(n)])
    return Anchors(latents, shown, sha256, **{"jitter": 0.0, "neighbour": 0.3, **keywords})


# The arc


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 64), st.integers(0, 2**31), st.floats(0.0, 1.0))
def test_the_arc_keeps_the_length_and_has_a_constant_angular_speed(d: int, seed: int, weight: float) -> None:
    a, b = torch.randn(2, 1, d, generator=torch.Generator().manual_seed(seed))
    b = b * a.norm() / b.norm()
    point = slerp(a, b, torch.tensor([weight]))
    assert point.norm().item() == pytest.approx(a.norm().item(), rel=1e-5)
    assert _angle(a, point).item() == pytest.approx(weight * _angle(a, b).item(), abs=2e-3)
    assert _angle(point, b).item() == pytest.approx((1.0 - weight) * _angle(a, b).item(), abs=2e-3)


def test_the_arc_is_shoemakes_formula_on_the_unit_sphere() -> None:
    chance = torch.Generator().manual_seed(3)
    p, q = (torch.nn.functional.normalize(torch.randn(20, 4, generator=chance).double(), dim=1) for _ in range(2))
    t = torch.rand(20, generator=chance).double()
    theta = torch.arccos((p * q).sum(1))
    expected = (
        torch.sin((1 - t) * theta)[:, None] * p + torch.sin(t * theta)[:, None] * q  # Shoemake 1985, 3.3
    ) / torch.sin(theta)[:, None]
    torch.testing.assert_close(slerp(p.float(), q.float(), t.float()), expected.float(), atol=1e-6, rtol=1e-5)


def test_the_ends_are_exact_and_lengths_are_joined_linearly() -> None:
    a, b = torch.randn(2, 50, 48, generator=torch.Generator().manual_seed(0))
    assert torch.equal(slerp(a, b, torch.zeros(50)), a)
    assert torch.equal(slerp(a, b, torch.ones(50)), b)
    middle = slerp(a, b, torch.full((50,), 0.5))
    torch.testing.assert_close(middle.norm(dim=1), (a.norm(dim=1) + b.norm(dim=1)) / 2)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [([1.0, 2.0], [1.0, 2.0], [1.0, 2.0]), ([1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]), ([0.0, 0.0], [0.0, 4.0], [0.0, 2.0])],
)
def test_vectors_without_an_arc_are_joined_by_a_line(a: list[float], b: list[float], expected: list[float]) -> None:
    point = slerp(torch.tensor([a]), torch.tensor([b]), torch.tensor([0.5]))
    torch.testing.assert_close(point, torch.tensor([expected]))


# A batch


def test_points_lie_on_arcs_between_different_objects_and_name_the_nearer_image() -> None:
    anchors = _anchors(5, [0, 0, 1, 1, 2])
    drawn = anchors.draw(400, seed=7)
    assert drawn.latents.dtype == torch.float32
    to_all = torch.stack([_angle(drawn.latents, z.expand_as(drawn.latents)) for z in anchors.latents], dim=1)  # (n, m)
    arcs = torch.stack([_angle(anchors.latents, z.expand_as(anchors.latents)) for z in anchors.latents])  # (m, m)
    # on the arc of a pair: the two angles add up to that between its ends
    gaps = (to_all[:, :, None] + to_all[:, None, :] - arcs).abs()
    allowed = torch.from_numpy(anchors.objects[:, None] != anchors.objects[None, :])
    gaps[:, ~allowed] = torch.inf
    assert gaps.flatten(1).min(1).values.max() < 1e-3
    pairs = {tuple(sorted(divmod(int(k), 5))) for k in gaps.flatten(1).argmin(1)}
    assert pairs == {(0, 2), (0, 3), (0, 4), (1, 2), (1, 3), (1, 4), (2, 4), (3, 4)}
    sources = np.array([int(sha, 16) for sha in drawn.sources])
    best = gaps.flatten(1).argmin(1)
    for i, k in enumerate(best.tolist()):
        ends = divmod(k, 5)
        assert sources[i] == min(ends, key=lambda end: to_all[i, end].item())


def test_a_batch_is_that_of_its_seed_and_torchs_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    anchors = _anchors(6, jitter=0.2)
    first, again, other = anchors.draw(16, 5), anchors.draw(16, 5), anchors.draw(16, 6)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.latents, again.latents)
    assert not torch.equal(first.latents, other.latents)


@pytest.mark.parametrize("n", [1, 3])
def test_a_class_of_one_object_gets_neighbours_of_its_latents(n: int) -> None:
    anchors = _anchors(n, [4] * n, neighbour=0.2)
    drawn = anchors.draw(300, seed=2)
    own = anchors.latents[[int(sha, 16) for sha in drawn.sources]]
    away = _angle(drawn.latents, own)
    assert away.max() < 0.2 * torch.pi
    assert away.std() > 0.01
    assert len(torch.unique(drawn.latents, dim=0)) == 300


def test_jitter_moves_points_off_the_arc_and_no_farther_than_it_says() -> None:
    plain, moved = _anchors(4).draw(200, 3), _anchors(4, jitter=0.1).draw(200, 3)
    away = _angle(plain.latents, moved.latents)
    assert away.mean() > 0.0
    assert away.max() < 0.1 * torch.pi


def test_anchors_that_nothing_can_be_drawn_from_are_refused() -> None:
    with pytest.raises(TrainingError, match="does the class have training images"):
        Anchors(torch.zeros(0, 4), np.zeros(0, np.int64), np.zeros(0, np.str_), 0.0, 0.3)
    with pytest.raises(TrainingError, match="2 and 3"):
        Anchors(torch.zeros(3, 4), np.zeros(2, np.int64), np.array(["a", "b", "c"]), 0.0, 0.3)


# The file


def test_anchors_come_back_and_equal_ones_are_equal_bytes(tmp_path: Path) -> None:
    anchors = _anchors(4, [0, 1, 1, 2], jitter=0.05)
    for name in ("a", "b"):
        save_anchors(tmp_path / name, anchors, DIGEST)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    back = load_anchors(tmp_path / "a", DIGEST)
    assert torch.equal(back.latents, anchors.latents)
    assert back.objects.tolist() == anchors.objects.tolist()
    assert back.sha256.tolist() == anchors.sha256.tolist()
    assert (back.jitter, back.neighbour) == (0.05, 0.3)
    assert torch.equal(back.draw(8, 3).latents, anchors.draw(8, 3).latents)


def test_anchors_of_another_generator_and_missing_ones_are_refused(tmp_path: Path) -> None:
    save_anchors(tmp_path / "a", _anchors(2), DIGEST)
    with pytest.raises(ArtifactError, match="latents of generator abababababab, the samples are of cdcdcdcdcdcd"):
        load_anchors(tmp_path / "a", "cd" * 32)
    with pytest.raises(ArtifactError, match="cannot be read as anchors"):
        load_anchors(tmp_path / "b", DIGEST)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300) | st.tuples(st.integers(0, 400), st.integers(0, 7)))
def test_damaged_files_are_anchors_or_an_artifact_error(
    tmp_path_factory: pytest.TempPathFactory, damage: bytes | tuple[int, int]
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "a"
    save_anchors(path, _anchors(2), DIGEST)
    content = bytearray(path.read_bytes())
    if isinstance(damage, bytes):
        content = bytearray(damage)
    else:
        content[damage[0] % len(content)] ^= 1 << damage[1]
    path.write_bytes(bytes(content))
    try:
        assert isinstance(load_anchors(path, DIGEST), Anchors)
    except ArtifactError as error:
        assert str(path) in str(error)
