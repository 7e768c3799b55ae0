"""Texture statistics: scipy's correlation beside them, sizes, and filters that the generator alone decides."""

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate

from synthgen.classifier.fixed_features import CHANNELS, describe_texture, draw_filters

CPU = torch.device("cpu")


def drawn(seed: int, channels: int = 1) -> list[torch.Tensor]:
    return draw_filters(channels, torch.Generator().manual_seed(seed))


def test_the_first_stage_is_a_correlation_its_mean_and_deviation() -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 6, 6, 1)).astype(np.uint8)
    filters = drawn(1)
    found = describe_texture(filters, image, CPU)[0]
    scaled = image[0, :, :, 0] / 127.5 - 1.0
    for number in range(CHANNELS[0]):
        response = np.maximum(correlate(scaled, filters[0][number, 0].numpy(), mode="constant"), 0.0)
        assert found[number] == pytest.approx(response.mean(), abs=1e-5)
        assert found[CHANNELS[0] + number] == pytest.approx(response.std(ddof=1), abs=1e-5)


@pytest.mark.parametrize(("side", "n_stages"), [(4, 1), (7, 1), (8, 2), (16, 3), (64, 3)])
@pytest.mark.parametrize("channels", [1, 3])
def test_small_images_have_fewer_stages_and_batches_change_nothing(side: int, n_stages: int, channels: int) -> None:
    images = np.random.default_rng(side).integers(0, 256, (3, side, side, channels)).astype(np.uint8)
    filters = drawn(0, channels)
    found = describe_texture(filters, images, CPU)
    assert found.shape == (3, 2 * sum(CHANNELS[:n_stages]))
    np.testing.assert_allclose(describe_texture(filters, images[1:2], CPU)[0], found[1], atol=1e-5)
    assert describe_texture(filters, images[:0], CPU).shape == (0, found.shape[1])


def test_the_filters_come_from_the_generator_alone() -> None:
    assert all(torch.equal(a, b) for a, b in zip(drawn(3), drawn(3), strict=True))
    assert not torch.equal(drawn(3)[0], drawn(4)[0])
