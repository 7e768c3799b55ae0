"""Batches: every image equally often, classes by weight, the same draws for the same seed."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthgen.dataset.sampling import BalancedBatches, ClassStream, NaturalBatches
from synthgen.errors import TrainingError


@given(n=st.integers(1, 30), takes=st.lists(st.integers(1, 20), min_size=1, max_size=20))
def test_a_stream_shows_every_row_equally_often(n: int, takes: list[int]) -> None:
    stream = ClassStream(np.arange(n), np.random.default_rng(0))
    shown = Counter(np.concatenate([stream.take(k) for k in takes]).tolist())
    counts = [shown[i] for i in range(n)]
    assert max(counts) - min(counts) <= 1


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=40), batch=st.integers(4, 64))
def test_balanced_batches_show_every_class_equally_often(sizes: list[int], batch: int) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    batches = BalancedBatches(labels, batch, np.random.default_rng(0))
    drawn = np.concatenate([batches.take() for _ in range(100)])
    assert len(drawn) == 100 * batch
    counts = np.bincount(labels[drawn], minlength=len(sizes))
    expected = 100 * batch / len(sizes)
    assert abs(counts - expected).max() <= 6 * np.sqrt(expected * batch) + batch


def test_weights_are_kept() -> None:
    labels = np.repeat([0, 1, 2], 10)
    batches = BalancedBatches(labels, 64, np.random.default_rng(0), {0: 0.5, 1: 0.25, 2: 0.25})
    counts = np.bincount(labels[np.concatenate([batches.take() for _ in range(200)])])
    np.testing.assert_allclose(counts / counts.sum(), [0.5, 0.25, 0.25], atol=0.01)


def test_a_weighted_class_without_images_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"\[7\]"):
        BalancedBatches(np.array([0, 1]), 8, np.random.default_rng(0), {0: 1.0, 7: 1.0})


def test_natural_batches_show_every_image_equally_often() -> None:
    batches = NaturalBatches(10, 4, np.random.default_rng(0))
    shown = np.bincount(np.concatenate([batches.take() for _ in range(5)]), minlength=10)
    np.testing.assert_array_equal(shown, 2)
