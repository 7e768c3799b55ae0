"""A policy that blends: partners of all classes alike, labels by share, and everything else drawn as without it."""

import numpy as np
import pytest
import torch

from synthgen.classifier.arms import CLASSICAL_ARMS, ArmSpec, challenge_arm, describe
from synthgen.classifier.draws import Draws, RealImages, SyntheticImages, build_targets, class_prior, plan_draws
from synthgen.classifier.networks import to_input
from synthgen.config import ClassifierSection
from synthgen.dataset.transforms import TransformBank
from tests.classifier.conftest import mixing

SECTION = ClassifierSection(steps=400, batch=48)
N_CLASSES = 3
KINDS = ["mixup", "cutmix"]


def _sources(n: int = 33, n_made: int = 30) -> tuple[RealImages, SyntheticImages]:
    """Reals are 0 everywhere, variants of them their label x 10 + 1, synthetic images 255."""
    labels = np.arange(n) % N_CLASSES
    images = np.zeros((n, 6, 6, 1), np.uint8)
    shown = np.repeat(labels, 2).astype(np.uint8)[:, None, None, None] * 10 + 1
    bank = TransformBank(np.ascontiguousarray(np.broadcast_to(shown, (2 * n, 6, 6, 1))), np.arange(0, 2 * n + 1, 2))
    made = SyntheticImages(
        np.full((n_made, 6, 6, 1), 255, np.uint8),
        np.arange(n_made) % N_CLASSES,
        np.linspace(0.5, 1.0, n_made, dtype=np.float32),
    )
    return RealImages(images, labels, np.arange(n), transforms=bank, mild=bank), made


def _draws(base: str, **policy: object) -> tuple[ArmSpec, Draws]:
    arm = challenge_arm("best+x", CLASSICAL_ARMS[base], mixing(**policy))
    return arm, plan_draws(arm, *_sources(), SECTION, 0.25, seed=5)


@pytest.mark.parametrize("base", ["classical", "real", "control", "mixed"])
@pytest.mark.parametrize("kind", KINDS)
def test_all_but_the_partners_is_drawn_as_without_a_blend(base: str, kind: str) -> None:
    _, plain = _draws(base)
    _, blended = _draws(base, blend=kind)
    assert plain.partners is None
    assert blended.partners is not None
    for field in ("source", "rows", "labels"):
        np.testing.assert_array_equal(getattr(plain, field), getattr(blended, field))
    _, again = _draws(base, blend=kind)
    assert again.partners is not None
    np.testing.assert_array_equal(again.partners.rows, blended.partners.rows)
    np.testing.assert_array_equal(again.partners.blend.boxes, blended.partners.blend.boxes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", ["constant", "falling"])
def test_real_images_stay_as_they_are_and_synthetic_ones_meet_reals_as_the_arm_shows_them(
    kind: str, schedule: str
) -> None:
    arm, draws = _draws("classical", blend=kind, schedule=schedule, share=0.5)
    assert draws.partners is not None
    is_synthetic = draws.source == 1
    assert not draws.partners.blend.shares[~is_synthetic].any()
    targets = build_targets(draws, N_CLASSES)
    np.testing.assert_allclose(targets.sum(axis=2), 1.0, rtol=1e-5)
    for step in (0, 7, 399):
        images = torch.cat(
            [to_input(torch.from_numpy(draws.sources[k][rows])) for k, rows in draws.rows_by_source(step)]
        )
        shown = draws.partners.blended(images, torch.from_numpy(draws.sources[0]), step)
        assert torch.equal(shown[~is_synthetic[step]], images[~is_synthetic[step]])
        # a synthetic image is 255, its partner the value of its label: the mean tells the share
        share = draws.partners.blend.shares[step]
        value = (1.0 - share) * 255.0 + share * (draws.partners.labels[step] * 10.0 + 1.0)
        found = (shown.mean(dim=(1, 2, 3)).numpy() + 1.0) * 127.5
        np.testing.assert_allclose(found[is_synthetic[step]], value[is_synthetic[step]], atol=1e-3)
        own = np.eye(N_CLASSES)[draws.labels[step]] * (1.0 - share)[:, None]
        own += np.eye(N_CLASSES)[draws.partners.labels[step]] * share[:, None]
        np.testing.assert_allclose(targets[step], own, atol=1e-6)
    assert describe(arm.mixing).endswith(f"by {'MixUp' if kind == 'mixup' else 'CutMix'}")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shares", [(0.25,) * 3, (0.6, 0.1, 0.2)])
def test_soft_labels_are_balanced_and_origin_tells_as_much_about_them_as_without_a_blend(
    kind: str, shares: tuple[float, ...]
) -> None:
    arm, draws = _draws("classical", blend=kind, shares=shares)
    assert arm.mixing is not None
    targets = build_targets(draws, N_CLASSES).astype(np.float64)
    np.testing.assert_allclose(targets.mean(axis=(0, 1)), 1 / 3, atol=0.01)
    np.testing.assert_allclose(class_prior(draws, N_CLASSES), targets.sum(axis=(0, 1)) / targets.sum(), rtol=1e-5)
    # (2, n_classes): how much of each label there is among real and among synthetic draws
    joint = np.stack([targets[draws.source == origin].sum(axis=0) for origin in (0, 1)]) / targets.sum()
    alone = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0)
    bits = float((joint * np.log2(joint / alone)).sum())
    assert bits == pytest.approx(arm.mixing.dependence(), abs=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_a_partner_is_of_any_class_whatever_the_label_it_meets(kind: str) -> None:
    _, draws = _draws("classical", blend=kind)
    assert draws.partners is not None
    is_synthetic = draws.source == 1
    met = np.zeros((N_CLASSES, N_CLASSES))
    np.add.at(met, (draws.labels[is_synthetic], draws.partners.labels[is_synthetic]), 1)
    np.testing.assert_allclose(met / met.sum(), 1 / 9, atol=0.015)


def test_weights_and_sureness_are_blended_with_the_label() -> None:
    _, draws = _draws("classical", blend="mixup", loss_weight=0.5, labels="agreement")
    assert draws.partners is not None
    assert draws.weights is not None
    share = draws.partners.blend.shares
    targets = build_targets(draws, N_CLASSES)
    np.testing.assert_allclose(targets.sum(axis=2), (1.0 - share) * draws.weights + share, rtol=1e-5)
    np.testing.assert_allclose(class_prior(draws, N_CLASSES), 1 / 3, atol=0.01)
