"""Seeds, atomic writes, devices, errors: the floor everything stands on."""

import errno
import inspect
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from synthgen import errors
from synthgen.artifacts import atomic_file, atomic_folder, canonical_json, digest_of, read_json, sha256_file, write_json
from synthgen.device import resolve_device
from synthgen.errors import ArtifactError, DeviceError
from synthgen.lifeline import mark_token, own_mark
from synthgen.progress import progress_bar
from synthgen.seeding import derive_seed, numpy_generator, torch_generator

ROOT = Path(__file__).parents[2]


def test_all_errors_are_public_and_drawn_in_the_docstring() -> None:
    classes = {name for name, value in vars(errors).items() if inspect.isclass(value)}
    assert classes == set(errors.__all__)
    assert errors.__doc__ is not None
    assert all(name in errors.__doc__ for name in classes)


def test_named_seeds_differ_by_any_part_of_the_name_and_repeat() -> None:
    names = [(0, "a"), (0, "b"), (1, "a"), (0, "a", 0), (0, "a", 1), (0, "a0"), (0,)]
    seeds = [derive_seed(*name) for name in names]
    assert len(set(seeds)) == len(seeds)
    assert seeds == [derive_seed(*name) for name in names]
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_generators_leave_global_state_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    torch_generator(5, "x")
    numpy_generator(5, "x").random(10)
    assert torch.equal(torch.rand(3), expected)


def test_fault_23_a_crash_between_write_and_rename_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(RuntimeError), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_fault_23_a_folder_is_whole_or_absent(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with atomic_folder(folder) as partial:
        (partial / "x").write_text("1")
    with pytest.raises(RuntimeError), atomic_folder(folder) as partial:
        (partial / "x").write_text("2")
        raise RuntimeError
    assert (folder / "x").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_fault_24_disk_full_is_explained_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"No space left.*Free space"), atomic_file(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from synthgen.artifacts import atomic_file, atomic_folder
here = Path(sys.argv[1])
with atomic_folder(here / "out") as folder, atomic_file(here / "a.json") as file:
    (folder / "inside").mkdir()
    (folder / "inside" / "half").write_text("half")
    file.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_fault_22_what_a_killed_process_left_goes_when_the_output_is_written_again(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_text("old")
    subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, str(tmp_path)], cwd=ROOT, timeout=60, check=False)
    assert len(list(tmp_path.glob(".*.partial"))) == 2
    assert (tmp_path / "out" / "x").read_text() == "old"
    write_json(tmp_path / "b.json", {})  # another output: nobody's leftovers but its own
    assert len(list(tmp_path.glob(".*.partial"))) == 2
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "x").write_text("new")
    write_json(tmp_path / "a.json", {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "b.json", "out"]


def test_temporaries_of_others_are_left_alone(tmp_path: Path) -> None:
    own = own_mark()
    others = [
        own,  # alive
        replace(own, host="another", pid=2**22 + 1),
        replace(own, table="1", pid=2**22 + 1),  # another container
    ]
    kept = {f".a.json.{mark_token(mark)}.partial" for mark in others} | {
        ".a.json.partial",
        ".a.json.notes.partial",
        f".a.jsonl.{mark_token(replace(own, pid=2**22 + 1))}.partial",
        f"a.json.{mark_token(replace(own, pid=2**22 + 1))}.partial",
    }
    for name in kept:
        (tmp_path / name).write_text("of another")
    gone = f".a.json.{mark_token(replace(own, start=own.start + 1))}.partial"  # this pid was another's before
    (tmp_path / gone).write_text("left")
    with atomic_file(tmp_path / "a.json") as temporary:
        assert temporary.name in kept  # one process writes one output once at a time
        temporary.write_text("{}")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == (kept - {temporary.name}) | {"a.json"}


def test_fault_24_the_words_of_libraries_become_one_message(tmp_path: Path) -> None:
    class RustError(Exception):
        pass

    for error, words in (
        (RustError("Error while serializing: No space left on device (os error 28)"), "No space left on device; noth"),
        (OSError("40960 requested and 0 written"), r"the disk is full or a limit was reached \(40960 requested"),
    ):
        for write in (atomic_file, atomic_folder):
            with pytest.raises(ArtifactError, match=f"cannot write .*out: {words}"), write(tmp_path / "out"):
                raise error
    with pytest.raises(RustError, match="shape"), atomic_file(tmp_path / "out"):
        raise RustError("wrong shape")
    with (
        pytest.raises(ArtifactError) as refused,
        atomic_folder(tmp_path / "out") as folder,
        atomic_file(folder / "inside"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert f"cannot write {tmp_path / 'out' / 'inside'}: No space" in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_damaged_and_missing_json_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"gain\.json is missing"):
        read_json(tmp_path / "gain.json")
    (tmp_path / "gain.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"gain\.json is damaged"):
        read_json(tmp_path / "gain.json")


def test_canonical_json_is_the_same_for_equal_values_and_refuses_nan() -> None:
    assert canonical_json({"b": 1, "a": [2]}) == canonical_json({"a": [2], "b": 1})
    assert digest_of({"b": 1, "a": 2}) == digest_of({"a": 2, "b": 1})
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"a": float("nan")})


def test_sha256_of_nothing_is_the_published_value(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert sha256_file(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_fault_33_auto_falls_back_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("SYNTHGEN_DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with caplog.at_level("INFO"):
        assert resolve_device("auto").type == "cpu"
    assert "computing on the CPU" in caplog.text


@pytest.mark.parametrize("name", ["cuda", "cuda:7", "mps", "tpu", "gpu0"])
def test_fault_33_an_explicit_device_that_is_not_there_fails_at_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(DeviceError, match=name):
        resolve_device(name)


def test_progress_prints_a_line_with_an_estimate_once_work_takes_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(np.arange(0.0, 100.0, 2.0).tolist())
    monkeypatch.setattr("synthgen.progress.time.monotonic", lambda: next(clock))
    with progress_bar("work", 10) as advance:
        for _ in range(10):
            advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "work 10/10 elapsed 20 s left 0 s"
    assert len(lines) == 9  # nothing in the first three seconds


def test_synthgen_imports_without_prefect_and_dvc() -> None:
    code = (
        "import sys; sys.modules['prefect'] = None; sys.modules['dvc'] = None; import pkgutil, synthgen, importlib\n"
        "for module in pkgutil.walk_packages(synthgen.__path__, 'synthgen.'):\n"
        "    if not module.name.endswith('__main__'): importlib.import_module(module.name)\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=ROOT, timeout=240)


def test_no_module_decodes_with_torchvision_or_pickles() -> None:
    for path in (ROOT / "synthgen").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for banned in ("torchvision.io", "import pickle", "shell=True", "LOAD_TRUNCATED_IMAGES = True", "torch.load("):
            assert banned not in text, f"{path}: {banned}"
