"""The shortcut probe as the stages use it: measured by `synthesize`, turned into bits per arm by `challenge`.

Owns which images are compared: the fold's training reals and its accepted samples, both as they are, described by fixed
random filters. Refuses transformed reals: the probe would then tell transforms, not generators.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from synthgen.classifier.fixed_features import describe_texture, draw_filters
from synthgen.dataset.mixing import MixingPolicy
from synthgen.dataset.origin_record import OriginRecord
from synthgen.dataset.pools import shards_for
from synthgen.metrics.shortcut import OriginProbe, probe_origin, shortcut_bits
from synthgen.report.grids import evenly_spaced
from synthgen.seeding import numpy_generator, torch_generator

MAX_IMAGES = 500
"""Of a class and origin: enough for a standard error near 0.02, few enough for seconds."""
DIGITS = 4


class OriginWatch:
    """Collects descriptions of a fold's images while they are made, then probes them."""

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        groups: NDArray[np.str_],
        slugs: list[str],
        *,
        seed: int,
        fold: str,
        device: torch.device,
    ) -> None:
        """Describes the reals.

        Args:
            images: (n, H, W, C) uint8 training reals of the fold; labels, groups: (n,) of them.
            slugs: in label order.
            seed: the run's; the filters are the same in every fold.
            fold: names the stream that draws the parts.
            device: to describe on.
        """
        self._filters = draw_filters(images.shape[-1], torch_generator(seed, "shortcut", "filters"))
        self._parts = (seed, "shortcut", fold)
        self._slugs, self._device = slugs, device
        chosen = [_spread(np.flatnonzero(labels == label)) for label in range(len(slugs))]
        self._reals = [self._describe(images[rows]) for rows in chosen]
        self._groups = [groups[rows] for rows in chosen]
        self._made: dict[str, NDArray[np.float32]] = {}

    def _describe(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return describe_texture(self._filters, images, self._device)

    def see(self, shard: str, images: NDArray[np.uint8]) -> None:
        """Describes the accepted images of one shard, named as in `synthgen.dataset.pools`."""
        self._made[shard] = self._describe(images[_spread(np.arange(len(images)))])

    def record(self) -> dict[str, Any]:
        """Contents of shortcut.json: pools as `load_pool` of `challenge` fills them.

        A pool without a sample of a class, nor any that stands in, trains on its reals: there is nothing to probe.
        """
        kinds = {"default", *(name.partition(".")[2] for name in self._made if "." in name)}
        pools = {
            kind: [self._first(shards_for(slug, kind, self._made)) for slug in self._slugs] for kind in sorted(kinds)
        }
        found = {
            name: probe_origin(self._reals, self._groups, made, numpy_generator(*self._parts))
            for name, made in pools.items()
        }
        return {"form": 1, "pools": {name: _pool_record(probe, self._slugs) for name, probe in found.items()}}

    def _first(self, shards: list[str]) -> NDArray[np.float32]:
        for shard in shards:
            if len(self._made.get(shard, ())):
                return self._made[shard]
        return self._reals[0][:0]


def _spread(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    return rows[evenly_spaced(len(rows), MAX_IMAGES)]


def _pool_record(probe: OriginProbe, slugs: list[str]) -> dict[str, Any]:
    return {
        "auc": _rounded(probe.auc),
        "error": _rounded(probe.error),
        "hit": _rounded(probe.hit),
        "false_alarm": _rounded(probe.false_alarm),
        "classes": {
            slug: {
                "n_real": entry.n_real,
                "n_objects": entry.n_objects,
                "n_synthetic": entry.n_synthetic,
                "auc": _rounded(entry.auc),
                "error": _rounded(entry.error),
                "reason": entry.reason,
            }
            for slug, entry in zip(slugs, probe.classes, strict=True)
        },
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)


def origin_of_fold(
    policy: MixingPolicy, slugs: list[str], stand_ins: Mapping[str, str], record: OriginRecord
) -> dict[str, float | None]:
    """What the label owes to origin in one fold of an arm: `origin` in arm.json.

    A class whose share is filled with its own training images shows no synthetic one, whatever its share says.

    Args:
        policy: of the arm.
        slugs: in label order.
        stand_ins: slug -> `shared` or `real`, as `load_pool` found.
        record: of the fold.
    """
    shares = tuple(
        0.0 if stand_ins.get(slug) == "real" else share for slug, share in zip(slugs, policy.shares, strict=True)
    )
    pool = record.pool(policy.pool)
    known = pool.hit is not None and pool.false_alarm is not None
    return {
        "auc": pool.auc,
        "label_origin_bits": round(shortcut_bits(shares, 1.0, 0.0), 6),
        "shortcut_bits": round(shortcut_bits(shares, pool.hit or 0.0, pool.false_alarm or 0.0), 6) if known else None,
    }


def mean_bits(folds: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Mean of `origin.shortcut_bits` over the folds that have it (none without synthetic images); None without any."""
    found = [entry["origin"]["shortcut_bits"] for entry in folds.values() if "origin" in entry]
    known = [bits for bits in found if bits is not None]
    return round(float(np.mean(known)), 6) if known else None
