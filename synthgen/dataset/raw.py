"""One raw image before it is judged: what it is called, what it is labelled, and how to read it.

Owns the records that every source yields (`RawItem`), the payloads that a worker process can read,
and the reasons for which an item is put aside. Reads bytes, decodes nothing; opens only regular
files and never follows a symbolic link.
"""

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Split = Literal["train", "val", "test"]

SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}

REASONS = {
    "symlink": "a symbolic link; links are never followed",
    "not_regular": "a pipe, socket or device; never opened",
    "outside_root": "a path that leaves the data folder",
    "outside_class": "a file that stands in no class folder",
    "hidden": "a name that starts with a dot",
    "bad_name": "a file name that is not UTF-8",
    "missing": "listed, but not there",
    "unreadable": "the operating system refused to read it",
    "no_label": "no label, or a label outside the declared class names",
    "no_image": "a row without image bytes",
    "repeated_row": "the same file listed again with the same label, split and group",
    "class_skipped": "its class has no training image and `prepare.empty_class` is `skip`",
    "empty_file": "0 bytes",
    "too_many_bytes": "over `prepare.max_bytes`",
    "too_many_pixels": "over `prepare.max_pixels`, found before decoding",
    "not_image": "not a picture in a format that is read here",
    "animated": "several frames, and `prepare.animated` is `refuse`",
    "float_pixels": "floating-point pixels, whose range nobody declared",
    "out_of_range": "integer pixels outside 0 to 65535",
    "unsupported_mode": "a pixel layout without a rule here",
    "damaged": "the decoder raised",
    "decoder_crashed": "the decoder killed its process",
}


@dataclass(frozen=True, order=True)
class QuarantineRow:
    """A raw item that is not used: its name, a key of `REASONS`, and what exactly was seen."""

    source: str
    reason: str
    detail: str


class RefusedError(Exception):
    """One raw item cannot be used; becomes a `QuarantineRow`, never leaves the scan."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class RawContent:
    """What a payload holds once read.

    Attributes:
        value: encoded bytes, an array (H, W) or (H, W, C), or a picture that a data set decoded itself.
        sha256: hex digest of the file's bytes, or of dtype, shape and bytes of an array.
    """

    value: bytes | NDArray[Any] | Image.Image
    sha256: str


class Payload(Protocol):
    """How to read one raw item in another process: small, picklable, without open handles."""

    @property
    def nbytes(self) -> int:
        """Bytes that travel with the payload (0 where only a name does)."""
        ...

    def read(self, max_bytes: int) -> RawContent:
        """Reads the item; raises `RefusedError` where it must not be used."""
        ...


@dataclass(frozen=True)
class FilePayload:
    """A regular file, given by its path."""

    path: str

    @property
    def nbytes(self) -> int:
        """0: only the name travels."""
        return 0

    def read(self, max_bytes: int) -> RawContent:
        """Reads the whole file if it is a regular one of 1 to `max_bytes` bytes."""
        data = read_regular_file(self.path, max_bytes)
        return RawContent(data, hashlib.sha256(data).hexdigest())


@dataclass(frozen=True)
class BytesPayload:
    """An encoded image that stood inside another file."""

    data: bytes

    @property
    def nbytes(self) -> int:
        """Size of the encoded image."""
        return len(self.data)

    def read(self, max_bytes: int) -> RawContent:
        """Hands out the bytes if there are 1 to `max_bytes` of them."""
        check_size(len(self.data), max_bytes)
        return RawContent(self.data, hashlib.sha256(self.data).hexdigest())


@dataclass(frozen=True)
class ArrayPayload:
    """Decoded pixels: (H, W) or (H, W, C), C of 1 to 4, uint8, uint16 or bool."""

    pixels: NDArray[Any]

    @property
    def nbytes(self) -> int:
        """Size of the pixels."""
        return int(self.pixels.nbytes)

    def read(self, max_bytes: int) -> RawContent:
        """Hands out the array if it has 1 to `max_bytes` bytes."""
        check_size(self.nbytes, max_bytes)
        return RawContent(self.pixels, array_sha256(self.pixels))


@dataclass(frozen=True)
class RawItem:
    """One raw image as a source knows it.

    Attributes:
        source: unique name inside the source; items come sorted by it.
        class_name: what the source says it shows.
        split: the user's own split, or None.
        group: the user's own group (images of one object), or None.
        payload: how to read it.
    """

    source: str
    class_name: str
    split: Split | None
    group: str | None
    payload: Payload


@dataclass(frozen=True)
class Source:
    """A raw data set, opened: classes known, nothing decoded.

    Attributes:
        class_names: every class found or declared, in label order.
        n_items: number of items that `items` yields at most.
        items: starts a pass over the items, sorted by `source`, one at a time.
        quarantine: what was put aside without being opened.
        costly: whether decoding is worth a process pool (small arrays are not).
    """

    class_names: list[str]
    n_items: int
    items: Callable[[], Iterator[RawItem]]
    quarantine: list[QuarantineRow] = field(default_factory=list)
    costly: bool = True


def order_classes(names: Iterable[str]) -> list[str]:
    """Label order: by value if all names are integers, else by text."""
    distinct = set(names)
    if distinct and all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in distinct):
        return sorted(distinct, key=lambda name: (int(name), name))
    return sorted(distinct)


def printable(name: str) -> str:
    """`name` with the bytes of a file name that is not UTF-8 written as escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def is_utf8(name: str) -> bool:
    """Whether a name from the file system can be written to a text file."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def array_sha256(pixels: NDArray[Any]) -> str:
    """Hex sha256 of dtype, shape and bytes."""
    head = f"{pixels.dtype.str}{pixels.shape}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def check_size(n_bytes: int, max_bytes: int) -> None:
    """Raises `RefusedError` for 0 bytes and for more than `max_bytes`."""
    if n_bytes == 0:
        raise RefusedError("empty_file", "0 bytes")
    if n_bytes > max_bytes:
        raise RefusedError("too_many_bytes", f"{n_bytes} bytes, over prepare.max_bytes {max_bytes}")


def kind_reason(mode: int) -> str | None:
    """Why an entry with the `lstat` mode must not be opened, or None for a regular file."""
    if stat.S_ISLNK(mode):
        return "symlink"
    return None if stat.S_ISREG(mode) else "not_regular"


def read_regular_file(path: str, max_bytes: int) -> bytes:
    """Bytes of a regular file, judged on the open handle, so that a file swapped meanwhile is caught.

    Raises:
        RefusedError: a link, pipe or device, 0 bytes, over `max_bytes`, or the system's own refusal.
    """
    # O_NONBLOCK: opening a pipe that nobody writes to would wait for ever.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        reason = kind_reason(Path(path).lstat().st_mode)
        if reason is not None:
            raise RefusedError(reason, REASONS[reason])
        with os.fdopen(os.open(path, flags), "rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise RefusedError("not_regular", REASONS["not_regular"])
            check_size(status.st_size, max_bytes)
            data = stream.read(max_bytes + 1)
    except FileNotFoundError as error:
        raise RefusedError("missing", "no such file") from error
    except OSError as error:
        raise RefusedError("unreadable", error.strerror or type(error).__name__) from error
    check_size(len(data), max_bytes)
    return data
