"""FAULTS rows 39 and 40: no secret in any output, no connection attempted, and digests decide instead of clocks."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from ruamel.yaml import YAML

from pipelines import dvc
from pipelines.dvc import child_environment

if TYPE_CHECKING:
    from conftest import GuardedRun

pytestmark = pytest.mark.xdist_group("guarded-run")
TEN_YEARS = 10 * 365 * 86400
PASSWORD = "canary-remote-password"


def _canaries(run: "GuardedRun") -> list[str]:
    found = [run.environment[name] for name in ("PREFECT_API_KEY", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN")]
    return [*found, PASSWORD]


def _assert_silent(run: "GuardedRun", text: str) -> None:
    assert text
    for canary in _canaries(run):
        assert canary not in text


def _assert_no_file_tells(run: "GuardedRun", root: Path, *apart: Path) -> None:
    needles = [canary.encode() for canary in _canaries(run)]
    n_files = 0
    for path in root.rglob("*"):
        if path.is_file() and path not in apart:
            content = path.read_bytes()
            n_files += 1
            assert not any(needle in content for needle in needles), path
    assert n_files > 50


def test_fault_39_no_stage_prints_or_writes_a_secret(guarded_run: "GuardedRun") -> None:
    _assert_silent(guarded_run, guarded_run.printed)
    _assert_no_file_tells(guarded_run, guarded_run.root)


def test_fault_39_neither_dvc_nor_verify_show_the_password_of_a_remote(
    guarded_run: "GuardedRun", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(shutil.copytree(guarded_run.root, tmp_path / "project"))
    shutil.rmtree(root / "exported")
    for name, value in guarded_run.environment.items():
        monkeypatch.setenv(name, value)
    stages = {name: {"cmd": f"synthgen {name}", "outs": [out]} for name, out in (("prepare", "data/prepared"),)}
    stages["prepare"]["deps"] = ["folds.csv"]
    YAML(typ="safe").dump({"stages": stages}, root / "dvc.yaml")
    environment = child_environment()
    assert guarded_run.environment["PREFECT_API_KEY"] not in environment.values()
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], cwd=root, env=environment, check=True)
    secret = root / ".dvc" / "config.local"
    secret.write_text(
        f"['remote \"x\"']\n    url = webdavs://u:{PASSWORD}@127.0.0.1:1/x\n    password = {PASSWORD}\n"
        "[core]\n    remote = x\n"
    )
    lines: list[str] = []
    dvc.repro(root, "prepare", lines.append)
    assert dvc.status(root) == {}
    (root / "folds.csv").write_text("broken\n")
    with pytest.raises(dvc.CommandError) as failed:
        dvc.repro(root, "prepare", lines.append)
    (root / "data" / "prepared").mkdir(exist_ok=True)  # dvc has removed it before it ran the stage
    (root / "data" / "prepared" / "manifest.parquet").write_bytes(b"altered")
    done = subprocess.run(
        [sys.executable, "-m", "synthgen", "verify"], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    _assert_silent(guarded_run, "\n".join([*lines, str(failed.value), done.stdout, done.stderr]))
    _assert_no_file_tells(guarded_run, root, secret)


def test_fault_40_no_stage_attempts_a_connection(guarded_run: "GuardedRun") -> None:
    assert (guarded_run.root / "reports" / "index.html").exists()
    assert not guarded_run.attempts.exists(), guarded_run.attempts.read_text()


def test_fault_40_no_flow_attempts_a_connection_when_imported(guarded_run: "GuardedRun") -> None:
    # the modules of synthgen were imported by its stages
    code = (
        "import pkgutil, importlib, pipelines\n"
        "for module in pkgutil.iter_modules(pipelines.__path__, 'pipelines.'):\n"
        "    try: importlib.import_module(module.name)\n"
        "    except ModuleNotFoundError as error: print('an extra is not installed:', error)\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=guarded_run.environment, check=True, timeout=200)
    assert not guarded_run.attempts.exists(), guarded_run.attempts.read_text()


@pytest.mark.parametrize(
    "attempt",
    [
        "import socket; socket.create_connection(('192.0.2.1', 9), timeout=1)",
        "import _socket; _socket.socket().connect(('192.0.2.1', 9))",
        "import socket; socket.getaddrinfo('example.invalid', 80)",
        "import urllib.request; urllib.request.urlopen('http://example.invalid/')",
        "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 9))",
    ],
)
def test_the_guard_sees_an_attempt(guarded_run: "GuardedRun", tmp_path: Path, attempt: str) -> None:
    environment = {**guarded_run.environment, "GUARD_LOG": str(tmp_path / "log")}
    done = subprocess.run([sys.executable, "-c", attempt], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no test goes out of this machine" in done.stderr
    assert (tmp_path / "log").read_text().startswith("socket.")


def test_fault_40_digests_decide_and_not_clocks(
    guarded_run: "GuardedRun", tmp_path: Path, tree_digests: Callable[[Path], dict[str, str]]
) -> None:
    root = Path(shutil.copytree(guarded_run.root, tmp_path / "project"))
    before = tree_digests(root)
    future, past = time.time() + TEN_YEARS, 1.0
    for k, path in enumerate(sorted(root.rglob("*"))):
        if path.is_file():
            when = future if k % 2 else past  # some of the inputs older, some younger than what was made of them
            os.utime(path, (when, when))
    stages = ("prepare", "pretrain --fold f0", "adapt --fold f0 --slug 3", "synthesize --fold f0", "assemble")
    guarded_run.run(*stages, "evaluate --arm classical --workers 1", "compare", "report", root=root)
    assert tree_digests(root) == before
