"""A blend is what the papers say: pixels by weight or by area, labels by the same share."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, kstest

from synthgen.dataset.blending import Blend, blend_images, blend_rows, draw_blend

SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))


def _blended(images: torch.Tensor, partners: torch.Tensor, blend: Blend) -> torch.Tensor:
    return blend_images(images, partners, torch.from_numpy(blend.weights), torch.from_numpy(blend.boxes))


@settings(deadline=None)  # torch's first call is slow
@given(
    kind=st.sampled_from(["none", "mixup", "cutmix"]),
    alpha=st.floats(1e-3, 100.0),
    n=st.integers(0, 12),
    size=SIZES,
    seed=st.integers(0, 2**32),
)
def test_the_mean_of_a_blend_of_black_and_white_is_the_share_of_the_label(
    kind: str, alpha: float, n: int, size: tuple[int, int], seed: int
) -> None:
    found = draw_blend(kind, alpha, n, size, np.random.default_rng(seed))
    assert (found.weights.shape, found.boxes.shape, found.shares.shape) == ((n,), (n, 4), (n,))
    assert ((found.shares >= 0.0) & (found.shares <= 1.0)).all()
    shown = _blended(torch.zeros(n, 3, *size), torch.ones(n, 3, *size), found)
    torch.testing.assert_close(shown.mean(dim=(1, 2, 3)), torch.from_numpy(found.shares), rtol=1e-5, atol=1e-6)
    if kind == "mixup":
        assert (shown == torch.from_numpy(found.weights)[:, None, None, None]).all()
    else:
        assert ((shown == 0.0) | (shown == 1.0)).all()
        assert kind != "none" or not shown.any()


def test_pixels_are_those_of_one_image_inside_the_box_and_of_the_other_outside() -> None:
    rng = np.random.default_rng(0)
    images, partners = (torch.from_numpy(rng.normal(size=(50, 2, 9, 7)).astype(np.float32)) for _ in range(2))
    found = draw_blend("cutmix", 1.0, 50, (9, 7), rng)
    expected = images.clone()
    for i, (top, bottom, left, right) in enumerate(found.boxes.tolist()):
        expected[i, :, top:bottom, left:right] = partners[i, :, top:bottom, left:right]
        assert found.shares[i] == pytest.approx((bottom - top) * (right - left) / 63)
    assert torch.equal(_blended(images, partners, found), expected)
    weights = draw_blend("mixup", 0.4, 50, (9, 7), rng)
    w = torch.from_numpy(weights.weights)[:, None, None, None]
    torch.testing.assert_close(_blended(images, partners, weights), (1 - w) * images + w * partners)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_images_of_any_precision_keep_it(kind: str, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(2)
    images, partners = (torch.from_numpy(rng.uniform(-1.0, 1.0, size=(20, 1, 6, 5))).to(dtype) for _ in range(2))
    found = draw_blend(kind, 1.0, 20, (6, 5), rng)
    shown = _blended(images, partners, found)
    assert shown.dtype == dtype
    in_float32 = _blended(images.float(), partners.float(), found)
    atol = 4 * torch.finfo(dtype).eps if dtype != torch.float64 else 1e-6
    torch.testing.assert_close(shown.float(), in_float32, rtol=0.0, atol=atol)


def test_shares_follow_the_beta_distribution_of_the_papers() -> None:
    rng = np.random.default_rng(1)
    assert kstest(draw_blend("mixup", 0.3, 4000, (8, 8), rng).shares, beta(0.3, 0.3).cdf).pvalue > 0.01
    boxes = draw_blend("cutmix", 1.0, 4000, (1000, 1000), rng)
    top, bottom, left, right = boxes.boxes.T
    uncut = (top > 0) & (bottom < 1000) & (left > 0) & (right < 1000)
    assert np.abs((bottom - top - (right - left))[uncut]).max() <= 1  # square, but for rounding
    # a box of side s is uncut where its centre lies in the middle (1 - s)^2: P(share <= a, uncut) is an integral
    area = np.linspace(0.0, 1.0, 100_001)
    density = (1.0 - np.sqrt(area)) ** 2
    cdf = np.cumsum(density) / density.sum()
    assert kstest(boxes.shares[uncut], lambda a: np.interp(a, area, cdf)).pvalue > 0.01
    assert uncut.mean() == pytest.approx(density.mean(), abs=0.03)


@given(
    n_classes=st.integers(2, 6),
    rows=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.floats(0, 1), st.floats(0.01, 1)), max_size=9),
)
def test_targets_are_the_weighted_mean_of_both_rows(n_classes: int, rows: list[tuple[int, int, float, float]]) -> None:
    eye = np.eye(n_classes, dtype=np.float32)
    own, other = (np.array([row[k] % n_classes for row in rows], dtype=np.int64) for k in (0, 1))
    shares, weights = (np.array([row[k] for row in rows], dtype=np.float32) for k in (2, 3))
    before = eye[own] * weights[:, None]
    found = blend_rows(before, other, shares)
    np.testing.assert_allclose(found, (1 - shares)[:, None] * before + shares[:, None] * eye[other], atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), (1 - shares) * weights + shares, rtol=1e-5)
    np.testing.assert_array_equal(before, eye[own] * weights[:, None])
