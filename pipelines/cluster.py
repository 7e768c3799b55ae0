"""The same graph on more than one machine: stage instances go to workers, results come back by DVC's run cache.

Owns what is handed to workers, by which task runner, and how the coordinator takes the results in; the loop is
`pipelines.fan_out`'s. Refuses to carry files itself (all data goes through DVC's remote), and to send out what is not
pushed: workers see a commit, never a tree.

An instance of a matrix (`adapt@f0-crack`) travels: a worker runs it in a checkout of its own (`cluster_worker`) and
pushes outputs and run cache; the coordinator's `dvc repro --pull` then finds it in the run cache and writes dvc.lock,
which only DVC ever does. Stages that are single (`prepare`, `compare`) run at the coordinator. That needs every output
of a matrix to be cached: `cache: false` there would make the coordinator run it again.

    threads   all here, in one checkout (`pipelines.fan_out`)
    slots     on this machine, each instance in a checkout and cache of its own, each training with one GPU
    dask      on the workers of a Dask scheduler (the extra `dask`); one machine more is one worker more
    ray       the same on a Ray cluster (the extra `ray`)

`python -m pipelines.flows --publish --runner dask --address tcp://HOST:8786` runs the graph there once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from prefect import get_run_logger, task
from prefect.client.schemas.objects import State
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from ruamel.yaml import YAML

from pipelines import dvc
from pipelines.checkout_data import run_dvc
from pipelines.cluster_worker import OVERLAY, Order, carry_out, repro_pulling
from pipelines.dvc import PipelineError
from pipelines.fan_out import Future, Place, Threads
from pipelines.git import answer, git
from pipelines.progress_artifact import live_progress
from pipelines.remotes import has_secret, list_remotes
from pipelines.tasks import GPU_TAG, is_training, run_stage
from pipelines.worker_slots import WorkerError
from synthgen.errors import SynthgenError

__all__ = ["Base", "RunnerName", "Workers", "order_for", "place_for", "shared_base", "task_runner", "travels"]

RunnerName = Literal["threads", "slots", "dask", "ray"]
START = {
    "dask": "start `dask scheduler --host 127.0.0.1`, then on each machine `dask worker ADDRESS --nthreads 1`",
    "ray": "start `ray start --head`, then on each machine `ray start --address HOST:6379`",
}


def travels(stage: str) -> bool:
    """Whether a stage goes to a worker: instances of a matrix do."""
    return "@" in stage


@dataclass(frozen=True)
class Base:
    """What all orders of one run have in common.

    Attributes:
        project: the coordinator's checkout.
        origin, commit, prefix, remote, url: as in `Order`.
    """

    project: Path
    origin: str
    commit: str
    prefix: str
    remote: str
    url: str


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
    log = get_run_logger()
    try:
        with live_progress(order.stage, log.warning) as watch:

            def on_line(line: str) -> None:
                log.info(line)
                watch(line)

            return carry_out(order, on_line, timeout_seconds)
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


class Workers:
    """Matrix instances on workers; afterwards all of it is here and in dvc.lock.

    Attributes:
        runner: as in `pipelines.fan_out.Place`; of `task_runner`.
    """

    def __init__(
        self, project: Path, graph: Mapping[str, set[str]], runner: TaskRunner[Any], timeout_seconds: float
    ) -> None:
        """Takes a checkout at a commit that `origin` has, what is to be visited of it, and the limit of each stage."""
        self.runner = runner
        self._project, self._graph, self._timeout_seconds = project, graph, timeout_seconds

    @cached_property
    def _base(self) -> Base:
        return shared_base(self._project)

    @cached_property
    def _upstreams(self) -> dict[str, set[str]]:
        """All of every stage's, also those that are not visited; what is not visited is at the remote from here on."""
        whole = dvc.stage_graph(self._project)
        before = {name for stage in self._graph if travels(stage) for name in whole[stage]} - set(self._graph)
        self._push(sorted(before))  # they may have been made on this machine and never been pushed
        return whole

    def is_sent(self, stage: str) -> bool:
        """Instances of a matrix are; a single stage has dvc.lock to itself while it runs, for orders carry a copy."""
        return travels(stage)

    def send(self, crew: TaskRunner[Any], stage: str, upstreams: Sequence[Future]) -> Future:
        """Submits the order for a stage."""
        tags = [GPU_TAG] if is_training(stage) else []
        order = order_for(self._base, stage, self._upstreams[stage])
        parameters = {"order": order, "timeout_seconds": self._timeout_seconds}
        future: Future = crew.submit(run_there.with_options(tags=tags), parameters=parameters)
        return future

    def run(self, stage: str) -> State[Any]:
        """Runs a single stage in this checkout."""
        return run_stage(self._project, stage, self._timeout_seconds, return_state=True)

    def take_in(self, stages: list[str]) -> None:
        """Brings what workers made into this checkout, and what was made here to the remote.

        Raises:
            CommandError: DVC failed.
        """
        self._push([stage for stage in stages if not travels(stage)])
        if there := [stage for stage in stages if travels(stage)]:
            repro_pulling(self._project, there, self._timeout_seconds, get_run_logger().info)

    def _push(self, stages: Sequence[str]) -> None:
        if stages:
            run_dvc(self._project, "push", "--quiet", "--remote", self._base.remote, *stages)


def place_for(
    name: RunnerName,
    address: str | None,
    project: Path,
    graph: Mapping[str, set[str]],
    max_workers: int,
    timeout_seconds: float,
) -> Place:
    """Where the stages of a run are done.

    Args:
        name, address, max_workers: as for `task_runner`; `threads` is this checkout.
        project: the checkout.
        graph: what is to be visited.
        timeout_seconds: limit of each stage.
    Raises:
        PipelineError: see `task_runner`.
    """
    if name == "threads":
        return Threads(project, graph, max_workers, timeout_seconds)
    return Workers(project, graph, task_runner(name, address, max_workers), timeout_seconds)
