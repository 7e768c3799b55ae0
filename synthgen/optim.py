"""Adam by torch's own kernel, without torch's optimizer class.

`torch.optim.Optimizer` imports torch's compiler at its first use: 4.6 s of a core, measured, in every process of every
stage, for nothing, as no stage compiles. The functional form of the same update does not. Owns the moments of a list of
parameters; refuses nothing that torch does not.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim.adam import adam


class Adam:
    """Adam (Kingma and Ba 2015), with decoupled weight decay (AdamW, Loshchilov and Hutter 2019) if asked for."""

    def __init__(
        self,
        parameters: Iterable[Tensor],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        eps: float = 1e-8,
    ) -> None:
        """Starts with moments of zero.

        Args:
            parameters: float tensors that require grad, all on one device.
            lr: step size; may be changed between steps.
            betas: decay of the first and second moment.
            weight_decay: decoupled from the gradient.
            eps: added to the root of the second moment.
        """
        self.parameters = list(parameters)
        self.lr, self.betas, self.weight_decay, self.eps = lr, betas, weight_decay, eps
        self.fused = bool(self.parameters) and self.parameters[0].device.type in {"cpu", "cuda"}
        self.first = [torch.zeros_like(p, memory_format=torch.preserve_format) for p in self.parameters]
        self.second = [torch.zeros_like(p, memory_format=torch.preserve_format) for p in self.parameters]
        self.steps = [torch.zeros((), dtype=torch.float32, device=p.device) for p in self.parameters]

    def zero_grad(self) -> None:
        """Forgets the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """One update of every parameter that has a gradient."""
        at = [i for i, parameter in enumerate(self.parameters) if parameter.grad is not None]
        adam(
            [self.parameters[i] for i in at],
            [grad for i in at if (grad := self.parameters[i].grad) is not None],
            [self.first[i] for i in at],
            [self.second[i] for i in at],
            [],
            [self.steps[i] for i in at],
            foreach=None if self.fused else True,
            fused=self.fused,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=self.lr,
            weight_decay=self.weight_decay,
            eps=self.eps,
            maximize=False,
            decoupled_weight_decay=self.weight_decay > 0.0,
        )
