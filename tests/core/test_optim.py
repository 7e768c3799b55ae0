"""Our Adam and RMSprop are torch's, number for number, resume exactly, and do not import torch's compiler."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from synthgen.errors import ArtifactError
from synthgen.optim import Adam, Optimizer, RMSprop


@pytest.mark.parametrize(("weight_decay", "betas"), [(0.0, (0.0, 0.99)), (0.0, (0.9, 0.999)), (0.01, (0.9, 0.999))])
def test_updates_are_those_of_torch(weight_decay: float, betas: tuple[float, float]) -> None:
    start = [torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.ones(5)]
    ours = [p.clone().requires_grad_() for p in start]
    theirs = [p.clone().requires_grad_() for p in start]
    mine = Adam(ours, lr=0.01, betas=betas, weight_decay=weight_decay)
    kind = torch.optim.AdamW if weight_decay else torch.optim.Adam
    reference = kind(theirs, lr=0.01, betas=betas, weight_decay=weight_decay, fused=True)
    for step in range(20):
        mine.lr = reference.param_groups[0]["lr"] = 0.01 / (step + 1)
        for parameters, optimizer in ((ours, mine), (theirs, reference)):
            optimizer.zero_grad()
            loss = sum((p * p * (k + 1)).sum() for k, p in enumerate(parameters))
            loss.backward()  # type: ignore[union-attr]
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("alpha", "eps"), [(0.99, 1e-8), (0.9, 1e-6)])
def test_rmsprop_is_that_of_torch_and_of_the_lecture(alpha: float, eps: float) -> None:
    start = [torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.ones(5)]
    ours = [p.clone().requires_grad_() for p in start]
    theirs = [p.clone().requires_grad_() for p in start]
    plain, squares = [p.clone() for p in start], [torch.zeros_like(p) for p in start]
    mine = RMSprop(ours, lr=0.01, alpha=alpha, eps=eps)
    reference = torch.optim.RMSprop(theirs, lr=0.01, alpha=alpha, eps=eps)
    for step in range(20):
        mine.lr = reference.param_groups[0]["lr"] = 0.01 / (step + 1)
        for k in range(2):
            grad = 2 * plain[k] * (k + 1)
            squares[k] = alpha * squares[k] + (1 - alpha) * grad * grad
            plain[k] = plain[k] - mine.lr * grad / (squares[k].sqrt() + eps)
        for parameters, optimizer in ((ours, mine), (theirs, reference)):
            optimizer.zero_grad()
            _loss(parameters).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    for a, b, c in zip(ours, theirs, plain, strict=True):
        assert torch.equal(a, b)
        assert torch.allclose(a, c, atol=1e-5)


def _loss(parameters: list[Tensor]) -> Tensor:
    return torch.stack([(p * p * (k + 1)).sum() for k, p in enumerate(parameters)]).sum()


def _optimizer(kind: type[Optimizer], parameters: list[Tensor]) -> Optimizer:
    return RMSprop(parameters, lr=0.01) if kind is RMSprop else Adam(parameters, lr=0.01, betas=(0.5, 0.99))


def _train(parameters: list[Tensor], optimizer: Optimizer, n_steps: int) -> None:
    for _ in range(n_steps):
        optimizer.zero_grad()
        _loss(parameters).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _parameters() -> list[Tensor]:
    image = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return [image.contiguous(memory_format=torch.channels_last).requires_grad_(), torch.ones(5, requires_grad=True)]


@pytest.mark.parametrize("kind", [Adam, RMSprop])
def test_a_resumed_run_is_the_uninterrupted_one(kind: type[Optimizer]) -> None:
    whole = _parameters()
    _train(whole, _optimizer(kind, whole), 25)
    first = _parameters()
    before = _optimizer(kind, first)
    _train(first, before, 11)
    stored = {key: tensor.clone().contiguous() for key, tensor in before.state_tensors().items()}
    second = [p.detach().clone().requires_grad_() for p in first]
    after = _optimizer(kind, second)
    after.load_state_tensors(stored)
    _train(second, after, 14)
    for a, b in zip(whole, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", [Adam, RMSprop])
def test_loading_copies(kind: type[Optimizer]) -> None:
    parameters = _parameters()
    one, two = _optimizer(kind, parameters), _optimizer(kind, _parameters())
    _train(parameters, one, 3)
    two.load_state_tensors(one.state_tensors())
    stored = {key: tensor.clone() for key, tensor in two.state_tensors().items()}
    _train(parameters, one, 3)
    assert all(torch.equal(tensor, stored[key]) for key, tensor in two.state_tensors().items())
    assert any(not torch.equal(tensor, stored[key]) for key, tensor in one.state_tensors().items())


@pytest.mark.parametrize("kind", [Adam, RMSprop])
@pytest.mark.parametrize("damage", ["missing", "unknown", "shape", "dtype", "empty"])
def test_the_state_of_something_else_is_refused_and_changes_nothing(kind: type[Optimizer], damage: str) -> None:
    parameters = _parameters()
    optimizer = _optimizer(kind, parameters)
    _train(parameters, optimizer, 2)
    before = {key: tensor.clone() for key, tensor in optimizer.state_tensors().items()}
    state = {key: torch.full_like(tensor, 9.0) for key, tensor in before.items()}
    last = list(state)[-1]
    if damage == "missing":
        del state[last]
    elif damage == "unknown":
        state["third.0"] = torch.zeros(())
    elif damage == "shape":
        state[last] = torch.zeros(7)
    elif damage == "dtype":
        state[last] = state[last].double()
    else:
        state = {}
    with pytest.raises(ArtifactError, match="start again"):
        optimizer.load_state_tensors(state)
    assert all(torch.equal(tensor, before[key]) for key, tensor in optimizer.state_tensors().items())


def test_the_state_of_the_other_optimiser_is_refused() -> None:
    with pytest.raises(ArtifactError, match="another optimiser"):
        Adam(_parameters(), lr=0.1).load_state_tensors(RMSprop(_parameters(), lr=0.1).state_tensors())


@pytest.mark.parametrize("kind", [Adam, RMSprop])
def test_a_parameter_without_gradient_stays(kind: type[Optimizer]) -> None:
    used, unused = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    optimizer = _optimizer(kind, [used, unused])
    used.sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    assert torch.equal(unused, torch.ones(2))
    assert not torch.equal(used, torch.ones(2))
    assert not optimizer.state_tensors()["steps.1"].any()
    optimizer.zero_grad()
    assert used.grad is None


@pytest.mark.parametrize("kind", ["Adam", "RMSprop"])
def test_the_compiler_is_not_imported(kind: str) -> None:
    code = (
        f"import sys, torch; from synthgen.optim import {kind}\n"
        f"p = torch.ones(2, requires_grad=True); o = {kind}([p], lr=0.1)\n"
        "p.sum().backward(); o.step(); o.zero_grad(); o.load_state_tensors(o.state_tensors())\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0
