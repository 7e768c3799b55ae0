"""A cron schedule publishes by itself: a first version, nothing where nothing is new, then what one file changed."""

import json
import sys
import time
import urllib.request
from collections import Counter
from datetime import datetime

import pytest

from benchmarks.toy_project import make_toy

pytestmark = [pytest.mark.server, pytest.mark.timeout(1800)]

ENDED = {"COMPLETED", "FAILED", "CRASHED"}  # a tick that meets a running one is cancelled, and not counted


def ended_runs(address: str) -> list[dict]:
    question = {"deployments": {"name": {"any_": ["nightly"]}}, "sort": "EXPECTED_START_TIME_ASC", "limit": 100}
    request = urllib.request.Request(
        f"{address}/flow_runs/filter", json.dumps(question).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return [run for run in json.load(answer) if run["state_type"] in ENDED]


def seconds_of(run: dict) -> float:
    begin, end = (datetime.fromisoformat(run[key].replace("Z", "+00:00")) for key in ("start_time", "end_time"))
    return (end - begin).total_seconds()


def test_a_cron_publishes_then_nothing_then_what_one_new_file_changed(tmp_path, server, wait_until, record_property):
    toy = make_toy(tmp_path / "toy", 1)
    server.prefect("work-pool", "create", "--type", "process", "cron")
    parameters = json.dumps({"project": str(toy.person), "publish": True})
    server.prefect("deploy", "--name", "nightly", "--pool", "cron", "--cron", "* * * * *", "--params", parameters)
    address = server.environment["PREFECT_API_URL"]
    start = ("-m", "prefect", "worker", "start", "--pool", "cron", "--type", "process", "--name", "cron")
    seen: set[str] = set()
    with server.process("cron-worker", sys.executable, *start) as worker:

        def next_end(what: str) -> dict:
            """The first run that starts from now on, once it has ended."""
            seen.update(run["id"] for run in ended_runs(address))
            new: list[dict] = []

            def is_there() -> bool:
                assert worker.poll() is None, server.log("cron-worker")
                time.sleep(1)
                new[:] = [run for run in ended_runs(address) if run["id"] not in seen]
                return bool(new)

            wait_until(is_there, 400, what)
            assert new[0]["auto_scheduled"], "somebody started it by hand"
            assert new[0]["state_type"] == "COMPLETED", new[0]["state"]["message"] + server.log("cron-worker")
            return new[0]

        next_end("the first tick")
        assert list(toy.versions()) == ["augmented@v0.1.0"]
        assert Counter(toy.finished()) == Counter(["prepare", "adapt@f0-crack", "adapt@f0-fray", "assemble", "compare"])

        head = toy.versions()["augmented@v0.1.0"]
        idle = next_end("the second tick")
        record_property("seconds of a tick with nothing new", seconds_of(idle))
        print(f"a tick with nothing new: {seconds_of(idle):.1f} s")
        assert seconds_of(idle) < 60
        assert toy.versions() == {"augmented@v0.1.0": head}
        assert len(toy.finished()) == 5

        toy.add_raw("crack", "1.txt", "crack 1\n")
        for _ in range(2):  # the tick that was running at the push may have begun before it
            next_end("a tick with one new file")
            if len(toy.versions()) > 1:
                break
        server.prefect("deployment", "schedule", "clear", "--accept-yes", "refresh/nightly")
    assert sorted(toy.versions()) == ["augmented@v0.1.0", "augmented@v0.1.1"]
    assert toy.finished()[5:] == ["prepare", "adapt@f0-crack", "assemble", "compare"]
    assert toy.faults_of_origin() == []
    assert toy.faults_of_clone() == []
