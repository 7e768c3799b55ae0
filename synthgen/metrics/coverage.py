"""Precision, recall, density and coverage of synthetic features among real ones, by nearest neighbours.

Owns the four numbers, and the density of each single sample; precision and density say whether samples look real,
recall and coverage whether they show all that reals show (a collapsed generator has high precision and low recall).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import NearestNeighbors

from synthgen.errors import MeasurementError

BLOCK = 2048


@dataclass(frozen=True)
class Coverage:
    """Manifold scores.

    Attributes:
        precision: share of synthetic rows inside the k-neighbour ball of some real row, in [0, 1].
        recall: share of real rows inside the ball of some synthetic row, in [0, 1].
        density: mean number of real balls around a synthetic row over k, >= 0, about 1 for equal distributions.
        coverage: share of real rows whose ball holds a synthetic row, in [0, 1].
        n_real, n_synthetic, k: what the numbers rest on.
    """

    precision: float
    recall: float
    density: float
    coverage: float
    n_real: int
    n_synthetic: int
    k: int


def _radii(features: NDArray[np.floating], k: int) -> NDArray[np.float64]:
    # k + 1: the row itself is its own first neighbour.
    distances, _ = NearestNeighbors(n_neighbors=k + 1, algorithm="brute").fit(features).kneighbors(features)
    return np.asarray(distances[:, -1], dtype=np.float64)


def _balls_around(distances: NDArray[np.float64], radii: NDArray[np.float64]) -> NDArray[np.int64]:
    # (b, m) distances of b reals to m samples -> (m,) in how many of the b balls each sample lies.
    return np.asarray((distances < radii[:, None]).sum(axis=0), dtype=np.int64)


def sample_density(real: NDArray[np.floating], samples: NDArray[np.floating], k: int = 5) -> NDArray[np.float64]:
    """Density of every single sample among the reals; its mean is the density of `measure_coverage`.

    Args:
        real: (n, d) and samples: (m, d) finite features.
        k: neighbours that a ball reaches to, 1 to n - 1.
    Returns:
        (m,) number of reals' k-neighbour balls that hold the sample over k, in [0, n / k]; its mean is about 1 for
        samples of the reals' own distribution.

    Raises:
        MeasurementError: too few reals for k, other widths, or not finite.

    Source: Naeem et al. 2020, arXiv:2002.09797, the density before its mean over the samples.
    """
    _check_features(real, samples, k, len(real))
    x, y = real.astype(np.float64), samples.astype(np.float64)
    radii, inside = _radii(x, k), np.zeros(len(y), dtype=np.int64)
    for start in range(0, len(x) if len(y) else 0, BLOCK):
        distances = pairwise_distances(x[start : start + BLOCK], y)  # (b, m)
        inside += _balls_around(distances, radii[start : start + BLOCK])
    return inside / k


def _check_features(real: NDArray[np.floating], synthetic: NDArray[np.floating], k: int, smallest: int) -> None:
    if k < 1 or smallest <= k:
        raise MeasurementError(f"{smallest} rows are too few for k = {k} neighbours; use a k below {smallest}")
    if real.ndim != 2 or synthetic.ndim != 2 or real.shape[1] != synthetic.shape[1]:
        raise MeasurementError(f"features {real.shape} and {synthetic.shape} must be (n, d) and (m, d)")
    if not (np.isfinite(real).all() and np.isfinite(synthetic).all()):
        raise MeasurementError("features are not finite; the extractor diverged")


def measure_coverage(real: NDArray[np.floating], synthetic: NDArray[np.floating], k: int = 5) -> Coverage:
    """Precision, recall, density and coverage.

    Args:
        real: (n, d) and synthetic: (m, d) finite features.
        k: neighbours that a ball reaches to; n and m must be above it.

    Raises:
        MeasurementError: too few rows for k, other widths, or not finite.

    Source: Kynkaanniemi et al. 2019, arXiv:1904.06991; Naeem et al. 2020, arXiv:2002.09797.
    """
    _check_features(real, synthetic, k, min(len(real), len(synthetic)))
    x, y = real.astype(np.float64), synthetic.astype(np.float64)
    real_radii, synthetic_radii = _radii(x, k), _radii(y, k)
    inside_real = np.zeros(len(y), dtype=np.int64)
    recalled, covered = [], []
    for start in range(0, len(x), BLOCK):
        distances = pairwise_distances(x[start : start + BLOCK], y)  # (b, m)
        radii = real_radii[start : start + BLOCK]
        inside_real += _balls_around(distances, radii)
        recalled.append((distances < synthetic_radii).any(axis=1))
        covered.append(distances.min(axis=1) < radii)
    return Coverage(
        precision=float((inside_real > 0).mean()),
        recall=float(np.concatenate(recalled).mean()),
        density=float(inside_real.mean() / k),
        coverage=float(np.concatenate(covered).mean()),
        n_real=len(x),
        n_synthetic=len(y),
        k=k,
    )
