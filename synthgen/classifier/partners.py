"""The real images that are blended into the synthetic ones of a training, in tables of the shape of its draws.

Owns the tables and how a step uses them. Draws no image: `synthgen.classifier.draws` does, for all arms.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthgen.classifier.networks import to_input
from synthgen.dataset.blending import Blend, blend_images, draw_blend
from synthgen.dataset.mixing import MixingPolicy


@dataclass(frozen=True)
class Partners:
    """The real image that goes into each image of a training; into real ones nothing goes.

    Attributes:
        rows: (steps, batch) int64, index in the first source of the draws.
        labels: (steps, batch) int64.
        blend: with (steps, batch) weights and shares and (steps, batch, 4) boxes; 0 for images that stay as they are.
    """

    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    blend: Blend

    def blended(self, images: Tensor, source: Tensor, step: int) -> Tensor:
        """The images of a step with their partners in them.

        Args:
            images: (N, C, H, W) float32, as the network takes them, in the order of the draws.
            source: (n, H, W, C) uint8, the first source of the draws, on the device of `images`.
            step: of the training.
        """
        tables = (self.rows, self.blend.weights, self.blend.boxes)
        rows, weights, boxes = (torch.from_numpy(table[step]).to(images.device) for table in tables)
        return blend_images(images, to_input(source[rows]), weights, boxes)


def no_partners(shape: tuple[int, ...]) -> Partners:
    """Tables of `shape` (steps, batch) by which every image stays as it is."""
    nothing, rows = np.zeros(shape, np.float32), np.zeros(shape, np.int64)
    return Partners(rows, rows, Blend(nothing, np.zeros((*shape, 4), np.int64), nothing))


def place_partners(
    policy: MixingPolicy,
    rows: Sequence[NDArray[np.int64]],
    labels: Sequence[NDArray[np.int64]],
    is_synthetic: NDArray[np.bool_],
    size: tuple[int, int],
    rng: np.random.Generator,
) -> Partners:
    """Gives every synthetic draw of a training its partner, in another order, and the shape of its blend.

    Args:
        policy: `blend` and `blend_alpha`.
        rows, labels: of each step, one real image for each synthetic draw, in any order.
        is_synthetic: (steps, batch).
        size: height and width of the images in pixels.
        rng: of the order and the shapes.
    """
    # draws stand in the order of their labels: without another order, like would meet like
    orders = [rng.permutation(len(of_step)) for of_step in rows]
    found = draw_blend(policy.blend, policy.blend_alpha, int(is_synthetic.sum()), size, rng)
    tables = [np.zeros(is_synthetic.shape, np.int64) for _ in range(2)]
    for table, drawn in zip(tables, (rows, labels), strict=True):
        table[is_synthetic] = np.concatenate([of_step[order] for of_step, order in zip(drawn, orders, strict=True)])
    weights, shares = (np.zeros(is_synthetic.shape, np.float32) for _ in range(2))
    boxes = np.zeros((*is_synthetic.shape, 4), np.int64)
    weights[is_synthetic], shares[is_synthetic], boxes[is_synthetic] = found.weights, found.shares, found.boxes
    return Partners(tables[0], tables[1], Blend(weights, boxes, shares))
