"""The mixing policy: how synthetic images enter the training of a classifier, as data and as draws.

Owns the one description that every arm, the released data set and a user's own training script share. The default holds
what was measured (docs/method.md, "Mixing"): synthetic images of all classes at one rate, so that origin says nothing
about the label, and not transformed again as reals are. Knows neither networks nor folders.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synthgen.config import MixingSection
from synthgen.dataset.blending import BlendKind
from synthgen.errors import ConfigError

REALS_LAST = 0.8
"""Share of a training after which the schedule `reals_last` shows reals alone."""


@dataclass(frozen=True)
class MixingPolicy:
    """How synthetic images enter a training of `n_classes` classes.

    Attributes:
        name: as in `challenge.policies` and in the names of arms.
        pool: which samples (`synthgen.dataset.pools`).
        shares: of the draws of each class that are synthetic, by label, in [0, 1).
        transforms: of the synthetic images: `none`, `mild` or `classical`.
        loss_weight: of a synthetic image, in (0, 1]; a real one has 1.
        labels: `hard`, or `agreement`: the teacher's probability of the label, the rest spread over the others.
        schedule: `constant`; `falling`, the share goes to 0 linearly; `reals_last`, 0 in the last fifth.
        at_most: different synthetic images of each class, the first of its pool; None: all.
        blend: what of a real image goes into each synthetic one that is drawn: nothing (`none`), a part of every pixel
            (`mixup`) or a rectangle (`cutmix`); the label is blended by the same share (`synthgen.dataset.blending`).
            Labels of these real images occur as often as those of the synthetic ones, so that of both every class is
            drawn equally often, and `dependence` is that of unblended images.
        blend_alpha: the share of the real image is drawn from Beta(blend_alpha, blend_alpha), for each image.
    """

    name: str
    pool: str
    shares: tuple[float, ...]
    transforms: str = "none"
    loss_weight: float = 1.0
    labels: str = "hard"
    schedule: str = "constant"
    at_most: int | None = None
    blend: BlendKind = "none"
    blend_alpha: float = 0.3

    @property
    def is_even(self) -> bool:
        """Whether all classes have one share, so that an image's origin says nothing about its label."""
        return len(set(self.shares)) <= 1

    @property
    def has_plain_targets(self) -> bool:
        """Whether a synthetic image counts as much as a real one and is as sure of its label."""
        return self.loss_weight == 1.0 and self.labels == "hard"

    def share(self, labels: NDArray[np.int64] | None = None) -> float:
        """Share of all draws that are synthetic while the schedule is at its full value.

        Args:
            labels: those that occur in a training, by default all; drawn equally often.
        """
        chosen = self.shares if labels is None else [self.shares[int(k)] for k in labels]
        return self.shares[0] if self.is_even else float(np.mean(chosen))

    def factor(self, step: int, steps: int) -> float:
        """In [0, 1]: what the schedule makes of the shares at a step of a training."""
        if self.schedule == "falling":
            return 1.0 - step / steps
        if self.schedule == "reals_last":
            return 1.0 if step < REALS_LAST * steps else 0.0
        return 1.0

    def used(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Indices, ascending, of the synthetic images that are used: the first `at_most` of each class.

        Args:
            labels: (m,) of the pool.
        Returns:
            (at most m,) int64.
        """
        if self.at_most is None:
            return np.arange(len(labels), dtype=np.int64)
        first = [np.flatnonzero(labels == label)[: self.at_most] for label in np.unique(labels)]
        return np.sort(np.concatenate(first)) if first else np.zeros(0, np.int64)

    def weights(self, labels: NDArray[np.int64], *, synthetic: bool, factor: float = 1.0) -> dict[int, float] | None:
        """How often each label occurs among the synthetic or the real draws, so that all classes are drawn equally.

        Args:
            labels: that occur in the training.
            synthetic: of the synthetic draws, else of the real ones.
            factor: of the schedule.
        Returns:
            label -> weight; None where all are the same.
        """
        if self.is_even:
            return None
        shares = {int(k): self.shares[int(k)] * factor for k in labels}
        return {k: s if synthetic else 1.0 - s for k, s in shares.items()}

    def dependence(self) -> float:
        """Mutual information of label and origin among the draws, in bits, classes drawn equally often; 0 if even."""
        inside = np.asarray(self.shares, dtype=np.float64)
        whole = inside.mean()
        found = 0.0
        for p, q in ((inside, whole), (1.0 - inside, 1.0 - whole)):
            some = p > 0.0
            found += float((p[some] * np.log2(p[some] / q)).sum()) / len(inside)
        return max(0.0, found)


def build_policy(
    name: str, section: MixingSection, class_names: Sequence[str], scarce_labels: Sequence[int]
) -> MixingPolicy:
    """The policy that a section of params.yaml describes, for the classes of a data set.

    Args:
        name: of the section.
        section: what a person wrote.
        class_names: in label order.
        scarce_labels: labels of the scarce classes.
    Raises:
        ConfigError: `shares` names a class that there is not, or nothing synthetic is left.
    """
    unknown = sorted(set(section.shares) - set(class_names))
    if unknown:
        raise ConfigError(
            f"challenge.policies.{name}.shares: {unknown[0]!r} is no class; there are {', '.join(class_names)}"
        )
    shares = tuple(
        section.shares.get(class_name, section.share if section.classes == "all" or label in scarce_labels else 0.0)
        for label, class_name in enumerate(class_names)
    )
    if not any(shares):
        raise ConfigError(f"challenge.policies.{name} gives every class a share of 0; raise share or shares")
    return MixingPolicy(
        name=name,
        pool=section.pool,
        shares=shares,
        transforms=section.transforms,
        loss_weight=section.loss_weight,
        labels=section.labels,
        schedule=section.schedule,
        at_most=section.at_most,
        blend=section.blend,
        blend_alpha=section.blend_alpha,
    )


def policy_record(policy: MixingPolicy, class_names: Sequence[str]) -> dict[str, object]:
    """What `read_policy` reads back: JSON values, shares by class name."""
    return {
        "name": policy.name,
        "pool": policy.pool,
        "shares": dict(zip(class_names, policy.shares, strict=True)),
        "transforms": policy.transforms,
        "loss_weight": policy.loss_weight,
        "labels": policy.labels,
        "schedule": policy.schedule,
        "at_most": policy.at_most,
        "blend": policy.blend,
        "blend_alpha": policy.blend_alpha,
        "label_origin_bits": round(policy.dependence(), 6),
    }


def read_policy(record: Mapping[str, object], class_names: Sequence[str]) -> MixingPolicy:
    """The policy of a `policy_record`.

    Raises:
        ConfigError: a value that no policy has.
    """
    values = {key: value for key, value in record.items() if key not in ("name", "label_origin_bits")}
    section = MixingSection.model_validate(values)
    return build_policy(str(record.get("name", "")), section, class_names, range(len(class_names)))


def sure_rows(labels: NDArray[np.int64], sureness: NDArray[np.float32], n_classes: int) -> NDArray[np.float32]:
    """Targets of images whose label is not certain (`MixingPolicy.labels`).

    Args:
        labels: (...) int64.
        sureness: (...) float32 in [0, 1] that the label is right.
        n_classes: of the data set.
    Returns:
        (..., n_classes) float32: the sureness at the label, the rest spread evenly over the others; of sum 1.
    """
    rest = (1.0 - sureness) / max(1, n_classes - 1)
    rows = np.repeat(rest[..., None], n_classes, axis=-1).astype(np.float32)
    np.put_along_axis(rows, labels[..., None], sureness[..., None], axis=-1)
    return rows
