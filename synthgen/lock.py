"""One run at a time per output: whoever writes an output holds its lock, and a second one is refused at once.

Owns the files below `.synthgen/locks/`, one per output, at the output's own path. The kernel's `flock` is the truth on
one machine: it goes with its process, however that ends. What the file says (pid, host, boot, command) is for people,
and for machines that share a folder without sharing locks. Refuses to take over a lock of another machine, or to
remove one that is held: `synthgen unlock` needs the dead host's name for the former and never does the latter.

LockedError  another process writes this output, or may do so from another machine
"""

import fcntl
import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from synthgen.errors import ArtifactError, ConfigError, SynthgenError
from synthgen.lifeline import ProcessMark, life_of, own_mark

__all__ = ["FoundLock", "Holder", "LockedError", "hold_output", "hold_run", "list_locks", "remove_dead_locks"]

LOCK_FOLDER = ".synthgen/locks"
SUFFIX = ".lock"
RUN_NAME = "whole-run"
MAX_RECORD_BYTES = 4096
MAX_COMMAND = 300
PATIENCE_SECONDS = 0.5  # for `synthgen unlock`, which holds a lock for the moment of looking at it

logger = logging.getLogger(__name__)

# Forked workers would otherwise hold a killed stage's lock for as long as they live.
_descriptors: set[int] = set()


def _let_go_in_child() -> None:
    for descriptor in _descriptors:
        with suppress(OSError):
            os.close(descriptor)
    _descriptors.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


class LockedError(SynthgenError):
    """Another process writes this output, or may do so from another machine."""


@dataclass(frozen=True)
class Holder:
    """Who took a lock.

    Attributes:
        process: tells it from every other process.
        command: its command line.
        since: when it took the lock, UTC; for people, nothing is decided by it.
    """

    process: ProcessMark
    command: str
    since: str

    def __str__(self) -> str:
        return f"process {self.process.pid} on {self.process.host} (`{self.command}`, since {self.since})"


@dataclass(frozen=True)
class FoundLock:
    """A lock file and what became of it.

    Attributes:
        name: path of the output in the project, or `whole-run`.
        holder: who took it; None where the file does not say so.
        state: `held`: its process lives; `dead`: it does not; `foreign`: of another machine, which cannot be asked.
        removed: whether the lock is gone now.
    """

    name: str
    holder: Holder | None
    state: Literal["held", "dead", "foreign"]
    removed: bool = False


@contextmanager
def hold_output(root: Path, output: Path, command: str | None = None) -> Iterator[None]:
    """Holds the lock of one output while the block runs.

    Args:
        root: of the project.
        output: file or folder that the block writes, inside `root`.
        command: what the record says for people; None: the command line of this process.
    Raises:
        LockedError: another process holds it, naming its pid, host and what to do.
        ArtifactError: the lock's folder cannot be written.
        ConfigError: `output` is not inside `root`.
    """
    try:
        name = output.relative_to(root)
    except ValueError:
        name = Path("..")
    if not name.parts or ".." in name.parts:
        raise ConfigError(f"{output} is not inside the project {root}; outputs of stages lie below it")
    with _hold(root, name.as_posix(), command):
        yield


@contextmanager
def hold_run(root: Path, command: str | None = None) -> Iterator[None]:
    """Holds the lock of one whole run of a project (a flow) while the block runs; stages take their own beside it.

    Raises:
        LockedError, ArtifactError: see `hold_output`.
    """
    with _hold(root, RUN_NAME, command):
        yield


@contextmanager
def _hold(root: Path, name: str, command: str | None) -> Iterator[None]:
    path = root / LOCK_FOLDER / f"{name}{SUFFIX}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _take(path, name)
        try:
            _refuse_foreign(_read(descriptor), name)
            _write(descriptor, command)
        except BaseException as error:
            if not isinstance(error, LockedError):
                with suppress(OSError):
                    path.unlink(missing_ok=True)
            os.close(descriptor)
            raise
    except OSError as error:
        raise ArtifactError(
            f"cannot take the lock {path}: {error.strerror or error}; free space or make the folder writable (on a "
            "file system that knows locks), then run the same command again"
        ) from error
    _descriptors.add(descriptor)
    try:
        yield
    finally:
        if descriptor in _descriptors:  # not in a forked child, which has let go
            _descriptors.discard(descriptor)
            with suppress(OSError):
                path.unlink(missing_ok=True)
            os.close(descriptor)


def _take(path: Path, name: str) -> int:
    """The descriptor of the locked file.

    Raises:
        LockedError: another process has it.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        descriptor = _try(path)
        if descriptor is not None:
            return descriptor
        holder = _holder_in(path)
        silent = holder is None or life_of(holder.process) == "dead"  # being looked at, or just taken
        if not silent or time.monotonic() > deadline:
            remedy = "wait for it to end"
            if holder is not None and holder.process.host == own_mark().host:
                remedy += f", or end it with `kill {holder.process.pid}`"
            raise LockedError(
                f"{name} is being written by {holder or 'a process that has not said its name'}; {remedy}, then run "
                "the same command again"
            )
        time.sleep(0.02)


def _try(path: Path) -> int | None:
    """The descriptor of the locked file, or None where another process has it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            here = path.stat()
            if os.path.samestat(os.fstat(descriptor), here):
                return descriptor
        except FileNotFoundError:
            pass  # its last holder removed it between the two calls
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _refuse_foreign(holder: Holder | None, name: str) -> None:
    """What a lock that nobody holds still says: a dead process is taken over, one of another machine is not."""
    if holder is None:
        return
    if _is_foreign(holder):
        host = holder.process.host
        raise LockedError(
            f"{name} is locked by {holder}, which cannot be looked at from {own_mark().host}; wait for it to end, or, "
            f"if that machine is known to be gone, run `synthgen unlock --force {shlex.quote(host)}`"
        )
    logger.warning("%s: taking over the lock of %s, which is dead", name, holder)


def _is_foreign(holder: Holder) -> bool:
    # The same boot is the same kernel, whose flock says that nobody holds it.
    own = own_mark()
    same_kernel = holder.process.boot == own.boot and (own.boot != "" or holder.process.host == own.host)
    return not same_kernel and life_of(holder.process) == "unknown"


def _write(descriptor: int, command: str | None) -> None:
    text = command or shlex.join(["synthgen", *sys.argv[1:]])
    since = datetime.now(UTC).isoformat(timespec="seconds")
    record = {**asdict(own_mark()), "command": text[:MAX_COMMAND], "since": since}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(record).encode(), 0)


def _holder_in(path: Path) -> Holder | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        return _read(descriptor)
    finally:
        os.close(descriptor)


def _read(descriptor: int) -> Holder | None:
    try:
        record: Any = json.loads(os.pread(descriptor, MAX_RECORD_BYTES, 0))
        texts = {key: _plain(record[key]) for key in ("host", "boot", "table", "command", "since")}
        process = ProcessMark(texts["host"], texts["boot"], texts["table"], int(record["pid"]), int(record["start"]))
    except (ValueError, KeyError, TypeError):
        return None
    return Holder(process, texts["command"], texts["since"])


def _plain(text: Any) -> str:
    # it is shown at terminals, and anybody may have written it
    return "".join(c if c.isprintable() else "?" for c in str(text))[:MAX_COMMAND]


def list_locks(root: Path) -> list[FoundLock]:
    """Every lock of a project, sorted by name; nothing is removed.

    Raises:
        ArtifactError: a lock cannot be opened.
    """
    return [_judge(root, path, remove=False, force_host=None) for path in _lock_files(root)]


def remove_dead_locks(root: Path, force_host: str | None = None) -> list[FoundLock]:
    """Removes the locks of dead processes.

    Args:
        root: of the project.
        force_host: a machine that is known to be gone: its locks are removed too, unless one is held.
    Returns:
        every lock there was, sorted by name; those with `removed` are gone.
    Raises:
        ArtifactError: a lock cannot be opened or removed.
    """
    return [_judge(root, path, remove=True, force_host=force_host) for path in _lock_files(root)]


def _lock_files(root: Path) -> list[Path]:
    return sorted(path for path in (root / LOCK_FOLDER).rglob(f"*{SUFFIX}") if path.is_file())


def _judge(root: Path, path: Path, *, remove: bool, force_host: str | None) -> FoundLock:
    name = path.relative_to(root / LOCK_FOLDER).as_posix().removesuffix(SUFFIX)
    try:
        descriptor = _try(path)
        if descriptor is None:
            return FoundLock(name, _holder_in(path), "held")
        try:
            holder = _read(descriptor)
            foreign = holder is not None and _is_foreign(holder)
            forced = foreign and holder is not None and holder.process.host == force_host
            removed = remove and (not foreign or forced)
            if removed:
                path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ArtifactError(f"cannot look at the lock {path}: {error.strerror or error}; remove it by hand") from error
    return FoundLock(name, holder, "foreign" if foreign else "dead", removed)
