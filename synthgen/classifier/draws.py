"""What a classifier training is shown, step by step: the draws of reals, variants, composites and synthetic images.

Owns which image stands where in which batch, under which label and weight. All draws of a training are decided before
it begins, from seeds that do not depend on the arm, so that arms differ in what they show and in nothing else. Trains
nothing.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from synthgen.classifier.arms import PASTING, ArmSpec
from synthgen.classifier.partners import Partners, place_partners
from synthgen.classifier.pseudo_labels import PseudoLabelled
from synthgen.config import ClassifierSection
from synthgen.dataset.blending import blend_rows
from synthgen.dataset.mixing import MixingPolicy, sure_rows
from synthgen.dataset.pasted_pool import PastedPool
from synthgen.dataset.sampling import BalancedBatches, NaturalBatches
from synthgen.dataset.transforms import TransformBank
from synthgen.errors import TrainingError
from synthgen.seeding import derive_seed, numpy_generator

RETRAIN_FROM = 0.8
"""Share of a training after which an arm with a `retrained` head fits its last layer alone."""


@dataclass(frozen=True)
class RealImages:
    """Training reals of a fold.

    Attributes:
        images: (n, H, W, C) uint8, or (N, H, W, C) that hold more than the reals of the fold.
        labels: (n,) int64.
        bank_rows: (n,) int64, index of each image in the banks.
        transforms: variants under the arm's policy, or None.
        mild: variants for `control`, or None.
        image_rows: (n,) int64, index of each real in `images`; None: they are the reals, in this order.
        pasted: composites for `paste` and `paste_whole`, or None.
        pseudo: unlabelled images with a label for `pseudo_labelled`, or None.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    bank_rows: NDArray[np.int64]
    transforms: TransformBank | None = None
    mild: TransformBank | None = None
    image_rows: NDArray[np.int64] | None = None
    pasted: PastedPool | None = None
    pseudo: PseudoLabelled | None = None


@dataclass(frozen=True)
class SyntheticImages:
    """Accepted synthetic images of a fold.

    Attributes:
        images: (m, H, W, C) uint8.
        labels: (m,) int64.
        sureness: (m,) float32 in [0, 1], the teacher's probability of the label; None: 1.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    sureness: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Draws:
    """All draws of one training, decided before it begins.

    Attributes:
        sources: image arrays, (n, H, W, C) uint8 each.
        source: (steps, batch) int64, index in `sources`, ascending within a step.
        rows: (steps, batch) int64, index in that array.
        labels: (steps, batch) int64.
        weights: (steps, batch) float32 in (0, 1] of each image in the loss; None: 1.
        sureness: (steps, batch) float32 in [0, 1] that the label is right; None: 1.
        partners: what is blended into the images; None: nothing.
    """

    sources: list[NDArray[np.uint8]]
    source: NDArray[np.int64]
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    weights: NDArray[np.float32] | None = None
    sureness: NDArray[np.float32] | None = None
    partners: Partners | None = None

    def rows_by_source(self, step: int) -> list[tuple[int, NDArray[np.int64]]]:
        """(index in `sources`, rows) of one step; one after the other they are the batch."""
        bounds = np.searchsorted(self.source[step], np.arange(len(self.sources) + 1))
        return [(k, self.rows[step, a:b]) for k, (a, b) in enumerate(pairwise(bounds)) if b > a]


@dataclass(frozen=True)
class _Part:
    """The draws from one source: at each step an array of rows, and of labels."""

    images: NDArray[np.uint8]
    rows: list[NDArray[np.int64]]
    labels: list[NDArray[np.int64]]


def _drawn_reals(reals: RealImages, drawn: list[NDArray[np.int64]], bank: TransformBank | None, seed: int) -> _Part:
    labels = [reals.labels[rows] for rows in drawn]
    if bank is None:
        at = drawn if reals.image_rows is None else [reals.image_rows[rows] for rows in drawn]
        return _Part(reals.images, at, labels)
    counts = np.diff(bank.starts)
    offsets = numpy_generator(seed, "offsets").integers(0, counts)
    lengths = [len(rows) for rows in drawn]
    variants = bank.variants(reals.bank_rows[np.concatenate(drawn)], offsets)
    return _Part(bank.images, np.split(variants, np.cumsum(lengths)[:-1]), labels)


def _drawn_composites(arm: ArmSpec, pasted: PastedPool | None, n: int, steps: int, seed: int) -> _Part:
    if pasted is None:
        raise TrainingError(f"arm {arm.name}: no composites were made; give `pasted` of the real images")
    pool = BalancedBatches(pasted.labels, n, numpy_generator(seed, "pool"))
    drawn = [pool.take() for _ in range(steps)]
    return _Part(pasted.images, drawn, [pasted.labels[rows] for rows in drawn])


def _drawn_pseudo_labelled(arm: ArmSpec, reals: RealImages, n: int, steps: int, seed: int) -> list[_Part]:
    """Unlabelled images, and reals of the classes that have none with their label: every class has the same share."""
    own = reals.pseudo
    if own is None:
        raise TrainingError(f"arm {arm.name}: no unlabelled image was labelled; give `pseudo` of the real images")
    stand_ins = np.flatnonzero(~np.isin(reals.labels, own.labels))
    n_own = len(own.labels)
    pool = BalancedBatches(np.concatenate([own.labels, reals.labels[stand_ins]]), n, numpy_generator(seed, "pool"))
    taken = [pool.take() for _ in range(steps)]
    parts = []
    if len(stand_ins):
        again = [stand_ins[rows[rows >= n_own] - n_own] for rows in taken]
        parts.append(_drawn_reals(reals, again, reals.transforms, derive_seed(seed, "pool transforms")))
    if n_own:
        unlabelled = RealImages(own.bank.images, own.labels, own.rows)
        drawn = [rows[rows < n_own] for rows in taken]
        parts.append(_drawn_reals(unlabelled, drawn, own.bank, derive_seed(seed, "pseudo transforms")))
    return parts


def _synthetic_counts(policy: MixingPolicy | None, batch: int, steps: int, labels: NDArray[np.int64]) -> list[int]:
    if policy is None:
        return [0] * steps
    share = policy.share(labels)
    return [round(share * policy.factor(step, steps) * batch) for step in range(steps)]


def plan_draws(
    arm: ArmSpec,
    reals: RealImages,
    synthetic: SyntheticImages | None,
    section: ClassifierSection,
    real_share: float,
    seed: int,
) -> Draws:
    """Decides every draw of a training.

    Args:
        arm: which sources it draws from, and how synthetic images are mixed in.
        reals, synthetic: the sources.
        section: steps and batch.
        real_share: share of each batch from the real pool (`duplicate`, `control`, ...), where the arm has one.
        seed: of this fold and repeat, the same for all arms.
    Raises:
        TrainingError: the synthetic pool or the composites are wanted but missing, or no real image is left in a
            batch.
    """
    steps, batch, policy = section.steps, section.batch, arm.mixing
    occurring = np.unique(reals.labels)
    n_synthetic = _synthetic_counts(policy, batch, steps, occurring)
    n_pool = round(real_share * batch) if arm.real_pool != "none" else 0
    n_real = [batch - n_pool - n for n in n_synthetic]
    if min(n_real) < 1:
        share = 0.0 if policy is None else policy.share(occurring)
        raise TrainingError(f"arm {arm.name}: shares {share:g} and {real_share} leave no real image in a batch")
    rng = numpy_generator(seed, "reals")
    if arm.sampling == "balanced":
        balanced = BalancedBatches(reals.labels, batch, rng)
        drawn = [balanced.take(n, _weights(policy, occurring, False, k, steps)) for k, n in enumerate(n_real)]
    else:
        natural = NaturalBatches(len(reals.labels), batch, rng)
        drawn = [natural.take(n) for n in n_real]
        if arm.head == "retrained":
            balanced = BalancedBatches(reals.labels, batch, numpy_generator(seed, "reals of the last layer"))
            first = retrain_from(steps)
            drawn[first:] = [balanced.take(n) for n in n_real[first:]]
    bank = reals.transforms if arm.transforms else None
    parts = [_drawn_reals(reals, drawn, bank, derive_seed(seed, "transforms"))]
    if n_pool and arm.real_pool in PASTING:
        parts.append(_drawn_composites(arm, reals.pasted, n_pool, steps, seed))
    elif n_pool and arm.real_pool == "pseudo_labelled":
        parts += _drawn_pseudo_labelled(arm, reals, n_pool, steps, seed)
    elif n_pool:
        pool = BalancedBatches(reals.labels, n_pool, numpy_generator(seed, "pool"))
        mild = reals.mild if arm.real_pool == "control" else None
        again = [pool.take() for _ in range(steps)]
        parts.append(_drawn_reals(reals, again, mild, derive_seed(seed, "pool transforms")))
    if policy is None or not any(n_synthetic):
        return _joined(parts)
    if synthetic is None or len(synthetic.labels) == 0:
        raise TrainingError(
            f"arm {arm.name}: no synthetic image was accepted in this fold; see acceptance.json of its "
            "data/synthetic folder, then lower synthesize.min_agreement or train the generator longer"
        )
    rows = BalancedBatches(synthetic.labels, max(n_synthetic), numpy_generator(seed, "synthetic"))
    made = [rows.take(n, _weights(policy, occurring, True, k, steps)) for k, n in enumerate(n_synthetic)]
    parts.append(_Part(synthetic.images, made, [synthetic.labels[found] for found in made]))
    sureness = None if synthetic.sureness is None else [synthetic.sureness[found] for found in made]
    joined = _joined(parts, policy, sureness)
    if policy.blend == "none":
        return joined
    return replace(joined, partners=_partners(policy, reals, bank, n_synthetic, joined.source == len(parts) - 1, seed))


def _partners(
    policy: MixingPolicy,
    reals: RealImages,
    bank: TransformBank | None,
    n_synthetic: list[int],
    is_synthetic: NDArray[np.bool_],
    seed: int,
) -> Partners:
    """A real image for every synthetic one, its label drawn as theirs are, each by itself."""
    steps, occurring = len(n_synthetic), np.unique(reals.labels)
    stream = BalancedBatches(reals.labels, max(n_synthetic), numpy_generator(seed, "blend partners"))
    drawn = [stream.take(n, _weights(policy, occurring, True, k, steps)) for k, n in enumerate(n_synthetic)]
    part = _drawn_reals(reals, drawn, bank, derive_seed(seed, "blend transforms"))
    height, width = reals.images.shape[1:3]
    rng = numpy_generator(seed, "blend")
    return place_partners(policy, part.rows, part.labels, is_synthetic, (height, width), rng)


def _weights(
    policy: MixingPolicy | None, labels: NDArray[np.int64], synthetic: bool, step: int, steps: int
) -> dict[int, float] | None:
    if policy is None:
        return None
    return policy.weights(labels, synthetic=synthetic, factor=policy.factor(step, steps))


def _joined(
    parts: list[_Part], policy: MixingPolicy | None = None, sureness: list[NDArray[np.float32]] | None = None
) -> Draws:
    """One table of all draws; with a policy the last part is the synthetic one."""
    steps = range(len(parts[0].rows))
    source = np.stack([np.repeat(np.arange(len(parts)), [len(part.rows[k]) for part in parts]) for k in steps])
    rows = np.stack([np.concatenate([part.rows[k] for part in parts]) for k in steps])
    labels = np.stack([np.concatenate([part.labels[k] for part in parts]) for k in steps])
    is_synthetic = source == len(parts) - 1
    weights = certain = None
    if policy is not None and policy.loss_weight != 1.0:
        weights = np.where(is_synthetic, np.float32(policy.loss_weight), np.float32(1.0))
    if policy is not None and policy.labels == "agreement" and sureness is not None:
        certain = np.ones(rows.shape, dtype=np.float32)
        certain[is_synthetic] = np.concatenate(sureness)
    return Draws([part.images for part in parts], source, rows, labels, weights, certain)


def build_targets(draws: Draws, n_classes: int) -> NDArray[np.int64] | NDArray[np.float32]:
    """What the loss is given: (steps, batch) int64 labels, or, where images differ in weight or sureness or are
    blended, (steps, batch, n_classes) float32 rows whose sums are the weights."""
    if draws.weights is None and draws.sureness is None and draws.partners is None:
        return draws.labels
    sure = np.ones(draws.labels.shape, np.float32) if draws.sureness is None else draws.sureness
    rows = sure_rows(draws.labels, sure, n_classes)
    rows = rows if draws.weights is None else rows * draws.weights[..., None]
    mixed = draws.partners
    return rows if mixed is None else blend_rows(rows, mixed.labels, mixed.blend.shares)


def class_prior(draws: Draws, n_classes: int) -> NDArray[np.float64]:
    """(n_classes,) float64 share of each label among all draws of a training, by weight; never 0."""
    weights = None if draws.weights is None else draws.weights.ravel()
    mixed = draws.partners
    if mixed is not None:
        weights = (1.0 - mixed.blend.shares.ravel()) * (1.0 if weights is None else weights)
    counts = np.bincount(draws.labels.ravel(), weights=weights, minlength=n_classes).astype(np.float64)
    if mixed is not None:
        counts += np.bincount(mixed.labels.ravel(), weights=mixed.blend.shares.ravel(), minlength=n_classes)
    return np.asarray(np.maximum(counts, 0.5) / np.maximum(counts, 0.5).sum())


def retrain_from(steps: int) -> int:
    """The step from which an arm with a `retrained` head fits its last layer alone."""
    return max(1, round(RETRAIN_FROM * steps))
