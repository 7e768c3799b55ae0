"""Training, checkpoint and sampling: repeatable, learning, and refusing what is not finite."""

from pathlib import Path

import numpy as np
import pytest
import torch

from synthgen.config import GeneratorSection, PretrainSection, TransformsSection
from synthgen.errors import ArtifactError, TrainingError
from synthgen.gan import training
from synthgen.gan.checkpoint import TrainedGan, generator_digest, load_gan, save_gan
from synthgen.gan.networks import GanShape
from synthgen.gan.sampling import sample_batch, sample_images
from synthgen.gan.training import GanRun, to_uint8, to_unit_range, train_gan

CPU = torch.device("cpu")
SHAPE = GanShape.of(GeneratorSection(latents=8, embedding=4, channels=8, max_channels=16), 8, 1, 2)
SECTION = PretrainSection(batch=16, tick_kimg=0.16)


def _bars(n: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Class 0: bright upper half; class 1: bright lower half."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 2
    images = rng.integers(0, 60, (n, 8, 8, 1))
    images[labels == 0, :4] += 180
    images[labels == 1, 4:] += 180
    return images.astype(np.uint8), labels.astype(np.int64)


def _train(kimg: float = 0.48, seed: int = 1, **keywords: object) -> GanRun:
    images, labels = _bars()
    return train_gan(images, labels, SHAPE, SECTION, TransformsSection(), kimg=kimg, seed=seed, device=CPU, **keywords)  # type: ignore[arg-type]


def _gan(run: GanRun) -> TrainedGan:
    about = {"slugs": ["up", "down"], "kind": "shared"}
    return TrainedGan(run.generator, run.discriminator, about, generator_digest(run.generator, ["up", "down"]))


def test_pixels_survive_the_way_to_the_network_and_back() -> None:
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    unit = to_unit_range(images)
    assert unit.min() == -1.0
    assert unit.max() == 1.0
    np.testing.assert_array_equal(to_uint8(unit), images)


def test_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    first, second, other = _train(), _train(), _train(seed=2)
    assert _gan(first).digest == _gan(second).digest
    assert _gan(first).digest != _gan(other).digest
    assert [t.kimg for t in first.history] == pytest.approx([0.16, 0.32, 0.48])
    assert first.grids[-1].shape == (2, training.N_GRID_PER_CLASS, 8, 8, 1)


def test_it_learns_which_half_is_bright() -> None:
    run = _train(kimg=10.0)
    for label in (0, 1):
        images = sample_batch(run.generator, label, 3, batch=32, truncation=1.0, device=CPU).images.astype(float)
        upper, lower = images[:, :4].mean(), images[:, 4:].mean()
        assert (upper > lower + 40) == (label == 0)


def test_a_loss_that_is_not_finite_is_refused_within_a_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def broken(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return (fake - real).mean() * (float("nan") if len(calls) > 3 else 1.0)

    monkeypatch.setattr(training, "d_loss", broken)
    with pytest.raises(TrainingError, match="no longer finite"):
        _train(kimg=1.0)
    assert len(calls) <= 10  # one tick


def test_a_class_without_images_is_refused() -> None:
    with pytest.raises(TrainingError, match="no training image"):
        _train(weights={0: 0.5, 5: 0.5})


def test_one_image_of_one_class_trains() -> None:
    images, labels = _bars()
    run = train_gan(images[:1], labels[:1], SHAPE, SECTION, TransformsSection(), kimg=0.16, seed=1, device=CPU)
    assert np.isfinite(run.history[-1].d_loss)


def test_adaptation_starts_from_the_shared_weights() -> None:
    start = _gan(_train())
    run = _train(kimg=0.016, start=start, weights={0: 0.5, 1: 0.5}, lr_factor=1e-6)
    for name, tensor in start.generator.state_dict().items():
        if tensor.is_floating_point() and "running" not in name:
            assert torch.allclose(tensor, run.generator.state_dict()[name], atol=1e-5), name
    assert generator_digest(start.generator, ["up", "down"]) == start.digest  # the start is left alone


def test_checkpoint_round_trip_and_a_flipped_byte(tmp_path: Path) -> None:
    gan = _gan(_train(kimg=0.16))
    save_gan(tmp_path, gan)
    loaded = load_gan(tmp_path, CPU)
    assert loaded.digest == gan.digest
    weights = tmp_path / "generator.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 0x40
    weights.write_bytes(bytes(content))
    with pytest.raises(ArtifactError, match=r"generator\.safetensors"):
        load_gan(tmp_path, CPU)


def test_fault_31_a_pickle_is_not_opened(tmp_path: Path) -> None:
    gan = _gan(_train(kimg=0.16))
    save_gan(tmp_path, gan)
    canary = tmp_path / "canary"

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path(canary).touch, ())  # type: ignore[return-value]

    torch.save({"x": Bomb()}, tmp_path / "generator.safetensors")
    with pytest.raises(ArtifactError):
        load_gan(tmp_path, CPU)
    assert not canary.exists()


def test_each_image_can_be_made_again_from_seed_and_position() -> None:
    gan = _gan(_train(kimg=0.16))
    sampled = sample_images(gan.generator, gan.discriminator, 1, 40, seed=9, batch=16, truncation=1.0, device=CPU)
    assert len(sampled.images) == 48  # whole batches
    for i in (0, 17, 47):
        again = sample_batch(gan.generator, 1, int(sampled.seeds[i]), batch=16, truncation=1.0, device=CPU)
        np.testing.assert_array_equal(again.images[sampled.positions[i]], sampled.images[i])
    assert len({(int(s), int(p)) for s, p in zip(sampled.seeds, sampled.positions, strict=True)}) == 48


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_runs_on_cuda() -> None:
    images, labels = _bars()
    run = train_gan(images, labels, SHAPE, SECTION, TransformsSection(), kimg=0.32, seed=1, device=torch.device("cuda"))
    assert np.isfinite(run.history[-1].g_loss)
