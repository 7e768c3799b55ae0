"""Two process workers of one work pool: runs of two projects side by side, a second run of one project cancelled.

The workers may stand on two machines: all that they share is the pool of one server.
"""

import json
import shutil
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines import dvc

pytestmark = [pytest.mark.server, pytest.mark.timeout(1500)]

REPOSITORY = Path(__file__).resolve().parents[2]
POOL = "pair"
WITHIN = 600.0
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
# A deployment per project, as a team's own prefect.yaml would have it.
DEPLOYMENT = """\
  - name: {name}
    entrypoint: pipelines/flows.py:refresh
    parameters: {{project: "{project}", publish: false, max_workers: 1}}
    work_pool: {{name: {pool}}}
"""
# In the place of the toy stage's `time.sleep(seconds)`.
WAIT = """\
while output.stem == "crack" and not Path("go").exists():
    time.sleep(0.1)
"""


def ask(server, path: str, question: dict | None = None) -> dict:
    """An answer of the server's API."""
    content = None if question is None else json.dumps(question).encode()
    address = f"{server.environment['PREFECT_API_URL']}/{path}"
    request = urllib.request.Request(address, content, {"Content-Type": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
        return json.load(answer)


def start_run(server, name: str) -> str:
    """Starts a run of the deployment; returns its id."""
    found = ask(server, f"deployments/name/refresh/{name}")
    return ask(server, f"deployments/{found['id']}/create_flow_run", {})["id"]


def state(server, run: str) -> tuple[str, str]:
    """Type and message."""
    found = ask(server, f"flow_runs/{run}")["state"]
    return found["type"], found["message"] or ""


@pytest.fixture
def two(toy, tmp_path):
    """Two projects whose stage `adapt@f0-crack` waits for a file `go`."""
    step = toy.folder / "step.py"
    sleep, text = "time.sleep(seconds)\n", step.read_text()
    assert sleep in text
    step.write_text(text.replace(sleep, WAIT))
    (toy.folder / ".gitignore").write_text("stamps.jsonl\npids/\ngo\n")
    other = tmp_path / "other"
    shutil.copytree(toy.folder, other)
    return toy, replace(toy, folder=other)


def has_run(log: str, run: str) -> bool:
    """Whether a worker ran it; both may have seen it as due, and the server lets one of them go on."""
    return run in log and f"Aborted submission of flow run '{run}'" not in " ".join(log.split())


def test_two_workers_of_one_pool_run_two_projects_side_by_side_and_one_project_once(two, server, wait_until, tmp_path):
    server = replace(server, environment={**server.environment, "PREFECT_WORKER_QUERY_SECONDS": "2"}, logs=tmp_path)
    deployments = {"first": two[0].folder, "second": two[1].folder, "first-again": two[0].folder}
    rows = "".join(DEPLOYMENT.format(name=name, project=folder, pool=POOL) for name, folder in deployments.items())
    pull = f"pull:\n  - prefect.deployments.steps.set_working_directory:\n      directory: {REPOSITORY}\n"
    (tmp_path / "prefect.yaml").write_text(f"name: pair\n{pull}deployments:\n{rows}")
    server.prefect("work-pool", "create", "--type", "process", POOL)
    server.prefect("deploy", "--all", "--prefect-file", str(tmp_path / "prefect.yaml"))
    # one run at a time each: where two runs go on, both workers are at work
    start = (sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process", "--limit", "1")
    with server.process("one", *start, "--name", "one") as one, server.process("two", *start, "--name", "two") as other:

        def within(is_so, what: str) -> None:
            def checked() -> bool:
                assert (one.poll(), other.poll()) == (None, None), server.log("one") + server.log("two")
                time.sleep(0.5)
                return is_so()

            wait_until(checked, WITHIN, what)

        def is_waiting(project) -> bool:
            pid = project.folder / "pids" / "crack.txt"
            return pid.exists() and pid.read_text() != ""

        runs = [start_run(server, name) for name in ("first", "second")]
        within(lambda: all(map(is_waiting, two)) or any(state(server, run)[0] in ENDED for run in runs), "both stages")
        assert [state(server, run)[0] for run in runs] == ["RUNNING", "RUNNING"], server.log("one") + server.log("two")
        for project in two:
            (project.folder / "go").touch()
        within(lambda: all(state(server, run)[0] in ENDED for run in runs), "both runs to end")
        assert [state(server, run)[0] for run in runs] == ["COMPLETED", "COMPLETED"], server.log("one")
        logs = [server.log("one"), server.log("two")]
        assert sorted([has_run(log, run) for log in logs] for run in runs) == [[False, True], [True, False]]
        assert [dvc.status(project.folder) for project in two] == [{}, {}]

        # The same project by two deployments: the later one is cancelled with the reason, the first one goes on.
        (two[0].folder / "go").unlink()
        (two[0].folder / "pids" / "crack.txt").unlink()
        (two[0].folder / "data" / "raw.txt").write_text("loam")
        first = start_run(server, "first")
        within(lambda: is_waiting(two[0]) or state(server, first)[0] in ENDED, "the stage of the first run")
        later = start_run(server, "first-again")
        within(lambda: state(server, later)[0] in ENDED, "the later run to end")
        kind, message = state(server, later)
        assert (kind, state(server, first)[0]) == ("CANCELLED", "RUNNING"), message
        assert "works on this project, one at a time" in message
        (two[0].folder / "go").touch()
        within(lambda: state(server, first)[0] in ENDED, "the first run to end")
        assert state(server, first)[0] == "COMPLETED", state(server, first)
        assert dvc.status(two[0].folder) == {}
    stamps = [json.loads(row) for row in (two[0].folder / "stamps.jsonl").read_text().splitlines()]
    assert len(stamps) == 8  # four stages, twice: the cancelled run did nothing
