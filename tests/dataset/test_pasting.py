"""Composites: what is outside the opacity is untouched, what is inside comes from a region of the wanted label."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from synthgen.config import TransformsSection
from synthgen.dataset.pasting import DefectBank, PasteRanges, _blurred, _continued, paste
from synthgen.errors import ConfigError, TrainingError

STILL = PasteRanges(rotate=0, scale=0, shear=0, elastic=0, contrast=0, anywhere=False)


def bank_of(masks, *, channels=1, level=100, depth=-60, labels=None):
    images = np.full((*masks.shape, channels), level, np.uint8)
    images[masks] = level + depth
    n = len(masks)
    return DefectBank(images, masks, np.zeros(n, np.int64) if labels is None else labels, np.arange(n) + 50)


def square(side=32, top=10, left=12, size=4):
    mask = np.zeros((1, side, side), bool)
    mask[0, top : top + size, left : left + size] = True
    return mask


def test_without_any_change_an_image_is_pasted_onto_itself():
    bank = bank_of(square())
    pasted = paste(bank.images, bank, bank.labels, np.random.default_rng(0), STILL)
    assert np.abs(pasted.images.astype(int) - bank.images).max() <= 1
    assert pasted.masks[0][bank.masks[0]].min() == 255


@pytest.mark.parametrize("level", [40, 160, 220])
def test_brightness_follows_the_background_and_the_difference_is_kept(level):
    bank = bank_of(square(), level=100, depth=-30)
    background = np.full((1, 32, 32, 1), level, np.uint8)
    pasted = paste(background, bank, bank.labels, np.random.default_rng(0), STILL)
    inside = pasted.images[0, 11:13, 13:15, 0].astype(int)
    assert np.abs(inside - (level - 30)).max() <= 1


def test_shading_of_the_background_runs_through_the_region():
    ramp = np.broadcast_to(np.linspace(50, 200, 32)[None, None, :, None], (1, 32, 32, 1)).round().astype(np.uint8)
    bank = bank_of(square(size=6), depth=0)  # a region that is no different from its surroundings
    pasted = paste(ramp, bank, bank.labels, np.random.default_rng(0), STILL)
    # a plain mean shift would be 3 pixels of slope 4.8 and the border off: 17 and more
    assert np.abs(pasted.images.astype(int) - ramp).max() <= 12


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    side=st.sampled_from([28, 32, 64]),
    channels=st.sampled_from([1, 3]),
    blobs=st.lists(
        st.tuples(st.floats(0, 1), st.floats(0, 1), st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=3
    ),
)
@example(seed=2304894, side=28, channels=1, blobs=[(0.5, 0.5, 1, 1)])
def test_outside_the_opacity_the_background_is_untouched_and_a_region_is_there(seed, side, channels, blobs):
    rng = np.random.default_rng(seed)
    masks = np.zeros((len(blobs), side, side), bool)
    for mask, (y, x, height, width) in zip(masks, blobs, strict=True):
        top, left = int(y * (side - 1)), int(x * (side - 1))
        mask[top : top + height, left : left + width] = True
    images = rng.integers(0, 256, (len(blobs), side, side, channels), dtype=np.uint8)
    labels = np.arange(len(blobs)) * 2
    bank = DefectBank(images, masks, labels, np.arange(len(blobs)))
    backgrounds = rng.integers(0, 256, (6, side, side, channels), dtype=np.uint8)
    wanted = rng.choice(labels, 6)
    before = backgrounds.copy()
    ranges = PasteRanges(rotate=180, scale=0.5, shear=20, horizontal_flip=True, vertical_flip=True, elastic=0.03)
    pasted = paste(backgrounds, bank, wanted, rng, ranges)
    assert np.array_equal(backgrounds, before)
    assert pasted.images.shape == backgrounds.shape and pasted.images.dtype == np.uint8
    assert np.array_equal(bank.labels[pasted.bank_rows], wanted)
    untouched = pasted.masks == 0
    assert np.array_equal(pasted.images[untouched], backgrounds[untouched])
    # a region thinner than four pixels may be scaled to half and fall between pixels: then no pixel is half covered
    sides = np.minimum(masks.any(axis=1).sum(axis=1), masks.any(axis=2).sum(axis=1))[pasted.bank_rows]
    assert (pasted.masks.max(axis=(1, 2)) >= np.where(sides >= 4, 128, 1)).all()


def test_regions_stay_inside_and_are_spread_over_the_image():
    bank = bank_of(square(side=64, size=6))
    backgrounds = np.full((300, 64, 64, 1), 100, np.uint8)
    ranges = PasteRanges(rotate=0, scale=0, shear=0, elastic=0, contrast=0)
    pasted = paste(backgrounds, bank, np.zeros(300, np.int64), np.random.default_rng(0), ranges)
    hard = pasted.masks > 250
    assert hard.sum(axis=(1, 2)).min() >= 25  # 6 x 6 pixels between pixels cover at least 5 x 5 of them fully
    centres = np.array([np.argwhere(one).mean(axis=0) for one in hard])
    assert centres.min() < 8 and centres.max() > 56


@pytest.mark.parametrize("edge", ["left", "top", "right", "bottom"])
def test_a_region_at_the_border_keeps_to_it(edge):
    mask = np.zeros((1, 32, 32), bool)
    at = {"left": np.s_[10:16, :5], "right": np.s_[10:16, 27:], "top": np.s_[:5, 10:16], "bottom": np.s_[27:, 10:16]}
    mask[0][at[edge]] = True
    bank = bank_of(mask)
    backgrounds = np.full((40, 32, 32, 1), 100, np.uint8)
    masks = paste(backgrounds, bank, np.zeros(40, np.int64), np.random.default_rng(1), PasteRanges(elastic=0)).masks
    line = {"left": masks[:, :, 0], "right": masks[:, :, -1], "top": masks[:, 0], "bottom": masks[:, -1]}[edge]
    other = {"left": masks[:, :, -1], "right": masks[:, :, 0], "top": masks[:, -1], "bottom": masks[:, 0]}[edge]
    assert (line.max(axis=1) > 200).all() and (other == 0).all()


def test_equal_seeds_give_equal_composites_and_chunks_do_not_matter_for_their_form():
    bank = bank_of(square(), channels=3)
    backgrounds = np.random.default_rng(0).integers(0, 256, (300, 32, 32, 3), dtype=np.uint8)
    first, second = (paste(backgrounds, bank, np.zeros(300, np.int64), np.random.default_rng(7)) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert len(np.unique(first.masks.reshape(300, -1), axis=0)) > 250


def test_nothing_to_paste_gives_nothing():
    bank = bank_of(square())
    pasted = paste(bank.images[:0], bank, bank.labels[:0], np.random.default_rng(0))
    assert [len(part) for part in pasted] == [0, 0, 0]


def test_what_does_not_fit_is_refused():
    bank = bank_of(square())
    rng = np.random.default_rng(0)
    with pytest.raises(TrainingError, match=r"no region of labels \[3\]"):
        paste(bank.images, bank, np.array([3]), rng)
    with pytest.raises(TrainingError, match="one label per background"):
        paste(bank.images, bank, np.array([0, 0]), rng)
    with pytest.raises(TrainingError, match="one size"):
        paste(np.zeros((1, 28, 28, 1), np.uint8), bank, np.array([0]), rng)
    with pytest.raises(TrainingError, match="empty"):
        bank_of(np.zeros((1, 8, 8), bool))
    with pytest.raises(TrainingError, match="belong"):
        DefectBank(bank.images, bank.masks, np.zeros(2, np.int64), bank.rows)
    with pytest.raises(ConfigError, match="rotate 200"):
        PasteRanges(rotate=200)


def test_ranges_follow_the_transforms_of_the_classical_arms():
    ranges = PasteRanges.of(TransformsSection(rotate=5.0, scale=0.95, horizontal_flip=True))
    assert (ranges.rotate, ranges.scale, ranges.horizontal_flip, ranges.vertical_flip) == (5.0, 0.9, True, False)


def test_blur_agrees_with_scipy():
    import torch
    from scipy.ndimage import gaussian_filter

    x = np.random.default_rng(0).random((20, 24))
    ours = _blurred(torch.from_numpy(x).float()[None, None], 1.5)[0, 0].numpy()
    # scipy's radius: int(truncate * sigma + 0.5); ours: round(3 * sigma) = 4
    assert np.allclose(ours, gaussian_filter(x, 1.5, mode="nearest", radius=4), atol=1e-5)


def test_continuation_of_a_constant_is_that_constant():
    import torch

    weight = torch.zeros(1, 1, 16, 16)
    weight[0, 0, 3:5, 3:9] = 1.0
    values = torch.full((1, 2, 16, 16), 7.0)
    values[:, :, 10:] = 99.0  # not weighted
    assert torch.allclose(_continued(values, weight, 1.0), torch.full_like(values, 7.0), atol=1e-3)
