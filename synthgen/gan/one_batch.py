"""A part of a batch that several processes share, worked on as if one had all of its rows.

Owns what has to be the same for every number of processes: random numbers drawn for all rows, of which each process
keeps its own, and statistics over all rows (batch norm, the within-class spread of D). Refuses to know how processes
talk: a function that adds a tensor up over them is handed in (`synthgen.gan.distributed`).
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from synthgen.gan.architectures.interface import Discriminator

AddUp = Callable[[Tensor], Tensor]
"""Replaces a contiguous tensor, in place, by its sum over the processes; returns it."""

_DRAWS = (torch.rand, torch.randn, torch.randint)


class _Sum(torch.autograd.Function):
    """Sum over the processes, of any order of derivative: each side's input reaches the loss of every side."""

    @staticmethod
    def forward(x: Tensor, add_up: AddUp) -> Tensor:
        """Any shape to the same."""
        return add_up(x.detach().clone(memory_format=torch.contiguous_format))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, AddUp], output: Tensor) -> None:
        """Keeps no tensor."""
        ctx.add_up = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """The same sum, of gradients; itself differentiable."""
        return _Sum.apply(grads[0], ctx.add_up), None


def _sum(x: Tensor, add_up: AddUp) -> Tensor:
    found: Tensor = _Sum.apply(x, add_up)
    return found


class OneBatch(TorchFunctionMode):
    """Random numbers and batch norm of all rows of a part, for those of one process.

    torch calls this in place of its functions while it is entered; networks, scenes and transforms need not know that
    there are several processes, and nothing is drawn or computed twice but random numbers.
    """

    def __init__(self, rank: int, n: int, add_up: AddUp, noise: torch.Generator, n_rows: int) -> None:
        """Takes the place of this process.

        Args:
            rank, n: every n-th row from `rank` on is this process's.
            add_up: over the processes.
            noise: in the same state in all of them; draws from any other generator are left alone.
            n_rows: of the part.
        """
        super().__init__()
        self.add_up, self.noise, self.n_rows = add_up, noise, n_rows
        self.own = slice(rank, None, n)
        self.n_own = len(range(rank, n_rows, n))

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Draws and batch norm in our way, everything else in torch's."""
        keywords = dict(kwargs or {})
        if keywords.get("generator") is self.noise and func in _DRAWS:
            return self._draw(func, args, keywords)
        if func is functional.batch_norm:
            return self._batch_norm(*args, **keywords)
        return func(*args, **keywords)

    def _draw(self, func: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Tensor:
        """Shapes (n, ...), (2n, ...) for reals and then fakes, and (2, n); any other is drawn once for the batch."""
        bounds = args[:2] if func is torch.randint else ()
        shape = args[len(bounds) :]
        shape = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else tuple(shape)
        own, rows, step = self.own, self.n_rows, self.n_own
        if shape[0] == step:
            drawn: Tensor = func(*bounds, (rows, *shape[1:]), **keywords)
            return drawn[own]  # (n, ...)
        if shape[0] == 2 * step:
            drawn = func(*bounds, (2 * rows, *shape[1:]), **keywords)
            return drawn.view(2, rows, *shape[1:])[:, own].reshape(shape)  # (2n, ...)
        if shape == (2, step):
            drawn = func(*bounds, (2, rows), **keywords)
            return drawn[:, own]  # (2, n)
        drawn = func(*bounds, shape, **keywords)
        return drawn

    def _batch_norm(
        self,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """(N, C, H, W) to the same, by the statistics of all rows (Ioffe and Szegedy 2015, arXiv:1502.03167)."""
        if not training:
            return functional.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
        n_pixels = x.shape[2] * x.shape[3]
        # reals and fakes judged together are twice the rows; every process has as many times its own
        count = self.n_rows * (len(x) // self.n_own) * n_pixels
        values = x.float()
        mean = _sum(values.sum((0, 2, 3)), self.add_up) / count  # (C,)
        centred = values - mean.view(1, -1, 1, 1)
        variance = _sum(centred.square().sum((0, 2, 3)), self.add_up) / count  # (C,)
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean.detach(), momentum)
                running_var.lerp_(variance.detach() * (count / (count - 1)), momentum)
        y = centred * (variance + eps).rsqrt().view(1, -1, 1, 1)
        if weight is not None:
            y = y * weight.view(1, -1, 1, 1)
        if bias is not None:
            y = y + bias.view(1, -1, 1, 1)
        return y.to(x.dtype)


def shared_spread(network: Discriminator, add_up: AddUp, x: Tensor, members: Tensor, n_members: int) -> Tensor:
    """`Discriminator.spread` and `layers.within_class_std` over the rows of all processes.

    Args:
        network: whose weight of the spread counts.
        add_up: over the processes.
        x: (N, C, h, w) of this process; members: (N,) int64 below `n_members`.
    Returns:
        (N, C + 1, h, w).
    """
    # a kind may change the features first; the spread over own rows, the last channel, is replaced
    own = type(network).spread(network, x, members, n_members)  # (N, C + 1, h, w)
    if network.shape.minibatch_std == 0.0:
        return own
    x = own[:, :-1]
    flat = x.flatten(1).float()  # (N, F)
    member = functional.one_hot(members, n_members).to(flat.dtype)  # (N, K)
    counts = add_up(member.sum(0)).clamp(min=1.0)[:, None]  # (K, 1)
    mean = _sum((member.t() @ flat).float(), add_up) / counts  # (K, F)
    variance = _sum((member.t() @ (flat - mean[members]).square()).float(), add_up) / counts  # (K, F)
    std = (variance + 1e-8).sqrt().mean(1)  # (K,)
    spread = std[members].view(-1, 1, 1, 1).expand(-1, 1, x.shape[2], x.shape[3])  # (N, 1, h, w)
    return torch.cat([x, (network.shape.minibatch_std * spread).to(x.dtype)], dim=1)
