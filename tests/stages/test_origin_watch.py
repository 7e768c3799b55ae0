"""The shortcut probe measures the samples that the arms draw from, pool by pool, whatever was refused."""

from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from synthgen.dataset.mixing import MixingPolicy
from synthgen.dataset.prepared import PreparedData, pixel_sha256
from synthgen.dataset.shards import SyntheticRows, write_synthetic_shard
from synthgen.stages.challenge import load_pool
from synthgen.stages.shortcut import OriginWatch

N_OWN, N_SHARED, N_REAL = 7, 9, 16
SHARDS = list(product([0, N_OWN], [None, 0, N_SHARED]))
"""Accepted samples of each class's own generator and of the shared one; None: there is no shard to compare."""
SLUGS = [f"c{k}" for k in range(len(SHARDS))]


def _write(folder: Path, name: str, label: int, images: np.ndarray) -> None:
    n = len(images)
    floats = np.full(n, 0.9, np.float32)
    rows = SyntheticRows(images, np.arange(n), np.arange(n, dtype=np.int32), floats, floats, floats)
    slug = SLUGS[label]
    about = {"label": label, "class_name": slug, "slug": slug, "class_names": SLUGS, "fold": "f0"}
    write_synthetic_shard(folder / f"{name}.parquet", rows, generator_digest="0" * 64, **about)


def test_each_class_is_probed_on_what_an_arm_with_that_pool_trains_on(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(len(SLUGS)), N_REAL)
    images = rng.integers(0, 256, (len(labels), 8, 8, 1), dtype=np.uint8)
    data = PreparedData(
        images=images,
        labels=labels,
        groups=np.arange(len(labels)).astype(np.str_),
        sha256=np.array([pixel_sha256(image) for image in images]),
        folds=np.arange(len(labels)) % 4,
        roles=np.full(len(labels), "pool"),
        slugs=SLUGS,
        class_names=SLUGS,
        n_folds=4,
        frozen=False,
    )
    rows = data.split("f0").train
    watch = OriginWatch(
        images[rows], labels[rows], data.groups[rows], SLUGS, seed=0, fold="f0", device=torch.device("cpu")
    )
    for label, counts in enumerate(SHARDS):
        for name, n in zip((SLUGS[label], f"{SLUGS[label]}.shared"), counts, strict=True):
            if n is not None:
                made = rng.integers(0, 256, (n, 8, 8, 1), dtype=np.uint8)
                _write(tmp_path, name, label, made)
                watch.see(name, made)
    workspace = SimpleNamespace(synthetic=lambda _: tmp_path)
    found = watch.record()["pools"]
    for pool in ("default", "shared"):
        policy = MixingPolicy("p", pool, (0.25,) * len(SLUGS))
        trained, stand_ins = load_pool(workspace, "f0", policy, data)  # type: ignore[arg-type]
        n_trained = np.bincount(trained.labels, minlength=len(SLUGS))
        for label, slug in enumerate(SLUGS):
            entry = found[pool]["classes"][slug]
            assert entry["n_synthetic"] == (0 if stand_ins.get(slug) == "real" else n_trained[label]), (pool, slug)
            if stand_ins.get(slug) == "real":
                assert entry["auc"] is None
                assert entry["reason"].startswith("0 synthetic images")
