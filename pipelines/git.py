"""Git, as a command: argument lists, time-outs, and words in which no secret stands.

Owns every call of `git` that does something, and the environment that it gets; what it says passes through
`pipelines.secrecy`. Refuses prompts, hooks and background maintenance: an unattended run has nobody to answer, what
DVC's hooks do is done here by name, and no process may outlive the run.

PipelineError
└── GitError             git ended with a status other than 0, or answered in a form that is not understood
    └── GitTimeoutError  it was ended because its time was up
"""

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.dvc import PipelineError, child_environment
from pipelines.secrecy import hide_secrets, known_secrets
from pipelines.supervise import NOT_STARTED, TAIL_LINES, TIMED_OUT, Ended, run_supervised

__all__ = [
    "Author",
    "GitError",
    "GitTimeoutError",
    "answer",
    "git",
    "hide_secrets",
    "known_secrets",
    "push",
    "succeeds",
    "write_tag",
]

LOCAL_SECONDS = 120.0
REMOTE_SECONDS = 900.0

# Variables that would point git at another repository than the folder it is called in (a run started by a hook),
# or make somebody else the author.
_ELSEWHERE = frozenset(
    {
        "GIT_AUTHOR_EMAIL",
        "GIT_AUTHOR_NAME",
        "GIT_COMMITTER_EMAIL",
        "GIT_COMMITTER_NAME",
        "GIT_ALTERNATE_OBJECT_DIRECTORIES",
        "GIT_COMMON_DIR",
        "GIT_DIR",
        "GIT_INDEX_FILE",
        "GIT_NAMESPACE",
        "GIT_OBJECT_DIRECTORY",
        "GIT_PREFIX",
        "GIT_WORK_TREE",
    }
)
_UNATTENDED = ("-c", f"core.hooksPath={os.devnull}", "-c", "gc.auto=0", "-c", "maintenance.auto=false")
_REMOTE_VERBS = frozenset({"fetch", "ls-remote", "push"})


class GitError(PipelineError):
    """Git ended with a status other than 0, or answered in a form that is not understood."""


class GitTimeoutError(GitError):
    """A git command was ended, with all its children, because its time was up."""


@dataclass(frozen=True)
class Author:
    """Who commits and tags.

    Attributes:
        name: without `<`, `>` and line ends.
        email: the same.
    """

    name: str = "synthgen"
    email: str = "synthgen@localhost"

    def __post_init__(self) -> None:
        """Refuses what git would cut out of an identity, or that would end its line."""
        for value in (self.name, self.email):
            if not value.strip() or re.search(r"[<>\x00-\x1f]", value):
                raise PipelineError(f"author {value!r} is empty or holds <, > or a control character; pass another one")

    def __str__(self) -> str:
        """As git writes it."""
        return f"{self.name} <{self.email}>"


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in child_environment().items() if name not in _ELSEWHERE}
    # Without a terminal, which a session of its own has not, ssh cannot ask either.
    return {
        **kept,
        "GIT_EDITOR": "true",
        "GIT_LITERAL_PATHSPECS": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "LC_ALL": "C.UTF-8",
        "SSH_ASKPASS_REQUIRE": "never",
    }


def _run(folder: Path, arguments: tuple[str, ...], seconds: float) -> Ended:
    command = ["git", *_UNATTENDED, *arguments]
    if _is_remote(arguments):
        return run_supervised(command, folder, _environment(), seconds)
    # What works on local files alone takes milliseconds and has no children: a supervisor would take longer to start.
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Ended(TIMED_OUT, "", ())
    except OSError as error:
        return Ended(NOT_STARTED, "", (f"cannot start git: {error.strerror}",))
    return Ended(done.returncode, done.stdout, tuple(done.stderr.splitlines()[-TAIL_LINES:]))


def _is_remote(arguments: tuple[str, ...]) -> bool:
    return bool(_REMOTE_VERBS & set(arguments[:3]))


def _seconds(arguments: tuple[str, ...]) -> float:
    return REMOTE_SECONDS if _is_remote(arguments) else LOCAL_SECONDS


def _refuse(folder: Path, arguments: tuple[str, ...], ended: Ended, seconds: float) -> GitError:
    secrets = known_secrets(folder)
    said = "".join(f"\n  | {line}" for line in ended.tail) or "\n  | (it printed nothing)"
    verb = next((word for word in arguments if not word.startswith("-") and "=" not in word), "")
    if ended.status == TIMED_OUT:
        return GitTimeoutError(hide_secrets(f"`git {verb}` was ended after its limit of {seconds:g} s:{said}", secrets))
    remedy = "; install git" if ended.status == NOT_STARTED else ""
    return GitError(hide_secrets(f"`git {verb}` failed with exit status {ended.status}{remedy}:{said}", secrets))


def git(folder: Path, *arguments: str, seconds: float | None = None) -> str:
    """Runs `git ARGUMENTS` in `folder`; returns what it printed.

    Args:
        folder: a work tree, or a repository's own folder.
        arguments: never a shell's line; paths among them are taken literally, never as patterns.
        seconds: limit; by default 15 minutes for what talks to a remote, else 2.
    Raises:
        GitError: with its last lines, free of secrets.
        GitTimeoutError: the time was up.
    """
    limit = _seconds(arguments) if seconds is None else seconds
    ended = _run(folder, arguments, limit)
    if ended.status:
        raise _refuse(folder, arguments, ended, limit)
    return ended.stdout


def answer(folder: Path, *arguments: str) -> str | None:
    """What `git ARGUMENTS` printed, without its last line end; None where it says no (status 1).

    Raises:
        GitError: any other status.
    """
    limit = _seconds(arguments)
    ended = _run(folder, arguments, limit)
    if ended.status == 1:
        return None
    if ended.status:
        raise _refuse(folder, arguments, ended, limit)
    return ended.stdout.rstrip("\n")


def succeeds(folder: Path, *arguments: str) -> bool:
    """Whether `git ARGUMENTS` ends with status 0; why it does not is not looked at."""
    return _run(folder, arguments, _seconds(arguments)).status == 0


def write_tag(folder: Path, tag: str, commit: str, message: str, author: Author, *, not_before: int = 0) -> str:
    """Writes an annotated tag's object and no reference to it; returns its id.

    A reference comes with the push alone, so that a killed run leaves no tag that was never published.

    Args:
        folder: a work tree.
        tag: the name that the object carries.
        commit: full id of the commit it points at.
        message: may not be empty.
        author: who tags.
        not_before: seconds since 1970; the tag is dated then if the clock is behind it.
    Raises:
        GitError: git refuses the object.
    """
    when = max(int(time.time()), not_before)
    head = f"object {commit}\ntype commit\ntag {tag}\ntagger {author} {when} +0000\n"
    with tempfile.TemporaryDirectory(prefix="synthgen-tag-") as name:
        path = Path(name) / "tag"
        path.write_text(f"{head}\n{message.strip()}\n", encoding="utf-8")
        return git(folder, "hash-object", "-t", "tag", "-w", str(path)).strip()


def push(folder: Path, target: str, references: Mapping[str, str]) -> None:
    """Pushes all of `references` or none of them (`--atomic`), forcing nothing.

    Args:
        folder: a work tree.
        target: name of a remote; or the repository's own folder, where there is no remote: a branch that somebody has
            checked out is then moved together with that tree if the tree is clean, and refused if it is not.
        references: full name at the target -> object id.
    Raises:
        GitError: refused or unreachable.
    """
    own = ["--receive-pack=git -c receive.denyCurrentBranch=updateInstead receive-pack"] if "/" in target else []
    specs = [f"{value}:{name}" for name, value in references.items()]
    git(folder, "push", "--quiet", "--atomic", *own, target, *specs)
