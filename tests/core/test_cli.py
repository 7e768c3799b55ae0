"""The command line: verbs equal stages, errors are one line, help is quick and needs no torch."""

import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]


def _synthgen(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "synthgen", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_every_stage_of_dvc_yaml_is_a_verb_and_names_its_own_params_section() -> None:
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    help_text = _synthgen("--help").stdout
    for name, stage in stages.items():
        assert stage["cmd"].split()[:2] == ["synthgen", name]
        assert f" {name} " in help_text
        own = [p for p in stage["params"] if isinstance(p, str) and p.split(".")[0] == name]
        assert own, f"stage {name} does not depend on its section of params.yaml"


def test_every_parameter_that_dvc_yaml_names_is_in_params_yaml() -> None:
    # DVC refuses to run a stage whose parameter is left to its default
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    values = YAML(typ="safe").load(ROOT / "params.yaml")
    for name, stage in stages.items():
        for dotted in (p for p in stage["params"] if isinstance(p, str)):
            found = values
            for part in dotted.split("."):
                assert isinstance(found, dict), f"{name}: {dotted}"
                assert part in found, f"{name}: {dotted}"
                found = found[part]


@pytest.mark.parametrize("arguments", [("prepare",), ("pretrain", "--fold", "f0"), ("verdict",), ("verify",)])
def test_an_empty_folder_gives_one_line_and_status_1(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = _synthgen(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line]
    assert len(lines) == 1
    assert lines[0].startswith("synthgen: ")
    assert "missing" in lines[0]


def test_a_folder_without_locks_needs_no_unlocking(tmp_path: Path) -> None:
    done = _synthgen("unlock", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "no output is locked\n", "")
    assert list(tmp_path.iterdir()) == []


def test_help_does_not_import_torch() -> None:
    code = "import sys, synthgen.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=False).returncode == 0


def test_a_lack_of_memory_is_one_line_and_a_bug_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    from concurrent.futures.process import BrokenProcessPool

    from synthgen.cli import _run

    def failing(error: Exception) -> int:
        def command() -> None:
            raise error

        return _run(command)

    for error in (MemoryError(), BrokenProcessPool("terminated abruptly"), RuntimeError("CUDA out of memory. Tried")):
        assert failing(error) == 1
        assert "out of memory; lower" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="shape"):
        failing(RuntimeError("shape mismatch"))
