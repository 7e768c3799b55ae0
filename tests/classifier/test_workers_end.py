"""FAULTS row 37: worker processes of a pool do not outlive the process that started them, however that ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CLASSIFIER = """
import os, time
from synthgen.classifier.jobs import process_pool
with process_pool(3, {context}) as pool:
    pids = set()
    while len(pids) < 3:
        pids |= set(pool.map(busy_pid, range(6)))
    {work}
    print(*pids, flush=True)
    time.sleep(120)
"""
DECODER = """
import os, time
from synthgen.dataset.decode_pool import _start_pool
pool = _start_pool(3, with_main=True)
pids = set()
while len(pids) < 3:
    pids |= set(pool.map(busy_pid, range(6)))
{work}
print(*pids, flush=True)
time.sleep(120)
"""
BUSY = """
import os, time
def busy_pid(_):
    time.sleep(0.05)
    return os.getpid()
def compute():
    import torch
    a = torch.ones(64, 64)
    while True:
        a = (a @ a).clamp(0, 1)
"""
WORK = "for _ in range(3): pool.submit(compute)"


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize(
    "program",
    [
        CLASSIFIER.format(context="None", work=""),
        CLASSIFIER.format(context="object()", work=WORK),
        DECODER.format(work=""),
    ],
    ids=["classifier idle", "classifier at work", "decoder idle"],
)
def test_fault_37_workers_are_gone_after_a_kill_9_of_their_parent(program: str, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    body = "".join(f"    {line}\n" for line in program.splitlines())
    script.write_text(f"{BUSY}\nif __name__ == '__main__':\n{body}")
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        try:
            assert len(pids) == 3
            assert all(map(_alive, pids))
            parent.kill()
            deadline = time.monotonic() + 10
            while any(map(_alive, pids)) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert [pid for pid in pids if _alive(pid)] == []
        finally:
            parent.kill()
            for pid in pids:
                if _alive(pid):
                    os.kill(pid, signal.SIGKILL)
