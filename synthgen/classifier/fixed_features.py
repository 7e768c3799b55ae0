"""Features that no image has shaped: texture statistics of a small network with fixed random weights.

Owns drawing the weights and describing images by them. Nothing is trained, so images that a teacher or a generator has
seen look no different from others; what is left is how the pixels hang together.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from synthgen.classifier.networks import to_input

CHANNELS = (16, 24, 32)
MIN_SIDE = 4
BATCH = 512


def draw_filters(image_channels: int, generator: torch.Generator) -> list[Tensor]:
    """Three stages of 3x3 filters from a normal distribution, He-scaled.

    Args:
        image_channels: of the images.
        generator: on the CPU.
    Returns:
        one (c_out, c_in, 3, 3) float32 tensor per stage.
    """
    filters, c_in = [], image_channels
    for c_out in CHANNELS:
        drawn = torch.randn(c_out, c_in, 3, 3, generator=generator)
        filters.append(drawn * math.sqrt(2 / (9 * c_in)))
        c_in = c_out
    return filters


@torch.inference_mode()
def describe_texture(filters: list[Tensor], images: NDArray[np.uint8], device: torch.device) -> NDArray[np.float32]:
    """Mean and standard deviation over the image of every filter's response, stage after stage.

    Between stages the side is halved, while it is at least 8; so an image of 8 pixels has two stages.

    Args:
        filters: see `draw_filters`.
        images: (n, H, W, C) uint8.
    Returns:
        (n, d) float32, d being twice the number of filters used.
    """
    side = min(images.shape[1:3])
    n_stages = 1 + sum(side // 2**stage >= MIN_SIDE for stage in range(1, len(filters)))
    used = [stage.to(device) for stage in filters[:n_stages]]
    parts = [np.zeros((0, 2 * sum(len(stage) for stage in used)), np.float32)]
    for start in range(0, len(images), BATCH):
        x = to_input(torch.from_numpy(np.ascontiguousarray(images[start : start + BATCH])).to(device))
        found = []
        for number, stage in enumerate(used):
            x = functional.relu(functional.conv2d(functional.avg_pool2d(x, 2) if number else x, stage, padding=1))
            deviation, mean = torch.std_mean(x, dim=(2, 3))
            found += [mean, deviation]
        parts.append(torch.cat(found, dim=1).float().cpu().numpy())
    return np.concatenate(parts)
