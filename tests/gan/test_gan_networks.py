"""Shapes for every size, and the within-class standard deviation against numpy."""

import numpy as np
import pytest
import torch

from synthgen.config import GeneratorSection
from synthgen.gan.losses import gradient_penalty
from synthgen.gan.networks import Discriminator, GanShape, Generator, within_class_std


@pytest.mark.parametrize("size", [8, 16, 28, 32, 64, 128])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_size_and_channel_count_goes_through_both_networks(size: int, channels: int) -> None:
    shape = GanShape.of(GeneratorSection(channels=8, max_channels=32), size, channels, 3)
    labels = torch.tensor([0, 0, 1, 2])
    images = Generator(shape)(torch.randn(4, shape.latents), labels)
    assert images.shape == (4, channels, size, size)
    assert images.abs().max() <= 1.0
    assert Discriminator(shape)(images, labels).shape == (4,)


def test_channels_of_the_published_recipe_at_28_px() -> None:
    # EXPERIMENTS.md, recipe rp: G 64 at 7 px, 32, 16; D 16, 32, 64
    shape = GanShape.of(GeneratorSection(), 28, 1, 10)
    assert (shape.seed_size, shape.n_halvings) == (7, 2)
    assert [shape.channels_at(k) for k in (2, 1, 0)] == [64, 32, 16]


def test_within_class_std_is_numpys_per_label() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(9, 4, 3, 3)).astype(np.float32)
    labels = np.array([0, 0, 0, 2, 2, 2, 2, 1, 0])
    found = within_class_std(torch.from_numpy(x), torch.from_numpy(labels), 3).numpy()
    assert found.shape == (9, 1, 3, 3)
    for label in (0, 2):
        expected = x[labels == label].reshape((labels == label).sum(), -1).std(axis=0).mean()
        np.testing.assert_allclose(found[labels == label], expected, rtol=1e-4)
    assert found[labels == 1].max() < 1e-3  # one image has no spread


def test_collapse_within_a_class_is_visible_to_the_discriminator() -> None:
    same = torch.ones(6, 4, 3, 3)
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    mixed = same.clone()
    mixed[3:] = -1.0  # classes differ, but inside each class all images are equal
    assert within_class_std(mixed, labels, 2).max() < 1e-3


def test_std_gradient_is_finite_for_a_class_that_occurs_once() -> None:
    x = torch.randn(3, 2, 2, 2, requires_grad=True)
    within_class_std(x, torch.tensor([0, 1, 1]), 2).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_reals_and_fakes_in_one_batch_get_the_logits_and_penalties_of_two() -> None:
    torch.manual_seed(0)
    shape = GanShape.of(GeneratorSection(channels=8, max_channels=16), 8, 1, 3)
    network = Discriminator(shape)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    reals, fakes = torch.randn(6, 1, 8, 8, requires_grad=True), torch.randn(6, 1, 8, 8, requires_grad=True)
    apart = [network(reals, labels), network(fakes, labels)]
    penalties = torch.cat([gradient_penalty(logits, x) for logits, x in zip(apart, (reals, fakes), strict=True)])
    both = torch.cat([reals, fakes]).detach().requires_grad_()
    together = network(both, labels.repeat(2), torch.arange(12) >= 6)
    torch.testing.assert_close(together, torch.cat(apart), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient_penalty(together, both), penalties, rtol=1e-4, atol=1e-6)
