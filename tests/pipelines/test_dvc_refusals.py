"""FAULTS rows 25 and 39 on the scheduling side: a cache that cannot be written, and secrets in what DVC says."""

import subprocess
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipelines import dvc, remotes
from pipelines.dvc import CacheError, CommandError
from pipelines.dvc_settings import cache_folder

CANARY = "s3cr3t-canary"


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """A mount, since root writes whatever the permissions say."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", "--bind", str(folder), str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_fault_25_a_read_only_cache_is_one_message_before_anything_runs_and_the_rerun_completes(toy):
    cache = toy.folder / ".dvc" / "cache"
    with read_only(cache):
        for stage, what in (("prepare", "stage 'prepare'"), (None, "`dvc repro`")):
            with pytest.raises(CacheError) as caught:
                dvc.repro(toy.folder, stage, print)
            message = str(caught.value)
            assert "\n" not in message
            assert message.startswith(
                f"{what} was not run: DVC cannot write {cache} (Read-only file system); make it w"
            )
            assert "`dvc cache dir --local FOLDER`" in message
    assert not (toy.folder / "stamps.jsonl").exists()  # no training whose output could not have been kept
    dvc.repro(toy.folder, None, print)
    assert dvc.status(toy.folder) == {}


def test_fault_25_a_folder_in_the_cache_that_became_read_only_is_named_with_the_remedy(toy):
    with read_only(toy.folder / ".dvc" / "cache" / "files"), pytest.raises(CacheError) as caught:
        dvc.repro(toy.folder, "prepare", print)
    first, *lines = str(caught.value).splitlines()
    assert f"DVC cannot write {toy.folder / '.dvc' / 'cache' / 'files'}" in first
    assert "(Read-only file system); make it writable" in first
    assert any("failed to reproduce 'prepare'" in line for line in lines)
    dvc.repro(toy.folder, "prepare", print)


@pytest.mark.slow
def test_fault_25_a_flow_on_a_read_only_cache_ends_with_the_message_and_the_next_one_completes(toy):
    elsewhere = toy.folder.parent / "elsewhere"
    toy.dvc("cache", "dir", "--local", str(elsewhere))
    with read_only(elsewhere):
        done = toy.flow()
    assert done.returncode == 1, done.stderr
    last = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(last) == 1
    assert (
        f"DVC cannot write {elsewhere} (Read-only file system); make it writable"
        in done.stderr.partition(last[0])[2] + last[0]
    )
    assert "Traceback" not in done.stderr.partition(last[0])[2]
    assert toy.flow().returncode == 0


@pytest.mark.parametrize(
    ("local", "expected"),
    [
        ("", ".dvc/cache"),
        ("[cache]\n    dir = ../../shared\n", "../shared"),
        ("[cache]\ndir = '/srv/cache'\n", "/srv/cache"),
    ],
)
def test_the_cache_is_where_dvc_says(toy, local, expected):
    (toy.folder / ".dvc" / "config.local").write_text(local)
    assert str(cache_folder(toy.folder)) == str((toy.folder / expected).resolve())
    assert str(cache_folder(toy.folder)) == toy.dvc("cache", "dir").strip()


LEAK = """
import os, sys
print("remote http://me:{canary}@127.0.0.1:9/x, token", os.environ.get("TOY_TOKEN"), "and {canary} alone", flush=True)
sys.exit("cannot reach http://me:{canary}@127.0.0.1:9/x")
"""


def test_fault_39_no_secret_of_a_remote_or_the_environment_in_an_error_or_a_line(toy, monkeypatch):
    (toy.folder / "step.py").write_text(LEAK.format(canary=CANARY))
    (toy.folder / ".dvc" / "config.local").write_text(
        f"['remote \"store\"']\n    url = http://me:{CANARY}@127.0.0.1:9/x\n"
    )
    monkeypatch.setenv("TOY_TOKEN", f"{CANARY}-of-the-environment")
    lines: list[str] = []
    with pytest.raises(CommandError) as caught:
        dvc.repro(toy.folder, "prepare", lines.append)
    told = "".join(traceback.format_exception(caught.value)) + repr(caught.value.tail) + "\n".join(lines)
    assert CANARY not in told
    assert "cannot reach http://***@127.0.0.1:9/x" in told

    (toy.folder / "synthgen" / "__main__.py").write_text(LEAK.format(canary=CANARY))
    with pytest.raises(CommandError) as caught:
        dvc.plan(toy.folder, lines.append)
    assert CANARY not in str(caught.value) + "\n".join(lines)


def test_fault_39_a_command_that_dvc_refuses_quotes_no_address_with_its_password(toy):
    with pytest.raises(CommandError) as caught:
        remotes._dvc(toy.folder, "remote", "modify", "nowhere", "url", f"http://me:{CANARY}@host/x")
    assert CANARY not in str(caught.value) + repr(caught.value.tail)


def test_fault_39_a_password_of_the_users_own_dvc_settings_is_hidden(toy, tmp_path, monkeypatch):
    settings = f"['remote \"store\"']\n    url = webdav://host/x\n    password = {CANARY}\n"
    (tmp_path / "global").mkdir()
    (tmp_path / "global" / "config").write_text(settings)
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path / "global"))
    (toy.folder / "step.py").write_text(f"raise SystemExit('refused: {CANARY}')")
    with pytest.raises(CommandError, match=r"refused: \*\*\*"):
        dvc.repro(toy.folder, "prepare", print)
