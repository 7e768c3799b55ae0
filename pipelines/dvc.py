"""DVC, as a command: what stages there are, what is out of date, and running it.

Owns every call of `dvc` and of `synthgen plan`, and what their answers mean. DVC runs as a process of
its own, never imported: several instances of it may work in one project at once (each waits for the
others' short locks), and a hanging one can be ended. Refuses to retry: DVC keeps what was finished.

PipelineError
├── CommandError             dvc or synthgen ended with a status other than 0
│   ├── CommandTimeoutError  it was ended because its time was up
│   └── CacheError           DVC's cache, or what it writes beside it, cannot be written
├── AnswerError              dvc answered in a form that is not understood
└── DirtyError               something is still out of date after everything ran
"""

import errno
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipelines.dvc_settings import cache_folder
from pipelines.secrecy import hide_secrets, known_secrets
from pipelines.supervise import STOPPED, TIMED_OUT, Ended, run_supervised
from synthgen.cores import CORES_VARIABLE
from synthgen.errors import SynthgenError

__all__ = [
    "AnswerError",
    "CacheError",
    "CommandError",
    "CommandTimeoutError",
    "DirtyError",
    "PipelineError",
    "find_project",
    "mend_lock",
    "out_of_date",
    "plan",
    "repro",
    "stage_graph",
    "stage_names",
    "status",
]

Line = Callable[[str], object]

QUERY_SECONDS = 900.0
PLAN_SECONDS = 3600.0
STAGE_SECONDS = 12 * 3600.0
NOT_RUN = 126  # as a shell says of what it cannot run
_NODE = re.compile(r'^\s*"?([^"\s][^"]*?)"?;$')
_UNWRITABLE = re.compile(r"ERROR: .*\[Errno (\d+)\] [^:]+: '([^']+)'")
_DISK = frozenset({errno.EACCES, errno.EDQUOT, errno.EIO, errno.ENOSPC, errno.EPERM, errno.EROFS})
_EDGE = re.compile(r'^\s*"?([^"]+?)"? -> "?([^"]+?)"?;$')


class PipelineError(SynthgenError):
    """Base of all errors of the scheduling side."""


class CommandError(PipelineError):
    """A command ended with a status other than 0.

    Attributes:
        what: the stage or the question that was asked.
        status: exit status.
        tail: last lines that it printed.
    """

    def __init__(self, what: str, status: int, tail: Sequence[str], reason: str) -> None:
        self.what = what
        self.status = status
        self.tail = tuple(tail)
        lines = "".join(f"\n  | {line}" for line in self.tail) or "\n  | (it printed nothing)"
        super().__init__(f"{what} {reason}" + (f"; its last lines:{lines}" if status != NOT_RUN else ""))


class CommandTimeoutError(CommandError):
    """A command was ended, with all its children, because its time was up."""


class CacheError(CommandError):
    """DVC's cache, or what DVC writes beside it, cannot be written."""


class AnswerError(PipelineError):
    """DVC answered in a form that is not understood."""


class DirtyError(PipelineError):
    """Something is still out of date after everything ran."""


def find_project(project: str | Path) -> Path:
    """The absolute folder of a DVC project.

    Raises:
        PipelineError: the folder has no dvc.yaml, or DVC was not set up in it.
    """
    folder = Path(project).expanduser().resolve()
    for needed, remedy in (("dvc.yaml", "pass the project's folder"), (".dvc", "run `dvc init` there")):
        if not (folder / needed).exists():
            raise PipelineError(f"{folder} has no {needed}, so it is no project that can be run; {remedy}")
    return folder


def child_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment that stages get: this one's programs first, no usage reports, nothing of Prefect.

    Prefect's settings may hold an API key; stages print to logs and have no use for it.
    """
    source = os.environ if environment is None else environment
    kept = {name: value for name, value in source.items() if not name.startswith("PREFECT_")}
    programs = str(Path(sys.executable).parent)
    kept["PATH"] = os.pathsep.join([programs, kept["PATH"]]) if kept.get("PATH") else programs
    return {**kept, "DVC_NO_ANALYTICS": "1", "DO_NOT_TRACK": "1", "PYTHONUNBUFFERED": "1"}


def _checked(what: str, ended: Ended, timeout_seconds: float, project: Path) -> Ended:
    if ended.status == 0:
        return ended
    secrets = known_secrets(project)
    tail = [hide_secrets(line, secrets) for line in ended.tail]
    if ended.status == TIMED_OUT:
        raise CommandTimeoutError(
            what, TIMED_OUT, tail, f"was ended with all its children after its limit of {timeout_seconds:g} s"
        )
    if ended.status == STOPPED:
        raise CommandError(what, STOPPED, tail, "was stopped from outside, with all its children")
    if found := next((match for line in tail if (match := _UNWRITABLE.search(line))), None):
        number, path = int(found[1]), found[2]
        if number in _DISK:
            raise CacheError(what, ended.status, tail, f"failed: {_unwritable(path, number)}")
    raise CommandError(what, ended.status, tail, f"failed with exit status {ended.status} (finished stages are kept)")


def _unwritable(path: str | Path, number: int) -> str:
    remedy = "free space there" if number in {errno.EDQUOT, errno.ENOSPC} else "make it writable for this user"
    return (
        f"DVC cannot write {path} ({os.strerror(number)}); {remedy}, or take another cache with `dvc cache dir --local "
        "FOLDER`, then run the same command again (finished stages are kept)"
    )


def _check_cache(project: Path, what: str) -> None:
    """Before a stage trains for hours whose output could not be kept."""
    folder = cache_folder(project)
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        is_read_only = bool(os.statvfs(there).f_flag & os.ST_RDONLY)
        said = _unwritable(folder, errno.EROFS if is_read_only else errno.EACCES)
        raise CacheError(what, NOT_RUN, (), f"was not run: {said}")


def _dvc(*arguments: str) -> list[str]:
    # -P: a project's own files never shadow DVC's modules.
    return [sys.executable, "-P", "-m", "dvc", "--wait-for-lock", *arguments]


def _ask(project: Path, *arguments: str) -> str:
    ended = run_supervised(_dvc(*arguments), project, child_environment(), QUERY_SECONDS)
    return _checked(f"`dvc {' '.join(arguments)}`", ended, QUERY_SECONDS, project).stdout


def stage_names(project: Path) -> list[str]:
    """Every stage instance of dvc.yaml, in its order.

    Raises:
        CommandError: dvc.yaml, params.yaml or plan.yaml cannot be used.
    """
    return _ask(project, "stage", "list", "--name-only").split()


def stage_graph(project: Path) -> dict[str, set[str]]:
    """Every stage instance with the instances whose outputs it reads.

    Taken from `dvc dag --dot`, which is DVC's public answer; files that were added by `dvc add` are left out.

    Raises:
        CommandError: dvc.yaml, params.yaml or plan.yaml cannot be used.
        AnswerError: a line is neither a node nor an edge.
    """
    return parse_graph(_ask(project, "dag", "--dot"))


def parse_graph(dot: str) -> dict[str, set[str]]:
    """Stages and their upstreams from the text of `dvc dag --dot`.

    Raises:
        AnswerError: a line is neither a node nor an edge.
    """
    graph: dict[str, set[str]] = {}
    for line in dot.splitlines():
        if not line.strip() or line.strip() == "}" or line.startswith(("strict digraph", "digraph")):
            continue
        if edge := _EDGE.match(line):
            upstream, stage = edge.groups()
            graph.setdefault(upstream, set())
            graph.setdefault(stage, set()).add(upstream)
        elif node := _NODE.match(line):
            graph.setdefault(node.group(1), set())
        else:
            raise AnswerError(
                f"`dvc dag --dot` printed {line!r}, neither a node nor an edge; is dvc >=3.67,<4 installed?"
            )
    files = {name for name in graph if name.endswith(".dvc")}
    return {name: upstreams - files for name, upstreams in graph.items() if name not in files}


def status(project: Path) -> dict[str, Any]:
    """What is out of date: stage or file -> reasons as DVC gives them; empty when all is done.

    Raises:
        CommandError: DVC cannot tell.
        AnswerError: the answer is no JSON object.
    """
    text = _ask(project, "status", "--json")
    try:
        answer = json.loads(text)
    except json.JSONDecodeError as error:
        raise AnswerError(f"`dvc status --json` printed {_shown(project, text)}, which is no JSON ({error})") from error
    if not isinstance(answer, dict):
        raise AnswerError(f"`dvc status --json` printed {_shown(project, text)}, not an object of stages")
    return answer


def _shown(project: Path, text: str) -> str:
    return repr(hide_secrets(text, known_secrets(project))[:200])


def out_of_date(graph: Mapping[str, set[str]], dirty: Mapping[str, Any]) -> dict[str, set[str]]:
    """The part of `graph` that has to be visited: dirty stages and all that come after them.

    Args:
        graph: stage -> upstream stages.
        dirty: answer of `status`.
    Returns:
        Those stages with those of their upstreams that are visited too.
    """
    chosen = {name for name in graph if name in dirty}
    while grown := {name for name, upstreams in graph.items() if name not in chosen and upstreams & chosen}:
        chosen |= grown
    return {name: upstreams & chosen for name, upstreams in graph.items() if name in chosen}


def mend_lock(project: Path, on_line: Line) -> bool:
    """Sets a torn dvc.lock aside; returns whether it did.

    DVC does not write dvc.lock atomically, so that a `kill -9` in that moment leaves it empty or cut, and every
    dvc command fails from then on. Without the file nothing is lost: DVC's run cache knows what each stage made.
    """
    path = project / "dvc.lock"
    if not path.exists() or _is_lock(path):
        return False
    aside = project / ".dvc" / "tmp" / "dvc.lock.torn"
    aside.parent.mkdir(parents=True, exist_ok=True)
    path.replace(aside)
    on_line(f"{path} was cut off by a kill and is set aside as {aside}; finished stages come back from DVC's run cache")
    return True


def _is_lock(path: Path) -> bool:
    try:
        content = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
        stages = content.get("stages", {})
        files = [entry for stage in stages.values() for key in ("deps", "outs") for entry in stage.get(key, [])]
        return (
            isinstance(content["schema"], str)
            and all("cmd" in stage for stage in stages.values())
            and all(map(_is_entry, files))
        )
    except (YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError):
        return False


def _is_entry(entry: Any) -> bool:
    # A directory of the run's own inputs may have no checksum; a checksum without its kind is a cut-off entry.
    return isinstance(entry, dict) and isinstance(entry.get("path"), str) and None not in entry.values()


def _without_secrets(project: Path, on_line: Line) -> Line:
    secrets = known_secrets(project)
    return lambda line: on_line(hide_secrets(line, secrets))


def repro(
    project: Path,
    stage: str | None,
    on_line: Line,
    timeout_seconds: float = STAGE_SECONDS,
    n_cores: int | None = None,
) -> None:
    """Runs one stage instance alone, or (stage None) whatever is out of date.

    Args:
        project: folder of dvc.yaml.
        stage: instance such as `adapt@f0-crack`; its upstreams have to be done.
        on_line: gets each line of output as it comes.
        timeout_seconds: after which DVC and the stage's processes are ended.
        n_cores: that the stage may keep busy ($SYNTHGEN_CORES); None: what this process's environment says.
    Raises:
        CommandError: naming the stage, the exit status and the last lines, free of secrets.
        CommandTimeoutError: the time was up.
        CacheError: DVC's cache cannot be written; said before anything runs, if it can be seen then.
    """
    what = f"stage {stage!r}" if stage else "`dvc repro`"
    _check_cache(project, what)
    command = _dvc("repro", *(["--single-item", stage] if stage else []))
    told = _without_secrets(project, on_line)
    environment = child_environment() | ({} if n_cores is None else {CORES_VARIABLE: str(n_cores)})
    ended = run_supervised(command, project, environment, timeout_seconds, told, spare_leader=True)
    _checked(what, ended, timeout_seconds, project)


def plan(project: Path, on_line: Line, timeout_seconds: float = PLAN_SECONDS) -> None:
    """Writes plan.yaml anew from the raw data (`synthgen plan`).

    Raises:
        CommandError: the raw data or params.yaml cannot be used; carries the command's own words.
    """
    command = [sys.executable, "-m", "synthgen", "plan"]
    told = _without_secrets(project, on_line)
    ended = run_supervised(command, project, child_environment(), timeout_seconds, told)
    _checked("`synthgen plan`", ended, timeout_seconds, project)
