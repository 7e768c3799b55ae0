import csv
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import ImageFolder

from synthgen.artifacts import sha256_file, write_json
from synthgen.dataset.export import export_dataset
from synthgen.dataset.prepared import pixel_sha256
from synthgen.dataset.provenance import decode_png, read_provenance
from synthgen.dataset.shards import SyntheticRows, read_images, write_real_shard, write_synthetic_shard
from synthgen.errors import ArtifactError, ConfigError

NAMES = ["=cmd()|'/C calc'!A0", "../../evil"]
SLUGS = ["cmd", "evil"]
N_REAL, N_SYNTHETIC = (7, 3), (5, 6)


@pytest.fixture
def augmented(tmp_path: Path) -> Path:
    folder = tmp_path / "augmented"
    rng = np.random.default_rng(0)
    for label, slug in enumerate(SLUGS):
        images = rng.integers(0, 256, (N_REAL[label], 8, 6, 1)).astype(np.uint8)
        digests = [pixel_sha256(image) for image in images]
        common = {"label": label, "class_name": NAMES[label], "slug": slug, "fold": "final", "class_names": NAMES}
        write_real_shard(folder / f"real-{slug}.parquet", images, digests, digests, split="train", **common)
        n = N_SYNTHETIC[label]
        ones = np.ones(n, np.float32)
        made = rng.integers(0, 256, (n, 8, 6, 1)).astype(np.uint8)
        rows = SyntheticRows(made, np.arange(n), np.arange(n, dtype=np.int32), ones, ones, ones)
        write_synthetic_shard(folder / f"synthetic-{slug}.parquet", rows, generator_digest="ab" * 32, **common)
    files = {path.name: {"sha256": sha256_file(path)} for path in folder.glob("*.parquet")}
    write_json(folder / "summary.json", {"slugs": SLUGS, "class_names": NAMES, "files": files})
    return folder


def pixels_of(augmented: Path) -> set[bytes]:
    return {image.tobytes() for path in augmented.glob("*.parquet") for image in read_images(path).images}


def test_torchvision_reads_the_imagefolder_tree(augmented: Path, tmp_path: Path) -> None:
    destination = tmp_path / "out"
    assert export_dataset(augmented, destination, "imagefolder") == 21
    dataset = ImageFolder(str(destination), loader=lambda path: decode_png(Path(path).read_bytes()))
    assert dataset.classes == SLUGS
    assert len(dataset) == 21
    assert {np.asarray(image).tobytes() for image, _ in dataset} == pixels_of(augmented)
    assert np.bincount(dataset.targets).tolist() == [12, 9]


def test_labels_csv_names_every_file(augmented: Path, tmp_path: Path) -> None:
    destination = tmp_path / "out"
    export_dataset(augmented, destination, "imagefolder")
    with (destination / "labels.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["file"] for row in rows} == {
        path.relative_to(destination).as_posix() for path in destination.rglob("*.png")
    }
    for row in rows:
        assert NAMES[int(row["label"])] == row["class_name"]
        png = (destination / row["file"]).read_bytes()
        sha8 = Path(row["file"]).stem.rpartition("-")[2]
        assert pixel_sha256(decode_png(png)).startswith(sha8)
        provenance = read_provenance(png)
        if row["origin"] == "real":
            assert provenance is None
            assert row["source_sha256"].startswith(sha8)
        else:
            assert provenance is not None
            assert (provenance.generator_digest, str(provenance.seed)) == (row["generator_digest"], row["seed"])


def test_one_origin_alone(augmented: Path, tmp_path: Path) -> None:
    assert export_dataset(augmented, tmp_path / "out", "imagefolder", origins=["real"]) == 10
    assert not list((tmp_path / "out").rglob("synthetic-*"))


def test_webdataset_samples_are_whole_mixed_and_reproducible(
    augmented: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("synthgen.dataset.export.TAR_IMAGES", 8)
    export_dataset(augmented, tmp_path / "a", "webdataset")
    export_dataset(augmented, tmp_path / "b", "webdataset")
    tars = sorted((tmp_path / "a").glob("*.tar"))
    assert [path.name for path in tars] == ["train-000000.tar", "train-000001.tar", "train-000002.tar"]
    order, pixels = [], set()
    for path in tars:
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}
            samples: dict[str, dict[str, bytes]] = {}
            for member in members:
                key, _, extension = member.name.partition(".")
                samples.setdefault(key, {})[extension] = tar.extractfile(member).read()
        for sample in samples.values():
            assert set(sample) == {"cls", "json", "png"}
            facts = json.loads(sample["json"])
            assert facts["class_name"] == NAMES[int(sample["cls"])]
            order.append(int(sample["cls"]))
            pixels.add(decode_png(sample["png"]).tobytes())
    assert pixels == pixels_of(augmented)
    assert order != sorted(order)
    assert json.loads((tmp_path / "a" / "classes.json").read_text())[1] == {
        "label": 1,
        "slug": "evil",
        "class_name": NAMES[1],
    }


def test_coco_annotations_join(augmented: Path, tmp_path: Path) -> None:
    export_dataset(augmented, tmp_path / "out", "coco")
    coco = json.loads((tmp_path / "out" / "annotations.json").read_text(encoding="utf-8"))
    names = {category["id"]: category["name"] for category in coco["categories"]}
    images = {image["id"]: image for image in coco["images"]}
    assert len(images) == len(coco["annotations"]) == 21
    for annotation in coco["annotations"]:
        image = images[annotation["image_id"]]
        assert (image["width"], image["height"]) == (6, 8)
        assert annotation["bbox"] == [0, 0, 6, 8]
        slug = image["file_name"].split("/")[0]
        assert names[annotation["category_id"]] == NAMES[SLUGS.index(slug)]
        assert (tmp_path / "out" / "images" / image["file_name"]).is_file()


def test_nothing_is_written_outside_or_over(augmented: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="not an empty folder"):
        export_dataset(augmented, full, "imagefolder")
    assert (full / "mine.txt").read_text() == "keep"
    for inside in (augmented, augmented / "x", augmented.parent):
        with pytest.raises(ConfigError, match="overlaps"):
            export_dataset(augmented, inside, "imagefolder")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert export_dataset(augmented, empty, "imagefolder") == 21


def test_a_file_that_appears_meanwhile_is_kept(
    augmented: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from synthgen.dataset import export

    destination = tmp_path / "out"
    original = export._write_coco

    def slow(*arguments: object) -> None:
        original(*arguments)  # type: ignore[arg-type]  # passes on what it got
        destination.mkdir()
        (destination / "mine.txt").write_text("keep")

    monkeypatch.setattr(export, "_write_coco", slow)
    with pytest.raises(ArtifactError):
        export_dataset(augmented, destination, "coco")
    assert [path.name for path in destination.iterdir()] == ["mine.txt"]
    assert not list(tmp_path.glob(".*.partial"))


def test_altered_or_hostile_data_sets_are_refused(augmented: Path, tmp_path: Path) -> None:
    path = augmented / "real-cmd.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="no longer matches"):
        export_dataset(augmented, tmp_path / "out", "imagefolder")
    write_json(augmented / "summary.json", {"slugs": ["../x"], "class_names": ["x"], "files": {}})
    with pytest.raises(ArtifactError, match="slug"):
        export_dataset(augmented, tmp_path / "out", "imagefolder")
    assert not (tmp_path / "out").exists()


def test_unknown_layout_and_origin(augmented: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="imagefolder, webdataset, coco"):
        export_dataset(augmented, tmp_path / "out", "zip")
    for origins in ([], ["fake"]):
        with pytest.raises(ConfigError, match="real, synthetic"):
            export_dataset(augmented, tmp_path / "out", "coco", origins=origins)
