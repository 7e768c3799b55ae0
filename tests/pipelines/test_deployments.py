"""prefect.yaml: every deployment can be loaded, takes the parameters it gets, and names no machine."""

import importlib
from pathlib import Path

import pytest
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from ruamel.yaml import YAML

from pipelines.automations import POOL
from pipelines.sensor import DEPLOYMENT

FILE = Path(__file__).resolve().parents[2] / "prefect.yaml"
DEPLOYMENTS = {one["name"]: one for one in YAML(typ="safe").load(FILE.read_text())["deployments"]}


def flow_of(deployment):
    module, _, name = deployment["entrypoint"].partition(".py:")
    return getattr(importlib.import_module(module.replace("/", ".")), name)


def test_there_are_three_ways_to_start():
    assert set(DEPLOYMENTS) == {"nightly", "on-demand", "on-new-data"}


@pytest.mark.parametrize("name", sorted(DEPLOYMENTS))
def test_a_deployment_runs_in_our_pool_one_at_a_time_with_parameters_that_its_flow_takes(name):
    deployment = DEPLOYMENTS[name]
    flow = flow_of(deployment)
    flow.validate_parameters(deployment["parameters"])
    assert deployment["work_pool"]["name"] == POOL
    assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}
    described = flow.parameters.properties
    assert set(deployment["parameters"]) <= set(described)
    undescribed = [key for key, value in described.items() if not value.get("description")]
    assert not undescribed, "the form of Prefect's page shows these without a word"


def test_schedules_are_what_their_names_say():
    [nightly] = DEPLOYMENTS["nightly"]["schedules"]
    CronSchedule(cron=nightly["cron"], timezone=nightly["timezone"])
    assert DEPLOYMENTS["on-demand"]["schedules"] == []
    [often] = DEPLOYMENTS["on-new-data"]["schedules"]
    assert IntervalSchedule(interval=often["interval"]).interval.total_seconds() >= 60


def test_the_sensor_starts_a_deployment_that_there_is():
    flow, _, name = DEPLOYMENT.partition("/")
    assert flow_of(DEPLOYMENTS[name]).name == flow


def test_no_machine_stands_in_it():
    text = FILE.read_text()
    assert "/home" not in text
    assert str(FILE.parent) not in text
