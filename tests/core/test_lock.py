"""FAULTS rows 26 and 27: two runs at once, stale locks, locks of other machines, and `synthgen unlock`."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from synthgen.cli import app
from synthgen.errors import ArtifactError, ConfigError
from synthgen.lifeline import ProcessMark, life_of, mark_token, own_mark, token_is_dead
from synthgen.lock import LOCK_FOLDER, LockedError, hold_output, hold_run, list_locks, remove_dead_locks
from synthgen.records import FINAL, ClassPlan, Plan, save_plan

ROOT = Path(__file__).parents[2]
OWN = own_mark()
ELSEWHERE = replace(OWN, host="far-away", boot="00000000-0000-0000-0000-000000000000")
HOLD = """
import sys, time
from pathlib import Path
from synthgen.lock import hold_output
root = Path(sys.argv[1])
with hold_output(root, root / sys.argv[2], "synthgen pretrain --fold f0"):
    print("held", flush=True)
    time.sleep(60)
"""
FORKS = """
import os, sys, time
from pathlib import Path
from synthgen.lock import hold_output
root = Path(sys.argv[1])
with hold_output(root, root / "out"):
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    time.sleep(60)
"""
TAKE_TURNS = """
import os, sys, time
from pathlib import Path
from synthgen.lock import LockedError, hold_output
root, n_done = Path(sys.argv[1]), 0
while n_done < 20:
    try:
        with hold_output(root, root / "out"):
            alone = os.open(root / "alone", os.O_CREAT | os.O_EXCL)  # fails where two are inside
            with (root / "turns").open("a") as turns:
                turns.write("x")
            os.close(alone)
            (root / "alone").unlink()
        n_done += 1
    except LockedError:
        time.sleep(0.001)
"""


@contextmanager
def _process(code: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def _forge(root: Path, name: str, process: ProcessMark, **more: object) -> Path:
    path = root / LOCK_FOLDER / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**vars(process), "command": "synthgen x", "since": "2026-01-01", **more}))
    return path


def _dead_pid() -> int:
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    return int(done.stdout)


def test_fault_26_the_second_one_fails_at_once_naming_the_first(tmp_path: Path) -> None:
    with _process(HOLD, str(tmp_path), "models/f0/shared") as (process, said):
        assert said == "held"
        begun = time.monotonic()
        with pytest.raises(LockedError) as refused, hold_output(tmp_path, tmp_path / "models/f0/shared"):
            pass
        assert time.monotonic() - begun < 0.4
        with hold_output(tmp_path, tmp_path / "models/f1/shared"), hold_run(tmp_path):
            pass  # other outputs are free
        assert [lock.state for lock in remove_dead_locks(tmp_path, force_host=OWN.host)] == ["held"]
        text = str(refused.value)
        for needed in ("models/f0/shared", f"process {process.pid} on {OWN.host}", "--fold f0", f"kill {process.pid}"):
            assert needed in text


def test_a_lock_is_gone_after_the_block_and_after_an_error(tmp_path: Path) -> None:
    for error in (None, RuntimeError("broken")):
        try:
            with hold_output(tmp_path, tmp_path / "out"):
                assert [lock.state for lock in list_locks(tmp_path)] == ["held"]
                if error:
                    raise error
        except RuntimeError:
            pass
        assert list_locks(tmp_path) == []
        assert not list((tmp_path / LOCK_FOLDER).rglob("*.lock"))


def test_fault_27_the_lock_of_a_killed_process_is_taken_over_with_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with _process(HOLD, str(tmp_path), "out") as (process, _):
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert [lock.state for lock in list_locks(tmp_path)] == ["dead"]
        with hold_output(tmp_path, tmp_path / "out"):
            pass
        assert f"out: taking over the lock of process {process.pid}" in caplog.text


def test_a_worker_that_outlives_its_killed_stage_holds_nothing(tmp_path: Path) -> None:
    with _process(FORKS, str(tmp_path)) as (process, child):
        try:
            process.kill()
            process.wait()
            os.kill(int(child), 0)  # it lives
            with hold_output(tmp_path, tmp_path / "out"):
                pass
        finally:
            os.kill(int(child), signal.SIGKILL)


def test_never_two_at_a_time(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", TAKE_TURNS, str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    while any(process.poll() is None for process in processes):
        remove_dead_locks(tmp_path)  # looking does not let a second one in
        time.sleep(0.005)
    assert [process.communicate()[1] for process in processes] == ["", "", ""]
    assert (tmp_path / "turns").read_text() == "x" * 60


@pytest.mark.parametrize(
    "process",
    [
        replace(OWN, pid=_dead_pid()),
        replace(OWN, start=OWN.start + 1),
        replace(OWN, boot="11111111-1111-1111-1111-111111111111"),
        replace(OWN, host="container-before-its-restart"),
    ],
    ids=["dead pid", "recycled pid", "other boot", "same kernel under another name"],
)
def test_fault_27_stale_locks_of_this_machine_are_taken_over_and_unlocked(tmp_path: Path, process: ProcessMark) -> None:
    path = _forge(tmp_path, "data/prepared", process)
    with hold_output(tmp_path, tmp_path / "data/prepared"):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    _forge(tmp_path, "data/prepared", process)
    assert [(lock.state, lock.removed) for lock in remove_dead_locks(tmp_path)] == [("dead", True)]
    assert not path.exists()


def test_fault_27_a_lock_of_another_machine_needs_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = _forge(tmp_path, "models/f0/shared", ELSEWHERE)
    for _ in range(2):
        with (
            pytest.raises(LockedError, match=r"on far-away.*synthgen unlock --force far-away"),
            hold_output(tmp_path, tmp_path / "models/f0/shared"),
        ):
            pass
    for arguments, status in (((), 1), (("--force", "elsewhere"), 1), (("--force", "far-away"), 0), ((), 0)):
        command = ["unlock", "--project", str(tmp_path), *arguments]
        with pytest.raises(SystemExit) as left:
            app(command)
        assert left.value.code == status, arguments
        assert path.exists() == (status == 1)
    told = capsys.readouterr().out
    assert "models/f0/shared: kept, of another machine: process" in told
    assert "models/f0/shared: removed, as you asked" in told
    assert told.endswith("no output is locked\n")
    with hold_output(tmp_path, tmp_path / "models/f0/shared"):
        pass
    assert caplog.text == ""


@pytest.mark.parametrize("content", [b"", b"{", b"\0" * 100, b"[1]", b'{"pid": "x"}', b"\xff" * 9000])
def test_a_torn_record_stands_in_nobodys_way(tmp_path: Path, content: bytes) -> None:
    path = _forge(tmp_path, "out", OWN)
    path.write_bytes(content)
    with hold_output(tmp_path, tmp_path / "out"):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_a_record_cannot_write_to_a_terminal(tmp_path: Path) -> None:
    _forge(
        tmp_path, "out", replace(ELSEWHERE, host="\x1b]0;evil\x07" + "h" * 999), command="\x1b[2J\nsynthgen: all well"
    )
    with pytest.raises(LockedError) as refused, hold_output(tmp_path, tmp_path / "out"):
        pass
    assert str(refused.value).isprintable()


def test_an_output_outside_of_the_project_has_no_lock(tmp_path: Path) -> None:
    for output in (tmp_path, tmp_path.parent, tmp_path / "data" / ".." / ".." / "x", Path("/x")):
        with pytest.raises(ConfigError, match="is not inside the project"), hold_output(tmp_path, output):
            pass


def test_a_lock_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / ".synthgen").write_text("a file where a folder has to be")
    with (
        pytest.raises(ArtifactError, match=r"cannot take the lock .*out\.lock"),
        hold_output(tmp_path, tmp_path / "out"),
    ):
        pass


def _project(root: Path) -> Path:
    (root / "params.yaml").write_text(
        "source: {type: digits}\nevaluate: {arms: [classical]}\nchallenge: {arms: [best+synthetic]}\n"
    )
    entry = ClassPlan(class_name="a", label=0, images=9, groups=9, scarce=True, target=6, generator="adapted")
    facts = {"version": 1, "mode": "folds", "strategy": "adapted", "folds": ["f0", FINAL], "pretrain_folds": [FINAL]}
    plan = Plan.model_validate({**facts, "adapt_slugs": ["a"], "scratch_slugs": [], "classes": {"a": entry}})
    save_plan(root / "plan.yaml", plan)
    return root


@pytest.mark.parametrize(
    ("command", "output"),
    [
        ("plan", "plan.yaml"),
        ("prepare", "data/prepared"),
        ("pretrain --fold f0", "models/f0/shared"),
        ("adapt --fold f0 --slug a", "models/f0/adapted-a"),
        ("scratch --fold f0 --slug a", "models/f0/scratch-a"),
        ("synthesize --fold final", "data/synthetic/final"),
        ("assemble", "data/augmented"),
        ("evaluate --arm classical", "data/evaluation/classical"),
        ("challenge --arm best+synthetic", "data/challenge/best+synthetic"),
        ("compare", "metrics"),
        ("worth", "metrics/worth.json"),
        ("report", "reports"),
    ],
)
def test_fault_26_every_verb_that_writes_takes_the_lock_of_its_output(
    tmp_path: Path, command: str, output: str
) -> None:
    root = _project(tmp_path)
    with hold_output(root, root / output), pytest.raises(LockedError, match=f"{output.replace('+', '.')} is being"):
        app([*command.split(), "--project", str(root)], standalone_mode=False)


def test_fault_26_a_second_command_ends_with_one_line_and_status_1(tmp_path: Path) -> None:
    root = _project(tmp_path)
    with hold_output(root, root / "data/prepared"):
        done = subprocess.run(
            [sys.executable, "-m", "synthgen", "prepare", "--project", str(root)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.startswith(f"synthgen: LockedError: data/prepared is being written by process {os.getpid()} on ")
    assert len(done.stderr.splitlines()) == 1
    assert not (root / "data").exists()


def test_a_folder_that_is_no_project_stays_as_it_was(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="missing"):
        app(["prepare", "--project", str(tmp_path)], standalone_mode=False)
    assert list(tmp_path.iterdir()) == []


def test_life_and_death_as_far_as_they_can_be_known() -> None:
    parent = replace(OWN, pid=os.getppid(), start=0)
    dead = replace(OWN, pid=_dead_pid())
    container = replace(OWN, table="1", pid=1)
    for process, expected in (
        (OWN, "alive"),
        (parent, "alive"),
        (dead, "dead"),
        (replace(OWN, start=OWN.start + 1), "dead"),
        (replace(OWN, boot="x"), "dead"),
        (replace(OWN, pid=-1), "dead"),
        (replace(OWN, pid=2**40), "dead"),
        (container, "unknown"),
        (ELSEWHERE, "unknown"),
    ):
        assert life_of(process) == expected, process
        # what a token tells is less: only the dead of this host
        assert token_is_dead(mark_token(process)) == (expected == "dead" and 0 <= process.pid < 10**10), process
    for text in ("", "123", "x" * 18 + "-1-1", mark_token(dead) + "\n", "../" + mark_token(dead)):
        assert not token_is_dead(text)
