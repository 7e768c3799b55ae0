import numpy as np
import pytest
from scipy.linalg import sqrtm

from synthgen.errors import MeasurementError
from synthgen.metrics.fidelity import frechet_distance, kernel_distance, measure_fidelity


def test_frechet_of_a_mean_shift_is_its_square():
    features = np.random.default_rng(0).standard_normal((50, 8))
    shift = np.linspace(-1, 1, 8)
    assert frechet_distance(features, features + shift) == pytest.approx(np.sum(shift**2))
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-9)


def test_frechet_of_a_scaled_set():
    # Covariances S and 4 S: tr(S + 4 S - 2 * 2 S) = tr S.
    features = np.random.default_rng(1).standard_normal((60, 5))
    features -= features.mean(axis=0)
    assert frechet_distance(features, 2 * features) == pytest.approx(np.trace(np.cov(features.T)))


def test_frechet_by_the_matrix_root():
    generator = np.random.default_rng(2)
    x, y = generator.standard_normal((200, 6)), generator.standard_normal((300, 6)) @ generator.standard_normal((6, 6))
    a, b = np.cov(x.T), np.cov(y.T)
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(a + b - 2 * np.real(sqrtm(a @ b)))
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)


def test_kernel_distance_by_its_sums():
    generator = np.random.default_rng(3)
    x, y = generator.standard_normal((7, 4)), generator.standard_normal((5, 4)) + 0.5

    def kernel(a, b):
        return (a @ b / 4 + 1) ** 3

    expected = (
        np.mean([kernel(x[i], x[j]) for i in range(7) for j in range(7) if i != j])
        + np.mean([kernel(y[i], y[j]) for i in range(5) for j in range(5) if i != j])
        - 2 * np.mean([kernel(a, b) for a in x for b in y])
    )
    assert kernel_distance(x, y) == pytest.approx(expected)


def test_kernel_distance_is_unbiased():
    generator = np.random.default_rng(4)
    draws = [
        kernel_distance(generator.standard_normal((10, 3)), generator.standard_normal((12, 3))) for _ in range(800)
    ]
    assert abs(np.mean(draws)) < 4 * np.std(draws) / np.sqrt(len(draws))
    assert min(draws) < 0 < max(draws)


def test_counts_are_reported_and_bad_input_is_refused():
    x = np.random.default_rng(5).standard_normal((6, 3)).astype(np.float32)
    assert (measure_fidelity(x, x[:4]).n_real, measure_fidelity(x, x[:4]).n_synthetic) == (6, 4)
    for bad in (x[:1], x[:, :2], np.full((4, 3), np.nan)):
        with pytest.raises(MeasurementError):
            kernel_distance(x, bad)
