"""Adam and RMSprop by torch's own kernels, without torch's optimizer class.

`torch.optim.Optimizer` imports torch's compiler at its first use: 4.6 s of a core, measured, in every process of every
stage, for nothing, as no stage compiles. The functional form of the same update does not. Owns the moments of a list of
parameters and their exact resume; refuses a state of other parameters.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.rmsprop import rmsprop

from synthgen.errors import ArtifactError


class Optimizer(ABC):
    """What the loops know of an optimiser.

    Attributes:
        parameters: in the order they were given in.
        lr: step size; may be changed between steps, and is no part of the state: it follows from the schedule.
    """

    parameters: list[Tensor]
    lr: float

    def zero_grad(self) -> None:
        """Forgets the gradients, so that the next backward writes them instead of adding to them."""
        for parameter in self.parameters:
            parameter.grad = None

    @abstractmethod
    def step(self) -> None:
        """One update of every parameter that has a gradient."""

    @abstractmethod
    def _slots(self) -> Mapping[str, list[Tensor]]:
        """Name -> one tensor per parameter, everything that an update reads and writes besides the parameters."""

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything that an exact resume needs, besides the parameters and `lr`.

        Returns:
            "NAME.INDEX" -> the tensor in use, not a copy: the next step changes it.
        """
        return {f"{name}.{i}": tensor for name, slot in self._slots().items() for i, tensor in enumerate(slot)}

    @torch.no_grad()
    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes up what `state_tensors` gave: the steps that follow are those of the uninterrupted run.

        Args:
            tensors: on any device; copied.
        Raises:
            ArtifactError: keys, shapes or dtypes of another optimiser or of other parameters; nothing is changed then.
        """
        own = self.state_tensors()
        if own.keys() != tensors.keys():
            missing, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
            raise ArtifactError(
                f"optimiser state has {len(tensors)} tensors, needs {len(own)}: missing {missing[:3]}, unknown "
                f"{unknown[:3]}; it belongs to another optimiser or network: delete the checkpoint and start again"
            )
        for key, tensor in own.items():
            stored = tensors[key]
            if stored.shape != tensor.shape or stored.dtype != tensor.dtype:
                raise ArtifactError(
                    f"optimiser state {key} is {tuple(stored.shape)} {stored.dtype}, needs {tuple(tensor.shape)} "
                    f"{tensor.dtype}; it belongs to another network: delete the checkpoint and start again"
                )
        for key, tensor in own.items():
            tensor.copy_(tensors[key])


class Adam(Optimizer):
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
        self.first = _zeros_like(self.parameters)
        self.second = _zeros_like(self.parameters)
        self.steps = [torch.zeros((), dtype=torch.float32, device=p.device) for p in self.parameters]

    def _slots(self) -> Mapping[str, list[Tensor]]:
        return {"first": self.first, "second": self.second, "steps": self.steps}

    @torch.no_grad()
    def step(self) -> None:
        """One update of every parameter that has a gradient."""
        at, grads = _with_gradient(self.parameters)
        adam(
            [self.parameters[i] for i in at],
            grads,
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


class RMSprop(Optimizer):
    """RMSprop (Tieleman and Hinton 2012, lecture 6e), without momentum, as WGAN and the first DCGANs use it."""

    def __init__(self, parameters: Iterable[Tensor], *, lr: float, alpha: float = 0.99, eps: float = 1e-8) -> None:
        """Starts with mean squares of zero.

        Args:
            parameters: float tensors that require grad, all on one device.
            lr: step size; may be changed between steps.
            alpha: decay of the mean square.
            eps: added to its root.
        """
        self.parameters = list(parameters)
        self.lr, self.alpha, self.eps = lr, alpha, eps
        self.square = _zeros_like(self.parameters)
        # torch counts steps though the update does not read them; on the CPU, as its own optimizer keeps them
        self.steps = [torch.zeros((), dtype=torch.float32) for _ in self.parameters]

    def _slots(self) -> Mapping[str, list[Tensor]]:
        return {"square": self.square, "steps": self.steps}

    @torch.no_grad()
    def step(self) -> None:
        """One update of every parameter that has a gradient."""
        at, grads = _with_gradient(self.parameters)
        rmsprop(
            [self.parameters[i] for i in at],
            grads,
            [self.square[i] for i in at],
            [],
            [],
            [self.steps[i] for i in at],
            foreach=True,  # torch has no fused kernel for it
            lr=self.lr,
            alpha=self.alpha,
            eps=self.eps,
            weight_decay=0.0,
            momentum=0.0,
            centered=False,
        )


def _zeros_like(parameters: list[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(parameter, memory_format=torch.preserve_format) for parameter in parameters]


def _with_gradient(parameters: list[Tensor]) -> tuple[list[int], list[Tensor]]:
    """Indices of the parameters that have a gradient, and the gradients."""
    found = [(i, parameter.grad) for i, parameter in enumerate(parameters) if parameter.grad is not None]
    return [i for i, _ in found], [grad for _, grad in found]
