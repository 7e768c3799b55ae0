"""Whose turn it is: one run at a time on a project, one writer at a time of an output.

Owns the concurrency limits that a server counts, by name, and the refusal that the later of two runs ends with. They
hold across deployments and machines; on one machine `pipelines.checkout.branch_lock` holds too, with or without a
server. Refuses to queue runs: what the later one would do, the next one on the schedule does.

A slot is a lease that its holder renews: it is free again `LEASE_SECONDS` after a holder that was killed.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from httpx import HTTPError, HTTPStatusError
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import ConcurrencyLeaseHolder, State, StateType
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.states import Cancelled

from pipelines.dvc import PipelineError, find_project
from pipelines.git import GitError, answer, git, hide_secrets
from synthgen.artifacts import sha256_bytes

__all__ = ["TurnError", "ensure_limit", "one_run_at_a_time", "one_writer", "output_limit", "project_key", "run_limit"]

LEASE_SECONDS = 60.0  # the shortest that the server grants
LOCKED = 423


class TurnError(PipelineError):
    """The server could not be asked whose turn it is."""


def project_key(project: str | Path) -> str:
    """A slug that every clone of one project shares: its name, and a digest of where it is published.

    Args:
        project: folder of dvc.yaml. Clones are one project if their `origin` is the same; without an `origin` all
            worktrees of a repository are, and without a repository the folder itself is.
    """
    folder = find_project(project)
    place = _place(folder)
    name = re.sub(r"[^a-z0-9]+", "-", place.rpartition("/")[2].removesuffix(".git").lower()).strip("-")[:30]
    return f"{name or 'project'}-{sha256_bytes(place.encode())[:8]}"


def _place(folder: Path) -> str:
    try:
        prefix = git(folder, "rev-parse", "--show-prefix").strip().rstrip("/")
        origin = answer(folder, "config", "--get", "remote.origin.url")
        where = origin or git(folder, "rev-parse", "--path-format=absolute", "--git-common-dir").strip()
    except GitError:
        return str(folder)
    where = hide_secrets(where).rstrip("/").removesuffix("/.git").removesuffix(".git")
    return f"{where}/{prefix}" if prefix else where


def run_limit(project: str | Path) -> str:
    """Name of the limit that one run of the project holds."""
    return f"synthgen-run-{project_key(project)}"


def output_limit(project: str | Path, stage: str) -> str:
    """Name of the limit that the writer of one stage instance's outputs holds."""
    slug = re.sub(r"[^A-Za-z0-9@._-]+", "-", stage)
    return f"synthgen-output-{project_key(project)}-{slug}"


def ensure_limit(name: str, slots: int = 1) -> bool:
    """Makes the global concurrency limit `name` unless it is there; returns whether it made it.

    A limit that is there is left as it is: somebody may have set it in Prefect's page.
    """
    with get_client(sync_client=True) as client:
        if _read(client, name):
            return False
        with suppress(ObjectAlreadyExists):  # by another run, since the question
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=slots, active=True))
            return True
    return False


def _read(client: SyncPrefectClient, name: str) -> GlobalConcurrencyLimitResponse | None:
    with suppress(ObjectNotFound):
        return client.read_global_concurrency_limit_by_name(name)
    return None


def _is_full(name: str) -> bool:
    with get_client(sync_client=True) as client:
        limit = _read(client, name)
    return limit is not None and limit.active and limit.active_slots >= limit.limit


@contextmanager
def one_run_at_a_time(project: str | Path) -> Iterator[State[None] | None]:
    """Holds the project's turn while the block runs; of two flow runs the later one gets a state to end with.

    Use at a flow's start:

        with one_run_at_a_time(project) as refused:
            if refused:
                return refused
            ...

    Args:
        project: folder of dvc.yaml; every clone of one origin counts as the same project.
    Yields:
        None to the run whose turn it is; else a Cancelled state whose message says why. It is not waited for.
    Raises:
        TurnError: the server does not answer.
    """
    name = run_limit(project)
    with ExitStack() as stack:
        yield None if _take(stack, name, wait=False) else Cancelled(message=_refusal(name))


@contextmanager
def one_writer(project: str | Path, stage: str) -> Iterator[None]:
    """Waits until nobody else writes the outputs of `stage`, then holds them while the block runs.

    Raises:
        TurnError: the server does not answer.
    """
    with ExitStack() as stack:
        _take(stack, output_limit(project, stage), wait=True)
        yield


def _take(stack: ExitStack, name: str, *, wait: bool) -> bool:
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    try:
        ensure_limit(name)
        if not wait and _is_full(name):  # the answer is the same without it, but Prefect logs a refusal as an error
            return False
        stack.enter_context(
            concurrency(
                name,
                max_retries=None if wait else 0,
                lease_duration=LEASE_SECONDS,
                strict=True,
                holder=ConcurrencyLeaseHolder(type="flow_run", id=run.id) if run else None,
                raise_on_lease_renewal_failure=False,  # a server that is down for a while ends no training
            )
        )
    except ConcurrencySlotAcquisitionError as error:
        cause = error.__cause__
        if not wait and isinstance(cause, HTTPStatusError) and cause.response.status_code == LOCKED:
            return False
        raise _unwell(name, error) from error
    except HTTPError as error:
        raise _unwell(name, error) from error
    return True


def _unwell(name: str, error: Exception) -> TurnError:
    return TurnError(f"limit {name!r} cannot be taken ({error}); is the server of PREFECT_API_URL well?")


def _refusal(name: str) -> str:
    others = _other_runs()
    who = f" ({', '.join(others)})" if others else ""
    return (
        f"another run{who} works on this project, one at a time (limit {name!r}); nothing was done. "
        "What is new is done by the next run"
    )


def _other_runs() -> list[str]:
    """Names of the running flow runs of the same flow; only words of a message depend on them."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return []
    running = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING])))
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_run_filter=running, limit=20)
    own = context.flow_run
    return sorted(str(run.name) for run in runs if run.id != own.id and run.flow_id == own.flow_id)
