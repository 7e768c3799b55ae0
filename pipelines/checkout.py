"""A checkout of its own for every run: `git worktree` at the branch's published state, DVC's cache shared.

Owns the life of such a worktree and the lock that lets one run at a time work on a branch; what it gets to start
with is `pipelines.checkout_data`'s. Refuses to touch a person's tree: nothing is read from it but settings, nothing is
written to it.

Beside the repository's own files lies `.git/synthgen-worktrees/`: `NAME/` a run's worktree, `NAME.json` its owner
(process and boot), `scratch/BRANCH/` the unfinished trainings, which the next run goes on with, `BRANCH.lock`.
A lock is the kernel's (flock): it ends with its holder, however that dies, so that there is none to clear by hand.

PipelineError
└── CheckoutError  the branch, its data or its settings cannot be had
    └── BusyError  another run works on the branch
"""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pipelines.checkout_data import CheckoutError, restore_data, share_scratch, share_settings
from pipelines.dvc import find_project
from pipelines.git import GitError, answer, git, succeeds
from pipelines.versioning import NAME as DATA_NAME
from synthgen.artifacts import sha256_bytes

__all__ = [
    "BusyError",
    "Checkout",
    "CheckoutError",
    "branch_lock",
    "fetch",
    "fetch_tags",
    "find_remote",
    "isolated_checkout",
    "shared_folder",
]

Line = Callable[[str], object]

FOLDER = "synthgen-worktrees"
_FETCH = ("fetch", "--quiet", "--no-tags", "--no-write-fetch-head")
_TAGS = tuple(f"+refs/tags/{DATA_NAME}{mark}*:refs/tags/{DATA_NAME}{mark}*" for mark in "@#")


class BusyError(CheckoutError):
    """Another run works on the branch."""


@dataclass(frozen=True)
class Checkout:
    """A worktree in which one run works.

    Attributes:
        project: folder of dvc.yaml in the worktree.
        source: folder of dvc.yaml in the repository it was made from.
        branch: what is published to.
        base: commit that the worktree started from.
        remote: git remote; None where there is none.
    """

    project: Path
    source: Path
    branch: str
    base: str
    remote: str | None


def find_remote(project: Path, remote: str = "origin") -> str | None:
    """`remote` if the repository has a git remote of that name, else None."""
    return remote if remote in git(project, "remote").split() else None


def shared_folder(project: Path) -> Path:
    """`.git/synthgen-worktrees`, the same for every worktree of a repository; made if it is not there."""
    common = git(project, "rev-parse", "--path-format=absolute", "--git-common-dir").strip()
    folder = Path(common) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fetch(project: Path, remote: str, branch: str) -> str:
    """Asks `remote` for the branch and the version and promotion tags; returns the branch's commit.

    Tags of ours that differ here are replaced: the remote says which versions there are.

    Raises:
        CheckoutError: the remote has no such branch.
        GitError: it cannot be reached.
    """
    reference = f"refs/remotes/{remote}/{branch}"
    try:
        git(project, *_FETCH, remote, f"+refs/heads/{branch}:{reference}", *_TAGS)
    except GitError as error:
        if "couldn't find remote ref" in str(error):
            raise CheckoutError(
                f"{remote} has no branch {branch!r}; push it once (`git push {remote} {branch}`) or name another one"
            ) from error
        raise
    return git(project, "rev-parse", "--verify", reference).strip()


def fetch_tags(project: Path, remote: str) -> None:
    """Asks `remote` for the version and promotion tags alone; see `fetch`."""
    git(project, *_FETCH, remote, *_TAGS)


def _boot() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _take(path: Path, *, wait: bool = False) -> IO[str] | None:
    """An open file that holds the kernel's lock on `path`; None if another process has it."""
    stream = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        stream.close()
        return None
    except BaseException:
        stream.close()
        raise
    return stream


def _record(stream: IO[str], **what: Any) -> None:
    stream.seek(0)
    stream.truncate()
    stream.write(json.dumps({"pid": os.getpid(), "boot": _boot(), **what}) + "\n")
    stream.flush()


def _recorded(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
    return {}


def _file_name(branch: str) -> str:
    slug = re.sub(r"[^A-Za-z0-9]+", "-", branch).strip("-")[:40]
    return f"{slug or 'branch'}-{sha256_bytes(branch.encode())[:8]}"


@contextmanager
def branch_lock(project: Path, branch: str) -> Iterator[None]:
    """Holds the right to work on `branch` of this repository.

    Raises:
        BusyError: another run has it; names its process.
    """
    path = shared_folder(project) / f"{_file_name(branch)}.lock"
    stream = _take(path)
    if stream is None:
        holder = _recorded(path).get("pid", "unknown")
        raise BusyError(
            f"process {holder} works on branch {branch!r} of this repository; one run at a time. "
            "Run again when it has ended, or end it: its lock goes with it"
        )
    with stream:
        _record(stream, branch=branch)
        yield


@contextmanager
def isolated_checkout(
    project: str | Path,
    branch: str | None = None,
    *,
    remote: str = "origin",
    folder: Path | None = None,
    on_line: Line = print,
) -> Iterator[Checkout]:
    """A worktree at the published state of `branch`, with its data; removed when the block is left.

    Args:
        project: folder of dvc.yaml in a person's (or a service's) repository. Its tree is left as it is.
        branch: by default the one that is checked out there.
        remote: git remote whose state counts; where there is none of that name, the local branch's.
        folder: where the worktree is made; by default inside `.git`.
        on_line: gets a line for whatever is worth telling.
    Yields:
        The checkout; nobody else gets one of this branch meanwhile.
    Raises:
        BusyError: another run works on the branch.
        CheckoutError: no branch, or raw data that is nowhere to be had, naming the file.
        GitError, CommandError: git or DVC fails.
    """
    source = find_project(project)
    branch = branch or answer(source, "symbolic-ref", "--quiet", "--short", "HEAD")
    if not branch:
        raise CheckoutError(f"{source} has no branch checked out, so there is nothing to publish to; name a branch")
    if branch.startswith("-") or not succeeds(source, "check-ref-format", "--branch", branch):
        raise CheckoutError(f"{branch!r} is no name of a branch; pass one that `git branch` lists")
    shared = shared_folder(source)
    with branch_lock(source, branch):
        found = find_remote(source, remote)
        base = fetch(source, found, branch) if found else _local_head(source, branch)
        name = f"{_file_name(branch)}-{os.getpid()}"
        tree = (folder.expanduser().resolve() if folder else shared) / name
        with _worktree(source, shared, name, tree, base, on_line):
            checkout = Checkout(tree / _prefix(source), source, branch, base, found)
            share_settings(source, checkout.project)
            share_scratch(checkout.project, shared / "scratch" / _file_name(branch))
            restore_data(checkout.project, on_line)
            yield checkout


def _local_head(source: Path, branch: str) -> str:
    head = answer(source, "rev-parse", "--verify", "--quiet", f"refs/heads/{branch}")
    if head is None:
        raise CheckoutError(
            f"{source} has no branch {branch!r} with a commit, and no remote; commit once, or name another"
        )
    return head


def _prefix(source: Path) -> str:
    return git(source, "rev-parse", "--show-prefix").rstrip("\n")


@contextmanager
def _worktree(source: Path, shared: Path, name: str, tree: Path, base: str, on_line: Line) -> Iterator[None]:
    owner = shared / f"{name}.json"
    setup = _take(shared / "setup", wait=True)
    assert setup is not None
    with setup:  # nobody cleans up a worktree between its record and its lock
        _clean(source, shared, on_line)
        stream = _take(owner)
        if stream is None:
            raise BusyError(f"process {_recorded(owner).get('pid')} already works in {tree}; wait for its end")
        _record(stream, tree=str(tree))
        try:
            tree.parent.mkdir(parents=True, exist_ok=True)
            git(source, "worktree", "add", "--quiet", "--detach", str(tree), base)
        except BaseException:
            _remove(source, tree)
            owner.unlink(missing_ok=True)
            stream.close()
            raise
    with stream:
        try:
            yield
        finally:
            _remove(source, tree)
            owner.unlink(missing_ok=True)


def _clean(source: Path, shared: Path, on_line: Line) -> None:
    """Removes the worktrees of runs that are dead; a live one holds the lock on its record."""
    for owner in sorted(shared.glob("*.json")):
        stream = _take(owner)
        if stream is None:
            continue
        with stream:
            dead = _recorded(owner)
            # A record that was cut off is of a run that died before it had a worktree elsewhere.
            tree = Path(str(dead.get("tree") or shared / owner.stem))
            if tree.name == owner.stem:
                _remove(source, tree)
            owner.unlink(missing_ok=True)
            on_line(f"removed {tree}, left by process {dead.get('pid', 'unknown')}, which is gone")


def _remove(source: Path, tree: Path) -> None:
    if not succeeds(source, "worktree", "remove", "--force", "--force", str(tree)):
        shutil.rmtree(tree, ignore_errors=True)
        succeeds(source, "worktree", "prune")
