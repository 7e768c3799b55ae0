"""What an arm is: one way of training the classifier, as data.

Owns the table of arms. Classical arms use real images alone; `best+...` arms add a pool to whichever
classical arm was chosen in the fold. Every arm gets the same steps, the same initial weights and the same seeds.
"""

from dataclasses import dataclass, replace
from typing import Literal

from synthgen.dataset.transforms import Policy
from synthgen.errors import ConfigError

Sampling = Literal["natural", "balanced"]
Loss = Literal["cross_entropy", "weighted", "logit_adjusted"]
Mix = Literal["none", "mixup", "cutmix", "either"]
RealPool = Literal["none", "duplicate", "control"]
SyntheticPool = Literal["none", "default", "shared"]


@dataclass(frozen=True)
class ArmSpec:
    """One way of training the classifier.

    Attributes:
        name: as in params.yaml, paths and tables.
        description: one line for people.
        sampling: of the real images: as they occur, or every class equally often.
        loss: cross-entropy; weighted by inverse class frequency; or logit-adjusted
            (Menon et al. 2021, arXiv:2007.07314).
        transforms: policy of the label-preserving transforms of the real images; None leaves them as they are.
        mix: MixUp (Zhang et al. 2018), CutMix (Yun et al. 2019) or either by chance, within a batch.
        real_pool: share of the draws taken from repeated reals (`duplicate`) or mildly transformed ones (`control`).
        synthetic_pool: share of the draws taken from synthetic images of all classes, not transformed again.
    """

    name: str
    description: str
    sampling: Sampling = "balanced"
    loss: Loss = "cross_entropy"
    transforms: Policy | None = None
    mix: Mix = "none"
    real_pool: RealPool = "none"
    synthetic_pool: SyntheticPool = "none"


CLASSICAL_ARMS = {
    arm.name: arm
    for arm in (
        ArmSpec("real", "images as they are", sampling="natural"),
        ArmSpec("balanced", "class-balanced sampling"),
        ArmSpec("weighted", "class-weighted loss", sampling="natural", loss="weighted"),
        ArmSpec(
            "logit_adjusted",
            "logit-adjusted loss + transforms",
            sampling="natural",
            loss="logit_adjusted",
            transforms="classical",
        ),
        ArmSpec("classical", "balanced + transforms (albumentations)", transforms="classical"),
        ArmSpec("trivialaugment", "balanced + TrivialAugment", transforms="trivialaugment"),
        ArmSpec("randaugment", "balanced + RandAugment", transforms="randaugment"),
        ArmSpec("mixup", "balanced + transforms + MixUp", transforms="classical", mix="mixup"),
        ArmSpec("cutmix", "balanced + transforms + CutMix", transforms="classical", mix="cutmix"),
        ArmSpec("mixed", "balanced + transforms + MixUp or CutMix", transforms="classical", mix="either"),
        ArmSpec(
            "duplicate", "classical, a share of draws repeated reals", transforms="classical", real_pool="duplicate"
        ),
        ArmSpec(
            "control",
            "classical, a share of draws mildly transformed reals",
            transforms="classical",
            real_pool="control",
        ),
    )
}

SYNTHETIC_ARMS = {
    arm.name: arm
    for arm in (
        ArmSpec("synthetic", "balanced + synthetic", synthetic_pool="default"),
        ArmSpec(
            "synthetic+classical",
            "balanced + transforms + synthetic",
            transforms="classical",
            synthetic_pool="default",
        ),
    )
}

# Added to the classical arm that was chosen inside the fold.
BEST_ARMS: dict[str, SyntheticPool] = {"best+synthetic": "default", "best+shared": "shared"}
CHALLENGER = "best+synthetic"


def classical_arm(name: str) -> ArmSpec:
    """The classical arm called `name`.

    Raises:
        ConfigError: naming the arms there are.
    """
    if name not in CLASSICAL_ARMS:
        raise ConfigError(f"evaluate.arms: {name!r} is not a classical arm; there are {', '.join(CLASSICAL_ARMS)}")
    return CLASSICAL_ARMS[name]


def challenge_arm(name: str, chosen: ArmSpec | None) -> ArmSpec:
    """The arm with synthetic images called `name`.

    Args:
        name: one of SYNTHETIC_ARMS or BEST_ARMS.
        chosen: the classical arm of the fold, which a `best+...` arm builds on.
    Raises:
        ConfigError: naming the arms there are.
    """
    if name in SYNTHETIC_ARMS:
        return SYNTHETIC_ARMS[name]
    if name not in BEST_ARMS or chosen is None:
        known = ", ".join([*SYNTHETIC_ARMS, *BEST_ARMS])
        raise ConfigError(f"challenge.arms: {name!r} is not an arm with synthetic images; there are {known}")
    return replace(
        chosen,
        name=name,
        description=f"{chosen.description} + synthetic ({BEST_ARMS[name]})",
        synthetic_pool=BEST_ARMS[name],
    )
