"""Trainings in bfloat16: an arm learns what it learns in fp32, weights and predictions stay fp32."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from synthgen import device as device_module
from synthgen.classifier.arms import CLASSICAL_ARMS
from synthgen.classifier.draws import RealImages
from synthgen.classifier.job_cache import job_digests
from synthgen.classifier.job_records import TrainingContext, fold_jobs
from synthgen.classifier.networks import SmallCnn
from synthgen.classifier.prediction import predict_logits
from synthgen.classifier.together import Member, train_together
from synthgen.classifier.training import train_classifier
from synthgen.config import ClassifierSection
from synthgen.device import is_slow_at_bf16, warn_of_slow_bf16

CPU = torch.device("cpu")
SETTINGS = {"n_classes": 2, "real_share": 0.0, "mix_alpha": 0.3, "device": CPU}


def _halves(n: int, seed: int) -> RealImages:
    """Class 1 is bright on the left, class 0 on the right."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    images = rng.integers(0, 120, (n, 8, 8, 1))
    images[labels == 1, :, :4] += 100
    images[labels == 0, :, 4:] += 100
    return RealImages(images.astype(np.uint8), labels, np.arange(n))


def _trained(precision: str, arm: str, reals: RealImages) -> nn.Module:
    section = ClassifierSection(width=8, steps=60, batch=16, precision=precision)
    return train_classifier(CLASSICAL_ARMS[arm], reals, None, section, seed=0, **SETTINGS)


@pytest.mark.parametrize("arm", ["real", "mixup", "decoupled", "logit_adjusted"])
def test_a_training_in_bfloat16_learns_the_same_and_keeps_fp32_weights(arm: str) -> None:
    reals, unseen = _halves(40, 0), _halves(200, 1)
    logits = {}
    for precision in ("fp32", "bf16"):
        network = _trained(precision, arm, reals)
        assert all(value.dtype == torch.float32 for value in network.parameters())
        logits[precision] = predict_logits(network, unseen.images, CPU)
        assert logits[precision].dtype == np.float32
        assert np.mean(logits[precision].argmax(1) == unseen.labels) > 0.98
    assert not np.array_equal(logits["fp32"], logits["bf16"])  # the setting does something


def test_in_bfloat16_too_trainings_together_are_those_one_by_one() -> None:
    section = ClassifierSection(width=8, steps=12, batch=12, precision="bf16")
    arm = CLASSICAL_ARMS["real"]
    members = [Member(_halves(24, seed), None, seed) for seed in range(3)]
    shown = _halves(20, 9).images
    for member, network in zip(members, train_together(arm, members, section, **SETTINGS), strict=True):
        alone = train_classifier(arm, member.reals, None, section, seed=member.seed, **SETTINGS)
        # 8 bits of a number: a hundredth of what logits are
        np.testing.assert_allclose(
            predict_logits(network, shown, CPU), predict_logits(alone, shown, CPU), rtol=0.05, atol=0.05
        )


def test_a_finished_training_of_another_precision_is_not_taken(job_context: TrainingContext) -> None:
    jobs = fold_jobs(job_context.data, CLASSICAL_ARMS["real"], "f0", 1, crossfit=False)
    other = replace(job_context, section=job_context.section.model_copy(update={"precision": "bf16"}))
    assert not set(job_digests(jobs, job_context)) & set(job_digests(jobs, other))


def test_pooling_before_relu_changes_no_value_and_no_gradient() -> None:
    torch.manual_seed(0)
    network = SmallCnn(16, 1, 3, 4)
    as_usual = list(network.features)
    for k, layer in enumerate(network.features):
        if isinstance(layer, nn.MaxPool2d):
            as_usual[k : k + 2] = [network.features[k + 1], layer]  # ReLU, then pooling
    assert [type(layer) for layer in as_usual] != [type(layer) for layer in network.features]
    x = torch.randn(6, 1, 16, 16)
    found = []
    for features in (network.features, nn.Sequential(*as_usual)):
        network.zero_grad()
        out = network.head(features(x).mean(dim=(2, 3)))
        out.square().sum().backward()
        found.append([out, *(value.grad.clone() for value in network.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("known", "slow"),
    [
        ({"architecture": "x86_64", "avx512_bf16": True}, False),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True}, False),
        ({"architecture": "x86_64", "avx2": True}, True),
        ({"architecture": "aarch64"}, False),  # not told apart
    ],
    ids=str,
)
def test_a_cpu_that_emulates_bfloat16_is_said(
    known: dict[str, object], slow: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(device_module.torch.cpu, "get_capabilities", lambda: known)
    assert is_slow_at_bf16(CPU) is slow
    assert not is_slow_at_bf16(torch.device("cuda"))
    warn_of_slow_bf16(CPU)
    assert ("fp32 would be faster" in caplog.text) is slow
