"""`python -m pipelines.serve` around a toy project, as a team runs it, and the questions that a test asks its server.

Owns the process tree (found by a mark in the environment), starting runs of deployments, their states, what counts as
an orphan, and plain servers that end with their block. Refuses to know what is tested.
"""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from toy_project import REPOSITORY, ToyProject, quiet_environment

MARK = "SYNTHGEN_TOY"
ENDED = frozenset({"COMPLETED", "FAILED", "CRASHED", "CANCELLED"})
BUSY = 503
BUSY_SECONDS = 60.0
START_SECONDS = 300.0
UP_SECONDS = 180.0
END_SECONDS = 20.0


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Served:
    """A toy project under `pipelines.serve`.

    Attributes:
        toy: the project.
        mark: by which everything that descends from this is found.
        port: of the server; the same after a restart.
        process: the running `pipelines.serve`.
    """

    def __init__(self, toy: ToyProject) -> None:
        self.toy = toy
        self.mark = secrets.token_hex(8)
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """What server, worker and runs print."""
        return self.toy.root / "serve.log"

    def start(self) -> None:
        """Starts it, if it is not running, and pauses every schedule; returns when runs can be started.

        Raises:
            RuntimeError: it ended, or took too long.
        """
        if self.process is not None and self.process.poll() is None:
            return
        began = self.log.stat().st_size if self.log.exists() else 0
        environment = quiet_environment(
            **{MARK: self.mark},
            PREFECT_HOME=str(self.toy.root / "prefect"),
            PREFECT_SERVER_UI_ENABLED="false",
            PYTHONUNBUFFERED="1",
        )
        command = [sys.executable, "-m", "pipelines.serve", "--project", str(self.toy.person), "--gpus", "8"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--port", str(self.port)],
                cwd=REPOSITORY,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while b"serving " not in self._since(began):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"pipelines.serve did not come up: {self._since(began)[-3000:].decode()}")
            time.sleep(0.5)
        for deployment in self.ask("deployments/filter", {}):
            for schedule in deployment["schedules"]:
                if schedule["active"]:
                    address = f"deployments/{deployment['id']}/schedules/{schedule['id']}"
                    self.ask(address, {"active": False}, method="PATCH")

    def _since(self, offset: int) -> bytes:
        return self.log.read_bytes()[offset:] if self.log.exists() else b""

    def stop(self) -> None:
        """Ends it as Ctrl-C does, then whatever is left."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(60)
        for process in self.family():
            with suppress(psutil.Error):
                process.kill()
        if self.process is not None:
            self.process.wait()

    def ask(self, path: str, question: dict[str, Any] | None = None, method: str = "POST") -> Any:
        """An answer of the server's API; a busy one (503: SQLite has one writer) is asked again.

        Raises:
            OSError: it does not answer (urllib.error.URLError is one).
        """
        content = None if question is None else json.dumps(question).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api/{path}", content, {"Content-Type": "application/json"}, method=method
        )
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
                    text = answer.read()
                return json.loads(text) if text else None
            except urllib.error.HTTPError as error:
                if error.code != BUSY or time.monotonic() > deadline:
                    raise
            time.sleep(1.0)

    def run(self, deployment: str) -> str:
        """Starts a run of `refresh/DEPLOYMENT`, publishing; returns its id."""
        found = self.ask(f"deployments/name/refresh/{deployment}", method="GET")
        parameters = {**found["parameters"], "publish": True, "stage_timeout_seconds": 300.0}
        created = self.ask(f"deployments/{found['id']}/create_flow_run", {"parameters": parameters})
        return str(created["id"])

    def state(self, run: str) -> tuple[str, str]:
        """Type and message of a run's state; (`UNKNOWN`, why) while the server does not answer."""
        try:
            found = self.ask(f"flow_runs/{run}", method="GET")
        except (OSError, ValueError) as error:
            return "UNKNOWN", str(error)
        return str(found["state_type"]), str((found.get("state") or {}).get("message") or "")

    def await_end(self, run: str, seconds: float) -> tuple[str, str]:
        """Waits until a run has ended; returns its last state.

        Raises:
            RuntimeError: it has not within `seconds`.
        """
        deadline = time.monotonic() + seconds
        while (state := self.state(run))[0] not in ENDED:
            if time.monotonic() > deadline:
                raise RuntimeError(f"run {run} is still {state} after {seconds:g} s; see {self.log}")
            time.sleep(1)
        return state

    def finish(self, deployment: str, seconds: float) -> tuple[str, int]:
        """Runs a deployment again and again until a run completes; returns its message and how often it was refused.

        A run that was killed holds its turn until its lease ends, and the next one is cancelled so long.

        Raises:
            RuntimeError: a run failed, or none completed within `seconds`.
        """
        deadline = time.monotonic() + seconds
        refused = 0
        while True:
            kind, message = self.await_end(self.run(deployment), deadline - time.monotonic())
            if kind == "COMPLETED":
                return message, refused
            if kind != "CANCELLED":
                raise RuntimeError(f"the run ended as {kind}: {message}")
            refused += 1
            if time.monotonic() > deadline:
                raise RuntimeError(f"no run had its turn within {seconds:g} s: {message}")
            time.sleep(5)

    def family(self) -> list[psutil.Process]:
        """Every process with our mark, whoever its parent is; zombies left out."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def orphans(self) -> list[str]:
        """Processes of the family that nobody of it answers for: the way up does not end at a running `serve`."""
        family = {process.pid: process for process in self.family()}
        root = self.process.pid if self.process is not None and self.process.poll() is None else None
        lost = []
        for process in family.values():
            with suppress(psutil.Error):
                above = {process.pid, *(parent.pid for parent in process.parents())}
                if root not in above:
                    lost.append(f"{process.pid} {' '.join(process.cmdline())[:100]}")
        return lost


@contextmanager
def served(toy: ToyProject) -> Iterator[Served]:
    """The toy under `pipelines.serve` until the block is left, by SIGTERM too."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    stack = Served(toy)
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()


@contextmanager
def running(name: str, command: list[str], log: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own until the block is left."""
    with (log / f"{name}.log").open("wb") as stream:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        for ending in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, ending)
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
                break


def await_answer(address: str, process: subprocess.Popen[bytes]) -> None:
    """Waits until something answers at an address.

    Raises:
        RuntimeError: the process ended, or the time is up.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + UP_SECONDS
    while True:
        with suppress(OSError), opener.open(address, timeout=5):
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{address} does not answer; status {process.poll()}")
        time.sleep(0.2)


@contextmanager
def prefect_server(folder: Path, **more: str) -> Iterator[dict[str, str]]:
    """A Prefect server on loopback, its home and logs in `folder`; yields the environment that reaches it."""
    port = free_port()
    environment = quiet_environment(
        PREFECT_HOME=str(folder / "prefect"),
        PREFECT_API_URL=f"http://127.0.0.1:{port}/api",
        PREFECT_SERVER_UI_ENABLED="false",
        **more,
    )
    start = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with running("server", start, folder, environment) as process:
        await_answer(f"http://127.0.0.1:{port}/api/health", process)
        yield environment


def command_of(process: psutil.Process) -> list[str]:
    """Its argument list; empty where it is gone."""
    with suppress(psutil.Error):
        return list(process.cmdline())
    return []


def kill(process: psutil.Process) -> None:
    """`kill -9`."""
    os.kill(process.pid, signal.SIGKILL)
