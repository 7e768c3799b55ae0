"""The torchvision source: any labelled data set of `torchvision.datasets`, by its class name.

Owns finding the class, its splits, its labels and its own download. Refuses names that are no data
set of labelled pictures, and sets that need arguments which only a person can choose.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from synthgen.dataset.raw import (
    SPLIT_NAMES,
    RawContent,
    RawItem,
    RefusedError,
    Source,
    Split,
    array_sha256,
    order_classes,
)
from synthgen.errors import SourceError


@dataclass(frozen=True)
class TorchvisionPayload:
    """Row `index` of a torchvision data set, which every worker opens for itself once."""

    name: str
    arguments: tuple[tuple[str, Any], ...]
    index: int
    nbytes: int = 0

    def read(self, max_bytes: int) -> RawContent:
        """The picture as the data set decodes it."""
        picture = _torchvision_dataset(self.name, self.arguments)[self.index][0]
        if not isinstance(picture, Image.Image):
            raise RefusedError("unsupported_mode", f"{type(picture).__name__} instead of a picture")
        return RawContent(picture, array_sha256(np.asarray(picture)))


@lru_cache(maxsize=4)
def _torchvision_dataset(name: str, arguments: tuple[tuple[str, Any], ...]) -> Any:
    return _torchvision_class(name)(**dict(arguments))


def _torchvision_class(name: str | None) -> Any:
    from torchvision import datasets

    found = getattr(datasets, name or "", None) if name in datasets.__all__ else None
    generic = (datasets.VisionDataset, datasets.ImageFolder, datasets.DatasetFolder)
    if not (isinstance(found, type) and issubclass(found, datasets.VisionDataset)) or found in generic:
        raise SourceError(
            f"source.torchvision_name {name!r} is no data set of torchvision.datasets; write e.g. MNIST or EuroSAT, "
            "or use type: imagefolder for folders of your own"
        )
    return found


def open_torchvision(name: str | None, path: Path) -> Source:
    """A torchvision data set of labelled pictures by its class name, downloaded by itself to `path`.

    Classes that take `train` or `split` give train, val and test where they have them; others give one
    unsplit set.

    Raises:
        SourceError: not a data set class, arguments that only a person can choose, labels that are
            not integers, or a download that failed.
    """
    found = _torchvision_class(name)
    own = inspect.signature(found).parameters
    known = {key for cls in inspect.getmro(found)[:-1] for key in inspect.signature(cls).parameters}
    unknown = [
        key
        for key, parameter in own.items()
        if key not in ("root", "train", "split")
        and parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if unknown or ("split" in own and own["split"].default is inspect.Parameter.empty):
        missing = unknown or ["split"]
        raise SourceError(
            f"torchvision {name} needs {missing}, which params.yaml cannot give; export it to class folders"
        )
    shared = {"root": str(path)} if "root" in own else {}
    parts: dict[Split | None, tuple[tuple[str, Any], ...]] = {}
    if "train" in own:
        for split, flag in (("train", True), ("test", False)):
            parts[SPLIT_NAMES[split]] = _open_part(found, {**shared, "train": flag}, "download" in known)
    elif "split" in own:
        parts = _split_parts(found, shared, "download" in known)
    else:
        parts[None] = _open_part(found, shared, "download" in known)
    labels = {split: _torchvision_labels(found.__name__, arguments) for split, arguments in parts.items()}
    first = _torchvision_dataset(found.__name__, next(iter(parts.values())))
    declared = _declared_names(first)
    names = {label: declared[label] if declared else str(label) for rows in labels.values() for label in rows}

    def items() -> Iterator[RawItem]:
        for split in sorted(parts, key=str):
            for index, label in enumerate(labels[split]):
                payload = TorchvisionPayload(found.__name__, parts[split], index)
                yield RawItem(f"{split or 'all'}/{index:09d}", names[label], split, None, payload)

    classes = order_classes([*declared, *names.values()])
    return Source(classes, sum(len(rows) for rows in labels.values()), items)


def _open_part(found: Any, arguments: dict[str, Any], download: bool) -> tuple[tuple[str, Any], ...]:
    try:
        if download:
            found(**arguments, download=True)
            arguments = {**arguments, "download": False}
        frozen = tuple(sorted(arguments.items()))
        _torchvision_dataset(found.__name__, frozen)
    except Exception as error:  # urllib, tarfile, RuntimeError ...: whatever its download meets
        raise SourceError(f"torchvision {found.__name__} cannot be opened: {type(error).__name__}: {error}") from error
    return frozen


def _split_parts(found: Any, shared: dict[str, Any], download: bool) -> dict[Split | None, tuple[tuple[str, Any], ...]]:
    parts: dict[Split | None, tuple[tuple[str, Any], ...]] = {}
    refused = ""
    for name in ("train", "trainval", "val", "valid", "validation", "test"):
        split = SPLIT_NAMES.get(name, "train")
        if split in parts:
            continue
        try:
            parts[split] = _open_part(found, {**shared, "split": name}, download)
        except SourceError as error:
            if not isinstance(error.__cause__, ValueError):
                raise
            refused = str(error)  # this set calls its parts by other names
    if "train" not in parts:
        raise SourceError(f"torchvision {found.__name__} has no split called train: {refused}")
    return parts


def _torchvision_labels(name: str, arguments: tuple[tuple[str, Any], ...]) -> list[int]:
    dataset = _torchvision_dataset(name, arguments)
    labels = next((getattr(dataset, key) for key in ("targets", "labels", "_labels") if hasattr(dataset, key)), None)
    if labels is None or len(labels) != len(dataset):
        labels = [dataset[index][1] for index in range(len(dataset))]
    values = np.asarray(labels)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise SourceError(f"torchvision {name} has no integer label per picture (got {values.dtype} {values.shape})")
    return [int(value) for value in values]


def _declared_names(dataset: Any) -> list[str]:
    classes = getattr(dataset, "classes", None)
    if not isinstance(classes, list | tuple):
        return []
    # ImageNet gives a tuple of synonyms for each class.
    return [", ".join(map(str, entry)) if isinstance(entry, list | tuple) else str(entry) for entry in classes]
