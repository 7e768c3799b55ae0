"""What DVC has written down about outputs, read without DVC: dvc.lock, listings of folders, blobs of the cache.

Owns the forms of DVC 3 (an md5 of a file's bytes, an md5 of a folder's sorted JSON listing, the cache's layout).
Refuses outputs outside of the project and hashes of DVC 2; never shows DVC's configuration, which may hold secrets.
"""

import configparser
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from synthgen.errors import ArtifactError

LOCK_SCHEMA = "2.0"
DVC_IGNORES = (".git", ".hg", ".dvc")


@dataclass(frozen=True)
class LockedOutput:
    """One output as dvc.lock has it.

    Attributes:
        stage: instance that wrote it.
        path: below the project, with slashes.
        md5: of the file's bytes, or of the folder's listing.
        is_folder: whether it is a folder.
    """

    stage: str
    path: str
    md5: str
    is_folder: bool


def read_dvc_lock(path: Path) -> list[LockedOutput]:
    """Every output that dvc.lock names, in its order.

    Raises:
        ArtifactError: missing, damaged, of another schema, or naming a path outside of the project.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        lock: Any = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
        if lock["schema"] != LOCK_SCHEMA:
            raise ArtifactError(f"{path} has schema {lock['schema']!r}, this version reads {LOCK_SCHEMA!r}")
        return [
            _locked_output(path, str(stage), out) for stage, entry in lock["stages"].items() for out in entry["outs"]
        ]
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing: nothing was run here; run `dvc repro`") from error
    except (YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged ({error}); run `git checkout dvc.lock`, then `dvc repro`") from error


def _locked_output(lock: Path, stage: str, out: dict[str, Any]) -> LockedOutput:
    path, md5 = PurePosixPath(str(out["path"])), str(out["md5"])
    if path.is_absolute() or ".." in path.parts:
        raise ArtifactError(f"{lock}: output {path} of {stage} lies outside of the project and cannot be compared")
    if out.get("hash") != "md5":
        raise ArtifactError(f"{lock}: {path} was hashed by DVC 2; run `dvc commit --force` with DVC 3 once")
    digest = md5.removesuffix(".dir")
    if len(digest) != 32 or set(digest) - set("0123456789abcdef"):
        raise ArtifactError(f"{lock}: {path} has md5 {md5!r}, which is none; run `git checkout dvc.lock`")
    return LockedOutput(stage, path.as_posix(), digest, md5.endswith(".dir"))


def md5_of_file(path: Path) -> str:
    """Hex md5 of a file's bytes, DVC's name for it."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def md5_of_listing(listing: dict[str, str]) -> str:
    """Hex md5 of a folder, as DVC computes it.

    Args:
        listing: relative path with slashes -> md5 of the file.
    Source: `dvc_data.hashfile.tree.Tree.as_bytes` of DVC 3.
    """
    entries = [{"md5": listing[name], "relpath": name} for name in sorted(listing)]
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode(), usedforsecurity=False).hexdigest()


def find_cache(root: Path) -> Path:
    """Where DVC keeps blobs for this project: `cache.dir` of its configuration, else `.dvc/cache`."""
    folder = root / ".dvc" / "cache"
    for name in ("config", "config.local"):
        parser = configparser.RawConfigParser(strict=False)
        try:
            parser.read(root / ".dvc" / name, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError):
            continue  # DVC itself will say what is wrong with it; its lines may hold a password
        named = parser.get("cache", "dir", fallback="").strip("\"'")
        if named:
            folder = root / ".dvc" / named
    return folder / "files" / "md5"


class Blobs:
    """Blobs of the cache, each read once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.is_intact = cache(self._is_intact)

    def path(self, md5: str, suffix: str = "") -> Path:
        """Where the blob of this md5 lies (suffix `.dir` for a listing)."""
        return self.folder / md5[:2] / f"{md5[2:]}{suffix}"

    def _is_intact(self, md5: str, suffix: str = "") -> bool | None:
        """Whether a blob still has its md5; None where it is not in the cache."""
        try:
            return md5_of_file(self.path(md5, suffix)) == md5
        except OSError:
            return None

    def listing(self, md5: str) -> dict[str, str] | None:
        """The listing that a folder was stored with, if it is in the cache and intact."""
        if not self.is_intact(md5, ".dir"):
            return None
        entries = json.loads(self.path(md5, ".dir").read_text(encoding="utf-8"))
        return {str(entry["relpath"]): str(entry["md5"]) for entry in entries}


def ignored_names(root: Path) -> list[str]:
    """Patterns of the project's .dvcignore; DVC leaves what they match out of listings."""
    path = root / ".dvcignore"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [*DVC_IGNORES, *(line.strip().rstrip("/") for line in lines if line.strip() and not line.startswith("#"))]


def files_below(root: Path, folder: Path, ignored: list[str]) -> Iterator[tuple[str, Path]]:
    """(relative path with slashes, path) of the files that DVC would list in `folder`, sorted."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        parts = path.relative_to(folder).parts
        whole = path.relative_to(root).as_posix()
        if any(fnmatch(part, name) for part in parts for name in ignored) or any(
            fnmatch(whole, name.removeprefix("/")) for name in ignored if "/" in name
        ):
            continue
        yield "/".join(parts), path
