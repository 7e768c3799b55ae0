"""Writing results so that nothing half-written ever stands under a final name.

Owns atomic files and folders, canonical JSON and digests. A file is written beside its final name,
flushed to disk, then renamed over it; a folder likewise. On any error the temporary is removed; what a
killed process left is removed when the same output is written again, if that process is shown to be dead.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from synthgen.errors import ArtifactError, SynthgenError
from synthgen.lifeline import mark_token, own_mark, token_is_dead

TEMPORARY_SUFFIX = ".partial"
# safetensors is written in Rust: a full disk is an error of its own there, which names the number in its text.
_RUST_OS_ERROR = re.compile(r"\(os error (\d{1,4})\)")

logger = logging.getLogger(__name__)


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
    reason = error.strerror or str(error)
    if error.errno is None and "requested and" in reason:  # numpy, which does not say why
        reason = f"the disk is full or a limit was reached ({reason})"
    return ArtifactError(
        f"cannot write {path}: {reason}; nothing was left under that name. "
        "Free space or make the folder writable, then run the same command again"
    )


def _system_error(error: Exception) -> OSError | None:
    """The operating-system error that a library has wrapped into an error of its own, if it has."""
    found = _RUST_OS_ERROR.search(str(error))
    if isinstance(error, SynthgenError) or found is None:
        return None
    number = int(found.group(1))
    return OSError(number, os.strerror(number))


def _temporary_of(path: Path) -> Path:
    """Where `path` is written first; what dead processes of this host left of earlier attempts is removed."""
    prefix = f".{path.name}."
    with suppress(OSError):  # no such folder yet, or not to be written: the caller finds out
        for entry in os.scandir(path.parent):
            if not (entry.name.startswith(prefix) and entry.name.endswith(TEMPORARY_SUFFIX)):
                continue
            if not token_is_dead(entry.name[len(prefix) : -len(TEMPORARY_SUFFIX)]):
                continue
            logger.info("removing %s, which a killed process left", entry.path)
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                Path(entry.path).unlink(missing_ok=True)
    return path.with_name(f"{prefix}{mark_token(own_mark())}{TEMPORARY_SUFFIX}")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path to write to; on success it becomes `path`, on error it is removed.

    Raises:
        ArtifactError: disk full, read-only or another operating-system error.
    """
    temporary = _temporary_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        temporary.replace(path)
    except OSError as error:
        raise _explain(error, path) from error
    except Exception as error:
        if (system_error := _system_error(error)) is None:
            raise
        raise _explain(system_error, path) from error
    finally:
        with suppress(OSError):  # its folder may be what cannot be written
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields an empty temporary folder; on success it replaces `path`, on error it is removed.

    Raises:
        ArtifactError: disk full, read-only or another operating-system error.
    """
    temporary = _temporary_of(path)
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
    except ArtifactError as error:  # of a file inside: what people know is the folder's final name
        if str(temporary) not in str(error):
            raise
        raise ArtifactError(str(error).replace(str(temporary), str(path))) from error
    except Exception as error:
        if (system_error := _system_error(error)) is None:
            raise
        raise _explain(system_error, path) from error
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
