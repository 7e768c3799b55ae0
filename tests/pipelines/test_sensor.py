"""The sensor: one start per change, none lost; what of a branch and of a folder counts."""

import itertools
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.sensor import RETRY_SECONDS, Memory, Start, look, memory_path, step
from pipelines.watched import Folder, SensorError, dvc_revision, folder_files


class Prefect:
    """What the sensor needs of a server: a key gives one run, and a run has an outcome."""

    def __init__(self) -> None:
        self.runs: dict[str, str] = {}
        self.outcomes: dict[str, str] = {}

    def begin(self, key: str) -> str:
        run = self.runs.setdefault(key, f"run-{len(self.runs) + 1}")
        self.outcomes.setdefault(run, "open")
        return run

    def ask(self, run: str) -> str:
        return self.outcomes[run]

    def end(self, outcome: str) -> None:
        self.outcomes = {run: outcome if old == "open" else old for run, old in self.outcomes.items()}


def test_a_change_starts_one_run_and_only_one():
    prefect, memory = Prefect(), Memory()
    for _ in range(3):
        memory, _line = step(memory, "a", 0.0, prefect.begin, prefect.ask)
    assert len(prefect.runs) == 1
    prefect.end("completed")
    memory, line = step(memory, "a", 0.0, prefect.begin, prefect.ask)
    assert (line, memory.done, len(prefect.runs)) == ("nothing is new", "a", 1)


def test_what_changes_during_a_run_gets_a_run_of_its_own_afterwards():
    prefect, memory = Prefect(), Memory()
    memory, _ = step(memory, "a", 0.0, prefect.begin, prefect.ask)
    memory, line = step(memory, "b", 0.0, prefect.begin, prefect.ask)
    assert "under way" in line
    assert len(prefect.runs) == 1
    prefect.end("completed")
    memory, _ = step(memory, "b", 0.0, prefect.begin, prefect.ask)
    assert len(prefect.runs) == 2
    assert memory.started == Start("b", "run-2")


def test_a_lost_run_is_started_again_after_a_pause_that_doubles():
    prefect, memory, starts = Prefect(), Memory(), []
    now = 0.0
    while len(starts) < 4:
        memory, _ = step(memory, "a", now, prefect.begin, prefect.ask)
        if len(prefect.runs) > len(starts):
            starts.append(now)
            prefect.end("lost")
        now += 60.0
    pauses = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert all(
        want <= got <= want + 120 for got, want in zip(pauses, [RETRY_SECONDS * 2**n for n in range(3)], strict=True)
    )


def test_the_same_content_again_after_another_one_is_a_change():
    prefect, memory = Prefect(), Memory()
    for digest in ("a", "b", "a"):
        memory, _ = step(memory, digest, 0.0, prefect.begin, prefect.ask)
        prefect.end("completed")
    assert len(prefect.runs) == 3


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["open", "completed", "lost"]), st.booleans())))
def test_whatever_happens_the_last_change_is_done_in_the_end_and_no_two_runs_are_open(events):
    prefect, memory, now = Prefect(), Memory(), 0.0
    for digest, outcome, dies in events:
        now += 1e6
        after, _ = step(memory, digest, now, prefect.begin, prefect.ask)
        if dies:  # before it could write its memory: the next look gets the same run
            n_runs = len(prefect.runs)
            after, _ = step(memory, digest, now, prefect.begin, prefect.ask)
            assert len(prefect.runs) == n_runs
        memory = after
        assert list(prefect.outcomes.values()).count("open") <= 1
        prefect.end(outcome)
    for _ in range(4):
        now += 1e6
        memory, _ = step(memory, "z", now, prefect.begin, prefect.ask)
        prefect.end("completed")
    n_runs = len(prefect.runs)
    memory, line = step(memory, "z", now, prefect.begin, prefect.ask)
    assert (memory.done, line, len(prefect.runs)) == ("z", "nothing is new", n_runs)


def settled(folder: Path, before: Folder | None = None, later: float = 100.0, settle: float = 60.0) -> Folder:
    now = max(path.stat().st_ctime for path in (folder, *folder.rglob("*"))) + later
    return folder_files(folder, before or Folder(), settle, now)


def test_a_growing_file_does_not_count_and_a_known_one_counts_as_before(tmp_path):
    (tmp_path / "a.png").write_bytes(b"one")
    assert settled(tmp_path, later=30.0).settled == {}
    first = settled(tmp_path)
    assert set(first.settled) == {"a.png"}
    (tmp_path / "a.png").write_bytes(b"one and more")
    assert settled(tmp_path, first, later=30.0).settled == first.settled
    assert settled(tmp_path, first).settled != first.settled


def test_times_alone_are_no_change(tmp_path):
    (tmp_path / "a.png").write_bytes(b"one")
    first = settled(tmp_path)
    os.utime(tmp_path / "a.png", (5, 5))
    assert settled(tmp_path, first).settled == first.settled


def test_a_file_from_the_future_counts_once_it_was_seen_unchanged_for_long_enough(tmp_path):
    (tmp_path / "a.png").write_bytes(b"one")
    now = (tmp_path / "a.png").stat().st_ctime
    os.utime(tmp_path / "a.png", (now + 1e6, now + 1e6))
    first = folder_files(tmp_path, Folder(), 60.0, now)
    assert first.settled == {}
    assert folder_files(tmp_path, first, 60.0, now + 30).settled == {}
    assert set(folder_files(tmp_path, first, 60.0, now + 61).settled) == {"a.png"}


def test_links_pipes_and_hidden_files_are_left_out(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.png").write_bytes(b"one")
    (tmp_path / ".hidden").write_bytes(b"two")
    (tmp_path / "link.png").symlink_to("sub/a.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert set(settled(tmp_path).settled) == {"sub/a.png"}


def test_a_folder_that_vanished_or_was_unmounted_is_an_error_not_a_change(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"one")
    first = settled(folder)
    (folder / "a.png").unlink()
    with pytest.raises(SensorError, match="is it mounted"):
        settled(folder, first)
    with pytest.raises(SensorError, match="cannot be watched"):
        folder_files(tmp_path / "gone", first, 60.0, 0.0)


def test_looks_at_a_folder_remember_across_processes(tmp_path):
    project, watched, prefect = tmp_path / "project", tmp_path / "raw", Prefect()
    project.mkdir()
    watched.mkdir()
    (watched / "a.png").write_bytes(b"one")
    now = watched.stat().st_ctime + 1e4

    def see(later: float = 0.0) -> str:
        return look(project, prefect.begin, prefect.ask, folder=watched, now=now + later)

    assert "started" in see()
    assert "under way" in see()
    prefect.end("completed")
    assert see() == see() == "nothing is new"
    (watched / "b.png").write_bytes(b"two")
    assert "started" in see()
    assert len(prefect.runs) == 2


def test_a_damaged_memory_is_refused_naming_it(tmp_path):
    watched = tmp_path / "raw"
    watched.mkdir()
    path = memory_path(tmp_path, str(watched))
    path.parent.mkdir(parents=True)
    path.write_text('{"schema": 1, "done"')
    with pytest.raises(SensorError, match=f"{path.name}.*delete it"):
        look(tmp_path, str, lambda run: "open", folder=watched)


@pytest.fixture
def published(toy, tmp_path):
    """The toy with data/raw in DVC, pushed to a bare origin, and a second clone that somebody works in."""
    raw = toy.folder / "data" / "raw"
    raw.mkdir()
    (raw / "a.png").write_bytes(b"one")
    toy.dvc("add", "-q", "data/raw")
    git = ("git", "-c", "user.name=t", "-c", "user.email=t@t")
    for command in (
        ("git", "init", "-q", "--bare", str(tmp_path / "origin.git")),
        ("git", "remote", "add", "origin", str(tmp_path / "origin.git")),
        ("git", "add", "-A"),
        (*git, "commit", "-qm", "first"),
        ("git", "push", "-q", "origin", "HEAD:refs/heads/main"),
        ("git", "clone", "-q", "-b", "main", str(tmp_path / "origin.git"), str(tmp_path / "clone")),
    ):
        done = toy.run(*command)
        assert done.returncode == 0, done.stderr
    return toy, tmp_path / "clone"


def test_the_revision_is_the_published_branchs_md5_and_nothing_local(published):
    toy, clone = published
    first = dvc_revision(clone)
    assert set(first) == {"data/raw.dvc:raw"}
    (clone / "data" / "raw.dvc").write_text("somebody is in the middle of something")
    assert dvc_revision(clone) == first
    (toy.folder / "data" / "raw" / "b.png").write_bytes(b"two")
    toy.dvc("add", "-q", "data/raw")
    toy.run("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qam", "second")
    assert dvc_revision(clone) == first, "not pushed yet"
    assert toy.run("git", "push", "-q", "origin", "HEAD:refs/heads/main").returncode == 0
    assert dvc_revision(clone) != first


def test_a_branch_without_raw_data_is_refused(toy):
    toy.run("git", "add", "-A")
    toy.run("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "first")
    with pytest.raises(SensorError, match=r"neither data/raw\.dvc nor anything in data/raw"):
        dvc_revision(toy.folder)
    with pytest.raises(SensorError, match="no branch 'nowhere' with a commit"):
        dvc_revision(toy.folder, "nowhere")
