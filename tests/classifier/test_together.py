"""K trainings as one program give what they give one by one, and a device without memory goes on in halves."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from synthgen.classifier import jobs, together
from synthgen.classifier.arms import CLASSICAL_ARMS, ArmSpec, challenge_arm
from synthgen.classifier.draws import RealImages, SyntheticImages
from synthgen.classifier.job_records import TrainingContext
from synthgen.classifier.losses import stacked_loss
from synthgen.classifier.networks import SmallCnn
from synthgen.classifier.prediction import predict_logits
from synthgen.classifier.together import Member, StackedCnn, bytes_of_one, train_together
from synthgen.classifier.training import train_classifier
from synthgen.config import ClassifierSection
from synthgen.dataset.transforms import TransformBank
from synthgen.errors import TrainingError
from tests.classifier.conftest import mixing

CPU = torch.device("cpu")
SECTION = ClassifierSection(width=6, steps=12, batch=12, lr=3e-3, label_smoothing=0.05)
N_CLASSES = 3


def _member(seed: int, n: int) -> Member:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, 8, 8, 1), dtype=np.uint8)
    bank = TransformBank(rng.integers(0, 256, (2 * n, 8, 8, 1), dtype=np.uint8), np.arange(0, 2 * n + 1, 2))
    labels = np.arange(n) % N_CLASSES
    made = rng.integers(0, 256, (9, 8, 8, 1), dtype=np.uint8)
    pool = SyntheticImages(made, np.arange(9) % N_CLASSES, rng.random(9, dtype=np.float32))
    return Member(RealImages(images, labels, np.arange(n), transforms=bank, mild=bank), pool, seed)


def _arms() -> list[ArmSpec]:
    chosen = [CLASSICAL_ARMS[name] for name in ("real", "weighted", "logit_adjusted", "mixup", "cutmix", "mixed")]
    odd = replace(CLASSICAL_ARMS["weighted"], name="weighted+mixed", mix="either")
    policies = {
        "synthetic": mixing(),
        "falling": mixing(0.4, schedule="falling"),
        "light": mixing(loss_weight=0.3, labels="agreement"),
        "uneven": mixing(shares=(0.5, 0.0, 0.1), loss_weight=0.5),
        "blended": mixing(0.4, blend="mixup", schedule="falling", loss_weight=0.5, labels="agreement"),
        "boxes": mixing(0.4, blend="cutmix"),
        "boxes_twice": mixing(0.4, blend="cutmix"),
    }
    bases = {"synthetic": "duplicate", "falling": "mixup", "light": "mixed", "uneven": "weighted"}
    bases |= {"blended": "logit_adjusted", "boxes": "control", "boxes_twice": "cutmix"}
    made = [challenge_arm(f"best+{name}", CLASSICAL_ARMS[bases[name]], policy) for name, policy in policies.items()]
    return [*chosen, CLASSICAL_ARMS["control"], *made, odd]


@pytest.mark.parametrize("arm", _arms(), ids=lambda arm: arm.name)
def test_trainings_together_are_those_one_by_one(arm: ArmSpec) -> None:
    members = [_member(seed, 20 + seed) for seed in range(3)]
    settings = {"n_classes": N_CLASSES, "real_share": 0.25, "mix_alpha": 0.4, "device": CPU}
    shown = np.random.default_rng(9).integers(0, 256, (20, 8, 8, 1), dtype=np.uint8)
    before = torch.get_rng_state()
    networks = train_together(arm, members, SECTION, **settings)
    assert torch.equal(before, torch.get_rng_state())
    for member, network in zip(members, networks, strict=True):
        alone = train_classifier(arm, member.reals, member.synthetic, SECTION, seed=member.seed, **settings)
        np.testing.assert_allclose(
            predict_logits(network, shown, CPU), predict_logits(alone, shown, CPU), rtol=2e-3, atol=2e-3
        )
        for name, value in alone.named_buffers():
            if value.is_floating_point():
                torch.testing.assert_close(network.get_buffer(name), value, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("changed", [{"blend": "mixup"}, {"loss_weight": 0.5}], ids=str)
def test_a_member_without_a_class_that_has_synthetic_images_trains_beside_others(changed: dict[str, object]) -> None:
    arm = challenge_arm("best+x", CLASSICAL_ARMS["balanced"], mixing(shares=(0.5, 0.0, 0.0), **changed))
    members = [_member(0, 21), _member(1, 21)]
    reals = members[1].reals
    kept = np.flatnonzero(reals.labels != 0)
    members[1] = replace(
        members[1],
        reals=replace(reals, images=reals.images[kept], labels=reals.labels[kept], bank_rows=reals.bank_rows[kept]),
    )
    settings = {"n_classes": N_CLASSES, "real_share": 0.0, "mix_alpha": 0.4, "device": CPU}
    for member, network in zip(members, train_together(arm, members, SECTION, **settings), strict=True):
        alone = train_classifier(arm, member.reals, member.synthetic, SECTION, seed=member.seed, **settings)
        np.testing.assert_allclose(
            predict_logits(network, reals.images, CPU), predict_logits(alone, reals.images, CPU), rtol=2e-3, atol=2e-3
        )


def test_a_member_draws_the_same_from_images_that_hold_more() -> None:
    member = _member(0, 21)
    more = np.concatenate([member.reals.images[::-1], member.reals.images])
    wide = replace(member, reals=replace(member.reals, images=more, image_rows=np.arange(21, 42)))
    settings = {"n_classes": N_CLASSES, "real_share": 0.0, "mix_alpha": 1.0, "device": CPU}
    one, other = (train_together(CLASSICAL_ARMS["real"], [m], SECTION, **settings)[0] for m in (member, wide))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", ["real", "weighted", "logit_adjusted"])
@pytest.mark.parametrize("mixed", [False, True])
def test_the_stacked_loss_is_torchs_of_each(name: str, mixed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 7, N_CLASSES, generator=generator)
    prior = torch.rand(4, N_CLASSES, generator=generator).softmax(dim=1)
    targets = torch.randint(0, N_CLASSES, (4, 7), generator=generator)
    if mixed:
        targets = torch.rand(4, 7, N_CLASSES, generator=generator).softmax(dim=2)
    arm = CLASSICAL_ARMS[name]
    found = stacked_loss(arm, logits, targets, prior, 0.1)
    for k in range(4):
        shifted = logits[k] + prior[k].log() if name == "logit_adjusted" else logits[k]
        weight = 1.0 / (prior[k] * N_CLASSES) if name == "weighted" else None
        expected = functional.cross_entropy(shifted, targets[k], weight=weight, label_smoothing=0.1)
        assert found[k].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["real", "logit_adjusted"])
def test_a_target_of_half_the_sum_counts_half(name: str) -> None:
    # the weighted mean of each image's own cross-entropy, written plainly
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(1, 5, N_CLASSES, generator=generator)
    targets = torch.rand(1, 5, N_CLASSES, generator=generator).softmax(dim=2)
    weights = torch.tensor([1.0, 0.5, 1.0, 0.25, 1.0])
    prior = torch.tensor([[0.5, 0.3, 0.2]])
    found = stacked_loss(CLASSICAL_ARMS[name], logits, targets * weights[None, :, None], prior, 0.1)
    shifted = logits[0] + prior[0].log() if name == "logit_adjusted" else logits[0]
    each = functional.cross_entropy(shifted, targets[0], label_smoothing=0.1, reduction="none")
    assert found.item() == pytest.approx(((each * weights).sum() / weights.sum()).item(), rel=1e-5)


def test_stacking_keeps_every_network_and_hands_it_back() -> None:
    networks = [SmallCnn(16, 3, 5, 4).train() for _ in range(3)]
    images = torch.randn(6, 3, 3, 16, 16)  # (N, K, C, H, W)
    stacked = StackedCnn(networks).train()
    logits = stacked(images.flatten(1, 2))
    for k, network in enumerate(networks):
        torch.testing.assert_close(logits[k], network(images[:, k]), rtol=1e-4, atol=1e-5)
    others = [SmallCnn(16, 3, 5, 4) for _ in range(3)]
    stacked.copy_to(others)
    for network, other in zip(networks, others, strict=True):
        torch.testing.assert_close(dict(other.state_dict()), dict(network.state_dict()))


def test_a_loss_that_is_not_finite_is_refused() -> None:
    section = SECTION.model_copy(update={"lr": 1e30, "steps": 30})
    with pytest.raises(TrainingError, match=r"2 trainings; lower classifier\.lr"):
        train_together(
            CLASSICAL_ARMS["real"],
            [_member(0, 12), _member(1, 12)],
            section,
            n_classes=N_CLASSES,
            real_share=0.0,
            mix_alpha=1.0,
            device=CPU,
        )


def test_memory_is_estimated_from_the_widths() -> None:
    small, large = (bytes_of_one(SECTION.model_copy(update={"batch": batch}), 32, 1) for batch in (12, 24))
    assert large == 2 * small
    assert bytes_of_one(SECTION, 64, 1) > 3 * small


def test_out_of_memory_halves_the_group_and_goes_on(
    job_context: TrainingContext, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    todo = jobs.fold_jobs(job_context.data, CLASSICAL_ARMS["real"], "f0", 5, crossfit=False)
    expected = jobs.run_jobs(todo, job_context, n_workers=1, description="alone")
    sizes: list[int] = []

    def scarce(arm: ArmSpec, members: list[Member], *rest: object, **settings: object) -> list[SmallCnn]:
        sizes.append(len(members))
        if len(members) > 2:
            raise torch.OutOfMemoryError("injected")
        return train_together(arm, members, *rest, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(jobs, "pays_together", lambda *_: True)
    monkeypatch.setattr(jobs, "train_together", scarce)
    with caplog.at_level(logging.WARNING):
        found = jobs.run_jobs(todo, job_context, n_workers=1, description="together")
    assert sizes == [5, 3, 2, 2, 1]
    assert "going on with 3" in caplog.text
    assert "going on with 2" in caplog.text
    np.testing.assert_array_equal(found.repeats, expected.repeats)
    np.testing.assert_allclose(found.logits, expected.logits, rtol=2e-3, atol=2e-3)


def test_too_little_memory_for_one_training_is_an_error_with_a_remedy(
    job_context: TrainingContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> list[SmallCnn]:
        raise torch.OutOfMemoryError("injected")

    monkeypatch.setattr(jobs, "pays_together", lambda *_: True)
    monkeypatch.setattr(jobs, "train_together", never)
    todo = jobs.fold_jobs(job_context.data, CLASSICAL_ARMS["real"], "f0", 2, crossfit=False)
    with pytest.raises(TrainingError, match=r"lower classifier\.batch"):
        jobs.run_jobs(todo, job_context, n_workers=1, description="together")


def test_only_the_small_network_on_cuda_pays() -> None:
    assert together.pays_together("small_cnn", torch.device("cuda"))
    assert not together.pays_together("resnet18", torch.device("cuda"))
    assert not together.pays_together("small_cnn", CPU)
