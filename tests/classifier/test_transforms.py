"""Rendered variants: all different, the same again from the cache, and each policy keeps the shape."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthgen.config import TransformsSection
from synthgen.dataset.transforms import POLICIES, Policy, TransformBank, build_transform, render_bank
from synthgen.errors import ConfigError

SECTION = TransformsSection()


def _image(channels: int = 1, size: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (size, size, channels), dtype=np.uint8)


def _bank(cache: Path, policy: Policy = "classical", n_variants: int = 40, seed: int = 0) -> TransformBank:
    images = np.stack([_image(), 255 - _image()])
    counts = np.array([n_variants, n_variants])
    return render_bank(images, ["a", "b"], counts, policy, SECTION, seed=seed, cache=cache)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("channels", [1, 3])
def test_policies_keep_shape_and_type_and_repeat_with_their_seed(policy: Policy, channels: int) -> None:
    transform = build_transform(policy, SECTION)
    image = _image(channels)
    out = transform(image, 5)
    assert out.shape == image.shape
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(transform(image, 5), out)


def test_all_draws_differ(tmp_path: Path) -> None:
    # the trap: albumentations in DataLoader workers repeats its draws in every worker and epoch
    bank = _bank(tmp_path)
    assert len({variant.tobytes() for variant in bank.images}) == len(bank.images) == 80


def test_the_second_rendering_comes_from_the_cache_and_is_equal(tmp_path: Path) -> None:
    first = np.array(_bank(tmp_path).images)
    (stored,) = tmp_path.iterdir()
    before = stored.stat().st_mtime_ns
    np.testing.assert_array_equal(_bank(tmp_path).images, first)
    assert stored.stat().st_mtime_ns == before
    assert not np.array_equal(_bank(tmp_path, seed=1).images, first)


def test_pieces_rendered_side_by_side_are_the_same(tmp_path: Path) -> None:
    images = np.stack([_image(), 255 - _image(), _image() // 2])
    arguments = (images, ["a", "b", "c"], np.array([3, 4, 5]), "mild", SECTION)
    alone = render_bank(*arguments, seed=0, cache=tmp_path / "alone")  # type: ignore[arg-type]
    with ThreadPoolExecutor(1) as executor:
        pieces = render_bank(*arguments, seed=0, cache=tmp_path / "pieces", executor=executor, n_chunks=3)  # type: ignore[arg-type]
    np.testing.assert_array_equal(alone.images, pieces.images)
    np.testing.assert_array_equal(alone.starts, [0, 3, 7, 12])


@given(drawn=st.lists(st.integers(0, 3), max_size=60), offset=st.integers(0, 9))
def test_no_variant_is_drawn_twice_before_all_were(drawn: list[int], offset: int) -> None:
    counts = np.array([1, 2, 5, 9])
    bank = TransformBank(np.zeros((17, 1, 1, 1), np.uint8), np.concatenate([[0], np.cumsum(counts)]))
    rows = bank.variants(np.array(drawn, dtype=np.int64), np.full(4, offset) % counts)
    for image in range(4):
        own = rows[np.array(drawn, dtype=np.int64) == image]
        assert ((own >= bank.starts[image]) & (own < bank.starts[image + 1])).all()
        uses = np.bincount(own - bank.starts[image], minlength=counts[image]) if len(own) else np.zeros(counts[image])
        assert uses.max() - uses.min() <= 1


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ConfigError, match="trivialaugment"):
        build_transform("autoaugment", SECTION)  # type: ignore[arg-type]


def test_mild_moves_pixels_less_than_classical() -> None:
    section = TransformsSection(brightness=0.0)
    ramp = np.tile(np.arange(0, 256, 8, dtype=np.uint8)[None, :, None], (32, 1, 1))
    change = {
        policy: np.mean(
            [np.abs(build_transform(policy, section)(ramp, s).astype(int) - ramp).mean() for s in range(60)]
        )
        for policy in ("classical", "mild")
    }
    assert change["mild"] < 0.75 * change["classical"]


@pytest.mark.parametrize(("policy", "factor"), [("mild", 0.5), ("classical", 1.0), ("strong", 1.6), ("strongest", 2.4)])
def test_amplitudes_follow_the_strength_of_the_policy(policy: Policy, factor: float) -> None:
    # nothing but shifts: how far a dot in the middle goes
    section = TransformsSection(rotate=0.0, scale=0.0, shift=0.2, shear=0.0, brightness=0.0)
    transform = build_transform(policy, section)
    image = np.zeros((41, 41, 1), np.uint8)
    image[20, 20] = 255
    spots = [np.array(np.unravel_index(transform(image, seed)[..., 0].argmax(), (41, 41))) for seed in range(150)]
    furthest = np.abs(np.array(spots) - 20).max()
    assert 0.85 * factor * 0.2 * 41 <= furthest <= factor * 0.2 * 41 + 1


def test_the_largest_amplitudes_stay_possible_when_strengthened() -> None:
    section = TransformsSection(rotate=180.0, scale=0.9, shift=0.9, shear=45.0, brightness=1.0)
    for policy in ("strong", "strongest"):
        assert build_transform(policy, section)(_image(), 1).shape == (16, 16, 1)
