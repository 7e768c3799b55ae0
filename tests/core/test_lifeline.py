"""A stage started by DVC does not outlive it (FAULTS row 37); one started by hand is left alone."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

STAGE = (
    "from synthgen.lifeline import end_with_parent; print(end_with_parent(), flush=True); import time; time.sleep(60)"
)
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True)
print(child.pid, child.stdout.readline().strip(), flush=True)
time.sleep(60)
"""


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
@pytest.mark.parametrize("under_dvc", [True, False])
def test_fault_37_a_stage_dies_with_dvc_alone(under_dvc: bool) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "DVC_STAGE"} | ({"DVC_STAGE": "x"} if under_dvc else {})
    parent = subprocess.Popen([sys.executable, "-c", PARENT, STAGE], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    pid, asked = parent.stdout.readline().split()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    try:
        assert asked == str(under_dvc)
        deadline = time.monotonic() + (10 if under_dvc else 1)
        while _alive(int(pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert _alive(int(pid)) != under_dvc
    finally:
        if _alive(int(pid)):
            os.kill(int(pid), 9)
