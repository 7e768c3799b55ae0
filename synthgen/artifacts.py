"""Writing results so that nothing half-written ever stands under a final name.

Owns atomic files and folders, canonical JSON and digests. A file is written beside its final name,
flushed to disk, then renamed over it; a folder likewise. On any error the temporary is removed.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from synthgen.errors import ArtifactError

TEMPORARY_SUFFIX = ".partial"


def sha256_bytes(data: bytes) -> str:
    """Hex sha256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explain(error: OSError, path: Path) -> ArtifactError:
    return ArtifactError(
        f"cannot write {path}: {error.strerror or error}; nothing was left under that name. "
        "Free space or make the folder writable, then run the same command again"
    )


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path to write to; on success it becomes `path`, on error it is removed.

    Raises:
        ArtifactError: disk full, read-only or another operating-system error.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        temporary.replace(path)
    except OSError as error:
        raise _explain(error, path) from error
    finally:
        with suppress(OSError):  # its folder may be what cannot be written
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields an empty temporary folder; on success it replaces `path`, on error it is removed.

    Raises:
        ArtifactError: disk full, read-only or another operating-system error.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        for written in temporary.rglob("*"):
            if written.is_file():
                _sync(written)
        if path.exists():
            shutil.rmtree(path)
        temporary.replace(path)
    except OSError as error:
        raise _explain(error, path) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no NaN, and a final newline: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as canonical JSON, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(canonical_json(value), encoding="utf-8")


def read_json(path: Path) -> Any:
    """Reads JSON that an earlier stage wrote.

    Raises:
        ArtifactError: missing or damaged, naming the file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing; run the stage that writes it (dvc repro)") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"{path} is damaged ({error}); run the stage that writes it again") from error


def digest_of(value: Any) -> str:
    """Hex sha256 of the canonical JSON of `value`."""
    return sha256_bytes(canonical_json(value).encode())
