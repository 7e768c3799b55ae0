"""Promotion, override and the way back; GTO, which DVC uses, reads the same tags."""

import json
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from pipelines import commands, promotion
from pipelines.gate import Keep
from pipelines.git import Author, GitError, git, push, write_tag
from pipelines.promotion import PromotionError, current, history, promote, roll_back
from synthgen.other_commands import GROUP

AUTHOR = ("-c", "user.name=a", "-c", "user.email=a@example.org")
CANARY = "s3cr3t-canary"


def gain(verdict: str) -> str:
    return json.dumps(
        {
            "gain": {"crack": {"verdict": verdict}},
            "overall": {"balanced_accuracy": {"mean": 0.1, "low": 0.0, "high": 0.2}},
            "looks": {"look": 1, "exploratory": False},
        }
    )


def release(folder: Path, version: str, verdict: str, copies: str | None = '{"crack": 0.0}') -> str:
    (folder / "metrics" / "gain.json").write_text(gain(verdict))
    git(folder, "add", "--all")
    git(folder, *AUTHOR, "commit", "--quiet", "--allow-empty", "-m", version)
    head = git(folder, "rev-parse", "HEAD").strip()
    trailer = "" if copies is None else f"\n\nSynthgen-Run: 1\nSynthgen-Copies: {copies}"
    tag = f"augmented@{version}"
    made = write_tag(folder, tag, head, f"augmented {version}{trailer}", Author())
    push(folder, "origin", {"refs/heads/main": head, f"refs/tags/{tag}": made})
    return head


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with four versions; the second hurts. GTO reads dvc.yaml's artifacts section."""
    root = tmp_path_factory.mktemp("promotion")
    folder = root / "project"
    (folder / "metrics").mkdir(parents=True)
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").write_text("")
    (folder / "dvc.yaml").write_text("artifacts:\n  augmented:\n    path: data/augmented\n    type: dataset\n")
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(root, "init", "--quiet", "--bare", "--initial-branch=main", "origin.git")
    git(folder, "remote", "add", "origin", "../origin.git")
    release(folder, "v0.1.0", "helps")
    release(folder, "v0.1.1", "hurts")
    release(folder, "v0.1.2", "helps")
    release(folder, "v0.2.0", "helps", copies=None)
    return root


@pytest.fixture
def project(template: Path, tmp_path: Path) -> Path:
    shutil.copytree(template, tmp_path / "root")
    return tmp_path / "root" / "project"


def gto(folder: Path) -> str:
    """The version that GTO says is at prod."""
    clone = folder.parent / "reader"
    shutil.rmtree(clone, ignore_errors=True)
    git(folder.parent, "clone", "--quiet", "origin.git", "reader")
    command = [str(Path(sys.executable).parent / "gto"), "show", "augmented#prod", "--json"]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True, check=True, timeout=60)
    return json.loads(done.stdout)[0]["version"]


def test_through_the_gate_past_it_and_back(project):
    assert current(project) is None
    made = promote(project, "v0.1.0", who="Ada <ada@example.org>")
    assert (made.tag, made.action, made.who) == ("augmented#prod#1", "promote", "Ada <ada@example.org>")
    assert made.reason == "helps crack and hurts none"
    assert git(project, "cat-file", "-t", "augmented#prod#1").strip() == "tag"
    assert gto(project) == "v0.1.0"

    kept = promote(project, "v0.1.1")
    assert isinstance(kept, Keep)
    assert "hurts crack" in kept.reason
    assert current(project) == made

    forced = promote(project, "v0.1.1", force_reason="a demo\nSynthgen-Who: nobody", who="Bob")
    assert (forced.number, forced.action, current(project)) == (2, "override", forced)
    told = git(project.parent / "origin.git", "for-each-ref", "--format=%(contents)", "refs/tags/augmented#prod#2")
    assert "Synthgen-Who: Bob\n" in told
    assert "a demo Synthgen-Who: nobody (the gate: no scarce class has the verdict `helps`; hurts crack)" in told
    assert gto(project) == "v0.1.1"

    back = roll_back(project)
    assert (str(back.version), back.tag, back.action) == ("v0.1.0", "augmented#prod#3", "rollback")
    assert current(project) == back
    assert gto(project) == "v0.1.0"
    assert [str(one.version) for one in history(project)] == ["v0.1.0", "v0.1.1", "v0.1.0"]


def test_promotions_within_one_second_keep_their_order(project, monkeypatch):
    # GTO orders by the tags' dates; a clock that stands still, or was put back, must not change what users get
    monkeypatch.setattr("pipelines.git.time.time", lambda: 1_700_000_000.0)
    for version in ("v0.1.0", "v0.1.1", "v0.1.2", "v0.1.0"):
        promote(project, version, force_reason="test")
        assert gto(project) == version
    dates = git(project, "for-each-ref", "--sort=refname", "--format=%(creatordate:unix)", "refs/tags/augmented#prod#*")
    assert dates.split() == ["1700000000", "1700000001", "1700000002", "1700000003"]


def test_two_steps_back_are_two_steps(project):
    for version in ("v0.1.0", "v0.1.1", "v0.1.2"):
        promote(project, version, force_reason="test")
    assert [str(roll_back(project).version) for _ in range(2)] == ["v0.1.1", "v0.1.0"]
    with pytest.raises(PromotionError, match=r"v0\.1\.0 is the only version promoted to prod"):
        roll_back(project)
    assert str(promote(project, "v0.1.2").version) == "v0.1.2"
    assert str(roll_back(project).version) == "v0.1.0"


def test_nothing_promoted_has_no_way_back(project):
    with pytest.raises(PromotionError, match="no version is promoted to prod"):
        roll_back(project)


def test_the_same_version_again_writes_nothing(project):
    first = promote(project, "v0.1.0")
    assert promote(project, "v0.1.0") == first
    assert len(history(project)) == 1


def test_a_version_that_says_nothing_about_copies_is_kept(project):
    assert "not known" in promote(project, "v0.2.0").reason


@pytest.mark.parametrize(
    ("version", "how", "reason"),
    [
        ("v9.9.9", {}, "there is no version v9"),
        ("--force", {}, "is no version"),
        ("v0.1.0", {"force_reason": " "}, "needs a reason"),
        ("v0.1.0", {"stage": "prod#1"}, "cannot stand in a tag"),
    ],
)
def test_what_cannot_be_is_refused(project, version, how, reason):
    with pytest.raises(PromotionError, match=reason):
        promote(project, version, **how)


def test_two_at_once_one_is_refused(project, monkeypatch):
    other = project.parent / "other"
    git(project.parent, "clone", "--quiet", "origin.git", "other")
    git(other, "remote", "set-url", "origin", "../origin.git")
    original = promotion.write_tag

    def late(*arguments, **dated):
        monkeypatch.setattr(promotion, "write_tag", original)
        promote(other, "v0.1.2")
        return original(*arguments, **dated)

    monkeypatch.setattr(promotion, "write_tag", late)
    with pytest.raises(PromotionError, match="somebody else promoted at the same time"):
        promote(project, "v0.1.0")
    assert str(current(project).version) == "v0.1.2"


def test_without_a_remote_the_tag_is_written_here_and_the_dirty_tree_stays(project):
    assert current(project) is None  # which brings the tags
    git(project, "remote", "remove", "origin")
    (project / "dvc.yaml").write_text("half written")
    made = promote(project, "v0.1.0")
    assert git(project, "rev-parse", f"{made.tag}^{{commit}}").strip() == made.commit
    assert (project / "dvc.yaml").read_text() == "half written"


def test_command_line(project, capsys):
    place = ["--project", str(project)]
    assert promotion.main(["show", *place]) == 0
    assert "prod: nothing promoted yet" in capsys.readouterr().out
    assert promotion.main(["promote", "v0.1.0", *place]) == 0
    assert promotion.main(["promote", "v0.1.1", *place]) == 3
    assert "v0.1.1 stays unpromoted: no scarce class" in capsys.readouterr().err
    assert promotion.main(["promote", "v0.1.1", "--force", "a demo", "--who", "Bob", *place]) == 0
    assert "override  by Bob: a demo" in capsys.readouterr().out
    assert promotion.main(["rollback", *place]) == 0
    assert promotion.main(["show", *place]) == 0
    assert capsys.readouterr().out.count("augmented#prod#3") == 2
    assert promotion.main(["rollback", *place]) == 1
    assert "error: v0.1.0 is the only version" in capsys.readouterr().err


def test_no_password_in_an_error(project):
    git(project, "remote", "set-url", "origin", f"http://me:{CANARY}@127.0.0.1:9/x.git")
    with pytest.raises(GitError) as caught:
        promote(project, "v0.1.0")
    assert CANARY not in str(caught.value)


def synthgen(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "synthgen"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.skipif(
    not entry_points(group=GROUP, name="promote"), reason="entry points are not installed: pip install -e ."
)
def test_the_verbs_of_synthgens_own_command_line(project):
    told = synthgen(project, "--help").stdout
    assert all(f" {verb} " in told for verb in ("promote", "promoted", "rollback", "export"))
    assert synthgen(project, "promote", "v0.1.0").returncode == 0
    kept = synthgen(project, "promote", "v0.1.1")
    assert (kept.returncode, kept.stdout) == (3, "")
    assert "v0.1.1 stays unpromoted: no scarce class" in kept.stderr
    forced = synthgen(project, "promote", "v0.1.1", "--force", "a demo -- for $(touch x)", "--who", "Bob")
    assert "override  by Bob: a demo -- for $(touch x) (the gate:" in forced.stdout
    assert "prod: v0.1.1\n" in synthgen(project, "promoted").stdout
    assert "augmented#prod#3  v0.1.0  rollback" in synthgen(project, "rollback").stdout
    assert current(project).number == 3
    wrong = synthgen(project, "promote", "--nonsense")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("usage: synthgen promote ")


def test_each_registered_verb_is_a_function_of_this_package_with_a_line_of_help():
    written = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["entry-points"][
        GROUP
    ]
    assert set(written) == set(commands.__all__)
    for verb, place in written.items():
        assert place == f"pipelines.commands:{verb}"
        assert getattr(commands, verb).__doc__
