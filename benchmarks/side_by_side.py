"""Splits side by side: each in a process of its own on cores of its own, never more threads than there are cores.

Small networks train hardly faster on two cores than on one (docs/performance.md, "Two GAN trainings"), so two splits on
a core each take much less time than one after the other on both.
"""

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from queue import SimpleQueue
from typing import IO, TypeVar

from synthgen.lifeline import end_worker_with_parent

Task = TypeVar("Task")
Turn = AbstractContextManager[object]
Work = Callable[[Task, Turn], None]


def core_groups(cores: Sequence[int], n_groups: int) -> list[list[int]]:
    """`n_groups` groups of equal size, as large as the cores allow; cores over are left idle.

    Raises:
        ValueError: there are fewer cores than groups.
    """
    if not 1 <= n_groups <= len(cores):
        raise ValueError(f"{n_groups} at the same time need a core each, and this process may use {len(cores)}")
    size = len(cores) // n_groups
    return [list(cores[k * size : (k + 1) * size]) for k in range(n_groups)]


def cores_of_this_process() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def groups_for(n_jobs: int) -> list[list[int]]:
    """The cores of each of `n_jobs` processes at the same time.

    Raises:
        ValueError: see `core_groups`; or this system has no say over cores.
    """
    if n_jobs > 1 and not hasattr(os, "sched_setaffinity"):
        raise ValueError("this system does not let a process choose its cores; leave out --jobs")
    return core_groups(cores_of_this_process(), n_jobs)


class FileTurn:
    """A lock between processes that ends with its holder: one that is killed keeps no other waiting."""

    def __init__(self, path: Path) -> None:
        """Takes the file that stands for the lock."""
        self._path = path
        self._file: IO[str] | None = None

    def __enter__(self) -> None:
        """Waits for the lock."""
        import fcntl  # not on every system; where cores can be chosen there is one

        self._file = self._path.open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        """Gives it back."""
        assert self._file is not None
        self._file.close()
        self._file = None


def run_each(tasks: Sequence[Task], work: Work[Task], n_jobs: int) -> None:
    """Works on all tasks, `n_jobs` at the same time; with one, in this process.

    Args:
        tasks: what can be sent to another process.
        work: a function of a module; is given a task and a context manager to hold while it changes a file that other
            tasks change too.
        n_jobs: processes at the same time.
    Raises:
        SystemExit: a task's process ended with another status than 0; the others are worked on before.
        ValueError: see `groups_for`.
    """
    if n_jobs == 1:
        for task in tasks:
            work(task, nullcontext())
        return
    free: SimpleQueue[list[int]] = SimpleQueue()
    for group in groups_for(n_jobs):
        free.put(group)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(n_jobs) as pool:
        turn = FileTurn(Path(folder) / "turn")

        def run(task: Task) -> int:
            with _taken(free) as cores:
                process = context.Process(target=_run_on, args=(cores, work, task, turn))
                process.start()
                process.join()
                return process.exitcode or 0

        statuses = list(pool.map(run, tasks))
    if any(statuses):
        failed = [str(task) for task, status in zip(tasks, statuses, strict=True) if status]
        sys.exit(f"failed, see above: {'; '.join(failed)}")


@contextmanager
def _taken(free: "SimpleQueue[list[int]]") -> Iterator[list[int]]:
    group = free.get()
    try:
        yield group
    finally:
        free.put(group)


def _run_on(cores: list[int], work: Work[Task], task: Task, turn: Turn) -> None:
    os.sched_setaffinity(0, cores)
    end_worker_with_parent()
    import torch

    # it may have counted them before: what holds `work` was imported first
    torch.set_num_threads(len(cores))
    work(task, turn)
