"""Sampling with PNG encoding, against PNG encoding of the same images alone, on one core.

Owns the sampling as `synthesize` does it (whole batches, scored by nobody) and the encoding as the shards do it.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from ratios import Measured, compare

from synthgen.config import GeneratorSection
from synthgen.dataset.provenance import Provenance, encode_png
from synthgen.gan.architectures.build import build_generator
from synthgen.gan.architectures.shape import GanShape
from synthgen.gan.sampling import sample_batch

BATCH = 64
N_BATCHES = 8
DIGEST = "0" * 64


def sampling_against_encoding(size: int, channels: int, device: torch.device, rounds: int) -> Measured:
    """Images a second of sampling and encoding, over those of encoding alone.

    Args:
        size: side in px.
        channels: of the generator at full resolution.
        device: of the generator; encoding is one core's work on any machine.
        rounds: pairs of runs.
    """
    shape = GanShape.of(GeneratorSection(channels=channels), size, 1, 10)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = build_generator(shape).to(device).eval()
    made = [
        sample_batch(generator, seed % 10, seed, batch=BATCH, truncation=1.0, device=device)
        for seed in range(N_BATCHES)
    ]

    def encode_all(seed: int, images: NDArray[np.uint8]) -> None:
        for position, image in enumerate(images):
            encode_png(image, Provenance(DIGEST, seed, position))

    def both() -> None:
        for seed in range(N_BATCHES):
            sampled = sample_batch(generator, seed % 10, seed, batch=BATCH, truncation=1.0, device=device)
            encode_all(seed, sampled.images)

    def encoding() -> None:
        for seed, sampled in enumerate(made):
            encode_all(seed, sampled.images)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return compare(both, encoding, device, rounds=rounds)
    finally:
        torch.set_num_threads(threads)
