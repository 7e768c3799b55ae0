"""One small project through every stage, made once, in a process that may not reach the network and holds secrets."""

import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECRETS = {
    "PREFECT_API_KEY": "pnu_canary0prefect0key",
    "AWS_SECRET_ACCESS_KEY": "canary+aws/secret",
    "GITHUB_TOKEN": "ghp_canary0token",
}
PARAMS = """
seed: 3
source: {type: digits, simulate_scarcity: {keep: {"3": 15}, surplus: test}}
plan: {folds: 3, target: 10}
prepare: {image_size: 8, channels: 1}
classifier: {width: 8, steps: 5, batch: 16}
pretrain: {kimg: 0.2, batch: 32, tick_kimg: 0.1, ema: 0.9, network: {channels: 8}}
adapt: {kimg: 0.1}
scratch: {kimg: 0.1}
synthesize: {min_agreement: 0.0, teacher_steps: 5, batch: 16}
evaluate: {arms: [classical], repeats: 2}
challenge: {arms: [best+synthetic]}
"""
FOLDS = ("f0", "f1", "f2", "final")
VERBS = [
    "plan",
    "sizes",
    "prepare",
    *(
        command
        for fold in FOLDS
        for command in (f"pretrain --fold {fold}", f"adapt --fold {fold} --slug 3", f"synthesize --fold {fold}")
    ),
    "scratch --fold f0 --slug 3",
    "assemble",
    "evaluate --arm classical --workers 1",
    "challenge --arm best+synthetic --workers 1",
    "compare",
    "worth --workers 1",
    "report",
    "verdict",
    "unlock",
    "export exported --layout webdataset",
]
# Sees what goes through Python's sockets, under whatever name they were imported.
GUARD = """
import os, sys

def _is_near(address):
    if not isinstance(address, tuple):
        return True  # a Unix socket
    host = address[0].decode() if isinstance(address[0], bytes) else str(address[0])
    return host in ("", "localhost", "::1") or host.startswith("127.")

def _guard(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        far = arguments[1] is not None and not _is_near(arguments[1])
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        host = arguments[0]
        far = host is not None and not _is_near((host,))
    else:
        return
    if far:
        with open(os.environ["GUARD_LOG"], "a") as log:
            log.write(f"{event} {arguments[:2]}\\n")
        raise ConnectionRefusedError(f"{event} {arguments[:2]}: no test goes out of this machine")

sys.addaudithook(_guard)
"""
DRIVER = """
import logging, shlex, sys
from synthgen.cli import app
logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
for line in sys.stdin:
    try:
        app(shlex.split(line), standalone_mode=False)
    except SystemExit as left:
        assert not left.code, line
"""


@dataclass(frozen=True)
class GuardedRun:
    """A finished project and everything that its making printed.

    Attributes:
        root: the project.
        printed: standard output and errors of every verb, with the log at its most talkative.
        environment: with secrets, and with the guard in force for every Python process.
        attempts: file in which the guard writes what it refused.
    """

    root: Path
    printed: str
    environment: dict[str, str]
    attempts: Path

    def run(self, *commands: str, root: Path | None = None) -> str:
        """Runs verbs of the command line, one after the other in one process; returns what they print."""
        done = subprocess.run(
            [sys.executable, "-c", DRIVER],
            cwd=root or self.root,
            env=self.environment,
            input="".join(f"{command}\n" for command in commands),
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout + done.stderr


@pytest.fixture(scope="session")
def guarded_run(tmp_path_factory: pytest.TempPathFactory) -> GuardedRun:
    folder = tmp_path_factory.mktemp("guarded")
    root = folder / "project"
    (root / "data" / "raw").mkdir(parents=True)
    (root / "params.yaml").write_text(PARAMS)
    (folder / "guard").mkdir()
    (folder / "guard" / "sitecustomize.py").write_text(GUARD)
    environment = {
        **os.environ,
        **SECRETS,
        "PYTHONPATH": os.pathsep.join([str(folder / "guard"), str(ROOT)]),
        "GUARD_LOG": str(folder / "attempts.log"),
        "SYNTHGEN_DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("NO_ALBUMENTATIONS_UPDATE", None)  # the package itself has to see to that
    run = GuardedRun(root, "", environment, folder / "attempts.log")
    return GuardedRun(root, run.run(*VERBS), environment, run.attempts)


def tree_digests(root: Path) -> dict[str, str]:
    """Relative path -> sha256 of every file, scratch folders apart."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and ".synthgen" not in path.parts and ".dvc" not in path.parts
    }


@pytest.fixture(name="tree_digests", scope="session")
def tree_digests_fixture() -> object:
    return tree_digests
