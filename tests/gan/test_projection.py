"""Projection: images that a generator made are found again, the prior is the chi distribution, samples lie between."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from synthgen.config import GeneratorSection, ProjectionSection, SynthesizeSection
from synthgen.errors import ConfigError
from synthgen.gan.architectures.build import build_generator
from synthgen.gan.architectures.interface import Generator
from synthgen.gan.architectures.shape import GanShape
from synthgen.gan.interpolation import Anchors
from synthgen.gan.pixels import to_uint8
from synthgen.gan.projection import Projection, project_images, radial_prior
from synthgen.gan.sampling import sample_batch, sample_images
from synthgen.gan.selection import select_samples

CPU = torch.device("cpu")
FAST = ProjectionSection(steps=50, restarts=2)


def _generator(architecture: str = "resnet") -> Generator:
    section = GeneratorSection(architecture=architecture, latents=8, embedding=4, channels=8, max_channels=16)  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        generator = build_generator(GanShape.of(section, 8, 1, 2))
        for parameter in generator.parameters():  # untrained ones hardly answer to their latents
            parameter.data.mul_(1.5)
    return generator.eval().requires_grad_(False)


def _features(images: Tensor) -> Tensor:
    """Fixed: means of the quadrants, of norm 1."""
    pooled = torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1) + 2.0  # (N, 4)
    return torch.nn.functional.normalize(pooled, dim=1)


def _project(
    generator: Generator, images: np.ndarray, section: ProjectionSection = FAST, **keywords: float
) -> Projection:
    given = {"truncation": 1.0, "seed": 5, "device": CPU, **keywords}
    return project_images(generator, 1, images, _features, section, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("architecture", ["resnet", "dcgan", "style"])
def test_images_that_the_generator_made_are_found_again(architecture: str) -> None:
    generator = _generator(architecture)
    images = sample_batch(generator, 1, 77, batch=6, truncation=1.0, device=CPU).images
    found = _project(generator, images)
    assert found.latents.shape == (6, 8)
    assert found.pixel_error.mean() < 0.3 * found.random_pixel_error.mean()
    assert found.feature_distance.mean() < 0.3 * found.random_feature_distance.mean()
    # the errors are those of the images that these latents make
    made = to_uint8(generator(found.latents, torch.ones(6, dtype=torch.int64)))
    error = np.sqrt(np.square((made.astype(float) - images) / 255.0).mean(axis=(1, 2, 3)))
    np.testing.assert_allclose(found.pixel_error, error, rtol=1e-3, atol=1e-5)


def test_images_that_no_latent_makes_stand_out_by_their_error() -> None:
    generator = _generator()
    own = sample_batch(generator, 1, 77, batch=4, truncation=1.0, device=CPU).images
    noise = np.random.default_rng(0).integers(0, 256, own.shape).astype(np.uint8)
    assert _project(generator, noise).pixel_error.min() > 2.0 * _project(generator, own).pixel_error.max()


def test_the_same_seed_finds_the_same_and_nothing_global_or_given_is_moved() -> None:
    generator = _generator()
    images = sample_batch(generator, 1, 3, batch=3, truncation=1.0, device=CPU).images
    before, weights = torch.get_rng_state(), {k: v.clone() for k, v in generator.state_dict().items()}
    first, again = _project(generator, images), _project(generator, images)
    assert torch.equal(first.latents, again.latents)
    assert not torch.equal(first.latents, _project(generator, images, seed=6).latents)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(v, weights[k]) for k, v in generator.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in generator.parameters())


def test_many_images_are_worked_through_in_parts_and_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = _generator()
    images = sample_batch(generator, 1, 3, batch=5, truncation=1.0, device=CPU).images
    whole = _project(generator, images)
    monkeypatch.setattr("synthgen.gan.projection.AT_ONCE", 4)
    torch.testing.assert_close(_project(generator, images).latents, whole.latents, atol=5e-2, rtol=0.0)


@pytest.mark.parametrize("d", [1, 2, 48])
def test_the_prior_is_the_chi_distribution_of_the_length(d: int) -> None:
    latents = torch.randn(30, d, generator=torch.Generator().manual_seed(d)) * 1.7
    expected = -stats.chi(d).logpdf(latents.norm(dim=1).double().numpy()) / d
    found = radial_prior(latents).double().numpy()
    np.testing.assert_allclose(found - found[0], expected - expected[0], atol=1e-4)


def test_the_prior_keeps_latents_as_long_as_those_of_the_training() -> None:
    generator = _generator()
    noise = np.random.default_rng(0).integers(0, 2, (4, 8, 8, 1)).astype(np.uint8) * 255
    free, kept = (
        _project(generator, noise, FAST.model_copy(update={"prior_weight": weight})).latents.norm(dim=1) / 8**0.5
        for weight in (0.0, 1.0)
    )
    assert (kept - 1.0).abs().max() < (free - 1.0).abs().max()
    assert (kept - 1.0).abs().max() < 0.2


@pytest.mark.parametrize("architecture", ["translate_free", "translate_masked", "super_resolution"])
def test_generators_that_start_from_other_pictures_are_refused(architecture: str) -> None:
    side, section = (64 if architecture == "super_resolution" else 32), GeneratorSection(architecture=architecture)  # type: ignore[arg-type]
    generator = build_generator(GanShape.of(section, side, 1, 2))
    with pytest.raises(ConfigError, match=r"synthesize\.latents between_reals .* set synthesize\.latents normal"):
        _project(generator, np.zeros((1, side, side, 1), np.uint8))


# Samples


def _anchors(latents: Tensor, objects: list[int]) -> Anchors:
    sha256 = np.array([f"{i:064x}" for i in range(len(latents))])
    return Anchors(latents, np.array(objects, dtype=np.int64), sha256, jitter=0.0, neighbour=0.3)


def test_without_anchors_latents_are_the_normal_draw_of_the_seed() -> None:
    generator = _generator()
    z = torch.randn(16, 8, generator=torch.Generator().manual_seed(9))
    expected = to_uint8(generator(z, torch.ones(16, dtype=torch.int64)))
    made = sample_batch(generator, 1, 9, batch=16, truncation=1.0, device=CPU)
    np.testing.assert_array_equal(made.images, expected)
    assert made.sources is None


def test_two_reals_make_a_class_and_each_sample_can_be_made_again() -> None:
    generator = _generator()
    reals = sample_batch(generator, 1, 21, batch=2, truncation=1.0, device=CPU).images
    anchors = _anchors(_project(generator, reals).latents, [0, 1])
    discriminator = type("Blind", (), {"__call__": lambda *_: torch.zeros(16)})()
    given = {"batch": 16, "truncation": 1.0, "device": CPU, "anchors": anchors}
    sampled = sample_images(generator, discriminator, 1, 30, seed=2, **given)  # type: ignore[arg-type]
    assert sampled.sources is not None
    assert set(sampled.sources) == set(anchors.sha256)
    again = sample_batch(generator, 1, int(sampled.seeds[20]), **given)  # type: ignore[arg-type]
    np.testing.assert_array_equal(again.images[sampled.positions[20]], sampled.images[20])
    # a sample is more like the real that it names than like the other one
    distances = np.square(sampled.images[:, None].astype(float) - reals[None]).mean(axis=(2, 3, 4))  # (n, 2)
    named = np.array([int(sha, 16) for sha in sampled.sources])
    assert (distances.argmin(1) == named).mean() > 0.8
    assert len(np.unique(sampled.images.reshape(len(sampled.images), -1), axis=0)) > 20  # (n, H W C)


def test_samples_that_are_a_real_again_are_rejected_as_copies() -> None:
    generator = _generator()
    made = sample_batch(generator, 1, 21, batch=8, truncation=1.0, device=CPU).images
    z = torch.randn(8, 8, generator=torch.Generator().manual_seed(21))
    # two objects at one point: every weight gives that very image
    anchors = _anchors(z[[0, 0]], [0, 1])
    copies = sample_batch(generator, 1, 1, batch=16, truncation=1.0, device=CPU, anchors=anchors).images
    flat = [images.reshape(len(images), -1).astype(np.float32) for images in (copies, made)]  # (n, H W C)
    chosen = select_samples(flat[0], np.ones(16, np.float32), flat[1], 1.0, SynthesizeSection(), 16)
    assert chosen.rejected == {"teacher_disagrees": 0, "copies_a_real": 16}
    assert chosen.refused is not None
