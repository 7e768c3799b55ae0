"""Git as a process: what it is given, what becomes of its errors, and that no secret gets out."""

import subprocess
from pathlib import Path

import pytest

from pipelines.dvc import PipelineError
from pipelines.git import (
    Author,
    GitError,
    GitTimeoutError,
    answer,
    git,
    hide_secrets,
    known_secrets,
    push,
    succeeds,
    write_tag,
)

CANARY = "s3cr3t-canary"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch=main")
    commit(folder, "a", "one")
    return folder


def commit(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    git(folder, "add", "--", name)
    git(folder, "-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "--quiet", "-m", text)
    return git(folder, "rev-parse", "HEAD").strip()


def bare(path: Path, folder: Path) -> Path:
    git(folder, "clone", "--quiet", "--bare", str(folder), str(path))
    git(folder, "remote", "add", "origin", str(path))
    return path


def test_answers(repository):
    assert answer(repository, "symbolic-ref", "--quiet", "--short", "HEAD") == "main"
    assert answer(repository, "rev-parse", "--verify", "--quiet", "refs/heads/none") is None
    assert not succeeds(repository, "cat-file", "-e", "HEAD:none")
    with pytest.raises(GitError, match=r"`git show` failed with exit status 128:\n  \| fatal"):
        git(repository, "show", "nothing-of-that-name")


def test_a_command_over_its_limit_is_ended(repository):
    script = repository / "slow"
    script.write_text("#!/bin/sh\nsleep 60\n")
    script.chmod(0o755)
    with pytest.raises(GitTimeoutError, match="limit of 1 s"):
        git(repository, "-c", f"core.sshCommand={script}", "ls-remote", "ssh://host.invalid/x", seconds=1)


def test_a_hook_is_not_run_and_another_repositorys_variables_do_not_count(repository, tmp_path, monkeypatch):
    hook = repository / ".git" / "hooks" / "pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/hooked\nexit 1\n")
    hook.chmod(0o755)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))
    monkeypatch.setenv("GIT_AUTHOR_NAME", "somebody else")
    commit(repository, "b", "two")
    assert not (tmp_path / "hooked").exists()
    assert not (tmp_path / "index").exists()
    assert git(repository, "log", "-1", "--format=%an").strip() == "a"


def test_a_path_with_a_pattern_is_a_path(repository):
    (repository / "*").write_text("star")
    (repository / "c").write_text("c")
    git(repository, "add", "--", "*")
    assert git(repository, "diff", "--cached", "--name-only").split() == ["*"]


def test_a_tag_object_is_no_tag_until_it_is_pushed(repository, tmp_path):
    origin = bare(tmp_path / "origin.git", repository)
    head = git(repository, "rev-parse", "HEAD").strip()
    made = write_tag(repository, "augmented@v0.1.0", head, "a message\n\nKey: value", Author("A Person", "a@b"))
    assert git(repository, "tag", "--list") == ""
    push(repository, "origin", {"refs/tags/augmented@v0.1.0": made})
    assert git(origin, "rev-parse", "augmented@v0.1.0^{commit}").strip() == head
    told = git(origin, "for-each-ref", "--format=%(objecttype) %(taggername) %(contents:subject)", "refs/tags")
    assert told.strip() == "tag A Person a message"
    assert succeeds(origin, "fsck", "--strict")


def test_push_is_all_or_nothing(repository, tmp_path):
    origin = bare(tmp_path / "origin.git", repository)
    old = git(repository, "rev-parse", "HEAD").strip()
    new = commit(repository, "b", "two")
    push(repository, "origin", {"refs/tags/taken": write_tag(repository, "taken", old, "m", Author())})
    other = write_tag(repository, "taken", new, "m", Author())
    with pytest.raises(GitError, match="`git push` failed"):
        push(repository, "origin", {"refs/heads/main": new, "refs/tags/taken": other})
    assert git(origin, "rev-parse", "main").strip() == old


@pytest.mark.parametrize("name", ["", " ", "a\nb", "a <b>"])
def test_an_author_that_git_would_cut_is_refused(name):
    with pytest.raises(PipelineError, match="pass another one"):
        Author(name)


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        (f"fatal: 'https://me:{CANARY}@host/x.git' is gone", "fatal: 'https://***@host/x.git' is gone"),
        (f"https://{CANARY}@host/x", "https://***@host/x"),
        (f"azure://c?sig={CANARY}&x=1", "azure://c?sig=***&x=1"),
        (f"password {CANARY} refused", "password *** refused"),
        ("https://host/x.git and me@host:x.git", "https://host/x.git and me@host:x.git"),
    ],
)
def test_secrets_are_hidden_in_text(text, hidden):
    assert hide_secrets(text, {CANARY}) == hidden


def test_known_secrets_come_from_remotes_settings_and_environment(repository):
    git(repository, "remote", "add", "origin", "https://me:of-git%21x@host/x")
    (repository / ".dvc").mkdir()
    (repository / ".dvc" / "config.local").write_text(
        "[core]\n    remote = store\n['remote \"store\"']\n    url = webdav://me:of-url@host/x\n"
        '    password = "of-dvc"\n    secret_access_key = of-s3\n    keyfile = key.pem\n    user = me\n'
    )
    found = known_secrets(repository, {"MY_API_KEY": "of-environment", "PATH": "/bin", "TOKEN": "no"})
    assert found == {"of-git%21x", "of-git!x", "of-url", "of-dvc", "of-s3", "of-environment"}


def test_an_unreachable_remote_is_named_without_its_password(repository):
    git(repository, "remote", "add", "origin", f"http://me:{CANARY}@127.0.0.1:9/x.git")
    with pytest.raises(GitError) as caught:
        git(repository, "push", "origin", "main", seconds=20)
    assert CANARY not in str(caught.value)
    assert "127.0.0.1:9" in str(caught.value)


def test_nothing_of_a_shell_is_run(repository):
    with pytest.raises(GitError):
        git(repository, "show", "$(touch canary)")
    assert not (repository / "canary").exists()
    done = subprocess.run(["git", "status", "--porcelain"], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout == ""
