"""Images of one object are found, and images that are merely alike are left apart."""

import io
import os
import re
import tarfile
from collections import Counter
from itertools import pairwise
from pathlib import Path

import imagehash
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter

from synthgen.config import GroupsSection
from synthgen.dataset.groups import find_groups, find_leaks, refuse_leaks
from synthgen.dataset.likeness import PairLikeness, Subset, all_features, all_likely_pairs, view_images
from synthgen.dataset.near_duplicates import hash_candidates, perceptual_hashes
from synthgen.dataset.prepared import pixel_sha256
from synthgen.errors import ConfigError, LeakError

REPOSITORY = Path(__file__).parents[2]


def bench_file(name):
    """A file of the real benchmark data, or a skip that says where it was looked for."""
    places = [
        Path(place)
        for place in (
            os.environ.get("SYNTHGEN_BENCH_DATA"),
            REPOSITORY.parent / "shared" / "data",
            REPOSITORY / ".bench-data",
        )
        if place
    ]
    for place in places:
        if (place / name).is_file():
            return place / name
    pytest.skip(f"{name} is in none of {', '.join(map(str, places))}; set SYNTHGEN_BENCH_DATA")


def group(images, class_names=None, sources=None, user_groups=None, **settings_):
    n = len(images)
    return find_groups(
        images,
        class_names=class_names or ["a"] * n,
        sources=sources or [f"a/{chr(97 + i % 26)}{chr(97 + i // 26)}.png" for i in range(n)],
        pixel_sha256=[pixel_sha256(image) for image in images],
        user_groups=user_groups or [None] * n,
        section=GroupsSection(**settings_),
    )


def scenes(n, size=32, seed=0, channels=1):
    """(n, size, size, channels) uint8 pictures of different things: smooth shapes with fine texture."""
    generator = np.random.default_rng(seed)
    noise = generator.normal(size=(n, size, size))
    smooth = gaussian_filter(noise, (0, size / 8, size / 8))
    fine = gaussian_filter(generator.normal(size=(n, size, size)), (0, 0.8, 0.8))
    picture = smooth / smooth.std() + 0.8 * fine / fine.std()
    grey = np.clip(128 + 35 * picture, 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], channels, axis=3)


def re_encode(image, quality):
    stream = io.BytesIO()
    Image.fromarray(image[:, :, 0]).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))[..., None]


def noisy(image, deviation):
    noise = np.random.default_rng(7).normal(0, deviation, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def moved(image, right):
    return np.pad(image, ((0, 0), (right, 0), (0, 0)), mode="edge")[:, : image.shape[1]]


CHANGES = {
    "copy": lambda image: image.copy(),
    "noise": lambda image: noisy(image, 4),
    "jpeg 90": lambda image: re_encode(image, 90),
    "jpeg 70": lambda image: re_encode(image, 70),
    "darker": lambda image: (image * 0.88).astype(np.uint8),
    "brighter": lambda image: np.clip(image * 1.1, 0, 255).astype(np.uint8),
    "moved": lambda image: moved(image, 1),
}


def partners(groups, first, second):
    return groups.ids[first] == groups.ids[second]


@pytest.mark.parametrize("size", [28, 32, 64])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_joins_its_original_and_nothing_else_does(size, change):
    images = scenes(60, size)
    planted = np.stack([CHANGES[change](images[i]) for i in (3, 40)])
    groups = group(np.concatenate([images, planted]))
    assert partners(groups, 3, 60)
    assert partners(groups, 40, 61)
    assert len(set(groups.ids)) == 60


def real_digits():
    from sklearn.datasets import load_digits

    data = load_digits()
    images = (data.images * 255 / 16).astype(np.uint8)[..., None]
    return images, [str(label) for label in data.target], [f"digits/{i:04d}" for i in range(len(images))]


@pytest.mark.parametrize("change", ["copy", "noise", "jpeg 90", "darker"])
def test_a_changed_copy_is_found_among_real_digits(change):
    images, names, sources = real_digits()
    planted = np.stack([CHANGES[change](images[i]) for i in range(0, 100, 10)])
    groups = group(
        np.concatenate([images, planted]), names + names[0:100:10], sources + [f"digits/x{i}" for i in range(10)]
    )
    found = sum(partners(groups, row, len(images) + k) for k, row in enumerate(range(0, 100, 10)))
    assert found >= 9


def test_digits_that_are_alike_by_nature_stay_apart():
    images, names, sources = real_digits()
    groups = group(images, names, sources)
    assert len(set(groups.ids)) >= 0.99 * len(images)
    assert groups.settings == {"id_gap": None, "correlation": None, "near_ids": None}


@pytest.mark.parametrize("size", [28, 32])
def test_handwritten_digits_of_mnist_stay_apart(size):
    with np.load(bench_file("mnist.npz")) as data:
        rows = np.random.default_rng(0).permutation(len(data["x_train"]))[:1000]
        images, labels = data["x_train"][rows], data["y_train"][rows]
    if size != 28:
        images = np.stack([np.asarray(Image.fromarray(image).resize((size, size))) for image in images])
    groups = group(images[..., None], [str(label) for label in labels], [f"x_train/{row}" for row in rows])
    assert len(set(groups.ids)) >= 0.99 * len(images)
    assert groups.settings == {"id_gap": None, "correlation": None, "near_ids": None}


def tiles(size):
    images, names, sources = [], [], []
    with tarfile.open(bench_file("magnetic-tile.tar")) as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            if member.isfile() and member.name.endswith(".jpg"):
                picture = Image.open(io.BytesIO(archive.extractfile(member).read())).convert("L")
                images.append(np.asarray(picture.resize((size, size), Image.Resampling.BOX))[..., None])
                names.append(Path(member.name).parent.name)
                sources.append(f"{names[-1]}/{Path(member.name).name}")
    return np.stack(images), names, sources


@pytest.mark.parametrize("size", [32, pytest.param(64, marks=pytest.mark.slow)])
def test_no_magnetic_tile_is_torn_apart(size):
    images, names, sources = tiles(size)
    groups = group(images, names, sources)
    # The oracle: photographs of one tile were numbered in a row, whatever their folder.
    numbers = [int(re.search(r"num_(\d+)", source).group(1)) for source in sources]
    order = np.argsort(numbers)
    for left, right in pairwise(order.tolist()):
        if numbers[right] - numbers[left] <= 100:
            assert groups.ids[left] == groups.ids[right], (sources[left], sources[right])
    # 201 tiles were counted by hand-tuned thresholds; a few more joined is the safe side.
    per_class = {name: len({g for g, n in zip(groups.ids, names, strict=True) if n == name}) for name in set(names)}
    expected = {"blowhole": 20, "break": 16, "crack": 9, "fray": 7, "free": 147, "uneven": 17}
    assert 197 <= len(set(groups.ids)) <= 203
    assert {name: abs(per_class[name] - n) <= max(1, n // 40) for name, n in expected.items()} == dict.fromkeys(
        expected, True
    )
    assert max(Counter(groups.ids).values()) <= 24
    assert groups.warnings == []


def shoot(n_objects, per_object, noise, seed=0):
    """Photographs of flat things in other light: (images, numbers in a row with a wide gap between objects)."""
    generator = np.random.default_rng(seed)
    images, numbers, number = [], [], 1000
    for scene in scenes(n_objects, 32, seed).astype(np.float64):
        number += int(generator.integers(1000, 9000))
        for _ in range(per_object):
            number += int(generator.integers(5, 40))
            light = np.linspace(-1, 1, 32)[None, :, None] * generator.uniform(-60, 60)
            shot = scene * generator.uniform(0.5, 0.9) + 30 + light + generator.normal(0, noise, scene.shape)
            images.append(np.clip(shot, 0, 255).astype(np.uint8))
            numbers.append(number)
    return np.stack(images), numbers


def test_runs_of_ids_are_believed_only_where_the_pixels_agree():
    images, numbers = shoot(30, 4, noise=14)
    true = group(images, sources=[f"a/exp_{number}.png" for number in numbers], correlation="off")
    assert 20 <= true.settings["id_gap"] <= 40
    assert [true.ids[i] == true.ids[i + 1] for i in range(119)] == [(i + 1) % 4 != 0 for i in range(119)]
    shuffled = np.random.default_rng(1).permutation(len(images))
    false = group(images[shuffled], sources=[f"a/exp_{number}.png" for number in numbers], correlation="off")
    assert false.settings["id_gap"] is None
    assert false.n_links["id_runs"] == 0


def test_correlation_finds_one_object_in_other_light_without_names():
    images, _ = shoot(40, 3, noise=5)
    groups = group(images, sources=[f"a/{sha}.png" for sha in "abcdefghij" * 12])
    assert groups.settings["correlation"] >= 0.75
    assert all(count <= 3 for count in Counter(groups.ids).values())
    assert len(set(groups.ids)) <= 60
    off = group(images, correlation="off", id_gap="off")
    assert off.n_links["correlation"] == off.n_links["id_runs"] == 0


def test_a_film_that_would_swallow_a_class_is_cut_with_a_warning():
    generator = np.random.default_rng(0)
    drift = gaussian_filter(generator.normal(size=(240, 32, 32)), (2, 1, 1))
    film = np.clip(128 + 40 * drift / drift.std(), 0, 255).astype(np.uint8)[..., None]
    groups = group(film, sources=[f"a/frame_{i:05d}.png" for i in range(240)])
    assert max(Counter(groups.ids).values()) <= 60
    assert any("auto would put" in warning and "'a'" in warning for warning in groups.warnings)


def test_the_users_own_statements_count():
    images = scenes(6)
    by_column = group(images, user_groups=["x", "x", None, "y", None, "y"])
    assert partners(by_column, 0, 1)
    assert partners(by_column, 3, 5)
    assert len(set(by_column.ids)) == 4
    by_name = group(images, sources=[f"c{i % 2}/p{i // 3}_{i}.png" for i in range(6)], id_pattern=r"^(p\d)_")
    assert [by_name.ids[0] == by_name.ids[i] for i in range(6)] == [True] * 3 + [False] * 3
    by_gap = group(images, sources=[f"n{number}.png" for number in (1, 2, 3, 50, 51, 90)], id_gap=1)
    assert len(set(by_gap.ids)) == 3


@pytest.mark.parametrize(("pattern", "says"), [("(", "not a regular expression"), ("abc", "no capture group")])
def test_a_useless_name_pattern_is_refused(pattern, says):
    with pytest.raises(ConfigError, match=says):
        group(scenes(2), id_pattern=pattern)


def test_group_ids_are_the_smallest_digest_and_do_not_depend_on_order():
    images = np.concatenate([scenes(10), scenes(10)[:4]])
    groups = group(images)
    digests = [pixel_sha256(image) for image in images]
    assert groups.ids == [digest[:16] for digest in digests]
    back = group(images[::-1].copy(), sources=[f"a/{i}x.png" for i in range(14)][::-1])
    assert back.ids == groups.ids[::-1]


@pytest.mark.parametrize("change", CHANGES)
def test_a_pre_split_set_with_a_leak_is_refused_naming_the_pair(change):
    images = np.concatenate([scenes(30), CHANGES[change](scenes(30)[4])[None]])
    sources = [f"train/a/{chr(97 + i)}.png" for i in range(26)] + [f"test/a/{c}.png" for c in "abcde"]
    splits = ["train"] * 26 + ["test"] * 5
    leaks = find_leaks(group(images, sources=sources).ids, splits, sources)
    assert leaks == [(4, 30)]
    with pytest.raises(LeakError, match=r"train/a/e\.png \(train\) ~ test/a/e\.png \(test\).*leaks to quarantine"):
        refuse_leaks(leaks, splits, sources)


def test_leaks_name_at_most_ten_pairs_and_rank_the_sides():
    groups = ["g"] * 3 + ["h"] * 2
    splits = ["train", "val", "test", "train", "train"]
    assert find_leaks(groups, splits, list("abcde")) == [(0, 2), (1, 2)]
    refuse_leaks([], splits, list("abcde"))
    with pytest.raises(LeakError, match=r"12 images .*; and 2 more"):
        refuse_leaks([(0, 2)] * 12, splits, list("abcde"))


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (28, 1), (32, 3), (64, 1)])
def test_perceptual_hashes_equal_those_of_imagehash(size, channels):
    images = scenes(12, size, channels=channels)
    expected = [int(str(imagehash.phash(Image.fromarray(image.squeeze()))), 16) for image in images]
    assert perceptual_hashes(images).tolist() == expected


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=12), st.integers(0, 8), st.integers(0, 2**32))
def test_banding_finds_exactly_the_pairs_within_the_bits(bases, n_bits, seed):
    generator = np.random.default_rng(seed)
    hashes = []
    for base in bases:
        flipped = base
        for bit in generator.permutation(64)[: generator.integers(0, n_bits + 3)]:
            flipped ^= 1 << int(bit)
        hashes += [base, flipped]
    found = [tuple(pair) for pairs in hash_candidates(np.asarray(hashes, np.uint64), n_bits) for pair in pairs.tolist()]
    expected = {
        (i, j)
        for i in range(len(hashes))
        for j in range(i + 1, len(hashes))
        if (hashes[i] ^ hashes[j]).bit_count() <= n_bits
    }
    assert len(found) == len(set(found))
    assert set(found) == expected


def test_likeness_is_the_best_correlation_over_shifts_both_ways_of_computing():
    images = scenes(20)
    features = view_images(images, "detail", 32)
    margin = 2  # 4 pixels at a side of 64
    inner = slice(margin, 32 - margin)
    expected = np.full((20, 20), -1.0)
    for i in range(20):
        for j in range(i + 1, 20):
            for down in range(-margin, margin + 1):
                for right in range(-margin, margin + 1):
                    window = features[i, margin + down : 30 + down, margin + right : 30 + right]
                    value = np.corrcoef(window.ravel(), features[j, inner, inner].ravel())[0, 1]
                    expected[i, j] = max(expected[i, j], value)
    pairs = np.argwhere(np.triu(np.ones((20, 20)), 1))
    scored = PairLikeness(images, "detail", 32, 4).score(pairs)
    np.testing.assert_allclose(scored.scores, expected[pairs[:, 0], pairs[:, 1]], atol=1e-5)
    swept = all_likely_pairs(all_features(images, "detail", 32), 4, -1.0, None)
    np.testing.assert_array_equal(swept.pairs, pairs)
    np.testing.assert_allclose(swept.scores, scored.scores, atol=1e-5)


def test_empty_pictures_are_like_none_and_a_subset_reads_its_rows():
    images = np.concatenate([np.full((3, 32, 32, 1), 200, np.uint8), scenes(3)])
    swept = all_likely_pairs(all_features(images, "grey", 32), 4, 0.5, None)
    assert len(swept.pairs) == 0
    subset = Subset(images, np.asarray([5, 3]))
    assert subset.shape == (2, 32, 32, 1)
    np.testing.assert_array_equal(subset[np.asarray([1])], images[[3]])
    np.testing.assert_array_equal(subset[0:2], images[[5, 3]])
