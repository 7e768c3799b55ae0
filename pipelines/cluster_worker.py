"""The worker's side of a spread run: one stage instance in a checkout and a DVC cache of this worker's own.

Owns the slots of a machine (a slot is a folder with a clone and a cache, held by one worker at a time), which GPU a
training gets, and the steps of one order: check out, pull the inputs, run, push the outputs and the run cache. Refuses
to publish anything in git and to carry secrets: a worker's access to git and to the remote stands in its own settings
(`dvc config --global`, a credential helper).

Slots lie in $SYNTHGEN_WORKERS, by default in the user's cache folder. Locks are the kernel's (flock) and end with
their holder, however that dies; what a killed worker left in its slot is put right by the next one.

PipelineError
└── WorkerError  an order cannot be carried out here, and why
"""

import configparser
import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from pipelines.checkout_data import run_dvc
from pipelines.dvc import STAGE_SECONDS, CommandError, CommandTimeoutError, PipelineError, child_environment
from pipelines.git import Author, GitError, git, succeeds
from pipelines.remotes import pull_data
from pipelines.supervise import TIMED_OUT, run_supervised
from pipelines.tasks import TRAINING
from synthgen.artifacts import sha256_bytes

__all__ = [
    "Order",
    "WorkerError",
    "carry_out",
    "free_gpu",
    "gpu_of_slot",
    "take_slot",
    "visible_gpus",
    "workers_folder",
]

Line = Callable[[str], object]

FOLDER_VARIABLE = "SYNTHGEN_WORKERS"
GPU_VARIABLE = "CUDA_VISIBLE_DEVICES"
MOST_SLOTS = 256
KEPT = (".dvc", ".synthgen")  # the slot's settings, and unfinished trainings, which the next order goes on with
OVERLAY = frozenset({"dvc.lock", "plan.yaml", "folds.csv"})
_STAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(@[A-Za-z0-9._-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")


class WorkerError(PipelineError):
    """An order cannot be carried out here, and why."""


@dataclass(frozen=True)
class Order:
    """One stage instance to be run, and all that a worker has to know; no secret is in it.

    Attributes:
        stage: instance such as `adapt@f0-crack`.
        origin: address of the git repository.
        commit: full id of the commit whose code and settings count; `origin` has it in a branch.
        prefix: the project's folder in the repository; empty for its top.
        remote: name of DVC's remote.
        url: its address as it holds on every machine.
        files: the run's dvc.lock, plan.yaml and folds.csv, which are not committed yet: name -> text.
        inputs: outputs of earlier stages that the stage reads, relative to the project.
    """

    stage: str
    origin: str
    commit: str
    prefix: str
    remote: str
    url: str
    files: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuses what could reach out of a slot or be taken for an option."""
        if not _STAGE.fullmatch(self.stage):
            raise WorkerError(
                f"{self.stage!r} is no stage's name; slugs alone are: letters, digits, `.`, `_`, `-`, `@`"
            )
        if not _COMMIT.fullmatch(self.commit):
            raise WorkerError(f"{self.commit!r} is no full commit id; pass what `git rev-parse HEAD` prints")
        if foreign := set(self.files) - OVERLAY:
            raise WorkerError(
                f"an order may bring {sorted(OVERLAY)} alone, not {sorted(foreign)}; commit and push those"
            )
        for path in (self.prefix, *self.inputs):
            if path.startswith(("-", "/")) or ".." in Path(path).parts:
                raise WorkerError(f"{path!r} reaches out of the project; a stage's outputs have to lie inside it")
        if any(value.startswith("-") or not value.isprintable() for value in (self.origin, self.remote, self.url)):
            raise WorkerError("an address or a remote's name starts with `-` or holds a control character; change it")


def workers_folder(environment: Mapping[str, str] | None = None) -> Path:
    """Where this machine's slots lie: $SYNTHGEN_WORKERS, else below the user's cache folder."""
    known = os.environ if environment is None else environment
    if given := known.get(FOLDER_VARIABLE):
        return Path(given).expanduser().resolve()
    return Path(known.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "synthgen" / "workers"


def visible_gpus(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The CUDA devices that this worker may use, as $CUDA_VISIBLE_DEVICES names them; none on a machine without.

    Where the variable is not set, `nvidia-smi` says how many there are.
    """
    known = os.environ if environment is None else environment
    if (given := known.get(GPU_VARIABLE)) is not None:
        names = [name.strip() for name in given.split(",")]
        # CUDA takes the list up to the first device that is not there, and -1 never is.
        return tuple(names[: names.index("-1")] if "-1" in names else [name for name in names if name])
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    done = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=60, check=False)
    rows = [line for line in done.stdout.splitlines() if line.startswith("GPU ")] if done.returncode == 0 else []
    return tuple(str(n) for n in range(len(rows)))


def gpu_of_slot(n: int, devices: Sequence[str]) -> str | None:
    """$CUDA_VISIBLE_DEVICES of the `n`-th training on this machine: one device, and no other training has it.

    Args:
        n: from 0.
        devices: of `visible_gpus`.
    Returns:
        The device; None where the machine has none, so that nothing is set.
    Raises:
        WorkerError: there are fewer devices.
    """
    if not devices:
        return None
    if not 0 <= n < len(devices):
        raise WorkerError(
            f"slot {n} has no GPU: this machine has {len(devices)} ({', '.join(devices)}), for slots from 0 on; "
            "start fewer workers here, or lower the limit `gpu`"
        )
    return devices[n]


def _lock(path: Path) -> IO[str] | None:
    stream = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException as error:
        stream.close()
        if isinstance(error, BlockingIOError):
            return None
        raise
    return stream


@contextmanager
def take_slot(folder: Path) -> Iterator[Path]:
    """The first slot in `folder` that nobody holds, held while the block runs.

    Args:
        folder: of one project's slots on this machine; made if it is not there.
    Yields:
        The slot's folder, which may hold what an earlier order left.
    Raises:
        WorkerError: all are held.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(MOST_SLOTS):
        stream = _lock(folder / f"slot-{n}.lock")
        if stream is not None:
            with stream:
                slot = folder / f"slot-{n}"
                slot.mkdir(exist_ok=True)
                yield slot
            return
    raise WorkerError(f"all {MOST_SLOTS} slots in {folder} are held; end some of this machine's workers")


@contextmanager
def free_gpu(folder: Path, devices: Sequence[str], timeout_seconds: float) -> Iterator[str | None]:
    """Waits for a GPU that no training of this machine holds, and holds it while the block runs.

    Args:
        folder: of this machine's slots.
        devices: of `visible_gpus`.
        timeout_seconds: longest wait.
    Yields:
        $CUDA_VISIBLE_DEVICES for the training; None on a machine without a GPU, at once.
    Raises:
        WorkerError: none became free.
    """
    if not devices:
        yield None
        return
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + timeout_seconds
    while True:
        for n in range(len(devices)):
            device = gpu_of_slot(n, devices)
            assert device is not None
            # By the device's own name, since workers of one machine may be given different lists.
            stream = _lock(folder / f"gpu-{re.sub(r'[^A-Za-z0-9._-]+', '-', device)}.lock")
            if stream is not None:
                with stream:
                    yield device
                return
        if time.monotonic() > deadline:
            raise WorkerError(
                f"none of the {len(devices)} GPUs became free within {timeout_seconds:g} s; set the limit "
                f"(`prefect concurrency-limit create gpu N`) to the GPUs that all workers have together"
            )
        time.sleep(0.2)


def _clone(order: Order, tree: Path) -> None:
    if not (tree / ".git").is_dir():
        shutil.rmtree(tree, ignore_errors=True)
        tree.mkdir(parents=True)
        git(tree, "init", "--quiet")
        git(tree, "remote", "add", "origin", order.origin)
    if not succeeds(tree, "cat-file", "-e", f"{order.commit}^{{commit}}"):
        git(tree, "fetch", "--quiet", "--no-tags", "origin", "+refs/heads/*:refs/remotes/origin/*")
    if not succeeds(tree, "cat-file", "-e", f"{order.commit}^{{commit}}"):
        raise WorkerError(
            f"no branch of origin has commit {order.commit[:12]}; push it, workers see what is pushed alone"
        )
    git(tree, "checkout", "--quiet", "--force", "--detach", order.commit)
    # Leftovers of other orders inside a folder that the stage reads would be taken for its input.
    git(tree, "clean", "-ffdxq", *(option for name in KEPT for option in ("-e", name)))


def _check_out(order: Order, slot: Path) -> Path:
    """The project in the slot at the order's commit, with the run's own files on top."""
    tree = slot / "tree"
    try:
        _clone(order, tree)
    except GitError:
        if not tree.exists():
            raise
        # A worker that was killed may have left a lock or half a file in its clone; nothing of value is in there.
        shutil.rmtree(tree)
        _clone(order, tree)
    project = tree / order.prefix
    if not (project / "dvc.yaml").is_file() or not (project / ".dvc").is_dir():
        raise WorkerError(f"commit {order.commit[:12]} has no DVC project in {order.prefix or 'its top folder'!r}")
    _lay_over(order, project)
    _configure(order, project, slot)
    return project


def _lay_over(order: Order, project: Path) -> None:
    for name, text in order.files.items():
        (project / name).write_text(text, encoding="utf-8")
    if order.files:
        # `dvc data status`, by which a pull is checked, reads HEAD too, and may find no plan there. It stays here.
        author = Author()
        git(project, "add", "--force", "--", *order.files)
        who = ("-c", f"user.name={author.name}", "-c", f"user.email={author.email}")
        git(project, *who, "commit", "--quiet", "--no-verify", "--allow-empty", "-m", f"the run of {order.stage}")


def _configure(order: Order, project: Path, slot: Path) -> None:
    settings = configparser.RawConfigParser()
    remote = f"'remote \"{order.remote}\"'"
    settings.read_dict(
        {
            "cache": {"dir": str(slot / "cache")},
            "core": {"remote": order.remote, "site_cache_dir": str(slot / "site")},
            remote: {"url": order.url, "verify": "true"},
        }
    )
    path = project / ".dvc" / "config.local"
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as stream:
        settings.write(stream)


def _run(stage: str, project: Path, gpu: str | None, timeout_seconds: float, on_line: Line) -> None:
    command = [sys.executable, "-P", "-m", "dvc", "--wait-for-lock", "repro", "--pull", "--single-item", stage]
    environment = child_environment() | ({GPU_VARIABLE: gpu} if gpu is not None else {})
    ended = run_supervised(command, project, environment, timeout_seconds, on_line, spare_leader=True)
    if ended.status == TIMED_OUT:
        reason = f"was ended with all its processes after its limit of {timeout_seconds:g} s"
        raise CommandTimeoutError(f"stage {stage!r}", ended.status, ended.tail, reason)
    if ended.status:
        reason = f"failed with exit status {ended.status}"
        raise CommandError(f"stage {stage!r}", ended.status, ended.tail, reason)


def carry_out(
    order: Order, on_line: Line = print, timeout_seconds: float = STAGE_SECONDS, folder: Path | None = None
) -> str:
    """Runs one stage instance in a slot of this machine and leaves its outputs and its run cache at the remote.

    What it needs is at the remote already; what another worker made is taken from the run cache, not made again.

    Args:
        order: what to run.
        on_line: gets each line of the stage's output as it comes.
        timeout_seconds: limit of the stage; also of the wait for a GPU.
        folder: of this machine's slots; by default `workers_folder`.
    Returns:
        The stage's name.
    Raises:
        WorkerError: the commit, a slot or a GPU cannot be had.
        PullError: inputs are missing at the remote, or altered there.
        CommandError, GitError: the stage, DVC or git fails.
    """
    base = folder or workers_folder()
    name = re.sub(r"[^a-z0-9]+", "-", order.origin.rstrip("/").rpartition("/")[2].removesuffix(".git").lower())
    key = f"{name.strip('-')[:30] or 'project'}-{sha256_bytes(f'{order.origin}/{order.prefix}'.encode())[:8]}"
    with ExitStack() as stack:
        slot = stack.enter_context(take_slot(base / key))
        on_line(f"{order.stage} in {slot.name} at {order.commit[:12]}")
        project = _check_out(order, slot)
        if order.inputs:
            pull_data(project, order.remote, order.inputs)
        trains = order.stage.partition("@")[0] in TRAINING
        gpu = stack.enter_context(free_gpu(base, visible_gpus(), timeout_seconds)) if trains else None
        _run(order.stage, project, gpu, timeout_seconds, on_line)
        run_dvc(project, "push", "--quiet", "--run-cache", "--remote", order.remote, order.stage)
    return order.stage
