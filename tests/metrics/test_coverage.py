import numpy as np
import pytest
from prdc import compute_prdc

from synthgen.errors import MeasurementError
from synthgen.metrics import coverage
from synthgen.metrics.coverage import measure_coverage, sample_density


@pytest.mark.parametrize(("seed", "shift", "k"), [(0, 0.0, 5), (1, 0.7, 3), (2, 5.0, 1)])
def test_agrees_with_prdc(seed, shift, k, capsys):
    generator = np.random.default_rng(seed)
    real, synthetic = generator.standard_normal((60, 4)), generator.standard_normal((45, 4)) + shift
    expected = compute_prdc(real, synthetic, nearest_k=k)
    capsys.readouterr()
    ours = measure_coverage(real, synthetic, k)
    for name in ("precision", "recall", "density", "coverage"):
        assert getattr(ours, name) == pytest.approx(expected[name])
    single = [float(compute_prdc(real, np.tile(row, (k + 2, 1)), nearest_k=k)["density"]) for row in synthetic[:8]]
    capsys.readouterr()
    np.testing.assert_allclose(sample_density(real, synthetic, k)[:8], single)
    assert sample_density(real, synthetic, k).mean() == pytest.approx(ours.density)


def test_blocks_change_nothing(monkeypatch):
    generator = np.random.default_rng(3)
    real, synthetic = generator.standard_normal((50, 4)), generator.standard_normal((30, 4))
    whole, single = measure_coverage(real, synthetic), sample_density(real, synthetic)
    monkeypatch.setattr(coverage, "BLOCK", 7)
    assert measure_coverage(real, synthetic) == whole
    np.testing.assert_array_equal(sample_density(real, synthetic), single)


def test_collapse_keeps_precision_and_loses_coverage():
    generator = np.random.default_rng(4)
    real = generator.standard_normal((200, 3))
    collapsed = real[:1] * 0.1 + 0.01 * generator.standard_normal((100, 3))
    scores = measure_coverage(real, collapsed)
    assert scores.precision > 0.95 and scores.recall < 0.05 and scores.coverage < 0.3


def test_too_few_rows_are_refused():
    with pytest.raises(MeasurementError, match="k below 4"):
        measure_coverage(np.zeros((4, 2)), np.zeros((9, 2)), k=5)
    with pytest.raises(MeasurementError, match="not finite"):
        measure_coverage(np.full((9, 2), np.inf), np.zeros((9, 2)), k=5)
    with pytest.raises(MeasurementError, match="k below 4"):
        sample_density(np.zeros((4, 2)), np.zeros((1, 2)), k=4)
    assert sample_density(np.eye(4), np.zeros((0, 4)), k=2).shape == (0,)
