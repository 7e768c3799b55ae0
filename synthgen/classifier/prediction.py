"""Logits and features of images: the only place where test images meet a network."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from synthgen.classifier.networks import SmallCnn, to_input

BATCH = 512


@torch.inference_mode()
def predict_logits(network: nn.Module, images: NDArray[np.uint8], device: torch.device) -> NDArray[np.float32]:
    """Logits of a classifier.

    Args:
        network: in eval mode, on `device`.
        images: (n, H, W, C) uint8.
    Returns:
        (n, n_classes) float32.
    """
    parts = [
        network(to_input(torch.from_numpy(np.ascontiguousarray(images[a : a + BATCH])).to(device)))
        .float()
        .cpu()
        .numpy()
        for a in range(0, len(images), BATCH)
    ]
    return np.concatenate(parts) if parts else np.zeros((0, 0), dtype=np.float32)


def unit_features(network: SmallCnn, x: Tensor) -> Tensor:
    """Pooled features before the last layer, scaled to unit length; gradients flow through.

    Args:
        network: in eval mode, on the device of `x`.
        x: (n, C, H, W) float32 in [-1, 1].
    Returns:
        (n, d) of norm 1.
    """
    pooled = network.features(x).mean(dim=(2, 3))  # (n, d)
    return torch.nn.functional.normalize(pooled, dim=1)


@torch.inference_mode()
def extract_features(network: SmallCnn, images: NDArray[np.uint8], device: torch.device) -> NDArray[np.float32]:
    """`unit_features` of stored images.

    Args:
        network: in eval mode, on `device`.
        images: (n, H, W, C) uint8.
    Returns:
        (n, d) float32 of norm 1.
    """
    parts = []
    for a in range(0, len(images), BATCH):
        x = to_input(torch.from_numpy(np.ascontiguousarray(images[a : a + BATCH])).to(device))
        parts.append(unit_features(network, x).float().cpu().numpy())
    return np.concatenate(parts) if parts else np.zeros((0, network.head.in_features), dtype=np.float32)
