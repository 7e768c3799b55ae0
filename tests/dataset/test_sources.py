"""Every form of raw data: what it yields, in which order, and what it refuses."""

import io
import json
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets
from torchvision.datasets.utils import verify_str_arg

from synthgen.config import PrepareSection, SourceSection
from synthgen.dataset.raw import order_classes
from synthgen.dataset.sources import open_source
from synthgen.errors import LeakError, SourceError

PREPARE = PrepareSection(image_size=8, channels=1)


def png(value=0, size=(8, 8), mode="L"):
    stream = io.BytesIO()
    Image.new(mode, size, value).save(stream, "PNG")
    return stream.getvalue()


def write(path, data=None, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(value) if data is None else data)


def opened(kind, root, path=".", **section):
    return open_source(SourceSection(type=kind, path=path, **section), root, PREPARE)


def rows(source):
    return [(item.source, item.class_name, item.split, item.group) for item in source.items()]


def reasons(source):
    return {row.source: row.reason for row in source.quarantine}


def test_order_of_classes():
    assert order_classes(["10", "9", "-1"]) == ["-1", "9", "10"]
    assert order_classes(["10", "9", "b"]) == ["10", "9", "b"]
    assert order_classes(["1", "01"]) == ["01", "1"]
    assert order_classes(["9" * 5000, "1"])[0] == "1"


def test_digits_are_scikit_learns(tmp_path):
    source = opened("digits", tmp_path)
    items = list(source.items())
    oracle = load_digits()
    assert source.class_names == [str(digit) for digit in range(10)]
    assert source.n_items == len(items) == 1797
    assert [item.class_name for item in items] == [str(label) for label in oracle.target]
    pixels = items[1000].payload.read(10**9).value
    assert pixels.dtype == np.uint8
    assert np.abs(pixels - oracle.images[1000] / 16 * 255).max() <= 0.5
    assert [item.source for item in items] == sorted(item.source for item in items)


def test_imagefolder(tmp_path):
    for name in ("b/2.png", "b/1.png", "a/deep/3.png", "a/x.txt"):
        write(tmp_path / "raw" / name)
    write(tmp_path / "raw" / "README.md")
    write(tmp_path / "raw" / ".DS_Store")
    write(tmp_path / "raw" / ".git" / "x.png")
    write(tmp_path / "raw" / "a" / ".hidden.png")
    source = opened("imagefolder", tmp_path, "raw")
    assert source.class_names == ["a", "b"]
    assert rows(source) == [
        ("a/deep/3.png", "a", None, None),
        ("a/x.txt", "a", None, None),
        ("b/1.png", "b", None, None),
        ("b/2.png", "b", None, None),
    ]
    assert reasons(source) == {
        "README.md": "outside_class",
        ".DS_Store": "hidden",
        ".git": "hidden",
        "a/.hidden.png": "hidden",
    }


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Valid"])
def test_imagefolder_with_splits(tmp_path, name):
    for path in ("train/1/a.png", "train/10/b.png", "train/2/c.png", f"{name}/1/d.png", "test/2/e.png"):
        write(tmp_path / path)
    write(tmp_path / "notes.txt")
    source = opened("imagefolder", tmp_path)
    assert source.class_names == ["1", "2", "10"]
    assert {(path, split) for path, _, split, _ in rows(source)} == {
        ("train/1/a.png", "train"),
        ("train/10/b.png", "train"),
        ("train/2/c.png", "train"),
        (f"{name}/1/d.png", "val"),
        ("test/2/e.png", "test"),
    }
    assert reasons(source) == {"notes.txt": "outside_class"}


def test_imagefolder_layouts_that_could_be_read_in_two_ways(tmp_path):
    write(tmp_path / "vehicles" / "train" / "a.png")
    write(tmp_path / "vehicles" / "car" / "b.png")
    assert opened("imagefolder", tmp_path, "vehicles").class_names == ["car", "train"]
    for name in ("train/x", "test/x", "other/x"):
        write(tmp_path / "mixed" / name / "a.png")
    with pytest.raises(SourceError, match=r"split folders \('test', 'train'\) and others \('other'\)"):
        opened("imagefolder", tmp_path, "mixed")
    for name in ("train/x", "val/x", "valid/x"):
        write(tmp_path / "double" / name / "a.png")
    with pytest.raises(SourceError, match="'val', 'valid' stand for the same split"):
        opened("imagefolder", tmp_path, "double")


def test_missing_or_empty_places(tmp_path):
    with pytest.raises(SourceError, match="does not exist"):
        opened("imagefolder", tmp_path, "nowhere")
    with pytest.raises(SourceError, match="holds no class folder"):
        opened("imagefolder", tmp_path)
    with pytest.raises(SourceError, match=r"no \.parquet file"):
        opened("parquet", tmp_path)
    write(tmp_path / "flat" / "a.png")
    with pytest.raises(SourceError, match="holds no class folder"):
        opened("imagefolder", tmp_path, "flat")
    with pytest.raises(SourceError, match="cannot be listed"):
        opened("imagefolder", tmp_path, "flat/a.png")


def table(root, text, **section):
    (root / "labels.csv").write_text(text, encoding="utf-8")
    return opened("csv", root, **section)


def test_csv(tmp_path):
    for name in ("x/2.png", "x/1.png", "y.png"):
        write(tmp_path / name)
    text = "group,label,path,split,more\ng1,no,x/2.png,train,\n,yes,./x/../x/1.png,validation,\ng1,no,y.png,test,7\n"
    source = table(tmp_path, "\ufeff" + text)
    assert source.class_names == ["no", "yes"]
    assert rows(source) == [
        ("x/1.png", "yes", "val", None),
        ("x/2.png", "no", "train", "g1"),
        ("y.png", "no", "test", "g1"),
    ]
    assert source.quarantine == []


def test_csv_rows_that_are_put_aside(tmp_path):
    write(tmp_path / "raw" / "a.png")
    write(tmp_path / "secret.png")
    (tmp_path / "raw" / "link").symlink_to(tmp_path)
    (tmp_path / "raw" / "link.png").symlink_to(tmp_path / "secret.png")
    lines = ["a.png,x", "a.png,x", "../secret.png,x", f"{tmp_path}/secret.png,x", "link/secret.png,x", "link.png,x"]
    lines += ["b.png,", "a.png/b.png,x", "gone.png/b.png,x", ",x", '"a\x00b",x', "../raw/a.png,x"]
    (tmp_path / "raw" / "labels.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
    source = opened("csv", tmp_path, "raw")
    assert rows(source) == [("a.png", "x", None, None)]
    assert [(row.source, row.reason) for row in source.quarantine] == [
        ("a.png", "repeated_row"),
        ("../secret.png", "outside_root"),
        (f"{tmp_path}/secret.png", "outside_root"),
        ("link/secret.png", "symlink"),
        ("link.png", "symlink"),
        ("b.png", "no_label"),
        ("a.png/b.png", "missing"),
        ("gone.png/b.png", "missing"),
        ("", "outside_root"),
        ("a\x00b", "missing"),
        ("a.png", "repeated_row"),
    ]


def test_csv_refusals(tmp_path):
    write(tmp_path / "a.png")
    write(tmp_path / "b.png")
    with pytest.raises(SourceError, match=r"columns \['file', 'label'\]"):
        table(tmp_path, "file,label\na.png,x\n")
    with pytest.raises(SourceError, match=r"line 2: 3 cells under 2 columns"):
        table(tmp_path, "path,label\na.png,x,y\n")
    with pytest.raises(SourceError, match=r"line 2: split 'dev' is unknown"):
        table(tmp_path, "path,label,split\na.png,x,dev\n")
    with pytest.raises(SourceError, match="1 of 2 rows have no split"):
        table(tmp_path, "path,label,split\na.png,x,train\nb.png,x,\n")
    with pytest.raises(LeakError, match=r"'a\.png' is listed twice"):
        table(tmp_path, "path,label\na.png,x\na.png,y\n")
    with pytest.raises(LeakError, match=r"'a\.png' is listed twice"):
        table(tmp_path, "path,label,split\na.png,x,train\na.png,x,test\n")
    with pytest.raises(SourceError, match=r"leaves source\.path"):
        table(tmp_path, "path,label\na.png,x\n", csv_file="../labels.csv")
    with pytest.raises(SourceError, match="cannot be read as a UTF-8 table"):
        table(tmp_path, "path,label\na.png,x\n", csv_file="other.csv")
    (tmp_path / "latin.csv").write_bytes(b"path,label\na.png,\xe9\n")
    with pytest.raises(SourceError, match="cannot be read as a UTF-8 table"):
        opened("csv", tmp_path, csv_file="latin.csv")
    with pytest.raises(SourceError, match="holds no labelled image"):
        table(tmp_path, "path,label\n")


def shard(path, images, labels, label_names=None, **columns):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    data = {"image": pa.array([{"bytes": image, "path": None} for image in images], kind), "label": pa.array(labels)}
    made = pa.table({**data, **columns})
    if label_names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": label_names, "_type": "ClassLabel"}}
        made = made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(made, path, row_group_size=100)


def test_parquet_in_hugging_face_layout(tmp_path):
    shard(
        tmp_path / "data" / "train-00000-of-00002.parquet",
        [png(i % 256) for i in range(150)],
        [0, 1] * 75,
        ["cat", "dog"],
    )
    shard(tmp_path / "data" / "test-00000-of-00001.parquet", [png(1)], [1], ["cat", "dog"])
    source = opened("parquet", tmp_path, "data")
    found = list(source.items())
    assert source.class_names == ["cat", "dog"]
    assert source.n_items == len(found) == 151
    assert (found[0].source, found[0].split) == ("test-00000-of-00001.parquet#000000000", "test")
    assert (found[-1].source, found[-1].split) == ("train-00000-of-00002.parquet#000000149", "train")
    assert found[-1].payload.read(10**6).value == png(149)
    assert [item.source for item in found] == sorted(item.source for item in found)


def test_parquet_of_binary_text_and_groups(tmp_path):
    made = pa.table({"image": [png(1), None], "label": ["b", "a"], "group": ["g", None]})
    pq.write_table(made, tmp_path / "all.parquet")
    source = opened("parquet", tmp_path, "all.parquet")
    assert rows(source) == [("all.parquet#000000000", "b", None, "g"), ("all.parquet#000000001", "a", None, None)]
    shard(tmp_path / "int" / "x.parquet", [png(1)] * 3, [12, 2, None])
    assert opened("parquet", tmp_path, "int").class_names == ["2", "12"]


def test_parquet_refusals(tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(SourceError, match="not a readable Parquet file"):
        opened("parquet", tmp_path, "bad.parquet")
    pq.write_table(pa.table({"img": [b""], "label": [1]}), tmp_path / "names.parquet")
    with pytest.raises(SourceError, match=r"columns \['img', 'label'\]"):
        opened("parquet", tmp_path, "names.parquet")
    pq.write_table(pa.table({"image": [[1.0]], "label": [1]}), tmp_path / "list.parquet")
    with pytest.raises(SourceError, match="column image is list"):
        opened("parquet", tmp_path, "list.parquet")
    pq.write_table(pa.table({"image": [b"x"], "label": [1.5]}), tmp_path / "float.parquet")
    with pytest.raises(SourceError, match="column label is double"):
        opened("parquet", tmp_path, "float.parquet")
    shard(tmp_path / "made.parquet", [png()], ["a"], origin=pa.array(["synthetic"]))
    with pytest.raises(SourceError, match="synthetic rows"):
        opened("parquet", tmp_path, "made.parquet")
    shard(tmp_path / "half" / "train-0.parquet", [png()], ["a"])
    shard(tmp_path / "half" / "more.parquet", [png()], ["a"])
    with pytest.raises(SourceError, match=r"more\.parquet has no split"):
        opened("parquet", tmp_path, "half")


def test_npz(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(0, 256, (5, 4, 6, 3), np.uint8),
        "y_train": np.array([[2], [0], [1], [1], [0]]),
        "x_test": rng.integers(0, 256, (2, 4, 6, 3), np.uint8),
        "y_test": np.array([1, 2], np.uint8),
        "class_names": np.array(["zero", "one", "two"]),
    }
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    source = opened("npz", tmp_path, "a.npz")
    found = list(source.items())
    assert source.class_names == ["one", "two", "zero"]
    assert [(item.source, item.class_name, item.split) for item in found[:3]] == [
        ("x_test/000000000", "one", "test"),
        ("x_test/000000001", "two", "test"),
        ("x_train/000000000", "two", "train"),
    ]
    read = np.stack([item.payload.read(10**6).value for item in found[2:]])
    np.testing.assert_array_equal(read, arrays["x_train"])
    np.savez(tmp_path / "b.npz", x=arrays["x_train"][..., 0], y=np.array(list("baccb")))
    assert rows(opened("npz", tmp_path, "b.npz"))[1] == ("x/000000001", "a", None, None)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((2, 3, 8, 8), np.uint8), "y": [0, 1]}, r"channels first\? transpose"),
        ({"x": np.zeros((2, 8, 8, 7), np.uint8), "y": [0, 1]}, "1 to 4 channels are expected last"),
        ({"x": np.zeros((2, 64), np.uint8), "y": [0, 1]}, r"\(N, H, W\) or \(N, H, W, C\) is needed"),
        ({"x": np.zeros((2, 8, 8), np.float32), "y": [0, 1]}, r"float32; uint8 \(or uint16\) pixels"),
        ({"x": np.zeros((2, 8, 8), np.uint8), "y": [0, 1, 1]}, "x has 2 rows and y has 3"),
        ({"x": np.zeros((2, 8, 8), np.uint8), "y": [0.5, 1]}, "integers or text are needed"),
        ({"x": np.zeros((2, 8, 8), np.uint8), "y": [0, 5], "class_names": ["a", "b"]}, "goes from 0 to 5"),
        ({"x": np.zeros((2, 8, 8), np.uint8)}, "x has no labels; add y"),
        ({"x_test": np.zeros((2, 8, 8), np.uint8), "y_test": [0, 1]}, "x_train and y_train, or x and y, are needed"),
        ({"x": np.zeros((2, 8, 8), np.uint8), "y": np.array([{}, "b"], dtype=object)}, "pickled objects"),
        ({"x": np.asfortranarray(np.zeros((2, 8, 8), np.uint8)), "y": [0, 1]}, "column by column"),
    ],
)
def test_npz_refusals(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(SourceError, match=message):
        opened("npz", tmp_path, "a.npz")


def test_npz_that_is_cut_or_no_archive(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 8, 8), np.uint8), y=[0, 1])
    data = (tmp_path / "a.npz").read_bytes()
    for cut in (0, 10, len(data) // 2, len(data) - 5):
        (tmp_path / "a.npz").write_bytes(data[:cut])
        with pytest.raises(SourceError, match="not a readable NumPy archive"):
            opened("npz", tmp_path, "a.npz")


def write_mnist(root, part, n):
    """The idx files that torchvision.datasets.MNIST reads without a download."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(n).integers(0, 256, (n, 28, 28), np.uint8)
    labels = (np.arange(n) % 10).astype(np.uint8)
    (folder / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, n, 28, 28) + pixels.tobytes())
    (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, n) + labels.tobytes())
    return pixels


def test_torchvision_by_name(tmp_path):
    pixels = write_mnist(tmp_path, "train", 20)
    write_mnist(tmp_path, "t10k", 10)
    source = opened("torchvision", tmp_path, torchvision_name="MNIST")
    found = list(source.items())
    assert source.class_names[:2] == ["0 - zero", "1 - one"]
    assert source.n_items == len(found) == 30
    assert (found[0].source, found[0].split) == ("test/000000000", "test")
    assert (found[-1].source, found[-1].class_name, found[-1].split) == ("train/000000019", "9 - nine", "train")
    np.testing.assert_array_equal(np.asarray(found[10].payload.read(10**6).value), pixels[0])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, "no data set of torchvision"),
        ("os", "no data set of torchvision"),
        ("__builtins__", "no data set of torchvision"),
        ("VisionDataset", "no data set of torchvision"),
        ("ImageFolder", "use type: imagefolder"),
        ("EMNIST", r"needs \['split'\]"),
        ("CocoDetection", r"needs \['annFile'\]"),
    ],
)
def test_torchvision_refusals(tmp_path, name, message):
    with pytest.raises(SourceError, match=message):
        opened("torchvision", tmp_path, torchvision_name=name)


class Parts(datasets.VisionDataset):
    """A data set as torchvision has them: its parts are called trainval and test, its labels `_labels`."""

    classes = ("cat", ("dog", "hound"))

    def __init__(self, root, split="trainval", transform=None, download=False):
        super().__init__(root, transform=transform)
        self._labels = {"trainval": [1, 0, 1], "test": [0]}[verify_str_arg(split, "split", ("trainval", "test"))]

    def __len__(self):
        return len(self._labels)

    def __getitem__(self, index):
        return Image.new("RGB", (9, 9), (index, 0, 0)), self._labels[index]


def test_torchvision_split_names(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "Parts", Parts, raising=False)
    monkeypatch.setattr(datasets, "__all__", (*datasets.__all__, "Parts"))
    source = opened("torchvision", tmp_path, torchvision_name="Parts")
    assert source.class_names == ["cat", "dog, hound"]
    assert rows(source) == [
        ("test/000000000", "cat", "test", None),
        ("train/000000000", "dog, hound", "train", None),
        ("train/000000001", "cat", "train", None),
        ("train/000000002", "dog, hound", "train", None),
    ]


def test_torchvision_download_that_fails(tmp_path, monkeypatch):
    def refuse(self):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets.MNIST, "download", refuse)
    with pytest.raises(SourceError, match="MNIST cannot be opened: ConnectionError: no route"):
        opened("torchvision", tmp_path, torchvision_name="MNIST")


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31mred", " "])
def test_class_names_that_cannot_be_written(tmp_path, name):
    write(tmp_path / name / "a.png")
    with pytest.raises(SourceError, match="control characters"):
        opened("imagefolder", tmp_path)
