"""Prefect tasks: each wraps one call that works without Prefect.

Owns names, tags and the log of a task run. Refuses results and caches: what a task makes is files,
and DVC is what knows whether they are there (a cached task would report success with its file gone).
Time-outs are not Prefect's, which cannot interrupt a blocking call; they are kept by
`pipelines.supervise`. Retries are 0: a stage that failed once fails again, and a rerun of the flow
goes on where it stopped.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.artifacts import create_image_artifact, create_link_artifact, create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.tasks import Task

from pipelines import dvc
from pipelines.checkout import Checkout
from pipelines.gate import Keep, Promote
from pipelines.git import answer
from pipelines.progress_artifact import live_progress
from pipelines.promotion import promote
from pipelines.publish import Publication, publish
from pipelines.run_artifacts import (
    keep_report,
    labelled,
    page_of_version,
    picture_address,
    plain_address,
    report_of,
    samples_of,
)
from pipelines.turns import one_writer
from pipelines.verdict import escape_text, read_gain, verdict_table
from pipelines.versioning import NAME

TRAINING = frozenset({"pretrain", "adapt", "scratch", "synthesize", "evaluate", "search", "challenge", "worth"})
GPU_TAG = "gpu"
VERDICT_KEY, VERSION_KEY = "verdict", "version"
SAMPLES_KEY, REPORT_KEY, DATA_KEY = "samples", "report", "data-version"


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
def run_stage(project: Path, stage: str, timeout_seconds: float, n_cores: int | None = None) -> None:
    """Runs one stage instance, on `n_cores` cores if that is said; its upstreams have to be done."""
    log = get_run_logger()
    with one_writer(project, stage), live_progress(stage, log.warning) as watch:

        def on_line(line: str) -> None:
            log.info(line)
            watch(line)

        dvc.repro(project, stage, on_line, timeout_seconds, n_cores)


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


def _show(what: str, call: Callable[[], object]) -> None:
    """Makes an artifact; where that fails, a line in the log says so, and nothing that was computed is lost."""
    try:
        call()
    except Exception as error:  # the server's, the picture's: an ornament fails no run
        get_run_logger().warning("the %s cannot be shown in Prefect's page: %r", what, error)


@task(**_task_options("verdict"))
def show_verdict(project: Path) -> str | None:
    """Puts the verdict of metrics/gain.json into a Prefect artifact; returns its one line, None without a file."""
    gain = read_gain(project)
    if gain is None:
        return None
    table, verdict = verdict_table(gain), str(gain["verdict"])
    _show("verdict", lambda: create_markdown_artifact(table, key=VERDICT_KEY, description=f"verdict: {verdict}"))
    return verdict


@task(**_task_options("samples"))
def show_samples(project: Path) -> None:
    """Puts the picture of the release's selected samples, a row per class, into a Prefect artifact."""
    if picture := samples_of(project):
        words = "selected synthetic images of the release, a row per class"
        _show("picture", lambda: create_image_artifact(picture_address(picture), SAMPLES_KEY, words))


@task(**_task_options("report"))
def show_report(project: Path) -> None:
    """Puts a link to reports/index.html into a Prefect artifact."""
    if report := report_of(project):
        _link_report(report)


def _link_report(report: Path) -> None:
    words = f"open it on the machine that ran: {escape_text(str(report))}"
    _show("link", lambda: create_link_artifact(report.as_uri(), labelled("report", report), REPORT_KEY, words))


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
    text = publication_text(published)
    _show("version", lambda: create_markdown_artifact(text, key=VERSION_KEY, description=published.summary))
    if published.version is not None:
        _show("links", lambda: _link_version(checkout, f"{NAME}@{published.version}"))
    return published


def _link_version(checkout: Checkout, tag: str) -> None:
    if report := report_of(checkout.project):
        _link_report(keep_report(report, checkout.source, tag))  # the checkout goes away with the run
    address = answer(checkout.source, "config", "--get", f"remote.{checkout.remote}.url") if checkout.remote else ""
    origin = plain_address(address) if address else str(checkout.source)
    words = f"dvc get {origin} data/augmented --rev {tag}"
    link = page_of_version(origin, tag) or checkout.source.as_uri()
    create_link_artifact(link, labelled(tag, origin), DATA_KEY, escape_text(words))


def publication_text(published: Publication) -> str:
    """What became of a run, for a page."""
    version = f"`augmented@{published.version}`" if published.version is not None else "no new version"
    lines = [f"**{version}** at commit `{published.commit[:12]}`", published.summary]
    if isinstance(published.gate, Promote):
        lines.append(f"Promoted: {published.gate.reason}.")
    elif isinstance(published.gate, Keep):
        lines.append(f"Not promoted: {published.gate.reason}.")
    return "\n\n".join(lines)


def is_training(stage: str) -> bool:
    """Whether a stage instance trains networks."""
    return stage.partition("@")[0] in TRAINING


def stage_task(stage: str) -> Task[..., None]:
    """The task that runs `stage`, tagged `gpu` where the stage trains (a concurrency limit counts the tag)."""
    return run_stage.with_options(tags=[GPU_TAG]) if is_training(stage) else run_stage
