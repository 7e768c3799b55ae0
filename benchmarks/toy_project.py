"""A small DVC project with a bare origin and a remote, whose stages sleep instead of training, and what is true of it.

Owns the project that chaos.py, two_schedules.py, four_workers.py and tests share, its environment, and the checks of
origin: which versions there are, whether branch and tags belong together, whether a fresh clone is complete. Refuses to
know Prefect and `pipelines`; it talks to git and dvc as a user does.

    data/raw/CLASS/*.txt -> prepare -> adapt@f0-CLASS (sleeps) -> assemble -> compare
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

REPOSITORY = Path(__file__).resolve().parents[1]
BRANCH = "main"
CLASSES = ("crack", "fray")
AUTHOR = ("-c", "user.name=a", "-c", "user.email=a@example.org")

DVC_YAML = """\
vars: [plan.yaml]
stages:
  prepare:
    cmd: python step.py prepare
    deps: [step.py, data/raw]
    outs: [data/prepared]
  adapt:
    matrix:
      fold: ${folds}
      slug: ${adapt}
    cmd: python step.py adapt ${item.fold} ${item.slug}
    deps: [step.py, "data/prepared/${item.slug}.txt"]
    outs: ["models/${item.fold}/${item.slug}.txt"]
  assemble:
    cmd: python step.py assemble
    deps: [step.py, models]
    outs: [data/augmented]
  compare:
    cmd: python step.py compare
    deps: [step.py, data/augmented]
    metrics: [metrics/gain.json: {cache: false}]
"""

STEP = '''\
"""A stage of the toy: writes what its inputs say; `adapt` takes its time over it and says how far it is."""
import json, os, sys, time
from hashlib import sha256
from pathlib import Path

pace = json.loads(Path("pace.json").read_text())
verb, *rest = sys.argv[1:]
name = verb + ("@" + "-".join(rest) if rest else "")


def stamp(what):
    row = json.dumps([what, name, os.getpid(), time.time(), os.environ.get("CUDA_VISIBLE_DEVICES")]) + "\\n"
    descriptor = os.open(pace["stamps"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(descriptor, row.encode())
    os.close(descriptor)


def write(path, text):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


stamp("start")
if verb == "prepare":
    for folder in sorted(Path("data/raw").iterdir()):
        texts = [path.read_text() for path in sorted(folder.glob("*.txt"))]
        write(f"data/prepared/{folder.name}.txt", "".join(texts))
elif verb == "adapt":
    fold, slug = rest
    end = time.monotonic() + pace["seconds"]
    while (left := end - time.monotonic()) > 0:
        print(f"{name}: {left:.1f} s left", flush=True)
        time.sleep(min(0.5, left))
    write(f"models/{fold}/{slug}.txt", f"{name} of " + Path(f"data/prepared/{slug}.txt").read_text())
elif verb == "assemble":
    for path in sorted(Path("models").rglob("*.txt")):
        write(f"data/augmented/{path.name}", path.read_text())
else:
    texts = "".join(path.read_text() for path in sorted(Path("data/augmented").iterdir()))
    share = int(sha256(texts.encode()).hexdigest()[:4], 16) / 2**20
    points = {"mean": share, "low": share - 0.001, "high": share + 0.001, "n": 5}
    slugs = sorted(path.stem for path in Path("data/augmented").iterdir())
    row = {"verdict": "helps", "reason": "a toy", "recall": points, "after_offsets": points, "n_test_groups": 5}
    write("metrics/gain.json", json.dumps({
        "schema": 1, "verdict": "helps", "claim": "none, this is a toy", "confidence": 0.95,
        "overall": {"balanced_accuracy": points}, "gain": {slug: row for slug in slugs}, "arms": {},
        "data": {"classes": {slug: {"class_name": slug} for slug in slugs}},
        "looks": {"look": 1, "exploratory": False},
    }))
stamp("end")
'''

PLAN = '''\
"""The toy's `synthgen plan`: a class is a folder of raw data."""
from pathlib import Path

slugs = sorted(path.name for path in Path("data/raw").iterdir())
rows = "".join(f"  {slug}: {{class_name: {slug}, label: {label}}}\\n" for label, slug in enumerate(slugs))
Path("plan.yaml").write_text(
    f"strategy: adapted\\nversions: {{gan: 1}}\\nfolds: [f0]\\nadapt: [{', '.join(slugs)}]\\nclasses:\\n{rows}"
)
print("planned")
'''


def quiet_environment(**more: str) -> dict[str, str]:
    """This process's environment without anybody's settings of Prefect, DVC or git, and every usage report off."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "DVC_", "GIT_"))}
    return {
        **kept,
        "DO_NOT_TRACK": "1",
        "DVC_NO_ANALYTICS": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "NO_PROXY": "127.0.0.1,localhost",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PYTHONPATH": str(REPOSITORY),
        **more,
    }


def run(folder: Path, *command: str, environment: dict[str, str] | None = None, seconds: float = 600) -> str:
    """Runs a command; returns what it printed.

    Raises:
        RuntimeError: it failed, with its last words.
    """
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment or quiet_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{command} in {folder} ended with {done.returncode}: {(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def git(folder: Path, *arguments: str) -> str:
    """Runs git; returns what it printed, without the last line end."""
    return run(folder, "git", *AUTHOR, *arguments).rstrip("\n")


def dvc(folder: Path, *arguments: str) -> str:
    """Runs dvc; returns what it printed."""
    return run(folder, sys.executable, "-P", "-m", "dvc", *arguments)


@dataclass(frozen=True)
class ToyProject:
    """The project and what belongs to it, all below one folder.

    Attributes:
        root: holds `person` (a clone with a work tree), `origin.git` (bare), `store` (DVC's remote), `stamps.jsonl`.
    """

    root: Path

    @property
    def person(self) -> Path:
        """The clone that runs start from."""
        return self.root / "person"

    @property
    def origin(self) -> Path:
        """The bare repository."""
        return self.root / "origin.git"

    @property
    def stamps_file(self) -> Path:
        """Where every stage writes when it starts and ends, in whatever checkout."""
        return self.root / "stamps.jsonl"

    def stamps(self) -> list[list[Any]]:
        """Rows of [`start` or `end`, stage, process id, seconds since the epoch, CUDA_VISIBLE_DEVICES]."""
        if not self.stamps_file.exists():
            return []
        return [json.loads(line) for line in self.stamps_file.read_text(encoding="utf-8").splitlines()]

    def finished(self) -> list[str]:
        """Stages that ran to their end, in order."""
        return [row[1] for row in self.stamps() if row[0] == "end"]

    def add_raw(self, slug: str, name: str, text: str) -> str:
        """A new raw file, committed on top of origin's branch and pushed; returns the commit."""
        with_files = self.root / "desk"
        if not with_files.exists():
            git(self.root, "clone", "--quiet", "--branch", BRANCH, str(self.origin), str(with_files))
        git(with_files, "fetch", "--quiet", "origin", BRANCH)
        git(with_files, "reset", "--quiet", "--hard", "FETCH_HEAD")
        path = with_files / "data" / "raw" / slug / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        git(with_files, "add", "--", str(path))
        git(with_files, "commit", "--quiet", "-m", f"{slug}: {name}")
        git(with_files, "push", "--quiet", "origin", f"HEAD:{BRANCH}")
        return git(with_files, "rev-parse", "HEAD")

    def versions(self) -> dict[str, str]:
        """Version tag -> commit, as origin has them."""
        form = "%(refname:strip=2) %(*objectname)"
        rows = git(self.origin, "for-each-ref", f"--format={form}", "refs/tags/augmented@*").splitlines()
        return {tag: commit for tag, _, commit in (row.partition(" ") for row in rows)}

    def faults_of_origin(self) -> list[str]:
        """What is wrong with origin: a tag outside of the branch, or a published commit without its tag."""
        versions = self.versions()
        history = git(self.origin, "log", "--format=%H %s", BRANCH).splitlines()
        commits = {row.partition(" ")[0] for row in history}
        faults = [f"{tag} is not on {BRANCH}" for tag, commit in versions.items() if commit not in commits]
        for row in history:
            commit, _, subject = row.partition(" ")
            words = subject.split()
            if len(words) > 1 and words[0] == "augmented" and words[1].startswith("v"):
                tag = f"augmented@{words[1].rstrip(':')}"
                if versions.get(tag) != commit:
                    faults.append(f"{commit[:12]} says {tag}, which is {versions.get(tag, 'not there')}")
        faults += [
            line for line in run(self.origin, "git", "fsck", "--connectivity-only").splitlines() if "missing" in line
        ]
        return faults

    def faults_of_clone(self) -> list[str]:
        """What a fresh clone lacks: data that cannot be pulled, or anything out of date."""
        clone = self.root / "fresh"
        shutil.rmtree(clone, ignore_errors=True)
        git(self.root, "clone", "--quiet", "--branch", BRANCH, str(self.origin), str(clone))
        try:
            dvc(clone, "pull", "--quiet")
            dirty = json.loads(dvc(clone, "status", "--json"))
        except RuntimeError as error:
            return [f"a fresh clone: {error}"]
        finally:
            shutil.rmtree(clone)
        return [f"a fresh clone is out of date: {', '.join(sorted(dirty))}"] if dirty else []

    def undisturbed(self, commit: str) -> dict[str, str]:
        """Output -> digest of a run of `commit` by `dvc repro` alone, without sleeping and sharing no cache."""
        twin = self.root / "twin"
        if not twin.exists():
            git(self.root, "clone", "--quiet", "--branch", BRANCH, str(self.origin), str(twin))
            (twin / ".dvc" / "config.local").write_text(f"[cache]\n    dir = {self.root / 'twin-cache'}\n")
        git(twin, "fetch", "--quiet", "origin")
        git(twin, "checkout", "--quiet", "--force", "--detach", commit)
        (twin / "pace.json").write_text(json.dumps({"seconds": 0, "stamps": str(self.root / "twin-stamps.jsonl")}))
        run(twin, sys.executable, "-m", "synthgen", "plan", environment=quiet_environment(PYTHONPATH=""))
        dvc(twin, "repro", "--quiet")
        return outputs((twin / "dvc.lock").read_text(encoding="utf-8"))

    def published(self) -> dict[str, str]:
        """Output -> digest, as the dvc.lock at the head of origin's branch says."""
        return outputs(git(self.origin, "show", f"{BRANCH}:dvc.lock"))


def outputs(lock: str) -> dict[str, str]:
    """Output -> md5 of the text of a dvc.lock."""
    stages = (YAML(typ="safe").load(lock) or {}).get("stages") or {}
    return {str(out["path"]): str(out["md5"]) for stage in stages.values() for out in stage.get("outs", [])}


def make_toy(root: Path, seconds: float, classes: tuple[str, ...] = CLASSES) -> ToyProject:
    """Makes the project below `root`, committed and pushed, nothing of it run.

    Args:
        root: an empty folder or none.
        seconds: that each `adapt` takes.
        classes: slugs; each gets one raw file.
    """
    toy = ToyProject(root.resolve())
    (toy.person / "synthgen").mkdir(parents=True)
    pace = {"seconds": seconds, "stamps": str(toy.stamps_file)}
    files = {
        "dvc.yaml": DVC_YAML,
        "step.py": STEP,
        "pace.json": json.dumps(pace),
        "params.yaml": "seed: 0\n",
        "synthgen/__init__.py": "",
        "synthgen/__main__.py": PLAN,
        ".gitignore": ".synthgen/\n__pycache__/\n",
        **{f"data/raw/{slug}/0.txt": f"{slug} 0\n" for slug in classes},
    }
    for name, text in files.items():
        path = toy.person / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    git(toy.person, "init", "--quiet", f"--initial-branch={BRANCH}")
    dvc(toy.person, "init", "--quiet")
    store = toy.root / "store"
    config = f"[core]\n    remote = store\n['remote \"store\"']\n    url = {store}\n    verify = true\n"
    (toy.person / ".dvc" / "config").write_text(config, encoding="utf-8")
    git(toy.person, "add", "--all")
    git(toy.person, "commit", "--quiet", "-m", "start")
    git(toy.root, "clone", "--quiet", "--bare", str(toy.person), str(toy.origin))
    git(toy.person, "remote", "add", "origin", str(toy.origin))
    return toy
