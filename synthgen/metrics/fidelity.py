"""How near two sets of features lie: kernel distance (KID) and Fréchet distance. Features in, number out.

Owns the formulas. Refuses sets too small for them. Features come from the caller's own extractor, so
these numbers are never called plain "FID", and n and the real-against-real floor belong beside them.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synthgen.errors import MeasurementError


@dataclass(frozen=True)
class Fidelity:
    """Distances with the counts that they rest on.

    Attributes:
        kernel_distance: unbiased squared MMD, near 0 (and as often below) for equal distributions.
        frechet_distance: >= 0, biased upwards by few samples.
        n_real, n_synthetic: rows of each set.
    """

    kernel_distance: float
    frechet_distance: float
    n_real: int
    n_synthetic: int


def _check(real: NDArray[np.floating], synthetic: NDArray[np.floating]) -> tuple[NDArray[np.float64], ...]:
    for name, features in (("real", real), ("synthetic", synthetic)):
        if features.ndim != 2 or len(features) < 2:
            raise MeasurementError(f"{name} features {features.shape}: at least 2 rows of (n, d) are needed")
        if not np.isfinite(features).all():
            raise MeasurementError(f"{name} features are not finite; the extractor diverged")
    if real.shape[1] != synthetic.shape[1]:
        raise MeasurementError(f"features of {real.shape[1]} and {synthetic.shape[1]} dimensions cannot be compared")
    return real.astype(np.float64), synthetic.astype(np.float64)


def kernel_distance(real: NDArray[np.floating], synthetic: NDArray[np.floating]) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel (x.y / d + 1)^3, over all rows.

    Args:
        real: (n, d) and synthetic: (m, d) features, n, m >= 2, any scale.

    Raises:
        MeasurementError: too few rows, other widths, or not finite.

    Source: Binkowski et al. 2018, arXiv:1801.01401 (KID).
    """
    x, y = _check(real, synthetic)
    n, m, width = len(x), len(y), x.shape[1]

    def kernel(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray((a @ b.T / width + 1.0) ** 3)

    within_x, within_y = kernel(x, x), kernel(y, y)
    same = (within_x.sum() - np.trace(within_x)) / (n * (n - 1)) + (within_y.sum() - np.trace(within_y)) / (m * (m - 1))
    return float(same - 2 * kernel(x, y).mean())


def frechet_distance(real: NDArray[np.floating], synthetic: NDArray[np.floating]) -> float:
    """|mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of the Gaussians fitted to both sets.

    tr (S1 S2)^(1/2) is the sum of the singular values of A B', where A and B are the centred rows over
    sqrt(n - 1): exact for fewer rows than dimensions, where a matrix root is not stable.

    Args:
        real: (n, d) and synthetic: (m, d) features, n, m >= 2.

    Raises:
        MeasurementError: too few rows, other widths, or not finite.

    Source: Dowson and Landau 1982; Heusel et al. 2017, arXiv:1706.08500.
    """
    x, y = _check(real, synthetic)
    a = (x - x.mean(axis=0)) / math.sqrt(len(x) - 1)
    b = (y - y.mean(axis=0)) / math.sqrt(len(y) - 1)
    # A'A = R'R: rows are folded to at most d, so that large sets cost no (n, m) matrix.
    root_a, root_b = np.linalg.qr(a).R, np.linalg.qr(b).R
    cross = float(np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum())
    means = float(np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2))
    return max(means + float(np.sum(a**2)) + float(np.sum(b**2)) - 2 * cross, 0.0)


def measure_fidelity(real: NDArray[np.floating], synthetic: NDArray[np.floating]) -> Fidelity:
    """Both distances with their counts.

    Raises:
        MeasurementError: see `kernel_distance`.
    """
    return Fidelity(kernel_distance(real, synthetic), frechet_distance(real, synthetic), len(real), len(synthetic))
