"""A toy DVC project with a matrix, and real Prefect processes on loopback, each ended by its group at the end."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

DVC_YAML = """\
vars: [plan.yaml, params.yaml]
stages:
  prepare:
    cmd: python step.py 0 data/prepared.txt
    deps: [step.py, data/raw.txt]
    outs: [data/prepared.txt]
  adapt:
    matrix:
      fold: ${folds}
      slug: ${adapt}
    cmd: python step.py ${seconds} "models/${item.fold}/${item.slug}.txt"
    deps: [step.py, data/prepared.txt]
    outs: ["models/${item.fold}/${item.slug}.txt"]
  compare:
    cmd: python step.py 0 metrics/scores.txt
    deps: [step.py, models]
    outs: [metrics/scores.txt]
"""

STEP = '''\
"""A stage: sleeps, appends its start and stop to an ignored file, writes its output."""
import json, os, sys, time
from pathlib import Path

seconds, output = float(sys.argv[1]), Path(sys.argv[2])
start = time.time()
print("making", output, flush=True)
print("cores", os.environ.get("SYNTHGEN_CORES", "all"), flush=True)
pid = Path("pids") / output.name
pid.parent.mkdir(exist_ok=True)
pid.write_text(str(os.getpid()))
if Path("broken").exists() and output.stem in Path("broken").read_text().split():
    sys.exit(f"the kiln of {output.stem} is cold")
time.sleep(seconds)
output.parent.mkdir(parents=True, exist_ok=True)
output.write_text(f"{output} of {Path('data/raw.txt').read_text()}")
with open("stamps.jsonl", "a") as stamps:
    stamps.write(json.dumps([str(output), start, time.time(), sorted(n for n in os.environ if "PREFECT" in n)]) + "\\n")
'''

PLAN = """\
from pathlib import Path
Path("plan.yaml").write_text("folds: [f0]\\nadapt: [crack, fray]\\n")
print("planned")
"""


def quiet_environment(**more: str) -> dict[str, str]:
    """This process's environment without anybody's Prefect settings, and with every usage report off."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "DVC_"))}
    return {
        **kept,
        "DO_NOT_TRACK": "1",
        "DVC_NO_ANALYTICS": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(REPOSITORY),
        "NO_PROXY": "127.0.0.1,localhost",
        **more,
    }


@dataclass
class Toy:
    """A project folder and what a test wants to know about it."""

    folder: Path
    environment: dict[str, str] = field(default_factory=quiet_environment)

    def run(self, *command: str, folder: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=folder or self.folder,
            env={**self.environment, **more},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    def dvc(self, *arguments: str) -> str:
        done = self.run(sys.executable, "-m", "dvc", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def flow(self, **more: str) -> subprocess.CompletedProcess[str]:
        # Not in the toy's folder, whose own `synthgen` would hide the real one.
        command = (sys.executable, "-m", "pipelines.flows", "--project", str(self.folder))
        return self.run(*command, folder=self.folder.parent, **more)

    def start_flow(self, **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "pipelines.flows", "--project", str(self.folder)],
            cwd=self.folder.parent,
            env={**self.environment, **more},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # tests started in the background of a shell inherit an ignored SIGINT; a flow at a terminal does not
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  no threads here
        )

    def set_seconds(self, seconds: float) -> None:
        (self.folder / "params.yaml").write_text(f"seconds: {seconds}\n")

    def pid_of(self, name: str, within: float = 60.0) -> int:
        """Process id that the stage making `name` has written, once it has."""
        path = self.folder / "pids" / name
        wait_until(lambda: path.exists() and path.read_text() != "", within, f"{path} to be written")
        return int(path.read_text())


def wait_until(is_so: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.1)


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.fixture(scope="session")
def toy_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template") / "toy"
    (folder / "data").mkdir(parents=True)
    (folder / "synthgen").mkdir()
    for name, text in {
        "dvc.yaml": DVC_YAML,
        "step.py": STEP,
        "data/raw.txt": "clay",
        "synthgen/__main__.py": PLAN,
        "synthgen/__init__.py": "",
        "plan.yaml": "folds: [f0]\nadapt: [crack, fray]\n",
        "params.yaml": "seconds: 0.1\n",
        ".gitignore": "stamps.jsonl\npids/\n",
    }.items():
        (folder / name).write_text(text)
    toy = Toy(folder)
    assert toy.run("git", "init", "-q").returncode == 0
    toy.dvc("init", "-q")
    return folder


@pytest.fixture
def toy(toy_template: Path, tmp_path: Path) -> Toy:
    """A fresh copy of the toy project: prepare -> adapt@f0-crack, adapt@f0-fray -> compare."""
    shutil.copytree(toy_template, tmp_path / "toy")
    return Toy(tmp_path / "toy", quiet_environment(PREFECT_HOME=str(tmp_path / "prefect")))


@dataclass(frozen=True)
class Server:
    """A running Prefect server and the environment that reaches it."""

    environment: dict[str, str]
    logs: Path

    @contextmanager
    def process(self, name: str, *command: str, folder: Path = REPOSITORY) -> Iterator[subprocess.Popen[bytes]]:
        """A long-running process in a group of its own, which is ended when the block is left."""
        with (self.logs / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command, cwd=folder, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        family: list[psutil.Process] = []
        try:
            yield process
        finally:
            # A worker starts flow runs in sessions of their own, which its group's end does not reach.
            with suppress(psutil.NoSuchProcess):
                family = psutil.Process(process.pid).children(recursive=True)
            for ending, seconds in ((signal.SIGTERM, 20), (signal.SIGKILL, 10)):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, ending)
                try:
                    process.wait(seconds)
                    break
                except subprocess.TimeoutExpired:
                    continue
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            for member in family:
                with suppress(psutil.NoSuchProcess):
                    member.kill()

    def prefect(self, *arguments: str, folder: Path = REPOSITORY) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
            cwd=folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def log(self, name: str) -> str:
        return (self.logs / f"{name}.log").read_text(errors="replace")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`prefect server start` on a free loopback port, with a home and a database of its own."""
    home = tmp_path_factory.mktemp("prefect")
    port = free_port()
    address = f"http://127.0.0.1:{port}/api"
    server = Server(
        quiet_environment(
            PREFECT_HOME=str(home),
            PREFECT_API_URL=address,
            PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS="5",
            PREFECT_SERVER_UI_ENABLED="false",
            PREFECT_LOGGING_LEVEL="INFO",
        ),
        home,
    )
    start = ("-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port))
    with server.process("server", sys.executable, *start) as process:

        def is_up() -> bool:
            assert process.poll() is None, server.log("server")
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=1):
                    return True
            except OSError:
                return False

        wait_until(is_up, 120, f"prefect server start on port {port}")
        yield server


@pytest.fixture(name="wait_until")
def wait_until_fixture() -> Callable[[Callable[[], bool], float, str], None]:
    return wait_until


@pytest.fixture(name="is_running")
def is_running_fixture() -> Callable[[int], bool]:
    return is_running
