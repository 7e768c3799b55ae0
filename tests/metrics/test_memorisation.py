import numpy as np
import pytest

from synthgen.errors import MeasurementError
from synthgen.metrics.memorisation import measure_memorisation, reference_distance


def test_a_replay_of_training_data_has_ratio_zero():
    real = np.random.default_rng(0).standard_normal((40, 16)).astype(np.float32) * 100
    found = measure_memorisation(real, real[[3, 3, 7, 39]])
    assert not found.ratios.any() and found.copied_share == 1.0 and found.median_ratio == 0.0


def test_fresh_samples_have_ratios_near_one():
    generator = np.random.default_rng(1)
    found = measure_memorisation(generator.standard_normal((200, 16)), generator.standard_normal((200, 16)))
    assert 0.9 < found.median_ratio < 1.1 and found.copied_share == 0.0


def test_reference_by_hand_and_without_doubles():
    # On a line at 0, 1, 3, 3: nearest different rows at 1, 1, 2.
    assert reference_distance(np.asarray([[0.0], [1.0], [3.0], [3.0]])) == 1.0


def test_unusable_sets_are_refused():
    for real, synthetic in (
        (np.zeros((5, 2)), np.zeros((1, 2))),
        (np.eye(2), np.zeros((0, 2))),
        (np.eye(2), np.zeros((3, 4))),
        (np.eye(2), np.full((1, 2), np.nan)),
    ):
        with pytest.raises(MeasurementError):
            measure_memorisation(real, synthetic)
