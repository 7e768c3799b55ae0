"""MixUp and CutMix of a synthetic image and a real one: how much of the real image, where, and what label that makes.

Owns the random shapes and what they do to pixels and to labels; the arms, the search and `SyntheticMix` share it. Which
real image meets which synthetic one is decided by those who draw images. Refuses to draw from any global generator.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BlendKind = Literal["none", "mixup", "cutmix"]


@dataclass(frozen=True)
class Blend:
    """How much of a real image stands in each of many images: a weight inside a box, nothing outside.

    MixUp is a box of the whole image, CutMix a weight of 1.

    Attributes:
        weights: (...) float32 in [0, 1], of the real image inside the box.
        boxes: (..., 4) int64: first row, row after the last, first column, column after the last.
        shares: (...) float32 in [0, 1], of the label: the weight times the box's share of the area.
    """

    weights: NDArray[np.float32]
    boxes: NDArray[np.int64]
    shares: NDArray[np.float32]


def draw_blend(kind: BlendKind, alpha: float, n: int, size: tuple[int, int], rng: np.random.Generator) -> Blend:
    """The shapes of `n` blends, each drawn for itself.

    Args:
        kind: `mixup` or `cutmix`; `none` blends nothing.
        alpha: above 0; of Beta(alpha, alpha), from which the share of the real image is drawn, before a box of CutMix
            is cut off at the edge of the image.
        n: images.
        size: height and width in pixels.
        rng: to draw from; what it draws first does not depend on `kind`.
    Returns:
        weights (n,), boxes (n, 4), shares (n,).
    Source: Zhang et al. 2018, arXiv:1710.09412, equation 2; Yun et al. 2019, arXiv:1905.04899, section 3.1.
    """
    height, width = size
    drawn = rng.beta(alpha, alpha, n)
    whole = np.array([0, height, 0, width], dtype=np.int64)
    if kind == "none":
        nothing = np.zeros(n, np.float32)
        return Blend(nothing, np.repeat(whole[None], n, axis=0), nothing)
    if kind == "mixup":
        weights = drawn.astype(np.float32)
        return Blend(weights, np.repeat(whole[None], n, axis=0), weights)
    sides = np.sqrt(drawn)[:, None] * [height, width]  # (n, 2)
    centres = rng.random((n, 2)) * [height, width]  # (n, 2)
    corners = np.stack([centres - sides / 2.0, centres + sides / 2.0], axis=2)  # (n, 2, 2): axis of the image, end
    limits = np.array([height, width])[:, None]
    boxes = np.clip(np.rint(corners), 0, limits).astype(np.int64).reshape(n, 4)  # (n, 2, 2) -> (n, 4)
    areas = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2])
    return Blend(np.ones(n, np.float32), boxes, (areas / (height * width)).astype(np.float32))


def blend_images(images: Tensor, partners: Tensor, weights: Tensor, boxes: Tensor) -> Tensor:
    """Puts each partner into its image.

    Args:
        images: (N, C, H, W) floating point, any range.
        partners: (N, C, H, W), the same dtype and range.
        weights: (N,) float32 as in `Blend`.
        boxes: (N, 4) int64 as in `Blend`.
    Returns:
        (N, C, H, W), the same dtype; an image whose weight is 0, and all outside of a box, stays to the last bit.
    """
    height, width = images.shape[2:]
    rows, columns = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    inside = ((rows >= boxes[:, 0, None]) & (rows < boxes[:, 1, None]))[:, :, None]  # (N, H, 1)
    inside = inside & ((columns >= boxes[:, 2, None]) & (columns < boxes[:, 3, None]))[:, None]  # (N, H, W)
    weight = weights[:, None, None] * inside  # (N, H, W)
    return torch.lerp(images, partners, weight[:, None].to(images.dtype))


def blend_rows(
    rows: NDArray[np.float32], labels: NDArray[np.int64], shares: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Targets of blended images.

    Args:
        rows: (..., n_classes) float32 targets of the images alone; their sums are the images' weights in the loss.
        labels: (...) int64 of the partners, each of weight 1.
        shares: (...) float32 as in `Blend`.
    Returns:
        (..., n_classes) float32: (1 - share) x row + share x the partner's label; rows of sum 1 keep it.
    """
    kept = rows * (np.float32(1.0) - shares)[..., None]
    own = np.take_along_axis(kept, labels[..., None], axis=-1)
    np.put_along_axis(kept, labels[..., None], own + shares[..., None], axis=-1)
    return kept
