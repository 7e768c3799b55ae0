"""The flows: plan, run what is out of date side by side, converge, check, gate, publish.

Owns their order; what a stage does is its verb's matter, whether it is done is DVC's, how stages run side by side is
`pipelines.fan_out`'s, and on other machines `pipelines.cluster`'s. `python -m pipelines.flows` runs them here and now;
prefect.yaml puts the same on a schedule.

    refresh ── augment   raw data to data set     (prepare, pretrain, adapt or scratch, synthesize, assemble)
            ├─ measure   data set to gain         (evaluate, search, challenge, compare, report)
            └─ release   gain to version          (gate, push, commit, tag, promotion); only with `publish`
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Annotated, Any, get_args

from httpx import HTTPError
from prefect import flow, get_run_logger
from prefect.context import FlowRunContext
from prefect.exceptions import CancelledRun, ParameterTypeError, PrefectException
from prefect.settings import get_current_settings
from pydantic import Field

from pipelines.automations import announce_verdict
from pipelines.checkout import Checkout, isolated_checkout
from pipelines.cluster import RunnerName, place_for, task_runner
from pipelines.dvc import STAGE_SECONDS, PipelineError, find_project
from pipelines.expired_leases import LEASES_IN_FILES, release_expired_leases
from pipelines.fan_out import run_stages
from pipelines.publish import Publication
from pipelines.reachable import require_api, words_of_loss
from pipelines.supervise import run_supervised
from pipelines.tasks import (
    check_clean,
    converge,
    publish_version,
    show_report,
    show_samples,
    show_verdict,
    stages_to_run,
    write_plan,
)
from pipelines.turns import one_run_at_a_time
from synthgen.errors import SynthgenError

FLOW_SECONDS = 30 * 24 * 3600.0
AUGMENT = frozenset({"prepare", "pretrain", "adapt", "scratch", "synthesize", "assemble"})
Workers = Annotated[int, Field(ge=1, le=256, description="stage instances that run at the same time")]
Seconds = Annotated[float, Field(gt=0, description="limit of one stage instance")]
Publish = Annotated[bool, Field(description="work in a checkout of its own and publish a version if something changed")]
Branch = Annotated[str | None, Field(description="branch to publish to; by default the one that is checked out")]
Runner = Annotated[
    RunnerName,
    Field(
        description="threads: in one checkout; with publish also slots: here, a checkout each; dask, ray: on workers"
    ),
]
Address = Annotated[
    str | None,
    Field(description="of the Dask scheduler (tcp://127.0.0.1:8786) or the Ray head (ray://127.0.0.1:10001)"),
]


@flow(name="augment", retries=0, persist_result=False)
def augment(
    project: str = ".",
    max_workers: Workers = 2,
    stage_timeout_seconds: Seconds = STAGE_SECONDS,
    runner: Runner = "threads",
    address: Address = None,
) -> None:
    """Raw data to data set: plans anew, then runs what is out of date up to `assemble`.

    Args:
        project: folder of dvc.yaml; relative to the working directory.
        max_workers: stage instances (folds, scarce classes) that run at the same time; with `dask` and `ray` their
            workers count.
        stage_timeout_seconds: limit of one stage instance; it is ended with all its children.
        runner, address: see `pipelines.cluster.task_runner`; all but `threads` see what is pushed alone.
    Raises:
        PipelineError: naming the stages that failed and their last lines.
    """
    folder = find_project(project)
    write_plan(folder)
    visited = stages_to_run(folder)
    graph = only(visited, augmenting=True)
    place = place_for(runner, address, folder, graph, max_workers, stage_timeout_seconds)
    run_stages(graph, place, then=only(visited, augmenting=False))


@flow(name="measure", retries=0, persist_result=False)
def measure(
    project: str = ".",
    max_workers: Workers = 2,
    stage_timeout_seconds: Seconds = STAGE_SECONDS,
    runner: Runner = "threads",
    address: Address = None,
) -> str | None:
    """Data set to gain: runs what is left, arms side by side; afterwards `dvc repro` has nothing to do.

    Args:
        project, max_workers, stage_timeout_seconds, runner, address: as for `augment`.
    Returns:
        The verdict of metrics/gain.json, None where there is no such file.
    Raises:
        PipelineError: naming the stages that failed and their last lines, or what is still out of date.
    """
    folder = find_project(project)
    graph = only(stages_to_run(folder), augmenting=False)
    run_stages(graph, place_for(runner, address, folder, graph, max_workers, stage_timeout_seconds))
    converge(folder, stage_timeout_seconds)
    check_clean(folder)
    show_samples(folder)
    return show_verdict(folder)


@flow(name="release", retries=0, persist_result=False, validate_parameters=False)
def release(checkout: Checkout, run_id: str) -> Publication:
    """Gain to version: pushes data, commits, tags, pushes; promotes what the gate lets through.

    Args:
        checkout: what `augment` and `measure` worked in.
        run_id: stands in the commit and the tag.
    Returns:
        The version, or none where nothing changed.
    Raises:
        PipelineError: see `pipelines.publish.publish`.
    """
    return publish_version(checkout, run_id)


@flow(name="refresh", retries=0, persist_result=False)
def refresh(
    project: str = ".",
    publish: Publish = False,
    branch: Branch = None,
    max_workers: Workers = 2,
    stage_timeout_seconds: Seconds = STAGE_SECONDS,
    runner: Runner = "threads",
    address: Address = None,
) -> Any:
    """Brings a project up to date, here or, with `publish`, in a checkout of its own whose result becomes a version.

    Args:
        project: folder of dvc.yaml; relative to the working directory.
        publish: leave the folder as it is, work at the published state of `branch`, and publish what changed.
        branch: to publish to; by default the one that is checked out.
        max_workers: stage instances (folds, scarce classes, arms) that run at the same time.
        stage_timeout_seconds: limit of one stage instance; it is ended with all its children.
        runner: `slots`, `dask` and `ray` run instances in checkouts of their own, and need `publish`.
        address: of the Dask scheduler or the Ray head.
    Returns:
        One line: the verdict or what was published; or a Cancelled state where another run is going.
    Raises:
        PipelineError: naming the stages that failed and their last lines, what is still out of date, or why
            nothing was published.
    """
    folder = find_project(project)
    if runner != "threads":
        if not publish:
            raise PipelineError(
                f"runner {runner!r} works on what is pushed, never on a folder; publish, or use `threads`"
            )
        task_runner(runner, address, max_workers)  # refuses now what would be refused after the checkout
    how = (max_workers, stage_timeout_seconds, runner, address)
    with one_run_at_a_time(folder) as refused:
        if refused is not None:
            return refused
        if not publish:
            augment(str(folder), *how)
            verdict = measure(str(folder), *how)
            show_report(folder)
            if verdict is not None:
                announce_verdict(verdict, folder)
            return verdict
        with isolated_checkout(folder, branch, on_line=get_run_logger().info) as checkout:
            place = str(checkout.project)
            augment(place, *how)
            verdict = measure(place, *how)
            published = release(checkout, _run_id())
    if verdict is not None and published.gate is not None:
        announce_verdict(verdict, folder)
    return published.summary


def only(graph: dict[str, set[str]], *, augmenting: bool) -> dict[str, set[str]]:
    """The stage instances of one half of the graph, with their upstreams inside it."""
    chosen = {stage for stage in graph if (stage.partition("@")[0] in AUGMENT) == augmenting}
    return {stage: graph[stage] & chosen for stage in sorted(chosen)}


def _run_id() -> str:
    context = FlowRunContext.get()
    run = context.flow_run if context is not None else None
    return str(run.id) if run is not None else f"by-hand-{os.getpid()}"


def _run_attended(arguments: list[str]) -> int:
    # Prefect's temporary server outlives a killed flow process; under a supervisor it cannot.
    command = [sys.executable, "-m", "pipelines.flows", "--attended", *arguments]
    # Its database outlives it: leases in its memory would not, and the turn of a run that was killed never came free.
    environment = {"PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": LEASES_IN_FILES, **os.environ}
    return run_supervised(command, Path.cwd(), environment, FLOW_SECONDS, _print_line).status


def _print_line(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def main(arguments: list[str]) -> int:
    """Runs `refresh` once, under the server of $PREFECT_API_URL or a temporary one."""
    options = _parser().parse_args(arguments)
    address = get_current_settings().api.url
    try:
        folder = find_project(options.project)
        if not (options.attended or address):
            return _run_attended(arguments)
        require_api(address)
        if not address:
            release_expired_leases()
        refresh(
            str(folder),
            options.publish,
            options.branch,
            options.max_workers,
            options.stage_timeout_seconds,
            options.runner,
            options.address,
        )
    except (SynthgenError, ParameterTypeError, CancelledRun) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except (HTTPError, PrefectException, RuntimeError):
        # Prefect's own words about a server that went away name neither it nor what to do.
        if (words := words_of_loss(address)) is None:
            raise
        sys.stderr.write(f"error: {words}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted; finished stages are kept, the same command goes on from there\n")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipelines.flows", description=refresh.description)
    parser.add_argument("--project", default=".", help="folder of dvc.yaml (default: here)")
    parser.add_argument("--publish", action="store_true", help="in a checkout of its own, and publish what changed")
    parser.add_argument("--branch", help="to publish to (default: the one that is checked out)")
    parser.add_argument("--max-workers", type=int, default=2, help="stage instances at the same time (default: 2)")
    parser.add_argument("--stage-timeout-seconds", type=float, default=STAGE_SECONDS, help="limit of one instance")
    parser.add_argument(
        "--runner", choices=get_args(RunnerName), default="threads", help="where instances run; all but threads publish"
    )
    parser.add_argument("--address", help="of the Dask scheduler or the Ray head")
    parser.add_argument("--attended", action="store_true", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
