"""Options of the tasks and of prefect.yaml, without a server (in a child: Prefect's import warns)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

REPOSITORY = Path(__file__).resolve().parents[2]
YAML_FILE = YAML(typ="safe", pure=True)

ASK = """
import inspect, json
from pipelines import tasks
from pipelines.flows import augment
found = {name: tasks.stage_task(name) for name in ("prepare", "adapt@f0-crack", "pretrain@final", "compare")}
print(json.dumps({
    "tags": {name: sorted(task.tags) for name, task in found.items()},
    "names": sorted({task.task_run_name for task in found.values()}),
    "retries": [task.retries for task in found.values()],
    "persist": [task.persist_result for task in found.values()],
    "cached": [type(task.cache_policy).__name__ for task in found.values()],
    "training": sorted(tasks.TRAINING),
    "parameters": augment.parameters.model_dump()["properties"],
}))
"""


@pytest.fixture(scope="module")
def told():
    done = subprocess.run(
        [sys.executable, "-c", ASK], cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=120
    )
    return json.loads(done.stdout)


def test_stages_that_train_hold_a_gpu_slot(told):
    assert told["tags"] == {"prepare": [], "adapt@f0-crack": ["gpu"], "pretrain@final": ["gpu"], "compare": []}


def test_tasks_are_named_by_stage_and_never_retried_or_cached(told):
    assert told["names"] == ["{stage}"]
    assert set(told["retries"]) == {0}
    assert set(told["persist"]) == {False}
    assert set(told["cached"]) == {"_None"}  # the class of prefect.cache_policies.NO_CACHE


def test_training_stages_are_stages_of_dvc_yaml(told):
    stages = YAML_FILE.load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    assert set(told["training"]) <= set(stages)


def test_deployment_names_the_flows_own_parameters_a_cron_and_no_machine_path(told):
    text = (REPOSITORY / "prefect.yaml").read_text()
    (nightly,) = YAML_FILE.load(text)["deployments"]
    assert nightly["parameters"].keys() == told["parameters"].keys()
    for name, value in nightly["parameters"].items():
        assert type(value) is {"string": str, "integer": int, "number": float}[told["parameters"][name]["type"]]
    assert nightly["schedules"][0]["cron"]
    assert nightly["work_pool"]["name"] == "synthgen"
    assert nightly["concurrency_limit"]["limit"] == 1
    assert "/home" not in text
    assert REPOSITORY.as_posix() not in text
