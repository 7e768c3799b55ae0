"""The shortcut probe: how well a linear model tells synthetic from real, and what that gives away about the label.

Owns the cross-fitted probe, its AUC with a standard error, and the mutual information of label and guessed origin.
Refuses to see images or networks: features come in, numbers go out. Which features, and why, stands in docs/method.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from synthgen.errors import MeasurementError

N_PARTS = 5
MIN_OBJECTS = 5
"""Of a class, real objects and synthetic images: one for each part at least."""
PENALTY = 0.1
"""Inverse strength of the ridge penalty: features may outnumber the images of a small data set."""
MAX_ITERATIONS = 5000


@dataclass(frozen=True)
class ClassProbe:
    """What was found within one class.

    Attributes:
        n_real, n_objects, n_synthetic: rows looked at, and the groups of the real ones.
        auc: chance that a held-out synthetic image scores above a held-out real one; None where not measured.
        error: its standard error; None as `auc`.
        reason: why nothing was measured, or None.
    """

    n_real: int
    n_objects: int
    n_synthetic: int
    auc: float | None = None
    error: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class OriginProbe:
    """What was found over all classes that could be measured, each counted equally.

    Attributes:
        classes: one per label.
        auc, error: mean of the classes' AUCs and its standard error; None where no class could be measured.
        hit: share of held-out synthetic images that the probe calls synthetic.
        false_alarm: share of held-out real images that it calls synthetic.
    """

    classes: list[ClassProbe]
    auc: float | None = None
    error: float | None = None
    hit: float | None = None
    false_alarm: float | None = None


def shortcut_bits(shares: Sequence[float], hit: float, false_alarm: float) -> float:
    """Mutual information, in bits, of the label and a guess of origin among the draws of a training.

    Every label is drawn equally often, and a draw of label k is synthetic with probability s_k. The guess depends on
    the label through the true origin alone: P(guess synthetic | k) = s_k hit + (1 - s_k) false_alarm. By the data
    processing inequality the result lies between 0 (even shares; a guess as often right as wrong) and the mutual
    information of label and true origin (a guess that is always right). A guess that is worse than chance on held-out
    images tells nothing: 0.

    Args:
        shares: of each label's draws that are synthetic, in [0, 1].
        hit, false_alarm: see `OriginProbe`, in [0, 1].
    Raises:
        MeasurementError: no label, or a share or rate outside [0, 1].

    Source: Cover and Thomas 2006, Elements of Information Theory, sections 2.3 and 2.8.
    """
    values = [*shares, hit, false_alarm]
    if not shares or not all(0.0 <= value <= 1.0 for value in values):
        raise MeasurementError(f"shares {list(shares)} and rates {hit}, {false_alarm} must be some, each within [0, 1]")
    if hit <= false_alarm or len(set(shares)) == 1:
        return 0.0
    inside = np.asarray(shares) * hit + (1.0 - np.asarray(shares)) * false_alarm  # (K,)
    found = 0.0
    for p in (inside, 1.0 - inside):
        whole = p.mean()
        some = (p > 0.0) & (whole > 0.0)  # the mean of tiny shares may be 0
        found += float((p[some] * np.log2(p[some] / whole)).sum()) / len(p)
    return max(0.0, found)


def auc_with_error(
    synthetic: NDArray[np.float64], real: NDArray[np.float64], groups: NDArray[np.str_]
) -> tuple[float, float]:
    """Area under the ROC curve and its standard error, real images of one object counted as one cluster.

    Args:
        synthetic: (n,) scores, each image on its own, n >= 2.
        real: (m,) scores; groups: (m,) their objects, two different ones at least.
    Returns:
        (area in [0, 1], standard error; 0 where all scores are in order, which is no certainty).

    Source: DeLong et al. 1988, Biometrics 44; Obuchowski 1997, Biometrics 53, for clusters.
    """
    above = (synthetic[:, None] > real[None, :]) + 0.5 * (synthetic[:, None] == real[None, :])  # (n, m)
    area = float(above.mean())
    _, index = np.unique(groups, return_inverse=True)
    per_object = np.bincount(index, weights=above.mean(axis=0) - area)  # (objects,)
    n_objects = len(per_object)
    from_real = n_objects / (n_objects - 1) * float(np.square(per_object).sum()) / len(real) ** 2
    from_synthetic = float(np.var(above.mean(axis=1), ddof=1)) / len(synthetic)
    return area, math.sqrt(from_real + from_synthetic)


def probe_origin(
    reals: Sequence[NDArray[np.float32]],
    groups: Sequence[NDArray[np.str_]],
    synthetic: Sequence[NDArray[np.float32]],
    generator: np.random.Generator,
) -> OriginProbe:
    """Fits a linear probe of origin on four fifths of the images and scores the rest, five times.

    All classes are fitted together, so that what they have in common is found; within each class real and synthetic
    images weigh the same, and every class weighs the same, so that the mix of classes tells nothing. Scores are
    compared within a class. Real images of one object are held out together. Features are scaled by their spread inside
    classes: scaled by that over all, a texture would be small beside the differences between classes, and penalised.

    Args:
        reals: per label (m_k, d) features of real images.
        groups: per label (m_k,) their objects.
        synthetic: per label (n_k, d) features of synthetic images.
        generator: draws the parts.
    Returns:
        what was found; classes with fewer than five real objects or synthetic images stay out, with the reason.
    Raises:
        MeasurementError: features that are not finite.
    """
    classes = [_counted(*rows) for rows in zip(reals, groups, synthetic, strict=True)]
    judged = [label for label, found in enumerate(classes) if found.reason is None]
    if not judged:
        return OriginProbe(classes)
    features = np.concatenate([rows for k in judged for rows in (reals[k], synthetic[k])]).astype(np.float64)
    if not np.isfinite(features).all():
        raise MeasurementError("features of the origin probe are not finite; images or the feature network are damaged")
    sizes = [len(rows) for k in judged for rows in (reals[k], synthetic[k])]
    cells = np.repeat(np.arange(len(sizes)), sizes)  # 2 i: reals of the i-th judged class, 2 i + 1: its synthetic ones
    names = np.concatenate(
        [part for k in judged for part in (np.char.add("r", groups[k]), _own_groups(k, len(synthetic[k])))]
    )
    scores = _held_out_scores(features, cells, names, generator)
    errors, hits, alarms = [], [], []
    for i, label in enumerate(judged):
        real, made = scores[cells == 2 * i], scores[cells == 2 * i + 1]
        area, error = auc_with_error(made, real, groups[label])
        found = classes[label]
        classes[label] = ClassProbe(found.n_real, found.n_objects, found.n_synthetic, area, error)
        errors.append(error)
        hits.append(float((made > 0).mean()))
        alarms.append(float((real > 0).mean()))
    return OriginProbe(
        classes,
        auc=float(np.mean([classes[label].auc for label in judged])),
        error=math.sqrt(float(np.square(errors).sum())) / len(judged),
        hit=float(np.mean(hits)),
        false_alarm=float(np.mean(alarms)),
    )


def _counted(reals: NDArray[np.float32], groups: NDArray[np.str_], synthetic: NDArray[np.float32]) -> ClassProbe:
    n_objects, reason = len(np.unique(groups)), None
    if n_objects < MIN_OBJECTS:
        reason = f"{n_objects} real objects, at least {MIN_OBJECTS} are needed"
    elif len(synthetic) < MIN_OBJECTS:
        reason = f"{len(synthetic)} synthetic images, at least {MIN_OBJECTS} are needed"
    return ClassProbe(len(reals), n_objects, len(synthetic), reason=reason)


def _own_groups(label: int, n: int) -> NDArray[np.str_]:
    return np.asarray([f"s{label}-{i}" for i in range(n)])


def _held_out_scores(
    features: NDArray[np.float64], cells: NDArray[np.int64], names: NDArray[np.str_], generator: np.random.Generator
) -> NDArray[np.float64]:
    """(n,) log odds of being synthetic, each by a probe that saw no image of the same object."""
    scores = np.zeros(len(cells))
    parts = StratifiedGroupKFold(N_PARTS, shuffle=True, random_state=int(generator.integers(2**31)))
    for fitted, held_out in parts.split(features, cells, names):
        counts = np.bincount(cells[fitted], minlength=int(cells.max()) + 1)
        # a class of which one origin is held out entirely would tell origin by its label
        both = np.repeat((counts[0::2] > 0) & (counts[1::2] > 0), 2)
        weights = np.where(both, 1.0 / np.maximum(counts, 1), 0.0)[cells[fitted]]
        centre, scale = _inner_scale(features[fitted], cells[fitted])
        scaled = (features - centre) / scale
        probe = LogisticRegression(C=PENALTY, max_iter=MAX_ITERATIONS)
        probe.fit(scaled[fitted], cells[fitted] % 2, sample_weight=weights * len(fitted) / weights.sum())
        scores[held_out] = probe.decision_function(scaled[held_out])
    return scores


def _inner_scale(
    features: NDArray[np.float64], cells: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(d,) means and (d,) standard deviations inside a class and origin, each counted once; 1 where constant."""
    present = np.unique(cells)
    inner = np.sqrt(np.mean([features[cells == cell].var(axis=0) for cell in present], axis=0))
    return features.mean(axis=0), np.where(inner > 1e-12, inner, 1.0)
