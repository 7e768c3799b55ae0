"""Registration finds movements that are known, and following a field is what its formula says."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from synthgen.morphing.registration import GRID, register, warp

SIDE = 28


def _blobs(seed: int, n: int = 4) -> torch.Tensor:
    """Smooth pictures (n, 1, SIDE, SIDE) in [0, 1], dark at the edge."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.random((n, SIDE, SIDE)), (0, 2.5, 2.5))
    edge = np.zeros((SIDE, SIDE))
    edge[6:-6, 6:-6] = 1.0
    shown = (noise - noise.min()) / (noise.max() - noise.min()) * ndimage.gaussian_filter(edge, 1.5)
    return torch.from_numpy(shown).float()[:, None]


def _field(right: float, down: float, n: int = 4) -> torch.Tensor:
    field = torch.empty(n, 2, GRID, GRID)
    field[:, 0], field[:, 1] = right, down
    return field


def test_a_field_of_zeros_changes_nothing() -> None:
    images = _blobs(0)
    torch.testing.assert_close(warp(images, _field(0.0, 0.0)), images, atol=1e-5, rtol=0)


@given(st.integers(-3, 3), st.integers(-3, 3))
def test_a_constant_field_moves_a_picture_as_scipy_does(right: int, down: int) -> None:
    images = _blobs(1, 1)
    step = 1.0 / (SIDE - 1)
    ours = warp(images, _field(right * step, down * step, 1))[0, 0].numpy()
    theirs = ndimage.shift(images[0, 0].numpy(), (-down, -right), order=1, mode="nearest")
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize(("right", "down"), [(0.08, 0.0), (0.0, -0.08), (-0.05, 0.06)])
def test_a_known_movement_is_found(right: float, down: float) -> None:
    sources = _blobs(2)
    targets = warp(sources, _field(right, down))
    found = register(sources, targets)
    assert (found.explained > 0.9).all()
    middle = found.fields[:, :, 2:-2, 2:-2].mean((2, 3))  # the dark edge says nothing
    torch.testing.assert_close(middle, torch.tensor([[right, down]]).expand(4, 2), atol=0.02, rtol=0)


def test_what_is_explained_is_the_share_of_the_squared_difference_that_goes_away() -> None:
    sources, targets = _blobs(3), _blobs(4)
    found = register(sources, targets)
    assert (found.explained <= 1.0).all()
    same = register(sources, sources)
    assert same.fields.abs().max() < 0.01
    assert (same.explained == 0.0).all()


def test_each_pair_is_registered_by_itself() -> None:
    sources, targets = _blobs(5), _blobs(6)
    together, alone = register(sources, targets), register(sources[1:2], targets[1:2])
    torch.testing.assert_close(together.fields[1:2], alone.fields, atol=1e-4, rtol=0)


def test_a_larger_or_coloured_picture_gives_the_same_field_in_shares_of_its_side() -> None:
    sources = _blobs(7)
    targets = warp(sources, _field(0.07, 0.0))
    small = register(sources, targets)
    double = [x.repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1) for x in (sources, targets)]
    large = register(*double)
    torch.testing.assert_close(large.fields, small.fields, atol=1e-3, rtol=0)
