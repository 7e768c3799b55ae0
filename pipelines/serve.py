"""`python -m pipelines.serve`: server, work pool, limits, automations, deployments and worker, in one process tree.

Owns what starts in which order, with which environment, and that all of it ends: on Ctrl-C, on SIGTERM, when one of
its parts dies (`pipelines.parts`).

Refuses to listen anywhere but on 127.0.0.1, and to print the database's password. What the server holds is
`pipelines.automations`'; what is deployed stands in prefect.yaml.
"""

import argparse
import http.client
import os
import re
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import unquote

from ruamel.yaml import YAML

from pipelines.automations import POOL, ZOMBIE_SECONDS
from pipelines.dvc import PipelineError, find_project
from pipelines.git import hide_secrets
from pipelines.parts import MARK, Part, end_rest, end_server, end_worker, ended_by_signals, say
from pipelines.supervise import run_supervised
from synthgen.errors import SynthgenError

__all__ = ["ServeError", "count_gpus", "deployment_file", "main", "serve", "serving_environment"]

HOST = "127.0.0.1"
PORT = 4200
DATABASE_VARIABLE = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
START_SECONDS = 180.0
SET_UP_SECONDS = 300.0
_DATABASE = re.compile(r"(postgresql\+asyncpg|sqlite\+aiosqlite):///?\S+")


class ServeError(PipelineError):
    """The server and what belongs to it could not be brought up, or one part of it ended."""


def serving_environment(port: int, environment: Mapping[str, str], mark: str) -> dict[str, str]:
    """The environment of every part but the server: it reaches the server and knows nothing of its database.

    Args:
        port: of the server.
        environment: of this process.
        mark: by which all that descends from it is found.
    """
    kept = {name: value for name, value in environment.items() if not name.startswith("PREFECT_SERVER_DATABASE_")}
    kept.pop("SYNTHGEN_PROJECT", None)
    proxies = ",".join(filter(None, (kept.get("NO_PROXY") or kept.get("no_proxy"), HOST, "localhost")))
    heartbeat = kept.get("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30")
    return {
        **kept,
        MARK: mark,
        "DO_NOT_TRACK": "1",
        "DVC_NO_ANALYTICS": "1",
        "NO_PROXY": proxies,
        "no_proxy": proxies,
        "PREFECT_API_URL": f"http://{HOST}:{port}/api",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": heartbeat,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # Leases in memory are forgotten at a restart, and their slots would be taken for ever.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PYTHONUNBUFFERED": "1",
    }


def checked_database(url: str | None) -> dict[str, str]:
    """The server's own variables for a database; none for the default, SQLite in PREFECT_HOME.

    Raises:
        ServeError: an address of another form; its words are not repeated, for they may hold a password.
    """
    if not url:
        return {}
    if not _DATABASE.fullmatch(url):
        raise ServeError(
            f"the database's address starts with {url.partition(':')[0][:24]!r}; it has to be "
            "postgresql+asyncpg://USER:PASSWORD@HOST:PORT/NAME or sqlite+aiosqlite:////PATH"
        )
    return {DATABASE_VARIABLE: url}


def passwords(url: str | None) -> frozenset[str]:
    """What must not be printed of a database's address: its password, as written and as meant."""
    user, at, _host = (url or "").partition("://")[2].rpartition("@")
    password = user.partition(":")[2] if at else ""
    return frozenset({password, unquote(password)} - {""})


def count_gpus(environment: Mapping[str, str]) -> int:
    """CUDA devices that torch sees, 1 where there is none: one training at a time then.

    Asked in a process of its own, so that this one holds neither torch nor a device.
    """
    command = [sys.executable, "-P", "-c", "import torch; print(torch.cuda.device_count())"]
    ended = run_supervised(command, Path.cwd(), environment, SET_UP_SECONDS)
    words = ended.stdout.split()
    return max(1, int(words[-1])) if ended.status == 0 and words and words[-1].isdigit() else 1


def find_deployments(project: Path) -> Path:
    """The prefect.yaml that is served: the project's, else the one beside this code.

    Raises:
        ServeError: there is neither.
    """
    places = (project, Path(__file__).resolve().parents[1])
    for place in places:
        if (place / "prefect.yaml").is_file() and (place / "pipelines").is_dir():
            return place / "prefect.yaml"
    raise ServeError(
        f"neither {places[0]} nor {places[1]} has prefect.yaml beside pipelines/; serve from a clone of the repository"
    )


def deployment_file(source: Path, project: Path) -> str:
    """The text of `source` with every deployment's `project` set to `project`.

    Raises:
        ServeError: it has no deployments.
    """
    content = YAML(typ="safe").load(source.read_text(encoding="utf-8"))
    try:
        for deployment in content["deployments"]:
            deployment["parameters"]["project"] = str(project)
    except (KeyError, TypeError) as error:
        raise ServeError(f"{source} has a deployment without parameters ({error!r}); give it `project`") from error
    yaml = YAML(typ="safe")
    yaml.representer.ignore_aliases = lambda _data: True
    with tempfile.TemporaryFile("w+", encoding="utf-8") as stream:
        yaml.dump(content, stream)
        stream.seek(0)
        return stream.read()


def check_port(port: int) -> None:
    """Refuses a port that is taken.

    Raises:
        ServeError: naming what listens there, if it tells.
    """
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError as error:
            what = "a Prefect server, perhaps another `pipelines.serve`" if _is_healthy(port) else "another program"
            raise ServeError(
                f"port {port} of {HOST} cannot be had ({error.strerror}): {what} listens there; "
                "end it, or pass another one with --port"
            ) from error


def _is_healthy(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", "/api/health")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _await_health(server: Part, port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _is_healthy(port):
        if not server.is_running():
            raise ServeError(f"the server ended while it started (status {server.process.returncode}), see above")
        if time.monotonic() > deadline:
            raise ServeError(f"the server does not answer on port {port} after {START_SECONDS:g} s, see above")
        time.sleep(0.2)


def _set_up(what: str, command: list[str], folder: Path, environment: Mapping[str, str], show: bool) -> None:
    lines: list[str] = []

    def take(line: str) -> None:
        lines.append(line)
        if show:
            say(f"{what} | {line}")

    ended = run_supervised(command, folder, {**environment, "PWD": str(folder)}, SET_UP_SECONDS, take)
    if ended.status:
        said = "".join(f"\n  | {line}" for line in lines[-20:])
        raise ServeError(hide_secrets(f"{what} failed (status {ended.status}):{said}"))


def serve(project: Path, port: int, database: str | None, n_gpus: int | None, zombie_seconds: float) -> None:
    """Brings everything up and stays until it is interrupted or a part of it ends.

    Args:
        project: folder of dvc.yaml.
        port: of the page and the API, on 127.0.0.1.
        database: address of the server's database; None for SQLite in PREFECT_HOME.
        n_gpus: trainings at the same time; None counts the GPUs, unless a limit is set already.
        zombie_seconds: without a heartbeat, after which a run is marked Crashed.
    Raises:
        ServeError: the port is taken, or a part ended by itself.
        KeyboardInterrupt: on SIGINT or SIGTERM, when everything has ended.
    """
    source = find_deployments(project)
    own = checked_database(database)
    check_port(port)
    root, mark, hide = source.parent, secrets.token_hex(8), passwords(database)
    environment = serving_environment(port, os.environ, mark)
    python = [sys.executable, "-m"]
    with ended_by_signals(), ExitStack() as stack:
        stack.callback(end_rest, mark)
        start = [*python, "prefect", "server", "start", "--host", HOST, "--port", str(port), "--log-level", "WARNING"]
        server = Part("server", start, root, environment | own, hide)
        stack.callback(end_server, server)
        gpus = ["--gpus", str(n_gpus)] if n_gpus else []
        known = count_gpus(environment) if n_gpus is None else n_gpus
        _await_health(server, port)
        prepare = [*python, "pipelines.automations", "--project", str(project), "--default-gpus", str(known), *gpus]
        _set_up("set up", [*prepare, "--zombie-seconds", str(zombie_seconds)], root, environment, show=True)
        with tempfile.TemporaryDirectory(prefix="synthgen-serve-") as folder:
            path = Path(folder) / "prefect.yaml"
            path.write_text(deployment_file(source, project), encoding="utf-8")
            deploy = [*python, "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(path)]
            _set_up("deploy", deploy, root, environment, show=False)
        work = [*python, "prefect", "worker", "start", "--pool", POOL, "--type", "process", "--install-policy", "never"]
        worker = Part("worker", work, root, environment, hide)
        stack.callback(end_worker, worker)
        say(f"serving {project}: http://{HOST}:{port} (Ctrl-C ends it)")
        while server.is_running() and worker.is_running():
            time.sleep(0.5)
        ended = worker if server.is_running() else server
        raise ServeError(f"the {ended.name} ended by itself (status {ended.process.returncode}); all is ended now")


def main(arguments: list[str]) -> int:
    """Serves one project until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.serve", description=main.__doc__)
    parser.add_argument("--port", type=int, default=PORT, help=f"of the page, on {HOST} (default: {PORT})")
    parser.add_argument("--project", default=".", help="folder of dvc.yaml (default: here)")
    parser.add_argument(
        "--database",
        default=os.environ.get(DATABASE_VARIABLE),
        metavar="URL",
        help=f"of the server (default: ${DATABASE_VARIABLE}, else SQLite in PREFECT_HOME); "
        "a password belongs into the variable, for `ps` shows arguments",
    )
    parser.add_argument("--gpus", type=int, help="trainings at the same time (default: the GPUs there are)")
    parser.add_argument("--zombie-seconds", type=float, default=ZOMBIE_SECONDS, help="without heartbeat (default: 180)")
    options = parser.parse_args(arguments)
    if not 1 <= options.port <= 65535:
        parser.error(f"--port {options.port} is not in 1..65535")
    try:
        project = find_project(options.project)
        serve(project, options.port, options.database, options.gpus, options.zombie_seconds)
    except SynthgenError as error:
        say(f"error: {error}", passwords(options.database))
        return 1
    except KeyboardInterrupt:
        say("ended: server, worker and runs; finished stages are kept")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
