"""The worker's side of a spread run: one stage instance in a checkout and a DVC cache of this worker's own.

Owns the steps of one order: check out, pull the inputs, run, push the outputs and the run cache. Refuses to publish
anything in git and to carry secrets: a worker's access to git and to the remote stands in its own settings
(`dvc config --global`, a credential helper). What a killed worker left in its slot is put right by the next one.
"""

import configparser
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.checkout_data import run_dvc
from pipelines.dvc import STAGE_SECONDS, CommandError, CommandTimeoutError, child_environment
from pipelines.git import Author, GitError, git, succeeds
from pipelines.remotes import pull_data
from pipelines.supervise import TIMED_OUT, run_supervised
from pipelines.tasks import is_training
from pipelines.worker_slots import (
    GPU_VARIABLE,
    WorkerError,
    free_gpu,
    take_slot,
    visible_gpus,
    workers_folder,
)
from synthgen.artifacts import sha256_bytes

__all__ = ["OVERLAY", "Order", "carry_out", "repro_pulling"]

Line = Callable[[str], object]

KEPT = (".dvc", ".synthgen")  # the slot's settings, and unfinished trainings, which the next order goes on with
OVERLAY = frozenset({"dvc.lock", "plan.yaml", "folds.csv"})
_STAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(@[A-Za-z0-9._-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")


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


def repro_pulling(
    project: Path, stages: Sequence[str], timeout_seconds: float, on_line: Line = print, gpu: str | None = None
) -> None:
    """`dvc repro --pull` of `stages` alone: what another worker made is taken from the run cache, not made again.

    Args:
        project: folder of dvc.yaml.
        stages: instances whose upstreams are done.
        timeout_seconds: limit of all of it.
        on_line: gets each line of output as it comes.
        gpu: the only device that the stages see; None leaves that as it is.
    Raises:
        CommandError: naming the stages, the exit status and the last lines.
        CommandTimeoutError: the time was up.
    """
    command = [sys.executable, "-P", "-m", "dvc", "--wait-for-lock", "repro", "--pull", "--single-item", *stages]
    environment = child_environment() | ({GPU_VARIABLE: gpu} if gpu is not None else {})
    ended = run_supervised(command, project, environment, timeout_seconds, on_line, spare_leader=True)
    what = f"stage {', '.join(map(repr, stages))}"
    if ended.status == TIMED_OUT:
        reason = f"was ended with all its processes after its limit of {timeout_seconds:g} s"
        raise CommandTimeoutError(what, ended.status, ended.tail, reason)
    if ended.status:
        raise CommandError(what, ended.status, ended.tail, f"failed with exit status {ended.status}")


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
        trains = is_training(order.stage)
        gpu = stack.enter_context(free_gpu(base, visible_gpus(), timeout_seconds)) if trains else None
        repro_pulling(project, [order.stage], timeout_seconds, on_line, gpu)
        # With the run cache, although DVC (3.67) sends all entries of the slot each time: it is all that tells others
        # what this stage made of its inputs, for the dvc.lock of a worker stays with it.
        run_dvc(project, "push", "--quiet", "--run-cache", "--remote", order.remote, order.stage)
    return order.stage
