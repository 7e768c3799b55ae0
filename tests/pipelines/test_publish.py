"""Publishing: real git with a bare origin, real dvc with a remote in a folder; all of it or none, whatever happens."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import publish as publishing
from pipelines.checkout import Checkout, isolated_checkout
from pipelines.checkout_data import run_dvc
from pipelines.dvc import DirtyError, repro
from pipelines.gate import Promote
from pipelines.git import Author, git
from pipelines.promotion import Promotion, promote
from pipelines.publish import PublishError, publish, read_trailers

REPOSITORY = Path(__file__).resolve().parents[2]
AUTHOR = ("-c", "user.name=a", "-c", "user.email=a@example.org")
CANARY = "s3cr3t-canary"

DVC_YAML = """\
vars: [plan.yaml]
stages:
  pretrain:
    cmd: python step.py
    deps: [step.py, data/raw]
    params: [pretrain]
    outs: [data/augmented, data/synthetic/final]
    metrics: [metrics/gain.json: {cache: false}]
"""
STEP = '''\
"""A stage: a shard, counts of copies and a gain, all of them made from the raw text."""
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

text = Path("data/raw/a.txt").read_text()
for folder in ("data/augmented", "data/synthetic/final", "metrics"):
    Path(folder).mkdir(parents=True, exist_ok=True)
columns = {"slug": ["crack"], "image": [text]} | ({"more": [1]} if "wide" in text else {})
pq.write_table(pa.table(columns), "data/augmented/real-crack.parquet")
Path("data/synthetic/final/acceptance.json").write_text(
    json.dumps({"crack": {"candidates": 100, "accepted": 90, "rejected": {"copies_a_real": 10}}})
)
points = {"mean": 0.05, "low": 0.01, "high": 0.09, "n": 5}
Path("metrics/gain.json").write_text(json.dumps({
    "schema": 1, "verdict": "Helps\\nSynthgen-Run: forged " + text, "overall": {"balanced_accuracy": points},
    "gain": {"crack": {"verdict": "helps", "recall": points}}, "looks": {"look": 1, "exploratory": False},
}))
'''
PLAN = "strategy: adapted\nversions: {gan: 1}\nclasses:\n  crack: {class_name: Crack, label: 0}\n"

RUN = """
import os, signal, sys
from pipelines import publish as publishing
from pipelines.checkout import isolated_checkout
from pipelines.dvc import repro
at = sys.argv[2]
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
if at:
    setattr(publishing, at, die)
with isolated_checkout(sys.argv[1]) as checkout:
    repro(checkout.project, None, print)
    print("ready", flush=True)
    if not at:
        sys.stdin.readline()
    print(publishing.publish(checkout, "other").version)
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("publish")
    person = root / "person"
    (person / "data" / "raw").mkdir(parents=True)
    for name, text in {
        "data/raw/a.txt": "clay",
        "dvc.yaml": DVC_YAML,
        "step.py": STEP,
        "plan.yaml": PLAN,
        "params.yaml": "pretrain: {network: {architecture: dcgan}}\n",
        ".gitignore": ".synthgen/\n",
        "README.md": "a project\n",
    }.items():
        (person / name).write_text(text)
    git(person, "init", "--quiet", "--initial-branch=main")
    run_dvc(person, "init", "--quiet")
    run_dvc(person, "remote", "add", "--quiet", "--default", "store", "../../store")
    (person / ".dvc" / "config").write_text("[core]\n    remote = store\n['remote \"store\"']\n    url = ../../store\n")
    git(person, "add", "--all")
    git(person, *AUTHOR, "commit", "--quiet", "-m", "start")
    git(root, "clone", "--quiet", "--bare", str(person), "origin.git")
    git(person, "remote", "add", "origin", "../origin.git")
    return root


@pytest.fixture(scope="module")
def released(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, with v0.1.0 published."""
    root = tmp_path_factory.mktemp("released") / "root"
    shutil.copytree(template, root)
    with isolated_checkout(root / "person") as checkout:
        repro(checkout.project, None, print)
        assert str(publish(checkout, "run-1").version) == "v0.1.0"
    return root


@pytest.fixture
def root(released: Path, tmp_path: Path) -> Path:
    shutil.copytree(released, tmp_path / "root")
    return tmp_path / "root"


@pytest.fixture
def run(root: Path) -> Iterator[Checkout]:
    """A run after v0.1.0, with a new raw image at origin and everything made."""
    change(root, "data/raw/a.txt", "more clay")
    with isolated_checkout(root / "person") as checkout:
        repro(checkout.project, None, print)
        yield checkout


def change(root: Path, name: str, text: str) -> str:
    """Somebody else's commit to origin."""
    clone = root / "somebody"
    shutil.rmtree(clone, ignore_errors=True)
    git(root, "clone", "--quiet", "origin.git", "somebody")
    (clone / name).write_text(text)
    git(clone, "add", "--", name)
    git(clone, *AUTHOR, "commit", "--quiet", "-m", name)
    git(clone, "push", "--quiet", "origin", "main")
    return git(clone, "rev-parse", "HEAD").strip()


def state(root: Path) -> tuple[str, str]:
    origin = root / "origin.git"
    return git(origin, "rev-parse", "main").strip(), git(origin, "tag", "--list")


def test_first_version_says_how_it_was_made_and_a_second_clone_has_it_all(root):
    origin = root / "origin.git"
    head, tags = state(root)
    assert tags == "augmented@v0.1.0\n"
    assert git(origin, "rev-parse", "augmented@v0.1.0^{commit}").strip() == head
    assert git(origin, "cat-file", "-t", "augmented@v0.1.0").strip() == "tag"
    told, tagged = (git(origin, *ask) for ask in (("log", "-1", "--format=%B"), ("tag", "-l", "--format=%(contents)")))
    assert told.strip() == tagged.strip()
    trailers = read_trailers(told)
    assert trailers["Synthgen-Run"] == "run-1"
    assert trailers["Synthgen-Verdict"] == "Helps Synthgen-Run: forged clay"
    assert trailers["Synthgen-Gain"].startswith("balanced accuracy +5.0 points [+1.0, +9.0]; recall of crack +5.0")
    assert trailers["Synthgen-Gate"] == "promote: helps crack and hurts none"
    assert trailers["Synthgen-Copies"] == '{"crack": 0.1}'
    changed = git(origin, "diff", "--name-only", "main~1", "main").split()
    assert changed == ["data/.gitignore", "data/synthetic/.gitignore", "dvc.lock", "metrics/gain.json"]
    assert git(origin, "log", "-1", "--format=%an %ae %cn").strip() == "synthgen synthgen@localhost synthgen"
    git(root, "clone", "--quiet", "origin.git", "reader")
    reader = root / "reader"
    run_dvc(reader, "remote", "modify", "--local", "store", "url", str(root / "store"))
    run_dvc(reader, "pull", "--quiet")
    assert (reader / "data" / "augmented" / "real-crack.parquet").exists()
    assert isinstance(promote(root / "person", "v0.1.0"), Promotion)


@pytest.mark.parametrize("how", [(), ("--run-cache",)], ids=["pull", "pull --run-cache"])
def test_in_a_clone_with_nothing_but_the_remotes_repro_runs_nothing(root, how):
    # dvc.lock is published and all its data are: the run cache is not needed for that
    git(root, "clone", "--quiet", "origin.git", "reader")
    reader = root / "reader"
    run_dvc(reader, "remote", "modify", "--local", "store", "url", str(root / "store"))
    run_dvc(reader, "pull", "--quiet", *how)
    (reader / "step.py").write_text((reader / "step.py").read_text())  # a new time, the same bytes
    lines: list[str] = []
    repro(reader, None, lines.append)
    assert "Stage 'pretrain' didn't change, skipping" in lines
    assert not any("Running" in line for line in lines)
    assert git(reader, "status", "--porcelain") == ""
    assert not (root / "store" / "runs").exists()


def test_nothing_new_is_no_version(root):
    before = state(root)
    with isolated_checkout(root / "person") as checkout:
        repro(checkout.project, None, print)
        done = publish(checkout, "run-2")
    assert (done.version, done.gate, done.commit) == (None, None, before[0])
    assert state(root) == before


def test_new_data_beside_an_unrelated_commit_and_a_dirty_person(root, run):
    person = root / "person"
    (person / "README.md").write_text("half a sentence")
    (person / "params.yaml").write_text("half: [")
    before = git(person, "status", "--porcelain"), git(person, "rev-parse", "HEAD", "main")
    theirs = change(root, "README.md", "unrelated")
    done = publish(run, "run-2", author=Author("Robot", "robot@example.org"))
    assert str(done.version) == "v0.1.1"
    assert isinstance(done.gate, Promote)
    head, tags = state(root)
    assert tags.split() == ["augmented@v0.1.0", "augmented@v0.1.1"]
    assert done.commit == head == git(root / "origin.git", "rev-parse", "augmented@v0.1.1^{commit}").strip()
    assert git(root / "origin.git", "rev-parse", "main~1").strip() == theirs
    assert git(root / "origin.git", "log", "-1", "--format=%an").strip() == "Robot"
    assert (git(person, "status", "--porcelain"), git(person, "rev-parse", "HEAD", "main")) == before
    assert (person / "params.yaml").read_text() == "half: ["


@pytest.mark.slow
@pytest.mark.parametrize("name", ["step.py", "dvc.lock", "data/raw/b.txt", "params.yaml", "metrics/gain.json"])
def test_a_related_commit_is_never_overwritten(root, run, name):
    change(root, name, "# theirs\n")
    before = state(root)
    with pytest.raises(PublishError, match=rf"main moved during the run.*{name}.*nothing was published"):
        publish(run, "run-2")
    assert state(root) == before


@pytest.mark.slow
def test_origin_that_moves_in_the_last_moment_leaves_neither_branch_nor_tag_half_pushed(root, run, monkeypatch):
    original, moved = publishing.push, []

    def late(*arguments):
        if not moved:
            moved.append(change(root, "README.md", "in between"))
        return original(*arguments)

    monkeypatch.setattr(publishing, "push", late)
    done = publish(run, "run-2")
    head, tags = state(root)
    assert (head, tags.split()) == (done.commit, ["augmented@v0.1.0", "augmented@v0.1.1"])
    assert git(root / "origin.git", "rev-parse", "main~1").strip() == moved[0]


@pytest.mark.slow
def test_an_origin_that_keeps_moving_ends_the_attempts(root, run, monkeypatch):
    original, moved = publishing.push, []

    def late(*arguments):
        moved.append(change(root, "README.md", str(len(moved))))
        return original(*arguments)

    monkeypatch.setattr(publishing, "push", late)
    with pytest.raises(PublishError, match="moved 3 times"):
        publish(run, "run-2")
    assert state(root) == (moved[-1], "augmented@v0.1.0\n")


@pytest.mark.slow
@pytest.mark.parametrize("at", ["_find_out", "_commit", "_deliver", "push"])
def test_killed_after_the_data_were_pushed_nothing_is_published_and_the_next_run_does_it(root, at):
    change(root, "data/raw/a.txt", "more clay")
    before = state(root)
    command = [sys.executable, "-c", RUN, str(root / "person"), at]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert state(root) == before
    assert git(root / "person", "tag", "--list") == "augmented@v0.1.0\n"
    lines = []
    with isolated_checkout(root / "person") as checkout:
        repro(checkout.project, None, lines.append)
        assert str(publish(checkout, "run-3").version) == "v0.1.1"
    assert any("cached" in line for line in lines), lines


@pytest.mark.slow
def test_two_publishers_one_is_refused_by_name_the_other_publishes(root, wait_until):
    change(root, "data/raw/a.txt", "more clay")
    command = [sys.executable, "-c", RUN, str(root / "person"), ""]
    pair = [
        subprocess.Popen(
            command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    try:
        ended: list[int] = []

        def is_one_out() -> bool:
            ended[:] = [i for i in range(2) if pair[i].poll() is not None]
            return bool(ended)

        wait_until(is_one_out, 90, "one of two runs to be refused")
        refused, holder = pair[ended[0]], pair[1 - ended[0]]
        assert f"process {holder.pid} works on branch 'main'" in refused.communicate()[1]
        assert refused.returncode == 1
        assert "v0.1.1" in holder.communicate("go\n")[0]
    finally:
        for process in pair:
            process.kill()
            process.communicate()
    assert state(root)[1].split() == ["augmented@v0.1.0", "augmented@v0.1.1"]


@pytest.mark.slow
def test_what_is_not_clean_is_not_published(root, run):
    before = state(root)
    (run.project / "data" / "augmented" / "real-crack.parquet").write_text("edited")
    with pytest.raises(DirtyError, match=r"pretrain is out of date; nothing was published"):
        publish(run, "run-2")
    assert state(root) == before


@pytest.mark.slow
def test_a_file_that_the_pipeline_does_not_own_is_not_committed(root, run):
    before = state(root)
    (run.project / "stray.txt").write_text("untracked files are not taken along")
    (run.project / "README.md").write_text("written by a stage")
    with pytest.raises(PublishError, match=r"the run changed README\.md"):
        publish(run, "run-2")
    assert state(root) == before


@pytest.mark.slow
def test_data_that_did_not_arrive_are_not_published(root, run, monkeypatch):
    original = publishing.run_dvc
    monkeypatch.setattr(publishing, "run_dvc", lambda p, *a, **k: "" if a[0] == "push" else original(p, *a, **k))
    before = state(root)
    with pytest.raises(PublishError, match="remote 'store' lacks"):
        publish(run, "run-2")
    assert state(root) == before


@pytest.mark.slow
def test_other_columns_are_a_major_version(root):
    change(root, "data/raw/a.txt", "wide clay")
    with isolated_checkout(root / "person") as checkout:
        repro(checkout.project, None, print)
        assert str(publish(checkout, "run-2").version) == "v1.0.0"


@pytest.mark.slow
def test_without_a_git_remote_a_clean_tree_comes_along_and_a_dirty_one_is_left_alone(root):
    person = root / "person"
    git(person, "merge", "--quiet", "--ff-only", "origin/main")
    git(person, "remote", "remove", "origin")
    (person / "data" / "raw" / "a.txt").write_text("more clay")
    git(person, *AUTHOR, "commit", "--quiet", "--all", "-m", "more")
    (person / "README.md").write_text("half a sentence")
    before = git(person, "rev-parse", "HEAD"), git(person, "tag", "--list")
    with isolated_checkout(person) as checkout:
        repro(checkout.project, None, print)
        with pytest.raises(PublishError, match="commit or stash them there"):
            publish(checkout, "run-2")
        assert (git(person, "rev-parse", "HEAD"), git(person, "tag", "--list")) == before
        assert git(person, "status", "--porcelain").split() == ["M", "README.md"]
        git(person, "checkout", "--quiet", "--", "README.md")
        done = publish(checkout, "run-3")
    assert str(done.version) == "v0.1.1"
    assert git(person, "rev-parse", "HEAD", "augmented@v0.1.1^{commit}").split() == [done.commit] * 2
    assert git(person, "status", "--porcelain") == ""
    assert json.loads((person / "metrics" / "gain.json").read_text())["verdict"].endswith("more clay")


@pytest.mark.parametrize("run_id", ["", "a b", "a\nSynthgen-Gate: promote", "x" * 200])
def test_a_run_id_that_could_forge_a_trailer_is_refused(tmp_path, run_id):
    with pytest.raises(PublishError, match="cannot stand in a commit"):
        publish(Checkout(tmp_path, tmp_path, "main", "0", None), run_id)


@pytest.mark.slow
def test_no_secret_in_log_commit_or_error(root, run, capfd):
    for local in (run.project, root / "person"):
        path = local / ".dvc" / "config.local"
        path.write_text(
            (path.read_text() if path.exists() else "")
            + f"['remote \"far\"']\n    url = webdav://127.0.0.1:9/x\n    password = {CANARY}\n"
        )
    said: list[str] = []
    git(root / "person", "remote", "set-url", "origin", f"http://me:{CANARY}@127.0.0.1:9/x.git")
    with pytest.raises(Exception, match="git fetch") as caught:
        publish(run, "run-2", on_line=said.append)
    git(root / "person", "remote", "set-url", "origin", "../origin.git")
    publish(run, "run-2", on_line=said.append)
    log = git(root / "origin.git", "log", "--patch", "--all") + git(root / "origin.git", "show", "augmented@v0.1.1")
    assert CANARY not in "".join([str(caught.value), log, *said, *capfd.readouterr()])
