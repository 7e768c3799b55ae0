"""Real local changes of scarce classes moved onto real backgrounds of plentiful ones.

Owns the bank of regions and the composites: an affine and elastic warp of region and mask, a place inside the image,
brightness and shading fitted to the background, a soft border. It is the classical arm that any generator for local
changes must beat (EXPERIMENTS.md, 3), and what such a generator starts from. Refuses labels without a region.

The fit is additive: the difference background - region in a ring around the mask is continued into it by normalised
convolution, and added. That is the membrane of Poisson blending (Perez et al. 2003, section 2) to the accuracy needed
here, and unlike `cv2.seamlessClone` it takes one channel, touches borders and handles hundreds of images per call.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from synthgen.config import TransformsSection
from synthgen.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from torch import Tensor

_CHUNK = 256


@dataclass(frozen=True)
class DefectBank:
    """Regions of real images that show why an image is of its class.

    The whole images are kept beside the masks: the surroundings are needed to fit the shading, and equal sizes let
    hundreds of regions be warped at once.

    Attributes:
        images: (m, H, W, C) uint8.
        masks: (m, H, W) bool, none empty.
        labels: (m,) int64.
        rows: (m,) int64, rows of the data set that the images are.
    """

    images: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    labels: NDArray[np.int64]
    rows: NDArray[np.int64]

    def __post_init__(self) -> None:
        """Checks the arrays against each other.

        Raises:
            TrainingError: sizes that differ, or an empty mask.
        """
        n = len(self.images)
        lengths = (len(self.masks), len(self.labels), len(self.rows))
        if self.images.ndim != 4 or lengths != (n, n, n) or self.masks.shape != self.images.shape[:3]:
            raise TrainingError(
                f"images {self.images.shape}, masks {self.masks.shape}, labels and rows {lengths[1:]} do not belong "
                "together; give (m, H, W, C), (m, H, W), (m,) and (m,)"
            )
        empty = np.flatnonzero(~self.masks.any(axis=(1, 2)))
        if len(empty):
            raise TrainingError(f"masks {empty[:10].tolist()} are empty; leave these images out of the bank")


@dataclass(frozen=True)
class PasteRanges:
    """How far a region may be changed. All are amplitudes of uniform draws around no change.

    Attributes:
        rotate, shear: degrees.
        scale: share.
        horizontal_flip, vertical_flip: where the label survives them.
        elastic: standard deviation of a smooth displacement, as a share of the side.
        contrast: share by which the region's difference to its surroundings is stretched.
        anywhere: put the region at a random place; False keeps its own.
        feather: width of the soft border, as a share of the side; at least one pixel.
        shading: fit the region to the background around it; False fits the mean brightness of the whole images, for
            regions so large that hardly anything is around them.
    """

    rotate: float = 12.0
    scale: float = 0.12
    shear: float = 8.0
    horizontal_flip: bool = False
    vertical_flip: bool = False
    elastic: float = 0.01
    contrast: float = 0.15
    anywhere: bool = True
    feather: float = 1 / 48
    shading: bool = True

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ConfigError: a value outside its range.
        """
        limits = {"rotate": 180.0, "scale": 0.9, "shear": 45.0, "elastic": 0.1, "contrast": 0.9, "feather": 0.25}
        for name, limit in limits.items():
            value = getattr(self, name)
            if not 0.0 <= value <= limit:
                raise ConfigError(f"paste range {name} {value} is outside 0 to {limit}; choose a value inside")

    @classmethod
    def of(cls, section: TransformsSection) -> "PasteRanges":
        """The ranges that the transforms of the classical arms allow, so that both respect the same labels."""
        return cls(
            rotate=section.rotate,
            scale=min(section.scale, 0.9),
            shear=section.shear,
            horizontal_flip=section.horizontal_flip,
            vertical_flip=section.vertical_flip,
            contrast=min(section.brightness, 0.9),
        )


class Pasted(NamedTuple):
    """Composites and what they are made of.

    Attributes:
        images: (N, H, W, C) uint8.
        masks: (N, H, W) uint8 opacity of the pasted region, 255 inside; the image is the background where it is 0.
        bank_rows: (N,) int64 rows of the bank; `bank.rows[bank_rows]` are rows of the data set.
    """

    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    bank_rows: NDArray[np.int64]


def paste(
    backgrounds: NDArray[np.uint8],
    bank: DefectBank,
    labels: NDArray[np.int64],
    rng: np.random.Generator,
    ranges: PasteRanges | None = None,
) -> Pasted:
    """Puts one random region of the wanted label on each background.

    A region that touches a border of its own image keeps touching that border (mirrored where flipped) and turns by
    a quarter of the range only: a frayed edge does not occur in mid-air.

    Args:
        backgrounds: (N, H, W, C) uint8 real images of plentiful classes, of the bank's size.
        bank: regions.
        labels: (N,) int64 wanted.
        rng: every random number comes from here.
        ranges: None takes the defaults.
    Returns:
        composites, opacities and rows of the bank.
    Raises:
        TrainingError: another size than the bank's, or a label without a region.
    """
    ranges = ranges or PasteRanges()
    if len(labels) != len(backgrounds) or backgrounds.shape[1:] != bank.images.shape[1:]:
        raise TrainingError(
            f"{len(labels)} labels, backgrounds {backgrounds.shape} and a bank of {bank.images.shape[1:]} do not fit; "
            "give one label per background and images of one size"
        )
    missing = sorted(set(labels.tolist()) - set(bank.labels.tolist()))
    if missing:
        raise TrainingError(f"the bank has no region of labels {missing}; give masks for them or leave them out")
    bank_rows = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        wanted = labels == label
        bank_rows[wanted] = rng.choice(np.flatnonzero(bank.labels == label), size=int(wanted.sum()))
    boxes = _boxes(bank.masks)
    images = np.empty_like(backgrounds)
    opacities = np.empty(backgrounds.shape[:3], dtype=np.uint8)
    for start in range(0, len(labels), _CHUNK):
        part = slice(start, start + _CHUNK)
        images[part], opacities[part] = _compose(backgrounds[part], bank, bank_rows[part], boxes, rng, ranges)
    return Pasted(images, opacities, bank_rows)


def _boxes(masks: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(m, H, W) bool to (m, 4): left, top, right, bottom edges of each region in pixels, the last two exclusive."""
    columns, rows = np.any(masks, axis=1), np.any(masks, axis=2)  # (m, W), (m, H)
    height, width = masks.shape[1:]
    edges = [
        columns.argmax(axis=1),
        rows.argmax(axis=1),
        width - np.flip(columns, axis=1).argmax(axis=1),
        height - np.flip(rows, axis=1).argmax(axis=1),
    ]
    return np.stack(edges, axis=1).astype(np.float64)


def _compose(
    backgrounds: NDArray[np.uint8],
    bank: DefectBank,
    bank_rows: NDArray[np.int64],
    boxes: NDArray[np.float64],
    rng: np.random.Generator,
    ranges: PasteRanges,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    import torch
    from torch.nn import functional

    background = _channels_first(backgrounds)  # (N, C, H, W)
    source = torch.cat(
        [_channels_first(bank.images[bank_rows]), _channels_first(bank.masks[bank_rows][..., None]) * 255.0], dim=1
    )
    grid = torch.from_numpy(_sampling_grid(boxes[bank_rows], backgrounds.shape[1:3], rng, ranges))  # (N, H, W, 2)
    # "border": a mask that touches the border goes on beyond it, one that does not has nothing there
    moved = functional.grid_sample(source, grid, mode="bilinear", padding_mode="border", align_corners=False)
    region, mask = moved[:, :-1], moved[:, -1:] / 255.0
    mask = mask / mask.amax((2, 3), keepdim=True).clamp(min=0.1)  # a thin region must not fade by being warped

    side = backgrounds.shape[1]
    radius = max(1, round(ranges.feather * side))
    core = functional.max_pool2d(mask, 2 * radius + 1, stride=1, padding=radius)
    opacity = _blurred(core, radius / 2).clamp(max=1.0)  # (N, 1, H, W)
    opacity = torch.maximum(opacity, mask)

    if ranges.shading:
        width = 2 * radius + 1
        ring = functional.max_pool2d(core, 2 * width + 1, stride=1, padding=width) - core  # (N, 1, H, W)
        offset, level = (_continued(values, ring, side / 16) for values in (background - region, background))
    else:
        offset, level = (values.mean((2, 3), keepdim=True) for values in (background - region, background))
    stretch = torch.from_numpy(1.0 + rng.uniform(-1, 1, (len(bank_rows), 1, 1, 1)) * ranges.contrast).float()
    fitted = level + (region + offset - level) * stretch
    out = torch.lerp(background, fitted, opacity).round().clamp(0, 255).to(torch.uint8)
    # opacity rounded up: where it is written as 0, the background is untouched
    written = (opacity * 255.0).ceil().clamp(0, 255).to(torch.uint8)[:, 0]
    images: NDArray[np.uint8] = out.permute(0, 2, 3, 1).contiguous().numpy()
    return images, written.numpy()


def _channels_first(images: NDArray[np.uint8] | NDArray[np.bool_]) -> "Tensor":
    """(N, H, W, C) to (N, C, H, W) float32, values kept."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float()


def _blurred(x: "Tensor", sigma: float) -> "Tensor":
    """Gaussian blur of (N, C, H, W), borders repeated.

    A product with a banded matrix on either side: at these sides many times faster than depthwise convolutions.
    """
    return _blur_matrix(x.shape[2], sigma) @ x @ _blur_matrix(x.shape[3], sigma).t()


def _blur_matrix(side: int, sigma: float) -> "Tensor":
    """(side, side) float32 whose rows sum to 1; what falls outside counts for the border pixel."""
    import torch

    reach = max(1, round(3 * sigma))
    at = torch.arange(-reach, reach + 1)
    taps = torch.exp(-0.5 * (at / sigma) ** 2)
    columns = (torch.arange(side)[:, None] + at).clamp(0, side - 1)  # (side, 2 * reach + 1)
    return torch.zeros(side, side).scatter_add_(1, columns, (taps / taps.sum()).expand(side, -1).contiguous())


def _continued(values: "Tensor", weight: "Tensor", sigma: float) -> "Tensor":
    """Normalised convolution: (N, C, H, W) values known where (N, 1, H, W) `weight` is, continued everywhere.

    Source: Knutsson and Westin 1993, "Normalized and differential convolution", section 3. Far from all weight the
    weighted mean takes over; without any weight the plain mean.
    """
    total = weight.sum((2, 3), keepdim=True)
    mean = (values * weight).sum((2, 3), keepdim=True) / total.clamp(min=1e-6)
    mean = mean.where(total > 1e-6, values.mean((2, 3), keepdim=True))
    return (_blurred(values * weight, sigma) + 1e-3 * mean) / (_blurred(weight, sigma) + 1e-3)


def _sampling_grid(
    boxes: NDArray[np.float64], size: tuple[int, ...], rng: np.random.Generator, ranges: PasteRanges
) -> NDArray[np.float32]:
    """Where each pixel of the composite comes from in the region's image.

    Args:
        boxes: (N, 4) left, top, right, bottom of the regions in pixels.
        size: height and width.
    Returns:
        (N, H, W, 2) float32, x and y in [-1, 1] as `grid_sample` takes them.
    """
    n, (height, width) = len(boxes), size
    sides = np.array([width, height], dtype=np.float64)
    touches = np.stack([boxes[:, :2] <= 0, boxes[:, 2:] >= sides], axis=2)  # (N, 2 axes, low or high)
    angle = np.radians(rng.uniform(-1, 1, n) * ranges.rotate) * np.where(touches.any(axis=(1, 2)), 0.25, 1.0)
    shear = np.tan(np.radians(rng.uniform(-1, 1, n) * ranges.shear))
    factor = 1.0 + rng.uniform(-1, 1, n) * ranges.scale
    flips = rng.random((n, 2)) < 0.5 * np.array([ranges.horizontal_flip, ranges.vertical_flip])
    mirror = np.where(flips, -1.0, 1.0)  # (N, 2)
    cos, sin = np.cos(angle) * factor, np.sin(angle) * factor
    # forward: rotate and scale after shearing after mirroring; (N, 2, 2), columns x and y
    forward = np.stack([np.stack([cos, cos * shear - sin], 1), np.stack([sin, sin * shear + cos], 1)], axis=1)
    forward = forward * mirror[:, None, :]
    centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2  # (N, 2)
    reach = (np.abs(forward) * half[:, None, :]).sum(axis=2)  # (N, 2) half sides of the warped box
    low, high = np.minimum(reach, sides - reach), np.maximum(reach, sides - reach)
    # a region larger than the image stays where it covers the image
    target = low + rng.random((n, 2)) * (high - low) if ranges.anywhere else np.clip(centre, low, high)
    at_low = np.where(flips, touches[:, :, 1], touches[:, :, 0])
    at_high = np.where(flips, touches[:, :, 0], touches[:, :, 1])
    stretch = np.abs(forward[:, [0, 1], [0, 1]])  # (N, 2) scale along each axis
    target = np.where(at_low, half * stretch, target)
    target = np.where(at_high, sides - half * stretch, target)
    target = np.where(at_low & at_high, sides / 2, target)

    ys, xs = np.mgrid[0:height, 0:width] + 0.5
    relative = np.stack([xs, ys], axis=2)[None] - target[:, None, None, :]  # (N, H, W, 2)
    inverse = np.linalg.inv(forward).transpose(0, 2, 1)  # (N, 2, 2), for rows of points
    back = (relative.reshape(n, -1, 2) @ inverse).reshape(n, height, width, 2)
    back = back + centre[:, None, None, :] + _displacement(n, size, target, rng, ranges.elastic)
    grid: NDArray[np.float32] = (back / sides * 2.0 - 1.0).astype(np.float32)
    return grid


def _displacement(
    n: int, size: tuple[int, ...], target: NDArray[np.float64], rng: np.random.Generator, elastic: float
) -> NDArray[np.float32]:
    """Smooth random displacement (n, H, W, 2) in pixels, 0 at each `target` so that no region leaves its place."""
    import torch
    from torch.nn import functional

    height, width = size
    coarse = torch.from_numpy(rng.standard_normal((n, 2, 5, 5), dtype=np.float32))
    fine = functional.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)
    field = fine.permute(0, 2, 3, 1).numpy() * elastic * max(height, width)  # (n, H, W, 2)
    column = np.clip(target[:, 0].astype(np.int64), 0, width - 1)
    row = np.clip(target[:, 1].astype(np.int64), 0, height - 1)
    return (field - field[np.arange(n), row, column][:, None, None, :]).astype(np.float32)
