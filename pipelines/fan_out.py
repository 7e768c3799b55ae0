"""Stage instances side by side: a Prefect task each, started as soon as its upstreams are done.

Owns order and concurrency inside a flow run. Refuses to hide a failure: what does not depend on a failed stage goes on,
and then the run fails naming every failed stage and all that was left undone.
"""

import graphlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from prefect.futures import PrefectFuture
from prefect.task_runners import ThreadPoolTaskRunner

from pipelines.dvc import PipelineError
from pipelines.supervise import one_leash
from pipelines.tasks import stage_task
from synthgen.errors import SynthgenError


def run_stages(folder: Path, graph: Mapping[str, set[str]], max_workers: int, timeout_seconds: float) -> None:
    """Runs a task per stage instance, each as soon as its upstreams are done.

    A task is submitted when it can start, so that none holds a worker only to wait. When one fails,
    what does not depend on it goes on: a class that cannot be trained leaves the others alone.

    Args:
        folder: the project.
        graph: stage instance -> those it waits for.
        max_workers: how many run at the same time.
        timeout_seconds: limit of each.
    Raises:
        PipelineError: naming each failed stage, with its last lines, and what was left undone.
    """
    sorter = graphlib.TopologicalSorter(graph)
    sorter.prepare()
    futures: dict[str, PrefectFuture[None]] = {}
    failures: dict[str, str] = {}
    ended: SimpleQueue[str] = SimpleQueue()
    threads: ThreadPoolTaskRunner[None] = ThreadPoolTaskRunner(max_workers=max_workers)
    # The leash is inside: on Ctrl-C it ends the stages, and only then are their threads waited for.
    with threads as runner, one_leash():
        n_running = 0
        while sorter.is_active():
            for stage in sorter.get_ready():
                futures[stage] = runner.submit(
                    stage_task(stage),
                    parameters={"project": folder, "stage": stage, "timeout_seconds": timeout_seconds},
                    wait_for=[futures[upstream] for upstream in sorted(graph[stage])],
                )
                futures[stage].add_done_callback(partial(_announce, ended, stage))
                n_running += 1
            if not n_running:
                break
            stage = ended.get()
            n_running -= 1
            if failure := _failure(futures[stage]):
                failures[stage] = failure
            else:
                sorter.done(stage)
    if failures:
        left = sorted(set(graph) - set(futures))
        undone = f"\nnot run, because they come after: {', '.join(left)}" if left else ""
        raise PipelineError("\n".join(failures[stage] for stage in sorted(failures)) + undone)


def _announce(ended: SimpleQueue[str], stage: str, _future: PrefectFuture[None]) -> None:
    ended.put(stage)


def _failure(future: PrefectFuture[None]) -> str | None:
    future.wait()  # the callback comes before Prefect has looked up the state
    state = future.state
    if state.is_completed():
        return None
    error: Any = future.result(raise_on_failure=False)
    return str(error) if isinstance(error, SynthgenError) else f"{state.name}: {state.message or error}"
