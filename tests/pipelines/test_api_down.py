"""Faults 35 and 36: no Prefect API at the start, and one that is killed while stages run."""

import json
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from pipelines.reachable import UnreachableError, require_api, words_of_loss

REPOSITORY = Path(__file__).resolve().parents[2]


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


# 35


def test_no_address_and_an_answer_of_any_kind_are_fine():
    require_api(None)
    assert words_of_loss(None) is None


@pytest.mark.parametrize("address", ["http://127.0.0.1:{port}/api", "127.0.0.1:{port}/api", "http://[x/api"])
def test_an_address_that_does_not_answer_is_named_with_what_to_do(address):
    address = address.format(port=closed_port())
    with pytest.raises(UnreachableError) as caught:
        require_api(address)
    words = str(caught.value)
    assert address in words
    assert all(remedy in words for remedy in ("make serve", "unset PREFECT_API_URL", "dvc repro"))
    assert "\n" not in words
    assert "is kept" in words_of_loss(address)


def test_a_server_that_takes_the_connection_and_says_nothing_is_not_waited_for():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        started = time.monotonic()
        with pytest.raises(UnreachableError, match="timed out"):
            require_api(f"http://127.0.0.1:{listener.getsockname()[1]}/api", 0.3)
        assert time.monotonic() - started < 5


def test_a_password_in_the_address_is_not_told():
    with pytest.raises(UnreachableError) as caught:
        require_api(f"http://ann:Canary-7f3a@127.0.0.1:{closed_port()}/api")
    assert "Canary" not in str(caught.value)


@pytest.mark.timeout(240)
def test_without_the_api_the_flow_ends_at_once_and_dvc_repro_works(toy):
    address = f"http://127.0.0.1:{closed_port()}/api"
    done = toy.flow(PREFECT_API_URL=address)
    assert done.returncode == 1
    [error] = [line for line in done.stderr.splitlines() if line]
    assert error.startswith(f"error: the Prefect API at {address} (PREFECT_API_URL) does not answer")
    assert not (toy.folder / "stamps.jsonl").exists()
    done = toy.run(sys.executable, "-m", "dvc", "repro", "--quiet", PREFECT_API_URL=address)
    assert done.returncode == 0, done.stderr
    assert len((toy.folder / "stamps.jsonl").read_text().splitlines()) == 4


# 36


@contextmanager
def prefect_server(toy, port: int):
    """A server with a home of its own, in a group that is ended with the block."""
    home = toy.folder.parent / "server"
    home.mkdir(exist_ok=True)
    leases = "prefect.server.concurrency.lease_storage.filesystem"  # as `make serve` has it
    more = {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_UI_ENABLED": "false",
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": leases,
    }
    start = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            start, cwd=REPOSITORY, env={**toy.environment, **more}, stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 300
        while True:
            assert process.poll() is None, (home / "log").read_text(errors="replace")
            assert time.monotonic() < deadline, "the server did not start"
            try:
                if httpx.get(f"http://127.0.0.1:{port}/api/health", timeout=5, trust_env=False).is_success:
                    break
            except httpx.HTTPError:
                time.sleep(0.2)
        yield process
    finally:
        for ending in (signal.SIGTERM, signal.SIGKILL):
            try:
                process.send_signal(ending)
                process.wait(20)
                break
            except subprocess.TimeoutExpired:
                continue


@pytest.mark.server
@pytest.mark.timeout(1500)
def test_a_server_killed_in_mid_run_costs_nothing_that_was_made(toy, wait_until, is_running):
    port = closed_port()
    reach = {"PREFECT_HOME": str(toy.folder.parent / "server"), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    toy.set_seconds(8)
    with prefect_server(toy, port) as server, toy.start_flow(**reach) as flow:
        running = [toy.pid_of(name, 400) for name in ("crack.txt", "fray.txt")]
        server.kill()
        server.wait(20)
        killed = time.monotonic()
        said = flow.communicate(timeout=900)[1]
        took = time.monotonic() - killed
    print(f"the flow ended {took:.0f} s after its server")
    assert flow.returncode == 1
    last = said[said.rindex("error: ") :]
    assert f"the Prefect API at {reach['PREFECT_API_URL']} (PREFECT_API_URL) went away during the run" in last, said
    assert "the same command goes on from there" in last
    assert "Traceback" not in last
    wait_until(lambda: not any(is_running(pid) for pid in running), 10, "the stages' end")
    # The stages that were running went on to their ends, and DVC knows them.
    made = [Path(json.loads(line)[0]).stem for line in (toy.folder / "stamps.jsonl").read_text().splitlines()]
    assert (made[0], sorted(made[1:])) == ("prepared", ["crack", "fray"])
    lock = (toy.folder / "dvc.lock").read_text()
    assert all(f"  {stage}:" in lock for stage in ("prepare", "adapt@f0-crack", "adapt@f0-fray"))
    # The next run, under the same server started again, visits what is left alone.
    with prefect_server(toy, port):
        done = toy.flow(**reach)
        for _ in range(10):
            if done.returncode == 0:
                break
            assert "error: another run" in done.stderr, done.stderr
            time.sleep(10)  # the turn of the run that lost its server is free when its lease of 60 s is over
            done = toy.flow(**reach)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "of 4 stages are to be visited" in done.stderr
    stamps = [Path(json.loads(line)[0]).stem for line in (toy.folder / "stamps.jsonl").read_text().splitlines()]
    assert stamps[3:] == ["scores"]
    assert toy.dvc("status", "--json").strip() == "{}"
