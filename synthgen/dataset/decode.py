"""From raw content to prepared pixels: the one place where images are decoded, with Pillow only.

Owns every rule by which a picture of any size and mode becomes uint8 (S, S, C):

- several frames: refused, or the first one by an explicit setting (a phone's MPO is one photograph);
- EXIF rotation is carried out everywhere;
- 16-bit greys: round(value / 257), whatever part of the range the picture uses; 32-bit integers only
  if they fit 16 bits; floats are refused;
- alpha (RGBA, LA, PA, palette or colour-key transparency) is composited on `background`;
- 1-bit, palette, CMYK, YCbCr are converted by Pillow; grey is Pillow's `L` (ITU-R 601);
- size: squashed to a square, not cropped, because a defect at the edge must stay in the picture. A
  picture of the right size keeps its pixels; others go through LANCZOS with box reduction first.

Refuses everything else with a reason: whatever a decoder raises ends as a refusal of that one image.
Formats that make Pillow start other programs (EPS) are not read.
"""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from synthgen.config import PrepareSection
from synthgen.dataset.prepared import pixel_sha256
from synthgen.dataset.raw import Payload, RawContent, RefusedError

FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")

_CONVERTED = {"1", "L", "P", "PA", "LA", "La", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"}
_EXIF_ORIENTATION = 0x0112
_GAP = 3.0  # box reduction stops at three times the target; LANCZOS does the rest (Pillow calls 3.0 as good as exact)


@dataclass(frozen=True)
class Accepted:
    """A prepared image.

    Attributes:
        pixels: the bytes of uint8 (S, S, C).
        pixel_sha256, file_sha256: hex digests of prepared and of raw content.
        width, height: of the raw picture, after EXIF rotation.
        mode: Pillow's name of the raw layout; `;first_frame` is appended where others were left out.
        note: warnings of the decoder, or "".
    """

    pixels: bytes
    pixel_sha256: str
    file_sha256: str
    width: int
    height: int
    mode: str
    note: str


@dataclass(frozen=True)
class Refusal:
    """An image that is not used: a key of `raw.REASONS` and what was seen."""

    reason: str
    detail: str


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)  # a Pillow may have been built without some


def judge_payloads(payloads: Sequence[Payload], section: PrepareSection) -> list[Accepted | Refusal]:
    """Reads and judges raw items in order; what a worker process runs."""
    return [judge_payload(payload, section) for payload in payloads]


def judge_payload(payload: Payload, section: PrepareSection) -> Accepted | Refusal:
    """Reads one raw item and prepares it, or says why not. Raises nothing that a picture can cause."""
    with _pixel_cap(section.max_pixels), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            content = payload.read(section.max_bytes)
            pixels, width, height, mode = prepare_pixels(content, section)
        except RefusedError as refused:
            return Refusal(refused.reason, refused.detail)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            return Refusal("too_many_pixels", f"over prepare.max_pixels {section.max_pixels}")
        except UnidentifiedImageError:
            return Refusal("not_image", "not a picture in a known format")
        except Exception as error:  # a decoder may raise anything: struct.error, ValueError, SyntaxError, MemoryError
            return Refusal("damaged", _describe(error))
    note = "; ".join(sorted({_describe(entry.message) for entry in caught}))
    return Accepted(pixels.tobytes(), pixel_sha256(pixels), content.sha256, width, height, mode, note)


def prepare_pixels(content: RawContent, section: PrepareSection) -> tuple[NDArray[np.uint8], int, int, str]:
    """Decodes and converts one picture.

    Returns:
        (S, S, C) uint8 with S = `image_size` and C = `channels`; width, height and mode of the raw picture.
    Raises:
        RefusedError: by one of the rules above; or whatever the decoder raises.
    """
    if isinstance(content.value, bytes):
        with Image.open(io.BytesIO(content.value), formats=_formats()) as picture:
            return _from_picture(picture, section)
    if isinstance(content.value, np.ndarray):
        pixels, mode = _eight_bit(content.value)
        _check_pixels(pixels.shape[1], pixels.shape[0], section.max_pixels)
        square = _squash(_flatten(Image.fromarray(pixels), section), section)
        return square, pixels.shape[1], pixels.shape[0], mode
    return _from_picture(content.value, section)


def _from_picture(picture: Image.Image, section: PrepareSection) -> tuple[NDArray[np.uint8], int, int, str]:
    width, height = picture.size
    mode = picture.mode
    _check_pixels(width, height, section.max_pixels)
    n_frames = getattr(picture, "n_frames", 1)
    if n_frames > 1 and picture.format != "MPO":
        if section.animated == "refuse":
            raise RefusedError("animated", f"{n_frames} frames; prepare.animated: first_frame would take the first")
        mode += ";first_frame"
    if picture.mode == "F" or picture.mode.startswith("F;"):
        raise RefusedError("float_pixels", f"mode {picture.mode}; save the picture with 8 or 16 bits")
    if picture.mode not in _CONVERTED and not picture.mode.startswith("I"):
        raise RefusedError("unsupported_mode", f"mode {picture.mode}; convert the picture to RGB or grey")
    if picture.format == "JPEG":
        # The JPEG decoder itself reduces by 2, 4 or 8 as long as three times the target is left.
        picture.draft(None, (int(_GAP * section.image_size),) * 2)
    picture.load()
    if picture.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8):
        width, height = height, width
    ImageOps.exif_transpose(picture, in_place=True)
    return _squash(_flatten(picture, section), section), width, height, mode


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise RefusedError("too_many_pixels", f"{width} x {height} pixels, over prepare.max_pixels {max_pixels}")


def _flatten(picture: Image.Image, section: PrepareSection) -> Image.Image:
    """Any supported mode -> `L` or `RGB`, alpha composited on the background."""
    if picture.mode.startswith("I"):
        picture = _scale_integers(picture, section.background)
    elif picture.has_transparency_data:
        coloured = picture.convert("RGBA")
        flat = Image.new("RGB", coloured.size, (section.background,) * 3)
        flat.paste(coloured, mask=coloured.getchannel("A"))
        picture = flat
    wanted = "L" if section.channels == 1 else "RGB"
    return picture if picture.mode == wanted else picture.convert(wanted)


def _scale_integers(picture: Image.Image, background: int) -> Image.Image:
    """Modes `I` and `I;16...` -> `L` by round(value / 257)."""
    values = np.asarray(picture).astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise RefusedError("out_of_range", f"values {low} to {high}; integers from 0 to 65535 are understood")
    scaled = _to_eight_bit(values)
    key = picture.info.get("transparency")
    if isinstance(key, int):  # a 16-bit grey PNG may declare one value as transparent
        scaled[values == key] = background
    return Image.fromarray(scaled)


def _to_eight_bit(values: NDArray[Any]) -> NDArray[np.uint8]:
    # 257 is odd, so there are no ties and (v + 128) // 257 is round(v / 257).
    return ((values.astype(np.int64) + 128) // 257).astype(np.uint8)


def _eight_bit(pixels: NDArray[Any]) -> tuple[NDArray[np.uint8], str]:
    """(H, W) or (H, W, 1..4) bool, uint8 or uint16 -> uint8 in a shape that Pillow takes, and its mode."""
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim not in (2, 3) or pixels.size == 0 or (pixels.ndim == 3 and pixels.shape[2] not in (2, 3, 4)):
        raise RefusedError("unsupported_mode", f"array of shape {pixels.shape}; (H, W) or (H, W, C) is understood")
    mode = "L" if pixels.ndim == 2 else {2: "LA", 3: "RGB", 4: "RGBA"}[pixels.shape[2]]
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels), mode
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * np.uint8(255), "1" if mode == "L" else mode
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize == 2:
        return _to_eight_bit(pixels), "I;16" if mode == "L" else f"{mode};16"
    if pixels.dtype.kind == "f":
        raise RefusedError("float_pixels", f"array of {pixels.dtype}; store uint8 or uint16")
    raise RefusedError("unsupported_mode", f"array of {pixels.dtype}; store uint8 or uint16")


def _squash(picture: Image.Image, section: PrepareSection) -> NDArray[np.uint8]:
    """`L` or `RGB` of any size -> (S, S, C) uint8."""
    side = section.image_size
    if picture.size != (side, side):
        picture = picture.resize((side, side), Image.Resampling.LANCZOS, reducing_gap=_GAP)
    return np.asarray(picture, dtype=np.uint8).reshape(side, side, section.channels)


def _describe(error: Warning | Exception | str) -> str:
    # Memory addresses would change the quarantine list from run to run.
    text = re.sub(r"0x[0-9a-fA-F]{6,}", "0x", " ".join(str(error).split()))
    printable = "".join(character if character.isprintable() else "?" for character in text)
    return f"{type(error).__name__}: {printable}"[:200]


@contextmanager
def _pixel_cap(max_pixels: int) -> Iterator[None]:
    # Pillow's own check (a warning at the cap, an error at twice the cap) covers what data sets decode themselves.
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before
