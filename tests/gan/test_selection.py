"""Selection: copies, disagreement, collapse and what optional rules leave out; scipy and plain loops are oracles."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist, pdist

from synthgen.config import SynthesizeSection
from synthgen.gan.selection import (
    density_among,
    mean_pairwise_distance,
    nearest_distances,
    select_samples,
    typical_distance,
)

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


# Rules that are off by default


OFF = SynthesizeSection(min_agreement=0.0, min_nearest_ratio=0.0, min_diversity_ratio=0.0, min_accepted=0.0)


def _brute_density(candidates: np.ndarray, reals: np.ndarray, k: int) -> np.ndarray:
    """Naeem et al. 2020 in plain loops, as their prdc computes it."""
    radii = [sorted(float(np.linalg.norm(real - other)) for other in reals)[k] for real in reals]
    return np.array(
        [
            sum(float(np.linalg.norm(y - real)) < radius for real, radius in zip(reals, radii, strict=True)) / k
            for y in candidates.astype(np.float64)
        ]
    )


@pytest.mark.parametrize("n", [2, 3, 5, 6, 10, 40])
def test_density_is_the_papers_for_any_number_of_reals(n: int) -> None:
    reals, candidates = _features(n, 0), _features(60, 1) * 0.8
    found = density_among(candidates, reals, 1.0)
    k = min(5, n - 1)
    np.testing.assert_allclose(found, _brute_density(candidates, reals.astype(np.float64), k))
    assert set(np.round(found * k, 9)) <= set(range(n + 1))


def test_a_threshold_up_to_one_can_be_met_in_a_class_of_any_size() -> None:
    for n in range(1, 12):
        reals = _features(n, n)
        middle = reals.mean(axis=0, keepdims=True) * 0.5 + reals[:1] * 0.5
        densities = density_among(np.concatenate([middle, reals]), reals, 1.0)
        assert densities.max() >= 1.0, n


@given(st.integers(0, 10_000), st.integers(1, 2), st.floats(0.5, 20.0))
def test_with_one_or_two_reals_the_manifold_is_the_balls_of_the_typical_distance(
    seed: int, n: int, fallback: float
) -> None:
    # Two reals: both balls reach to the other one, whose distance is the scale of nearest_real. One: the fallback.
    reals, candidates = _features(n, seed), _features(30, seed + 1)
    dense = select_samples(
        candidates, np.ones(30, np.float32), reals, fallback, OFF.model_copy(update={"min_density": 0.2}), 30
    )
    inside = dense.nearest_real < 1.0
    doubtful = np.abs(dense.nearest_real - 1.0) < 1e-5
    if not doubtful.any():
        assert dense.rejected["outside_manifold"] == int((~inside).sum())


def test_density_and_distance_are_two_rules() -> None:
    # Reals: a tight heap and one far outlier, whose ball is large. In that ball, far from every real: dense enough,
    # but not near. Close to the heap, outside its small balls: near enough by the common scale, but in no ball.
    heap = np.stack([np.cos(np.arange(12)), np.sin(np.arange(12))], axis=1).astype(np.float32)
    reals = np.concatenate([heap, [[40.0, 0.0]]]).astype(np.float32)
    candidates = np.array([[25.0, 8.0], [0.0, 1.9]], np.float32)
    sure = np.ones(2, np.float32)
    far = select_samples(candidates, sure, reals, 1.0, OFF.model_copy(update={"max_nearest_ratio": 8.0}), 2)
    thin = select_samples(candidates, sure, reals, 1.0, OFF.model_copy(update={"min_density": 0.4}), 2)
    np.testing.assert_array_equal(density_among(candidates, reals, 1.0) > 0.0, [True, True])
    assert far.rejected["far_from_reals"] == 1 and far.nearest_real[0] > 8.0 > far.nearest_real[1]
    assert thin.rejected["outside_manifold"] == 1 and density_among(candidates[:1], reals, 1.0)[0] == 0.2


def test_a_band_of_agreement_leaves_out_both_ends() -> None:
    agreement = np.linspace(0.0, 1.0, 41, dtype=np.float32)
    section = OFF.model_copy(update={"min_agreement": 0.5, "max_agreement": 0.9})
    selection = select_samples(_features(41, 1), agreement, _features(20, 0), 1.0, section, 41)
    np.testing.assert_array_equal(selection.accepted, np.flatnonzero((agreement >= 0.5) & (agreement <= 0.9)))
    assert selection.rejected == {
        "teacher_disagrees": int((agreement < 0.5).sum()),
        "copies_a_real": 0,
        "too_easy": int((agreement > 0.9).sum()),
    }


def test_a_class_that_optional_rules_emptied_says_which_and_how_many() -> None:
    section = SECTION.model_copy(update={"max_agreement": 0.9, "max_nearest_ratio": 0.2})
    agreement = np.tile([1.0, 0.6], 30).astype(np.float32)
    selection = select_samples(_features(60, 1), agreement, _features(20, 0), 1.0, section, 40)
    assert selection.refused is not None
    assert "left out 60 by synthesize.max_nearest_ratio: loosen it" in selection.refused
    easy = select_samples(
        _features(60, 1),
        np.ones(60, np.float32),
        _features(20, 0),
        1.0,
        SECTION.model_copy(update={"max_agreement": 0.9}),
        40,
    )
    assert easy.refused is not None and "60 by synthesize.max_agreement" in easy.refused
    assert easy.rejected["too_easy"] == 60


def test_what_is_off_leaves_no_trace() -> None:
    agreement = np.random.default_rng(4).random(200).astype(np.float32)
    reals = _features(20, 0)
    selection = select_samples(_features(200, 1), agreement, reals, 1.0, SECTION, 300)
    assert list(selection.rejected) == ["teacher_disagrees", "copies_a_real"]
    loosest = SECTION.model_copy(update={"max_nearest_ratio": 1e6, "max_agreement": 1.0, "min_density": 0.0})
    np.testing.assert_array_equal(
        selection.accepted, select_samples(_features(200, 1), agreement, reals, 1.0, loosest, 300).accepted
    )


@st.composite
def _sections(draw: st.DrawFn) -> SynthesizeSection:
    low, high = sorted((draw(st.floats(0.0, 1.0)), draw(st.floats(0.01, 1.0))))
    near, far = sorted((draw(st.floats(0.0, 3.0)), draw(st.floats(0.01, 4.0))))
    return SynthesizeSection(
        min_agreement=low,
        max_agreement=max(high, 0.01),
        min_nearest_ratio=near,
        max_nearest_ratio=draw(st.sampled_from([None, max(far, 0.01)])),
        min_density=draw(st.sampled_from([0.0, 0.2, 0.5, 1.0])),
        min_accepted=draw(st.sampled_from([0.0, 0.1, 0.5])),
        min_diversity_ratio=draw(st.sampled_from([0.0, 0.2])),
    )


@given(_sections(), st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 60), st.integers(1, 80))
def test_accepted_keep_all_rules_in_their_order_and_the_counts_add_up(
    section: SynthesizeSection, seed: int, n_reals: int, n: int, n_wanted: int
) -> None:
    reals, candidates = _features(n_reals, seed), _features(n, seed + 1)
    agreement = np.random.default_rng(seed).random(n).astype(np.float32)
    selection = select_samples(candidates, agreement, reals, 2.0, section, n_wanted)
    scale = typical_distance(reals) or 2.0
    keeps = (agreement >= section.min_agreement) & (agreement <= section.max_agreement)
    keeps &= selection.nearest_real >= section.min_nearest_ratio
    if section.max_nearest_ratio is not None:
        keeps &= selection.nearest_real <= section.max_nearest_ratio
    keeps &= density_among(candidates, reals, scale) >= section.min_density
    expected = np.flatnonzero(keeps)[:n_wanted]
    n_good = len(expected)
    assert sum(selection.rejected.values()) + n_good == selection.n_judged <= n
    assert min(selection.rejected.values()) >= 0
    if selection.refused is None:
        np.testing.assert_array_equal(selection.accepted, expected)
    else:
        assert len(selection.accepted) == 0
        assert n_good < max(2, round(section.min_accepted * n_wanted)) or "collapsed" in selection.refused
