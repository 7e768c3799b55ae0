"""Opening the raw data that params.yaml names, in whatever of six forms it comes.

Owns the choice of the reader and the checks that hold for every form: there are classes, their
names can be written and told apart. Refuses data as a whole (`SourceError`); a single bad file is
put aside by `synthgen.dataset.scan`.
"""

import unicodedata
from pathlib import Path

from synthgen.config import PrepareSection, SourceSection
from synthgen.dataset.raw import Source
from synthgen.dataset.slugs import make_slugs
from synthgen.errors import SourceError


def open_source(section: SourceSection, root: Path, prepare: PrepareSection) -> Source:
    """Opens the raw data: finds classes and items, decodes nothing.

    Args:
        section: type and place of the data; `path` is relative to `root`.
        root: the project folder.
        prepare: `empty_class` says whether a class folder without images is an error.
    Returns:
        classes in label order, and a way to iterate over the items.
    Raises:
        SourceError: the data cannot be read as a whole, or a class name cannot be used.
        LeakError: a table lists one file with two labels.
    """
    source = _open(section, root / section.path, prepare)
    if not source.class_names:
        raise SourceError(f"{root / section.path} holds no labelled image; check source.path and source.type")
    for name in source.class_names:
        if not name.strip() or any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
            raise SourceError(f"class name {name!a} is empty or holds control characters; rename it")
    make_slugs(source.class_names)  # refuses twins before hours of decoding
    return source


def _open(section: SourceSection, base: Path, prepare: PrepareSection) -> Source:
    from synthgen.dataset import array_sources, folder_sources, parquet_source, torchvision_source

    if section.type == "digits":
        return array_sources.open_digits()
    if section.type == "torchvision":
        return torchvision_source.open_torchvision(section.torchvision_name, base)
    if not base.exists():
        raise SourceError(f"{base} does not exist; put the raw data there or change source.path in params.yaml")
    if section.type == "imagefolder":
        return folder_sources.open_imagefolder(base, prepare.empty_class)
    if section.type == "csv":
        return folder_sources.open_csv(base, section.csv_file)
    if section.type == "parquet":
        return parquet_source.open_parquet(base)
    return array_sources.open_npz(base)
