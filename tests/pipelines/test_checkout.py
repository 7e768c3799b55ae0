"""A run's own worktree: real git, real dvc; nobody's tree is touched, nothing of a dead run stays."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.checkout import BusyError, CheckoutError, branch_lock, isolated_checkout, shared_folder
from pipelines.checkout_data import run_dvc
from pipelines.dvc import CommandError
from pipelines.git import git

REPOSITORY = Path(__file__).resolve().parents[2]
CANARY = "s3cr3t-canary"
HOLD = """
import sys, time
from pathlib import Path
from pipelines.checkout import isolated_checkout
with isolated_checkout(sys.argv[1], on_line=print) as checkout:
    (checkout.project / ".synthgen" / "half").write_text("a training")
    print("in", checkout.project, flush=True)
    time.sleep(100)
"""
AUTHOR = ("-c", "user.name=a", "-c", "user.email=a@example.org")


def dvc(folder: Path, *arguments: str) -> str:
    return run_dvc(folder, *arguments)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """person/ with raw data under DVC, origin.git, store/ (DVC's remote, by a relative path)."""
    root = tmp_path_factory.mktemp("checkout")
    person = root / "person"
    (person / "data" / "raw").mkdir(parents=True)
    (person / "data" / "raw" / "image.png").write_text("clay")
    (person / "dvc.yaml").write_text("stages: {}\n")
    (person / ".gitignore").write_text(".synthgen/\n")
    git(person, "init", "--quiet", "--initial-branch=main")
    dvc(person, "init", "--quiet")
    dvc(person, "add", "--quiet", "data/raw")
    dvc(person, "remote", "add", "--default", "store", str(root / "store"))
    (person / ".dvc" / "config").write_text((person / ".dvc" / "config").read_text().replace(str(root), "../.."))
    git(person, "add", "--all")
    git(person, *AUTHOR, "commit", "--quiet", "-m", "start")
    git(root, "clone", "--quiet", "--bare", str(person), "origin.git")
    git(person, "remote", "add", "origin", "../origin.git")
    git(person, "fetch", "--quiet", "origin")
    dvc(person, "push", "--quiet")
    return root


@pytest.fixture
def person(template: Path, tmp_path: Path) -> Path:
    shutil.copytree(template, tmp_path / "root")
    return tmp_path / "root" / "person"


def snapshot(folder: Path) -> dict[str, bytes | str]:
    """Every file of a person's tree, its index and what git says of it; not the rest of .git, not DVC's notes."""
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".git" not in path.relative_to(folder).parts and "tmp" not in path.parts[-3:]
    }
    index = git(folder, "ls-files", "--stage", "-v")
    return {
        **files,
        "index": index,
        "head": git(folder, "rev-parse", "HEAD", "main"),
        "branches": git(folder, "branch"),
    }


def commit(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    git(folder, "add", "--", name)
    git(folder, *AUTHOR, "commit", "--quiet", "-m", text)
    return git(folder, "rev-parse", "HEAD").strip()


def test_a_dirty_tree_stays_as_it_is_and_takes_no_part(person):
    published = git(person, "rev-parse", "HEAD").strip()
    commit(person, "unpushed", "not yet at origin")
    (person / "dvc.yaml").write_text("stages: {half: written\n")
    (person / "new").write_text("untracked")
    (person / "staged").write_text("staged")
    git(person, "add", "staged")
    (person / "data" / "raw" / "image.png").write_text("edited")
    before = snapshot(person)
    with isolated_checkout(person) as checkout:
        assert git(checkout.project, "rev-parse", "HEAD").strip() == published == checkout.base
        assert (checkout.project / "data" / "raw" / "image.png").read_text() == "clay"
        assert not (checkout.project / "unpushed").exists()
        assert (checkout.branch, checkout.remote) == ("main", "origin")
        (checkout.project / "dvc.yaml").write_text("changed here")
        tree = checkout.project
    assert not tree.exists()
    assert len(git(person, "worktree", "list").splitlines()) == 1
    assert snapshot(person) == before


@pytest.mark.slow
def test_scratch_outlives_the_worktree_and_work_begun_in_one_goes_on_in_the_next(person):
    with isolated_checkout(person) as checkout:
        (checkout.project / ".synthgen" / "scratch").mkdir()
        (checkout.project / ".synthgen" / "scratch" / "state").write_text("half")
    with isolated_checkout(person) as checkout:
        assert (checkout.project / ".synthgen" / "scratch" / "state").read_text() == "half"
    assert not (person / ".synthgen").exists()


def test_one_run_at_a_time_and_another_branch_beside_it(person):
    git(person, "branch", "other")
    git(person, "push", "--quiet", "../origin.git", "other")
    with isolated_checkout(person):
        with (
            pytest.raises(BusyError, match=rf"process {os.getpid()} works on branch 'main'.*one run at a time"),
            isolated_checkout(person),
        ):
            pytest.fail("a second run got in")
        with branch_lock(person, "other"):
            pass
    with branch_lock(person, "main"):
        pass


@pytest.mark.slow
def test_a_killed_run_leaves_its_scratch_and_nothing_else(person):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(person)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    try:
        line = process.stdout.readline().split()
        assert line[0] == "in"
        with pytest.raises(BusyError, match=f"process {process.pid}"), isolated_checkout(person):
            pytest.fail("a second run got in")
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert Path(line[1]).exists()
    said = []
    with isolated_checkout(person, on_line=said.append) as checkout:
        assert (checkout.project / ".synthgen" / "half").read_text() == "a training"
    assert not Path(line[1]).exists()
    assert str(process.pid) in said[0]
    assert len(git(person, "worktree", "list").splitlines()) == 1
    assert not list(shared_folder(person).glob("*.json"))


@pytest.mark.slow
def test_data_that_left_the_cache_come_from_the_remote_and_data_that_are_nowhere_are_named(person):
    shutil.rmtree(person / ".dvc" / "cache")
    with isolated_checkout(person) as checkout:
        assert (checkout.project / "data" / "raw" / "image.png").read_text() == "clay"
    shutil.rmtree(person / ".dvc" / "cache")
    shutil.rmtree(person.parent / "store")
    with pytest.raises(CheckoutError, match=r"data/raw\.dvc is neither.*dvc push"), isolated_checkout(person):
        pytest.fail("a run without its data")
    assert len(git(person, "worktree", "list").splitlines()) == 1


@pytest.mark.slow
def test_settings_come_along_and_secrets_stay_unsaid(person, capfd):
    (person / ".dvc" / "config.local").write_text(
        f"['remote \"far\"']\n    url = webdav://127.0.0.1:9/x\n    user = me\n    password = {CANARY}\n"
        f"['remote \"near\"']\n    url = ../../store\n"
    )
    said = []
    with isolated_checkout(person, on_line=said.append) as checkout:
        local = checkout.project / ".dvc" / "config.local"
        assert CANARY in local.read_text()
        assert local.stat().st_mode & 0o777 == 0o600
        listed = "".join(run_dvc(checkout.project, "remote", "list").split())  # DVC wraps the lines of long paths
        assert listed.count(str(person.parent / "store")) == 2
        cache = Path(run_dvc(checkout.project, "cache", "dir").strip())
        assert cache == person / ".dvc" / "cache"
        assert ".dvc/config.local" not in git(checkout.project, "status", "--porcelain")
        with pytest.raises(CommandError) as caught:
            run_dvc(checkout.project, "push", "--remote", "far", "--verbose", seconds=30)
    assert CANARY not in str(caught.value)
    assert CANARY not in "".join([*said, *capfd.readouterr()])


def test_without_a_remote_the_local_branch_counts(person):
    git(person, "remote", "remove", "origin")
    head = commit(person, "more", "local")
    with isolated_checkout(person, folder=person.parent / "elsewhere") as checkout:
        assert (checkout.base, checkout.remote) == (head, None)
        assert checkout.project.parent == person.parent / "elsewhere"


@pytest.mark.parametrize(
    ("branch", "reason"),
    [("none", "origin has no branch 'none'"), ("--upload-pack=x", "is no name"), ("a..b", "is no name")],
)
def test_a_branch_that_cannot_be_is_refused(person, branch, reason):
    with pytest.raises(CheckoutError, match=reason), isolated_checkout(person, branch):
        pytest.fail("a run on no branch")


def test_no_branch_checked_out_is_refused(person):
    git(person, "checkout", "--quiet", "--detach")
    with pytest.raises(CheckoutError, match="name a branch"), isolated_checkout(person):
        pytest.fail("a run on no branch")
