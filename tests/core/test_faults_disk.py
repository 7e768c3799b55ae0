"""FAULTS rows 24 and 25: full disks, size limits and read-only folders, for every stage and every way of writing."""

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from synthgen.artifacts import atomic_folder, read_json, write_json
from synthgen.errors import ArtifactError
from synthgen.gan.state import Snapshot, load_snapshot, save_snapshot
from synthgen.lock import hold_output

if TYPE_CHECKING:
    from conftest import GuardedRun

pytestmark = pytest.mark.xdist_group("guarded-run")
# Each verb in a process forked from one that has imported everything, since a full disk may end it by a signal.
DRIVER = """
import os, resource, shlex, shutil, sys
from pathlib import Path
import torch
import synthgen.stages.adapt, synthgen.stages.assemble, synthgen.stages.challenge, synthgen.stages.compare
import synthgen.stages.prepare, synthgen.stages.report, synthgen.stages.scratch, synthgen.stages.synthesize
from synthgen.cli import app
from synthgen.errors import SynthgenError

torch.set_num_threads(1)
ballast = Path("../ballast")

def run(command):
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        app(shlex.split(command), standalone_mode=False)
        status = 0
    except SynthgenError as error:
        print(f"| {type(error).__name__}: {error}", flush=True)
        status = 3
    except BaseException as error:
        print(f"| raw {type(error).__name__}: {error}", flush=True)
        status = 4
    sys.stdout.flush()
    os._exit(status)

def fill(free):
    ballast.unlink(missing_ok=True)
    if free is not None:
        state = os.statvfs(".")
        with ballast.open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, state.f_bavail * state.f_frsize - free)

kind, amounts, out = sys.argv[1], [int(n) for n in sys.argv[2].split(",")], sys.stdout
for command in sys.stdin.read().splitlines():
    shutil.rmtree(".synthgen", ignore_errors=True)
    for amount in [*amounts, None]:
        if kind == "full":
            fill(amount)
            status = run(command)
        else:
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard if amount is None else amount, hard))
            status = run(command)
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        left = [p for p in Path(".").rglob("*.partial")]
        print("#", command, amount, status, len(left), sep="\\t", flush=True)
"""
WORDS = ("No space left on device", "File too large", "the disk is full or a limit was reached", "errno 28", "errno 27")
CHEAP = ["plan", "prepare", "assemble", "compare", "report"]
DEAR = [
    "pretrain --fold f0",
    "adapt --fold f0 --slug 3",
    "scratch --fold f0 --slug 3",
    "synthesize --fold f0",
    "evaluate --arm classical --workers 1",
    "challenge --arm best+synthetic --workers 1",
]


@contextmanager
def _mounted(folder: Path, *options: str) -> Iterator[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def _files_of_at_most(n_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _refused(
    run: "GuardedRun",
    root: Path,
    commands: list[str],
    kind: str,
    amounts: list[int],
    tree_digests: Callable[[Path], dict[str, str]],
) -> dict[tuple[str, str], int]:
    """Runs each command under each amount and then without limit; (command, amount) -> status."""
    before = tree_digests(root)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DRIVER, kind, ",".join(map(str, amounts))],
        cwd=root,
        env=run.environment,
        input="\n".join(commands),
        capture_output=True,
        text=True,
        timeout=1000,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    statuses: dict[tuple[str, str], int] = {}
    for line in done.stdout.splitlines():
        if line.startswith("#"):
            _, command, amount, status, n_partial = line.split("\t")
            statuses[command, amount] = int(status)
            assert n_partial == "0", line
        elif line.startswith("|"):
            assert any(words in line for words in WORDS), line
            assert "ree space" in line
    assert all(status in (0, 3) for status in statuses.values()), done.stdout
    for command in commands:
        assert statuses[command, str(amounts[0])] == 3
        assert statuses[command, "None"] == 0
    assert tree_digests(root) == before  # what was there stayed, and the rerun wrote the same bytes
    return statuses


def test_fault_24_a_limit_on_sizes_is_one_message_and_the_rerun_completes(
    guarded_run: "GuardedRun", tmp_path: Path, tree_digests: Callable[[Path], dict[str, str]]
) -> None:
    root = Path(shutil.copytree(guarded_run.root, tmp_path / "project"))
    _refused(guarded_run, root, CHEAP, "limit", [0, 2000], tree_digests)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_fault_24_every_stage_on_a_full_disk(
    guarded_run: "GuardedRun", tmp_path: Path, tree_digests: Callable[[Path], dict[str, str]]
) -> None:
    with _mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=64m", "tmpfs") as disk:
        root = Path(shutil.copytree(guarded_run.root, disk / "project"))
        before = tree_digests(root)
        statuses = _refused(guarded_run, root, [*CHEAP, *DEAR], "full", [0, 300_000], tree_digests)
        assert sum(status == 3 for status in statuses.values()) >= len(DEAR) + len(CHEAP)
        assert tree_digests(root) == before


def test_fault_24_a_state_that_does_not_fit_leaves_the_earlier_ones(tmp_path: Path) -> None:
    with _mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=1m", "tmpfs") as disk:
        for step in (1, 2):
            save_snapshot(disk / "scratch", Snapshot({"w": torch.full((50_000,), float(step))}, {"step": step}), step)
        for _ in range(2):
            with pytest.raises(ArtifactError, match=r"cannot write .*state-000000000003.*No space left on device"):
                save_snapshot(disk / "scratch", Snapshot({"w": torch.zeros(500_000)}, {"step": 3}), 3)
            found = load_snapshot(disk / "scratch")
            assert found is not None
            assert found.values == {"step": 2}
            assert sorted(p.name for p in (disk / "scratch").iterdir()) == ["state-000000000001", "state-000000000002"]


def test_fault_24_a_lock_that_cannot_be_written_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(ArtifactError, match=r"cannot take the lock .*out\.lock.*ree space"),
        _files_of_at_most(0),
        hold_output(tmp_path, tmp_path / "out"),
    ):
        pass
    assert not list((tmp_path / ".synthgen").rglob("*.lock"))
    with hold_output(tmp_path, tmp_path / "out"):
        pass


def test_fault_25_a_read_only_folder_is_one_message_and_nothing_is_lost(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    write_json(folder / "a.json", {"old": 1})
    with atomic_folder(folder / "out") as partial:
        (partial / "x").write_text("old")
    with _mounted(folder, "--bind", str(folder)):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        with pytest.raises(ArtifactError, match=r"cannot write .*a\.json: Read-only file system.*make the folder wri"):
            write_json(folder / "a.json", {"new": 1})
        with pytest.raises(ArtifactError, match=r"cannot write .*out: Read-only file"), atomic_folder(folder / "out"):
            pass
        with pytest.raises(ArtifactError, match=r"cannot take the lock .*Read-only"), hold_output(folder, folder / "o"):
            pass
        assert (folder / "out" / "x").read_text() == "old"
        assert read_json(folder / "a.json") == {"old": 1}
    assert sorted(path.name for path in folder.iterdir()) == ["a.json", "out"]


def test_fault_25_a_stage_in_a_read_only_project_says_so_in_one_line(guarded_run: "GuardedRun", tmp_path: Path) -> None:
    root = Path(shutil.copytree(guarded_run.root, tmp_path / "project"))
    with _mounted(root, "--bind", str(root)):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(root)], check=True)
        done = subprocess.run(
            [sys.executable, "-m", "synthgen", "compare"],
            cwd=root,
            env={**os.environ, "PYTHONPATH": guarded_run.environment["PYTHONPATH"]},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("synthgen: ArtifactError: cannot take the lock")
    assert "Read-only file system; free space or make the folder writable" in done.stderr
