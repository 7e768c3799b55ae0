"""Words in which no secret stands: what git, dvc and stages say quotes addresses, and an address may hold a password.

Owns where secrets lie (git's remotes, DVC's settings, the environment) and taking them out of text. Refuses to
recognise a secret by its looks alone, beyond the user part and the query of an address: what is not known stays.
"""

import os
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import unquote

from pipelines.dvc_settings import project_files, read_settings, shared_files

__all__ = ["hide_secrets", "known_secrets"]

HIDDEN = "***"
GIT_SECONDS = 120.0
_USER_PART = re.compile(r"(?<=://)[^/\s'\"]*@")
_QUERY = re.compile(r"(?i)([?&][^=&\s]*(?:token|sig|secret|password|key|credential)[^=&\s]*=)[^&\s'\"]+")
_SECRET_OPTION = re.compile(
    r"(?i)pass|secret|token|credential(?!path)|(?<!grants_)key(?!file|_path)|sas|auth$|connection"
)
_SECRET_VARIABLE = re.compile(r"(?i)pass(word|wd|phrase)|secret|token|api_?key|access_?key|connection_string")
_SHORTEST_SECRET = 4


def hide_secrets(text: str, known: Iterable[str] = ()) -> str:
    """`text` without user parts of addresses, secret query values and the `known` secrets.

    Args:
        text: what a command said.
        known: exact values, see `known_secrets`.
    """
    for secret in sorted(known, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return _QUERY.sub(rf"\1{HIDDEN}", _USER_PART.sub(f"{HIDDEN}@", text))


def known_secrets(folder: Path, environment: Mapping[str, str] | None = None) -> frozenset[str]:
    """Secret values that a command in `folder` could say: of git's remotes, DVC's settings and the environment.

    Args:
        folder: a DVC project in a git repository (either may be absent).
        environment: variables to look at; this process's by default.
    """
    variables = os.environ if environment is None else environment
    found = {
        value
        for name, value in variables.items()
        if _SECRET_VARIABLE.search(name) and len(value) >= 2 * _SHORTEST_SECRET
    }
    addresses = [*_git_addresses(folder), *(value for value in variables.values() if "://" in value)]
    for path in (*shared_files(environment), *project_files(folder)):
        for section in read_settings(path).values():
            found.update(value.strip("'\"") for key, value in section.items() if _SECRET_OPTION.search(key))
            addresses += [value.strip("'\"") for key, value in section.items() if "url" in key]
    for address in addresses:
        user = _USER_PART.search(address)
        password = user.group().rstrip("@").partition(":")[2] if user else ""
        found.update({password, unquote(password)})
    return frozenset(secret for secret in found if len(secret) >= _SHORTEST_SECRET)


def _git_addresses(folder: Path) -> list[str]:
    """Addresses of git's remotes; none without git or a repository. `pipelines.git` stands above this file."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "config", "--get-regexp", r"^remote\..*url$"],
            cwd=folder,
            env={**environment, "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=GIT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.partition(" ")[2] for line in done.stdout.splitlines()]
