"""Judging items on all cores, in order, with a bounded number of them in memory.

Owns the process pool: started without fork (forkserver or spawn), ended with its parent, and able to
go on when a decoder kills its process: the item that did it is found and refused, the others are
judged again. Refuses nothing else; the rules are those of `synthgen.dataset.decode`.
"""

import multiprocessing
import signal
import sys
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from types import ModuleType

from synthgen.config import PrepareSection
from synthgen.cores import usable_cores
from synthgen.dataset.decode import Accepted, Refusal, judge_payloads
from synthgen.dataset.raw import RawItem, Source
from synthgen.errors import SourceError
from synthgen.lifeline import end_worker_with_parent
from synthgen.progress import Advance

MIN_POOL_ITEMS = 200
CHUNK_ITEMS = 16
CHUNK_BYTES = 8_000_000
CHUNKS_PER_WORKER = 3

Judged = tuple[RawItem, Accepted | Refusal]
Results = list[Accepted | Refusal]


def judge_items(
    source: Source, section: PrepareSection, n_workers: int | None, advance: Advance
) -> Generator[Judged, None, None]:
    """Yields every item of `source` with its verdict, in the source's order.

    Args:
        source: an opened source.
        section: the rules.
        n_workers: processes; None is one per usable core, or this process alone for few or tiny images.
        advance: called with the number of items judged.
    """
    if n_workers is None:
        n_workers = usable_cores() if source.costly and source.n_items > MIN_POOL_ITEMS else 1
    if n_workers > 1:
        yield from _judge_pooled(source, section, n_workers, advance)
        return
    for chunk in _chunks(source.items()):
        yield from zip(chunk, judge_payloads([item.payload for item in chunk], section), strict=True)
        advance(len(chunk))


def _chunks(items: Iterator[RawItem]) -> Iterator[list[RawItem]]:
    """Runs of at most `CHUNK_ITEMS` items that carry about `CHUNK_BYTES` at most."""
    chunk: list[RawItem] = []
    n_bytes = 0
    for item in items:
        chunk.append(item)
        n_bytes += item.payload.nbytes
        if len(chunk) >= CHUNK_ITEMS or n_bytes >= CHUNK_BYTES:
            yield chunk
            chunk, n_bytes = [], 0
    if chunk:
        yield chunk


def _judge_pooled(
    source: Source, section: PrepareSection, n_workers: int, advance: Advance
) -> Generator[Judged, None, None]:
    decoders = _Decoders(section, n_workers)
    pending: deque[tuple[list[RawItem], Future[Results]]] = deque()

    def finish() -> Iterator[Judged]:
        chunk, future = pending.popleft()
        yield from zip(chunk, decoders.results(chunk, future), strict=True)
        advance(len(chunk))

    try:
        for chunk in _chunks(source.items()):
            pending.append((chunk, decoders.submit(chunk)))
            if len(pending) >= n_workers * CHUNKS_PER_WORKER:
                yield from finish()
        while pending:
            yield from finish()
    finally:
        decoders.close()


class _Decoders:
    """A pool for whole chunks, and a pool of one process for the suspects after a crash."""

    def __init__(self, section: PrepareSection, n_workers: int) -> None:
        self._section = section
        self._n_workers = n_workers
        self._with_main = False
        self._pool: ProcessPoolExecutor | None = None
        self._single: ProcessPoolExecutor | None = None

    def submit(self, chunk: list[RawItem]) -> Future[Results]:
        payloads = [item.payload for item in chunk]
        if not self._with_main and any(type(payload).__module__ == "__main__" for payload in payloads):
            self._with_main = True
            self.close(cancel=False)
        if self._pool is None:
            self._pool = _start_pool(self._n_workers, with_main=self._with_main)
        try:
            return self._pool.submit(judge_payloads, payloads, self._section)
        except BrokenProcessPool:
            self._pool.shutdown(cancel_futures=True)
            self._pool = _start_pool(self._n_workers, with_main=self._with_main)
            return self._pool.submit(judge_payloads, payloads, self._section)

    def results(self, chunk: list[RawItem], future: Future[Results]) -> Results:
        try:
            return future.result()
        except BrokenProcessPool:
            # Some item in flight did it; each is tried alone.
            return [self._isolated(item) for item in chunk]

    def _isolated(self, item: RawItem) -> Accepted | Refusal:
        if self._single is None:
            self._single = _start_pool(1, with_main=self._with_main)
            try:
                self._single.submit(usable_cores).result()
            except BrokenProcessPool as error:
                raise SourceError(
                    "decoding processes end as soon as they start; is this a script without "
                    "`if __name__ == '__main__':`, or is the machine out of memory?"
                ) from error
        try:
            return self._single.submit(judge_payloads, [item.payload], self._section).result()[0]
        except BrokenProcessPool:
            self._single.shutdown(cancel_futures=True)
            self._single = None
            return Refusal("decoder_crashed", "the process that decoded it was killed")

    def close(self, *, cancel: bool = True) -> None:
        for pool in (self._pool, self._single):
            if pool is not None:
                pool.shutdown(cancel_futures=cancel)
        self._pool = self._single = None


def _start_pool(n_workers: int, *, with_main: bool) -> ProcessPoolExecutor:
    # Not fork: the parent may hold threads (progress bar, torch) and locks that a fork would copy.
    if "forkserver" in multiprocessing.get_all_start_methods():
        context: multiprocessing.context.BaseContext = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["synthgen.dataset.decode"])
    else:
        context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(n_workers, mp_context=context, initializer=_enter_worker)
    if not with_main:
        with _without_main():
            for _ in range(n_workers):
                pool.submit(usable_cores)  # starts one process each
    return pool


@contextmanager
def _without_main() -> Iterator[None]:
    """A new process imports its parent's main module, torch and all: seconds that only payloads of that module need."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _enter_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    end_worker_with_parent()
