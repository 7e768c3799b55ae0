"""Arms train on equal terms: same weights, same draws, priors by formula, and no read of what they may not see."""

import numpy as np
import pytest
import torch

from synthgen.classifier import training
from synthgen.classifier.arms import CLASSICAL_ARMS, PASTING, ArmSpec, challenge_arm, classical_arm, split_arm
from synthgen.classifier.draws import Draws, RealImages, SyntheticImages, build_targets, class_prior, plan_draws
from synthgen.classifier.losses import arm_loss
from synthgen.classifier.networks import build_classifier, count_parameters, last_layer
from synthgen.classifier.prediction import extract_features, predict_logits
from synthgen.classifier.pseudo_labels import PseudoLabelled
from synthgen.classifier.training import train_classifier
from synthgen.config import ClassifierSection
from synthgen.dataset.transforms import TransformBank
from synthgen.errors import ConfigError, TrainingError
from tests.classifier.conftest import mixing

CPU = torch.device("cpu")
SECTION = ClassifierSection(width=8, steps=150, batch=16, lr=5e-3)


POLICIES = {
    "synthetic": mixing(n_classes=4),
    "scarce_half": mixing(shares=(0.0, 0.0, 0.0, 0.5)),
    "falling": mixing(0.9, 4, schedule="falling"),
    "reals_last": mixing(n_classes=4, schedule="reals_last", labels="agreement", loss_weight=0.5),
}


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
    unlabelled, given = _blobs((6, 6, 6), seed=3)  # nobody was sure of an image of the last class
    pseudo = PseudoLabelled(np.arange(18), given, TransformBank(unlabelled, np.arange(19)))
    return RealImages(images, labels, np.arange(len(labels)), transforms=bank, mild=bank, pseudo=pseudo)


def _synthetic() -> SyntheticImages:
    return SyntheticImages(*_blobs((8, 8, 8, 8), seed=1), np.linspace(0.5, 1.0, 32, dtype=np.float32))


def _train(name: str, seed: int = 0, section: ClassifierSection = SECTION) -> torch.nn.Module:
    arm = CLASSICAL_ARMS.get(name) or challenge_arm(name, classical_arm("classical"), POLICIES[name.split("+")[1]])
    return train_classifier(
        arm,
        _reals(),
        _synthetic(),
        section,
        n_classes=4,
        real_share=0.25,
        mix_alpha=0.3,
        seed=seed,
        device=CPU,
    )


# Arms that paste get their composites ready-made: test_paste_arm.py trains them.
ALONE = [name for name, arm in CLASSICAL_ARMS.items() if arm.real_pool not in PASTING]


@pytest.mark.parametrize("name", [*ALONE, *(f"best+{policy}" for policy in POLICIES)])
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
    build = training.build_network

    def spy(*arguments: object) -> torch.nn.Module:
        network = build(*arguments)  # type: ignore[arg-type]
        seen.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
        return network

    monkeypatch.setattr(training, "build_network", spy)
    for name in ("real", "classical", "mixup", "control", "best+synthetic"):
        _train(name, section=SECTION.model_copy(update={"steps": 1}))
    assert all(torch.equal(seen[0], weights) for weights in seen)


def _draws(arm: ArmSpec, real_share: float = 0.0, **changed: int) -> Draws:
    section = SECTION.model_copy(update=changed)
    return plan_draws(arm, _reals(), _synthetic(), section, real_share, seed=3)


def _counts(draws: Draws, part: int) -> np.ndarray:
    """(4,) share of each label among the draws from one source."""
    found = np.bincount(draws.labels[draws.source == part], minlength=4)
    return found / found.sum()


def test_arms_with_the_same_sampling_draw_the_same_reals() -> None:
    draws = {name: _draws(CLASSICAL_ARMS[name], 0.25) for name in ("balanced", "classical", "mixup")}
    np.testing.assert_array_equal(draws["balanced"].labels, draws["mixup"].labels)
    np.testing.assert_array_equal(draws["classical"].rows, draws["mixup"].rows)
    np.testing.assert_array_equal(draws["classical"].rows // 3, draws["balanced"].rows)


def test_the_synthetic_share_is_kept_in_every_batch_and_balanced_over_classes() -> None:
    draws = _draws(challenge_arm("best+synthetic", classical_arm("control"), POLICIES["synthetic"]), 0.25)
    of_sources = [(draws.source == part).sum(axis=1) for part in range(3)]
    np.testing.assert_array_equal(of_sources, [[8] * 150, [4] * 150, [4] * 150])
    np.testing.assert_allclose(_counts(draws, 2), 0.25, atol=0.08)
    assert [part for part, _ in draws.rows_by_source(7)] == [0, 1, 2]
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in draws.rows_by_source(7)]), draws.rows[7])


def test_origin_does_not_tell_the_label_in_a_balanced_arm() -> None:
    # every class has the same share of synthetic draws: knowing the origin says nothing about the label
    draws = _draws(challenge_arm("best+synthetic", classical_arm("classical"), POLICIES["synthetic"]), steps=400)
    np.testing.assert_allclose(_counts(draws, 0), _counts(draws, 1), atol=0.03)


def test_shares_by_class_are_kept_and_every_class_is_drawn_equally_often() -> None:
    shares = np.array([0.1, 0.6, 0.0, 0.3])
    arm = challenge_arm("best+x", classical_arm("classical"), mixing(shares=tuple(shares)))
    draws = _draws(arm, steps=2000)
    np.testing.assert_allclose(np.bincount(draws.labels.ravel()) / draws.labels.size, 0.25, atol=0.01)
    of_class = [np.mean(draws.source[draws.labels == k]) for k in range(4)]
    np.testing.assert_allclose(of_class, shares, atol=0.02)


@pytest.mark.parametrize(("schedule", "mean"), [("constant", 0.5), ("falling", 0.25), ("reals_last", 0.4)])
def test_a_schedule_changes_the_share_over_a_training_and_the_length_of_no_batch(schedule: str, mean: float) -> None:
    arm = challenge_arm("best+x", classical_arm("classical"), mixing(0.5, 4, schedule=schedule))
    draws = _draws(arm, steps=200)
    n_synthetic = draws.source.sum(axis=1)
    assert draws.rows.shape == (200, 16)
    assert n_synthetic.mean() / 16 == pytest.approx(mean, abs=0.01)
    assert (np.diff(n_synthetic) <= 0).all()
    if schedule != "constant":
        assert n_synthetic[-1] == 0
    uneven = challenge_arm("best+y", classical_arm("classical"), mixing(shares=(0.9, 0.0, 0.5, 0.0), schedule=schedule))
    np.testing.assert_allclose(np.bincount(_draws(uneven, steps=500).labels.ravel()) / 8000, 0.25, atol=0.02)


def test_weights_and_sureness_stand_in_the_targets() -> None:
    arm = challenge_arm("best+x", classical_arm("classical"), mixing(n_classes=4, loss_weight=0.5, labels="agreement"))
    draws = _draws(arm)
    targets = build_targets(draws, 4)
    is_synthetic = draws.source == 1
    np.testing.assert_allclose(targets.sum(axis=2), np.where(is_synthetic, 0.5, 1.0), rtol=1e-6)
    own = np.take_along_axis(targets, draws.labels[..., None], axis=2)[..., 0]
    np.testing.assert_allclose(own[~is_synthetic], 1.0)
    np.testing.assert_allclose(own[is_synthetic], 0.5 * _synthetic().sureness[draws.rows[is_synthetic]], rtol=1e-6)
    plain = _draws(challenge_arm("best+y", classical_arm("classical"), POLICIES["synthetic"]))
    assert build_targets(plain, 4) is plain.labels


def test_a_retrained_head_is_fitted_on_frozen_features_with_balanced_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    section = SECTION.model_copy(update={"steps": 100})
    arm = CLASSICAL_ARMS["decoupled"]
    labels = plan_draws(arm, _reals(), None, section, 0.0, seed=3).labels
    natural, balanced = labels[:80], labels[80:]
    np.testing.assert_allclose(np.bincount(natural.ravel()) / natural.size, np.array([30, 20, 10, 5]) / 65, atol=0.02)
    np.testing.assert_allclose(np.bincount(balanced.ravel()) / balanced.size, 0.25, atol=0.01)

    kept: list[dict[str, torch.Tensor]] = []

    def spy(network: torch.nn.Module, n_classes: int) -> torch.nn.Linear:
        kept.append({name: value.clone() for name, value in network.state_dict().items()})
        return last_layer(network, n_classes)

    monkeypatch.setattr(training, "last_layer", spy)
    trained = _train("decoupled", section=section).state_dict()
    (before,) = kept
    moved = {name for name, value in trained.items() if not torch.equal(value, before[name])}
    assert moved == {"head.weight", "head.bias"}


def test_a_retrained_head_comes_near_the_best_linear_one_on_its_features() -> None:
    # at the features' rate a fresh head would hardly move in its fifth of the steps, and the arm would be a straw man
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score, log_loss

    network = _train("decoupled", section=SECTION.model_copy(update={"lr": 2e-3, "steps": 300}))
    reals = _reals()
    features = extract_features(network, reals.images, CPU)
    logits = torch.from_numpy(predict_logits(network, reals.images, CPU)).double()
    best = LogisticRegression(C=100.0, class_weight="balanced", max_iter=5000).fit(features, reals.labels)
    weights = 1.0 / np.bincount(reals.labels)[reals.labels]
    loss = log_loss(reals.labels, logits.softmax(dim=1).numpy(), sample_weight=weights)
    assert loss < log_loss(reals.labels, best.predict_proba(features), sample_weight=weights) + 0.1
    assert balanced_accuracy_score(reals.labels, logits.argmax(dim=1).numpy()) > 0.95


def test_a_network_without_a_linear_last_layer_cannot_be_decoupled() -> None:
    with pytest.raises(ConfigError, match="arm decoupled needs a network"):
        last_layer(build_classifier("squeezenet1_0", 64, 1, 5, 8), 5)
    assert last_layer(build_classifier("resnet18", 32, 1, 5, 8), 5).in_features == 512


def test_an_empty_synthetic_pool_is_refused() -> None:
    empty = SyntheticImages(np.zeros((0, 8, 8, 1), np.uint8), np.zeros(0, np.int64))
    arm = challenge_arm("balanced+synthetic", classical_arm("balanced"), POLICIES["synthetic"])
    with pytest.raises(TrainingError, match=r"acceptance\.json"):
        plan_draws(arm, _reals(), empty, SECTION, 0.0, seed=0)


def test_a_batch_without_a_real_image_is_refused() -> None:
    arm = challenge_arm("balanced+x", classical_arm("control"), mixing(0.7, 4))
    with pytest.raises(TrainingError, match=r"shares 0\.7 and 0\.3"):
        _draws(arm, 0.3)


def test_prior_is_the_share_of_draws() -> None:
    def prior(rows: list[list[int]], n: int, weights: list[list[float]] | None = None) -> np.ndarray:
        labels = np.array(rows)
        weighed = None if weights is None else np.array(weights, dtype=np.float32)
        return class_prior(Draws([], np.zeros_like(labels), labels, labels, weighed), n)

    np.testing.assert_allclose(prior([[0, 0, 1], [0, 2, 2]], 3), [3 / 6, 1 / 6, 2 / 6])
    np.testing.assert_allclose(prior([[0, 1], [0, 1]], 2, [[1.0, 0.5], [1.0, 0.5]]), [2 / 3, 1 / 3])
    assert prior([[0]], 2).min() > 0.0


def test_logit_adjusted_and_weighted_losses_are_their_formulas() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(6, 3, generator=generator), torch.tensor([0, 0, 0, 1, 2, 1])
    prior = torch.tensor([0.7, 0.2, 0.1])
    adjusted = arm_loss(CLASSICAL_ARMS["logit_adjusted"], logits, targets, prior, 0.0)
    # Menon et al. 2021, eq. 10, tau = 1
    z = logits + prior.log()
    expected = (torch.logsumexp(z, dim=1) - z[torch.arange(6), targets]).mean()
    assert adjusted.item() == pytest.approx(expected.item(), rel=1e-6)
    weighted = arm_loss(CLASSICAL_ARMS["weighted"], logits, targets, prior, 0.0)
    w = 1.0 / prior[targets]
    nll = torch.logsumexp(logits, dim=1) - logits[torch.arange(6), targets]
    assert weighted.item() == pytest.approx(((w * nll).sum() / w.sum()).item(), rel=1e-6)


def test_unknown_arms_and_networks_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="classical"):
        classical_arm("clasical")
    for name in ("bestest", "best+synthetik", "clasical+synthetic", "best", "best+synthetic+shared"):
        with pytest.raises(ConfigError, match="a policy one of shared, synthetic"):
            split_arm(name, ["synthetic", "shared"])
    assert split_arm("best+shared", ["shared"]) == ("best", "shared")
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
