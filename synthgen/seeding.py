"""Named seeds: every random stream is derived from the run's seed and a readable name.

Owns the derivation; refuses global state (nothing here calls `torch.manual_seed`), so that two
stages, folds or repeats can never share a stream by accident.
"""

import hashlib

import numpy as np
import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream called `names`, independent of every other name.

    Args:
        seed: the run's seed (params.yaml, `seed`).
        names: what the stream is for, e.g. `("pretrain", "f0", "latents")`.
    Returns:
        int in [0, 2**63).
    """
    text = "\x1f".join([str(seed), *[str(name) for name in names]])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """A numpy generator for the stream called `names`."""
    return np.random.default_rng(derive_seed(seed, *names))


def torch_generator(seed: int, *names: str | int, device: str = "cpu") -> torch.Generator:
    """A torch generator for the stream called `names`, on `device`."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *names))
