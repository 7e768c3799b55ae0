"""Whether synthetic samples are copies: distance to the nearest training image, against that among reals.

Owns the ratio and its reference. A replay of training data has ratio 0; fresh images of the same kind
have ratios around 1.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from synthgen.errors import MeasurementError

COPY_RATIO = 0.1
"""Below a tenth of the usual distance between two reals, a sample is counted as a copy."""


@dataclass(frozen=True)
class Memorisation:
    """Nearest-real distances of one set of samples.

    Attributes:
        ratios: (m,) float64 >= 0, nearest training distance over the reference.
        median_ratio: their median; copied_share: share below `COPY_RATIO`.
        reference: median distance of a training row to its nearest other, > 0.
        n_real, n_synthetic: rows of each set.
    """

    ratios: NDArray[np.float64]
    median_ratio: float
    copied_share: float
    reference: float
    n_real: int
    n_synthetic: int


def nearest_distances(queries: NDArray[np.floating], real: NDArray[np.floating]) -> NDArray[np.float64]:
    """(m,) Euclidean distance of each query row to its nearest row of `real`; 0 exactly for a copy."""
    _, index = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(real).kneighbors(queries)
    # The search expands |a - b|^2 and rounds; the distance itself is computed afresh.
    return np.asarray(np.linalg.norm(queries.astype(np.float64) - real[index[:, 0]].astype(np.float64), axis=1))


def reference_distance(real: NDArray[np.floating]) -> float:
    """Median over real rows of the distance to the nearest other, different row.

    Raises:
        MeasurementError: fewer than two different rows.
    """
    distinct = np.unique(real.astype(np.float64), axis=0)
    if len(distinct) < 2:
        raise MeasurementError(f"{len(real)} real rows hold {len(distinct)} different ones; at least 2 are needed")
    _, index = NearestNeighbors(n_neighbors=2, algorithm="brute").fit(distinct).kneighbors(distinct)
    rows = np.arange(len(distinct))
    other = np.where(index[:, 0] == rows, index[:, 1], index[:, 0])
    return float(np.median(np.linalg.norm(distinct - distinct[other], axis=1)))


def measure_memorisation(real: NDArray[np.floating], synthetic: NDArray[np.floating]) -> Memorisation:
    """Nearest-real distance ratios of synthetic samples.

    Args:
        real: (n, d) features of training images; synthetic: (m, d) features of samples, m >= 1.

    Raises:
        MeasurementError: shapes do not fit, not finite, or fewer than two different real rows.
    """
    if real.ndim != 2 or synthetic.ndim != 2 or real.shape[1] != synthetic.shape[1] or not len(synthetic):
        raise MeasurementError(f"features {real.shape} and {synthetic.shape} must be (n, d) and (m, d), m > 0")
    if not (np.isfinite(real).all() and np.isfinite(synthetic).all()):
        raise MeasurementError("features are not finite; the extractor diverged")
    reference = reference_distance(real)
    ratios = nearest_distances(synthetic, real) / reference
    return Memorisation(
        ratios=ratios,
        median_ratio=float(np.median(ratios)),
        copied_share=float((ratios < COPY_RATIO).mean()),
        reference=reference,
        n_real=len(real),
        n_synthetic=len(synthetic),
    )
