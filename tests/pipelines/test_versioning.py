"""The written rule from two states to a version, and the names of version tags."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.dvc import AnswerError
from pipelines.versioning import (
    FIRST,
    Change,
    State,
    Version,
    change_between,
    latest,
    next_version,
    parse_tag,
    parse_version,
    read_state,
)

ROOT = Path(__file__).resolve().parents[2]
BEFORE = State((("crack", ("crack", 0)), ("free", ("free", 1))), '{"gan": 1}', "aaa", "bbb", "ccc")

PLAN = """\
strategy: {strategy}
versions: {{dataset: 1, gan: {gan}}}
classes:
  crack: {{class_name: Crack, label: 0, images: {images}}}
{more}
"""
LOCK = """\
schema: '2.0'
stages:
  pretrain@f0:
    cmd: synthgen pretrain
    params: {{params.yaml: {{seed: 0, pretrain: {{kimg: {kimg}, network: {{architecture: {architecture}}}}}}}}}
    outs: [{{path: models/f0/shared, md5: 1.dir}}]
  assemble:
    cmd: synthgen assemble
    outs: [{{path: data/augmented, md5: {data}.dir}}]
"""


def state(*, schema="s", gain="{}", **changes) -> State:
    values = {
        "strategy": "adapted",
        "gan": 1,
        "images": 5,
        "more": "",
        "kimg": 1,
        "architecture": "dcgan",
        "data": "d",
        **changes,
    }
    return read_state(PLAN.format(**values), LOCK.format(**values), gain, schema)


versions = st.builds(Version, *[st.integers(0, 999_999)] * 3)
states = st.builds(
    State,
    st.lists(st.sampled_from([("a", ("a", 0)), ("b", ("b", 1))]), unique=True).map(lambda rows: tuple(sorted(rows))),
    *[st.sampled_from(["x", "y"])] * 3,
    st.sampled_from(["", "x", "y"]),
)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"data": "e"}, Change.PATCH),
        ({"gain": '{"verdict": 1}'}, Change.PATCH),
        ({"images": 6, "data": "e"}, Change.PATCH),
        ({"kimg": 2, "data": "e"}, Change.PATCH),
        ({"strategy": "scratch"}, Change.MINOR),
        ({"architecture": "style"}, Change.MINOR),
        ({"gan": 2}, Change.MINOR),
        ({"more": "  dent: {class_name: dent, label: 1}"}, Change.MINOR),
        ({"schema": "t", "strategy": "scratch"}, Change.MAJOR),
        ({"schema": ""}, None),
    ],
)
def test_the_rule(changes, expected):
    assert change_between(state(), state(**changes)) is expected
    assert change_between(state(**changes), state()) is expected


def test_images_alone_are_no_change_of_the_data_set_users_take():
    assert change_between(state(), state(images=6)) is None


def test_first_version_and_the_numbers_after_it():
    assert str(next_version(None, None, BEFORE)) == "v0.1.0"
    last = Version(1, 2, 3)
    assert next_version(last, BEFORE, BEFORE) is None
    assert str(next_version(last, BEFORE, dataclasses.replace(BEFORE, data="z"))) == "v1.2.4"
    assert str(next_version(last, BEFORE, dataclasses.replace(BEFORE, generator="z"))) == "v1.3.0"
    assert str(next_version(last, BEFORE, dataclasses.replace(BEFORE, schema="z"))) == "v2.0.0"
    assert str(next_version(last, None, BEFORE)) == "v1.3.0"


@given(versions, states, states)
def test_a_version_rises_exactly_if_something_changed(last, old, new):
    following = next_version(last, old, new)
    if following is None:
        assert change_between(old, new) is None
        assert dataclasses.replace(old, schema="") == dataclasses.replace(new, schema="")
    else:
        assert following > last
        between = (following.major - last.major, following.minor, following.patch)
        change = change_between(old, new)
        assert following == last.raised(change)
        assert between[0] == (1 if change is Change.MAJOR else 0)


@given(versions)
def test_names_are_read_back(version):
    assert parse_tag(version.tag) == version
    assert parse_version(str(version)) == version
    assert parse_version(str(version).removeprefix("v")) == version


@given(st.text(max_size=30))
def test_whatever_is_read_is_a_canonical_name(text):
    version = parse_tag(text)
    assert version is None or version.tag == text


@pytest.mark.parametrize(
    "tag", ["augmented@v1.2", "augmented@1.2.3", "other@v1.2.3", "augmented@v01.2.3", "augmented@v1.2.3!", "v1.2.3"]
)
def test_other_tags_are_no_versions(tag):
    assert parse_tag(tag) is None


@given(st.lists(versions, max_size=8))
def test_latest_is_the_highest_and_not_the_longest_text(chosen):
    tags = [version.tag for version in chosen] + ["augmented#prod#9", "augmented@latest"]
    assert latest(tags) == max(chosen, default=None)


def test_this_repositorys_own_files_are_read():
    found = read_state((ROOT / "plan.yaml").read_text(), (ROOT / "dvc.lock").read_text(), None, "s")
    assert [slug for slug, _ in found.classes] == [str(i) for i in range(10)]
    assert found.data.endswith(".dir")
    assert '"strategy": "adapted"' in found.generator
    assert '"networks": {"pretrain": {' in found.generator
    assert str(FIRST) == "v0.1.0"


@pytest.mark.parametrize("text", ["[", "- 1", "classes: {crack: {label: 0}}", "classes: {crack: 3}", "classes: 3"])
def test_a_damaged_plan_is_refused_without_a_traceback(text):
    with pytest.raises(AnswerError, match="git show"):
        read_state(text, "stages: {}", None, "")
