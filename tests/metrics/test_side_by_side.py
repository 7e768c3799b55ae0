"""Splits side by side: cores of their own, a failure named beside what the others did, no turn kept by the dead."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from synthgen.cores import system_cores

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
two_cores = pytest.mark.skipif(
    system_cores() < 2 or not hasattr(os, "sched_setaffinity"), reason="a core each is wanted, on Linux"
)
# Stands for torch, whose import takes seconds: only the number of threads is asked of it.
TORCH = "threads = []\ndef set_num_threads(n): threads.append(n)\n"
SCRIPT = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from side_by_side import run_each
HERE = Path(sys.argv[2])

def wait_for(name):
    while not (HERE / name).exists():
        time.sleep(0.01)

def work(task, turn):
    import torch
    if task == "killed in its turn":
        with turn:
            (HERE / "held").touch()
            os.kill(os.getpid(), signal.SIGKILL)
    if task == "refused":
        sys.exit("no such split")
    wait_for("held")
    for _ in range(2):
        with turn:
            (HERE / task).write_text(f"{sorted(os.sched_getaffinity(0))} {torch.threads}")

if __name__ == "__main__":
    run_each(["killed in its turn", "second", "refused", "third"], work, 2)
"""


def test_cores_are_dealt_in_groups_that_share_none(script):
    deal = script("side_by_side").core_groups
    assert deal([0, 2, 4, 6, 8], 2) == [[0, 2], [4, 6]]
    assert deal([3], 1) == [[3]]
    for n in (0, -1, 3):
        with pytest.raises(ValueError, match=f"{n} at the same time"):
            deal([0, 1], n)


@two_cores
def test_a_split_that_dies_in_its_turn_is_named_and_holds_up_no_other(tmp_path):
    (tmp_path / "torch.py").write_text(TORCH)
    (tmp_path / "run.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "run.py"), str(BENCHMARKS), str(tmp_path)]
    path = os.pathsep.join([str(BENCHMARKS.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=40, env=environment, check=False)
    assert ended.returncode == 1
    assert "failed, see above: killed in its turn; refused" in ended.stderr
    assert "no such split" in ended.stderr
    cores = sorted(os.sched_getaffinity(0))
    size = len(cores) // 2
    said = {f"{group} [{size}]" for group in (cores[:size], cores[size : 2 * size])}
    assert {(tmp_path / name).read_text() for name in ("second", "third")} <= said


@pytest.mark.parametrize(("name", "of_set"), [("gain", ["digits"]), ("ablation", ["digits"])])
def test_a_fault_of_the_work_is_not_put_down_to_jobs(script, monkeypatch, name, of_set):
    module = script(name)

    def work(split, turn):
        raise ValueError(f"shapes do not fit in {split}")

    monkeypatch.setattr(module, "run_split", work)
    monkeypatch.setattr(sys, "argv", [name, *of_set, "--splits", "0", "--device", "cpu"])
    with pytest.raises(ValueError, match="shapes do not fit in digits, split 0"):
        module.main()
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--jobs", str(system_cores() + 1)])
    with pytest.raises(SystemExit, match="2"):
        module.main()


def test_every_line_of_the_log_names_its_own_split(script, tmp_path, monkeypatch, capsys):
    gain = script("gain")
    monkeypatch.setattr(gain, "lay_out_project", lambda *_: None)
    monkeypatch.setattr(gain, "run_project", lambda folder, until, device: gain.log.info("works in %s", folder.name))
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    level = root.level
    try:
        splits = [gain.Split("digits", k, tmp_path / f"split-{k}", "models", "cpu", False) for k in (3, 4)]
        script("side_by_side").run_each(splits, gain.run_split, 1)
    finally:
        root.setLevel(level)
    lines = [line.partition(" ")[2] for line in capsys.readouterr().err.splitlines() if "works in" in line]
    assert lines == ["digits 3: works in split-3", "digits 4: works in split-4"]
