"""Prefect tasks: each wraps one call that works without Prefect.

Owns names, tags and the log of a task run. Refuses results and caches: what a task makes is files,
and DVC is what knows whether they are there (a cached task would report success with its file gone).
Time-outs are not Prefect's, which cannot interrupt a blocking call; they are kept by
`pipelines.supervise`. Retries are 0: a stage that failed once fails again, and a rerun of the flow
goes on where it stopped.
"""

from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.tasks import Task

from pipelines import dvc
from pipelines.checkout import Checkout
from pipelines.gate import Keep, Promote
from pipelines.promotion import promote
from pipelines.publish import Publication, publish
from pipelines.turns import one_writer
from pipelines.verdict import read_gain, verdict_table

TRAINING = frozenset({"pretrain", "adapt", "scratch", "synthesize", "evaluate", "challenge"})
GPU_TAG = "gpu"
VERDICT_KEY, VERSION_KEY = "verdict", "version"


def _task_options(name: str) -> dict[str, Any]:
    return {"name": name, "retries": 0, "cache_policy": NO_CACHE, "persist_result": False}


@task(**_task_options("plan"))
def write_plan(project: Path) -> None:
    """Writes plan.yaml anew: which classes are scarce decides what stages there are."""
    dvc.plan(project, get_run_logger().info)


@task(**_task_options("stages"))
def stages_to_run(project: Path) -> dict[str, set[str]]:
    """Stage instances that are out of date or come after one that is, with their upstreams among them."""
    dvc.mend_lock(project, get_run_logger().warning)
    graph = dvc.stage_graph(project)
    chosen = dvc.out_of_date(graph, dvc.status(project))
    get_run_logger().info("%d of %d stages are to be visited", len(chosen), len(graph))
    return chosen


@task(**_task_options("stage"), task_run_name="{stage}")
def run_stage(project: Path, stage: str, timeout_seconds: float) -> None:
    """Runs one stage instance; its upstreams have to be done."""
    with one_writer(project, stage):
        dvc.repro(project, stage, get_run_logger().info, timeout_seconds)


@task(**_task_options("converge"))
def converge(project: Path, timeout_seconds: float) -> None:
    """One plain `dvc repro`: does whatever is left, which normally is nothing."""
    dvc.repro(project, None, get_run_logger().info, timeout_seconds)


@task(**_task_options("check"))
def check_clean(project: Path) -> None:
    """Fails, naming it, if anything is still out of date.

    Raises:
        DirtyError: `dvc status` is not empty.
    """
    if dirty := dvc.status(project):
        raise dvc.DirtyError(
            f"after everything ran, {', '.join(sorted(dirty))} is still out of date: {dirty}; "
            "something else writes into this project, or a stage reads what it also changes"
        )


@task(**_task_options("verdict"))
def show_verdict(project: Path) -> str | None:
    """Puts the verdict of metrics/gain.json into a Prefect artifact; returns its one line, None without a file."""
    gain = read_gain(project)
    if gain is None:
        return None
    create_markdown_artifact(verdict_table(gain), key=VERDICT_KEY, description=f"verdict: {gain['verdict']}")
    return str(gain["verdict"])


@task(**_task_options("publish"))
def publish_version(checkout: Checkout, run_id: str) -> Publication:
    """Publishes what changed, and promotes it if the gate lets it; the decision stands in an artifact."""
    log = get_run_logger()
    published = publish(checkout, run_id, on_line=log.info)
    if published.version is not None and isinstance(published.gate, Promote):
        promote(checkout.source, str(published.version))
        log.info("promoted %s", published.version)
    elif isinstance(published.gate, Keep):
        log.info("not promoted: %s", published.gate.reason)
    create_markdown_artifact(publication_text(published), key=VERSION_KEY, description=published.summary)
    return published


def publication_text(published: Publication) -> str:
    """What became of a run, for a page."""
    version = f"`augmented@{published.version}`" if published.version is not None else "no new version"
    lines = [f"**{version}** at commit `{published.commit[:12]}`", published.summary]
    if isinstance(published.gate, Promote):
        lines.append(f"Promoted: {published.gate.reason}.")
    elif isinstance(published.gate, Keep):
        lines.append(f"Not promoted: {published.gate.reason}.")
    return "\n\n".join(lines)


def stage_task(stage: str) -> Task[..., None]:
    """The task that runs `stage`, tagged `gpu` where the stage trains (a concurrency limit counts the tag)."""
    verb = stage.partition("@")[0]
    return run_stage.with_options(tags=[GPU_TAG]) if verb in TRAINING else run_stage
