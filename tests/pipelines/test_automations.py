"""What a server is to hold, and that setting it up twice changes nothing; real servers are in test_serve.py."""

from types import SimpleNamespace
from uuid import UUID, uuid4

import pytest
from prefect.events.schemas.automations import Automation, Posture
from prefect.exceptions import ObjectNotFound

from pipelines import automations
from pipelines.automations import FAILURES, HURTS, ZOMBIES, apply_automations, find_block, wanted_automations
from pipelines.dvc import PipelineError

BLOCK = UUID("00000000-0000-4000-8000-000000000001")


class Client:
    """Keeps automations as the server does: by id, sets sent as lists, with ids of their own for triggers."""

    def __init__(self) -> None:
        self.there: dict[UUID, Automation] = {}
        self.n_writes = 0

    def _keep(self, key, automation) -> None:
        content = automation.model_dump(mode="json")
        content["trigger"]["id"] = str(uuid4())
        content["trigger"]["expect"] = sorted(content["trigger"]["expect"], reverse=True)
        self.there[key] = Automation.model_validate({**content, "id": key})
        self.n_writes += 1

    def read_automations_by_name(self, name):
        return [one for one in self.there.values() if one.name == name]

    def create_automation(self, automation):
        self._keep(uuid4(), automation)

    def update_automation(self, key, automation):
        self._keep(key, automation)

    def delete_automation(self, key):
        del self.there[key]
        self.n_writes += 1

    def names(self):
        return sorted(one.name for one in self.there.values())


def test_setting_up_twice_writes_once():
    client = Client()
    assert len(apply_automations(client, wanted_automations(90, BLOCK))) == 3
    assert apply_automations(client, wanted_automations(90, BLOCK)) == []
    assert client.n_writes == 3
    assert client.names() == sorted([FAILURES, HURTS, ZOMBIES])


def test_what_differs_is_updated_in_place_and_twins_are_removed():
    client = Client()
    apply_automations(client, wanted_automations(90, BLOCK))
    client.create_automation(wanted_automations(60)[0])
    client.create_automation(wanted_automations(90)[0])
    assert apply_automations(client, wanted_automations(120, BLOCK)) == [f"automation {ZOMBIES!r} updated"]
    assert client.names() == sorted([FAILURES, HURTS, ZOMBIES])
    [zombies] = client.read_automations_by_name(ZOMBIES)
    assert zombies.trigger.within.total_seconds() == 120


def test_without_a_block_the_notifications_go():
    client = Client()
    apply_automations(client, wanted_automations(90, BLOCK))
    assert apply_automations(client, wanted_automations(90)) == [
        f"automation {FAILURES!r} removed",
        f"automation {HURTS!r} removed",
    ]
    assert client.names() == [ZOMBIES]


def test_a_run_is_a_zombie_only_when_heartbeats_stop_and_no_end_came():
    trigger = wanted_automations(90)[0].trigger
    assert trigger.posture is Posture.Proactive
    assert trigger.after == {"prefect.flow-run.heartbeat"}
    assert trigger.expect == {
        f"prefect.flow-run.{name}" for name in ("heartbeat", "Completed", "Failed", "Cancelled", "Crashed")
    }
    assert trigger.for_each == {"prefect.resource.id"}


@pytest.mark.parametrize("seconds", [0, -1, 9.9])
def test_too_short_a_patience_is_refused(seconds):
    with pytest.raises(PipelineError, match="below Prefect's least of 10 s"):
        wanted_automations(seconds)


@pytest.mark.parametrize("name", ["", "team", "custom-webhook/", "/team", "a/b/c"])
def test_a_setting_that_names_no_block_is_refused(name):
    with pytest.raises(PipelineError, match="TYPE/NAME"):
        find_block(Client(), name)


def test_a_block_that_is_not_there_is_none():
    def read(name, kind, include_secrets):
        assert (name, kind, include_secrets) == ("team", "custom-webhook", False)
        raise ObjectNotFound(http_exc=Exception("404"))

    assert find_block(SimpleNamespace(read_block_document_by_name=read), "custom-webhook/team") is None


def test_a_verdict_is_announced_in_the_label_that_the_trigger_matches(toy, monkeypatch):
    sent = []
    monkeypatch.setattr(automations, "emit_event", lambda event, **more: sent.append((event, more)))
    automations.announce_verdict("hurts", toy.folder)
    [(event, more)] = sent
    trigger = wanted_automations(90, BLOCK)[2].trigger
    assert event in trigger.expect
    assert trigger.match.matches(more["resource"])
    assert more["payload"]["verdict"] == "hurts"
    assert str(toy.folder) not in str(more), "paths of a machine are nobody's business"
    automations.announce_verdict("helps", toy.folder)
    assert not trigger.match.matches(sent[1][1]["resource"])
