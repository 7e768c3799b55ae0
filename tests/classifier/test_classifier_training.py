"""Arms train on equal terms: same weights, same draws, priors by formula, and no read of what they may not see."""

import numpy as np
import pytest
import torch

from synthgen.classifier import training
from synthgen.classifier.arms import BEST_ARMS, CLASSICAL_ARMS, SYNTHETIC_ARMS, challenge_arm, classical_arm
from synthgen.classifier.networks import build_classifier, count_parameters
from synthgen.classifier.prediction import extract_features, predict_logits
from synthgen.classifier.training import RealImages, SyntheticImages, class_prior, plan_draws, train_classifier
from synthgen.config import ClassifierSection
from synthgen.dataset.transforms import TransformBank
from synthgen.errors import ConfigError, TrainingError

CPU = torch.device("cpu")
SECTION = ClassifierSection(width=8, steps=150, batch=16, lr=5e-3)


def _blobs(counts: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Class k: a bright square in corner k."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    images = rng.integers(0, 80, (len(labels), 8, 8, 1))
    for i, label in enumerate(labels):
        top, left = 4 * (label // 2), 4 * (label % 2)
        images[i, top : top + 4, left : left + 4] += 120
    return images.astype(np.uint8), labels.astype(np.int64)


def _reals(counts: tuple[int, ...] = (30, 20, 10, 5)) -> RealImages:
    images, labels = _blobs(counts)
    bank = TransformBank(np.repeat(images, 3, axis=0), np.arange(0, 3 * len(labels) + 1, 3))
    return RealImages(images, labels, np.arange(len(labels)), transforms=bank, mild=bank)


def _synthetic() -> SyntheticImages:
    return SyntheticImages(*_blobs((8, 8, 8, 8), seed=1))


def _train(name: str, seed: int = 0, section: ClassifierSection = SECTION) -> torch.nn.Module:
    arm = CLASSICAL_ARMS.get(name) or challenge_arm(name, classical_arm("classical"))
    return train_classifier(
        arm,
        _reals(),
        _synthetic(),
        section,
        n_classes=4,
        share=0.25,
        real_share=0.25,
        mix_alpha=0.3,
        seed=seed,
        device=CPU,
    )


@pytest.mark.parametrize("name", [*CLASSICAL_ARMS, *SYNTHETIC_ARMS, *BEST_ARMS])
def test_every_arm_learns_the_corner(name: str) -> None:
    images, labels = _blobs((20, 20, 20, 20), seed=2)
    predicted = predict_logits(_train(name), images, CPU).argmax(axis=1)
    assert np.mean(predicted == labels) > 0.9


def test_mixing_pairs_images_of_different_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    # a balanced batch is ordered by label, and torchvision mixes neighbours
    n_mixed: list[float] = []

    def spy(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        n_mixed.append((labels != labels.roll(1)).float().mean().item())
        return images, labels

    monkeypatch.setattr(training, "build_mixer", lambda *_: spy)
    _train("mixup", section=SECTION.model_copy(update={"steps": 40}))
    assert np.mean(n_mixed) > 0.65  # 4 equal classes in a batch of 16, shuffled: 0.8; ordered: 0.25


def test_the_same_seed_gives_the_same_logits() -> None:
    images, _ = _blobs((5, 5, 5, 5), seed=2)
    first, second = predict_logits(_train("mixup"), images, CPU), predict_logits(_train("mixup"), images, CPU)
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, predict_logits(_train("mixup", seed=1), images, CPU))


def test_all_arms_start_from_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    build = training.build_classifier

    def spy(*arguments: object) -> torch.nn.Module:
        network = build(*arguments)  # type: ignore[arg-type]
        seen.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
        return network

    monkeypatch.setattr(training, "build_classifier", spy)
    for name in ("real", "classical", "mixup", "control", "best+synthetic"):
        _train(name, section=SECTION.model_copy(update={"steps": 1}))
    assert all(torch.equal(seen[0], weights) for weights in seen)


def test_arms_with_the_same_sampling_draw_the_same_reals() -> None:
    draws = {
        name: plan_draws(CLASSICAL_ARMS[name], _reals(), None, SECTION, 0.25, 0.25, seed=3)[0]
        for name in ("balanced", "classical", "mixup")
    }
    np.testing.assert_array_equal(draws["balanced"].labels, draws["mixup"].labels)
    np.testing.assert_array_equal(draws["classical"].rows, draws["mixup"].rows)
    np.testing.assert_array_equal(draws["classical"].rows // 3, draws["balanced"].rows)


def test_the_synthetic_share_is_kept_in_every_batch_and_balanced_over_classes() -> None:
    arm = challenge_arm("best+synthetic", classical_arm("control"))
    reals, pool, synthetic = plan_draws(arm, _reals(), _synthetic(), SECTION, 0.25, 0.25, seed=3)
    assert (reals.rows.shape[1], pool.rows.shape[1], synthetic.rows.shape[1]) == (8, 4, 4)
    counts = np.bincount(synthetic.labels.ravel(), minlength=4) / synthetic.labels.size
    np.testing.assert_allclose(counts, 0.25, atol=0.08)


def test_origin_does_not_tell_the_label_in_a_balanced_arm() -> None:
    # every class has the same share of synthetic draws: knowing the origin says nothing about the label
    arm = challenge_arm("best+synthetic", classical_arm("classical"))
    section = SECTION.model_copy(update={"steps": 400})
    reals, synthetic = plan_draws(arm, _reals(), _synthetic(), section, 0.25, 0.0, seed=3)
    of_reals = np.bincount(reals.labels.ravel(), minlength=4) / reals.labels.size
    of_synthetic = np.bincount(synthetic.labels.ravel(), minlength=4) / synthetic.labels.size
    np.testing.assert_allclose(of_reals, of_synthetic, atol=0.03)


def test_an_empty_synthetic_pool_is_refused() -> None:
    empty = SyntheticImages(np.zeros((0, 8, 8, 1), np.uint8), np.zeros(0, np.int64))
    with pytest.raises(TrainingError, match=r"acceptance\.json"):
        plan_draws(SYNTHETIC_ARMS["synthetic"], _reals(), empty, SECTION, 0.25, 0.0, seed=0)


def test_prior_is_the_share_of_draws() -> None:
    np.testing.assert_allclose(class_prior(np.array([[0, 0, 1], [0, 2, 2]]), 3), [3 / 6, 1 / 6, 2 / 6])
    assert class_prior(np.array([[0]]), 2).min() > 0.0


def test_logit_adjusted_and_weighted_losses_are_their_formulas() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(6, 3, generator=generator), torch.tensor([0, 0, 0, 1, 2, 1])
    prior = torch.tensor([0.7, 0.2, 0.1])
    adjusted = training._loss(CLASSICAL_ARMS["logit_adjusted"], logits, targets, prior, 0.0)
    # Menon et al. 2021, eq. 10, tau = 1
    z = logits + prior.log()
    expected = (torch.logsumexp(z, dim=1) - z[torch.arange(6), targets]).mean()
    assert adjusted.item() == pytest.approx(expected.item(), rel=1e-6)
    weighted = training._loss(CLASSICAL_ARMS["weighted"], logits, targets, prior, 0.0)
    w = 1.0 / prior[targets]
    nll = torch.logsumexp(logits, dim=1) - logits[torch.arange(6), targets]
    assert weighted.item() == pytest.approx(((w * nll).sum() / w.sum()).item(), rel=1e-6)


def test_unknown_arms_and_networks_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="classical"):
        classical_arm("clasical")
    with pytest.raises(ConfigError, match="best"):
        challenge_arm("bestest", None)
    with pytest.raises(ConfigError, match="small_cnn"):
        build_classifier("resnet1800", 8, 1, 2, 8)
    with pytest.raises(ConfigError, match="timm"):
        build_classifier("timm:nothing_of_the_kind", 8, 1, 2, 8)


@pytest.mark.parametrize("name", ["vit_b_16", "alexnet"])
def test_networks_that_cannot_take_such_images_are_refused_before_training(name: str) -> None:
    with pytest.raises(ConfigError, match=f"classifier.network '{name}'"):
        build_classifier(name, 32, 3, 5, 8)


@pytest.mark.parametrize("name", ["small_cnn", "resnet18", "timm:resnet18"])
@pytest.mark.parametrize("channels", [1, 3])
def test_networks_by_name(name: str, channels: int) -> None:
    network = build_classifier(name, 32, channels, 5, 8).eval()
    assert network(torch.zeros(2, channels, 32, 32)).shape == (2, 5)
    assert count_parameters(network) > 1000


@pytest.mark.parametrize("size", [8, 16, 28, 32, 64, 128])
def test_small_cnn_takes_every_size_and_its_features_have_unit_length(size: int) -> None:
    network = build_classifier("small_cnn", size, 1, 3, 4).eval()
    images = np.random.default_rng(0).integers(0, 256, (3, size, size, 1), dtype=np.uint8)
    features = extract_features(network, images, CPU)  # type: ignore[arg-type]
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1.0, rtol=1e-4)
