"""Verbs of other packages on synthgen's command line: found by name, never in the place of its own, cheap to ignore."""

import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from synthgen import other_commands
from synthgen.errors import ConfigError
from synthgen.other_commands import GROUP, find_command, list_commands

ROOT = Path(__file__).parents[2]
PACKAGE = '''
def greet(arguments):
    """Say hello.

    More of it.
    """
    print("hello", *arguments)
    return 5
'''


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "others_package.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    points = [
        EntryPoint("greet", "others_package:greet", GROUP),
        EntryPoint("plan", "others_package:greet", GROUP),
        EntryPoint("lost", "no_such_package:x", GROUP),
        EntryPoint("gone", "others_package:gone", GROUP),
        EntryPoint("text", "others_package:__name__", GROUP),
    ]
    monkeypatch.setattr(other_commands, "entry_points", lambda **which: EntryPoints(points).select(**which))


@pytest.mark.usefixtures("registered")
def test_a_command_is_found_by_name_and_never_replaces_one_of_synthgens_own() -> None:
    found = find_command("greet", {"plan"})
    assert found is not None
    assert found(["you"]) == 5
    assert find_command("plan", {"plan"}) is None
    assert find_command("nothing", {"plan"}) is None


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("name", ["lost", "gone", "text"])
def test_a_command_that_cannot_be_loaded_is_named_and_listed_all_the_same(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"the command '{name}' is registered as "):
        find_command(name, ())
    assert list_commands({"plan"})[name].startswith("(cannot be loaded: ")


@pytest.mark.usefixtures("registered")
def test_the_list_gives_the_first_line_of_what_each_is_for() -> None:
    assert list_commands({"plan"})["greet"] == "Say hello."
    assert "plan" not in list_commands({"plan"})


def test_a_registered_command_runs_with_its_arguments_and_its_status(tmp_path: Path) -> None:
    (tmp_path / "others_package.py").write_text(PACKAGE)
    info = tmp_path / "others_package-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: others-package\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\ngreet = others_package:greet\n")
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from synthgen.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), "greet", "--force", "a b", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (5, "hello --force a b --help\n")


def test_synthgens_own_verbs_look_for_no_others() -> None:
    code = (
        "import sys; sys.argv = ['synthgen', 'unlock', '--help']\nfrom synthgen.cli import main\n"
        "try: main()\nfinally: print('importlib.metadata' in sys.modules, 'synthgen.other_commands' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.splitlines()[-1].split()[-1] == "False", done.stdout + done.stderr


def test_help_loads_nothing_heavy_of_the_package_that_gives_the_verbs() -> None:
    code = (
        "import sys; sys.argv = ['synthgen', '--help']\nfrom synthgen.cli import main\n"
        "try: main()\nfinally: print([m for m in ('numpy', 'pyarrow', 'prefect', 'dvc') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.splitlines()[-1] == "[]"
