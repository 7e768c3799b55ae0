"""Example images for the page: one sprite of tiles per class and origin, as a data URI.

Owns choosing (evenly spaced rows, never the best) and enlarging by whole factors without smoothing.
"""

import base64
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

TILE_PIXELS = 56
GAP_PIXELS = 4


@dataclass(frozen=True)
class Sprite:
    """A picture of several tiles.

    Attributes:
        uri: `data:image/png;base64,...`.
        width, height: pixels.
        n_tiles: images shown.
    """

    uri: str
    width: int
    height: int
    n_tiles: int


def evenly_spaced(n_rows: int, n_wanted: int) -> NDArray[np.int64]:
    """At most `n_wanted` distinct rows of `n_rows`, evenly spaced, the first always among them."""
    n_taken = min(n_rows, n_wanted)
    return (np.arange(n_taken, dtype=np.int64) * n_rows) // max(n_taken, 1)


def example_grid(images: NDArray[np.uint8], n_columns: int) -> Sprite | None:
    """Tiles `images` row by row on a transparent ground, each enlarged by nearest neighbour.

    Args:
        images: (n, H, W, C) uint8, C 1 or 3.
        n_columns: tiles per row.
    Returns:
        None where there is no image.
    """
    if len(images) == 0:
        return None
    n, height, width, _ = images.shape
    factor = max(1, round(TILE_PIXELS / max(height, width)))
    tiles = images.repeat(factor, axis=1).repeat(factor, axis=2)  # (n, fH, fW, C)
    tile_h, tile_w = height * factor, width * factor
    n_columns = min(n_columns, n)
    n_rows = -(-n // n_columns)
    canvas = np.zeros(
        (n_rows * (tile_h + GAP_PIXELS) - GAP_PIXELS, n_columns * (tile_w + GAP_PIXELS) - GAP_PIXELS, 4), dtype=np.uint8
    )
    for index, tile in enumerate(tiles):
        top = (index // n_columns) * (tile_h + GAP_PIXELS)
        left = (index % n_columns) * (tile_w + GAP_PIXELS)
        canvas[top : top + tile_h, left : left + tile_w, :3] = tile
        canvas[top : top + tile_h, left : left + tile_w, 3] = 255
    grey = bool((canvas[..., 0] == canvas[..., 1]).all() and (canvas[..., 1] == canvas[..., 2]).all())
    picture = Image.fromarray(np.ascontiguousarray(canvas[..., [0, 3]]) if grey else canvas)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=9)
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return Sprite(uri, picture.width, picture.height, n)
