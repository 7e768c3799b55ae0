"""The same graph on more than one machine: stage instances go to workers, results come back by DVC's run cache.

Owns what is handed to workers, in which order, and how the coordinator takes the results in. Refuses to carry files
itself (all data goes through DVC's remote), and to send out what is not pushed: workers see a commit, never a tree.

An instance of a matrix (`adapt@f0-crack`) travels: a worker runs it in a checkout of its own (`cluster_worker`) and
pushes outputs and run cache; the coordinator's `dvc repro --pull` then finds it in the run cache and writes dvc.lock,
which only DVC ever does. Stages that are single (`prepare`, `compare`) run at the coordinator. That needs every output
of a matrix to be cached: `cache: false` there would make the coordinator run it again.

    threads   all here, in one checkout (`pipelines.fan_out`)
    slots     on this machine, each instance in a checkout and cache of its own, each training with one GPU
    dask      on the workers of a Dask scheduler (the extra `dask`); one machine more is one worker more
    ray       the same on a Ray cluster (the extra `ray`)

`python -m pipelines.cluster --project DIR --runner dask --address tcp://HOST:8786` runs `spread` once.
"""

import argparse
import graphlib
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Annotated, Any, Literal

from prefect import flow, get_run_logger, task
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from pydantic import Field
from ruamel.yaml import YAML

from pipelines import dvc
from pipelines.checkout import isolated_checkout
from pipelines.checkout_data import run_dvc
from pipelines.cluster_worker import OVERLAY, Order, WorkerError, carry_out
from pipelines.dvc import STAGE_SECONDS, PipelineError, child_environment, find_project
from pipelines.fan_out import run_stages
from pipelines.git import answer, git
from pipelines.remotes import has_secret, list_remotes
from pipelines.supervise import one_leash, run_supervised
from pipelines.tasks import (
    GPU_TAG,
    TRAINING,
    check_clean,
    converge,
    publish_version,
    run_stage,
    show_verdict,
    stages_to_run,
    write_plan,
)
from pipelines.turns import one_run_at_a_time
from synthgen.errors import SynthgenError

__all__ = ["Base", "order_for", "run_on_workers", "shared_base", "spread", "take_in", "task_runner", "travels"]

Line = Callable[[str], object]
RunnerName = Literal["threads", "slots", "dask", "ray"]
START = {
    "dask": "start `dask scheduler --host 127.0.0.1`, then on each machine `dask worker ADDRESS --nthreads 1`",
    "ray": "start `ray start --head`, then on each machine `ray start --address HOST:6379`",
}
Runner = Annotated[
    RunnerName, Field(description="threads: here; slots: here, a checkout each; dask, ray: on their workers")
]
Address = Annotated[
    str | None,
    Field(description="of the Dask scheduler (tcp://127.0.0.1:8786) or the Ray head (ray://127.0.0.1:10001)"),
]


def travels(stage: str) -> bool:
    """Whether a stage goes to a worker: instances of a matrix do."""
    return "@" in stage


class Base:
    """What all orders of one run have in common.

    Attributes:
        project: the coordinator's checkout.
        origin, commit, prefix, remote, url: as in `Order`.
    """

    def __init__(self, project: Path, origin: str, commit: str, prefix: str, remote: str, url: str) -> None:
        self.project, self.origin, self.commit, self.prefix = project, origin, commit, prefix
        self.remote, self.url = remote, url


def shared_base(project: Path) -> Base:
    """What workers need to reach the state of `project`: its origin, its commit, DVC's remote.

    Raises:
        WorkerError: something of it holds on this machine alone, or holds a secret.
    """
    origin = answer(project, "config", "--get", "remote.origin.url")
    if not origin:
        raise WorkerError(f"{project} has no remote `origin`; workers clone from it: `git remote add origin ADDRESS`")
    if has_secret(origin):
        raise WorkerError(
            "the address of `origin` holds a password or token, which would travel with every order; take it out "
            "(`git remote set-url origin ADDRESS`) and set up a credential helper or an ssh key on each machine"
        )
    top = Path(git(project, "rev-parse", "--path-format=absolute", "--git-common-dir").strip()).parent
    if "://" not in origin and ":" not in origin.partition("/")[0]:
        origin = str((top / origin).resolve())
    remotes = [remote for remote in list_remotes(project) if remote.is_default]
    if not remotes:
        raise WorkerError(
            "DVC has no default remote, by which results travel; add one: `python -m pipelines.remotes init NAME URL`"
        )
    [remote] = remotes
    if has_secret(remote.url) or "***" in remote.url:
        raise WorkerError(
            f"the address of DVC's remote {remote.name} holds a secret; run `python -m pipelines.remotes check`"
        )
    url = remote.url if "://" in remote.url else str((project / ".dvc" / remote.url).resolve())
    prefix = git(project, "rev-parse", "--show-prefix").strip().rstrip("/")
    return Base(project, origin, git(project, "rev-parse", "HEAD").strip(), prefix, remote.name, url)


def order_for(base: Base, stage: str, upstreams: set[str]) -> Order:
    """The order for one stage whose upstreams are done and pushed.

    Args:
        base: of `shared_base`.
        stage: the instance.
        upstreams: whose outputs it reads.
    Raises:
        WorkerError: dvc.lock does not know an upstream's outputs.
    """
    files = {
        name: (base.project / name).read_text(encoding="utf-8")
        for name in sorted(OVERLAY)
        if (base.project / name).is_file()
    }
    locked = (YAML(typ="safe").load(files["dvc.lock"]) or {}).get("stages", {}) if "dvc.lock" in files else {}
    if missing := sorted(upstreams - set(locked)):
        raise WorkerError(f"dvc.lock does not know {', '.join(missing)}, which {stage} reads; run `dvc repro` once")
    inputs = {str(out["path"]) for name in upstreams for out in locked[name].get("outs", [])}
    return Order(stage, base.origin, base.commit, base.prefix, base.remote, base.url, files, tuple(sorted(inputs)))


@task(name="stage on a worker", retries=0, persist_result=False, task_run_name="{order.stage}")
def run_there(order: Order, timeout_seconds: float) -> str:
    """Carries out an order wherever the task runner runs this; returns the stage's name.

    Raises:
        PipelineError: with the words of the error alone, for it has to survive the way back.
    """
    try:
        return carry_out(order, get_run_logger().info, timeout_seconds)
    except SynthgenError as error:
        raise PipelineError(str(error)) from None


def task_runner(name: RunnerName, address: str | None, max_workers: int) -> TaskRunner[Any]:
    """The task runner of that name.

    Args:
        name: `slots`, `dask` or `ray`.
        address: of the Dask scheduler or the Ray head.
        max_workers: instances at the same time with `slots`; the others count their workers' threads or CPUs.
    Raises:
        PipelineError: `dask` or `ray` without an address, or without the extra of that name.
    """
    if name == "slots":
        return ThreadPoolTaskRunner(max_workers=max_workers)
    if name not in START:
        raise PipelineError(f"runner {name!r} sends nothing out; use `slots`, `dask` or `ray`")
    if not address:
        raise PipelineError(
            f"runner {name!r} needs the address to connect to: {START[name]}, and pass `--address ADDRESS`"
        )
    try:
        if name == "ray":
            from prefect_ray import RayTaskRunner as Chosen
        else:
            from prefect_dask import DaskTaskRunner as Chosen
    except ImportError as error:
        raise PipelineError(f"runner {name!r} needs its extra: pip install 'synthgen[pipelines,{name}]'") from error
    runner: TaskRunner[Any] = Chosen(address=address)
    return runner


def run_on_workers(
    project: Path, graph: Mapping[str, set[str]], runner: TaskRunner[Any], timeout_seconds: float
) -> None:
    """Runs what is to be visited, matrix instances on workers; afterwards all of it is here and in dvc.lock.

    When one fails, what does not depend on it goes on.

    Args:
        project: a checkout at a commit that `origin` has.
        graph: stage instance -> those of its upstreams that are visited too.
        runner: of `task_runner`.
        timeout_seconds: limit of each stage.
    Raises:
        PipelineError: naming each failed stage, with its last lines, and what was left undone.
    """
    if not graph:
        return
    base, whole = shared_base(project), dvc.stage_graph(project)
    travelling = {stage for stage in graph if travels(stage)}
    before = {name for stage in travelling for name in whole[stage]} - set(graph)
    _push(base, before)  # they may have been made on this machine and never been pushed
    sorter = graphlib.TopologicalSorter(graph)
    sorter.prepare()
    running: dict[str, PrefectFuture[Any]] = {}
    failures: dict[str, str] = {}
    visited: set[str] = set()
    ended: SimpleQueue[str] = SimpleQueue()
    here: list[str] = []
    with runner as crew, one_leash():
        while sorter.is_active():
            for stage in sorter.get_ready():
                visited.add(stage)
                if not travels(stage):
                    here.append(stage)
                    continue
                tags = [GPU_TAG] if stage.partition("@")[0] in TRAINING else []
                parameters = {"order": order_for(base, stage, whole[stage]), "timeout_seconds": timeout_seconds}
                running[stage] = crew.submit(run_there.with_options(tags=tags), parameters=parameters)
                running[stage].add_done_callback(partial(_announce, ended, stage))
            if here:
                stage = here.pop()
                done, failed = _run_here(base, stage, timeout_seconds)
            elif running:
                done, failed = _take_in(base, _ended(ended, running), timeout_seconds)
            else:
                break
            failures |= failed
            sorter.done(*done)
    if failures:
        left = sorted(set(graph) - visited)
        undone = f"\nnot run, because they come after: {', '.join(left)}" if left else ""
        raise PipelineError("\n".join(failures[stage] for stage in sorted(failures)) + undone)


def _announce(ended: SimpleQueue[str], stage: str, _future: PrefectFuture[Any]) -> None:
    ended.put(stage)


def _ended(ended: SimpleQueue[str], running: dict[str, PrefectFuture[Any]]) -> dict[str, PrefectFuture[Any]]:
    """Waits for one that ended, and takes all that have."""
    names = [ended.get()]
    while True:
        try:
            names.append(ended.get_nowait())
        except Empty:
            return {name: running.pop(name) for name in names}


def _push(base: Base, stages: set[str]) -> None:
    if stages:
        run_dvc(base.project, "push", "--quiet", "--remote", base.remote, *sorted(stages))


def _run_here(base: Base, stage: str, timeout_seconds: float) -> tuple[list[str], dict[str, str]]:
    state = run_stage(base.project, stage, timeout_seconds, return_state=True)
    if not state.is_completed():
        return [], {stage: _words(state.result(raise_on_failure=False))}
    _push(base, {stage})
    return [stage], {}


def _take_in(
    base: Base, futures: Mapping[str, PrefectFuture[Any]], timeout_seconds: float
) -> tuple[list[str], dict[str, str]]:
    """Brings what workers made into this checkout: one `dvc repro --pull` for all that ended."""
    done, failures = [], {}
    for stage, future in futures.items():
        future.wait()
        if future.state.is_completed():
            done.append(stage)
        else:
            failures[stage] = _words(future.result(raise_on_failure=False))
    if done:
        take_in(base.project, done, timeout_seconds, get_run_logger().info)
    return done, failures


def _words(error: Any) -> str:
    return str(error) if isinstance(error, SynthgenError) else f"a worker was lost or failed: {error!r}"


def take_in(project: Path, stages: list[str], timeout_seconds: float, on_line: Line = print) -> None:
    """`dvc repro --pull` of stages that workers ran: DVC finds them in the run cache and writes dvc.lock.

    Raises:
        CommandError: DVC failed.
    """
    command = [sys.executable, "-P", "-m", "dvc", "--wait-for-lock", "repro", "--pull", "--single-item", *stages]
    ended = run_supervised(command, project, child_environment(), timeout_seconds, on_line, spare_leader=True)
    if ended.status:
        raise dvc.CommandError(
            f"taking in {', '.join(stages)}", ended.status, ended.tail, f"failed with exit status {ended.status}"
        )


@flow(name="spread", retries=0, persist_result=False)
def spread(
    project: str = ".",
    branch: Annotated[
        str | None, Field(description="branch to publish to; by default the one that is checked out")
    ] = None,
    runner: Runner = "slots",
    address: Address = None,
    max_workers: Annotated[int, Field(ge=1, le=256, description="instances at the same time (threads, slots)")] = 2,
    stage_timeout_seconds: Annotated[float, Field(gt=0, description="limit of one stage instance")] = STAGE_SECONDS,
) -> Any:
    """Brings the published state of a project up to date on several workers, and publishes what changed.

    Args:
        project: folder of dvc.yaml; relative to the working directory. It is left as it is.
        branch: to publish to.
        runner, address, max_workers: see `task_runner`; `threads` is what `refresh` does.
        stage_timeout_seconds: limit of one stage instance.
    Returns:
        One line: what was published; or a Cancelled state where another run is going.
    Raises:
        PipelineError: naming the stages that failed, what is still out of date, or why nothing was published.
    """
    folder = find_project(project)
    with one_run_at_a_time(folder) as refused:
        if refused is not None:
            return refused
        crew = None if runner == "threads" else task_runner(runner, address, max_workers)
        with isolated_checkout(folder, branch, on_line=get_run_logger().info) as checkout:
            write_plan(checkout.project)
            graph = stages_to_run(checkout.project)
            if crew is None:
                run_stages(checkout.project, graph, max_workers, stage_timeout_seconds)
            else:
                run_on_workers(checkout.project, graph, crew, stage_timeout_seconds)
            converge(checkout.project, stage_timeout_seconds)
            check_clean(checkout.project)
            show_verdict(checkout.project)
            return publish_version(checkout, str(flow_run.id)).summary


def main(arguments: list[str]) -> int:
    """Runs `spread` once, under the server of $PREFECT_API_URL."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.cluster", description=spread.description)
    parser.add_argument("--project", default=".", help="folder of dvc.yaml (default: here)")
    parser.add_argument("--branch", help="to publish to (default: the one that is checked out)")
    parser.add_argument("--runner", choices=("threads", "slots", "dask", "ray"), default="slots")
    parser.add_argument("--address", help="of the Dask scheduler or the Ray head")
    parser.add_argument("--max-workers", type=int, default=2, help="instances at the same time (default: 2)")
    parser.add_argument("--stage-timeout-seconds", type=float, default=STAGE_SECONDS, help="limit of one instance")
    options = parser.parse_args(arguments)
    try:
        spread(
            options.project,
            options.branch,
            options.runner,
            options.address,
            options.max_workers,
            options.stage_timeout_seconds,
        )
    except SynthgenError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted; finished stages are kept, the same command goes on from there\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
