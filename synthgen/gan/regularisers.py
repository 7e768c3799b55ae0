"""What keeps the game from running away: gradient penalties, anchors, consistency, clipping, first weights.

Owns formulas of logits, gradients and parameters, each with its paper; refuses to weigh them (the loop knows the
weights), to read files and to wait for the device: norms come back as tensors.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

InitialisationName = Literal["default", "normal", "orthogonal"]

_WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)  # convolutions and transposed ones, 1 to 3 dimensions
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
_POWER_ITERATIONS = 15  # as torch's spectral_norm starts with


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


def wasserstein_penalty(
    critic: Callable[[Tensor], Tensor], reals: Tensor, fakes: Tensor, generator: torch.Generator
) -> Tensor:
    """One-centred gradient penalty between reals and fakes (WGAN-GP): E[(|grad D(x^)|_2 - 1)^2].

    Args:
        critic: (N, C, H, W) images to (N,) logits; must judge each image by itself, so without batch norm or
            statistics of the batch (section 4, "No critic batch normalization").
        reals, fakes: (N, C, H, W) float32 in [-1, 1]; row i of both has the same label.
        generator: of the mixing shares, one per image, on the device of the images.
    Returns:
        () float32, before the weight lambda (10 in the paper).
    Source: Gulrajani et al. 2017, arXiv:1704.00028, algorithm 1.
    """
    share = torch.rand((len(reals), 1, 1, 1), generator=generator, device=generator.device)
    between = torch.lerp(fakes.detach(), reals.detach(), share).requires_grad_()  # x^ = e x + (1 - e) G(z)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    # vector_norm: its derivative at a gradient of zero is 0, that of a plain square root is not finite
    norm: Tensor = torch.linalg.vector_norm(gradient.flatten(1), dim=1)  # (N,)
    return (norm - 1.0).square().mean()


@dataclass(frozen=True)
class LecamAnchors:
    """Moving averages of D's logits; the tensors are updated in place and belong into a checkpoint.

    Attributes:
        real: () float32, of logits of reals (alpha_R).
        fake: () float32, of logits of fakes (alpha_F).
    """

    real: Tensor
    fake: Tensor

    @classmethod
    def at_zero(cls, device: torch.device) -> "LecamAnchors":
        """Anchors of a game that has not begun; let them follow for some ticks before `lecam` is given a weight."""
        return cls(torch.zeros((), device=device), torch.zeros((), device=device))

    @torch.no_grad()
    def update(self, real_logits: Tensor, fake_logits: Tensor, decay: float) -> None:
        """Moves both averages towards this batch, in place, without waiting for the device.

        Args:
            real_logits, fake_logits: (N,), of D's step.
            decay: 0.99 in the paper.
        Source: Tseng et al. 2021, arXiv:2104.03310, eq. 4.
        """
        self.real.lerp_(real_logits.detach().mean().to(self.real.dtype), 1.0 - decay)
        self.fake.lerp_(fake_logits.detach().mean().to(self.fake.dtype), 1.0 - decay)


def lecam(real_logits: Tensor, fake_logits: Tensor, anchors: LecamAnchors) -> Tensor:
    """LeCam regulariser: pulls D(x) to the anchor of the fakes and D(G(z)) to the anchor of the reals.

    Args:
        real_logits, fake_logits: (N,), of D's step.
        anchors: moving averages of the same logits. Logits need a zero point: relativistic pairing leaves the
            mean of all logits free, and the term then only ties it down.
    Returns:
        () float32, E[|D(x) - alpha_F|^2] + E[|D(G(z)) - alpha_R|^2], before its weight (0.3 is usual).
    Source: Tseng et al. 2021, arXiv:2104.03310, eq. 3.
    """
    return (real_logits - anchors.fake).square().mean() + (fake_logits - anchors.real).square().mean()


def consistency(logits: Tensor, transformed_logits: Tensor) -> Tensor:
    """Consistency regulariser: D is to answer the same after a transform that keeps the meaning.

    Args:
        logits, transformed_logits: (N,) of the same images, plain and transformed.
    Returns:
        () float32, E[(D(x) - D(T(x)))^2], before its weight (10 in the paper).
    Source: Zhang et al. 2020 (CR-GAN), arXiv:1910.12027, section 3, on the last layer.
    """
    return (logits - transformed_logits).square().mean()


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Euclidean norm of all gradients together.

    Args:
        parameters: those without a gradient count as zero.
    Returns:
        () float32 on their device; nothing waits for the device.
    """
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return nn.utils.get_total_norm(grads)


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scales all gradients, in place, so that their common norm is at most `max_norm`.

    Args:
        parameters: as given to the optimiser.
        max_norm: above 0. A norm that is not finite stays visible: the gradients become NaN, not zero.
    Returns:
        () float32, the norm before clipping, on the device; nothing waits for the device.
    Source: Pascanu et al. 2013, arXiv:1211.5063, algorithm 1.
    """
    with_gradients = [parameter for parameter in parameters if parameter.grad is not None]
    norm = gradient_norm(with_gradients)
    nn.utils.clip_grads_with_norm_(with_gradients, max_norm, norm)
    return norm


@torch.no_grad()
def initialise(network: nn.Module, kind: InitialisationName) -> None:
    """First weights, in place, from torch's global random numbers: call it under `fork_rng` with a seed set.

    Parameters that a module holds directly (modulated convolutions, learned constants) keep the start that its author
    gave them; weights under spectral norm are reached, and their singular vectors found again.

    Args:
        network: not yet trained.
        kind: "default" leaves every module as it initialised itself. "normal": N(0, 0.02) for weights of
            convolutions and dense layers, N(1, 0.02) for scales of norms, 0 for biases. "orthogonal": orthogonal
            weights of convolutions, dense layers and embeddings, 0 for biases; norms as they are.
    Source: normal: Radford et al. 2016 (DCGAN), arXiv:1511.06434, section 4 (scales of norms: its authors' code);
        orthogonal: Saxe et al. 2014, arXiv:1312.6120, used by Brock et al. 2019 (BigGAN), arXiv:1809.11096, section 3.
    """
    if kind == "default":
        return
    for module in network.modules():
        if isinstance(module, _WEIGHTED):
            _fill(_stored_weight(module), kind)
            if isinstance(module.bias, Tensor):
                nn.init.zeros_(module.bias)
            _refresh_spectral_norm(module)
        elif kind == "orthogonal" and isinstance(module, nn.Embedding):
            nn.init.orthogonal_(_stored_weight(module))
            _refresh_spectral_norm(module)
        elif kind == "normal" and isinstance(module, _NORMS) and isinstance(module.weight, Tensor):
            nn.init.normal_(module.weight, 1.0, 0.02)
            if isinstance(module.bias, Tensor):
                nn.init.zeros_(module.bias)


def _fill(weight: Tensor, kind: InitialisationName) -> None:
    if kind == "orthogonal":
        nn.init.orthogonal_(weight)
    else:
        nn.init.normal_(weight, 0.0, 0.02)


def _stored_weight(module: nn.Module) -> Tensor:
    """The leaf tensor behind `module.weight`, also where a parametrization stands before it."""
    if nn.utils.parametrize.is_parametrized(module, "weight"):
        parametrizations = module.parametrizations
        assert isinstance(parametrizations, nn.ModuleDict)
        stored = parametrizations["weight"].original
    else:
        stored = module.weight
    assert isinstance(stored, Tensor)
    return stored


def _refresh_spectral_norm(module: nn.Module) -> None:
    """Spectral norm follows the weights by one power iteration per forward: catch up with the new ones at once."""
    if not nn.utils.parametrize.is_parametrized(module, "weight"):
        return
    was_training = module.training
    module.train()
    for _ in range(_POWER_ITERATIONS):
        _ = module.weight  # computing the weight in training mode runs one power iteration
    module.train(was_training)
