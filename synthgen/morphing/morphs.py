"""Morphs: a training image carried part of the way to another of its class, then deformed as plentiful classes vary.

Owns the rule (training images, label, seed) -> images. Two training images of a class that can be registered give
pictures between them; how pictures of one class differ from each other is learned from the classes that have many, as a
normal distribution over fields, and put on top. A scarce class lends from the plentiful ones how things vary, and keeps
what it is. Refuses to choose rows: all that is handed in may be looked at. Trains no network and touches no file.

Source: morphing between two registered pictures, Beier and Neely 1992 (Feature-based image metamorphosis, SIGGRAPH);
a normal distribution over deformations of a class for new training images, Hauberg et al. 2016 (Dreaming more data,
AISTATS, arXiv:1510.02795, section 4), here of other classes than the one that is deformed.
"""

from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthgen.artifacts import digest_of
from synthgen.config import MorphSection
from synthgen.errors import TrainingError
from synthgen.morphing.registration import GRID, register, warp
from synthgen.seeding import numpy_generator, torch_generator
from synthgen.versions import VERSIONS

FITTED = 0.65
"""A pair counts as registered where following its field explains this share of the difference."""


@dataclass(frozen=True)
class Pairs:
    """Registered pairs of images of one class.

    Attributes:
        first, second: (m,) int64 rows of the training images.
        there, back: (m, 2, GRID, GRID) float32, fields that carry the first onto the second, and the second onto the
            first.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    there: Tensor
    back: Tensor


@dataclass(frozen=True)
class Variation:
    """A normal distribution over fields, about no deformation at all.

    Attributes:
        factor: (r, 2 GRID GRID) float32: standard normal rows times it are fields.
        n_fields: it was learned from.
    """

    factor: Tensor
    n_fields: int

    @classmethod
    def learn(cls, fields: Tensor) -> "Variation":
        """From (n, 2, GRID, GRID) fields; every direction counts with its opposite, so the mean is 0."""
        flat = fields.flatten(1).double()
        if not len(flat):
            return cls(torch.zeros(1, 2 * GRID * GRID), 0)
        _, spread, directions = torch.linalg.svd(flat, full_matrices=False)
        return cls((spread[:, None] / len(flat) ** 0.5 * directions).float(), len(flat))

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, 2, GRID, GRID) float32."""
        drawn = torch.randn(n, len(self.factor), generator=generator) @ self.factor
        return drawn.view(n, 2, GRID, GRID)


@dataclass(frozen=True)
class Morphs:
    """Samples of one class.

    Attributes:
        images: (n, H, W, C) uint8.
        sources: (n,) int64 rows of the training images that most of each sample is of.
    """

    images: NDArray[np.uint8]
    sources: NDArray[np.int64]


class Morpher:
    """What was learned from the training images of one fold, and the samples it makes."""

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        groups: NDArray[np.str_],
        sha256: NDArray[np.str_],
        section: MorphSection,
        *,
        seed: int,
    ) -> None:
        """Registers pairs of every class and learns how pictures of one class differ, from those classes that have at
        least half as many registered pairs as the one with most: the plentiful ones. On one thread, so that no bit
        depends on how many cores there are.

        Args:
            images: (n, H, W, C) uint8 training images of a fold.
            labels, groups, sha256: (n,) of them; images of one group are not morphed into each other, since they show
                one object.
            section: how many pairs, how far.
            seed: of the pairs.
        Raises:
            TrainingError: images that are not square.
        """
        if images.shape[1] != images.shape[2]:
            raise TrainingError(f"morphs need square images, not {images.shape[1]} x {images.shape[2]}")
        self.images, self.labels, self.section = images, labels, section
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            found = {int(k): self._register(int(k), groups, seed) for k in np.unique(labels)}
        finally:
            torch.set_num_threads(threads)
        self.pairs = {label: pairs for label, (pairs, _) in found.items()}
        self.n_tried = {label: tried for label, (_, tried) in found.items()}
        fields = [pairs.there for pairs in self.pairs.values()]
        most = max(map(len, fields), default=0)
        self.variation = Variation.learn(torch.cat([found for found in fields if len(found) >= most / 2]))
        self.digest = digest_of(
            {
                "images": sha256.tolist(),
                "labels": labels.tolist(),
                "groups": groups.tolist(),
                "seed": seed,
                "section": section.model_dump(),
                "version": VERSIONS["morphs"],
            }
        )

    def _register(self, label: int, groups: NDArray[np.str_], seed: int) -> tuple[Pairs, int]:
        """The pairs of one class that fit both ways, and how many were tried."""
        rows = np.flatnonzero(self.labels == label)
        chance = numpy_generator(seed, "morph pairs", label)
        tried = _draw_pairs(rows, groups, self.section.pairs, chance)
        if not len(tried):
            nothing = torch.zeros(0, 2, GRID, GRID)
            return Pairs(rows[:0], rows[:0], nothing, nothing), 0
        first, second = self._unit(tried[:, 0]), self._unit(tried[:, 1])
        both = register(torch.cat([first, second]), torch.cat([second, first]))
        there, back = both.fields.chunk(2)
        fits = torch.minimum(*both.explained.chunk(2)) >= FITTED
        kept = tried[fits.numpy()]
        return Pairs(kept[:, 0], kept[:, 1], there[fits], back[fits]), len(tried)

    def _unit(self, rows: NDArray[np.int64]) -> Tensor:
        """(n, C, H, W) float32 in [0, 1]."""
        return torch.from_numpy(self.images[rows]).permute(0, 3, 1, 2).float().div(255.0)

    def draw(self, label: int, n: int, seed: int) -> Morphs:
        """`n` samples of `label`, the same for the same seed.

        Where pairs of the class fit, each sample is of one, at most `section.reach` of the way from its first image to
        its second: two pictures blended are softer than one, so a class of which some samples were blended and some not
        would be told by it. A class without any pair has its training images deformed where they stand.

        Raises:
            TrainingError: no training image of the label.
        """
        own, pairs = np.flatnonzero(self.labels == label), self.pairs.get(label)
        if not len(own) or pairs is None:
            raise TrainingError(f"label {label} has no training image to start from")
        chance = numpy_generator(seed, "morphs")
        generator = torch_generator(seed, "morphs")
        if len(pairs.first):
            taken = _evenly(len(pairs.first), n, chance)
            sources, at = pairs.first[taken], torch.from_numpy(taken)
            weight = torch.rand(n, 1, 1, 1, generator=generator) * self.section.reach
            start = warp(self._unit(sources), weight * pairs.there[at])
            end = warp(self._unit(pairs.second[taken]), (1.0 - weight) * pairs.back[at])
            made = torch.lerp(start, end, weight)
        else:
            sources = own[_evenly(len(own), n, chance)]
            made = self._unit(sources)
        made = warp(made, self.section.variation * self.variation.draw(n, generator))
        images = made.clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8).permute(0, 2, 3, 1)
        return Morphs(images.contiguous().numpy(), sources)


def _draw_pairs(
    rows: NDArray[np.int64], groups: NDArray[np.str_], n: int, chance: np.random.Generator
) -> NDArray[np.int64]:
    """(at most n, 2) int64 ordered pairs of `rows` that show different objects, all of them where there are no more."""
    if len(rows) * (len(rows) - 1) <= 4 * n:
        found = np.array(list(permutations(rows.tolist(), 2)), dtype=np.int64).reshape(-1, 2)
    else:
        found = rows[np.unique(chance.integers(0, len(rows), size=(4 * n, 2)), axis=0)]
    found = chance.permutation(found)  # some are left out
    return np.asarray(found[groups[found[:, 0]] != groups[found[:, 1]]][:n])


def _evenly(n_rows: int, n: int, chance: np.random.Generator) -> NDArray[np.int64]:
    """(n,) int64 below `n_rows`, each as often as any other up to one, in random order."""
    return np.asarray(chance.permutation(np.resize(chance.permutation(n_rows), n)), dtype=np.int64)
