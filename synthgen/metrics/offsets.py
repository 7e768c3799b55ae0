"""Per-class logit offsets: what is left of a gain when every arm may set its own thresholds.

Owns fitting and applying them. A classifier whose logits merely moved by a constant per class (a
changed prior, a bias) gets that constant back, so that a mere shift is not taken for a gain. The
same fit, on validation rows alone, is applied to every arm.
"""

import numpy as np
from numpy.typing import NDArray

from synthgen.errors import MeasurementError
from synthgen.metrics.classification import log_sum_exp

PRIOR_SCALE = 2.0
"""Standard deviation, in logits, of an offset around its centre: wide against usual shifts, narrow against
what three validation images could ask for."""

MAX_NEWTON_STEPS = 50


def _class_weights(labels: NDArray[np.int64], present: NDArray[np.int64]) -> NDArray[np.float64]:
    counts = np.bincount(labels, minlength=int(present.max()) + 1)
    return np.asarray(1.0 / (len(present) * counts[labels]), dtype=np.float64)


def _centre(logits: NDArray[np.float64], labels: NDArray[np.int64], present: NDArray[np.int64]) -> NDArray[np.float64]:
    """(K,) minus the mean logit that each class gets on images of other classes, all classes counting alike.

    It moves with a shift of the logits, as the offset must, and rests on plentiful images even for a scarce class.
    """
    means = np.stack([logits[labels == label].mean(axis=0) for label in present])  # (P, K)
    others = present[:, None] != np.arange(logits.shape[1])[None, :]  # (P, K)
    return np.asarray(-np.sum(np.where(others, means, 0.0), axis=0) / others.sum(axis=0))


def fit_offsets(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Offsets that minimise the class-balanced log-loss of `logits + offsets`, shrunk towards their centre.

    The loss is convex and Newton's method finds its minimum. At it the mean probability of each class,
    all classes weighing the same, is 1/K up to the prior. Adding a constant per class to the logits
    takes the same constant off the offsets, exactly. A class without rows gets its centre.

    Args:
        logits: (n, K) finite, of validation images; repeats and folds may be pooled.
        labels: (n,) int64 in [0, K).
    Returns:
        (K,) float64 with mean 0; zeros where fewer than two classes have rows.

    Raises:
        MeasurementError: shapes do not fit, or a label is no class.
    """
    if logits.ndim != 2 or labels.shape != (len(logits),):
        raise MeasurementError(f"logits {logits.shape} and labels {labels.shape} do not fit; expected (n, K) and (n,)")
    n_classes = logits.shape[1]
    if labels.size and (labels.min() < 0 or labels.max() >= n_classes):
        raise MeasurementError(f"labels {labels.min()} to {labels.max()} are not in [0, {n_classes})")
    present = np.unique(labels)
    if len(present) < 2:
        return np.zeros(n_classes)
    centre = _centre(logits, labels, present)
    weights = _class_weights(labels, present)
    # Kish's effective number of rows says how much the balanced loss knows against the prior.
    ridge = float(np.sum(weights**2)) / PRIOR_SCALE**2
    targets = labels[:, None] == present[None, :]  # (n, P)
    start = logits[:, present] + centre[present]
    deviation = _newton(start, targets, weights, ridge)
    offsets = centre.copy()
    offsets[present] += deviation
    return np.asarray(offsets - offsets.mean())


def _loss(
    deviation: NDArray[np.float64],
    start: NDArray[np.float64],
    targets: NDArray[np.bool_],
    weights: NDArray[np.float64],
    ridge: float,
) -> float:
    moved = start + deviation
    return float(weights @ (log_sum_exp(moved) - moved[targets]) + 0.5 * ridge * np.sum(deviation**2))


def _newton(
    start: NDArray[np.float64], targets: NDArray[np.bool_], weights: NDArray[np.float64], ridge: float
) -> NDArray[np.float64]:
    deviation = np.zeros(start.shape[1])
    loss = _loss(deviation, start, targets, weights, ridge)
    for _ in range(MAX_NEWTON_STEPS):
        moved = start + deviation
        chances = np.exp(moved - log_sum_exp(moved)[:, None])  # (n, P)
        weighted = weights[:, None] * chances
        gradient = weighted.sum(axis=0) - weights @ targets + ridge * deviation
        if np.abs(gradient).max() < 1e-10:
            break
        hessian = np.diag(weighted.sum(axis=0) + ridge) - chances.T @ weighted
        step = np.linalg.solve(hessian, gradient)
        length = 1.0
        while length > 1e-8:
            candidate = deviation - length * step
            new_loss = _loss(candidate, start, targets, weights, ridge)
            if new_loss <= loss - 1e-4 * length * float(gradient @ step):
                break
            length /= 2
        else:
            break  # no further descent in double precision
        deviation, loss = candidate, new_loss
    return deviation


def apply_offsets(logits: NDArray[np.float64], offsets: NDArray[np.float64]) -> NDArray[np.float64]:
    """`logits` (..., K) plus `offsets` (K,)."""
    return logits + offsets
