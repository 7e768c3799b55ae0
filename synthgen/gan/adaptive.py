"""How strongly D's images are transformed: turned up while D memorises its reals, down while it does not (ADA).

Owns the controller's one number and the overfitting signals it can follow; refuses to transform images
(`synthgen.gan.diffaugment`) and signals that are not finite.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from synthgen.errors import ArtifactError, ConfigError, TrainingError


@dataclass
class AdaptiveStrength:
    """Probability with which a transform is applied, moved by a fixed step per image.

    Source: Karras et al. 2020, arXiv:2006.06676, section 3.

    Attributes:
        strength: in [0, 1]; the `probability` of `diffaugment`.
        target: signal above which D overfits, in (-1, 1); 0.6 in the paper.
        ramp_kimg: thousands of reals in which the strength can go from 0 to 1; 500 in the paper.
    """

    strength: float
    target: float
    ramp_kimg: float

    def __post_init__(self) -> None:
        """Refuses numbers that would freeze or reverse the controller."""
        if not 0.0 <= self.strength <= 1.0:
            raise ConfigError(f"transform strength is {self.strength:g}, outside [0, 1]; start at 0")
        if not -1.0 < self.target < 1.0:
            raise ConfigError(f"ADA target is {self.target:g}, outside (-1, 1), so never crossed; 0.6 is usual")
        if not (self.ramp_kimg > 0.0 and math.isfinite(self.ramp_kimg)):
            raise ConfigError(f"ADA ramp is {self.ramp_kimg:g} kimg, must be above 0; a tenth of the training is usual")

    def update(self, sign_of_real_logits: float, n_images: int) -> None:
        """Moves the strength by n_images / (ramp_kimg * 1000): up above the target, down below, not at it.

        Args:
            sign_of_real_logits: r_t = E[sign(D(x))] in [-1, 1] since the last update (`overfitting_sign`), or
                r_v (`overfitting_held_out`).
            n_images: reals shown since the last update.
        Raises:
            TrainingError: a signal that is not finite.
        """
        if not math.isfinite(sign_of_real_logits):
            raise TrainingError(
                f"overfitting signal is {sign_of_real_logits}, not finite: D's logits diverged; "
                "lower the learning rates or raise the gradient penalty"
            )
        step = n_images / (self.ramp_kimg * 1000.0)
        excess = sign_of_real_logits - self.target
        direction = 0.0 if excess == 0.0 else math.copysign(1.0, excess)
        self.strength = min(1.0, max(0.0, self.strength + direction * step))

    def state(self) -> float:
        """Everything that an exact resume needs: the strength."""
        return self.strength

    def load(self, strength: float) -> None:
        """Takes up a `state`.

        Args:
            strength: in [0, 1].
        Raises:
            ArtifactError: any other number.
        """
        if not 0.0 <= strength <= 1.0:
            raise ArtifactError(
                f"stored transform strength is {strength}, outside [0, 1]: the checkpoint is damaged; "
                "delete it and start the training again"
            )
        self.strength = strength


@torch.no_grad()
def overfitting_sign(real_logits: Tensor, fake_logits: Tensor, relative: bool) -> Tensor:
    """Share of reals that D calls real, minus the share it calls fake: r_t = E[sign(D(x))].

    Args:
        real_logits, fake_logits: (N,) of training images in D's step.
        relative: for losses of differences (relativistic, Wasserstein): their logits have no zero point, adding a
            constant changes nothing, so the sign is taken against the mean of the reals' and the fakes' mean logit.
    Returns:
        () float32 in [-1, 1] on the device: 0 at equilibrium, 1 where D is sure of every training real.
    Source: Karras et al. 2020, arXiv:2006.06676, eq. 1; `relative` is ours.
    """
    middle = 0.5 * (real_logits.mean() + fake_logits.mean()) if relative else 0.0
    return torch.sign(real_logits - middle).mean()


@torch.no_grad()
def overfitting_held_out(train_logits: Tensor, held_out_logits: Tensor, fake_logits: Tensor) -> float:
    """Where held-out reals stand between training reals and fakes: r_v.

    Adding a constant to all logits changes nothing, so it serves relativistic losses as it is. Waits for the device.

    Args:
        train_logits, held_out_logits, fake_logits: (N,), each of its own length.
    Returns:
        (E[D_train] - E[D_held_out]) / (E[D_train] - E[D_fake]): 0 without overfitting, 1 where D takes held-out reals
        for fakes; 0 too where D's means of training reals and fakes are equal, as it then tells nothing apart.
    Raises:
        TrainingError: no images of one of the three kinds.
    Source: Karras et al. 2020, arXiv:2006.06676, eq. 1.
    """
    for kind, logits in (("training", train_logits), ("held-out", held_out_logits), ("fake", fake_logits)):
        if logits.numel() == 0:
            raise TrainingError(f"0 {kind} logits, needs 1 or more: keep images aside for every class that is watched")
    means = torch.stack([logits.float().mean() for logits in (train_logits, held_out_logits, fake_logits)])
    train, held_out, fake = means.tolist()
    return 0.0 if train == fake else (train - held_out) / (train - fake)
