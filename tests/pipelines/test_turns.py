"""Which clones are one project; a server says whose turn it is in test_serve.py."""

from pathlib import Path

from pipelines.turns import output_limit, project_key, run_limit


def clone(toy, origin: str | None) -> Path:
    if origin:
        assert toy.run("git", "remote", "add", "origin", origin).returncode == 0
    return toy.folder


def test_clones_of_one_origin_are_one_project_and_the_password_is_not_part_of_it(toy, tmp_path):
    first = project_key(clone(toy, "https://ann:Canary-7f3a@example.invalid/team/tiles.git"))
    toy.run("git", "remote", "set-url", "origin", "https://ben:other@example.invalid/team/tiles")
    assert project_key(toy.folder) == first
    assert first.startswith("tiles-")
    toy.run("git", "remote", "set-url", "origin", "https://example.invalid/team/bricks")
    assert project_key(toy.folder) != first


def test_without_an_origin_a_repositorys_worktrees_are_one_project(toy, tmp_path):
    toy.run("git", "add", "-A")
    assert toy.run("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "first").returncode == 0
    assert toy.run("git", "worktree", "add", "-q", str(tmp_path / "tree")).returncode == 0
    assert project_key(tmp_path / "tree") == project_key(toy.folder)


def test_a_folder_without_a_repository_is_a_project_too(tmp_path):
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "dvc.yaml").touch()
    assert run_limit(tmp_path).startswith("synthgen-run-")


def test_outputs_have_limits_of_their_own_in_names_that_the_server_takes(toy):
    names = {output_limit(toy.folder, stage) for stage in ("prepare", "adapt@f0-crack", "adapt@f1-crack")}
    assert len(names) == 3
    assert not any(set("/%&<>") & set(name) for name in names)
    assert not set("/%&<>") & set(output_limit(toy.folder, "odd/%&<>stage"))
