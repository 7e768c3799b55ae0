"""Sources made of image files: class folders, and a table of paths.

Owns walking and listing by `lstat` alone: nothing is opened here but the table, no symbolic link is
followed, and pipes, sockets and devices are put aside by name. Refuses layouts that could be read
in two ways.
"""

import csv
import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from synthgen.dataset.raw import (
    REASONS,
    SPLIT_NAMES,
    FilePayload,
    QuarantineRow,
    RawItem,
    Source,
    Split,
    is_utf8,
    kind_reason,
    order_classes,
    printable,
)
from synthgen.errors import LeakError, SourceError

UNLABELLED = "(unlabelled)"
CSV_COLUMNS = ("path", "label", "split", "group")


class _Listed(NamedTuple):
    """One file of the index; only names are kept, so that a million files cost a few hundred MB at most."""

    source: str
    class_name: str
    split: Split | None
    group: str | None


def open_imagefolder(base: Path, empty_class: Literal["error", "skip"]) -> Source:
    """Class folders, or `train`, `val` (`valid`, `validation`) and `test` folders of class folders.

    Files are taken at any depth below a class folder. The layout is pre-split where every folder
    under `base` is named after a split and one of them is `train`.

    Raises:
        SourceError: no folder or no class, an ambiguous layout, a class name that is not UTF-8, or a
            class without a file to train on while `empty_class` is `error`.
    """
    quarantine: list[QuarantineRow] = []
    listed: list[_Listed] = []
    n_train: Counter[str] = Counter()
    for split, folder in _split_folders(base, quarantine):
        for class_name in _subfolders(folder, base, quarantine):
            if not is_utf8(class_name):
                raise SourceError(f"class folder {printable(class_name)!r} is not UTF-8; rename it")
            found = [
                _Listed(source, class_name, split, None) for source in _walk(folder / class_name, base, quarantine)
            ]
            n_train[class_name] += len(found) if split in (None, "train") else 0
            listed += found
    if not n_train:
        raise SourceError(f"{base} holds no class folder; put the images of each class into a folder of its own there")
    empty = {name for name, count in n_train.items() if count == 0}
    if empty and empty_class == "error":
        raise SourceError(
            f"class folder without an image to train on: {_names(empty)} under {base}; "
            "add images, remove the folder, or set prepare.empty_class: skip"
        )
    quarantine += [QuarantineRow(name, "class_skipped", "no file to train on") for name in sorted(empty)]
    quarantine += [
        QuarantineRow(row.source, "class_skipped", row.class_name) for row in listed if row.class_name in empty
    ]
    kept = [row for row in listed if row.class_name not in empty]
    return _file_source(base, kept, set(n_train) - empty, quarantine)


def open_unlabelled(folder: Path) -> Source:
    """Every file at any depth below `folder`, without a label: its one class is called `UNLABELLED`.

    Raises:
        SourceError: `folder` is a link or no folder, or holds no file.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise SourceError(f"{folder} is no folder; put the unlabelled images there, or set source.unlabelled: null")
    quarantine: list[QuarantineRow] = []
    listed = [_Listed(source, UNLABELLED, None, None) for source in _walk(folder, folder, quarantine)]
    if not listed:
        raise SourceError(f"{folder} holds no file; put the unlabelled images there, or set source.unlabelled: null")
    return _file_source(folder, listed, {UNLABELLED}, quarantine)


def _names(names: set[str]) -> str:
    shown = sorted(names)[:10]
    return ", ".join(ascii(name) for name in shown) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _file_source(base: Path, listed: list[_Listed], classes: set[str], quarantine: list[QuarantineRow]) -> Source:
    listed.sort(key=lambda row: row.source)

    def items() -> Iterator[RawItem]:
        for row in listed:
            yield RawItem(row.source, row.class_name, row.split, row.group, FilePayload(str(base / row.source)))

    return Source(order_classes(classes), len(listed), items, quarantine)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as scan:
        return sorted(scan, key=lambda entry: entry.name)


def _subfolders(folder: Path, base: Path, quarantine: list[QuarantineRow]) -> list[str]:
    """Names of the folders directly under `folder`; everything else there goes to the quarantine."""
    try:
        entries = _entries(folder)
    except OSError as error:
        raise SourceError(f"{folder} cannot be listed ({error.strerror}); check source.path in params.yaml") from error
    names = []
    for entry in entries:
        mode = entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode) and not entry.name.startswith("."):
            names.append(entry.name)
        else:
            hidden = "hidden" if entry.name.startswith(".") else None
            reason = hidden or kind_reason(mode) or "outside_class"
            quarantine.append(_refused(folder / entry.name, base, reason))
    return names


def _split_folders(base: Path, quarantine: list[QuarantineRow]) -> list[tuple[Split | None, Path]]:
    names = _subfolders(base, base, [])
    splits = {name: SPLIT_NAMES[name.lower()] for name in names if name.lower() in SPLIT_NAMES}
    others = [name for name in names if name not in splits]
    if "train" not in splits.values() or (others and len(splits) == 1):
        return [(None, base)]  # a folder called `test` alone, or `train` among aeroplanes, is a class
    if others:
        raise SourceError(
            f"{base} holds both split folders ({_names(set(splits))}) and others ({_names(set(others))}); "
            "move the others away or into the splits"
        )
    twice = {name for name, split in splits.items() if Counter(splits.values())[split] > 1}
    if twice:
        raise SourceError(f"{base}: folders {_names(twice)} stand for the same split; keep one of them")
    _subfolders(base, base, quarantine)  # names the stray files beside the split folders
    return [(split, base / name) for name, split in splits.items()]


def _refused(path: Path, base: Path, reason: str) -> QuarantineRow:
    return QuarantineRow(printable(path.relative_to(base).as_posix()), reason, REASONS[reason])


def _walk(folder: Path, base: Path, quarantine: list[QuarantineRow]) -> Iterator[str]:
    """Names (relative to `base`) of the regular files at any depth below `folder`."""
    pending = [folder]
    while pending:
        current = pending.pop()
        try:
            entries = _entries(current)
        except OSError as error:
            source = printable(current.relative_to(base).as_posix())
            quarantine.append(QuarantineRow(source, "unreadable", error.strerror or "cannot be listed"))
            continue
        for entry in entries:
            path = current / entry.name
            mode = entry.stat(follow_symlinks=False).st_mode
            if entry.name.startswith("."):
                quarantine.append(_refused(path, base, "hidden"))
            elif not is_utf8(entry.name):
                quarantine.append(_refused(path, base, "bad_name"))
            elif stat.S_ISDIR(mode):
                pending.append(path)
            elif (reason := kind_reason(mode)) is not None:
                quarantine.append(_refused(path, base, reason))
            else:
                yield path.relative_to(base).as_posix()


def open_csv(base: Path, csv_file: str) -> Source:
    """A comma-separated table with a header: `path`, `label`, optionally `split` and `group`.

    Paths are relative to the table's folder and must stay inside `base`.

    Raises:
        SourceError: no such table, not UTF-8, a missing column, an unknown split, or a split given
            for some rows only.
        LeakError: one file listed with two labels, splits or groups.
    """
    table = base / csv_file
    kept: dict[str, _Listed] = {}
    quarantine: list[QuarantineRow] = []
    parents: dict[str, str | None] = {}
    if _inside(table, base) is None:
        raise SourceError(f"source.csv_file {csv_file!r} leaves source.path {base}; name a table inside it")
    for line, path, found in _read_table(table):
        source = _inside(table.parent / path, base)
        reason = "outside_root" if source is None else _path_reason(base, source, parents)
        if not found.class_name:
            reason = "no_label"
        if reason is not None or source is None:
            quarantine.append(QuarantineRow(path, reason or "outside_root", f"line {line} of {csv_file}"))
            continue
        row = found._replace(source=source)
        other = kept.setdefault(source, row)
        if other is not row and other != row:
            raise LeakError(
                f"{table} line {line}: {source!a} is listed twice, as {tuple(other[1:])} and as {tuple(row[1:])} "
                "(label, split, group); keep one line"
            )
        if other is not row:
            quarantine.append(QuarantineRow(source, "repeated_row", f"line {line} of {csv_file}"))
    n_split = sum(row.split is not None for row in kept.values())
    if 0 < n_split < len(kept):
        raise SourceError(f"{table}: {len(kept) - n_split} of {len(kept)} rows have no split; fill them all, or none")
    return _file_source(base, list(kept.values()), {row.class_name for row in kept.values()}, quarantine)


def _read_table(table: Path) -> Iterator[tuple[int, str, _Listed]]:
    """(line number, path as written, row without its source) for each line of the table."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            header = [name.strip() for name in next(reader, [])]
            if not {"path", "label"} <= set(header) or len(set(header)) < len(header):
                raise SourceError(
                    f"{table}: columns {header}; `path` and `label` are needed, each once, comma-separated"
                )
            at = {name: header.index(name) for name in CSV_COLUMNS if name in header}
            for cells in reader:
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise SourceError(
                        f"{table} line {reader.line_num}: {len(cells)} cells under {len(header)} columns; "
                        'put cells with a comma into "quotes"'
                    )
                found = {name: cells[column].strip() for name, column in at.items()}
                split = _known_split(found.get("split", ""), f"{table} line {reader.line_num}")
                yield reader.line_num, found["path"], _Listed("", found["label"], split, found.get("group") or None)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceError(
            f"{table} cannot be read as a UTF-8 table: {error}; see source.path, source.csv_file"
        ) from error


def _known_split(text: str, where: str) -> Split | None:
    if text and text.lower() not in SPLIT_NAMES:
        raise SourceError(f"{where}: split {text!a} is unknown; write one of {', '.join(SPLIT_NAMES)} or nothing")
    return SPLIT_NAMES[text.lower()] if text else None


def _inside(path: Path, base: Path) -> str | None:
    """`path` relative to `base` by its text alone, or None where it leaves `base`."""
    relative = os.path.relpath(os.path.normpath(path), os.path.normpath(base))
    parts = PurePosixPath(Path(relative).as_posix())
    return None if relative == "." or parts.is_absolute() or parts.parts[:1] == ("..",) else str(parts)


def _path_reason(base: Path, source: str, parents: dict[str, str | None]) -> str | None:
    """Why the file must not be opened, judging every folder on its way (`parents` remembers those)."""
    folder = PurePosixPath(source).parent
    for ancestor in [*reversed(folder.parents), folder][1:]:
        key = str(ancestor)
        if key not in parents:
            parents[key] = _lstat_reason(base / key, wants_folder=True)
        if parents[key] is not None:
            return parents[key]
    return _lstat_reason(base / source, wants_folder=False)


def _lstat_reason(path: Path, *, wants_folder: bool) -> str | None:
    try:
        mode = path.lstat().st_mode
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return "missing"
    if wants_folder and stat.S_ISDIR(mode):
        return None
    reason = kind_reason(mode)
    return reason if reason is not None else ("missing" if wants_folder else None)
