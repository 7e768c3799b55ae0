"""The flow: plan, run what is out of date side by side, converge, check, show.

Owns order and concurrency; what a stage does is its verb's matter, and whether it is done is DVC's.
`python -m pipelines.flows` runs it here and now; prefect.yaml puts the same flow on a schedule.
"""

import argparse
import graphlib
import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Annotated, Any

from prefect import flow
from prefect.exceptions import ParameterTypeError
from prefect.futures import PrefectFuture
from prefect.settings import get_current_settings
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from pipelines.dvc import STAGE_SECONDS, PipelineError, find_project
from pipelines.supervise import one_leash, run_supervised
from pipelines.tasks import check_clean, converge, show_verdict, stage_task, stages_to_run, write_plan
from synthgen.errors import SynthgenError

FLOW_SECONDS = 30 * 24 * 3600.0
Workers = Annotated[int, Field(ge=1, le=256, description="stage instances that run at the same time")]
Seconds = Annotated[float, Field(gt=0, description="limit of one stage instance")]


@flow(name="augment", retries=0, persist_result=False, log_prints=False)
def augment(project: str = ".", max_workers: Workers = 2, stage_timeout_seconds: Seconds = STAGE_SECONDS) -> str | None:
    """Brings a project up to date: afterwards `dvc repro` has nothing to do.

    Args:
        project: folder of dvc.yaml; relative to the working directory.
        max_workers: stage instances (folds, scarce classes, arms) that run at the same time.
        stage_timeout_seconds: limit of one stage instance; it is ended with all its children.
    Returns:
        The verdict of metrics/gain.json, None where there is no such file.
    Raises:
        PipelineError: naming the stages that failed and their last lines, or what is still out of date.
    """
    folder = find_project(project)
    write_plan(folder)
    run_stages(folder, stages_to_run(folder), max_workers, stage_timeout_seconds)
    converge(folder, stage_timeout_seconds)
    check_clean(folder)
    return show_verdict(folder)


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


def _run_attended(arguments: list[str]) -> int:
    # Prefect's temporary server outlives a killed flow process; under a supervisor it cannot.
    command = [sys.executable, "-m", "pipelines.flows", "--attended", *arguments]
    return run_supervised(command, Path.cwd(), os.environ, FLOW_SECONDS, _print_line).status


def _print_line(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def main(arguments: list[str]) -> int:
    """Runs the flow once, under the server of $PREFECT_API_URL or a temporary one."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.flows", description=augment.description)
    parser.add_argument("--project", default=".", help="folder of dvc.yaml (default: here)")
    parser.add_argument("--max-workers", type=int, default=2, help="stage instances at the same time (default: 2)")
    parser.add_argument("--stage-timeout-seconds", type=float, default=STAGE_SECONDS, help="limit of one instance")
    parser.add_argument("--attended", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    try:
        folder = find_project(options.project)
        if not (options.attended or get_current_settings().api.url):
            return _run_attended(arguments)
        augment(str(folder), options.max_workers, options.stage_timeout_seconds)
    except (SynthgenError, ParameterTypeError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted; finished stages are kept, the same command goes on from there\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
