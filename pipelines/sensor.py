"""The sensor: looks whether the raw data changed and then starts a deployment, once per change.

Owns what counts as a change, and a small memory of what was seen and what was started for it:
`.synthgen/sensor/NAME.json` in the project. Refuses to train: it starts a deployment and returns. A look, in words:

1. what is there? by DVC: the md5 of every `.dvc` file of the raw data on the published branch (after a fetch); or a
   watched folder: the sha256 of every file in it, where only names, sizes and times of known files are looked at again;
2. was something started, and has it not ended? then nothing: the next look sees;
3. did it complete? then what it was started for is done; did it fail, or was it cancelled? then that is not done;
4. is what is there not done? start, under a key that makes a second start of the same change the same run.

After failures the pause before the next start doubles. What there is to see is `pipelines.watched`'s.
"""

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, cast
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from pydantic import Field

from pipelines.dvc import find_project
from pipelines.turns import project_key
from pipelines.watched import Folder, Seen, SensorError, dvc_revision, folder_files
from synthgen.artifacts import digest_of, read_json, sha256_bytes, write_json
from synthgen.errors import ArtifactError

__all__ = [
    "Memory",
    "Start",
    "look",
    "look_for_new_data",
    "memory_path",
    "step",
]

SCHEMA = 1
DEPLOYMENT = "refresh/on-demand"
SETTLE_SECONDS = 60.0
RETRY_SECONDS = 600.0
LONGEST_RETRY_SECONDS = 24 * 3600.0

Outcome = Literal["open", "completed", "lost"]
Begin = Callable[[str], str]
Ask = Callable[[str], Outcome]
Seconds = Annotated[float, Field(ge=0, le=24 * 3600, description="a file counts once it was unchanged for so long")]


@dataclass(frozen=True)
class Start:
    """A run that was started.

    Attributes:
        digest: of what it was started for.
        run: id of the flow run.
    """

    digest: str
    run: str


@dataclass(frozen=True)
class Memory:
    """What the sensor knows between two looks.

    Attributes:
        done: digest of what the last completed run was started for.
        started: the run that was last seen under way.
        n_starts: how many were started ever; names the next one.
        n_lost: failed or cancelled ones since the last that completed.
        not_before: time (s since the epoch) before which none is started.
        folder: the watched folder, if one is watched.
    """

    done: str = ""
    started: Start | None = None
    n_starts: int = 0
    n_lost: int = 0
    not_before: float = 0.0
    folder: Folder = field(default_factory=Folder)


def step(memory: Memory, digest: str, now: float, begin: Begin, ask: Ask) -> tuple[Memory, str]:
    """One look's decision.

    Args:
        memory: what is known.
        digest: of what is there now.
        now: seconds since the epoch.
        begin: starts a run under a key and returns its id; a key that was used returns the same run.
        ask: how the run of an id is.
    Returns:
        What is known afterwards, and a line that tells what was decided.
    """
    known: dict[str, Any] = {each.name: getattr(memory, each.name) for each in fields(memory)}
    if memory.started:
        outcome = ask(memory.started.run)
        if outcome == "open":
            return memory, f"run {memory.started.run} is under way; what is new waits for its end"
        if outcome == "completed":
            known |= {"done": memory.started.digest, "started": None, "n_lost": 0, "not_before": 0.0}
        else:
            n_lost = memory.n_lost + 1
            pause = min(RETRY_SECONDS * 2.0 ** min(n_lost - 1, 20), LONGEST_RETRY_SECONDS)
            known |= {"started": None, "n_lost": n_lost, "not_before": now + pause}
    if digest == known["done"]:
        return Memory(**known), "nothing is new"
    wait = known["not_before"] - now
    if wait > 0:
        return Memory(**known), f"{known['n_lost']} runs for new data did not complete; the next one in {wait:.0f} s"
    # The key stands in no file yet: if this process dies now, the next look asks for the same key and gets this run.
    run = begin(f"{digest[:16]}-{known['n_starts'] + 1}")
    known |= {"started": Start(digest, run), "n_starts": known["n_starts"] + 1}
    return Memory(**known), f"the raw data changed; started run {run}"


def memory_path(project: Path, watched: str) -> Path:
    """Where the memory of what is watched lies."""
    return project / ".synthgen" / "sensor" / f"{sha256_bytes(watched.encode())[:12]}.json"


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SensorError(
                f"another look at {path.stem} is under way (its lock is held); wait for its end"
            ) from error
        yield


def _recall(path: Path) -> Memory:
    if not path.exists():
        return Memory()
    try:
        content = read_json(path)
        if content.pop("schema") != SCHEMA:
            raise ArtifactError("it is of another schema")
        started, folder = content.pop("started"), content.pop("folder")
        files = {name: Seen(**seen) for name, seen in folder["files"].items()}
        return Memory(**content, started=Start(**started) if started else None, folder=Folder(files, folder["settled"]))
    except (ArtifactError, AttributeError, KeyError, TypeError) as error:
        raise SensorError(
            f"{path} is no memory of this sensor ({error}); delete it: the next look then counts everything as new"
        ) from error


def look(
    project: Path,
    begin: Begin,
    ask: Ask,
    *,
    folder: Path | None = None,
    branch: str | None = None,
    settle_seconds: float = SETTLE_SECONDS,
    now: float | None = None,
) -> str:
    """Looks once, and starts a run if something is new.

    Args:
        project: folder of dvc.yaml.
        begin: see `step`.
        ask: see `step`.
        folder: a folder to watch; None watches the DVC revision of the published branch.
        branch: with DVC; by default the one that is checked out.
        settle_seconds: with a folder.
        now: seconds since the epoch; the clock by default.
    Returns:
        A line that tells what was decided.
    Raises:
        SensorError: what is watched cannot be read, or another look is under way.
    """
    now = time.time() if now is None else now
    path = memory_path(project, str(folder.resolve()) if folder else f"dvc {branch or ''}")
    with _alone(path):
        memory = _recall(path)
        if folder:
            memory = replace(memory, folder=folder_files(folder, memory.folder, settle_seconds, now))
            if not memory.folder.settled:
                write_json(path, {"schema": SCHEMA, **asdict(memory)})
                return f"nothing in {folder} is complete yet"
        digest = digest_of(memory.folder.settled if folder else dvc_revision(project, branch))
        memory, line = step(memory, digest, now, begin, ask)
        write_json(path, {"schema": SCHEMA, **asdict(memory)})
    return line


def _outcome(run: str) -> Outcome:
    try:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(UUID(run)).state
    except ObjectNotFound:
        return "lost"
    if state is None or not state.is_final():
        return "open"
    return "completed" if state.is_completed() else "lost"


@flow(name="watch", retries=0, persist_result=False, log_prints=False)
def look_for_new_data(
    project: str = ".",
    folder: str | None = None,
    branch: str | None = None,
    settle_seconds: Seconds = SETTLE_SECONDS,
    deployment: str = DEPLOYMENT,
) -> str:
    """Starts a deployment if the raw data changed since the last one that completed.

    Args:
        project: folder of dvc.yaml; relative to the working directory.
        folder: a folder to watch; without one the DVC revision of the raw data on the published branch counts.
        branch: with DVC; by default the one that is checked out in `project`.
        settle_seconds: a file in `folder` counts once it was unchanged for so long.
        deployment: FLOW/NAME of what is started; gets `project` as its parameter.
    """
    root = find_project(project)
    key = project_key(root)

    def begin(change: str) -> str:
        run = run_deployment(
            deployment,
            parameters={"project": str(root)},
            timeout=0,
            as_subflow=False,
            idempotency_key=f"{key}-{change}",
        )
        return str(cast(FlowRun, run).id)

    line = look(
        root,
        begin,
        _outcome,
        folder=Path(folder).expanduser() if folder else None,
        branch=branch,
        settle_seconds=settle_seconds,
    )
    get_run_logger().info(line)
    return line
