"""Commands end with their group: on time-out, on cutting the leash, on the caller's death."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipelines.supervise import GRACE_SECONDS, NOT_STARTED, STOPPED, TIMED_OUT, one_leash, run_supervised

pytestmark = pytest.mark.skipif(os.name != "posix", reason="process groups are POSIX")

# A parent that starts a grandchild, tells both ids, and hangs; like dvc, its shell and the stage.
FAMILY = """
import subprocess, sys, time, os, pathlib
code = "import signal, time; {ignore}; print('up', flush=True); time.sleep(120)"
child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
child.stdout.readline()
pathlib.Path("ids").write_text(f"{{os.getpid()}} {{child.pid}}")
print("started", flush=True)
time.sleep(120)
"""


def family(ignore_sigterm: bool = False) -> list[str]:
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN)" if ignore_sigterm else "pass"
    return [sys.executable, "-c", FAMILY.format(ignore=ignore)]


def ids(folder: Path) -> list[int]:
    return [int(text) for text in (folder / "ids").read_text().split()]


def test_lines_come_one_by_one_and_status_is_the_commands(tmp_path):
    lines = []
    code = "import sys; print('a'); print('b', file=sys.stderr); print(); sys.exit(3)"
    ended = run_supervised([sys.executable, "-u", "-c", code], tmp_path, os.environ, 30, lines.append)
    assert (ended.status, ended.stdout) == (3, "")
    assert lines == ["a", "b"] == list(ended.tail)


def test_lines_are_handed_on_before_the_command_ends(tmp_path):
    seen = []
    code = "import time; print('early', flush=True); time.sleep(1.5)"
    run_supervised([sys.executable, "-c", code], tmp_path, os.environ, 30, lambda line: seen.append(time.monotonic()))
    assert time.monotonic() - seen[0] > 1.0


def test_captured_output_is_apart_from_errors(tmp_path):
    code = "import sys; print('answer'); print('grumble', file=sys.stderr)"
    ended = run_supervised([sys.executable, "-c", code], tmp_path, os.environ, 30)
    assert (ended.status, ended.stdout, ended.tail) == (0, "answer\n", ("grumble",))


def test_only_the_last_lines_are_kept(tmp_path):
    ended = run_supervised(
        [sys.executable, "-c", "[print(i) for i in range(1000)]"], tmp_path, os.environ, 30, lambda line: None
    )
    assert ended.tail == tuple(str(i) for i in range(980, 1000))


def test_bytes_that_are_no_text_do_not_stop_the_reading(tmp_path):
    code = "import sys; sys.stdout.buffer.write(b'\\xff\\xfe ok\\n')"
    ended = run_supervised([sys.executable, "-c", code], tmp_path, os.environ, 30, lambda line: None)
    assert ended.status == 0
    assert ended.tail[0].endswith("ok")


def test_a_signal_becomes_128_plus_its_number(tmp_path):
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert run_supervised([sys.executable, "-c", code], tmp_path, os.environ, 30).status == 128 + signal.SIGKILL


def test_a_command_that_is_not_there(tmp_path):
    ended = run_supervised([str(tmp_path / "nothing")], tmp_path, os.environ, 30)
    assert ended.status == NOT_STARTED
    assert "nothing" in ended.tail[-1]


@pytest.mark.parametrize("ignore_sigterm", [False, True])
def test_timeout_ends_the_whole_group(tmp_path, is_running, ignore_sigterm):
    started = time.monotonic()
    ended = run_supervised(family(ignore_sigterm), tmp_path, os.environ, 1.0, lambda line: None)
    assert ended.status == TIMED_OUT
    assert time.monotonic() - started < 1.0 + GRACE_SECONDS + 3.0
    assert not any(is_running(pid) for pid in ids(tmp_path))


TIDY = """
import subprocess, sys, time, pathlib
child = subprocess.Popen([sys.executable, "-c", "import time; print('up', flush=True); time.sleep(120)"],
                         stdout=subprocess.PIPE)
child.stdout.readline()
print("started", flush=True)
status = child.wait()
time.sleep(0.5)
pathlib.Path("tidied").write_text(str(status))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the members of a group are read from /proc")
def test_a_spared_leader_outlives_its_child_to_tidy_up(tmp_path):
    command = [sys.executable, "-c", TIDY]
    ended = run_supervised(command, tmp_path, os.environ, 2.0, lambda line: None, spare_leader=True)
    assert ended.status == TIMED_OUT
    assert (tmp_path / "tidied").read_text() == str(-signal.SIGTERM)


@pytest.mark.skipif(sys.platform != "linux", reason="the members of a group are read from /proc")
def test_a_spared_leader_that_does_not_end_is_killed(tmp_path, is_running):
    ended = run_supervised(family(), tmp_path, os.environ, 1.0, lambda line: None, spare_leader=True)
    assert ended.status == TIMED_OUT
    assert not any(is_running(pid) for pid in ids(tmp_path))


def test_a_grandchild_left_behind_is_ended_and_does_not_block(tmp_path, wait_until, is_running):
    code = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(120)']).pid)"
    started = time.monotonic()
    ended = run_supervised([sys.executable, "-c", code], tmp_path, os.environ, 60, lambda line: None)
    assert ended.status == 0
    assert time.monotonic() - started < 30
    wait_until(lambda: not is_running(int(ended.tail[0])), 5, "the grandchild's end")


def test_leaving_the_block_ends_commands_in_other_threads(tmp_path, is_running):
    import contextvars

    statuses = []
    started = threading.Event()

    def work() -> None:
        statuses.append(run_supervised(family(), tmp_path, os.environ, 60, lambda line: started.set()).status)

    with one_leash():
        thread = threading.Thread(target=contextvars.copy_context().run, args=(work,))
        thread.start()
        assert started.wait(30)
    thread.join(20)
    assert statuses == [STOPPED]
    assert not any(is_running(pid) for pid in ids(tmp_path))


def test_nothing_starts_on_a_cut_leash(tmp_path):
    import contextvars

    with one_leash():
        context = contextvars.copy_context()
    ended = context.run(run_supervised, [sys.executable, "-c", "import time; time.sleep(60)"], tmp_path, os.environ, 60)
    assert ended.status == STOPPED


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_caller_leaves_nobody(tmp_path, wait_until, is_running, ending):
    repository = str(Path(__file__).resolve().parents[2])
    code = (
        f"import sys, os, pathlib; sys.path.insert(0, {repository!r}); from pipelines.supervise import run_supervised; "
        f"run_supervised({family()!r}, pathlib.Path.cwd(), os.environ, 100, print)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.DEVNULL) as caller:
        wait_until((tmp_path / "ids").exists, 30, "the family to start")
        time.sleep(0.2)
        assert all(is_running(pid) for pid in ids(tmp_path))
        caller.send_signal(ending)
    wait_until(lambda: not any(is_running(pid) for pid in ids(tmp_path)), 10, "the family's end")


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_killed_supervisor_takes_the_command_with_it(tmp_path, wait_until, is_running):
    script = Path(sys.modules[run_supervised.__module__].__file__ or "")
    with subprocess.Popen(
        [sys.executable, "-I", "-S", str(script), "60", "all", *family()],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    ) as supervisor:
        wait_until((tmp_path / "ids").exists, 30, "the family to start")
        time.sleep(0.2)
        leader, grandchild = ids(tmp_path)
        supervisor.kill()
    try:
        wait_until(lambda: not is_running(leader), 10, "the leader's end")
    finally:
        os.kill(grandchild, signal.SIGKILL)
