"""What a Prefect server has to hold for us: work pool, limits, automations; and the event that tells a verdict.

Owns their names and content. Setting up may be repeated: what is there as wanted is left alone, what differs is
updated, what is no longer wanted is removed. Refuses to make notification blocks: those hold addresses and secrets
that are a person's to enter.

`python -m pipelines.automations [--project DIR] [--gpus N] [--zombie-seconds S]` sets up the server of
$PREFECT_API_URL; `pipelines.serve` runs it.

| automation | when | what |
| --- | --- | --- |
| synthgen: zombies | a flow run has sent heartbeats, then none for S seconds, and has not ended | marked Crashed |
| synthgen: failures | a deployment's run failed or crashed | a notification |
| synthgen: hurts | a verdict `hurts` was announced | a notification |
"""

import argparse
import os
import sys
from datetime import timedelta
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events import emit_event
from prefect.events.actions import ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.settings import get_current_settings
from prefect.workers.process import ProcessWorker

from pipelines.dvc import PipelineError, find_project, stage_names
from pipelines.tasks import GPU_TAG
from pipelines.turns import ensure_limit, output_limit, project_key, run_limit
from synthgen.errors import SynthgenError

__all__ = [
    "FAILURES",
    "HURTS",
    "NOTIFY_VARIABLE",
    "POOL",
    "VERDICT_EVENT",
    "ZOMBIES",
    "announce_verdict",
    "apply_automations",
    "find_block",
    "prepare_server",
    "wanted_automations",
]

POOL = "synthgen"
NOTIFY_VARIABLE = "SYNTHGEN_NOTIFY_BLOCK"
VERDICT_EVENT = "synthgen.verdict"
VERDICT_LABEL = "synthgen.verdict"
HEARTBEAT = "prefect.flow-run.heartbeat"
ENDINGS = tuple(f"prefect.flow-run.{name}" for name in ("Completed", "Failed", "Cancelled", "Crashed"))
ZOMBIES, FAILURES, HURTS = "synthgen: zombies", "synthgen: failures", "synthgen: hurts"
# Prefect sends a heartbeat every 30 s at most; five may get lost on a machine that is busy training.
ZOMBIE_SECONDS = 180.0
SHORTEST_ZOMBIE_SECONDS = 10.0


def announce_verdict(verdict: str, project: str | Path) -> None:
    """Tells the server a run's verdict as the event `synthgen.verdict`; automations act on it.

    Args:
        verdict: as in metrics/gain.json: `helps`, `hurts`, ...
        project: folder of dvc.yaml.
    """
    key = project_key(project)
    emit_event(
        VERDICT_EVENT,
        # Triggers match labels of the resource, not the payload.
        resource={
            "prefect.resource.id": f"synthgen.project.{key}",
            "prefect.resource.name": key,
            VERDICT_LABEL: verdict,
        },
        payload={"verdict": verdict, "project": key},
    )


def wanted_automations(zombie_seconds: float = ZOMBIE_SECONDS, block: UUID | None = None) -> list[AutomationCore]:
    """The automations that there should be.

    Args:
        zombie_seconds: without a heartbeat, after which a run counts as dead.
        block: document of the notification block; None leaves the notifications out.
    Raises:
        PipelineError: `zombie_seconds` is too short.
    """
    if zombie_seconds < SHORTEST_ZOMBIE_SECONDS:
        raise PipelineError(
            f"{zombie_seconds:g} s without a heartbeat is below Prefect's least of {SHORTEST_ZOMBIE_SECONDS:g} s; "
            "heartbeats come every 30 s, so 90 or more makes sense"
        )
    runs = ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"})
    zombies = AutomationCore(
        name=ZOMBIES,
        description="Marks a flow run Crashed whose heartbeats have stopped: its process is gone.",
        trigger=EventTrigger(
            after={HEARTBEAT},
            expect={HEARTBEAT, *ENDINGS},
            match=runs,
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=zombie_seconds),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                name="Crashed",
                force=False,
                message=f"no heartbeat for {zombie_seconds:g} s: its process is gone. Finished stages are kept; "
                "the next run goes on from there",
            )
        ],
    )
    if block is None:
        return [zombies]
    failures = AutomationCore(
        name=FAILURES,
        description="Tells that a run of a deployment failed or crashed.",
        trigger=EventTrigger(
            expect={"prefect.flow-run.Failed", "prefect.flow-run.Crashed"},
            match=runs,
            # A subflow's failure is its parent's, which alone belongs to a deployment.
            match_related=ResourceSpecification(
                {"prefect.resource.role": "deployment", "prefect.resource.id": "prefect.deployment.*"}
            ),
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[
            SendNotification(
                block_document_id=block,
                subject="synthgen: {{ flow.name }} {{ flow_run.state.name }}",
                body="Run {{ flow_run.name }} of {{ flow.name }}: {{ flow_run.state.name }}.\n"
                "{{ flow_run.state.message }}",
            )
        ],
    )
    hurts = AutomationCore(
        name=HURTS,
        description="Tells that synthetic images hurt.",
        trigger=EventTrigger(
            expect={VERDICT_EVENT},
            match=ResourceSpecification({VERDICT_LABEL: "hurts"}),
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[
            SendNotification(
                block_document_id=block,
                subject="synthgen: verdict hurts",
                body="Project {{ event.payload.project }}: synthetic images make a scarce class worse "
                "(verdict {{ event.payload.verdict }}); nothing is promoted.",
            )
        ],
    )
    return [zombies, failures, hurts]


def find_block(client: SyncPrefectClient, name: str) -> UUID | None:
    """Id of the notification block `TYPE/NAME` (such as `custom-webhook/team`); None where there is none.

    Raises:
        PipelineError: `name` is not of that form.
    """
    kind, slash, document = name.partition("/")
    if not (kind and slash and document) or "/" in document:
        raise PipelineError(
            f"{NOTIFY_VARIABLE} is {name!r}; it has to be TYPE/NAME as `prefect block ls` shows it, "
            "such as custom-webhook/team"
        )
    try:
        return client.read_block_document_by_name(document, kind, include_secrets=False).id
    except ObjectNotFound:
        return None


def apply_automations(client: SyncPrefectClient, wanted: list[AutomationCore]) -> list[str]:
    """Brings the server's automations of our names to what is wanted.

    Returns:
        A line for whatever was changed. One that is as wanted keeps its memory of heartbeats.
    """
    lines = []
    names = {automation.name for automation in wanted}
    for automation in wanted:
        there = client.read_automations_by_name(automation.name)
        same = [one for one in there if _content(one) == _content(automation)]
        if same:
            surplus = [one for one in there if one is not same[0]]
        elif there:
            client.update_automation(there[0].id, automation)
            surplus = there[1:]
            lines.append(f"automation {automation.name!r} updated")
        else:
            client.create_automation(automation)
            surplus = []
            lines.append(f"automation {automation.name!r} made")
        for one in surplus:
            client.delete_automation(one.id)
    for name in sorted({ZOMBIES, FAILURES, HURTS} - names):
        for one in client.read_automations_by_name(name):
            client.delete_automation(one.id)
            lines.append(f"automation {name!r} removed")
    return lines


def _content(automation: AutomationCore) -> object:
    content = AutomationCore.model_validate(automation.model_dump(include=set(AutomationCore.model_fields)))
    return content.model_dump(mode="json", exclude={"trigger"}), _sorted(content.trigger.model_dump(mode="json"))


def _sorted(value: object) -> object:
    # Sets become lists of any order.
    if isinstance(value, dict):
        return {key: _sorted(inner) for key, inner in value.items() if key != "id"}
    return sorted(map(str, value)) if isinstance(value, list) else value


def _limit_gpus(client: SyncPrefectClient, n_gpus: int, replace: bool) -> str:
    try:
        there = client.read_concurrency_limit_by_tag(GPU_TAG).concurrency_limit
    except ObjectNotFound:
        there = None
    if there == n_gpus or (there is not None and not replace):
        return f"limit {GPU_TAG!r}: {there} at a time, as it was"
    client.create_concurrency_limit(GPU_TAG, n_gpus)
    return f"limit {GPU_TAG!r}: {n_gpus} at a time"


def _make_pool(client: SyncPrefectClient) -> str:
    # Not by the command line, which asks a catalogue on the internet for the pool's template.
    template = ProcessWorker.get_default_base_job_template()
    try:
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))
    except ObjectAlreadyExists:
        return f"work pool {POOL!r}: as it was"
    return f"work pool {POOL!r} made"


def _limit_outputs(project: Path) -> str:
    try:
        stages = stage_names(project)
    except PipelineError as error:
        return f"no limits per output yet; every run makes those it needs ({str(error).splitlines()[0]})"
    made = sum([ensure_limit(run_limit(project)), *(ensure_limit(output_limit(project, stage)) for stage in stages)])
    return f"limits of one run and of {len(stages)} stage instances' outputs: {made} made, the others as they were"


def prepare_server(
    project: Path, n_gpus: int, zombie_seconds: float = ZOMBIE_SECONDS, *, replace_gpus: bool = False
) -> list[str]:
    """Sets up the server of $PREFECT_API_URL; may be repeated.

    Args:
        project: folder of dvc.yaml.
        n_gpus: stages that train at the same time.
        zombie_seconds: see `wanted_automations`.
        replace_gpus: whether a `gpu` limit that is there is set to `n_gpus`; else it is kept.
    Returns:
        Lines that tell what was done.
    Raises:
        PipelineError: a setting cannot be used.
    """
    name = os.environ.get(NOTIFY_VARIABLE, "")
    with get_client(sync_client=True) as client:
        lines = [_make_pool(client), _limit_gpus(client, n_gpus, replace_gpus)]
        block = find_block(client, name) if name else None
        lines += apply_automations(client, wanted_automations(zombie_seconds, block))
    if not name:
        lines.append(f"no notifications: {NOTIFY_VARIABLE} names no block (TYPE/NAME)")
    elif block is None:
        lines.append(
            f"no notifications: the server has no block {name!r} ({NOTIFY_VARIABLE}); make it in its page under "
            "Blocks, then start again"
        )
    return [*lines, _limit_outputs(project)]


def main(arguments: list[str]) -> int:
    """Sets up the server of $PREFECT_API_URL."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.automations", description=main.__doc__)
    parser.add_argument("--project", default=".", help="folder of dvc.yaml (default: here)")
    parser.add_argument("--gpus", type=int, help="trainings at the same time, also where a limit is set already")
    parser.add_argument("--default-gpus", type=int, default=1, help="where none is set yet (default: 1)")
    parser.add_argument("--zombie-seconds", type=float, default=ZOMBIE_SECONDS, help="without heartbeat (default: 180)")
    options = parser.parse_args(arguments)
    n_gpus = options.default_gpus if options.gpus is None else options.gpus
    if n_gpus < 1:
        parser.error(f"{n_gpus} trainings at the same time: that is below 1")
    try:
        project = find_project(options.project)
        if not get_current_settings().api.url:
            raise PipelineError(
                "PREFECT_API_URL is not set, so there is no server to set up; `python -m pipelines.serve`"
            )
        lines = prepare_server(
            project, options.gpus or 1, options.zombie_seconds, replace_gpus=options.gpus is not None
        )
    except SynthgenError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
