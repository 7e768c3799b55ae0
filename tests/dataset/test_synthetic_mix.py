"""A person's own training draws what the measured arm draws."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from synthgen.artifacts import canonical_json, sha256_file
from synthgen.classifier.draws import Draws, build_targets
from synthgen.classifier.partners import Partners
from synthgen.dataset.blending import Blend, BlendKind
from synthgen.dataset.mixing import MixingPolicy, policy_record
from synthgen.dataset.prepared import pixel_sha256
from synthgen.dataset.shards import SyntheticRows, write_real_shard, write_synthetic_shard
from synthgen.dataset.synthetic_mix import SyntheticMix
from synthgen.dataset.torch_dataset import AugmentedImages
from synthgen.errors import ConfigError

NAMES = ["cat", "dog", "eel"]
N_REAL, N_SYNTHETIC = (20, 6, 5), (8, 8, 0)


def _folder(tmp_path: Path, policy: MixingPolicy | None = None) -> Path:
    """Three classes; no sample of the last was accepted. A pixel's value is 10 x label, + 100 where synthetic."""
    for label, name in enumerate(NAMES):
        n = N_REAL[label]
        images = np.full((n, 4, 4, 1), 10 * label, np.uint8)
        images[:, 0, 0, 0] = np.arange(n)
        sha256 = [pixel_sha256(image) for image in images]
        groups = [f"g{label}-{i}" for i in range(n)]
        about = {"label": label, "class_name": name, "slug": name, "class_names": NAMES, "fold": "final"}
        write_real_shard(tmp_path / f"real-{name}.parquet", images, sha256, groups, split="train", **about)
        n = N_SYNTHETIC[label]
        made = np.full((n, 4, 4, 1), 10 * label + 100, np.uint8)
        scores = np.ones(n, np.float32)
        agreement = np.linspace(0.5, 0.9, n, dtype=np.float32) + np.float32(0.01 * label)
        rows = SyntheticRows(made, np.zeros(n, np.int64), np.arange(n, dtype=np.int32), scores, agreement, scores)
        write_synthetic_shard(tmp_path / f"synthetic-{name}.parquet", rows, generator_digest="a" * 64, **about)
    files = {path.name: {"sha256": sha256_file(path)} for path in tmp_path.glob("*.parquet")}
    summary = {"class_names": NAMES, "slugs": NAMES, "files": files}
    if policy is not None:
        summary["policy"] = policy_record(policy, NAMES)
    (tmp_path / "summary.json").write_text(canonical_json(summary))
    return tmp_path


def test_batches_hold_the_share_of_every_class_and_a_class_without_samples_takes_its_reals(tmp_path: Path) -> None:
    images = AugmentedImages(_folder(tmp_path))
    assert images.policy.shares == (0.25, 0.25, 0.25)
    mix = SyntheticMix(images, batch=48, steps=100, seed=1)
    rows = np.array(list(mix))
    assert rows.shape == (100, 48)
    is_synthetic = images.origins[rows] == "synthetic"
    share = [is_synthetic[images.labels[rows] == label].mean() for label in range(3)]
    np.testing.assert_allclose(share, [0.25, 0.25, 0.0], atol=0.03)
    np.testing.assert_allclose(np.bincount(images.labels[rows].ravel()) / rows.size, 1 / 3, atol=0.01)
    assert np.array_equal(rows, list(mix))
    assert not np.array_equal(rows, list(SyntheticMix(images, batch=48, steps=100, seed=2)))


def test_the_policy_comes_with_the_data_set_and_its_schedule_and_weights_are_kept(tmp_path: Path) -> None:
    policy = MixingPolicy("own", "default", (0.5, 0.5, 0.5), loss_weight=0.5, schedule="falling")
    images = AugmentedImages(_folder(tmp_path, policy))
    assert images.policy == policy
    mix = SyntheticMix(images, batch=32, steps=50)
    n_taken = [sum(index in set(images.indices("synthetic")) for index in batch) for batch in mix]
    assert n_taken[0] > 8 > n_taken[-1]
    assert {len(batch) for batch in mix} == {32}
    np.testing.assert_array_equal(mix.loss_weights.numpy(), np.where(images.origins == "synthetic", 0.5, 1.0))


def test_a_data_loader_takes_it_and_synthetic_images_have_a_transform_of_their_own(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    images = AugmentedImages(
        folder, transform=lambda image: image.float(), synthetic_transform=lambda image: -image.float()
    )
    loader = DataLoader(images, batch_sampler=SyntheticMix(images, batch=16, steps=5))
    batches = list(loader)
    assert len(batches) == len(loader) == 5
    for x, y in batches:
        assert (x.shape, y.shape) == (torch.Size([16, 1, 4, 4]), torch.Size([16]))
        corner = x[:, 0, 3, 3]
        torch.testing.assert_close(corner.abs() % 100, 10.0 * y)
        assert ((corner <= -100) == (corner < 0)).all()
        assert (corner < 0).sum() in (2, 3, 4)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_blend_puts_reals_into_synthetic_images_and_their_labels_into_the_targets(
    tmp_path: Path, kind: BlendKind, workers: int
) -> None:
    policy = MixingPolicy("own", "default", (0.5, 0.5, 0.5), loss_weight=0.5, schedule="falling", blend=kind)
    images = AugmentedImages(_folder(tmp_path, policy), transform=lambda image: image.float())
    mix, plain = (
        SyntheticMix(images, batch=24, steps=30, seed=3, policy=p) for p in (None, replace(policy, blend="none"))
    )
    loader = DataLoader(images, batch_sampler=mix, num_workers=workers)
    mass = np.zeros(3)
    for step, ((x, y), rows, drawn) in enumerate(zip(loader, mix, plain, strict=True)):
        n = len(rows) - 24
        assert rows[:24] == drawn  # the rest is drawn as without a blend
        assert (images.origins[rows[24:]] == "real").all()
        shown, targets = mix.blend(x, y, step)
        again, _ = mix.blend(x, y, step)
        assert torch.equal(shown, again)
        assert (shown.shape, targets.shape) == ((24, 1, 4, 4), (24, 3))
        assert torch.equal(shown[: 24 - n], x[: 24 - n])
        # the last pixel of an image tells its class and origin, so the mean tells the share
        own, other = x[24 - n : 24, 0, 3, 3], x[24:, 0, 3, 3]
        if kind == "mixup" and n:
            corner = shown[24 - n :, 0, 3, 3]
            far = (own - other).abs() > 1.0
            share = ((own - corner) / (own - other))[far]
            sums = targets[24 - n :].sum(dim=1)[far]
            torch.testing.assert_close(sums, (1.0 - share) * 0.5 + share, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(targets[: 24 - n], torch.eye(3)[y[: 24 - n]])
        mass += targets.sum(dim=0).numpy()
    np.testing.assert_allclose(mass / mass.sum(), 1 / 3, atol=0.02)
    with pytest.raises(ConfigError, match="step 29 has 24 images and 0 to blend in"):
        mix.blend(*_batch(images, rows=next(iter(mix))), 29)


def _batch(images: AugmentedImages, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    pairs = [images[row] for row in rows]
    return torch.stack([x for x, _ in pairs]), torch.tensor([y for _, y in pairs])


def test_without_a_blend_targets_are_weighted_labels_and_images_stay(tmp_path: Path) -> None:
    images = AugmentedImages(_folder(tmp_path), transform=lambda image: image.float())
    mix = SyntheticMix(images, batch=16, steps=3, policy=replace(images.policy, loss_weight=0.25))
    x, y = _batch(images, next(iter(mix)))
    shown, targets = mix.blend(x, y, 0)
    assert shown is x
    weights = torch.tensor([1.0] * 12 + [0.25] * 4)
    torch.testing.assert_close(targets, torch.eye(3)[y] * weights[:, None])
    with pytest.raises(ConfigError, match="floating point"):
        mix.blend(x.to(torch.uint8), y, 0)


@pytest.mark.parametrize("kind", ["none", "mixup", "cutmix"])
def test_targets_hold_the_sureness_of_the_teacher_as_those_of_the_measured_arm(tmp_path: Path, kind: BlendKind) -> None:
    policy = MixingPolicy("own", "default", (0.5,) * 3, loss_weight=0.5, labels="agreement", blend=kind)
    images = AugmentedImages(_folder(tmp_path, policy), transform=lambda image: image.float())
    is_synthetic = images.origins == "synthetic"
    expected = np.concatenate([np.linspace(0.5, 0.9, 8, dtype=np.float32) + np.float32(0.01 * k) for k in range(2)])
    np.testing.assert_array_equal(images.sureness, np.concatenate([np.ones(sum(N_REAL), np.float32), expected]))
    mix = SyntheticMix(images, batch=24, steps=6, seed=3)
    certain = SyntheticMix(images, batch=24, steps=6, seed=3, policy=replace(policy, labels="hard"))
    for step, (rows, same) in enumerate(zip(mix, certain, strict=True)):
        assert rows == same
        x, y = _batch(images, rows)
        shown, targets = mix.blend(x, y, step)
        plain, hard = certain.blend(x, y, step)
        assert torch.equal(shown, plain)
        own = y[:24].numpy()
        drawn = np.where(is_synthetic[rows[:24]], images.sureness[rows[:24]], np.float32(1.0))
        weights = np.where(np.arange(24) < 12, np.float32(1.0), np.float32(0.5))
        tables = np.zeros((1, 24), np.int64), own[None]
        draws = Draws([], *tables, own[None], weights[None], drawn[None].astype(np.float32))
        if kind != "none":
            other = np.concatenate([np.zeros(12, np.int64), y[24:].numpy()])
            # the sum of a hard row is (1 - share) x 0.5 + share
            shares = 2.0 * hard.sum(dim=1).numpy() - 1.0
            shares[:12] = 0.0
            blend = Blend(np.zeros((1, 24), np.float32), np.zeros((1, 24, 4), np.int64), shares[None])
            draws = replace(draws, partners=Partners(other[None], other[None], blend))
        found = build_targets(draws, 3)[0]
        np.testing.assert_allclose(targets.numpy(), found, atol=1e-6)
        if kind == "none":  # a box of the whole image leaves nothing of the softened label
            assert (targets[torch.from_numpy(is_synthetic[rows[:24]])] > 0).all()


def test_what_cannot_be_mixed_is_refused(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    images = AugmentedImages(folder)
    with pytest.raises(ConfigError, match="no synthetic image"):
        SyntheticMix(AugmentedImages(folder, origins=["real"]), batch=8, steps=1)
    with pytest.raises(ConfigError, match="0 real images"):
        SyntheticMix(AugmentedImages(folder, origins=["synthetic"]), batch=8, steps=1)
    with pytest.raises(ConfigError, match="shares of 2 classes, the data set has 3"):
        SyntheticMix(images, batch=8, steps=1, policy=MixingPolicy("x", "default", (0.2, 0.2)))
    with pytest.raises(ConfigError, match="leave no real image in a batch of 8"):
        SyntheticMix(images, batch=8, steps=1, policy=replace(images.policy, shares=(0.99, 0.99, 0.99)))


def test_at_most_limits_the_images_of_each_class(tmp_path: Path) -> None:
    images = AugmentedImages(_folder(tmp_path))
    mix = SyntheticMix(images, batch=48, steps=100, policy=MixingPolicy("few", "default", (0.25,) * 3, at_most=2))
    made = {index for batch in mix for index in batch if images.origins[index] == "synthetic"}
    assert sorted(np.bincount(images.labels[sorted(made)]).tolist()) == [2, 2]
