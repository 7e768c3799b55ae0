"""What the sensor watches: the raw data's DVC revision, or the files of a folder.

Owns what of them counts: content, not times; complete files, not growing ones. Refuses to follow links and to write.

PipelineError
└── SensorError  what is watched cannot be read
"""

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipelines.checkout import fetch, find_remote
from pipelines.dvc import PipelineError
from pipelines.git import answer, git
from synthgen.artifacts import sha256_file

__all__ = ["Folder", "Seen", "SensorError", "dvc_revision", "folder_files"]

RAW = "data/raw"


class SensorError(PipelineError):
    """What is watched cannot be read."""


@dataclass(frozen=True)
class Seen:
    """A file as it was last seen.

    Attributes:
        size: bytes.
        mtime_ns: its own time.
        since: when it was first seen so, s since the epoch.
        sha256: of its content; empty while it is not settled.
    """

    size: int
    mtime_ns: int
    since: float
    sha256: str = ""


@dataclass(frozen=True)
class Folder:
    """A watched folder as it was last seen.

    Attributes:
        files: path below it -> what was seen.
        settled: path below it -> sha256 that counts: a file that changes counts as it was before.
    """

    files: Mapping[str, Seen] = field(default_factory=dict)
    settled: Mapping[str, str] = field(default_factory=dict)


def dvc_revision(project: Path, branch: str | None = None, remote: str = "origin", raw: str = RAW) -> dict[str, str]:
    """The raw data of the published branch as DVC names it.

    Args:
        project: folder of dvc.yaml in a git repository; what is checked out there does not matter.
        branch: by default the one that is checked out.
        remote: is asked for the branch's state; where there is none of that name, the local branch counts.
        raw: folder of the raw data, relative to the project.
    Returns:
        Path of each output -> md5, for `raw.dvc` and every .dvc file below `raw`; files there that git itself holds
        are named by git's own digest.
    Raises:
        SensorError: there is no branch or no raw data in it, or a .dvc file cannot be read.
        GitError: the remote cannot be reached.
    """
    branch = branch or answer(project, "symbolic-ref", "--quiet", "--short", "HEAD")
    if not branch or branch.startswith("-"):
        raise SensorError(f"{project} has no branch checked out (asked for: {branch!r}); name one")
    found = find_remote(project, remote)
    local = f"refs/heads/{branch}"
    commit = fetch(project, found, branch) if found else answer(project, "rev-parse", "--verify", "--quiet", local)
    if not commit:
        raise SensorError(f"{project} has no branch {branch!r} with a commit, and no remote {remote!r}; commit once")
    prefix = git(project, "rev-parse", "--show-prefix").rstrip("\n")
    listed = git(project, "ls-tree", "-r", "-z", "--full-tree", commit).split("\0")
    revision: dict[str, str] = {}
    for line in filter(None, listed):
        what, _tab, path = line.partition("\t")
        is_raw = path == f"{prefix}{raw}.dvc" or path.startswith(f"{prefix}{raw}/")
        if is_raw and path.endswith(".dvc"):
            revision |= _outputs(path, git(project, "show", f"{commit}:{path}"))
        elif is_raw and not path.rpartition("/")[2].startswith("."):
            revision[path] = what.split()[2]
    if not revision:
        raise SensorError(
            f"branch {branch!r} has neither {raw}.dvc nor anything in {raw}; `dvc add` the raw data, or watch a folder"
        )
    return revision


def _outputs(path: str, text: str) -> dict[str, str]:
    try:
        entries = YAML(typ="safe").load(text)["outs"]
        return {f"{path}:{entry['path']}": str(entry.get("md5") or entry["hash"]) for entry in entries}
    except (YAMLError, KeyError, TypeError, AttributeError) as error:
        raise SensorError(
            f"{path} is no file of `dvc add` ({type(error).__name__}: {error}); add the data again"
        ) from error


def folder_files(folder: Path, before: Folder, settle_seconds: float, now: float) -> Folder:
    """Looks at a watched folder.

    A file counts when it has been unchanged for `settle_seconds`, by its own times or, where those are in the future
    (another machine's clock), since the sensor first saw it so. Until then it counts as it did before. Hidden files and
    folders, links and what is no regular file are left out.

    Args:
        folder: all files below it are watched.
        before: the last look; a known file of the same size and time is not read again.
        settle_seconds: see above.
        now: seconds since the epoch.
    Raises:
        SensorError: the folder is not there, or is empty and was not before.
    """
    files: dict[str, Seen] = {}
    settled: dict[str, str] = {}
    for path, status in _walk(folder):
        name = path.relative_to(folder).as_posix()
        known = before.files.get(name)
        if known is None or (known.size, known.mtime_ns) != (status.st_size, status.st_mtime_ns):
            known = Seen(status.st_size, status.st_mtime_ns, now)
        # ctime too: a copy may carry its original's mtime.
        age = now - max(status.st_mtime_ns, status.st_ctime_ns) / 1e9
        if not known.sha256 and (age >= settle_seconds or now - known.since >= settle_seconds):
            known = replace(known, sha256=_digest_unless_changed(path, status))
        files[name] = known
        if known.sha256 or name in before.settled:
            settled[name] = known.sha256 or before.settled[name]
    if not files and before.settled:
        raise SensorError(
            f"{folder} is empty and held {len(before.settled)} files before: is it mounted? If it was emptied on "
            "purpose, delete the sensor's memory below .synthgen/sensor"
        )
    return Folder(files, settled)


def _walk(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise SensorError(f"{folder} cannot be watched: {error.strerror}; mount it, or watch another one") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        with suppress(FileNotFoundError):  # it went away meanwhile
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                yield from _walk(Path(entry.path))
            elif stat.S_ISREG(status.st_mode):
                yield Path(entry.path), status


def _digest_unless_changed(path: Path, before: os.stat_result) -> str:
    try:
        digest = sha256_file(path)
        after = path.lstat()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise SensorError(f"{path} cannot be read: {error.strerror}; make it readable or remove it") from error
    same = (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    return digest if same else ""
