"""For all tests: scripts of benchmarks/ by name, and property tests without a deadline.

On a shared machine a deadline would be a timed test.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import settings

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a script of benchmarks/ by name, as if it were run: its siblings are beside it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module
