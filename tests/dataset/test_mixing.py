"""A policy is what params.yaml says, survives its own record, and knows how much origin tells about the label."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import mutual_info_score

from synthgen.config import POLICIES, MixingSection
from synthgen.dataset.blending import BlendKind
from synthgen.dataset.mixing import MixingPolicy, build_policy, policy_record, read_policy
from synthgen.errors import ConfigError

NAMES = ["crack", "fray", "good"]
SHARES = st.lists(st.floats(0.0, 0.99), min_size=2, max_size=6).filter(any)


def test_the_default_gives_every_class_the_same_share_so_that_origin_tells_nothing() -> None:
    policy = build_policy("synthetic", POLICIES["synthetic"], NAMES, [0, 1])
    assert (policy.shares, policy.is_even, policy.dependence()) == ((0.25, 0.25, 0.25), True, 0.0)
    assert (policy.transforms, policy.schedule, policy.has_plain_targets) == ("none", "constant", True)
    assert policy.weights(np.arange(3), synthetic=True) is None


def test_scarce_classes_alone_and_shares_of_single_classes() -> None:
    scarce = build_policy("x", MixingSection(classes="scarce", share=0.5), NAMES, [0, 1])
    assert scarce.shares == (0.5, 0.5, 0.0)
    assert build_policy("x", MixingSection(shares={"good": 0.1, "crack": 0.0}), NAMES, [0]).shares == (0.0, 0.25, 0.1)


@pytest.mark.parametrize(
    ("section", "match"),
    [
        (MixingSection(shares={"crak": 0.1}), r"policies\.p\.shares: 'crak' is no class; there are crack, fray, good"),
        (MixingSection(share=0.0), r"policies\.p gives every class a share of 0"),
    ],
)
def test_what_cannot_be_is_refused(section: MixingSection, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        build_policy("p", section, NAMES, [0])


@given(shares=SHARES)
def test_dependence_is_the_mutual_information_of_label_and_origin(shares: list[float]) -> None:
    # against scikit-learn, on a table of 1,000 draws of each class
    counts = [(round(1000 * s), 1000 - round(1000 * s)) for s in shares]
    labels = np.repeat(np.arange(len(shares)), 1000)
    origins = np.concatenate([np.repeat([1, 0], pair) for pair in counts])
    policy = MixingPolicy("x", "default", tuple(pair[0] / 1000 for pair in counts))
    assert policy.dependence() == pytest.approx(mutual_info_score(labels, origins) / np.log(2), abs=1e-9)


@given(shares=SHARES, schedule=st.sampled_from(["constant", "falling", "reals_last"]), step=st.integers(0, 99))
def test_every_class_is_drawn_equally_often_whatever_its_share(shares: list[float], schedule: str, step: int) -> None:
    policy = MixingPolicy("x", "default", tuple(shares), schedule=schedule)
    labels, factor = np.arange(len(shares)), policy.factor(step, 100)
    assert 0.0 <= factor <= 1.0
    made = policy.weights(labels, synthetic=True, factor=factor)
    real = policy.weights(labels, synthetic=False, factor=factor)
    if made is None or real is None:
        assert policy.is_even
        return
    n_synthetic = policy.share(labels) * factor
    n_real = 1.0 - n_synthetic
    for k in labels.tolist():
        drawn = n_real * real[k] / sum(real.values())
        drawn += n_synthetic * made[k] / sum(made.values()) if factor else 0.0
        assert drawn == pytest.approx(1.0 / len(shares), abs=1e-9)


@given(
    shares=st.lists(st.floats(0.0, 0.99), min_size=3, max_size=3).filter(any),
    pool=st.sampled_from(["default", "shared"]),
    transforms=st.sampled_from(["none", "mild", "classical"]),
    labels=st.sampled_from(["hard", "agreement"]),
    weight=st.floats(0.01, 1.0),
    at_most=st.none() | st.integers(1, 9),
    blend=st.sampled_from(["none", "mixup", "cutmix"]),
    alpha=st.floats(0.01, 100.0),
)
def test_a_record_reads_back(
    shares: list[float],
    pool: str,
    transforms: str,
    labels: str,
    weight: float,
    at_most: int | None,
    blend: BlendKind,
    alpha: float,
) -> None:
    policy = MixingPolicy("p", pool, tuple(shares), transforms, weight, labels, "falling", at_most, blend, alpha)
    assert read_policy(policy_record(policy, NAMES), NAMES) == policy


@given(labels=st.lists(st.integers(0, 3), max_size=40), at_most=st.integers(1, 12))
def test_at_most_so_many_of_each_class_are_used_and_they_are_the_first(labels: list[int], at_most: int) -> None:
    pool = np.array(labels, dtype=np.int64)
    used = MixingPolicy("p", "default", (0.25,) * 4, at_most=at_most).used(pool)
    assert np.all(np.diff(used) > 0)
    for label in range(4):
        own = [i for i, found in enumerate(labels) if found == label]
        assert [i for i in used.tolist() if labels[i] == label] == own[:at_most]
    assert MixingPolicy("p", "default", (0.25,) * 4).used(pool).tolist() == list(range(len(labels)))
