"""Slugs: form, distinctness, stability, and the twins that are refused."""

import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthgen.dataset.slugs import MAX_SLUG, make_slugs, twin_key
from synthgen.errors import SourceError

FORM = re.compile(r"[a-z0-9_]{1,48}")
HOSTILE = [
    "..",
    ".",
    "/",
    "../../etc/passwd",
    "-rf",
    "",
    " inner  space ",
    "$(touch P)",
    "`id`",
    "a;b",
    "CON",
    "nul",
    "com1",
    "x" * 300,
    "ü" * 200,
    "缺陷",
    "дефект",
    "<img onerror=alert(1)>",
    "a\nb",
    "a\x00b",
    "\udcff",
    "shared",
    "final",
    "all",
    "0",
    "-1",
    "null",
]
names = st.lists(st.one_of(st.text(max_size=300), st.sampled_from(HOSTILE)), max_size=12, unique_by=twin_key)


@settings(deadline=None)
@given(names)
def test_slugs_have_the_form_and_are_distinct(class_names):
    slugs = make_slugs(class_names)
    assert list(slugs) == class_names
    assert all(FORM.fullmatch(slug) for slug in slugs.values())
    assert len(set(slugs.values())) == len(class_names)


@settings(deadline=None)
@given(names, st.randoms(use_true_random=False))
def test_slugs_do_not_depend_on_the_order(class_names, random):
    shuffled = list(class_names)
    random.shuffle(shuffled)
    assert make_slugs(shuffled) == make_slugs(class_names)


@settings(deadline=None)
@given(st.from_regex(FORM, fullmatch=True).filter(lambda name: not re.fullmatch(r"con|prn|aux|nul|(com|lpt)\d", name)))
def test_a_slug_keeps_itself(name):
    assert make_slugs([name]) == {name: name}


@settings(deadline=None)
@given(st.text(min_size=1, max_size=40))
def test_case_and_unicode_twins_are_refused(name):
    for other in {name.upper(), name.lower(), unicodedata.normalize("NFD", name), unicodedata.normalize("NFC", name)}:
        if other != name and twin_key(other) == twin_key(name):
            with pytest.raises(SourceError, match="differ at most in case"):
                make_slugs([name, other])


def test_twins_are_both_named():
    with pytest.raises(SourceError) as caught:
        make_slugs(["Crack", "free", "crack"])
    assert "'Crack'" in str(caught.value)
    assert "'crack'" in str(caught.value)
    with pytest.raises(SourceError, match=r"caf\\xe9.*cafe\\u0301"):
        make_slugs(["café", "cafe\u0301"])
    with pytest.raises(SourceError, match="differ at most"):
        make_slugs(["free", "free"])


def test_readable_slugs():
    slugs = make_slugs(["Blow Hole", "break", "Fräse/alt", "shared", "final", "7"])
    assert list(slugs.values()) == ["blow_hole", "break", "frase_alt", "shared", "final", "7"]


def test_collisions_get_a_digest_and_the_plain_name_keeps_its_own():
    slugs = make_slugs(["a b", "a-b", "a_b"])
    assert slugs["a_b"] == "a_b"
    assert all(re.fullmatch(r"a_b_[0-9a-f]{8}", slugs[name]) for name in ("a b", "a-b"))
    taken = slugs["a b"]
    assert make_slugs(["a b", "a-b", taken])[taken] == taken


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names(name):
    slug = make_slugs([name])[name]
    assert FORM.fullmatch(slug)
    assert slug not in {"con", "nul", "com1"}
    assert len(slug) <= MAX_SLUG


def test_long_names_that_share_a_head_stay_apart():
    slugs = make_slugs(["x" * 300, "x" * 301])
    assert len(set(slugs.values())) == 2
