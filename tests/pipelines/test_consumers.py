"""How others take a released data set, each from a folder that has nothing but the git address and the DVC remote."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from synthgen.artifacts import sha256_file, write_json
from synthgen.dataset.croissant import croissant_metadata
from synthgen.dataset.export import export_dataset
from synthgen.dataset.prepared import pixel_sha256
from synthgen.dataset.provenance import decode_png
from synthgen.dataset.shards import SyntheticRows, read_images, write_real_shard, write_synthetic_shard
from synthgen.dataset.torch_dataset import AugmentedImages
from synthgen.errors import ArtifactError, ConfigError

NAMES, SLUGS = ["Cat", "Dog <b>"], ["cat", "dog"]
N_REAL, N_SYNTHETIC = (7, 3), (2, 5)
TAG = "augmented@v0.1.0"
DVC_YAML = """\
stages:
  assemble:
    cmd: python -c "raise SystemExit('not here')"
    outs: [data/augmented]
artifacts:
  augmented:
    path: data/augmented
    type: dataset
"""
CARD = """\
---
configs:
- config_name: default
  data_files:
  - split: train
    path: ["real-*.parquet", "synthetic-*.parquet"]
- config_name: real
  data_files:
  - split: train
    path: "real-*.parquet"
---
"""


def write_augmented(folder: Path, seed: int = 0) -> None:
    """A tiny finished data set by the library's own writers."""
    rng = np.random.default_rng(seed)
    for label, slug in enumerate(SLUGS):
        common = {"label": label, "class_name": NAMES[label], "slug": slug, "fold": "final", "class_names": NAMES}
        images = rng.integers(0, 256, (N_REAL[label], 8, 6, 3)).astype(np.uint8)
        digests = [pixel_sha256(image) for image in images]
        groups = [f"{slug}-{k // 2}" for k in range(len(images))]
        write_real_shard(folder / f"real-{slug}.parquet", images, digests, groups, split="train", **common)
        n = N_SYNTHETIC[label]
        made, ones = rng.integers(0, 256, (n, 8, 6, 3)).astype(np.uint8), np.ones(n, np.float32)
        rows = SyntheticRows(made, np.arange(n), np.arange(n, dtype=np.int32), ones, ones, ones)
        write_synthetic_shard(folder / f"synthetic-{slug}.parquet", rows, generator_digest="ab" * 32, **common)
    facts = {
        path.name: {"sha256": sha256_file(path), "bytes": path.stat().st_size}
        for path in sorted(folder.glob("*.parquet"))
    }
    write_json(folder / "summary.json", {"schema": 1, "slugs": SLUGS, "class_names": NAMES, "files": facts})
    write_json(folder / "croissant.json", croissant_metadata("tiny", "A tiny data set.", facts, SLUGS))
    (folder / "README.md").write_text(CARD)


def run(folder: Path, *command: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "GIT_"))}
    settings = {
        "DVC_NO_ANALYTICS": "1",
        "DVC_GLOBAL_CONFIG_DIR": str(folder.parent / "no-dvc-config"),
        "GIT_CONFIG_GLOBAL": os.devnull,
        **{f"GIT_{who}_{what}": "a@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }
    done = subprocess.run(
        command, cwd=folder, env={**kept, **settings}, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def dvc(folder: Path, *arguments: str) -> str:
    return run(folder, sys.executable, "-m", "dvc", *arguments)


@pytest.fixture(scope="module")
def augmented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("augmented") / "augmented"
    write_augmented(folder)
    return folder


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory, augmented: Path) -> Path:
    """The address of a bare git repository: v0.1.0 is tagged, the branch is one version further, the maker is gone."""
    folder = tmp_path_factory.mktemp("release")
    project, bare = folder / "project", folder / "project.git"
    project.mkdir()
    run(project, "git", "init", "-q", "-b", "main")
    dvc(project, "init", "-q")
    (project / "dvc.yaml").write_text(DVC_YAML)
    (project / ".dvc" / "config").write_text(
        f"[core]\n    remote = store\n['remote \"store\"']\n    url = {folder / 'store'}\n    verify = true\n"
    )
    for seed, tag in ((0, TAG), (1, "")):
        shutil.rmtree(project / "data", ignore_errors=True)
        write_augmented(project / "data" / "augmented", seed)
        dvc(project, "commit", "-q", "--force")
        run(project, "git", "add", ".")
        run(project, "git", "commit", "-q", "-m", f"data of seed {seed}")
        if tag:
            run(project, "git", "tag", "-a", tag, "-m", "first")
    dvc(project, "push", "-q", "--all-commits")
    run(folder, "git", "clone", "-q", "--bare", str(project), str(bare))
    shutil.rmtree(project)
    return bare


@pytest.fixture
def consumer(tmp_path: Path) -> Path:
    """Somebody else's repository, with neither cache nor remote of ours."""
    folder = tmp_path / "consumer"
    folder.mkdir()
    run(folder, "git", "init", "-q", "-b", "main")
    dvc(folder, "init", "-q")
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.iterdir() if path.name != ".gitignore"}


def test_dvc_get_by_tag(released: Path, augmented: Path, tmp_path: Path) -> None:
    dvc(tmp_path, "get", "-q", str(released), "data/augmented", "--rev", TAG, "-o", "taken")
    assert digests(tmp_path / "taken") == digests(augmented)


def test_dvc_import_by_tag_remembers_the_version(released: Path, augmented: Path, consumer: Path) -> None:
    dvc(consumer, "import", "-q", str(released), "data/augmented", "--rev", TAG, "-o", "taken")
    assert digests(consumer / "taken") == digests(augmented)
    assert f"rev: {TAG}" in (consumer / "taken.dvc").read_text()


def test_dvc_artifacts_get_by_version(released: Path, augmented: Path, tmp_path: Path) -> None:
    dvc(tmp_path, "artifacts", "get", "-q", str(released), "augmented", "--rev", "v0.1.0", "-o", "taken")
    taken = tmp_path / "taken"
    found = taken if (taken / "summary.json").is_file() else taken / "augmented"
    assert digests(found) == digests(augmented)


@pytest.mark.slow
def test_a_second_clone_pulls_the_tagged_version(released: Path, augmented: Path, tmp_path: Path) -> None:
    run(tmp_path, "git", "clone", "-q", "--branch", TAG, str(released), "clone")
    run(tmp_path / "clone", sys.executable, "-m", "pipelines.remotes", "pull")
    assert digests(tmp_path / "clone" / "data" / "augmented") == digests(augmented)


def pixels_of(folder: Path, pattern: str = "*.parquet") -> list[NDArray[np.uint8]]:
    return [image for path in sorted(folder.glob(pattern)) for image in read_images(path).images]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_hugging_face_datasets(augmented: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path),
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install datasets")
    files = {"train": str(augmented / "*.parquet")}
    rows = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path))["train"]
    assert rows.features["label"].names == NAMES
    expected = pixels_of(augmented)
    assert len(rows) == len(expected)
    assert all(np.array_equal(np.asarray(row["image"]), image) for row, image in zip(rows, expected, strict=True))
    # The data card's header names the same files as configurations.
    real = datasets.load_dataset(str(augmented), "real", cache_dir=str(tmp_path))["train"]
    assert set(real["origin"]) == {"real"}
    assert len(real) == sum(N_REAL)


def test_pyarrow_and_pandas(augmented: Path) -> None:
    table = pq.read_table(augmented / "real-dog.parquet")
    images = [decode_png(png["bytes"]) for png in table.column("image").to_pylist()]
    assert np.array_equal(images, read_images(augmented / "real-dog.parquet").images)
    pandas = pytest.importorskip("pandas", reason="pandas is not installed: pip install pandas")
    frame = pandas.concat(pandas.read_parquet(path) for path in sorted(augmented.glob("*.parquet")))
    assert frame.groupby(["slug", "origin"]).size().to_dict() == {
        (slug, origin): counts[label]
        for label, slug in enumerate(SLUGS)
        for origin, counts in (("real", N_REAL), ("synthetic", N_SYNTHETIC))
    }


def test_torchvision_imagefolder_after_export(augmented: Path, tmp_path: Path) -> None:
    export_dataset(augmented, tmp_path / "files", "imagefolder")
    folder = ImageFolder(str(tmp_path / "files"), transform=v2.PILToTensor())
    assert folder.classes == SLUGS
    taken = sorted(image.permute(1, 2, 0).numpy().tobytes() for image, _ in folder)
    assert taken == sorted(image.tobytes() for image in pixels_of(augmented))


def test_three_lines_of_torch(augmented: Path) -> None:
    images = AugmentedImages(augmented)
    loader = DataLoader(images, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(0))
    batches = list(loader)

    assert len(images) == sum(N_REAL) + sum(N_SYNTHETIC)
    assert [len(labels) for _, labels in batches] == [4, 4, 4, 4, 1]
    assert batches[0][0].dtype == torch.uint8
    assert batches[0][0].shape == (4, 3, 8, 6)
    expected = [*pixels_of(augmented, "real-*"), *pixels_of(augmented, "synthetic-*")]
    assert all(np.array_equal(images[i][0].permute(1, 2, 0), image) for i, image in enumerate(expected))
    assert images.class_names == NAMES
    assert [images[i][1] for i in range(len(images))] == images.labels.tolist() == [0] * 7 + [1] * 3 + [0] * 2 + [1] * 5


def test_origins_and_groups_stand_beside_the_images(augmented: Path) -> None:
    images = AugmentedImages(augmented)
    assert images.indices("real") == list(range(10))
    assert images.indices("synthetic") == list(range(10, 17))
    assert len(Subset(images, images.indices("synthetic"))) == 7
    assert images.groups[:3].tolist() == ["cat-0", "cat-0", "cat-1"]
    assert set(images.groups[10:]) == {""}
    real = AugmentedImages(augmented, origins=["real"])
    assert len(real) == 10
    assert set(real.origins) == {"real"}


def test_a_transform_gets_the_uint8_image(augmented: Path) -> None:
    transform = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Resize((4, 4))])
    image, label = AugmentedImages(augmented, transform=transform)[0]
    assert (image.dtype, tuple(image.shape), label) == (torch.float32, (3, 4, 4), 0)
    assert 0 <= float(image.min()) <= float(image.max()) <= 1


@pytest.mark.slow
def test_workers_give_the_same_images(augmented: Path) -> None:
    images = AugmentedImages(augmented)
    loader = DataLoader(images, batch_size=17, num_workers=1, multiprocessing_context="spawn")
    ((batch, labels),) = list(loader)
    assert torch.equal(batch, torch.stack([images[i][0] for i in range(17)]))
    assert labels.tolist() == images.labels.tolist()


def test_what_cannot_be_read_is_refused(augmented: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no images of split 'test'; it has train"):
        AugmentedImages(augmented, "test")
    with pytest.raises(ConfigError, match="fake"):
        AugmentedImages(augmented, origins=["fake"])
    with pytest.raises(ConfigError, match="'neither' is unknown"):
        AugmentedImages(augmented).indices("neither")
    with pytest.raises(ArtifactError, match=r"no summary\.json"):
        AugmentedImages(tmp_path)
    altered = Path(shutil.copytree(augmented, tmp_path / "altered"))
    content = bytearray((altered / "real-dog.parquet").read_bytes())
    content[200] ^= 1
    (altered / "real-dog.parquet").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"real-dog\.parquet is missing or no longer matches"):
        AugmentedImages(altered)
