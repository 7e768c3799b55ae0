"""What an arm is: one way of training the classifier, as data.

Owns the table of classical arms, which use real images alone, and the meaning of `BASE+POLICY`: a classical arm, or
`best` for the one chosen in the fold, with synthetic images mixed in. Every arm gets the same steps, the same initial
weights and the same seeds.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from synthgen.config import MEASURED_POLICY
from synthgen.dataset.mixing import MixingPolicy
from synthgen.dataset.transforms import Policy
from synthgen.errors import ConfigError

Sampling = Literal["natural", "balanced"]
Loss = Literal["cross_entropy", "weighted", "logit_adjusted"]
Mix = Literal["none", "mixup", "cutmix", "either"]
RealPool = Literal["none", "duplicate", "control", "paste", "paste_whole", "pseudo_labelled"]
Head = Literal["joint", "retrained"]
PASTING: tuple[RealPool, ...] = ("paste", "paste_whole")


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
        real_pool: share of the draws taken from repeated reals (`duplicate`), mildly transformed ones (`control`), or
            composites of real regions and plentiful backgrounds (`paste`: regions by masks; `paste_whole`: ellipses),
            or images without a label, labelled by a teacher of the same training (`pseudo_labelled`).
        head: `retrained`: the last part of the training fits the last layer alone, anew and with balanced draws, on
            features learned from images as they occur (cRT, Kang et al. 2020, arXiv:1910.09217, section 4.1).
        mixing: how synthetic images are mixed in; None: real images alone.
    """

    name: str
    description: str
    sampling: Sampling = "balanced"
    loss: Loss = "cross_entropy"
    transforms: Policy | None = None
    mix: Mix = "none"
    real_pool: RealPool = "none"
    head: Head = "joint"
    mixing: MixingPolicy | None = None


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
        ArmSpec("mild", "balanced + transforms at half strength", transforms="mild"),
        ArmSpec("strong", "balanced + transforms at 1.6 times the strength", transforms="strong"),
        ArmSpec("strongest", "balanced + transforms at 2.4 times the strength", transforms="strongest"),
        ArmSpec("trivialaugment", "balanced + TrivialAugment", transforms="trivialaugment"),
        ArmSpec("randaugment", "balanced + RandAugment", transforms="randaugment"),
        ArmSpec("mixup", "balanced + transforms + MixUp", transforms="classical", mix="mixup"),
        ArmSpec("mixup_mild", "balanced + transforms at half strength + MixUp", transforms="mild", mix="mixup"),
        ArmSpec(
            "mixup_strong", "balanced + transforms at 1.6 times the strength + MixUp", transforms="strong", mix="mixup"
        ),
        ArmSpec("cutmix", "balanced + transforms + CutMix", transforms="classical", mix="cutmix"),
        ArmSpec("mixed", "balanced + transforms + MixUp or CutMix", transforms="classical", mix="either"),
        ArmSpec(
            "decoupled",
            "as they are + transforms, then the last layer anew and balanced",
            sampling="natural",
            transforms="classical",
            head="retrained",
        ),
        ArmSpec(
            "duplicate", "classical, a share of draws repeated reals", transforms="classical", real_pool="duplicate"
        ),
        ArmSpec(
            "control",
            "classical, a share of draws mildly transformed reals",
            transforms="classical",
            real_pool="control",
        ),
        ArmSpec(
            "paste",
            "classical, a share of draws real regions pasted on plentiful backgrounds",
            transforms="classical",
            real_pool="paste",
        ),
        ArmSpec(
            "paste_whole",
            "classical, a share of draws large parts of reals blended into plentiful backgrounds, no masks",
            transforms="classical",
            real_pool="paste_whole",
        ),
        ArmSpec(
            "pseudo_labelled",
            "classical, a share of draws unlabelled images with the labels that a first training is sure of",
            transforms="classical",
            real_pool="pseudo_labelled",
        ),
    )
}

REGULARISED = (
    "paste",
    *("strongest", "mixup_strong", "strong"),
    *("mixup", "mixed", "cutmix", "paste_whole", "pseudo_labelled", "classical"),
    *("logit_adjusted", "decoupled", "control", "duplicate", "trivialaugment", "randaugment"),
    *("mixup_mild", "mild", "weighted", "balanced", "real"),
)
"""The classical arms from the most to the least regularised: by the strength of transforms, then by what mixing and
other images add; before all the one that alone uses the user's masks. Of arms that cannot be told apart the first is
chosen (docs/method.md, protocol 3)."""

BEST = "best"
CHALLENGER = f"{BEST}+{MEASURED_POLICY}"


def needs_unlabelled(name: str) -> bool:
    """Whether the classical arm called `name` trains on images without a label; False where there is no such arm."""
    return name in CLASSICAL_ARMS and CLASSICAL_ARMS[name].real_pool == "pseudo_labelled"


def trains_teacher(arm: ArmSpec, real_share: float, batch: int) -> bool:
    """Whether a training of `arm` begins with one of a teacher, of as many steps; `real_share` as for `plan_draws`."""
    return arm.real_pool == "pseudo_labelled" and round(real_share * batch) > 0


def measured_arm(arms: Sequence[str]) -> str:
    """The arm that the verdict is about: `best+synthetic` if it is among `challenge.arms`, else the first."""
    return CHALLENGER if CHALLENGER in arms else arms[0]


def split_arm(name: str, policies: Collection[str]) -> tuple[str, str]:
    """(base, policy) of `BASE+POLICY`; the base is a classical arm or `best`, the one chosen in the fold.

    Raises:
        ConfigError: naming what there is.
    """
    base, _, policy = name.partition("+")
    if base not in {BEST, *CLASSICAL_ARMS} or policy not in policies:
        raise ConfigError(
            f"challenge.arms: {name!r} is not BASE+POLICY; a base is best or one of {', '.join(CLASSICAL_ARMS)}, a "
            f"policy one of {', '.join(sorted(policies))} (challenge.policies)"
        )
    return base, policy


def classical_arm(name: str) -> ArmSpec:
    """The classical arm called `name`.

    Raises:
        ConfigError: naming the arms there are.
    """
    if name not in CLASSICAL_ARMS:
        raise ConfigError(f"evaluate.arms: {name!r} is not a classical arm; there are {', '.join(CLASSICAL_ARMS)}")
    return CLASSICAL_ARMS[name]


def challenge_arm(name: str, base: ArmSpec, policy: MixingPolicy) -> ArmSpec:
    """The arm called `name`: `base` with synthetic images mixed in by `policy`."""
    return replace(base, name=name, description=f"{base.description} + {describe(policy)}", mixing=policy)


def searched_arm(name: str, base: ArmSpec, policy: MixingPolicy | None) -> ArmSpec:
    """As `challenge_arm`, by a policy that was searched for; None: `base` itself, without synthetic images."""
    if policy is not None:
        return challenge_arm(name, base, policy)
    return replace(base, name=name, description=f"{base.description}, no synthetic images")


def describe(policy: MixingPolicy) -> str:
    """A policy in few words, for tables: what differs from the default is said."""
    words = ["synthetic" if policy.name == "synthetic" else f"synthetic ({policy.name})"]
    words.append(f"{100 * policy.share():.0f} %" if policy.is_even else "shares by class")
    if policy.pool != "default":
        words.append(f"of the {policy.pool} GAN")
    if policy.transforms != "none":
        words.append(f"{policy.transforms} transforms")
    if policy.loss_weight != 1.0:
        words.append(f"weight {policy.loss_weight:g}")
    if policy.labels != "hard":
        words.append("the teacher's sureness as label")
    if policy.schedule != "constant":
        words.append(policy.schedule.replace("_", " "))
    if policy.blend != "none":
        words.append(f"blended with reals by {'MixUp' if policy.blend == 'mixup' else 'CutMix'}")
    if policy.at_most is not None:
        words.append(f"at most {policy.at_most} images a class")
    return ", ".join(words)
