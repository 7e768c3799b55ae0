"""Commands that cannot outlive whoever asked for them.

Owns process groups: a command runs in a group of its own under a small supervisor, which ends the
whole group when the time is up, when the caller lets go of its leash, and when the caller dies in
whatever way (`kill -9` too: the leash is a pipe, and the kernel closes it). Refuses to know what the
command is. POSIX only.

This file is both sides: imported, it starts supervisors; run as a script (`python -I -S supervise.py
SECONDS all|spare COMMAND...`), it is one. So it imports the standard library alone.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

TIMED_OUT = 124
STOPPED = 143
NOT_STARTED = 127
GRACE_SECONDS = 5.0
TAIL_LINES = 20
ALL = "all"
SPARE = "spare"
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: its exit status; 128 + n after signal n, `TIMED_OUT`, or `STOPPED` by the caller.
        stdout: all of standard output where it was captured, else empty.
        tail: the last lines of what it printed (standard error alone where standard output was captured).
    """

    status: int
    stdout: str
    tail: tuple[str, ...]


class Leash:
    """The commands of one block of work; cutting it ends all of them, and any that starts later."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ends: set[IO[bytes]] = set()
        self._is_cut = False

    def hold(self, end: IO[bytes]) -> None:
        """Takes one pipe's writing end; closes it at once if the leash was cut before."""
        with self._lock:
            self._ends.add(end)
            if self._is_cut:
                end.close()

    def release(self, end: IO[bytes]) -> None:
        """Lets go of one pipe's writing end, closing it."""
        with self._lock:
            self._ends.discard(end)
        end.close()

    def cut(self) -> None:
        """Ends every command that is held."""
        with self._lock:
            self._is_cut = True
            for end in self._ends:
                end.close()


# A context variable reaches the threads that Prefect's task runner starts, and no other flow run.
_current: ContextVar[Leash | None] = ContextVar("leash", default=None)


@contextmanager
def one_leash() -> Iterator[None]:
    """Commands started in this block, in whatever thread, end when the block is left early.

    Without it Ctrl-C or a cancellation would wait for the running stages: they sit in threads, in
    groups that a terminal's interrupt does not reach.
    """
    leash = Leash()
    token = _current.set(leash)
    try:
        yield
    finally:
        leash.cut()
        _current.reset(token)


def run_supervised(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    timeout_seconds: float,
    on_line: Callable[[str], object] | None = None,
    *,
    spare_leader: bool = False,
) -> Ended:
    """Runs `command` in `folder` in a process group of its own and waits for it.

    Args:
        command: the argument list; no shell is involved.
        folder: its working directory.
        environment: all of its environment.
        timeout_seconds: after which the whole group is ended (SIGTERM, `GRACE_SECONDS`, SIGKILL).
        on_line: called with each line of output and errors as it comes; None captures standard output instead.
        spare_leader: on an early end only the command's children get SIGTERM, and the command itself has
            `GRACE_SECONDS` to notice and tidy up: for dvc, which otherwise could be cut off while it writes dvc.lock.
    Returns:
        How it ended; a failing status raises nothing here.
    """
    leash = _current.get() or Leash()
    reading, writing = os.pipe()
    end = os.fdopen(writing, "wb", buffering=0)
    supervisor = [sys.executable, "-I", "-S", str(Path(__file__).resolve())]
    try:
        process = subprocess.Popen(
            [*supervisor, str(timeout_seconds), SPARE if spare_leader else ALL, *command],
            cwd=folder,
            env=dict(environment),
            stdin=reading,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if on_line is None else subprocess.STDOUT,
            start_new_session=True,
            encoding="utf-8",
            errors="replace",
        )
    except BaseException:
        end.close()
        raise
    finally:
        os.close(reading)
    leash.hold(end)
    try:
        if on_line is None:
            output, errors = process.communicate()
            return Ended(process.returncode, output, tuple(errors.splitlines()[-TAIL_LINES:]))
        tail = _stream(process, on_line)
        return Ended(process.wait(), "", tail)
    finally:
        # Only now does the supervisor lose its leash; on an error (Ctrl-C among them) that ends the command.
        leash.release(end)
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()


def _stream(process: subprocess.Popen[str], on_line: Callable[[str], object]) -> tuple[str, ...]:
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    for line in process.stdout or ():
        text = line.rstrip()
        if text:
            tail.append(text)
            on_line(text)
    return tuple(tail)


def _die_with_supervisor() -> None:
    # The supervisor has a single thread when it forks; in the flow's process this would not be safe.
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _is_alive(leader: subprocess.Popen[bytes]) -> bool:
    leader.poll()  # a leader that nobody waits for would keep its group alive
    try:
        os.killpg(leader.pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _children(group: int) -> list[int]:
    # Linux alone; elsewhere nothing is found, and the whole group is asked to end.
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError, ValueError):
            state, _parent, its_group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and int(folder.name) != group and state != "Z":
                found.append(int(folder.name))
    return found


def _end_group(leader: subprocess.Popen[bytes], spare_leader: bool) -> None:
    deadline = time.monotonic() + GRACE_SECONDS
    spare_leader = spare_leader and Path("/proc/self/stat").exists()
    asked: set[int] = set()
    with suppress(ProcessLookupError, PermissionError):
        if not spare_leader and _is_alive(leader):
            os.killpg(leader.pid, signal.SIGTERM)
        while _is_alive(leader):
            if time.monotonic() > deadline:
                os.killpg(leader.pid, signal.SIGKILL)
                return
            if spare_leader:  # again and again: it may be about to start one
                for child in set(_children(leader.pid)) - asked:
                    asked.add(child)
                    with suppress(ProcessLookupError):
                        os.kill(child, signal.SIGTERM)
            time.sleep(0.02)


def _leave(number: int, _frame: object) -> NoReturn:
    sys.exit(128 + number)


def _supervise(timeout_seconds: float, spare_leader: bool, command: Sequence[str]) -> int:
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, _leave)
    try:
        leader = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            process_group=0,
            preexec_fn=_die_with_supervisor,  # noqa: PLW1509 - no thread was started yet in this process
        )
    except OSError as error:
        sys.stderr.write(f"cannot start {command[0]}: {error}\n")
        return NOT_STARTED
    let_go = threading.Event()

    def watch() -> None:
        os.read(0, 1)  # returns only when the caller lets go or dies
        let_go.set()
        _end_group(leader, spare_leader)

    threading.Thread(target=watch, daemon=True).start()
    try:
        status = leader.wait(timeout_seconds)
    except subprocess.TimeoutExpired:
        return TIMED_OUT
    finally:
        _end_group(leader, spare_leader)
    if let_go.is_set():
        return STOPPED
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(_supervise(float(sys.argv[1]), sys.argv[2] == SPARE, sys.argv[3:]))
