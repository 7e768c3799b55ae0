import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from synthgen.dataset.prepared import pixel_sha256
from synthgen.dataset.provenance import Provenance, read_provenance
from synthgen.dataset.shards import (
    SHARD_SCHEMA,
    SyntheticRows,
    count_rows,
    iter_rows,
    read_images,
    read_rows,
    shard_schema,
    write_real_shard,
    write_synthetic_shard,
)
from synthgen.errors import ArtifactError

NAMES = ["cat", 'dög, "x"']
DIGEST = "ab" * 32


def make_rows(n: int = 5, side: int = 8, channels: int = 1) -> SyntheticRows:
    rng = np.random.default_rng(n + side)
    return SyntheticRows(
        images=rng.integers(0, 256, (n, side, side, channels)).astype(np.uint8),
        seeds=rng.integers(0, 2**62, n),
        positions=np.arange(n, dtype=np.int32),
        d_score=rng.normal(size=n).astype(np.float32),
        teacher_agreement=rng.random(n).astype(np.float32),
        nearest_real=rng.random(n).astype(np.float32),
    )


def write_synthetic(path: Path, rows: SyntheticRows) -> None:
    write_synthetic_shard(
        path, rows, label=1, class_name=NAMES[1], slug="dog", fold="f0", generator_digest=DIGEST, class_names=NAMES
    )


def write_real(path: Path, images: np.ndarray, sha256: list[str] | None = None) -> None:
    digests = [pixel_sha256(image) for image in images] if sha256 is None else sha256
    groups = [f"g{i}" for i in range(len(images))]
    write_real_shard(
        path,
        images,
        digests,
        groups,
        label=0,
        class_name="cat",
        slug="cat",
        split="train",
        fold="f0",
        class_names=NAMES,
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_synthetic_rows_come_back(tmp_path: Path, channels: int) -> None:
    rows = make_rows(channels=channels)
    write_synthetic(tmp_path / "a.parquet", rows)
    columns = ["seed", "position", "d_score", "teacher_agreement", "nearest_real", "generator_digest", "source_sha256"]
    content = read_images(tmp_path / "a.parquet", columns)
    assert np.array_equal(content.images, rows.images)
    assert content.images.dtype == np.uint8
    assert content.labels.tolist() == [1] * 5
    for name, expected in (
        ("seed", rows.seeds),
        ("position", rows.positions),
        ("d_score", rows.d_score),
        ("teacher_agreement", rows.teacher_agreement),
        ("nearest_real", rows.nearest_real),
    ):
        assert np.array_equal(content.columns[name], expected)
        assert content.columns[name].dtype == expected.dtype
    assert set(content.columns["generator_digest"]) == {DIGEST}
    assert set(content.columns["source_sha256"]) == {""}


def test_the_image_says_what_the_row_says(tmp_path: Path) -> None:
    rows = make_rows()
    write_synthetic(tmp_path / "a.parquet", rows)
    for row in iter_rows(tmp_path / "a.parquet"):
        made = Provenance(row.values["generator_digest"], row.values["seed"], row.values["position"])
        assert read_provenance(row.png) == made


def test_real_rows_carry_no_provenance_and_missing_values_are_marked(tmp_path: Path) -> None:
    images = make_rows().images
    write_real(tmp_path / "r.parquet", images)
    content = read_images(tmp_path / "r.parquet", ["seed", "d_score", "group", "source_sha256"])
    assert content.columns["seed"].tolist() == [-1] * 5
    assert np.isnan(content.columns["d_score"]).all()
    assert content.columns["group"].tolist() == [f"g{i}" for i in range(5)]
    assert content.columns["source_sha256"].tolist() == [pixel_sha256(image) for image in images]
    assert all(read_provenance(row.png) is None for row in iter_rows(tmp_path / "r.parquet"))


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "a.parquet", make_rows())
    write_synthetic(tmp_path / "b.parquet", make_rows())
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_plain_pyarrow_and_pillow_open_it(tmp_path: Path) -> None:
    rows = make_rows()
    write_synthetic(tmp_path / "a.parquet", rows)
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.column_names == [field.name for field in SHARD_SCHEMA]
    assert table["class_name"].to_pylist() == [NAMES[1]] * 5
    for cell, image in zip(table["image"].to_pylist(), rows.images, strict=True):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(cell["bytes"]))), image[:, :, 0])


def test_hugging_face_metadata_has_the_documented_form(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "a.parquet", make_rows())
    schema = pq.read_schema(tmp_path / "a.parquet")
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == schema.names
    assert features["image"] == {"_type": "Image"}
    assert features["label"] == {"names": NAMES, "_type": "ClassLabel"}
    assert features["d_score"] == {"dtype": "float32", "_type": "Value"}
    assert features["seed"] == {"dtype": "int64", "_type": "Value"}
    assert features["position"] == {"dtype": "int32", "_type": "Value"}
    assert features["slug"] == {"dtype": "string", "_type": "Value"}


def test_hugging_face_datasets_sees_image_and_class_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets", reason="Hugging Face datasets is not a dependency")
    features = datasets.Features.from_arrow_schema(shard_schema(NAMES))
    assert isinstance(features["image"], datasets.Image)
    assert features["label"].names == NAMES


def test_an_empty_shard_is_readable(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "a.parquet", make_rows(0))
    assert count_rows(tmp_path / "a.parquet") == 0
    content = read_images(tmp_path / "a.parquet", ["seed", "slug"])
    assert len(content.images) == len(content.labels) == len(content.columns["seed"]) == 0
    assert read_rows(tmp_path / "a.parquet", np.zeros(0, np.int64)).shape[0] == 0


def test_row_groups_bound_what_a_reader_holds(tmp_path: Path) -> None:
    rows = make_rows(150, side=128, channels=1)
    write_synthetic(tmp_path / "a.parquet", rows)
    metadata = pq.ParquetFile(tmp_path / "a.parquet").metadata
    sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert sum(sizes) == 150
    assert max(sizes) * 128 * 128 <= 4_000_000 or max(sizes) <= 1024
    many = make_rows(1030)
    write_synthetic(tmp_path / "b.parquet", many)
    assert pq.ParquetFile(tmp_path / "b.parquet").metadata.num_row_groups == 2
    wanted = np.array([0, 1023, 1024, 1029])
    assert np.array_equal(read_rows(tmp_path / "b.parquet", wanted), many.images[wanted])
    with pytest.raises(ArtifactError, match="1030 rows"):
        read_rows(tmp_path / "b.parquet", np.array([1030]))


def test_wrong_real_pixels_are_refused_on_writing_and_nothing_is_left(tmp_path: Path) -> None:
    images = make_rows().images
    with pytest.raises(ArtifactError, match="real image 0"):
        write_real(tmp_path / "r.parquet", images, ["0" * 64] * 5)
    assert list(tmp_path.iterdir()) == []


def test_altered_real_pixels_are_refused_on_reading(tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    write_real(path, make_rows().images)
    table = pq.read_table(path)
    swapped = table.set_column(
        7, "source_sha256", pa.array(["0" * 64, *table["source_sha256"].to_pylist()[1:]], pa.string())
    )
    pq.write_table(swapped, path)
    with pytest.raises(ArtifactError, match="sha256"):
        read_images(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    with pytest.raises(ArtifactError, match="missing"):
        read_images(path)
    path.write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(ArtifactError, match="not a readable"):
        read_images(path)
    pq.write_table(pa.table({"label": [1]}), path)
    with pytest.raises(ArtifactError, match="missing columns: image"):
        read_images(path)
    write_synthetic(path, make_rows())
    with pytest.raises(ArtifactError, match="no column nonsense"):
        read_images(path, ["nonsense"])


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_synthetic(path, make_rows())
    whole = path.read_bytes()
    for share in range(10):
        path.write_bytes(whole[: len(whole) * share // 10])
        with pytest.raises(ArtifactError):
            read_images(path)


def test_inconsistent_rows_are_refused(tmp_path: Path) -> None:
    rows = make_rows()
    short = SyntheticRows(rows.images, rows.seeds[:3], rows.positions, rows.d_score, rows.d_score, rows.d_score)
    with pytest.raises(ArtifactError, match="unequal length"):
        write_synthetic(tmp_path / "a.parquet", short)
    with pytest.raises(ArtifactError, match="label 0 is not the position"):
        write_synthetic_shard(
            tmp_path / "a.parquet",
            rows,
            label=0,
            class_name=NAMES[1],
            slug="dog",
            fold="f0",
            generator_digest=DIGEST,
            class_names=NAMES,
        )
