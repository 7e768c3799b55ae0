"""What a search tries: the default first, nothing twice, and shares that stay within their limits."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthgen.config import POLICIES, MixingSection
from synthgen.dataset.mixing import MixingPolicy
from synthgen.dataset.mixing_candidates import (
    DEPARTURES,
    HIGHEST_SHARE,
    NO_SYNTHETIC,
    Candidate,
    list_candidates,
    share_variants,
)
from synthgen.errors import ConfigError

NAMES = ["cat", "dog", "eel"]


def _contents(candidates: list[Candidate]) -> list[tuple[object, ...] | None]:
    found = []
    for candidate in candidates:
        p = candidate.policy
        found.append(p and (p.pool, p.shares, p.transforms, p.loss_weight, p.labels, p.schedule, p.blend))
    return found


def test_the_default_comes_first_then_none_then_what_a_person_named() -> None:
    policies = {**POLICIES, "mine": MixingSection(share=0.4)}
    found = list_candidates(policies, ["mine"], NAMES, [1], has_shared=True)
    assert [candidate.name for candidate in found[:3]] == ["synthetic", NO_SYNTHETIC, "mine"]
    assert found[1].policy is None
    # share 0.25 is the default itself
    morphs = [change for change in DEPARTURES if change.get("pool") == "morphed"]  # there are none
    assert len(found) == 3 + len(DEPARTURES) - 1 - len(morphs)


def test_both_blends_are_tried_last_and_differ_from_the_default_in_nothing_else() -> None:
    default, *_, mixup, cutmix = list_candidates(POLICIES, [], NAMES, [1], has_shared=True)
    assert [mixup.name, cutmix.name] == ["blend=mixup", "blend=cutmix"]
    for candidate in (mixup, cutmix):
        assert candidate.policy is not None
        assert replace(candidate.policy, name="synthetic", blend="none") == default.policy


def test_without_a_shared_gan_its_pool_is_not_tried() -> None:
    names = [candidate.name for candidate in list_candidates(POLICIES, [], NAMES, [1], has_shared=False)]
    assert "pool=shared" not in names
    assert "classes=scarce" in names


def test_an_unknown_policy_is_named() -> None:
    with pytest.raises(ConfigError, match=r"search\.candidates: 'x' is no policy; there are shared, synthetic"):
        list_candidates(POLICIES, ["x"], NAMES, [1], has_shared=True)


@given(
    st.builds(
        MixingSection,
        pool=st.sampled_from(["default", "shared"]),
        share=st.floats(0.01, 0.99),
        shares=st.dictionaries(st.sampled_from(NAMES), st.floats(0, 0.99)),
        classes=st.sampled_from(["all", "scarce"]),
        transforms=st.sampled_from(["none", "mild", "classical"]),
        schedule=st.sampled_from(["constant", "falling"]),
    ).filter(lambda section: section.classes == "all" and len(section.shares) < 3)
)
def test_no_content_comes_twice_and_variants_change_one_scarce_class_alone(section: MixingSection) -> None:
    found = list_candidates({**POLICIES, "synthetic": section}, ["shared"], NAMES, [1, 2], has_shared=True)
    assert len(set(_contents(found))) == len(found) == len({candidate.name for candidate in found})
    for candidate in found:
        variants = share_variants(candidate, NAMES, [1, 2])
        assert candidate.policy is not None or not variants
        assert len({*_contents(variants), *_contents([candidate])}) == 1 + len(variants)
        for variant in variants:
            assert isinstance(candidate.policy, MixingPolicy)
            assert isinstance(variant.policy, MixingPolicy)
            changed = [k for k in range(3) if variant.policy.shares[k] != candidate.policy.shares[k]]
            assert len(changed) == 1
            assert changed[0] in (1, 2)
            assert variant.policy.shares[changed[0]] <= HIGHEST_SHARE
