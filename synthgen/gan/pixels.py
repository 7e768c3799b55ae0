"""Between stored pixels and what networks see: uint8 (N, H, W, C) and float32 (N, C, H, W) in [-1, 1]."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_unit_range(images: NDArray[np.uint8]) -> Tensor:
    """(N, H, W, C) uint8 to (N, C, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def to_uint8(images: Tensor) -> NDArray[np.uint8]:
    """(N, C, H, W) float32 in [-1, 1] to (N, H, W, C) uint8, rounded."""
    scaled = images.add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).contiguous().cpu().numpy()
