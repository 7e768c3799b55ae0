"""Composites of the paste arms: right labels, equal counts, seams in every class, nothing but what was given."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from synthgen.dataset.masks import weak_masks
from synthgen.dataset.pasted_pool import (
    MAX_COMPOSITES,
    PastedPool,
    TrainImages,
    background_label,
    compose_pool,
    ellipses,
    find_regions,
    whole_regions,
)
from synthgen.dataset.pasting import PasteRanges
from synthgen.errors import TrainingError

GOOD, SPOT, PLAIN, RARE = range(4)
SIDE = 24
STILL = PasteRanges(contrast=0.0)


def make_train(seed: int = 0, *, masked: tuple[int, ...] = (SPOT, RARE)) -> TrainImages:
    """40 good images around 100; spots at 200 and rare ones at 10 have masks; plain ones are good images around 150."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([GOOD, SPOT, PLAIN, RARE], [40, 12, 10, 4]).astype(np.int64)
    images = rng.integers(98, 103, (len(labels), SIDE, SIDE, 1))
    images[labels == PLAIN] = 150 + images[labels == PLAIN] % 2  # fainter noise than good images: no weak masks
    masks = np.zeros((len(labels), SIDE, SIDE), dtype=bool)
    for i in np.flatnonzero(np.isin(labels, [SPOT, RARE])):
        y, x = rng.integers(3, SIDE - 9, 2)
        images[i, y : y + 6, x : x + 6] = 200 if labels[i] == SPOT else 10
        masks[i, y : y + 6, x : x + 6] = labels[i] in masked
    return TrainImages(images.astype(np.uint8), labels, np.arange(len(labels)) + 1000, masks)


def rows_to_labels(train: TrainImages, rows: np.ndarray) -> np.ndarray:
    return train.labels[rows - 1000]


def compose(train: TrainImages, n: int = 80, seed: int = 1) -> PastedPool:
    regions = find_regions(train, (RARE,), np.random.default_rng(0))
    return compose_pool(train, regions, n, STILL, np.random.default_rng(seed))


def test_every_composite_shows_what_its_label_says_on_the_background_of_the_plentiful_class() -> None:
    train = make_train()
    pool = compose(train)
    assert np.array_equal(rows_to_labels(train, pool.region_rows), pool.labels)
    pixels = pool.images[..., 0].astype(int)
    with_regions = np.isin(pool.labels, [SPOT, RARE])
    assert set(rows_to_labels(train, pool.background_rows)[with_regions].tolist()) == {GOOD}
    assert (pixels[pool.labels == SPOT].max(axis=(1, 2)) > 180).all()
    assert (pixels[pool.labels == RARE].min(axis=(1, 2)) < 30).all()
    for image in pixels[with_regions]:
        assert abs(np.median(image) - 100) <= 3
    good = pixels[pool.labels == GOOD]
    assert good.min() > 90 and good.max() < 110  # patches of good images: a seam, no region
    good_rows = pool.labels == GOOD
    assert (pool.region_rows != pool.background_rows)[good_rows].all()


def test_a_class_without_regions_keeps_its_own_images_with_a_seam_of_the_same_shapes() -> None:
    train = make_train()
    pool = compose(train)
    plain = pool.labels == PLAIN
    assert np.array_equal(pool.region_rows[plain], pool.background_rows[plain])
    assert np.abs(pool.images[plain].astype(int) - 150).max() < 12
    # not copies: what lies inside the shape was warped, as far as it shows in noise of one grey level
    assert (pool.images[plain] != train.images[pool.background_rows[plain] - 1000]).any(axis=(1, 2, 3)).mean() > 0.7


@pytest.mark.parametrize("n, each", [(80, 20), (81, 21), (3, 1), (10**6, MAX_COMPOSITES // 4)])
def test_every_label_gets_equally_many_and_no_more_than_the_cap(n: int, each: int) -> None:
    train = make_train()
    assert np.bincount(compose(train, n).labels).tolist() == [each] * 4


def test_backgrounds_and_regions_are_all_used_about_equally_often() -> None:
    train = make_train()
    pool = compose(train, 4 * 120)
    spot = pool.labels == SPOT
    assert np.bincount(pool.background_rows[spot] - 1000, minlength=40)[:40].tolist() == [3] * 40
    assert len(set(pool.region_rows[spot].tolist())) == 12


@pytest.mark.parametrize("whole", [False, True])
def test_equal_seeds_give_equal_pixels_and_others_do_not(whole: bool) -> None:
    train = make_train()

    def made(seed: int) -> bytes:
        rng = np.random.default_rng(seed)
        regions = whole_regions(train, (), 40, rng) if whole else find_regions(train, (), rng)
        return compose_pool(train, regions, 40, PasteRanges(), rng).images.tobytes()

    assert made(3) == made(3) != made(4)


def test_regions_without_masks_are_ellipses_of_every_class_but_that_of_the_backgrounds() -> None:
    train = make_train()
    regions = whole_regions(train, (RARE,), 80, np.random.default_rng(0))
    assert sorted(regions.banks) == [SPOT, PLAIN, RARE]
    assert regions.background == GOOD
    assert {len(bank.rows) for bank in regions.banks.values()} == {20}
    pool = compose_pool(train, regions, 80, replace(STILL, anywhere=False), np.random.default_rng(0))
    assert np.bincount(pool.labels).tolist() == [20] * 4
    assert np.array_equal(rows_to_labels(train, pool.region_rows), pool.labels)
    assert set(rows_to_labels(train, pool.background_rows).tolist()) == {GOOD}


def test_classes_without_a_users_mask_take_weak_ones_where_they_are_found() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([GOOD, SPOT, PLAIN, RARE], [240, 12, 12, 6]).astype(np.int64)
    noise = gaussian_filter(rng.standard_normal((len(labels), 32, 32)), (0, 1, 1))
    images = 110 + 12 * noise / noise.std()
    masks = np.zeros(images.shape, dtype=bool)
    for i in np.flatnonzero(np.isin(labels, [SPOT, RARE])):
        y, x = rng.integers(4, 20, 2)
        images[i, y : y + 7, x : x + 7] += 120
        masks[i, y : y + 7, x : x + 7] = labels[i] == RARE
    pixels = images.clip(0, 255).astype(np.uint8)[..., None]
    train = TrainImages(pixels, labels, np.arange(len(labels)), masks)
    regions = find_regions(train, (RARE,), np.random.default_rng(1))
    assert regions.origins == {SPOT: "weak masks", PLAIN: "none", RARE: "masks"}
    bank = regions.banks[SPOT]
    bright = bank.images[..., 0] > 190
    assert ((bright & bank.masks).sum() / bright.sum()) > 0.8
    assert find_regions(replace(train, masks=None), (), np.random.default_rng(1)).origins[RARE] != "masks"


def test_too_few_plentiful_images_give_no_weak_masks_and_every_class_keeps_its_own_images() -> None:
    train = make_train(masked=())
    few = np.flatnonzero((train.labels != GOOD) | (np.arange(len(train.labels)) < 12))
    small = TrainImages(train.images[few], train.labels[few], train.rows[few])
    regions = find_regions(small, (), np.random.default_rng(0))
    assert (dict(regions.banks), set(regions.origins.values())) == ({}, {"none"})
    pool = compose_pool(small, regions, 16, PasteRanges(), np.random.default_rng(0))
    assert np.array_equal(rows_to_labels(train, pool.background_rows), pool.labels)


def test_the_class_of_the_backgrounds_is_the_largest_that_is_not_scarce() -> None:
    labels = np.repeat([0, 1, 2, 4], [5, 9, 9, 2])
    assert background_label(labels, ()) == 1
    assert background_label(labels, (1, 7)) == 2
    assert background_label(labels, (1, 2)) == 0
    with pytest.raises(TrainingError, match=r"all scarce.*plan\.scarce"):
        background_label(labels, (0, 1, 2, 4))


def test_one_image_of_the_plentiful_class_is_enough() -> None:
    train = TrainImages(np.full((1, 8, 8, 3), 7, np.uint8), np.zeros(1, np.int64), np.array([5]))
    pool = compose_pool(
        train, whole_regions(train, (), 4, np.random.default_rng(0)), 4, STILL, np.random.default_rng(0)
    )
    assert pool.images.shape == (4, 8, 8, 3) and (pool.images == 7).all()


def test_near_duplicates_of_good_images_do_not_lower_what_a_region_has_to_exceed() -> None:
    rng = np.random.default_rng(0)
    # six photographs of each of 50 good objects, which differ from each other far more than the photographs of one
    objects = gaussian_filter(rng.standard_normal((60, 32, 32)), (0, 1.5, 1.5)).repeat(6, axis=0)
    images = 110 + 25 * objects / objects.std() + rng.standard_normal((360, 32, 32))
    groups = np.arange(60).repeat(6).astype(np.str_)
    pixels = images.clip(0, 255).astype(np.uint8)[..., None]
    known, new = pixels[:300], pixels[300:]

    def found(groups: np.ndarray | None) -> float:
        return float(
            np.mean([mask is not None for mask in weak_masks(new, known, np.random.default_rng(2), None, groups)])
        )

    assert found(None) > 0.8
    assert found(groups[:300]) < 0.5  # nominal 0.2, from 25 objects


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.sampled_from([8, 16, 28, 33]), st.integers(0, 2**31))
def test_ellipses_are_never_empty_and_never_small(n: int, side: int, seed: int) -> None:
    inside = ellipses(n, (side, side), np.random.default_rng(seed))
    assert inside.shape == (n, side, side)
    assert inside.mean(axis=(1, 2)).min() > 0.15
