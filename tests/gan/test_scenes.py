"""Scenes: what D sees, what G is given, and the penalties against plain formulas."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synthgen.config import TransformsSection
from synthgen.dataset.pasting import DefectBank, paste
from synthgen.errors import TrainingError
from synthgen.gan.diffaugment import jitter_reals
from synthgen.gan.scenes import (
    CompositePool,
    FreeScene,
    FreeWeights,
    LabelRows,
    MaskedScene,
    NoiseScene,
    RealTransforms,
    Scene,
    SuperResolutionScene,
    crop_around,
    crop_side,
    unit_range,
)

SECTION = TransformsSection()
STILL = RealTransforms(SECTION, 0.0, flip=False)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(n, side, channels=1, seed=0):
    return torch.randint(0, 256, (n, side, side, channels), generator=generator(seed), dtype=torch.uint8)


def masked_scene(side=32, channels=1, **options):
    """Four reals of labels 1 and 2, composites made by the real `paste`."""
    images = pictures(4, side, channels)
    masks = torch.zeros(4, side, side, dtype=torch.uint8)
    masks[:, 3:7, side - 9 : side - 5] = 255
    labels = torch.tensor([1, 1, 2, 2])
    bank = DefectBank(images.numpy(), masks.numpy() > 0, labels.numpy(), np.arange(4))
    wanted = np.array([1, 2] * 10)
    pasted = paste(pictures(20, side, channels, seed=9).numpy(), bank, wanted, np.random.default_rng(0))
    pool = CompositePool(torch.from_numpy(pasted.images), torch.from_numpy(pasted.masks), torch.from_numpy(wanted))
    return MaskedScene(images, masks, labels, pool, options.pop("transforms", STILL), **options)


def every_scene():
    images, labels = pictures(12, 32), torch.tensor([0] * 6 + [1] * 3 + [2] * 3)
    jitter = RealTransforms(SECTION, 1.0, flip=True)
    return [
        (NoiseScene(images, SECTION, 1.0, flip=True), 32),
        (masked_scene(transforms=jitter, keep_weight=2.0), 16),
        (FreeScene(images, labels, (0,), jitter, FreeWeights()), 32),
        (SuperResolutionScene(images, labels, 16, jitter), 32),
    ]


@pytest.mark.parametrize("which", range(4))
def test_every_scene_keeps_the_contract(which):
    scene, seen = every_scene()[which]
    protocol: Scene = scene
    rows, labels = torch.tensor([0, 1, 2, 3]), torch.tensor([1, 1, 2, 2])
    reals = protocol.reals(rows, generator())
    assert reals.shape == (4, 1, seen, seen) and reals.dtype == torch.float32
    assert reals.min() >= -1 and reals.max() <= 1
    content = protocol.content(labels, generator())
    again = protocol.content(labels, generator())
    assert all(torch.equal(a, b) for a, b in zip(content, again, strict=True))
    fakes = torch.zeros(4, 1, 32, 32, requires_grad=True)
    assert protocol.view(fakes, content).shape == reals.shape
    penalty = protocol.penalty(fakes, content)
    assert penalty.shape == () and penalty.isfinite()
    (protocol.view(fakes, content).sum() + penalty).backward()
    assert fakes.grad is not None and fakes.grad.abs().sum() > 0


def test_noise_scene_is_the_jitter_of_the_rows_bit_for_bit():
    images, rows = pictures(6, 28, 3), torch.tensor([5, 0, 0])
    plain = images[rows].permute(0, 3, 1, 2).float().div(127.5).sub(1.0)
    expected = jitter_reals(plain, SECTION, 0.5, generator(3), flip=True)
    source = generator(3)
    scene = NoiseScene(images, SECTION, 0.5, flip=True)
    assert torch.equal(scene.reals(rows, source), expected)
    state = source.get_state()
    assert scene.content(torch.tensor([0]), source) == ()
    assert torch.equal(source.get_state(), state)
    assert scene.view(expected, ()) is expected and scene.penalty(expected, ()) == 0


def test_rows_are_drawn_evenly_and_only_of_the_label():
    rows = LabelRows([torch.tensor([4, 7]), torch.tensor([], dtype=torch.int64), torch.tensor([1, 2, 9])])
    drawn = rows.draw(torch.tensor([0, 2]).repeat(3000), generator())
    assert set(drawn[::2].tolist()) == {4, 7} and set(drawn[1::2].tolist()) == {1, 2, 9}
    shares = torch.bincount(drawn[1::2])[[1, 2, 9]] / 3000
    assert torch.allclose(shares, torch.full((3,), 1 / 3), atol=0.04)  # four standard errors


@pytest.mark.parametrize("side, seen", [(28, 16), (32, 16), (64, 32), (128, 64)])
def test_crops_have_a_side_that_discriminators_are_made_for(side, seen):
    assert crop_side(side) == seen


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 31), st.integers(0, 31), st.integers(1, 8))
def test_a_crop_holds_the_middle_of_the_mask_and_is_the_plain_slice(y, x, size):
    masks = torch.zeros(1, 1, 32, 32)
    masks[0, 0, y : y + size, x : x + size] = 1.0
    coordinates = torch.stack(torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij"))[None]
    crop = crop_around(coordinates, masks, 16)
    top, left = int(crop[0, 0, 0, 0]), int(crop[0, 1, 0, 0])
    assert torch.equal(crop, coordinates[:, :, top : top + 16, left : left + 16])
    centre = masks[0, 0].nonzero().float().mean(0)
    assert top <= centre[0] <= top + 15 and left <= centre[1] <= left + 15
    if 8 <= centre[0] <= 23:
        assert abs(top + 7.5 - centre[0]) <= 1.0


def test_masked_reals_are_crops_around_their_own_mask():
    scene = masked_scene()
    crops = scene.reals(torch.tensor([0, 3]), generator())
    # the mask's centre is (4.5, 24.5): the crop is moved inside at the top, and reaches from 17 to 32
    top, left = 0, 16
    expected = unit_range(scene.images[[0, 3]])[:, :, top : top + 16, left : left + 16]
    assert torch.equal(crops, expected)


def test_masked_gradients_stay_inside_the_crop_and_background_far_from_the_mask_is_unseen():
    scene = masked_scene(side=64, channels=3)
    content = scene.content(torch.tensor([1, 2, 1]), generator())
    assert content[0].shape == (3, 3, 64, 64) and content[1].shape == (3, 1, 64, 64)
    assert content[1].min() >= 0 and content[1].max() == 1.0
    fakes = torch.zeros(3, 3, 64, 64, requires_grad=True)
    scene.view(fakes, content).sum().backward()
    assert (fakes.grad.sum((1, 2, 3)) == 3 * 32 * 32).all() and set(fakes.grad.unique().tolist()) == {0.0, 1.0}


def test_masked_penalty_is_the_mean_change_inside_the_mask():
    scene = masked_scene(keep_weight=3.0)
    content = scene.content(torch.tensor([1, 2]), generator())
    fakes = content[0] + 0.2 * content[1]
    expected = 3.0 * 0.2 * (content[1] ** 2).sum() / content[1].sum()
    assert torch.isclose(scene.penalty(fakes, content), expected)


def test_masked_scene_refuses_empty_masks_and_labels_without_composites():
    scene = masked_scene()
    empty = scene.masks.clone()
    empty[1] = 0
    with pytest.raises(TrainingError, match="1 of 4 images have an empty mask"):
        MaskedScene(scene.images, empty, torch.tensor([1, 1, 2, 2]), scene.pool, STILL)
    with pytest.raises(TrainingError, match=r"labels \[5\]"):
        MaskedScene(scene.images, scene.masks, torch.tensor([1, 1, 2, 5]), scene.pool, STILL)


def free_scene(share=0.5, transforms=STILL, source_labels=(0,)):
    """Every image of label k is of grey k."""
    labels = torch.tensor([0] * 5 + [1] * 3 + [2] * 2)
    images = labels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 28, 28, 1).contiguous()
    return FreeScene(images, labels, source_labels, transforms, FreeWeights(2.0, 3.0, share))


def test_free_sources_are_of_another_class_but_for_the_identity_rows():
    scene = free_scene(source_labels=(0, 1))
    labels = torch.tensor([1, 2]).repeat(400)
    source, same = scene.content(labels, generator())
    grey = source[:, 0, 0, 0].add(1.0).mul(127.5).round().long()
    assert torch.equal(grey[same], labels[same])
    assert (grey[~same & (labels == 1)] == 0).all()
    assert set(grey[~same & (labels == 2)].tolist()) == {0, 1}
    assert 0.4 < same.float().mean() < 0.6
    _, none = scene.for_sampling().content(labels, generator())
    assert not none.any() and scene.weights.identity_share == 0.5


def test_free_penalty_against_the_plain_formula():
    scene = free_scene()
    source = torch.rand(4, 3, 8, 8, generator=generator()) * 2 - 1
    fakes = torch.rand(4, 3, 8, 8, generator=generator(1)) * 2 - 1
    same = torch.tensor([True, False, False, True])
    total, identity = 0.0, 0.0
    for n in range(4):
        for y in range(8):
            for x in range(8):
                change = float((fakes[n, :, y, x] - source[n, :, y, x]).abs().sum()) / 3
                total += change / (change + 0.1) / 64
                identity += change / 64 if same[n] else 0.0
    expected = 2.0 * total / 4 + 3.0 * identity / 2
    assert float(scene.penalty(fakes, (source, same))) == pytest.approx(expected, rel=1e-5)
    assert float(scene.penalty(source, (source, same))) == 0.0
    assert float(scene.penalty(fakes, (source, torch.zeros(4, dtype=torch.bool)))) == pytest.approx(
        2.0 * total / 4, rel=1e-5
    )


def test_the_only_plentiful_class_is_made_from_all_others():
    source, _ = free_scene(share=0.0).content(torch.zeros(200, dtype=torch.int64), generator())
    assert set(source[:, 0, 0, 0].add(1.0).mul(127.5).round().long().tolist()) == {1, 2}


def test_free_scene_refuses_labels_without_a_source_and_a_wrong_share():
    with pytest.raises(TrainingError, match="label 0 is the only one"):
        FreeScene(pictures(4, 28), torch.zeros(4, dtype=torch.int64), (0,), STILL, FreeWeights())
    with pytest.raises(TrainingError, match=r"label 0 has no source image: source labels are \(7,\)"):
        free_scene(source_labels=(7,))
    with pytest.raises(TrainingError, match=r"identity_share 0\.7"):
        free_scene(share=0.7)


@pytest.mark.parametrize("side, low", [(64, 32), (128, 32), (28, 14)])
def test_super_resolution_content_is_the_mean_over_squares_of_reals_of_the_label(side, low):
    images, labels = pictures(4, side, 3), torch.tensor([0, 1, 2, 3])
    scene = SuperResolutionScene(images, labels, low, STILL, consistency=4.0)
    (small,) = scene.content(torch.tensor([2, 0]), generator())
    f = side // low
    blocks = unit_range(images[[2, 0]]).reshape(2, 3, low, f, low, f)  # (N, C, low, f, low, f)
    assert torch.allclose(small, blocks.mean((3, 5)), atol=1e-6)
    assert float(scene.penalty(unit_range(images[[2, 0]]), (small,))) == pytest.approx(0.0, abs=1e-6)
    off = scene.penalty(unit_range(images[[2, 0]]) + 0.25, (small,))
    assert float(off) == pytest.approx(4.0 * 0.25, rel=1e-5)
    with pytest.raises(TrainingError, match="does not divide"):
        SuperResolutionScene(images, labels, 31, STILL)
