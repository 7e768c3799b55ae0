"""Selection: copies, disagreement and collapse are refused; scipy gives the distances."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist, pdist

from synthgen.config import SynthesizeSection
from synthgen.gan.selection import mean_pairwise_distance, nearest_distances, select_samples, typical_distance

SECTION = SynthesizeSection()


def _features(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 6)).astype(np.float32)


def test_distances_are_scipys() -> None:
    a, b = _features(30, 0), _features(20, 1)
    assert mean_pairwise_distance(a) == pytest.approx(pdist(a).mean(), rel=1e-5)
    np.testing.assert_allclose(nearest_distances(a, b), cdist(a, b).min(axis=1), rtol=1e-4)
    own = cdist(a, a)
    np.fill_diagonal(own, np.inf)
    assert typical_distance(a) == pytest.approx(np.median(own.min(axis=1)), rel=1e-4)


def test_all_good_candidates_are_taken_in_their_order() -> None:
    selection = select_samples(_features(50, 1), np.ones(50, np.float32), _features(20, 0), 1.0, SECTION, 30)
    np.testing.assert_array_equal(selection.accepted, np.arange(30))
    assert selection.n_judged == 30
    assert selection.refused is None


def test_fault_21_replayed_training_images_are_rejected() -> None:
    reals = _features(20, 0)
    candidates = np.concatenate([reals, _features(20, 3)])
    selection = select_samples(candidates, np.ones(40, np.float32), reals, 1.0, SECTION, 40)
    assert selection.rejected["copies_a_real"] == 20
    assert selection.accepted.min() >= 20
    np.testing.assert_allclose(selection.nearest_real[:20], 0.0, atol=1e-3)


def test_fault_21_a_generator_that_only_replays_is_refused() -> None:
    reals = _features(20, 0)
    selection = select_samples(np.tile(reals, (3, 1)), np.ones(60, np.float32), reals, 1.0, SECTION, 40)
    assert len(selection.accepted) == 0
    assert selection.refused is not None
    assert selection.refused.startswith("only 0 of 60 candidates were accepted, 4 is the least")


def test_fault_20_a_constant_generator_is_refused() -> None:
    constant = np.tile(_features(1, 5), (60, 1)) + _features(60, 6) * 1e-3
    selection = select_samples(constant, np.ones(60, np.float32), _features(20, 0), 1.0, SECTION, 40)
    assert len(selection.accepted) == 0
    assert selection.refused is not None
    assert "collapsed" in selection.refused


def test_the_teachers_no_is_a_rejection() -> None:
    agreement = np.tile([0.9, 0.1], 20).astype(np.float32)
    selection = select_samples(_features(40, 1), agreement, _features(20, 0), 1.0, SECTION, 40)
    np.testing.assert_array_equal(selection.accepted, np.arange(0, 40, 2))
    assert selection.rejected["teacher_disagrees"] == 20


def test_a_class_with_one_real_image_uses_the_typical_distance_of_the_others() -> None:
    selection = select_samples(_features(10, 1), np.ones(10, np.float32), _features(1, 0), 2.0, SECTION, 5)
    expected = cdist(_features(10, 1), _features(1, 0))[:, 0] / 2.0
    np.testing.assert_allclose(selection.nearest_real, expected, rtol=1e-4)
    assert selection.refused is None
