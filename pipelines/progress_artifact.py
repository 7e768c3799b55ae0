"""Live progress of a stage in Prefect's page: the progress lines that it prints move an artifact.

Owns what such a line looks like (`synthgen.progress` writes it) and how often the page is told. Refuses to hold a
training up: the artifact is made and moved by a thread of its own, and a server that is slow, down or says no costs one
line in the log and nothing else.
"""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from typing import cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from pipelines.verdict import escape_text

__all__ = ["EVERY_SECONDS", "Progress", "live_progress", "parse_progress", "progress_key"]

Line = Callable[[str], object]

EVERY_SECONDS = 5.0  # between two calls of the server, at least
LAST_SECONDS = 5.0  # that the end of a stage waits for the last call
LONGEST_LINE = 1000
_LINE = re.compile(
    r"(?P<what>\S.*?) (?P<done>\d{1,15})/(?P<total>\d{1,15}) elapsed \d+ s left (?P<left>\d{1,15}) s(?: (?P<note>.*))?"
)


@dataclass(frozen=True)
class Progress:
    """How far a piece of work is.

    Attributes:
        what: its description.
        n_done, n_total: units.
        left_seconds: the estimate.
        note: what else the line says.
    """

    what: str
    n_done: int
    n_total: int
    left_seconds: int
    note: str

    @property
    def percent(self) -> float:
        """0 to 100."""
        return min(100.0, 100.0 * self.n_done / self.n_total)

    def words(self) -> str:
        """One line for a page; nothing in it is markup."""
        text = f"{self.what}: {self.n_done} of {self.n_total}, about {self.left_seconds} s left {self.note}"
        return escape_text(text)


def parse_progress(line: str) -> Progress | None:
    """The progress that a stage's line of output tells; None for any other line."""
    found = _LINE.fullmatch(line.strip()) if len(line) <= LONGEST_LINE else None
    if found is None or int(found["total"]) == 0:
        return None
    return Progress(found["what"], int(found["done"]), int(found["total"]), int(found["left"]), found["note"] or "")


def progress_key(stage: str) -> str:
    """The artifact's key: lowercase letters, digits and dashes alone."""
    return "progress-" + re.sub(r"[^a-z0-9]+", "-", stage.lower()).strip("-")


@contextmanager
def live_progress(stage: str, on_problem: Line, every_seconds: float = EVERY_SECONDS) -> Iterator[Line]:
    """Shows how far `stage` is while the block runs, inside a task run; use as

        with live_progress(stage, log.warning) as watch:
            run(on_line=watch)

    Args:
        stage: instance such as `adapt@f0-crack`; the artifact's key is made of it.
        on_problem: gets one line if the page cannot be told.
        every_seconds: shortest time between two calls of the server.
    Yields:
        A function for each line of output; it returns at once and never raises. Where no line tells a progress there
        is no artifact.
    """
    teller = _Teller(stage, on_problem, every_seconds)
    try:
        yield teller.watch
    finally:
        teller.close()


class _Teller:
    """A mailbox with room for one: the newest progress, and the thread that takes it to the server."""

    def __init__(self, stage: str, on_problem: Line, every_seconds: float) -> None:
        self._stage, self._on_problem, self._every_seconds = stage, on_problem, every_seconds
        self._context = copy_context()  # the task run that the artifact belongs to
        self._newest: Progress | None = None
        self._told: Progress | None = None
        self._artifact: UUID | None = None
        self._thread: threading.Thread | None = None
        self._news, self._closing = threading.Event(), threading.Event()
        self._has_complained = False

    def watch(self, line: str) -> None:
        progress = parse_progress(line)
        if progress is None:
            return
        self._newest = progress
        self._news.set()
        if self._thread is None:
            name = f"progress of {self._stage}"
            self._thread = threading.Thread(target=self._context.run, args=(self._work,), daemon=True, name=name)
            self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._news.set()
        if self._thread is not None:
            self._thread.join(LAST_SECONDS)

    def _work(self) -> None:
        is_closing = False
        while not is_closing:
            self._news.wait()
            self._news.clear()
            self._tell()
            is_closing = self._closing.wait(self._every_seconds)
        self._tell()

    def _tell(self) -> None:
        progress = self._newest
        if progress is None or progress == self._told:
            return
        try:
            if self._artifact is None:
                made = create_progress_artifact(progress.percent, progress_key(self._stage), progress.words())
                self._artifact = cast(UUID, made)
            else:
                update_progress_artifact(self._artifact, progress.percent, progress.words())
            self._told = progress
        except Exception as error:  # whatever it is, it is not the training's
            if not self._has_complained:
                self._has_complained = True
                self._on_problem(f"the progress of {self._stage} cannot be shown in Prefect's page: {error!r}")
