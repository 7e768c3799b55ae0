"""DVC's configuration files, read without starting DVC: where the cache lies, and which options there are.

Owns the files' places, their order and the reading; what an option means is for the caller. Refuses to write them
(`dvc config` does) and to judge what cannot be parsed: DVC itself says what is wrong with it, when it reads it.
"""

import configparser
import os
import sys
from collections.abc import Mapping
from pathlib import Path

__all__ = ["cache_folder", "project_files", "read_settings", "shared_files"]


def shared_files(environment: Mapping[str, str] | None = None) -> list[Path]:
    """DVC's files of the system and of the user, the later one overruling; they need not be there.

    Args:
        environment: variables to look at; this process's by default.
    """
    given = os.environ if environment is None else environment
    home = Path.home()
    if sys.platform == "darwin":
        system, own = Path("/Library/Application Support/dvc"), home / "Library" / "Application Support" / "dvc"
    else:
        system, own = Path("/etc/xdg/dvc"), Path(given.get("XDG_CONFIG_HOME") or home / ".config") / "dvc"
    folders = (given.get("DVC_SYSTEM_CONFIG_DIR") or system, given.get("DVC_GLOBAL_CONFIG_DIR") or own)
    return [Path(folder) / "config" for folder in folders]


def project_files(project: Path) -> list[Path]:
    """The committed file and the one of this checkout alone, the later one overruling; they need not be there."""
    return [project / ".dvc" / "config", project / ".dvc" / "config.local"]


def read_settings(path: Path) -> configparser.RawConfigParser:
    """One file's sections and options; empty where it is not there or cannot be parsed."""
    parser = configparser.RawConfigParser(strict=False, delimiters=("=",), comment_prefixes=("#",))
    try:
        parser.read_string(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, configparser.Error):
        return configparser.RawConfigParser()
    return parser


def cache_folder(project: Path) -> Path:
    """The folder of DVC's cache, as the files say; `.dvc/cache` where they say nothing."""
    found = project / ".dvc" / "cache"
    for path in (*shared_files(), *project_files(project)):
        given = read_settings(path).get("cache", "dir", fallback="").strip("'\"")
        if given:
            found = Path(os.path.normpath(path.parent / Path(given).expanduser()))
    return found
