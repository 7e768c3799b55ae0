"""`pipelines.serve`: what comes up and that it ends, with every connection but loopback refused.

The tests marked `server` share one server; they run in their order, for the last one ends it.
"""

import http.server
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from ruamel.yaml import YAML

from pipelines import serve
from pipelines.parts import MARK, Part, descendants, end_rest, end_server, end_worker
from pipelines.sensor import DEPLOYMENT
from pipelines.serve import ServeError
from tests.pipelines.conftest import Toy, free_port, quiet_environment, wait_until

# urllib leaves the socket of a refused connection to the garbage collector, which may come in any later test.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

PASSWORD = "Canary/of a-secret-9c1e"
QUOTED = "Canary%2Fof%20a-secret-9c1e"
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}

GUARD = """\
import os, sys

def refuse(event, arguments):
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host not in (None, "", "localhost", "127.0.0.1", "::1", "0.0.0.0"):
        with open(os.environ["GUARD_LOG"], "a") as log:
            log.write(f"{event} {host} {sys.argv[:3]}\\n")
        raise ConnectionRefusedError(f"{host} is not this machine")

sys.addaudithook(refuse)
"""

ACTOR = """\
import sys, time
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.events import emit_event
from prefect.events.worker import EventsWorker
from prefect.states import Running
from pipelines.automations import announce_verdict
from pipelines.turns import one_run_at_a_time

@flow(name="turn", persist_result=False)
def turn(project: str, seconds: float):
    with one_run_at_a_time(project) as refused:
        if refused:
            return refused
        print("mine", flush=True)
        time.sleep(seconds)

def zombie():
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(turn, parameters={"project": "", "seconds": 0}, state=Running())
    emit_event("prefect.flow-run.heartbeat", resource={"prefect.resource.id": f"prefect.flow-run.{run.id}"})
    print(f"zombie={run.id};", flush=True)

def block(address):
    from prefect.blocks.notifications import CustomWebhookNotificationBlock
    CustomWebhookNotificationBlock(
        name="team", url=address, json_data={"subject": "{{subject}}", "body": "{{body}}"}
    ).save("team")

what, *rest = sys.argv[1:]
if what == "turn":
    state = turn(rest[0], float(rest[1]), return_state=True)
    print(state.type.value, state.message)
elif what == "zombie":
    zombie()
elif what == "block":
    block(rest[0])
else:
    announce_verdict(what, rest[0])
if what != "turn":
    EventsWorker.drain_all()
"""


def test_a_taken_port_is_refused_naming_it():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]

        # It answers nothing: the question whether it is a server has to end by itself.
        def hang_up() -> None:
            listener.accept()[0].close()

        threading.Thread(target=hang_up, daemon=True).start()
        with pytest.raises(ServeError, match=rf"port {port} .*another program listens there.*--port"):
            serve.check_port(port)


@pytest.mark.parametrize("url", [f"mysql://ann:{QUOTED}@db/prefect", f"ann:{QUOTED}@db", "postgresql://db/prefect"])
def test_another_kind_of_database_is_refused_without_its_password(url):
    with pytest.raises(ServeError, match=r"postgresql\+asyncpg://USER") as caught:
        serve.checked_database(url)
    assert QUOTED not in str(caught.value)


def test_only_the_server_knows_the_database():
    url = f"postgresql+asyncpg://ann:{QUOTED}@127.0.0.1:5432/prefect"
    given = {"PATH": "/bin", serve.DATABASE_VARIABLE: url, "PREFECT_SERVER_DATABASE_PASSWORD": PASSWORD}
    environment = serve.serving_environment(4200, given, "mark")
    assert QUOTED not in str(environment)
    assert PASSWORD not in str(environment)
    assert environment["PREFECT_API_URL"] == "http://127.0.0.1:4200/api"
    assert serve.checked_database(url) == {serve.DATABASE_VARIABLE: url}
    assert serve.passwords(url) == {PASSWORD, QUOTED}
    assert serve.passwords("sqlite+aiosqlite:////tmp/prefect.db") == serve.passwords(None) == frozenset()


def test_every_deployment_gets_the_project(tmp_path):
    source = serve.find_deployments(tmp_path)
    text = serve.deployment_file(source, tmp_path / "a: project")
    content, given = (YAML(typ="safe").load(each) for each in (text, source.read_text()))
    assert {one["parameters"]["project"] for one in content["deployments"]} == {str(tmp_path / "a: project")}
    for one in (*content["deployments"], *given["deployments"]):
        del one["parameters"]["project"]
    assert content == given


def test_a_part_and_what_it_started_in_sessions_of_its_own_end(tmp_path):
    # A worker that ignores its end, a run that ends when asked, and a grandchild that ignores everything.
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    run = (
        "import subprocess, sys, time, signal\n"
        f"subprocess.Popen([sys.executable, '-c', {stubborn!r}], start_new_session=True)\n"
        "print('up', flush=True)\ntime.sleep(600)"
    )
    script = (
        f"import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', {run!r}], start_new_session=True)\n"
    )
    environment = {**os.environ, MARK: "of-this-test"}
    part = Part("worker", [sys.executable, "-c", script + "time.sleep(600)"], tmp_path, environment, ())
    deadline = time.monotonic() + 60
    while len(descendants("of-this-test")) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    start = time.monotonic()
    end_worker(part)
    end_server(part)
    end_rest("of-this-test")
    assert time.monotonic() - start < 15
    assert descendants("of-this-test") == []
    assert not part.is_running()
    assert part.process.stdout is not None
    wait_until(lambda: part.process.stdout.closed, 5, "its lines to be printed")


# ---------------------------------------------------------------------------------------------- real servers


@dataclass
class Served:
    """A running `pipelines.serve` and how to reach it."""

    process: subprocess.Popen
    port: int
    environment: dict[str, str]
    folder: Path
    project: Path

    def ask(self, path: str, body: object = None) -> object:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api{path}", data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def output(self) -> str:
        return (self.folder / "serve.log").read_text(errors="replace")

    def start(self, *command: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=self.folder,
            env={**self.environment, "PREFECT_API_URL": f"http://127.0.0.1:{self.port}/api"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *command: str) -> str:
        process = self.start(*command)
        said, _ = process.communicate(timeout=240)
        assert process.returncode == 0, said
        return said

    def demand(self, **parameters: object) -> str:
        deployment = self.ask(f"/deployments/name/{DEPLOYMENT}")
        wanted = {"parameters": {"publish": False, **parameters}}
        run = self.ask(f"/deployments/{deployment['id']}/create_flow_run", wanted)
        return run["id"]

    def state(self, run: str) -> dict:
        return self.ask(f"/flow_runs/{run}")["state"]

    def end(self) -> float:
        start = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        return time.monotonic() - start

    def family(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("GUARD_LOG") == self.environment["GUARD_LOG"]:
                    found.append(process)
            except psutil.Error:
                continue
        return found


def bring_up(toy: Toy, folder: Path, **more: str) -> Served:
    (folder / "guard").mkdir()
    (folder / "guard" / "sitecustomize.py").write_text(GUARD)
    (folder / "actor.py").write_text(ACTOR)
    port = free_port()
    environment = {
        **toy.environment,
        "PREFECT_HOME": str(folder / "home"),
        "GUARD_LOG": str(folder / "refused.log"),
        "PYTHONPATH": os.pathsep.join([str(folder / "guard"), toy.environment["PYTHONPATH"]]),
        **more,
    }
    command = [
        sys.executable,
        "-m",
        "pipelines.serve",
        "--port",
        str(port),
        "--project",
        str(toy.folder),
        "--gpus",
        "2",
    ]
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    served = Served(process, port, environment, folder, toy.folder)

    def is_up() -> bool:
        assert process.poll() is None, served.output()
        return "(Ctrl-C ends it)" in served.output()

    try:
        wait_until(is_up, 400, "pipelines.serve to come up")
    except BaseException:
        served.end()
        raise
    return served


def make_toy(template: Path, folder: Path) -> Toy:
    """A committed copy of the toy project."""
    shutil.copytree(template, folder / "toy")
    toy = Toy(folder / "toy", quiet_environment())
    toy.run("git", "add", "-A")
    done = toy.run("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "first")
    assert done.returncode == 0, done.stderr
    return toy


@pytest.fixture(scope="module")
def served(toy_template, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    served = bring_up(make_toy(toy_template, folder), folder)
    yield served
    if served.process.poll() is None:
        served.end()


@pytest.fixture
def inbox():
    """What a webhook received, and its address on loopback."""
    received: list[dict] = []

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as receiver:
        thread = threading.Thread(target=receiver.serve_forever)
        thread.start()
        yield received, f"http://127.0.0.1:{receiver.server_port}/hook"
        receiver.shutdown()
        thread.join()


server = [pytest.mark.server, pytest.mark.timeout(1200), pytest.mark.xdist_group("serve")]


def marked(function):
    for mark in server:
        function = mark(function)
    return function


@marked
def test_page_pool_limits_deployments_and_automations_are_there(served):
    with urllib.request.urlopen(f"http://127.0.0.1:{served.port}/", timeout=60) as page:
        assert page.status == 200
        assert b"<html" in page.read()
    assert served.ask("/work_pools/synthgen")["type"] == "process"
    limits = {one["name"]: one["limit"] for one in served.ask("/v2/concurrency_limits/filter", {"limit": 200})}
    assert limits["tag:gpu"] == 2
    assert sum(name.startswith("synthgen-run-toy") and limit == 1 for name, limit in limits.items()) == 1
    assert sum(name.startswith("synthgen-output-toy") and limit == 1 for name, limit in limits.items()) == 4
    deployments = {one["name"]: one for one in served.ask("/deployments/filter", {})}
    assert set(deployments) == {"nightly", "on-demand", "on-new-data"}
    assert {one["parameters"]["project"] for one in deployments.values()} == {str(served.project)}
    assert {one["concurrency_options"]["collision_strategy"] for one in deployments.values()} == {"CANCEL_NEW"}
    assert deployments["nightly"]["schedules"][0]["schedule"]["cron"] == "0 2 * * *"
    assert deployments["on-new-data"]["schedules"][0]["schedule"]["interval"] == 300
    assert not deployments["on-demand"]["schedules"]
    form = deployments["on-demand"]["parameter_openapi_schema"]["properties"]
    assert form["project"]["type"] == "string"
    assert (form["max_workers"]["type"], form["max_workers"]["minimum"]) == ("integer", 1)
    assert deployments["on-demand"]["enforce_parameter_schema"]
    assert [one["name"] for one in served.ask("/automations/filter", {})] == ["synthgen: zombies"]
    assert "no notifications: SYNTHGEN_NOTIFY_BLOCK names no block" in served.output()
    assert f"http://127.0.0.1:{served.port} (Ctrl-C ends it)" in served.output()


@marked
def test_a_second_one_on_the_same_port_says_so(served):
    second = served.start("-m", "pipelines.serve", "--port", str(served.port), "--project", str(served.project))
    said, _ = second.communicate(timeout=120)
    assert second.returncode == 1
    assert "perhaps another `pipelines.serve`" in said


@marked
def test_a_wrong_parameter_is_refused_by_the_form(served):
    with pytest.raises(urllib.error.HTTPError) as caught:
        served.demand(max_workers="many")
    assert caught.value.code == 409


@marked
def test_of_two_runs_at_once_one_runs_and_one_is_cancelled_with_the_reason(served):
    runs = [served.demand(project=str(served.project)) for _ in range(2)]
    wait_until(lambda: all(served.state(run)["type"] in ENDED for run in runs), 400, "both runs to end")
    states = {served.state(run)["type"]: served.state(run) for run in runs}
    assert set(states) == {"COMPLETED", "CANCELLED"}, (states, served.output()[-4000:])
    assert "concurrency limit" in states["CANCELLED"]["message"]


@marked
def test_across_deployments_and_machines_the_later_run_is_cancelled_with_the_reason(served):
    first = served.start("actor.py", "turn", str(served.project), "20")
    assert first.stdout is not None
    for line in first.stdout:
        if line.strip() == "mine":
            break
    second = served.run("actor.py", "turn", str(served.project), "0")
    assert "CANCELLED another run" in second
    assert "works on this project, one at a time" in second
    assert " | ERROR " not in second
    said, _ = first.communicate(timeout=120)
    assert "COMPLETED" in said
    assert "COMPLETED" in served.run("actor.py", "turn", str(served.project), "0"), "the turn was given back"


@marked
def test_notifications_arrive_and_a_zombie_is_marked(served, inbox):
    received, address = inbox
    served.run("actor.py", "block", address)
    served.environment["SYNTHGEN_NOTIFY_BLOCK"] = "custom-webhook/team"
    prepare = ("-m", "pipelines.automations", "--project", str(served.project))
    said = served.run(*prepare, "--zombie-seconds", "10")
    assert "'synthgen: hurts' made" in said
    assert "'synthgen: zombies' updated" in said
    zombie = served.run("actor.py", "zombie").partition("zombie=")[2].partition(";")[0]
    served.run("actor.py", "helps", str(served.project))
    served.run("actor.py", "hurts", str(served.project))
    failing = served.demand(project=str(served.folder / "nowhere"))
    wait_until(lambda: served.state(zombie)["type"] == "CRASHED", 120, "the zombie to be marked")
    assert "no heartbeat for 10 s" in served.state(zombie)["message"]
    said = served.run(*prepare)
    assert "'synthgen: zombies' updated" in said
    assert served.run(*prepare).count("automation") == 0, "the third time there is nothing to do"
    wait_until(lambda: served.state(failing)["type"] == "FAILED", 240, "a run without a project to fail")
    wait_until(lambda: len(received) >= 2, 120, f"two notifications, not {received}")
    subjects = sorted(one["subject"] for one in received)
    assert subjects == [f"synthgen: {DEPLOYMENT.partition('/')[0]} Failed", "synthgen: verdict hurts"]
    assert any("has no dvc.yaml" in one["body"] for one in received)


@marked
def test_sigterm_in_mid_training_ends_everything_in_15_seconds(served):
    (served.project / "params.yaml").write_text("seconds: 300\n")
    # For flows that work in a checkout of what is committed.
    done = Toy(served.project).run("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qam", "slow")
    assert done.returncode == 0, done.stderr
    served.demand(project=str(served.project))

    def trains() -> bool:
        return any("step.py" in " ".join(process.cmdline()) for process in served.family() if process.is_running())

    wait_until(trains, 300, "a stage to train")
    assert served.end() < 15, served.output()[-4000:]
    assert served.process.returncode == 0
    wait_until(lambda: not served.family(), 2, f"no process to be left: {served.family()}")
    with pytest.raises(OSError, match="refused"):
        served.ask("/health")


@marked
def test_no_connection_left_the_machine(served):
    log = served.folder / "refused.log"
    assert not log.exists(), log.read_text()


# ---------------------------------------------------------------------------------------------- PostgreSQL


@pytest.fixture
def cluster(tmp_path):
    """A cluster of its own on loopback, by an unprivileged user; gives the URL of an empty database."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    initdb = shutil.which("initdb") or (str(programs[-1] / "initdb") if programs else None)
    if initdb is None:
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    programs_folder = Path(initdb).resolve().parent
    user: list[str] = []
    folder = tmp_path / "cluster"
    if os.geteuid() == 0:
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL refuses root, and there is no user postgres to run it as")
        user = ["runuser", "-u", "postgres", "--"]
        folder = Path(tempfile.mkdtemp(prefix="synthgen-pg-"))  # pytest's folders are closed to other users
        shutil.chown(folder, "postgres")
    else:
        folder.mkdir()
    (folder / "password").write_text(f"{PASSWORD}\n")
    (folder / "password").chmod(0o644)
    data, port = folder / "data", free_port()

    def run(*command: str) -> None:
        done = subprocess.run([*user, *command], capture_output=True, text=True, cwd=folder, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    run(initdb, "-D", str(data), "-U", "ann", "-A", "scram-sha-256", "--pwfile", str(folder / "password"), "-N")
    options = f"-h 127.0.0.1 -p {port} -k {folder} -F"
    control = str(programs_folder / "pg_ctl")
    run(control, "-D", str(data), "-w", "-l", str(folder / "log"), "-o", options, "start")
    try:
        yield f"postgresql+asyncpg://ann:{QUOTED}@127.0.0.1:{port}/postgres"
    finally:
        run(control, "-D", str(data), "-m", "immediate", "-w", "stop")
        shutil.rmtree(folder, ignore_errors=True)


@marked
def test_postgresql_by_one_setting_and_its_password_stays_hidden(toy_template, tmp_path, cluster):
    url = cluster
    served = bring_up(make_toy(toy_template, tmp_path), tmp_path, **{serve.DATABASE_VARIABLE: url})
    try:
        assert served.ask("/work_pools/synthgen")["type"] == "process"
        run = served.demand(project=str(served.project))
        wait_until(lambda: served.state(run)["type"] in ENDED, 400, "a run to end")
        assert served.state(run)["type"] == "COMPLETED", served.output()[-4000:]
    finally:
        seconds = served.end()
    assert seconds < 15
    assert not list((tmp_path / "home").glob("*.db")), "SQLite was used after all"
    for path in (tmp_path / "serve.log", *(each for each in (tmp_path / "home").rglob("*") if each.is_file())):
        content = path.read_bytes()
        assert PASSWORD.encode() not in content, path
        assert QUOTED.encode() not in content, path
