"""Label-preserving transforms of real images for the classical arms, rendered ahead of training.

Owns the policies (albumentations, torchvision v2) and the bank: for every real image as many transformed
variants as a training draws, each from a seed of its own. Reason: albumentations 2.0.8 inside DataLoader workers
repeats its draws in every worker and epoch, which silently weakens the classical arms; here variant k of an image
is a function of (seed, policy, image, k) alone, all folds, repeats and arms share the rendering, and no training
sees a variant twice before it has seen all of them.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from synthgen.artifacts import atomic_file, digest_of
from synthgen.config import TransformsSection
from synthgen.errors import ConfigError
from synthgen.seeding import derive_seed
from synthgen.versions import VERSIONS

Policy = Literal["classical", "mild", "strong", "strongest", "trivialaugment", "randaugment"]
POLICIES: tuple[Policy, ...] = ("classical", "mild", "strong", "strongest", "trivialaugment", "randaugment")
STRENGTHS: dict[str, float] = {"mild": 0.5, "classical": 1.0, "strong": 1.6, "strongest": 2.4}
"""Factors on the amplitudes of section `transforms`."""
MOST = 0.95
"""No factor takes a share (of scale, shift, brightness) beyond this."""

Transform = Callable[[NDArray[np.uint8], int], NDArray[np.uint8]]


def _albumentations(section: TransformsSection, strength: float) -> Transform:
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else it asks the network for a newer version at import
    import albumentations
    import cv2

    cv2.setNumThreads(0)
    steps: list[Any] = [
        albumentations.Affine(
            rotate=(-section.rotate * strength, section.rotate * strength),
            scale=(1 - min(section.scale * strength, MOST), 1 + section.scale * strength),
            translate_percent=(-min(section.shift * strength, MOST), min(section.shift * strength, MOST)),
            shear=(-section.shear * strength, section.shear * strength),
            border_mode=cv2.BORDER_REFLECT_101,
            p=1.0,
        )
    ]
    if section.elastic:
        steps.append(
            albumentations.ElasticTransform(
                alpha=section.elastic * strength, sigma=3.0, border_mode=cv2.BORDER_REFLECT_101, p=0.5
            )
        )
    if section.brightness:
        limit = min(section.brightness * strength, 1.0)
        steps.append(albumentations.RandomBrightnessContrast(limit, limit, p=0.5))
    if section.horizontal_flip:
        steps.append(albumentations.HorizontalFlip(p=0.5))
    if section.vertical_flip:
        steps.append(albumentations.VerticalFlip(p=0.5))
    compose = albumentations.Compose(steps)

    def apply(image: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
        compose.set_random_seed(seed % 2**32)
        out: NDArray[np.uint8] = compose(image=image)["image"]
        return out.reshape(image.shape)

    return apply


def _torchvision(name: str) -> Transform:
    import torch
    from torchvision.transforms import v2

    policy = v2.TrivialAugmentWide() if name == "trivialaugment" else v2.RandAugment()

    def apply(image: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            out = policy(torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1))
        return np.ascontiguousarray(out.permute(1, 2, 0).numpy())

    return apply


def build_transform(policy: Policy, section: TransformsSection) -> Transform:
    """The function that turns (image (H, W, C) uint8, seed) into a transformed image of the same shape.

    Args:
        policy: `classical` (albumentations affine, brightness, contrast, optional flips and elastic), `mild`,
            `strong` and `strongest` (the same with amplitudes by `STRENGTHS`), `trivialaugment` (Mueller and Hutter
            2021, arXiv:2103.10158) or `randaugment` (Cubuk et al. 2020, arXiv:1909.13719).
        section: amplitudes of the albumentations policies.
    Raises:
        ConfigError: no such policy.
    """
    if policy in {"trivialaugment", "randaugment"}:
        return _torchvision(policy)
    if policy in STRENGTHS:
        return _albumentations(section, STRENGTHS[policy])
    raise ConfigError(f"transform policy {policy!r} is not one of {', '.join(POLICIES)}")


@dataclass(frozen=True)
class TransformBank:
    """Rendered variants of each image.

    Attributes:
        images: (sum of counts, H, W, C) uint8; the variants of image i are rows starts[i] to starts[i + 1].
        starts: (n + 1,) int64.
    """

    images: NDArray[np.uint8]
    starts: NDArray[np.int64]

    def variants(self, drawn: NDArray[np.int64], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the bank for a sequence of draws.

        Args:
            drawn: (m,) int64 image indices in the order of the training.
            offsets: (n,) int64, where each image's walk through its variants begins.
        Returns:
            (m,) int64; the j-th draw of an image takes its variant (offset + j) modulo their number.
        """
        order = np.argsort(drawn, kind="stable")
        ordered = drawn[order]
        first = np.concatenate([[True], ordered[1:] != ordered[:-1]]) if len(ordered) else np.zeros(0, dtype=bool)
        position = np.arange(len(ordered))
        occurrence = np.empty(len(drawn), dtype=np.int64)
        occurrence[order] = position - np.maximum.accumulate(np.where(first, position, 0))
        counts = np.diff(self.starts)
        return self.starts[drawn] + (offsets[drawn] + occurrence) % counts[drawn]


def _render(
    images: NDArray[np.uint8],
    sha256: Sequence[str],
    counts: NDArray[np.int64],
    policy: Policy,
    section: TransformsSection,
    seed: int,
) -> NDArray[np.uint8]:
    transform = build_transform(policy, section)
    out = np.empty((int(counts.sum()), *images.shape[1:]), dtype=np.uint8)
    row = 0
    for image, sha, count in zip(images, sha256, counts, strict=True):
        for k in range(int(count)):
            out[row] = transform(np.ascontiguousarray(image), derive_seed(seed, policy, sha, k))
            row += 1
    return out


def render_bank(
    images: NDArray[np.uint8],
    sha256: Sequence[str],
    counts: NDArray[np.int64],
    policy: Policy,
    section: TransformsSection,
    *,
    seed: int,
    cache: Path,
    executor: Executor | None = None,
    n_chunks: int = 1,
) -> TransformBank:
    """Renders the variants of each image, or opens them where they were rendered before.

    Args:
        images: (n, H, W, C) uint8.
        sha256: n pixel digests; with `seed` and `policy` they fix every variant.
        counts: (n,) int64, variants of each image, at least 1.
        policy, section: what to apply.
        seed: of the run.
        cache: git-ignored folder of rendered banks, named by the digest of all that fixes them.
        executor: renders in this pool of processes, `n_chunks` pieces; None renders here.
    Returns:
        the bank, memory-mapped.
    """
    import importlib.metadata

    library = "albumentations" if policy in STRENGTHS else "torchvision"
    key = digest_of(
        {
            "policy": policy,
            "section": section.model_dump(),
            "seed": seed,
            "library": importlib.metadata.version(library),
            "version": VERSIONS["classifier"],
            "images": list(sha256),
            "counts": counts.tolist(),
        }
    )
    path = cache / f"{policy}-{key[:24]}.npy"
    if not path.exists():
        bounds = np.linspace(0, len(images), min(n_chunks, len(images)) + 1).astype(int)
        pieces: Iterable[NDArray[np.uint8]]
        arguments = [
            (np.asarray(images[a:b]), list(sha256[a:b]), counts[a:b], policy, section, seed)
            for a, b in pairwise(bounds)
        ]
        if executor is None:
            pieces = [_render(*arguments_of_piece) for arguments_of_piece in arguments]
        else:
            pieces = [future.result() for future in [executor.submit(_render, *a) for a in arguments]]
        with atomic_file(path) as temporary, temporary.open("wb") as stream:
            np.save(stream, np.concatenate(list(pieces)), allow_pickle=False)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return TransformBank(np.load(path, mmap_mode="c", allow_pickle=False), starts)
