"""What a worktree needs before a run can work in it: DVC's settings, the scratch of earlier runs, the data.

Owns those three and the calls of `dvc` that they take. Refuses to write anywhere but into the worktree (and DVC's
cache), to say a setting's value, and to start without the raw data.
"""

import configparser
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from pipelines.dvc import AnswerError, CommandError, PipelineError, child_environment
from pipelines.git import git, hide_secrets, known_secrets
from pipelines.supervise import TIMED_OUT, run_supervised

__all__ = ["CheckoutError", "default_remote", "restore_data", "run_dvc", "share_scratch", "share_settings"]

Line = Callable[[str], object]

DVC_SECONDS = 6 * 3600.0
SCRATCH = ".synthgen"
LOST = ("deleted", "not in cache")
_PATHS = frozenset(  # options that DVC takes relative to the folder of the file they stand in
    {
        "cert_path",
        "configpath",
        "credentialpath",
        "dir",
        "gdrive_service_account_json_file_path",
        "gdrive_user_credentials_file",
        "key_path",
        "keyfile",
        "url",
    }
)


class CheckoutError(PipelineError):
    """The branch, its data or its settings cannot be had."""


def run_dvc(project: Path, *arguments: str, seconds: float = DVC_SECONDS) -> str:
    """Runs `dvc ARGUMENTS` in `project`; returns what it printed.

    Raises:
        CommandError: with its last lines, free of secrets.
    """
    command = [sys.executable, "-P", "-m", "dvc", "--wait-for-lock", *arguments]
    ended = run_supervised(command, project, child_environment(), seconds, spare_leader=True)
    if ended.status:
        secrets = known_secrets(project)
        tail = [hide_secrets(line, secrets) for line in ended.tail]
        reason = f"was ended after its limit of {seconds:g} s" if ended.status == TIMED_OUT else "failed"
        raise CommandError(f"`dvc {arguments[0]}`", ended.status, tail, f"{reason} (exit status {ended.status})")
    return ended.stdout


def default_remote(project: Path) -> str | None:
    """The name of DVC's default remote, which push and pull use; None where there is none."""
    said = run_dvc(project, "remote", "default").strip()
    return None if not said or said.lower().startswith("no default remote") else said


def _read(path: Path) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=False, delimiters=("=",), comment_prefixes=("#",))
    try:
        if path.exists():
            parser.read_string(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, configparser.Error) as error:
        # The error's own words quote lines, and a line may be a password.
        raise CheckoutError(f"{path} cannot be read ({type(error).__name__}); correct it with `dvc config`") from None
    return parser


def share_settings(source: Path, project: Path) -> None:
    """Writes the worktree's .dvc/config.local: the person's, the shared cache, and paths that hold from here too.

    Args:
        source: the project whose settings hold; only read.
        project: the same project in a worktree.
    Raises:
        CheckoutError: the settings cannot be read.
    """
    theirs, ours = source / ".dvc", project / ".dvc"
    settings = _read(theirs / "config.local")
    for section, options in _read(ours / "config").items():
        for option, value in options.items():
            if option in _PATHS and not settings.has_option(section, option):
                _set(settings, section, option, value)
    for section, options in settings.items():
        for option, value in options.items():
            plain = value.strip("'\"")
            if option in _PATHS and not re.match(r"\w+://", plain):
                path = Path(plain).expanduser()
                options[option] = str(path if path.is_absolute() else Path(os.path.normpath(theirs / path)))
            _set(settings, section, option, options[option])
    _set(settings, "cache", "dir", run_dvc(source, "cache", "dir").strip())
    # DVC's own notes about this worktree go with it; by default they gather in the machine's temporary folder.
    _set(settings, "core", "site_cache_dir", str(ours / "tmp" / "site"))
    path = ours / "config.local"
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as stream:
        settings.write(stream)


def _set(settings: configparser.RawConfigParser, section: str, option: str, value: str) -> None:
    if section != settings.default_section and not settings.has_section(section):
        settings.add_section(section)
    settings.set(section, option, value)


def share_scratch(project: Path, scratch: Path) -> None:
    """Lets the unfinished trainings of `project` lie in `scratch`, where the next worktree finds them."""
    scratch.mkdir(parents=True, exist_ok=True)
    link = project / SCRATCH
    if not link.exists():
        link.symlink_to(scratch, target_is_directory=True)


def _lost(project: Path, files: list[str]) -> dict[str, list[str]]:
    """Stage or .dvc file -> its outputs that are not there."""
    text = run_dvc(project, "status", "--json", *files)
    try:
        reasons = json.loads(text)
        return {
            name: lost
            for name, entries in reasons.items()
            if (
                lost := [
                    path
                    for entry in entries
                    if isinstance(entry, dict)
                    for path, what in entry.get("changed outs", {}).items()
                    if what in LOST or name.endswith(".dvc")
                ]
            )
        }
    except (ValueError, AttributeError) as error:
        raise AnswerError(f"`dvc status --json` printed {text[:200]!r}, not an object of stages") from error


def restore_data(project: Path, on_line: Line) -> None:
    """Brings raw data and what stages made before from the cache, else from DVC's remote.

    Raises:
        CheckoutError: raw data is in neither, naming the .dvc file.
    """
    tracked = git(project, "ls-files", "-z").split("\0")
    raw = [path for path in tracked if path.endswith(".dvc") and path.rpartition("/")[2] != ".dvc"]
    # Without a plan dvc.yaml cannot be read yet; the files that hold raw data can.
    targets = [] if (project / "plan.yaml").exists() else raw
    if not raw and not (project / "dvc.lock").exists():
        return
    _try_dvc(on_line, project, "checkout", "--quiet", "--allow-missing", *targets)
    lost = _lost(project, targets)
    if lost and default_remote(project):
        _try_dvc(on_line, project, "pull", "--quiet", "--allow-missing", *targets)
        lost = _lost(project, targets)
    if missing := sorted(name for name in lost if name in raw):
        raise CheckoutError(
            f"the data of {', '.join(missing)} is neither in the cache nor in DVC's remote; where it was added, "
            "run `dvc push` (with a default remote set by `dvc remote add --default`)"
        )


def _try_dvc(on_line: Line, project: Path, *arguments: str) -> None:
    # What is missing afterwards is looked at by itself: a stage that was never made is no error here.
    try:
        run_dvc(project, *arguments)
    except CommandError as error:
        on_line(str(error))
