"""The flow on a toy project, as its users run it: `python -m pipelines.flows` in a process of its own."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.server, pytest.mark.timeout(1500)]


def stamps(folder: Path) -> list[list]:
    path = folder / "stamps.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def on(server):
    """The environment of a flow that talks to the test's own server."""
    return {name: value for name, value in server.environment.items() if name.startswith("PREFECT_")}


def next_turn(toy, environment):
    """A flow after one that could not say that it ended, and so holds its turn until its lease of 60 s is over."""
    for _ in range(12):
        done = toy.flow(**environment)
        if done.returncode == 0:
            break
        error = done.stderr[done.stderr.rindex("error: ") :]
        assert error.startswith("error: another run"), done.stderr
        assert "Traceback" not in error
        time.sleep(10)
    return done


def test_flow_then_repro_then_flow(toy, server):
    toy.set_seconds(4)
    done = toy.flow(**on(server))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = stamps(toy.folder)
    made = [Path(row[0]).stem for row in rows]
    assert (made[0], set(made[1:-1]), made[-1]) == ("prepared", {"crack", "fray"}, "scores")
    # Independent instances overlapped, and none of Prefect's settings reached a stage.
    crack, fray = sorted(rows[1:3])
    assert max(crack[1], fray[1]) < min(crack[2], fray[2])
    assert all(row[3] == [] for row in rows)
    # dvc.lock is complete after parallel stages: nothing is left to do, and doing it takes no stage.
    lock = (toy.folder / "dvc.lock").read_text()
    assert all(f"  {stage}:" in lock for stage in ("prepare", "adapt@f0-crack", "adapt@f0-fray", "compare"))
    assert toy.dvc("status", "--json").strip() == "{}"
    assert "up to date" in toy.dvc("repro")
    # And the other way round: after `dvc repro` the flow runs nothing.
    (toy.folder / "data" / "raw.txt").write_text("slip")
    toy.dvc("repro", "-q")
    n_before = len(stamps(toy.folder))
    done = toy.flow(**on(server))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 of 4 stages are to be visited" in done.stderr
    assert len(stamps(toy.folder)) == n_before


def test_only_what_changed_is_visited(toy, server):
    toy.dvc("repro", "-q")
    (toy.folder / "models" / "f0" / "fray.txt").unlink()
    done = toy.flow(**on(server))
    assert done.returncode == 0, done.stderr
    assert "2 of 4 stages are to be visited" in done.stderr
    assert len(stamps(toy.folder)) == 4, "the lost file came from DVC's cache, not from a second training"


def test_failing_class_is_named_and_leaves_the_other_alone(toy, server):
    (toy.folder / "broken").write_text("fray")
    done = toy.flow(**on(server))
    assert done.returncode == 1
    error = done.stderr[done.stderr.rindex("error: ") :]
    assert "stage 'adapt@f0-fray' failed with exit status 255" in error
    assert "the kiln of fray is cold" in error
    assert "not run, because they come after: compare" in error
    assert [Path(row[0]).stem for row in stamps(toy.folder)] == ["prepared", "crack"]
    (toy.folder / "broken").unlink()
    assert toy.flow(**on(server)).returncode == 0
    assert [Path(row[0]).stem for row in stamps(toy.folder)] == ["prepared", "crack", "fray", "scores"]


def test_what_stays_dirty_fails_the_flow_by_name(toy, server):
    # A stage that writes into what another one made can never come to rest.
    alone = "cmd: python step.py 0 metrics/scores.txt"
    text = (toy.folder / "dvc.yaml").read_text()
    (toy.folder / "dvc.yaml").write_text(text.replace(alone, f"{alone} && date +%N >> models/f0/crack.txt"))
    done = toy.flow(**on(server))
    assert done.returncode == 1
    assert "adapt@f0-crack is still out of date" in done.stderr[done.stderr.rindex("error: ") :]


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_killed_flow_leaves_no_stage_and_the_next_goes_on(toy, server, wait_until, is_running, ending):
    toy.set_seconds(200)
    with toy.start_flow(**on(server)) as flow:
        running = [toy.pid_of(name, 240) for name in ("crack.txt", "fray.txt")]
        assert all(is_running(pid) for pid in running)
        os.kill(flow.pid, ending)
        started = time.monotonic()
        wait_until(lambda: not any(is_running(pid) for pid in running), 10, "the stages' end")
        assert flow.wait(60) != 0
        assert time.monotonic() - started < 60
    toy.set_seconds(0)
    done = next_turn(toy, on(server)) if ending == signal.SIGKILL else toy.flow(**on(server))
    assert done.returncode == 0, done.stderr
    assert toy.dvc("status", "--json").strip() == "{}"


def test_without_a_server_a_temporary_one_serves_and_dies_with_the_flow(toy, wait_until, is_running):
    toy.set_seconds(200)
    with toy.start_flow() as flow:
        stage = toy.pid_of("crack.txt", 300)
        ours = str(toy.folder.parent).encode()
        servers = [pid for pid in processes() if b"uvicorn" in command(pid) and ours in home(pid)]
        assert len(servers) == 1
        flow.kill()
        wait_until(lambda: not any(is_running(pid) for pid in [stage, *servers]), 15, "everything's end")
    toy.set_seconds(0)
    done = next_turn(toy, {})
    assert done.returncode == 0, done.stdout + done.stderr
    assert toy.dvc("status", "--json").strip() == "{}"


def processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def home(pid: int) -> bytes:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return b""
    return next((entry for entry in environment if entry.startswith(b"PREFECT_HOME=")), b"")
