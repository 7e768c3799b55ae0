"""A progress bar with a time estimate on standard error, for work that may take over five seconds."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")
QUIET_SECONDS = 3.0


class Advance(Protocol):
    """Call with the number of units done since the last call, and optionally a short note."""

    def __call__(self, n_done: int = 1, note: str = "") -> None:
        """Moves the bar."""


@contextmanager
def progress_bar(description: str, total: int) -> Iterator[Advance]:
    """Shows a bar of `total` units while the block runs; yields the function that moves it.

    In a terminal the bar redraws in place; where standard error is a file (DVC, Prefect, CI) one
    line is printed at each tenth once the work has taken three seconds, so that logs stay short.
    """
    console = Console(file=sys.stderr)
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=console, transient=False) as progress:
            task = progress.add_task(description, total=total, note="")

            def advance(n_done: int = 1, note: str = "") -> None:
                if note:
                    progress.update(task, advance=n_done, note=note)
                else:
                    progress.update(task, advance=n_done)

            yield advance
        return
    yield _line_reporter(description, total)


def _line_reporter(description: str, total: int) -> Advance:
    started = time.monotonic()
    state = {"done": 0, "tenth": 0}

    def advance(n_done: int = 1, note: str = "") -> None:
        state["done"] += n_done
        tenth = 10 * state["done"] // max(total, 1)
        elapsed = time.monotonic() - started
        if tenth > state["tenth"] and elapsed > QUIET_SECONDS:
            state["tenth"] = tenth
            left = elapsed * (total - state["done"]) / max(state["done"], 1)
            line = f"{description} {state['done']}/{total} elapsed {elapsed:.0f} s left {left:.0f} s {note}"
            sys.stderr.write(line.rstrip() + "\n")
            sys.stderr.flush()

    return advance


def track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Iterates over `items` behind a progress bar."""
    with progress_bar(description, total) as advance:
        for item in items:
            yield item
            advance()
