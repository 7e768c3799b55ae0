"""The adversarial games: relativistic pairing (the default), non-saturating, hinge and Wasserstein.

Owns formulas of logits, in the papers' order and symbols, the targets of cross entropy, and the term that draws samples
towards a classifier's boundary; refuses images, networks and penalties (`synthgen.gan.regularisers`). `LOSSES` maps a
name of the configuration to D's and G's half of a game.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from synthgen.errors import ConfigError
from synthgen.gan.regularisers import gradient_penalty

__all__ = [
    "LOSSES",
    "AdversarialLoss",
    "LossName",
    "Targets",
    "auxiliary_loss",
    "boundary_loss",
    "d_loss",
    "g_loss",
    "gradient_penalty",
    "log_odds",
    "soft_targets",
]

LossName = Literal["relativistic", "non_saturating", "hinge", "wasserstein"]


@dataclass(frozen=True)
class Targets:
    """What cross entropy asks D to answer; see `soft_targets`.

    Attributes:
        real: (N,) float32 in [0, 1], for the logits of reals; 1 without smoothing and noise.
        fake: (N,) float32 in [0, 1], for the logits of fakes; 0 without noise.
    """

    real: Tensor
    fake: Tensor


class DiscriminatorLoss(Protocol):
    """D's half of a game."""

    def __call__(self, real_logits: Tensor, fake_logits: Tensor, targets: Targets | None = None) -> Tensor:
        """(N,) logits of reals and fakes, and targets or None, to a () loss."""
        ...


class GeneratorLoss(Protocol):
    """G's half of a game."""

    def __call__(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """(N,) logits of reals and fakes to a () loss."""
        ...


@dataclass(frozen=True)
class AdversarialLoss:
    """One game.

    Attributes:
        discriminator: (real_logits, fake_logits, targets) -> (); only `non_saturating` looks at `targets`.
        generator: (real_logits, fake_logits) -> ().
        uses_reals_for_generator: whether `generator` reads `real_logits`. Where it does not, G's step need not show
            the reals to D, and whatever is passed in their place is ignored.
    """

    discriminator: DiscriminatorLoss
    generator: GeneratorLoss
    uses_reals_for_generator: bool


def d_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Discriminator's loss of relativistic pairing: mean softplus(-(D(x) - D(G(z)))).

    Args:
        real_logits, fake_logits: (N,), row i of both has the same label.
    Returns:
        () float32, ln 2 where D cannot tell them apart.
    Source: Huang et al. 2024 (R3GAN), arXiv:2501.05441, section 2; Jolicoeur-Martineau 2019, arXiv:1807.00734.
    """
    return functional.softplus(fake_logits - real_logits).mean()


def g_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Generator's loss of relativistic pairing: mean softplus(-(D(G(z)) - D(x))).

    Args:
        real_logits, fake_logits: (N,), row i of both has the same label.
    Returns:
        () float32, ln 2 where D cannot tell them apart.
    Source: as `d_loss`.
    """
    return functional.softplus(real_logits - fake_logits).mean()


def soft_targets(n: int, smoothing: float, noise: float, generator: torch.Generator) -> Targets:
    """Targets of cross entropy with one-sided label smoothing and label noise.

    Args:
        n: reals, and as many fakes.
        smoothing: reals get 1 - smoothing; fakes stay at 0, else D would reward G for what it does already.
        noise: probability with which a target changes sides: a real's becomes 0, a fake's 1 - smoothing.
        generator: the targets are made on its device; nothing is drawn where `noise` is 0.
    Returns:
        Targets of (n,) float32 each.
    Raises:
        ConfigError: smoothing outside [0, 1), or noise outside [0, 0.5].
    Source: Salimans et al. 2016, arXiv:1606.03498, section 3.4; noise: Chintala et al. 2016, "How to Train a GAN?",
        tip 6.
    """
    if not 0.0 <= smoothing < 1.0:
        raise ConfigError(f"label smoothing is {smoothing:g}, outside [0, 1); 0.1 is usual, 0 turns it off")
    if not 0.0 <= noise <= 0.5:
        raise ConfigError(
            f"label noise is {noise:g}, outside [0, 0.5]: above 0.5 D would learn the game backwards; "
            "0.05 is usual, 0 turns it off"
        )
    device = generator.device
    real = torch.full((n,), 1.0 - smoothing, device=device)
    fake = torch.zeros(n, device=device)
    if noise == 0.0:
        return Targets(real, fake)
    swap_real, swap_fake = torch.rand((2, n), generator=generator, device=device) < noise
    return Targets(torch.where(swap_real, fake, real), torch.where(swap_fake, real, fake))


def auxiliary_loss(class_logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of D's auxiliary classifier: -log P(C = c | X), for D on reals and fakes, and for G on fakes.

    Args:
        class_logits: (N, K) raw scores.
        labels: (N,) int64 below K.
    Returns:
        () float32, ln K for a classifier that knows nothing.
    Source: Odena et al. 2017 (AC-GAN), arXiv:1610.09585, eq. 3.
    """
    return functional.cross_entropy(class_logits, labels)


def log_odds(class_logits: Tensor, labels: Tensor) -> Tensor:
    """How sure a classifier is of a label: log P(c | x) / (1 - P(c | x)), 0 where it is as likely as all others.

    Args:
        class_logits: (N, K) raw scores, K at least 2.
        labels: (N,) int64 below K.
    Returns:
        (N,) float32, above 0 only where the classifier names the label.
    """
    own = class_logits.gather(1, labels[:, None])  # (N, 1)
    others = class_logits.scatter(1, labels[:, None], -math.inf)  # (N, K)
    return own.squeeze(1) - others.logsumexp(1)


def boundary_loss(odds: Tensor, certainty: float) -> Tensor:
    """Draws samples into the band on their own side of a classifier's boundary: max(0, a - a_q) + max(0, -a).

    GAMO's generator maximises the classifier's error (Mullick et al. 2019, arXiv:1903.09730, eq. 1). That has no bound:
    beyond the boundary it goes on pushing, and an image of another class serves it best. This term is 0 between the
    boundary, where P(c | x) is 0.5, and `certainty`, pulls surer samples towards the boundary and brings those that
    crossed it back. In log-odds and not in probabilities, whose gradient fades for just the sure samples.

    Args:
        odds: (N,) log-odds a of each sample's own label (`log_odds`).
        certainty: probability q of the label, in (0.5, 1), up to which a sample is left alone; a_q is its log-odds.
    Returns:
        (N,) float32, 0 or above, with a slope of 1, 0 or -1.
    Raises:
        ConfigError: a certainty outside (0.5, 1).
    Source: ours; the game is that of arXiv:1903.09730 and arXiv:1903.03496.
    """
    if not 0.5 < certainty < 1.0:
        raise ConfigError(
            f"certainty is {certainty:g}, outside (0.5, 1): there is no band to draw samples to; take 0.75"
        )
    return functional.relu(odds - math.log(certainty / (1.0 - certainty))) + functional.relu(-odds)


def _relativistic_d(real_logits: Tensor, fake_logits: Tensor, targets: Targets | None = None) -> Tensor:
    return d_loss(real_logits, fake_logits)


def _non_saturating_d(real_logits: Tensor, fake_logits: Tensor, targets: Targets | None = None) -> Tensor:
    """Binary cross entropy -E[t log D + (1 - t) log(1 - D)], of reals plus of fakes (arXiv:1406.2661, eq. 1)."""
    if targets is None:
        return functional.softplus(-real_logits).mean() + functional.softplus(fake_logits).mean()
    on_reals = functional.binary_cross_entropy_with_logits(real_logits, targets.real)
    return on_reals + functional.binary_cross_entropy_with_logits(fake_logits, targets.fake)


def _non_saturating_g(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """-E[log D(G(z))]: the same fixed point as minimax, with gradients where D wins (arXiv:1406.2661, section 3)."""
    return functional.softplus(-fake_logits).mean()


def _hinge_d(real_logits: Tensor, fake_logits: Tensor, targets: Targets | None = None) -> Tensor:
    """E[max(0, 1 - D(x))] + E[max(0, 1 + D(G(z)))] (Lim and Ye 2017, arXiv:1705.02894; Miyato et al. 2018, eq. 16)."""
    return functional.relu(1.0 - real_logits).mean() + functional.relu(1.0 + fake_logits).mean()


def _hinge_g(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """-E[D(G(z))] (Miyato et al. 2018, arXiv:1802.05957, eq. 17)."""
    return -fake_logits.mean()


def _wasserstein_d(real_logits: Tensor, fake_logits: Tensor, targets: Targets | None = None) -> Tensor:
    """E[D(G(z))] - E[D(x)]: minus the distance, for a critic with gradients of norm 1 (arXiv:1701.07875, eq. 2)."""
    return fake_logits.mean() - real_logits.mean()


def _wasserstein_g(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """-E[D(G(z))] (Arjovsky et al. 2017, arXiv:1701.07875, algorithm 1)."""
    return -fake_logits.mean()


LOSSES: Mapping[LossName, AdversarialLoss] = MappingProxyType(
    {
        "relativistic": AdversarialLoss(_relativistic_d, g_loss, uses_reals_for_generator=True),
        "non_saturating": AdversarialLoss(_non_saturating_d, _non_saturating_g, uses_reals_for_generator=False),
        "hinge": AdversarialLoss(_hinge_d, _hinge_g, uses_reals_for_generator=False),
        "wasserstein": AdversarialLoss(_wasserstein_d, _wasserstein_g, uses_reals_for_generator=False),
    }
)
