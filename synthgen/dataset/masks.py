"""Where on an image its class shows: binary masks of local changes, given by the user or found weakly.

Owns reading the user's PNGs into the geometry of the prepared images, and finding regions that a reconstruction from
the plentiful class does not explain. Refuses masks of another size than their picture, and answers None, never a guess
over the whole image, where nothing stands out. Which rows may be looked at is the caller's: weak masks of a fold are
found from its training rows alone.
"""

import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy import ndimage

from synthgen.config import PrepareSection
from synthgen.dataset.raw import REASONS, FilePayload, QuarantineRow, RefusedError, is_utf8, kind_reason, printable
from synthgen.errors import SourceError, TrainingError

MIN_PLENTIFUL = 16
MASK_REASONS = {
    "mask_size": "a mask of another size than its picture",
    "mask_shared": "a bare name that several pictures have; put the mask into the folder of its class",
    "mask_without_image": "a mask whose picture does not exist",
}
"""Reasons of quarantined masks beside those of `raw.REASONS`; the picture itself stays."""
MIN_SHARE = 0.25
_MAX_FITTED = 1024  # a Gram matrix of this side takes under a second
_CHUNK = 256
_EIGHT = np.ones((3, 3), dtype=bool)  # neighbours over corners count, else a thin crack falls into pieces


@dataclass(frozen=True)
class RegionMask:
    """A region of one prepared image, and how good a region it is.

    Attributes:
        pixels: (H, W) bool.
        area: share of the image, in (0, 1].
        n_components: pieces that touch nowhere, not even at a corner.
        strength: highest score over the threshold for weak masks, above 1; 1.0 for the user's.
    """

    pixels: NDArray[np.bool_]
    area: float
    n_components: int
    strength: float


def _region(pixels: NDArray[np.bool_], strength: float) -> RegionMask:
    return RegionMask(pixels, float(pixels.mean()), int(ndimage.label(pixels, _EIGHT)[1]), strength)


def read_masks(
    folder: Path,
    sources: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    section: PrepareSection,
    *,
    min_share: float = MIN_SHARE,
) -> list[RegionMask | None]:
    """Reads the user's masks and squashes them as `prepare` squashed the pictures.

    The mask of `a/b/name.jpg` is `a/b/name.png` below `folder`, else `name.png` directly in it. Palette pictures:
    every index but 0 is inside; others: values above half of 255 (of 1 for 1-bit), so that soft rims stay out.

    Args:
        folder: of the masks.
        sources: n names of the raw pictures, as in the manifest.
        sizes: n (width, height) of the raw pictures after EXIF rotation, as in the manifest.
        section: `image_size`, `max_pixels` and `max_bytes`.
        min_share: of a prepared pixel that the region must cover. A region that covers so much of no pixel keeps
            the pixels that it covers most.
    Returns:
        n entries; None where there is no mask file or nothing is marked in it.
    Raises:
        SourceError: not one mask was found, or a mask cannot be read or is of another size than its picture.
    """
    masks: list[RegionMask | None] = []
    n_files = 0
    for source, size in zip(sources, sizes, strict=True):
        path = _mask_path(folder, source)
        n_files += path is not None
        try:
            masks.append(None if path is None else _read_mask(path, size, section, min_share))
        except RefusedError as refused:
            raise SourceError(f"mask {path} is not used: {refused.reason}, {refused.detail}; replace it") from refused
    if sources and n_files == 0:
        raise _none_found(folder, sources)
    return masks


@dataclass(frozen=True)
class FoundMasks:
    """What a folder of masks holds for a list of pictures.

    Attributes:
        regions: index of the picture -> its region; pictures without a mask file or with an empty one are not in it.
        quarantine: masks that are not used and why, by their names inside the folder, sorted.
    """

    regions: dict[int, RegionMask]
    quarantine: list[QuarantineRow]


def gather_masks(
    folder: Path,
    sources: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    section: PrepareSection,
    *,
    others: Sequence[str] = (),
) -> FoundMasks:
    """Reads the user's masks as `read_masks` does, and puts a bad one aside instead of stopping at it.

    Args:
        folder: of the masks.
        sources, sizes, section: see `read_masks`.
        others: names of pictures that are not used; their masks are neither read nor reported.
    Raises:
        SourceError: the folder cannot be listed, or holds a mask for none of the pictures.
    """
    bare = Counter(PurePosixPath(source).stem for source in {*sources, *others})
    quarantine: list[QuarantineRow] = []
    regions: dict[int, RegionMask] = {}
    taken = {name for source in others for name in _mask_names(source)}
    n_files = 0
    for i, (source, size) in enumerate(zip(sources, sizes, strict=True)):
        path = _mask_path(folder, source)
        if path is None:
            continue
        n_files += 1
        name = path.relative_to(folder).as_posix()
        taken.add(name)
        try:
            if name != _mask_names(source)[0] and bare[path.stem] > 1:
                raise RefusedError("mask_shared", f"{bare[path.stem]} pictures are called {path.stem}")
            region = _read_mask(path, size, section)
        except RefusedError as refused:
            quarantine.append(QuarantineRow(printable(name), refused.reason, refused.detail))
            continue
        if region is not None:
            regions[i] = region
    if sources and n_files == 0:
        raise _none_found(folder, sources)
    for name, reason in _files_below(folder):
        if name not in taken:
            why = reason or "mask_without_image"
            quarantine.append(QuarantineRow(printable(name), why, {**REASONS, **MASK_REASONS}[why]))
    return FoundMasks(regions, sorted(set(quarantine)))


def _none_found(folder: Path, sources: Sequence[str]) -> SourceError:
    return SourceError(
        f"no mask for any of {len(sources)} images in {folder}; the mask of {printable(sources[0])} is expected "
        f"as {printable(_mask_names(sources[0])[0])} or by its bare name"
    )


def _mask_names(source: str) -> tuple[str, str]:
    """Names inside the mask folder, the preferred one first."""
    name = PurePosixPath(source).with_suffix(".png")
    return name.as_posix(), name.name


def _files_below(folder: Path) -> Iterator[tuple[str, str | None]]:
    """(name inside `folder`, reason why it must not be opened or None) of all entries that are no folders."""
    pending = [folder]
    while pending:
        current = pending.pop()
        try:
            with os.scandir(current) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            raise SourceError(f"{current} cannot be listed ({error.strerror}); see prepare.masks") from error
        for entry in entries:
            mode = entry.stat(follow_symlinks=False).st_mode
            if entry.is_dir(follow_symlinks=False):
                pending.append(Path(entry.path))
            else:
                name = Path(entry.path).relative_to(folder).as_posix()
                yield name, kind_reason(mode) if is_utf8(name) else "bad_name"


def _mask_path(folder: Path, source: str) -> Path | None:
    name = PurePosixPath(source)
    if name.is_absolute() or ".." in name.parts:
        raise SourceError(f"{printable(source)} leaves the mask folder {folder}; use names inside the data folder")
    for candidate in (folder / wanted for wanted in _mask_names(source)):
        if candidate.is_symlink() or candidate.exists():
            return candidate
    return None


def _read_mask(
    path: Path, size: tuple[int, int], section: PrepareSection, min_share: float = MIN_SHARE
) -> RegionMask | None:
    """The region, or None where nothing is marked; raises `RefusedError` for a mask that cannot be used."""
    content = FilePayload(str(path)).read(section.max_bytes)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of sizes far under our own limit
            assert isinstance(content.value, bytes)
            with Image.open(BytesIO(content.value), formats=("PNG",)) as picture:
                if picture.width * picture.height > section.max_pixels:
                    raise RefusedError(
                        "too_many_pixels",
                        f"{picture.width} x {picture.height} pixels, over prepare.max_pixels {section.max_pixels}",
                    )
                picture.load()
                inside = _inside(ImageOps.exif_transpose(picture))
    except (RefusedError, MemoryError):
        raise
    except Exception as error:  # a decoder may raise anything
        raise RefusedError("damaged", f"it cannot be read as a PNG ({' '.join(str(error).split())})") from error
    if inside.size != size:
        raise RefusedError("mask_size", f"it is {inside.width} x {inside.height}, its picture {size[0]} x {size[1]}")
    side = section.image_size
    # BOX is the mean over the area that a prepared pixel stands for, and the nearest pixel where it enlarges
    share = np.asarray(inside.resize((side, side), Image.Resampling.BOX), dtype=np.float64) / 255.0  # (S, S)
    highest = float(share.max())
    return None if highest == 0.0 else _region(share >= min(min_share, highest), 1.0)


def _inside(picture: Image.Image) -> Image.Image:
    """Any mode -> `L` of 0 and 255."""
    if picture.mode == "P":
        inside = np.asarray(picture) > 0
    elif picture.mode.startswith("I"):
        inside = np.asarray(picture).astype(np.int64) * 2 > 65535
    else:
        inside = np.asarray(picture.convert("L")) > 127
    return Image.fromarray(inside.astype(np.uint8) * np.uint8(255))


@dataclass(frozen=True)
class WeakMaskRules:
    """What counts as a local change.

    Attributes:
        n_components: principal components of the plentiful class at most; a third of its fitted images at most.
        quantile: of the highest score per plentiful image that a region's peak has to exceed: 0.8 means that a
            fifth of the good images would show a region too.
        grow: a region extends over neighbours whose score exceeds this share of the threshold.
        ringing: and exceeds this share of the image's highest score.
        max_regions: kept, those with the largest summed score.
        max_area: larger finds are no local change.
        dilation: share of the side by which a region is widened at last.
    """

    n_components: int = 150
    quantile: float = 0.8
    grow: float = 0.6
    ringing: float = 0.35
    max_regions: int = 3
    max_area: float = 0.5
    dilation: float = 1 / 64


def weak_masks(
    images: NDArray[np.uint8],
    plentiful: NDArray[np.uint8],
    rng: np.random.Generator,
    rules: WeakMaskRules | None = None,
    groups: NDArray[np.str_] | None = None,
) -> list[RegionMask | None]:
    """Finds what a reconstruction from the plentiful class does not explain.

    Images are high-passed, relieved of row and column medians (streaks, stripes) and divided by their own robust
    spread. The remainder of a projection on the principal components of half of the plentiful images is blurred at
    three scales and divided by its spread over the other half, position by position. Regions are connected pixels
    over a low threshold with a peak over a high one.

    Args:
        images: (m, H, W, C) uint8 of scarce classes.
        plentiful: (n, H, W, C) uint8 of the plentiful class, at least 16.
        rng: divides the plentiful images into halves.
        rules: None takes the defaults.
        groups: (n,) str, plentiful images of one object; then the halves share no object, else what an image has to
            exceed is measured on near-duplicates of those that were fitted, and is far too low for a new object.
    Returns:
        m entries; None where nothing stands out or too much does.
    Raises:
        TrainingError: fewer than 16 plentiful images, or other sizes.
    Source: reconstruction from normal images as in Bergmann et al. 2019 (MVTec AD, section 4.1), here by PCA;
        hysteresis as in Canny 1986.
    """
    rules = rules or WeakMaskRules()
    if len(plentiful) < MIN_PLENTIFUL:
        raise TrainingError(
            f"{len(plentiful)} plentiful images, at least {MIN_PLENTIFUL} are needed to find weak masks; give masks"
        )
    if images.shape[1:] != plentiful.shape[1:]:
        raise TrainingError(f"images of {images.shape[1:]} and {plentiful.shape[1:]}; prepare them to one size")
    first, second = _halves(len(plentiful), groups, rng)
    fitted, held_out = plentiful[first], plentiful[second]
    basis, mean = _principal_components(_flattened(fitted), min(rules.n_components, len(fitted) // 3))
    scales = _scales(plentiful.shape[1])
    scores = np.concatenate([_remainder(chunk, basis, mean, scales) for chunk in _chunks(held_out)])  # (n/2, s, H, W)
    spread = np.sqrt(np.square(scores).mean(axis=0))  # (s, H, W)
    smooth = plentiful.shape[1] / 32
    spread = ndimage.gaussian_filter(spread, (0, smooth, smooth), mode="nearest") + 1e-6
    threshold = float(np.quantile((scores / spread).max(axis=(1, 2, 3)), rules.quantile))
    masks: list[RegionMask | None] = []
    for chunk in _chunks(images):
        z = (_remainder(chunk, basis, mean, scales) / spread).max(axis=1)  # (N, H, W)
        masks += [_largest_regions(one, threshold, rules) for one in z]
    return masks


def _halves(
    n: int, groups: NDArray[np.str_] | None, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Two sets of rows below `n` without a common group, at most `_MAX_FITTED` each; by rows if there is one group."""
    if groups is not None and len(names := np.unique(groups)) > 1:
        first = np.isin(groups, rng.permutation(names)[::2])
    else:
        first = np.isin(np.arange(n), rng.permutation(n)[::2])
    halves = [rng.permutation(np.flatnonzero(side))[:_MAX_FITTED] for side in (first, ~first)]
    return np.sort(halves[0]), np.sort(halves[1])


def _chunks(images: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    return [images[start : start + _CHUNK] for start in range(0, len(images), _CHUNK)]


def _scales(side: int) -> tuple[float, ...]:
    return tuple(max(0.5, sigma * side / 64) for sigma in (0.7, 1.5, 3.0))


def _flattened(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, H, W, C) uint8 to (N, H * W * C) float32: high-passed, without streaks, in units of its own spread."""
    x = images.astype(np.float32)
    sigma = images.shape[1] / 8
    x = x - ndimage.gaussian_filter(x, (0, sigma, sigma, 0), mode="nearest")
    x = x - np.median(x, axis=1, keepdims=True)
    x = x - np.median(x, axis=2, keepdims=True)
    # four grey levels keep flat images from being blown up to noise
    spread = 1.4826 * np.median(np.abs(x), axis=(1, 2, 3), keepdims=True) + 4.0
    flat: NDArray[np.float32] = (x / spread).reshape(len(x), -1).astype(np.float32)  # (N, H * W * C)
    return flat


def _principal_components(x: NDArray[np.float32], n: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(N, D) to an orthonormal basis (k, D) with k <= n, and the mean (D,); by the Gram matrix, as N is below D."""
    mean = x.mean(axis=0)
    centred = (x - mean).astype(np.float64)
    values, vectors = np.linalg.eigh(centred @ centred.T)  # ascending
    kept = [int(i) for i in np.argsort(-values)[:n] if values[i] > 1e-6 * max(values[-1], 1e-12)]
    basis = (vectors[:, kept].T @ centred) / np.sqrt(values[kept])[:, None]  # (k, D)
    return basis.astype(np.float32), mean


def _remainder(
    images: NDArray[np.uint8], basis: NDArray[np.float32], mean: NDArray[np.float32], scales: tuple[float, ...]
) -> NDArray[np.float32]:
    """(N, H, W, C) uint8 to (N, n_scales, H, W) float32, at least 0: the largest over the colours."""
    x = _flattened(images) - mean
    x = (x - (x @ basis.T) @ basis).reshape(images.shape)  # (N, H, W, C)
    blurred = [np.abs(ndimage.gaussian_filter(x, (0, s, s, 0), mode="nearest")).max(axis=3) for s in scales]
    return np.stack(blurred, axis=1)


def _largest_regions(z: NDArray[np.float32], threshold: float, rules: WeakMaskRules) -> RegionMask | None:
    peak = float(z.max())
    if peak <= threshold:
        return None
    # a strong change rings through the high-pass filter far beyond itself, so its own height raises the bar
    numbered, n = ndimage.label(z > max(threshold * rules.grow, peak * rules.ringing), _EIGHT)
    index = np.arange(1, n + 1)
    peaks = ndimage.maximum(z, numbered, index)
    sums = ndimage.sum(z, numbered, index)
    kept = [int(i) for i in index[np.argsort(-sums, kind="stable")] if peaks[i - 1] > threshold][: rules.max_regions]
    n_wider = max(1, round(rules.dilation * len(z)))
    pixels = ndimage.binary_dilation(np.isin(numbered, kept), _EIGHT, iterations=n_wider)
    region = _region(pixels, peak / max(threshold, 1e-12))
    return region if region.area <= rules.max_area else None
