"""States on disk: what comes back is what went in, damage falls back, half-written ones go."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from synthgen.errors import ArtifactError
from synthgen.gan import state as state_module
from synthgen.gan.state import N_KEPT, Snapshot, load_snapshot, remove_snapshots, save_snapshot


def _snapshot(step: int) -> Snapshot:
    generator = torch.Generator().manual_seed(step)
    return Snapshot(
        {
            "weights": torch.randn(3, 2, 4, 4, generator=generator).contiguous(memory_format=torch.channels_last),
            "count": torch.tensor(step),
            "random": generator.get_state(),
        },
        {"step": step, "big": 2**100 + 1, "share": 0.1, "nothing": None},
    )


def _same(found: Snapshot | None, expected: Snapshot) -> bool:
    return (
        found is not None
        and found.values == expected.values
        and found.tensors.keys() == expected.tensors.keys()
        and all(
            torch.equal(found.tensors[k], v) and found.tensors[k].dtype == v.dtype for k, v in expected.tensors.items()
        )
    )


def _saved(folder: Path, *steps: int) -> None:
    for step in steps:
        save_snapshot(folder, _snapshot(step), step)


def test_the_newest_state_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    _saved(tmp_path, 9, 10, 100)
    assert _same(load_snapshot(tmp_path), _snapshot(100))


def test_only_the_last_states_are_kept_and_in_the_order_of_numbers(tmp_path: Path) -> None:
    _saved(tmp_path, 8, 9, 10, 11)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"state-{k:012d}" for k in (10, 11)]
    assert N_KEPT == 2


def test_nothing_there_is_no_state(tmp_path: Path) -> None:
    assert load_snapshot(tmp_path / "never") is None
    remove_snapshots(tmp_path / "never")


def test_a_finished_training_leaves_nothing(tmp_path: Path) -> None:
    _saved(tmp_path / "x", 1, 2)
    remove_snapshots(tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_what_a_kill_left_half_written_goes_and_is_not_read(tmp_path: Path) -> None:
    _saved(tmp_path, 1)
    half = tmp_path / ".state-000000000002.123.partial"
    half.mkdir()
    (half / "tensors.safetensors").write_bytes(b"half")
    assert _same(load_snapshot(tmp_path), _snapshot(1))
    assert not half.exists()


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))


DAMAGES: dict[str, Any] = {
    "a flipped bit": lambda s: _flip(s / "tensors.safetensors"),
    "cut off": lambda s: (s / "tensors.safetensors").write_bytes((s / "tensors.safetensors").read_bytes()[:-9]),
    "no tensors": lambda s: (s / "tensors.safetensors").unlink(),
    "no values": lambda s: (s / "values.json").unlink(),
    "half values": lambda s: (s / "values.json").write_text('{"sha256": "'),
    "values of another kind": lambda s: (s / "values.json").write_text("[1]"),
    "values that are not text": lambda s: (s / "values.json").write_bytes(b"\xff\xfe\x00"),
    "no sha256": lambda s: (s / "values.json").write_text('{"step": 3}'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_fault_23_a_damaged_state_falls_back_to_the_one_before(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _saved(tmp_path, 1, 2)
    DAMAGES[damage](tmp_path / "state-000000000002")
    assert _same(load_snapshot(tmp_path), _snapshot(1))
    assert "going on from an earlier state" in caplog.text


def test_all_states_damaged_is_a_start_from_nothing(tmp_path: Path) -> None:
    _saved(tmp_path, 1, 2)
    for path in tmp_path.glob("*/tensors.safetensors"):
        path.write_bytes(b"")
    assert load_snapshot(tmp_path) is None


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0.0, 1.0, exclude_max=True), bit=st.integers(0, 7))
@pytest.mark.parametrize("name", ["tensors.safetensors", "values.json"])
def test_no_flipped_bit_is_taken_up(name: str, where: float, bit: int, tmp_path: Path) -> None:
    folder = tmp_path / "bits"
    remove_snapshots(folder)
    _saved(folder, 1, 2)
    path = folder / "state-000000000002" / name
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 1 << bit
    path.write_bytes(bytes(content))
    found = load_snapshot(folder)
    # a bit of white space between values changes nothing
    assert _same(found, _snapshot(1)) or (name == "values.json" and _same(found, _snapshot(2)))


def test_a_full_disk_keeps_the_states_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _saved(tmp_path, 1, 2)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state_module, "save_file", full)
    with pytest.raises(ArtifactError, match="No space left"):
        save_snapshot(tmp_path, _snapshot(3), 3)
    monkeypatch.undo()
    assert _same(load_snapshot(tmp_path), _snapshot(2))


def test_the_sha256_of_the_tensors_lies_beside_them(tmp_path: Path) -> None:
    _saved(tmp_path, 1)
    values = json.loads((tmp_path / "state-000000000001" / "values.json").read_text())
    assert len(values["sha256"]) == 64
    assert values["step"] == 1


def test_a_damaged_state_of_a_later_step_does_not_shadow_new_ones(tmp_path: Path) -> None:
    for step in (30, 40):
        save_snapshot(tmp_path, Snapshot({"x": torch.zeros(1)}, {"step": step}), step)
        (tmp_path / f"state-{step:012d}" / "values.json").write_text("{}")
    save_snapshot(tmp_path, Snapshot({"x": torch.ones(1)}, {"step": 10}), 10)
    found = load_snapshot(tmp_path)
    assert found is not None
    assert found.values == {"step": 10}
