"""The process tree of `pipelines.serve`: its long-running parts, and the end of all that descends from them.

Owns processes and signals. Refuses to know what a part does. One runs under `pipelines.supervise`, which ends it when
this process dies; what it starts in sessions of its own (a worker's flow runs) is found by a mark in the environment.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import psutil  # type: ignore[import-untyped]

from pipelines import supervise
from pipelines.git import hide_secrets

__all__ = ["MARK", "Part", "descendants", "end_rest", "end_server", "end_worker", "ended_by_signals", "say"]

MARK = "SYNTHGEN_SERVE"
FOREVER_SECONDS = 10 * 365 * 24 * 3600.0
RUNS_END_SECONDS = 7.0
PART_ENDS_SECONDS = 6.0


class Part:
    """A long-running process under a supervisor, whose lines are printed under its name."""

    def __init__(
        self, name: str, command: list[str], folder: Path, environment: Mapping[str, str], hide: Iterable[str]
    ):
        self.name = name
        self._hide = frozenset(hide)
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", supervise.__file__, str(FOREVER_SECONDS), supervise.ALL, *command],
            cwd=folder,
            env={**environment, "PWD": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            encoding="utf-8",
            errors="replace",
        )
        threading.Thread(target=self._print, daemon=True).start()

    def _print(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:  # ends when nobody is left who could print
            for line in lines:
                if line.strip():
                    say(f"{self.name} | {line.rstrip()}", self._hide)

    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def let_go(self) -> None:
        """Lets its supervisor end it: SIGTERM, 5 s, SIGKILL."""
        if self.process.stdin:
            with suppress(OSError):
                self.process.stdin.close()

    def started_runs(self) -> list[psutil.Process]:
        """What the process itself has started: a worker's flow runs."""
        with suppress(psutil.Error):
            return [run for leader in psutil.Process(self.process.pid).children() for run in leader.children()]
        return []


def say(line: str, hide: Iterable[str] = ()) -> None:
    """Prints a line to standard error, without secrets."""
    sys.stderr.write(f"{hide_secrets(line, hide)}\n")
    sys.stderr.flush()


def descendants(mark: str) -> list[psutil.Process]:
    """Every process of this user, but this one, whose environment holds the mark."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                found.append(process)
    return found


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.send_signal(number)


def end_worker(worker: Part) -> None:
    """Ends the worker and the runs that it started; each of those ends its stages and says so to the server."""
    runs = worker.started_runs()
    worker.let_go()
    _signal(runs, signal.SIGTERM)
    _gone, left = psutil.wait_procs(runs, RUNS_END_SECONDS)
    _signal(left, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        worker.process.wait(PART_ENDS_SECONDS)


def end_server(server: Part) -> None:
    """Ends the server; its runs have ended before, so that they could tell it."""
    server.let_go()
    with suppress(subprocess.TimeoutExpired):
        server.process.wait(PART_ENDS_SECONDS)


def end_rest(mark: str) -> None:
    """Kills whatever of the tree is left."""
    left = descendants(mark)
    _signal(left, signal.SIGKILL)
    psutil.wait_procs(left, 2)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGINT raise KeyboardInterrupt once; after that nothing interrupts the ending."""

    def end(_number: int, _frame: FrameType | None) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, lambda *_: None)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
