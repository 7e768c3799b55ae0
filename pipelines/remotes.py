"""DVC remotes that can be trusted: added with `verify true`, listed without secrets, pulled from by name.

Owns what a remote's address may hold, how one is added, the check that every remote notices a tampered object on
pull and that no secret stands in a file that git keeps. Refuses addresses with a password, since `.dvc/config` is
committed. Knows no protocol: moving data is DVC's work.

PipelineError
├── RemoteError  a remote's name or address cannot be used, or another remote has that name
└── PullError    data of this commit did not arrive: the remote lacks it, or has something else in its place
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from pipelines.dvc import QUERY_SECONDS, STAGE_SECONDS, CommandError, PipelineError, child_environment, find_project
from pipelines.secrecy import hide_secrets, known_secrets
from pipelines.supervise import run_supervised
from synthgen.errors import SynthgenError

__all__ = ["PullError", "Remote", "RemoteError", "add_remote", "list_remotes", "masked_url", "problems_of", "pull_data"]

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,47}")
TRACKED = ".dvc/config"
SECRET_OPTIONS = frozenset(
    {
        "account_key",
        "client_secret",
        "connection_string",
        "gdrive_client_secret",
        "oss_key_secret",
        "passphrase",
        "password",
        "sas_token",
        "secret_access_key",
        "session_token",
        "sse_customer_key",
        "token",
    }
)
_SECRET_PARAMETER = re.compile(r"sig|token|secret|passw|key|credential", re.IGNORECASE)
_DIGEST = re.compile(r"(?:[0-9a-f]{32})?")
_LOST_LISTING = re.compile(r"failed to load directory (\([^)]*\)).*No such file")
_HOST_AND_PORT = re.compile(r"[^:/]*:\d*/")
SHOWN = 10
# With these a user name alone may be a token; with ssh it is only a name.
_WEB = ("http", "https", "webdav", "webdavs")


class RemoteError(PipelineError):
    """A remote's name or address cannot be used, or another remote has that name."""


class PullError(PipelineError):
    """Data of this commit did not arrive: the remote lacks it, or has something else in its place.

    Attributes:
        objects: file or folder -> its object's place below the remote's address ("" where that is not known).
    """

    def __init__(self, objects: Mapping[str, str]) -> None:
        self.objects = dict(objects)
        listed = "".join(
            f"\n  {path}" + (f" (object {place})" if place else "") for path, place in list(objects.items())[:SHOWN]
        )
        more = f"\n  and {len(objects) - SHOWN} more" if len(objects) > SHOWN else ""
        super().__init__(
            f"{len(objects)} files or folders of this commit did not arrive whole, so none was written; the remote "
            f"lacks their objects or holds altered ones:{listed}{more}\nWhere the data is known to be good run `dvc "
            "push`; it never writes over an object that is there, so delete an altered one at the remote before"
        )


@dataclass(frozen=True)
class Remote:
    """One DVC remote, as all of DVC's configuration files together say.

    Attributes:
        name: by which `dvc push --remote` knows it.
        url: its address, secrets masked.
        verify: whether an object that does not match its digest makes a pull fail.
        is_default: whether it is taken where none is named.
        origin: the configuration file that gives the address.
        tracked_secrets: options with a secret that stand in the file that git keeps.
    """

    name: str
    url: str
    verify: bool
    is_default: bool
    origin: str
    tracked_secrets: tuple[str, ...] = ()


def has_secret(url: str) -> bool:
    """Whether an address holds a password, a token or a signature; one that cannot be taken apart counts as such."""
    scheme, mark, rest = url.partition("://")
    if not mark:
        return False
    user, at, _ = rest.partition("@")
    if at and ":" in user and not _HOST_AND_PORT.match(user):
        return True
    try:
        parts = urlsplit(url)
    except ValueError:
        return True
    if scheme.lower() in _WEB and "@" in parts.netloc:
        return True
    return any(_SECRET_PARAMETER.search(name) for name, _ in parse_qsl(parts.query, keep_blank_values=True))


def masked_url(url: str) -> str:
    """The address, or no more than its protocol where the rest may be secret."""
    # Not the host either: a password with `@`, `?` or `/` in it cannot be told from the host for sure.
    return f"{url.partition('://')[0]}://***" if has_secret(url) else url


def list_remotes(project: Path) -> list[Remote]:
    """Every remote that DVC knows in this project, by name; no secret is in the answer.

    Raises:
        CommandError: DVC's configuration cannot be read.
    """
    options: dict[str, dict[str, tuple[str, str]]] = {}
    tracked: dict[str, set[str]] = {}
    default = ""
    for line in _dvc(project, "config", "--list", "--show-origin").splitlines():
        # Later lines come from files that overrule earlier ones: system, global, project, local.
        origin, _, setting = line.partition("\t")
        key, _, value = setting.partition("=")
        if key == "core.remote":
            default = value
        elif key.startswith("remote."):
            name, _, option = key.removeprefix("remote.").rpartition(".")
            options.setdefault(name, {})[option] = (value, origin)
            if option in SECRET_OPTIONS and Path(origin) == Path(TRACKED):
                tracked.setdefault(name, set()).add(option)
    return [
        Remote(
            name,
            masked_url(found["url"][0]),
            found.get("verify", ("", ""))[0].lower() in ("true", "yes", "on", "1"),
            name == default,
            found["url"][1],
            (*sorted(tracked.get(name, ())), *(("url",) if has_secret(found["url"][0]) else ())),
        )
        for name, found in sorted(options.items())
        if "url" in found
    ]


def problems_of(remote: Remote) -> list[str]:
    """What is wrong with a remote, each with its remedy; empty when nothing is."""
    problems = []
    if not remote.verify:
        problems.append(
            f"remote {remote.name} does not verify what it sends, so a tampered object would be taken; "
            f"run `dvc remote modify {remote.name} verify true`"
        )
    problems += [
        f"remote {remote.name} has a secret ({option}) in {remote.origin}; make it invalid where it was given out, "
        f"remove it, and set the new one with `dvc remote modify --local {remote.name} OPTION VALUE`"
        for option in remote.tracked_secrets
    ]
    return problems


def add_remote(project: Path, name: str, url: str, *, local: bool = False, default: bool = True) -> bool:
    """Adds a remote with `verify true`; where it is there already, sees to it that it verifies.

    Args:
        project: folder of dvc.yaml.
        name: slug, `[a-z0-9][a-z0-9_-]{0,47}`.
        url: a folder or an address that DVC knows, without any secret.
        local: writes to `.dvc/config.local`, which git ignores.
        default: makes it the one that is taken where none is named.
    Returns:
        Whether it was added; False where it was there with this address.
    Raises:
        RemoteError: name or address cannot be used, or the name has another address.
        CommandError: DVC refused.
    """
    if not NAME.fullmatch(name):
        raise RemoteError(f"remote name {name!r} is no slug [a-z0-9][a-z0-9_-]{{0,47}}; choose another")
    if has_secret(url):
        raise RemoteError(
            f"the address {masked_url(url)} of remote {name} holds a password, token or user, and {TRACKED} is "
            f"committed; leave that out and set it apart: `dvc remote modify --local {name} user USER` and `dvc remote "
            f"modify --local {name} password PASSWORD` (s3: access_key_id and secret_access_key, or the environment)"
        )
    if not url or url.startswith("-") or any(not letter.isprintable() for letter in url):
        raise RemoteError(f"the address {url!r} of remote {name} is no folder and no address; give one")
    known = {remote.name: remote for remote in list_remotes(project)}
    level = ["--local"] if local else []
    is_new = name not in known
    if is_new:
        _dvc(project, "remote", "add", "--quiet", *level, *(["--default"] if default else []), name, url)
    elif not _is_same(project, known[name].url, url):
        raise RemoteError(
            f"remote {name} has the address {known[name].url} already, not {url}; choose another name, or change it "
            f"with `dvc remote modify {name} url {url}`"
        )
    elif default and not known[name].is_default:
        _dvc(project, "remote", "default", "--quiet", *level, name)
    if is_new or not known[name].verify:
        _dvc(project, "remote", "modify", "--quiet", *level, name, "verify", "true")
    return is_new


def pull_data(project: Path, remote: str | None = None, targets: Sequence[str] = ()) -> None:
    """Fetches the data of this commit, checks all of it, and only then writes to the working folder.

    Use it instead of `dvc pull`. With `verify true` DVC (3.67) drops a tampered file, naming only the whole output, but
    not a tampered listing of a folder: that is used, with status 0, and may name files outside of the output. `dvc
    fetch` alone ends with 0 in both cases.

    Args:
        project: folder of dvc.yaml.
        remote: its name; None takes the default one.
        targets: outputs or files in them; none takes all.
    Raises:
        PullError: objects are missing at the remote or altered; nothing is written, what was whole stays in the cache.
        CommandError: DVC failed for another reason, such as a remote that cannot be reached.
    """
    chosen = ["--remote", remote] if remote else []
    objects = _objects(project, remote)
    _dvc(project, "fetch", *chosen, "--", *targets)
    status = json.loads(_dvc(project, "data", "status", "--granular", "--json", "--", *targets))
    if missing := [str(path) for path in status.get("not_in_cache", [])]:
        raise PullError({path: objects.get(path, "") for path in missing})
    _dvc(project, "checkout", "--", *targets)


def _objects(project: Path, remote: str | None) -> dict[str, str]:
    """File -> place of its object, as the folders' listings at the remote say, before anything is fetched by them."""
    chosen = ["--remote", remote] if remote else []
    command = ("ls", ".", "--recursive", "--dvc-only", "--show-hash", "--json", *chosen)
    places = {}
    try:
        answer = _dvc(project, *command)
    except CommandError as error:
        # DVC's words for a folder whose listing is neither here nor there: ... ('data', 'augmented'): ...
        if lost := [match for line in error.tail if (match := _LOST_LISTING.search(line))]:
            raise PullError({"/".join(re.findall(r"'([^']+)'", match[1])) + "/": "" for match in lost}) from error
        raise CommandError(
            error.what, error.status, error.tail, "could not read the remote's listings of folders, nothing was fetched"
        ) from error
    for entry in json.loads(answer):
        path, md5 = str(entry["path"]), str(entry.get("md5") or "")
        if ".." in Path(path).parts or Path(path).is_absolute() or not _DIGEST.fullmatch(md5):
            # Neither a path nor a digest like that is ever pushed; DVC would follow both out of the project.
            raise PullError({path: ""})
        places[path] = f"files/md5/{md5[:2]}/{md5[2:]}" if md5 else ""
    return places


def _is_same(project: Path, stored: str, url: str) -> bool:
    if "://" in stored or "://" in url:
        return stored.rstrip("/") == url.rstrip("/")
    # DVC keeps a relative folder relative to its configuration file, and is given it relative to the project.
    return (project / ".dvc" / stored).resolve() == (project / url).resolve()


def _dvc(project: Path, *arguments: str) -> str:
    command = [sys.executable, "-P", "-m", "dvc", *arguments]
    limit = STAGE_SECONDS if arguments[0] == "fetch" else QUERY_SECONDS
    ended = run_supervised(command, project, child_environment(), limit)
    if ended.status:
        secrets = known_secrets(project)
        what, *tail = (hide_secrets(text, secrets) for text in (f"`dvc {' '.join(arguments)}`", *ended.tail))
        raise CommandError(what, ended.status, tail, f"failed with exit status {ended.status}")
    return ended.stdout


def _check(options: Any, project: Path) -> int:
    remotes = list_remotes(project)
    if not remotes:
        raise RemoteError("this project has no remote; add one with `python -m pipelines.remotes init NAME URL`")
    problems = []
    for remote in remotes:
        verify = "on" if remote.verify else "OFF"
        default = "  default" if remote.is_default else ""
        sys.stdout.write(f"{remote.name}  {remote.url}  verify {verify}{default}  ({remote.origin})\n")
        problems += problems_of(remote)
    for problem in problems:
        sys.stderr.write(f"error: {problem}\n")
    return 1 if problems else 0


def _init(options: Any, project: Path) -> int:
    is_new = add_remote(project, options.name, options.url, local=options.local, default=not options.no_default)
    sys.stdout.write(f"remote {options.name} {'added' if is_new else 'was there'}, verify on\n")
    return 0


def _pull(options: Any, project: Path) -> int:
    pull_data(project, options.remote, options.targets)
    sys.stdout.write("all data of this commit is here, and is what was pushed\n")
    return 0


def main(arguments: list[str]) -> int:
    """`check`, `init NAME URL` and `pull`."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.remotes", description="DVC remotes that verify.")
    parser.add_argument("--project", default=".", help="folder of dvc.yaml (default: here)")
    commands = parser.add_subparsers(required=True)
    check = commands.add_parser("check", help="list the remotes; exit status 1 where one does not verify")
    check.set_defaults(run=_check)
    init = commands.add_parser("init", help="add a remote with verify true")
    init.add_argument("name")
    init.add_argument("url", help="a folder or an address, without secrets")
    init.add_argument("--local", action="store_true", help="for this checkout alone (.dvc/config.local)")
    init.add_argument("--no-default", action="store_true", help="do not make it the default remote")
    init.set_defaults(run=_init)
    pull = commands.add_parser("pull", help="fetch, check, then write; names what is missing or altered")
    pull.add_argument("targets", nargs="*", help="outputs or files in them (default: all)")
    pull.add_argument("--remote", help="its name (default: the default remote)")
    pull.set_defaults(run=_pull)
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options, find_project(options.project)))
    except SynthgenError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
