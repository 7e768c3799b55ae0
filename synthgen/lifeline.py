"""Processes and their ends: a stage ends with the DVC that started it; the dead can be told from the living.

Owns what names a process for others (host, boot, process table, pid, start), and the verdict alive, dead or unknown.
Refuses to guess: a process of another host or container is unknown, however long it has been silent.

A killed `dvc repro` leaves its stage training on, and the next one would then write the same outputs beside it. On
Linux the kernel is asked to end this process when its parent dies; only under DVC, where the parent is not a shell.
The workers of a process pool end with the process that started them, whoever started that one.
"""

import ctypes
import hashlib
import os
import platform
import re
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PR_SET_PDEATHSIG = 1  # linux/prctl.h

Life = Literal["alive", "dead", "unknown"]
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_TOKEN = re.compile(r"([0-9a-f]{6})([0-9a-f]{6})([0-9a-f]{6})-([0-9]{1,10})-([0-9]{1,20})", re.ASCII)


def end_with_parent() -> bool:
    """Asks for SIGTERM at the death of the parent, if DVC started this process; returns whether it did."""
    if sys.platform != "linux" or "DVC_STAGE" not in os.environ:
        return False
    parent = os.getppid()
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        return False
    if os.getppid() != parent:  # it died between the two calls
        os.kill(os.getpid(), signal.SIGTERM)
    return True


def end_worker_with_parent() -> bool:
    """Lets a worker process of a pool end when its parent is gone, after `kill -9` too; returns whether it has one.

    To be called at the start of each worker. A worker whose parent was killed would else wait for work for ever, for
    its siblings hold the queue open.
    """
    import multiprocessing  # here, for no other process needs it, and the command line imports this file

    parent = multiprocessing.parent_process()
    if parent is None:
        return False
    threading.Thread(target=_exit_after, args=(parent.sentinel,), daemon=True, name="parent-watch").start()
    return True


def _exit_after(sentinel: int) -> None:
    from multiprocessing.connection import wait

    # Forked siblings hold each other's pipes open, so the last one started ends first and frees the one before it.
    wait([sentinel])
    os._exit(1)


@dataclass(frozen=True)
class ProcessMark:
    """What tells a process from every other one, also after its pid was given to another.

    Attributes:
        host: name of the machine or container.
        boot: id of the running kernel's boot; empty where the system has none.
        table: the pid namespace that `pid` counts in; empty where the system has none.
        pid: number of the process.
        start: ticks from boot to its start; 0 where the system does not tell.
    """

    host: str
    boot: str
    table: str
    pid: int
    start: int


def own_mark() -> ProcessMark:
    """The mark of this process."""
    try:
        boot = _BOOT_ID.read_text(encoding="ascii").strip()
        table = str(Path("/proc/self/ns/pid").stat().st_ino)
    except OSError:
        boot = table = ""
    pid = os.getpid()
    return ProcessMark(platform.node(), boot, table, pid, _stat_of(pid)[1])


def _stat_of(pid: int) -> tuple[str, int]:
    """State letter and start of a process; ("", 0) where they cannot be read."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return fields[0], int(fields[19])  # man proc_pid_stat: fields 3 and 22
    except (OSError, IndexError, ValueError):
        return "", 0


def life_of(mark: ProcessMark) -> Life:
    """Whether the process lives, as far as this one can know.

    Returns:
        `dead`: its machine was started anew, its pid is free or was given to another process; `unknown`: it belongs
        to another machine or another container.
    """
    own = own_mark()
    if mark.boot != own.boot:
        return "dead" if mark.host == own.host else "unknown"
    if mark.host != own.host and not own.boot:
        return "unknown"
    if mark.table != own.table:
        return "unknown"
    return "alive" if _is_alive(mark.pid, mark.start) else "dead"


def _is_alive(pid: int, start: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # another user's: it is there
    state, started = _stat_of(pid)
    return state not in {"Z", "X"} and (started == start or 0 in {started, start})


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def mark_token(mark: ProcessMark) -> str:
    """The mark in letters that suit a file's name: digests of host, boot and table, then pid and start."""
    return f"{_short(mark.host)}{_short(mark.boot)}{_short(mark.table)}-{mark.pid}-{mark.start}"


def token_is_dead(token: str) -> bool:
    """Whether `token` is a `mark_token` of a process of this host that is shown to be dead."""
    found = _TOKEN.fullmatch(token)
    if found is None:
        return False
    host, boot, table, pid, start = found.groups()
    own = own_mark()
    if host != _short(own.host):
        return False
    if boot != _short(own.boot):
        return True
    return table == _short(own.table) and not _is_alive(int(pid), int(start))
