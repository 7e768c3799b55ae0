"""Morphs: from whose pictures, how they vary, and that no class is told by how its samples are made."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from synthgen.config import MorphSection
from synthgen.errors import TrainingError
from synthgen.morphing import morphs
from synthgen.morphing.morphs import Morpher, Variation
from synthgen.morphing.registration import GRID

SIDE = 28


def _strokes(label: int, n: int, seed: int) -> NDArray[np.uint8]:
    """Bars (label 0) or crosses (1), (n, SIDE, SIDE, 1), each moved and turned a little."""
    rng = np.random.default_rng([seed, label])
    found = []
    for _ in range(n):
        canvas = np.zeros((SIDE, SIDE))
        canvas[7:21, 13:16] = 1.0
        if label:
            canvas[12:15, 7:21] = 1.0
        turned = ndimage.rotate(canvas, rng.uniform(-15, 15), reshape=False, order=1)
        moved = ndimage.shift(ndimage.gaussian_filter(turned, 0.7), rng.uniform(-2, 2, 2), order=1)
        found.append(np.clip(moved * 255, 0, 255).astype(np.uint8))
    return np.stack(found)[..., None]


def _morpher(counts: tuple[int, ...] = (12, 4), groups: NDArray[np.str_] | None = None, **section: float) -> Morpher:
    images = np.concatenate([_strokes(label, n, 0) for label, n in enumerate(counts)])
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int64)
    names = np.arange(len(labels)).astype(np.str_)
    chosen = names if groups is None else groups
    return Morpher(images, labels, chosen, names, MorphSection.model_validate({"pairs": 40, **section}), seed=1)


def test_equal_seeds_give_equal_bytes_whatever_the_number_of_threads() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one, other = _morpher(), _morpher()
        torch.set_num_threads(2)
        many = _morpher()
    finally:
        torch.set_num_threads(threads)
    first = one.draw(1, 9, 5)
    for morpher in (other, many):
        again = morpher.draw(1, 9, 5)
        np.testing.assert_array_equal(first.images, again.images)
        np.testing.assert_array_equal(first.sources, again.sources)
        assert one.digest == morpher.digest
    assert not np.array_equal(first.images, one.draw(1, 9, 6).images)


def test_samples_of_a_class_start_from_its_own_images_and_each_pair_about_equally_often() -> None:
    morpher = _morpher()
    for label in (0, 1):
        pairs = morpher.pairs[label]
        assert len(pairs.first) > 0
        assert set(morpher.labels[np.concatenate([pairs.first, pairs.second])]) == {label}
        drawn = morpher.draw(label, 3 * len(pairs.first), 0).sources
        assert sorted(drawn) == sorted(np.repeat(pairs.first, 3))


def test_images_of_one_object_are_not_morphed_into_each_other() -> None:
    groups = np.array(["a", "b"] * 6 + ["c"] * 4)
    morpher = _morpher(groups=groups)
    pairs = morpher.pairs[0]
    assert (groups[pairs.first] != groups[pairs.second]).all()
    assert len(morpher.pairs[1].first) == 0
    assert morpher.n_tried == {0: 40, 1: 0}


def test_without_variation_a_morph_lies_between_its_two_images() -> None:
    """Halfway between two bars the centre of mass is halfway between theirs."""
    images = np.zeros((2, SIDE, SIDE, 1), np.uint8)
    images[0, 8:20, 10:13], images[1, 8:20, 16:19] = 255, 255
    two = np.array(["a", "b"])
    morpher = Morpher(images, np.zeros(2, np.int64), two, two, MorphSection(variation=0.0), seed=0)
    assert len(morpher.pairs[0].first) == 2
    shown = morpher.draw(0, 64, 3)
    centres = np.array([ndimage.center_of_mass(image[..., 0])[1] for image in shown.images])
    assert ((centres > 10.5) & (centres < 17.5)).all()
    width = (shown.images[..., 0] > 127).sum((1, 2)) / 12
    assert (width > 2).all() and (width < 4.5).all()  # one bar, not two pale ones as MixUp would have
    from_first = centres[shown.sources == 0]
    assert np.ptp(from_first) > 3.0


def test_variation_has_the_second_moments_of_the_fields_it_was_learned_from() -> None:
    rng = torch.Generator().manual_seed(0)
    fields = torch.randn(60, 2, GRID, GRID, generator=rng) * torch.rand(1, 2, GRID, GRID, generator=rng)
    learned = Variation.learn(fields)
    flat = fields.flatten(1)
    torch.testing.assert_close(learned.factor.T @ learned.factor, flat.T @ flat / 60, atol=1e-4, rtol=1e-3)
    drawn = learned.draw(40_000, rng).flatten(1)
    torch.testing.assert_close(drawn.T @ drawn / 40_000, flat.T @ flat / 60, atol=0.03, rtol=0)


def test_variation_is_learned_from_the_classes_with_many_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    learn = Variation.learn

    def spy(fields: torch.Tensor) -> Variation:
        seen.append(len(fields))
        return learn(fields)

    monkeypatch.setattr(morphs.Variation, "learn", spy)
    morpher = _morpher((12, 3))
    assert len(morpher.pairs[1].first) < len(morpher.pairs[0].first) / 2
    assert seen == [len(morpher.pairs[0].first)]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.integers(1, 7))
def test_every_class_that_has_an_image_gets_as_many_samples_as_asked(counts: list[int], n: int) -> None:
    images = np.concatenate([_strokes(k % 2, count, k) for k, count in enumerate(counts)])
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int64)
    names = np.arange(len(labels)).astype(np.str_)
    morpher = Morpher(images, labels, names, names, MorphSection(pairs=2), seed=0)
    for label in range(len(counts)):
        made = morpher.draw(label, n, 0)
        assert made.images.shape == (n, SIDE, SIDE, 1) and made.images.dtype == np.uint8
        assert (labels[made.sources] == label).all()
    with pytest.raises(TrainingError, match="no training image"):
        morpher.draw(len(counts), n, 0)


def test_a_class_of_one_image_is_deformed_as_the_others_vary() -> None:
    morpher = _morpher((12, 1))
    made = morpher.draw(1, 8, 0)
    assert len(morpher.pairs[1].first) == 0
    assert len(np.unique(made.images.reshape(8, -1), axis=0)) == 8


def test_all_samples_of_a_class_with_pairs_are_blends_however_many_images_it_has() -> None:
    """A plentiful class has images without a pair; were those shown sharp, blur would tell the label."""
    morpher = _morpher((30, 6), pairs=20, variation=0.0)
    for label in (0, 1):
        reals = morpher.images[morpher.labels == label].astype(int)
        made = morpher.draw(label, 40, 2).images.astype(int)
        nearest = np.abs(made[:, None] - reals[None]).mean((2, 3, 4)).min(1)
        assert (nearest > 0.05).mean() > 0.9


def test_images_that_are_not_square_are_refused() -> None:
    with pytest.raises(TrainingError, match="square"):
        Morpher(np.zeros((1, 4, 5, 1), np.uint8), np.zeros(1, np.int64), *[np.array(["a"])] * 2, MorphSection(), seed=0)
