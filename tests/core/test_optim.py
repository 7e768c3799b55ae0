"""Our Adam is torch's, number for number, and does not import torch's compiler."""

import subprocess
import sys

import pytest
import torch

from synthgen.optim import Adam


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


def test_a_parameter_without_gradient_stays() -> None:
    used, unused = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    optimizer = Adam([used, unused], lr=0.1)
    used.sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    assert torch.equal(unused, torch.ones(2))
    assert not torch.equal(used, torch.ones(2))


def test_the_compiler_is_not_imported() -> None:
    code = (
        "import sys, torch; from synthgen.optim import Adam\n"
        "p = torch.ones(2, requires_grad=True); o = Adam([p], lr=0.1)\n"
        "p.sum().backward(); o.step(); o.zero_grad(); sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0
