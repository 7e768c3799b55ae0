"""Folds stay where they are: what is known never moves, what is new is spread evenly."""

import hashlib
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthgen.config import ScarcitySection
from synthgen.dataset.folds import KnownImage, assign_folds, format_folds, read_folds
from synthgen.dataset.prepared import PreparedData
from synthgen.dataset.scarcity import DROPPED, simulate_scarcity
from synthgen.errors import ConfigError, LeakError, PlanError


def sha(name):
    return hashlib.sha256(str(name).encode()).hexdigest()


def table(sizes_by_class):
    """Rows (group, class, sha256) for `{class: [group sizes]}`."""
    rows = []
    for name, sizes in sizes_by_class.items():
        for number, size in enumerate(sizes):
            members = [sha((name, number, k)) for k in range(size)]
            rows += [(min(members)[:16], name, member) for member in members]
    return rows


def assign(rows, n_folds=5, previous=None, seed=0):
    groups, strata, digests = ([row[i] for row in rows] for i in range(3))
    return assign_folds(groups, strata, digests, n_folds=n_folds, previous=previous or {}, seed=seed)


tables = st.dictionaries(
    st.sampled_from("abcd"), st.lists(st.integers(1, 4), min_size=1, max_size=14), min_size=1, max_size=4
).map(table)


@settings(max_examples=30, deadline=None)
@given(tables, st.integers(2, 7), st.integers(0, 3))
def test_a_fresh_assignment_is_stratified_and_spans_no_group(rows, n_folds, seed):
    folds = assign(rows, n_folds, seed=seed)
    assert folds.min() >= 0
    assert folds.max() < n_folds
    fold_of = defaultdict(set)
    for (group, _, _), fold in zip(rows, folds, strict=True):
        fold_of[group].add(int(fold))
    assert all(len(found) == 1 for found in fold_of.values())
    for name in {row[1] for row in rows}:
        counts = Counter(next(iter(fold_of[group])) for group in {row[0] for row in rows if row[1] == name})
        per_fold = [counts[fold] for fold in range(n_folds)]
        assert max(per_fold) - min(per_fold) <= 1


@settings(max_examples=30, deadline=None)
@given(tables, st.data())
def test_adding_an_image_moves_no_other_image(rows, data):
    before = {row[2]: int(fold) for row, fold in zip(rows, assign(rows), strict=True)}
    new = sha("new")
    host = data.draw(st.one_of(st.none(), st.sampled_from(rows)))
    group, name = (new[:16], "a") if host is None else host[:2]
    place = data.draw(st.integers(0, len(rows)))
    # A new image may be the smallest of its group and so rename it.
    added = [(min(group, new[:16]) if row[0] == group else row[0], *row[1:]) for row in rows]
    added.insert(place, (min(group, new[:16]), name, new))
    after = {row[2]: int(fold) for row, fold in zip(added, assign(added, previous=before), strict=True)}
    assert {digest: after[digest] for digest in before} == before
    if host is not None:
        assert after[new] == before[host[2]]


@settings(max_examples=30, deadline=None)
@given(tables, st.randoms())
def test_the_order_of_rows_says_nothing(rows, random):
    shuffled = list(rows)
    random.shuffle(shuffled)
    one = {row[2]: int(fold) for row, fold in zip(rows, assign(rows), strict=True)}
    other = {row[2]: int(fold) for row, fold in zip(shuffled, assign(shuffled), strict=True)}
    assert one == other


def test_a_new_image_that_joins_two_folds_is_refused_by_name():
    rows = [("g", "a", sha(1)), ("g", "a", sha(2)), ("g", "a", sha(3))]
    with pytest.raises(LeakError, match=r"new image bridge\.png .*f0: one\.png; f1: two\.png.*--reassign"):
        assign_folds(
            *(list(column) for column in zip(*rows, strict=True)),
            n_folds=3,
            previous={sha(1): 0, sha(2): 1},
            seed=0,
            sources=["one.png", "two.png", "bridge.png"],
        )


def test_known_images_whose_grouping_changed_are_refused():
    with pytest.raises(LeakError, match="grouping has changed"):
        assign([("g", "a", sha(1)), ("g", "a", sha(2))], previous={sha(1): 0, sha(2): 1})


def test_a_known_fold_beyond_the_number_of_folds_is_refused():
    with pytest.raises(PlanError, match=r"fold 4, but plan\.folds is 3"):
        assign([("g", "a", sha(1))], n_folds=3, previous={sha(1): 4})


def test_folds_csv_comes_back_sorted(tmp_path):
    known = {sha(n): KnownImage(n % 3, "surplus" if n % 2 else "pool") for n in range(20)}
    path = tmp_path / "folds.csv"
    path.write_text(format_folds(known), encoding="utf-8")
    assert read_folds(path) == known
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[1:] == sorted(lines[1:])
    assert read_folds(tmp_path / "absent.csv") == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1"),
        ("a,b\n", "line 1"),
        ("pixel_sha256,fold,role\nabc,1,pool\n", "line 2"),
        (f"pixel_sha256,fold,role\n{sha(1)},-1,pool\n", "line 2"),
        (f"pixel_sha256,fold,role\n{sha(1)},1\n", "line 2"),
        (f"pixel_sha256,fold,role\n{sha(1)},1,test\n", "line 2"),
        (f"pixel_sha256,fold,role\n{sha(1)},99999,pool\n", "line 2"),
        (f"pixel_sha256,fold,role\n{sha(1)},1,pool\n{sha(1)},2,pool\n", "repeats"),
    ],
)
def test_a_damaged_folds_csv_names_the_line(tmp_path, text, says):
    path = tmp_path / "folds.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PlanError, match=says):
        read_folds(path)


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=200))
def test_no_folds_csv_breaks_anything_but_the_plan(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("folds") / "folds.csv"
    path.write_bytes(content)
    with pytest.raises(PlanError):
        read_folds(path)


def scarce_roles(rows, keep, previous=None, surplus="test"):
    section = ScarcitySection(keep=keep, surplus=surplus)
    groups, names, digests = ([row[i] for row in rows] for i in range(3))
    return simulate_scarcity(section, names, groups, digests, previous or {})


@settings(max_examples=30, deadline=None)
@given(tables, st.integers(1, 12))
def test_simulated_scarcity_keeps_whole_groups_and_as_many_as_fit(rows, n_keep):
    name = rows[0][1]
    roles = scarce_roles(rows, {name: n_keep})
    kept = [row for row, role in zip(rows, roles, strict=True) if role == "pool" and row[1] == name]
    sizes = Counter(row[0] for row in rows if row[1] == name)
    assert all(role == "pool" for row, role in zip(rows, roles, strict=True) if row[1] != name)
    assert Counter(row[0] for row in kept) == {group: sizes[group] for group in {row[0] for row in kept}}
    assert kept
    if len(kept) <= n_keep:
        left_out = [size for group, size in sizes.items() if group not in {row[0] for row in kept}]
        assert all(len(kept) + size > n_keep for size in left_out)
    else:
        assert min(sizes.values()) > n_keep


@settings(max_examples=30, deadline=None)
@given(tables, st.integers(1, 12), st.data())
def test_a_new_image_takes_no_other_image_out_of_the_pool(rows, n_keep, data):
    name = rows[0][1]
    before = {row[2]: role for row, role in zip(rows, scarce_roles(rows, {name: n_keep}), strict=True)}
    host = data.draw(st.one_of(st.none(), st.sampled_from([row for row in rows if row[1] == name])))
    new = sha("new")
    added = [*rows, (new[:16] if host is None else host[0], name, new)]
    once = {row[2]: r for row, r in zip(added, scarce_roles(added, {name: n_keep}, before), strict=True)}
    twice = {row[2]: r for row, r in zip(added, scarce_roles(added, {name: n_keep}, once), strict=True)}
    assert {digest: once[digest] for digest in before} == before
    assert twice == once


def test_surplus_may_be_dropped_and_an_unknown_class_names_the_nearest():
    rows = table({"three": [1] * 10, "eight": [1] * 10})
    assert Counter(scarce_roles(rows, {"three": 4}, surplus="drop")) == {"pool": 14, DROPPED: 6}
    with pytest.raises(ConfigError, match="did you mean 'three'"):
        scarce_roles(rows, {"thre": 4})


def prepared(roles, folds, groups, *, frozen=False, n_folds=4):
    n = len(roles)
    return PreparedData(
        images=np.zeros((n, 8, 8, 1), np.uint8),
        labels=np.zeros(n, np.int64),
        groups=np.asarray(groups),
        sha256=np.asarray([sha(i) for i in range(n)]),
        folds=np.asarray(folds, np.int64),
        roles=np.asarray(roles),
        slugs=["a"],
        class_names=["a"],
        n_folds=n_folds,
        frozen=frozen,
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["pool", "surplus"]), st.integers(0, 3)), min_size=1, max_size=40))
def test_the_parts_of_a_fold_share_no_group_and_every_row_is_tested_once(drawn):
    data = prepared([role for role, _ in drawn], [fold for _, fold in drawn], [str(fold) for _, fold in drawn])
    tested = []
    for fold in ("f0", "f1", "f2", "f3"):
        split = data.split(fold)
        sides = [set(data.groups[rows].tolist()) for rows in (split.train, split.val, split.test)]
        assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
        assert set(data.roles[split.train].tolist()) <= {"pool"}
        assert split.train.tolist() == sorted(split.train.tolist(), key=lambda row: data.sha256[row])
        tested += split.test.tolist()
        for train, held_out in data.crossfit(fold):
            assert not set(train.tolist()) & set(held_out.tolist())
            assert not (set(train.tolist()) | set(held_out.tolist())) & set(split.test.tolist())
    assert sorted(tested) == list(range(len(drawn)))
    final = data.split("final")
    assert sorted(final.train.tolist()) == np.flatnonzero(data.roles == "pool").tolist()
    assert len(final.val) == len(final.test) == 0


@pytest.mark.parametrize("own_val", [True, False])
def test_a_frozen_test_set_is_tested_in_every_fold(own_val):
    roles = ["pool"] * 8 + ["test"] * 3 + (["val"] * 2 if own_val else [])
    data = prepared(roles, [i % 4 for i in range(8)] + [-1] * (len(roles) - 8), range(len(roles)), frozen=True)
    for j in range(4):
        split = data.split(f"f{j}")
        assert set(split.test.tolist()) == {8, 9, 10}
        assert set(split.val.tolist()) == ({11, 12} if own_val else {j, j + 4})
        assert not set(split.train.tolist()) & (set(split.val.tolist()) | set(split.test.tolist()))
