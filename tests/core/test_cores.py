"""A process keeps as many cores busy as it is told, and never more than the system gives it."""

import os
import subprocess
import sys

import pytest

from synthgen.classifier.jobs import worker_count
from synthgen.cores import CORES_VARIABLE, system_cores, usable_cores
from synthgen.errors import ConfigError


def test_without_the_variable_they_are_the_systems() -> None:
    expected = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert usable_cores({}) == usable_cores({CORES_VARIABLE: ""}) == system_cores() == expected


def test_the_variable_takes_cores_away_and_adds_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert usable_cores({CORES_VARIABLE: "1"}) == 1
    assert usable_cores({CORES_VARIABLE: "4096"}) == system_cores()
    monkeypatch.setenv(CORES_VARIABLE, "1")
    assert worker_count() == 1
    assert worker_count(3) == 3  # what is asked for in the call stands


@pytest.mark.parametrize("asked", ["0", "-1", "two", "1.5", "٢", "9" * 30, " 1"])
def test_other_values_are_refused_by_name(asked: str) -> None:
    with pytest.raises(ConfigError, match=CORES_VARIABLE):
        usable_cores({CORES_VARIABLE: asked})


def test_torch_gets_no_more_threads_than_that() -> None:
    code = (
        "from types import SimpleNamespace as S; import torch; from synthgen.cli import _device;"
        "w = S(config=S(prepare=S(image_size=32), classifier=S(precision='fp32'), pretrain=S(precision='auto')));"
        "_device('cpu', w); print(torch.get_num_threads())"
    )
    for cores in (1, 2):
        environment = {**os.environ, CORES_VARIABLE: str(cores), "OMP_NUM_THREADS": "4"}
        said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert int(said.stdout) == min(cores, system_cores())  # of the four that OpenMP would start
