"""Stage instances side by side: each starts as soon as its upstreams are done, wherever it runs.

Owns the one loop over the graph, and the place where all run here, in one checkout; `pipelines.cluster` has the place
where they run on workers. Refuses to hide a failure: what does not depend on a failed stage goes on, and then the run
fails naming every failed stage and all that was left undone.
"""

import graphlib
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from pipelines.dvc import PipelineError
from pipelines.supervise import one_leash
from pipelines.tasks import is_training, stage_task
from synthgen.cores import usable_cores
from synthgen.errors import SynthgenError

__all__ = ["Place", "Threads", "run_stages", "share_cores"]

Future = PrefectFuture[Any]


class Place(Protocol):
    """Where stage instances run, and how what they made comes into this checkout."""

    @property
    def runner(self) -> TaskRunner[Any]:
        """Runs what is sent."""

    def is_sent(self, stage: str) -> bool:
        """Whether the stage goes to the runner; otherwise it runs here, with nothing else going on meanwhile."""

    def send(self, crew: TaskRunner[Any], stage: str, upstreams: Sequence[Future]) -> Future:
        """Submits a stage whose upstreams are done; `upstreams` are those of them that were sent too."""

    def run(self, stage: str) -> State[Any]:
        """Runs a stage that is not sent, to its end."""

    def take_in(self, stages: list[str]) -> None:
        """Called with stages that ended well, before anything that reads their outputs starts."""


class Threads:
    """All here, in one checkout, a thread each; stages that train at the same time share the cores.

    Attributes:
        runner: as in `Place`.
    """

    def __init__(self, project: Path, graph: Mapping[str, set[str]], max_workers: int, timeout_seconds: float) -> None:
        """Takes the checkout, what is to be visited, how many stages run at the same time, and the limit of each."""
        self._project, self._timeout_seconds = project, timeout_seconds
        self._cores = share_cores(graph, usable_cores(), max_workers)
        self.runner: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=max_workers)

    def is_sent(self, stage: str) -> bool:
        """Every stage gets a thread."""
        return True

    def send(self, crew: TaskRunner[Any], stage: str, upstreams: Sequence[Future]) -> Future:
        """Submits the stage's task."""
        parameters = {
            "project": self._project,
            "stage": stage,
            "timeout_seconds": self._timeout_seconds,
            "n_cores": self._cores[stage],
        }
        future: Future = crew.submit(stage_task(stage), parameters=parameters, wait_for=upstreams)
        return future

    def run(self, stage: str) -> State[Any]:
        """Never asked for."""
        raise PipelineError(f"{stage} was to run outside of its thread; that is an error of this program")

    def take_in(self, stages: list[str]) -> None:
        """Nothing to do: it was made here."""


def share_cores(graph: Mapping[str, set[str]], n_cores: int, max_workers: int) -> dict[str, int]:
    """How many cores each stage instance gets: all of them, divided by how many may train at the same time.

    Small networks train hardly faster on a second core (docs/performance.md), so two trainings on a core each take much
    less time than one after the other on both, and four threads on two cores would only wait for each other.

    Args:
        graph: stage instance -> those it waits for.
        n_cores: of this machine.
        max_workers: stage instances at the same time.
    Returns:
        stage instance -> cores, at least 1. What comes before or after it never runs beside it, stages that wait for
        each other never run at the same time, and what does not train does not count.
    """
    above: dict[str, set[str]] = {}
    for stage in graphlib.TopologicalSorter(graph).static_order():
        waits_for = graph.get(stage, set())
        above[stage] = set(waits_for).union(*(above[name] for name in waits_for))
    training = {stage for stage in graph if is_training(stage)}
    shares = {}
    for stage in graph:
        beside = {other for other in training - above[stage] - {stage} if stage not in above[other]}
        shares[stage] = max(1, n_cores // min(max_workers, 1 + _most_at_once(beside, above)))
    return shares


def _most_at_once(stages: set[str], above: Mapping[str, set[str]]) -> int:
    """How many of `stages` can run at the same time: as many as it takes chains to hold them all.

    Args:
        stages: instances.
        above: instance -> all that it waits for, near and far.
    Source: Dilworth 1950, "A decomposition theorem for partially ordered sets"; the fewest chains by augmenting paths.
    """
    next_in_chain: dict[str, str] = {}

    def link(stage: str, tried: set[str]) -> bool:
        for before in above[stage] & stages:
            if before in tried:
                continue
            tried.add(before)
            if before not in next_in_chain or link(next_in_chain[before], tried):
                next_in_chain[before] = stage
                return True
        return False

    return len(stages) - sum(link(stage, set()) for stage in stages)


def run_stages(graph: Mapping[str, set[str]], place: Place, then: Iterable[str] = ()) -> None:
    """Runs every stage instance of `graph`, each as soon as its upstreams are done.

    A stage is sent when it can start, so that none holds a worker only to wait. When one fails, what does not depend
    on it goes on: a class that cannot be trained leaves the others alone.

    Args:
        graph: stage instance -> those it waits for.
        place: where they run.
        then: stage instances that come after all of these, to be named too where they cannot be run.
    Raises:
        PipelineError: naming each failed stage, with its last lines, and what was left undone.
    """
    if not graph:
        return
    sorter = graphlib.TopologicalSorter(graph)
    sorter.prepare()
    running: dict[str, Future] = {}
    sent: dict[str, Future] = {}
    here: list[str] = []
    failures: dict[str, str] = {}
    left = set(graph) | set(then)
    ended: SimpleQueue[str] = SimpleQueue()
    # The leash is inside: on Ctrl-C it ends the stages, and only then are their threads waited for.
    with place.runner as crew, one_leash():
        while sorter.is_active():
            for stage in sorter.get_ready():
                left.remove(stage)
                if not place.is_sent(stage):
                    here.append(stage)
                    continue
                upstreams = [sent[name] for name in sorted(graph[stage]) if name in sent]
                sent[stage] = running[stage] = place.send(crew, stage, upstreams)
                running[stage].add_done_callback(partial(_announce, ended, stage))
            if here:
                stage = here.pop()
                states = {stage: place.run(stage)}
            elif running:
                states = {name: _state_of(running.pop(name)) for name in _wait(ended)}
            else:
                break
            failed = {stage: _words(state) for stage, state in states.items() if not state.is_completed()}
            failures |= failed
            done = sorted(set(states) - set(failed))
            if done:
                place.take_in(done)
                sorter.done(*done)
    if failures:
        undone = f"\nnot run, because they come after: {', '.join(sorted(left))}" if left else ""
        raise PipelineError("\n".join(failures[stage] for stage in sorted(failures)) + undone)


def _announce(ended: SimpleQueue[str], stage: str, _future: Future) -> None:
    ended.put(stage)


def _wait(ended: SimpleQueue[str]) -> list[str]:
    """Waits for one that ended, and names all that have."""
    names = [ended.get()]
    while True:
        try:
            names.append(ended.get_nowait())
        except Empty:
            return names


def _state_of(future: Future) -> State[Any]:
    future.wait()  # the callback comes before Prefect has looked up the state
    return future.state


def _words(state: State[Any]) -> str:
    error: Any = state.result(raise_on_failure=False)
    return str(error) if isinstance(error, SynthgenError) else f"{state.name}: {state.message or repr(error)}"
