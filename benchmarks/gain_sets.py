"""The projects that bench-gain measures: one folder per data set and split, laid out from real data.

Owns how the splits are drawn; nothing is trained here. Splits of MNIST are disjoint draws of its training images (and
the draw for n = 10 is part of that for n = 20), tested on all 10,000 test images. Those of the digits are random halves
of 1,797 images, so they overlap. Tiles are cut into folds by the product itself, once per partition. CIFAR-10-LT comes
split. Parameters stand in benchmarks/gain/*.yaml.
"""

import io
import shutil
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bench_data import ROOT, find_bench_file
from numpy.typing import NDArray
from ruamel.yaml import YAML

PARAMS = ROOT / "benchmarks" / "gain"
SEED = 2026
Layout = Callable[[Path, int], None]


@dataclass(frozen=True)
class GainSet:
    """A row of the table: a data set, how scarce it is made, and how often it is split.

    Attributes:
        name: of its folder and its results.
        title: for the table.
        params: file in benchmarks/gain/.
        scarce: class names.
        n_splits: projects in all.
        layout: writes the raw data of split k to a project folder.
        overlap: test over training images of one split where splits are drawn from the same images, for the corrected
            variance (Nadeau and Bengio 2003); 0 where training draws are disjoint.
        bar: what it is to show, in words.
        with_masks: classical arms that use more than images and labels; the others are measured against the best of
            those that do not.
    """

    name: str
    title: str
    params: str
    scarce: tuple[str, ...]
    n_splits: int
    layout: Layout
    overlap: float
    bar: str
    with_masks: tuple[str, ...] = ()


def _found(name: str) -> Path:
    path = find_bench_file(name)
    if path is None:
        sys.exit(f"{name} is neither in $SYNTHGEN_BENCH_DATA, ../shared/data nor .bench-data/")
    return path


def _raw(folder: Path) -> Path:
    raw = folder / "data" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    return raw


def _take(
    labels: NDArray[np.int64], order: NDArray[np.int64], split: int, block: int, take: dict[int, tuple[int, int]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(train rows, val rows) of one of several disjoint draws: `take[label]` images of each class for both.

    Args:
        labels: of all images; order: a permutation of them; block: images of each class that a draw may use.
    """
    train, val = [], []
    for label, (n_train, n_val) in take.items():
        own = order[labels[order] == label][split * block : (split + 1) * block]
        if len(own) < n_train + n_val:
            sys.exit(f"split {split}: class {label} has {len(own)} images left, {n_train + n_val} are needed")
        train.append(own[:n_train])
        val.append(own[block - n_val :] if len(own) == block else own[len(own) - n_val :])
    return np.concatenate(train), np.concatenate(val)


def mnist_layout(scarce: tuple[int, ...], n: int) -> Layout:
    """500 training and 30 validation images a class, of the scarce ones `n` and 5; all test images."""

    def lay_out(folder: Path, split: int) -> None:
        with np.load(_found("mnist.npz")) as archive:
            images, labels = archive["x_train"], archive["y_train"].astype(np.int64)
            x_test, y_test = archive["x_test"], archive["y_test"]
        order = np.random.default_rng(SEED).permutation(len(labels))
        take = {label: (n, 5) if label in scarce else (500, 30) for label in range(10)}
        train, val = _take(labels, order, split, 530, take)
        np.savez(
            _raw(folder) / "images.npz",
            x_train=images[train],
            y_train=labels[train],
            x_val=images[val],
            y_val=labels[val],
            x_test=x_test,
            y_test=y_test,
        )

    return lay_out


def digits_layout(scarce: tuple[int, ...], n: int) -> Layout:
    """A random half of the digits to train on (`n` images of the scarce classes), of it 5 or 9 a class to validate."""

    def lay_out(folder: Path, split: int) -> None:
        from sklearn.datasets import load_digits

        loaded = load_digits()
        images, labels = np.rint(loaded.images * (255.0 / 16.0)).astype(np.uint8), loaded.target.astype(np.int64)
        order = np.random.default_rng([SEED, split]).permutation(len(labels))
        train, val, test = [], [], []
        for label in range(10):
            own = order[labels[order] == label]
            half = len(own) // 2
            n_val = 5 if label in scarce else 9
            val.append(own[:n_val])
            train.append(own[n_val : n_val + n] if label in scarce else own[n_val:half])
            test.append(own[half:])
        rows = {"train": np.concatenate(train), "val": np.concatenate(val), "test": np.concatenate(test)}
        np.savez(
            _raw(folder) / "images.npz",
            **{f"x_{side}": images[found] for side, found in rows.items()},
            **{f"y_{side}": labels[found] for side, found in rows.items()},
        )

    return lay_out


def lay_out_tiles(folder: Path, split: int) -> None:
    """All tiles and their masks; the partition follows from the project's seed."""
    del split
    raw = _raw(folder) / "magnetic_tiles"
    unpack_images(_found("magnetic-tile.tar"), raw, (".jpg", ".jpeg"))
    unpack_images(_found("magnetic-tile-masks.tar.gz"), raw / ".masks", (".png",))


def unpack_images(archive: Path, target: Path, endings: tuple[str, ...]) -> None:
    """CLASS/NAME of an archive to folders of `target`, whatever stands above CLASS."""
    with tarfile.open(archive) as tar:
        for member in tar:
            if not member.isfile() or not member.name.lower().endswith(endings):
                continue
            stream = tar.extractfile(member)
            assert stream is not None
            path = target / Path(member.name).parent.name / Path(member.name).name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(stream.read())


def lay_out_cifar(folder: Path, split: int) -> None:
    """CIFAR-10-LT with imbalance 100 as it comes: train and test."""
    del split
    images, names = _cifar_sides()
    arrays: dict[str, Any] = {f"x_{side}": np.stack(images[side]) for side in images}
    arrays |= {f"y_{side}": np.asarray(names[side]) for side in names}
    np.savez(_raw(folder) / "images.npz", **arrays)


def lay_out_colour(folder: Path, split: int) -> None:
    """The first 500 training images of each class of CIFAR-10-LT, 3,391 in all, without a test side of its own."""
    del split
    images, names = _cifar_sides()
    labels = np.asarray(names["train"])
    chosen = np.concatenate([np.flatnonzero(labels == name)[:500] for name in np.unique(labels)])
    np.savez(_raw(folder) / "images.npz", x=np.stack(images["train"])[chosen], y=labels[chosen])


def _cifar_sides() -> tuple[dict[str, list[NDArray[np.uint8]]], dict[str, list[str]]]:
    """Images (32, 32, 3) and class names of `train` and `test`, in the archive's order."""
    from PIL import Image

    raw: dict[str, list[NDArray[np.uint8]]] = {"train": [], "test": []}
    names: dict[str, list[str]] = {"train": [], "test": []}
    with tarfile.open(_found("cifar10-lt100.tar.gz")) as tar:
        for member in tar:
            parts = Path(member.name).parts
            side = next((part for part in parts if part in raw), None)
            if side is None or not member.isfile() or not member.name.lower().endswith((".jpg", ".jpeg", ".png")):
                continue
            stream = tar.extractfile(member)
            assert stream is not None
            with Image.open(io.BytesIO(stream.read())) as image:
                raw[side].append(np.asarray(image.convert("RGB")))
            names[side].append(parts[-2])
    return raw, names


def _mnist(role: str, scarce: tuple[int, ...], n: int, bar: str) -> GainSet:
    digits = ", ".join(str(digit) for digit in scarce)
    return GainSet(
        f"mnist_{role}_n{n}",
        f"MNIST, {digits} scarce, n = {n} ({role})",
        "mnist.yaml",
        tuple(str(digit) for digit in scarce),
        10,
        mnist_layout(scarce, n),
        0.0,
        bar,
    )


_BARS = {10: "error down by 20 %, interval above 0", 20: "error down by 10 %, interval above 0", 50: "no harm"}
SETS = {
    one.name: one
    for one in (
        *(_mnist("develop", (3, 5, 8), n, bar) for n, bar in _BARS.items()),
        *(_mnist("confirm", (4, 7, 9), n, bar) for n, bar in _BARS.items()),
        GainSet(
            "digits",
            "digits 8 px, 3 and 8 of 15 images",
            "digits.yaml",
            ("3", "8"),
            10,
            digits_layout((3, 8), 15),
            901 / 676,
            "no harm; +3 points over `balanced`",
        ),
        GainSet(
            "tiles",
            "magnetic tiles 64 px, five defects scarce",
            "tiles.yaml",
            ("blowhole", "break", "crack", "fray", "uneven"),
            2,
            lay_out_tiles,
            0.25,
            "balanced accuracy +4 points, AUC up, free not down by more than 5 points",
            with_masks=("paste",),
        ),
        GainSet(
            "cifar",
            "CIFAR-10-LT 100 (GPU)",
            "cifar.yaml",
            ("frog", "horse", "ship", "truck"),
            1,
            lay_out_cifar,
            0.0,
            "+3 points on the four rarest classes",
        ),
    )
}


def lay_out_project(one: GainSet, split: int, folder: Path) -> None:
    """Writes raw data (once) and params.yaml (always, with the split's seed) to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / "data" / "raw" / ".laid_out"
    if not marker.exists():
        shutil.rmtree(folder / "data" / "raw", ignore_errors=True)
        one.layout(folder, split)
        marker.touch()
    yaml = YAML()
    params = yaml.load(PARAMS / one.params)
    params["seed"] = split
    params["plan"]["scarce"] = list(one.scarce)
    with (folder / "params.yaml").open("w", encoding="utf-8") as stream:
        yaml.dump(params, stream)
