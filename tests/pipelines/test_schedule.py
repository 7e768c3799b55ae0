"""A schedule that really fires: server, work pool, worker and prefect.yaml's own deployment, on loopback.

$SYNTHGEN_TEST_PROJECT runs it on a real project instead of the toy: a folder of its own, which the run changes.
"""

import json
import os
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from pipelines import dvc

pytestmark = [pytest.mark.server, pytest.mark.timeout(2400)]

ENDED = {"COMPLETED", "FAILED", "CRASHED"}


def flow_runs(address: str, deployment: str) -> list[dict]:
    """Runs of a deployment whose start was due, oldest first, as the server tells them."""
    question = {"deployments": {"name": {"any_": [deployment]}}, "sort": "EXPECTED_START_TIME_ASC", "limit": 20}
    request = urllib.request.Request(
        f"{address}/flow_runs/filter", json.dumps(question).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return [run for run in json.load(answer) if run["state_type"] != "SCHEDULED"]


def run_on_schedule(project: Path, server, wait_until, within_seconds: float) -> dict:
    """Deploys prefect.yaml's `nightly` for `project` on a cron of every minute; returns the first run that ended.

    Args:
        project: folder of dvc.yaml, set up for DVC.
        server: the fixture; its processes end before this returns.
        wait_until: the fixture.
        within_seconds: for the schedule to fire and the run to end.
    """
    server.prefect("work-pool", "create", "--type", "process", "synthgen")
    parameters = json.dumps({"project": str(project), "publish": False})
    server.prefect("deploy", "--name", "nightly", "--cron", "* * * * *", "--params", parameters)
    address = server.environment["PREFECT_API_URL"]
    start = ("-m", "prefect", "worker", "start", "--pool", "synthgen", "--type", "process", "--name", "first")
    with server.process("worker", sys.executable, *start) as worker:

        def first_in(states: set[str]) -> dict | None:
            assert worker.poll() is None, server.log("worker")
            time.sleep(1)
            runs = [run for run in flow_runs(address, "nightly") if run["parameters"].get("project") == str(project)]
            return next((run for run in runs if run["state_type"] in states), None)  # the server has had other tests

        wait_until(lambda: first_in({"RUNNING", *ENDED}) is not None, within_seconds, "the schedule to fire")
        server.prefect("deployment", "schedule", "clear", "--accept-yes", "refresh/nightly")
        wait_until(lambda: first_in(ENDED) is not None, within_seconds, "the scheduled run to end")
        run = first_in(ENDED)
    assert run is not None
    return run


def test_a_scheduled_run_fires_by_itself_and_leaves_the_project_clean(toy, server, wait_until):
    given = os.environ.get("SYNTHGEN_TEST_PROJECT")
    project = Path(given).resolve() if given else toy.folder
    run = run_on_schedule(project, server, wait_until, 2100 if given else 400)
    assert run["auto_scheduled"], "somebody started it by hand"
    assert run["state_type"] == "COMPLETED", run["state"]["message"] + server.log("worker")
    assert run["parameters"]["project"] == str(project)
    assert dvc.status(project) == {}
    if not given:
        assert len((project / "stamps.jsonl").read_text().splitlines()) == 4
