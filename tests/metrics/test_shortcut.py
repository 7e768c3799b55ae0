"""The probe finds the texture that was put in, no more; the bits are those of an enumerated table, within bounds."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from synthgen.dataset.mixing import MixingPolicy
from synthgen.errors import MeasurementError
from synthgen.metrics.shortcut import auc_with_error, probe_origin, shortcut_bits

SHARES = st.lists(st.integers(0, 99).map(lambda percent: percent / 100), min_size=2, max_size=6)
RATE = st.floats(0.0, 1.0)


def enumerated(shares, hit, false_alarm):
    """Sum over label, origin and guess of p log2(p(label, guess) / p(label) p(guess)), cell by cell."""
    joint = {}
    for label, origin, guess in itertools.product(range(len(shares)), (0, 1), (0, 1)):
        p_origin = shares[label] if origin else 1 - shares[label]
        p_said = hit if origin else false_alarm
        p = p_origin * (p_said if guess else 1 - p_said) / len(shares)
        joint[label, guess] = joint.get((label, guess), 0.0) + p
    said = [sum(joint[label, guess] for label in range(len(shares))) for guess in (0, 1)]
    return sum(p * math.log2(p * len(shares) / said[guess]) for (_, guess), p in joint.items() if p > 0)


@given(shares=SHARES, rates=st.tuples(RATE, RATE))
def test_bits_are_those_of_the_enumerated_table_and_within_their_bounds(shares, rates):
    false_alarm, hit = sorted(rates)
    bits = shortcut_bits(shares, hit, false_alarm)
    assert bits == pytest.approx(enumerated(shares, hit, false_alarm), abs=1e-9)
    assert 0.0 <= bits <= MixingPolicy("x", "default", tuple(shares)).dependence() + 1e-12


@given(shares=SHARES, rate=RATE, share=st.floats(0.0, 0.99))
def test_bits_at_the_ends(shares, rate, share):
    assert shortcut_bits(shares, rate, rate) == 0.0  # a guess that knows nothing
    assert shortcut_bits(shares, 0.2, 0.9) == 0.0  # worse than chance
    assert shortcut_bits([share] * 4, 1.0, 0.0) == 0.0  # even shares
    assert shortcut_bits(shares, 1.0, 0.0) == pytest.approx(MixingPolicy("x", "default", tuple(shares)).dependence())


@pytest.mark.parametrize(("shares", "hit"), [([], 0.5), ([0.5, 1.2], 0.5), ([0.5, 0.1], 1.5), ([math.nan, 0.1], 0.5)])
def test_what_is_no_share_is_refused(shares, hit):
    with pytest.raises(MeasurementError, match="within"):
        shortcut_bits(shares, hit, 0.0)


@given(seed=st.integers(0, 10_000), n=st.integers(2, 30), m=st.integers(2, 30))
def test_the_area_is_scikit_learns(seed, n, m):
    rng = np.random.default_rng(seed)
    made, real = rng.integers(0, 6, n).astype(float), rng.integers(0, 5, m).astype(float)
    area, _ = auc_with_error(made, real, np.arange(m).astype(str))
    assert area == pytest.approx(roc_auc_score([1] * n + [0] * m, [*made, *real]))


@pytest.mark.parametrize("per_object", [1, 5])
def test_the_error_is_the_spread_of_the_area_over_new_samples(per_object):
    rng = np.random.default_rng(7)
    areas, errors = [], []
    for _ in range(400):
        objects = rng.normal(0, 1, 20)
        real = np.repeat(objects, per_object) + (0.3 * rng.normal(0, 1, 20 * per_object) if per_object > 1 else 0.0)
        area, error = auc_with_error(rng.normal(0.8, 1, 60), real, np.repeat(np.arange(20), per_object).astype(str))
        areas.append(area)
        errors.append(error)
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(areas), rel=0.12)


def make(rng, sizes, shift, n_synthetic=60, d=12):
    """Class means far apart, synthetic images shifted along one direction that all classes share."""
    means = rng.normal(0, 4, (len(sizes), d))
    means[:, 0] = 0.0  # across what tells classes apart
    texture = np.zeros(d)
    texture[0] = shift
    reals = [(mean + rng.normal(0, 1, (n, d))).astype(np.float32) for mean, n in zip(means, sizes, strict=True)]
    made = [(mean + texture + rng.normal(0, 1, (n_synthetic, d))).astype(np.float32) for mean in means]
    groups = [np.asarray([f"{k}-{i}" for i in range(n)]) for k, n in enumerate(sizes)]
    return reals, groups, made


def test_a_texture_is_found_and_none_is_not_whatever_the_mix_of_classes():
    # unequal numbers of reals: a probe that used the mix of classes would find origin where there is no texture
    rng, sizes = np.random.default_rng(3), (200, 60, 12)
    # the best possible area for a shift of two standard deviations is Phi(2 / sqrt 2)
    plenty = probe_origin(*make(rng, (300, 200, 250), 2.0, n_synthetic=250), np.random.default_rng(0))
    assert plenty.auc == pytest.approx(0.921, abs=0.03)
    found = probe_origin(*make(rng, sizes, 2.0), np.random.default_rng(0))
    assert 0.8 < found.auc < 0.95
    assert found.hit > 0.7 > 0.3 > found.false_alarm
    nothing = probe_origin(*make(rng, sizes, 0.0), np.random.default_rng(0))
    assert abs(nothing.auc - 0.5) < 3 * nothing.error
    assert [entry.n_objects for entry in nothing.classes] == list(sizes)


def test_images_of_one_object_do_not_vouch_for_each_other():
    # 8 objects with 10 nearly equal images each: a probe that saw an image of the same object would know it again
    rng = np.random.default_rng(5)
    objects = rng.normal(0, 1, (8, 40))
    reals = np.repeat(objects, 10, axis=0) + 0.01 * rng.normal(0, 1, (80, 40))
    made = rng.normal(0, 1, (80, 40))
    owners = np.repeat(np.arange(8), 10).astype(str)
    honest = probe_origin([reals.astype(np.float32)], [owners], [made.astype(np.float32)], np.random.default_rng(0))
    naive = probe_origin(
        [reals.astype(np.float32)],
        [np.arange(80).astype(str)],
        [made.astype(np.float32)],
        np.random.default_rng(0),
    )
    assert naive.auc > 0.9
    assert honest.auc < 0.75


def test_a_class_with_too_few_of_either_stays_out_with_the_reason():
    rng = np.random.default_rng(1)
    reals, groups, made = make(rng, (30, 4, 30), 1.0)
    made[2] = made[2][:0]
    found = probe_origin(reals, groups, made, np.random.default_rng(0))
    assert found.auc == found.classes[0].auc
    assert found.classes[1].reason == "4 real objects, at least 5 are needed"
    assert found.classes[2].reason == "0 synthetic images, at least 5 are needed"
    assert (found.classes[1].auc, found.classes[2].error) == (None, None)
    none = probe_origin(reals[1:], groups[1:], made[1:], np.random.default_rng(0))
    assert (none.auc, none.error, none.hit, none.false_alarm) == (None, None, None, None)
    reals[0][0, 0] = np.nan
    with pytest.raises(MeasurementError, match="not finite"):
        probe_origin(reals, groups, made, np.random.default_rng(0))


def test_equal_seeds_give_equal_probes():
    given = make(np.random.default_rng(2), (30, 12), 1.0)
    assert probe_origin(*given, np.random.default_rng(9)) == probe_origin(*given, np.random.default_rng(9))
