"""Options of the tasks and of prefect.yaml, without a server (in a child: Prefect's import warns)."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

REPOSITORY = Path(__file__).resolve().parents[2]
YAML_FILE = YAML(typ="safe", pure=True)

ASK = """
import inspect, json, random
from pipelines import tasks
from pipelines.fan_out import share_cores
from pipelines.flows import only
GRAPH = {
    "prepare": set(),
    "adapt@f0-a": {"prepare"},
    "evaluate@b": {"prepare"},
    "compare": {"evaluate@b", "adapt@f0-a"},
}
FOLDS = {f"pretrain@f{k}": {"prepare"} for k in range(3)} | {f"synthesize@f{k}": {f"pretrain@f{k}"} for k in range(3)}
FOLDS |= {"prepare": set(), "worth": {f"synthesize@f{k}" for k in range(3)}, "compare": {"synthesize@f0"}}
DRAWN = []
for seed in range(12):
    rng = random.Random(seed)
    names = [f"adapt@f0-{k}" for k in range(7)]
    DRAWN.append({name: {other for other in names[:k] if rng.random() < 0.3} for k, name in enumerate(names)})
found = {name: tasks.stage_task(name) for name in ("prepare", "adapt@f0-crack", "pretrain@final", "compare")}
print(json.dumps(default=sorted, obj={
    "tags": {name: sorted(task.tags) for name, task in found.items()},
    "names": sorted({task.task_run_name for task in found.values()}),
    "retries": [task.retries for task in found.values()],
    "persist": [task.persist_result for task in found.values()],
    "cached": [type(task.cache_policy).__name__ for task in found.values()],
    "training": sorted(tasks.TRAINING),
    "shares": [share_cores(FOLDS, n_cores, workers) for n_cores, workers in ((8, 2), (8, 16), (1, 2))],
    "drawn": [[graph, share_cores(graph, 840, 16)] for graph in DRAWN],
    "halves": [only(GRAPH, augmenting=half) for half in (True, False)],
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


def test_the_halves_of_the_graph_wait_for_nothing_outside_them(told):
    first, second = told["halves"]
    assert first == {"adapt@f0-a": ["prepare"], "prepare": []}
    assert second == {"compare": ["evaluate@b"], "evaluate@b": []}


def test_trainings_that_may_run_side_by_side_share_the_cores(told):
    two, many, single = told["shares"]
    trains = {name for name in two if "@" in name}
    assert {name: two[name] for name in trains} == dict.fromkeys(trains, 4)
    assert {two["prepare"], two["worth"]} == {8}  # nothing that trains ever runs beside them
    assert two["compare"] == 4  # a fold may still train beside it
    # a fold's stages come one after the other: pretrain@f0 beside one of f1 and one of f2, not beside all four
    assert {name: many[name] for name in trains} == dict.fromkeys(trains, 8 // 3)
    assert set(single.values()) == {1}


def test_the_cores_are_divided_by_as_many_as_can_train_at_the_same_time(told):
    for graph, shares in told["drawn"]:
        above = {}
        for stage in graph:  # upstreams stand first
            above[stage] = set(graph[stage]).union(*(above[name] for name in graph[stage]))
        together = [
            chosen
            for n in range(1, len(graph) + 1)
            for chosen in itertools.combinations(graph, n)
            if not any(set(chosen) & above[stage] for stage in chosen)
        ]
        most = {stage: max(len(chosen) for chosen in together if stage in chosen) for stage in graph}
        assert shares == {stage: 840 // n for stage, n in most.items()}
