"""The adversarial game: relativistic pairing with zero-centred gradient penalties.

Owns formulas, in the paper's order; source: Huang et al. 2024 (R3GAN), arXiv:2501.05441, section 2, and
Jolicoeur-Martineau 2019, arXiv:1807.00734. Each real is paired with a fake of the same label.
"""

import torch
from torch import Tensor
from torch.nn import functional


def d_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Discriminator's loss: mean softplus(-(D(x) - D(G(z)))).

    Args:
        real_logits, fake_logits: (N,), row i of both has the same label.
    Returns:
        () float32, ln 2 where D cannot tell them apart.
    """
    return functional.softplus(fake_logits - real_logits).mean()


def g_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Generator's loss: mean softplus(-(D(G(z)) - D(x))).

    Args:
        real_logits, fake_logits: (N,), row i of both has the same label.
    Returns:
        () float32, ln 2 where D cannot tell them apart.
    """
    return functional.softplus(real_logits - fake_logits).mean()


def gradient_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Zero-centred gradient penalty: R1 on reals, R2 on fakes.

    Args:
        logits: (N,) raw discriminator outputs for `images`.
        images: (N, C, H, W) float32 in [-1, 1], requiring grad.
    Returns:
        (N,) squared gradient norm, before the gamma/2 weight.
    Source: Mescheder et al. 2018, arXiv:1801.04406.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3))
