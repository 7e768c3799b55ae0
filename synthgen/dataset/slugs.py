"""Slugs: what stands for a class name in paths, stage names and commands.

Owns the map from class names to `[a-z0-9_]{1,48}`. Refuses two names that a file system or a reader
would take for one (case twins, Unicode NFC/NFD twins, a space more at an end): they are far more
often one class written twice than two classes.
"""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from synthgen.errors import SourceError

MAX_SLUG = 48

# Windows refuses these as file names, with any extension.
_RESERVED = {"con", "prn", "aux", "nul"} | {f"{port}{digit}" for port in ("com", "lpt") for digit in range(1, 10)}


def make_slugs(class_names: Sequence[str]) -> dict[str, str]:
    """Maps each class name to a slug of its own.

    A name that is a slug already keeps it. Every other name is folded to ASCII, lower-cased, and its
    runs of other characters become `_`; where that loses the name (nothing left, cut at 48, reserved
    by Windows, or taken by another class) eight hex digits of the name's sha256 are appended, so that
    a slug depends on the names alone and never on their order.

    Args:
        class_names: distinct names, of any characters and length, in any order.
    Returns:
        class name -> slug, in the order given; slugs are distinct.
    Raises:
        SourceError: a name twice, or two names that differ only in case, Unicode form or outer spaces.
    """
    _refuse_twins(class_names)
    plain = {name: _fold(name) for name in class_names}
    wanted = Counter(plain.values())
    slugs = {name: name for name in class_names if plain[name] == name and _keeps(name)}
    taken = set(slugs.values())
    for name in sorted(set(class_names) - set(slugs), key=_bytes):
        slug = plain[name]
        if wanted[slug] > 1 or not _keeps(slug) or slug in taken:
            slug = _with_digest(name, slug, taken)
        slugs[name] = slug
        taken.add(slug)
    return {name: slugs[name] for name in class_names}


def twin_key(name: str) -> str:
    """Names with the same key are twins: equal up to case, Unicode form and outer white space."""
    folded = unicodedata.normalize("NFC", name).casefold()
    return unicodedata.normalize("NFC", folded).strip()


def _refuse_twins(class_names: Sequence[str]) -> None:
    first: dict[str, str] = {}
    for name in class_names:
        key = twin_key(name)
        if key in first:
            raise SourceError(
                f"class names {first[key]!a} and {name!a} differ at most in case, Unicode form or outer spaces: "
                "one class written twice? Rename or merge one of them"
            )
        first[key] = name


def _bytes(name: str) -> bytes:
    # File names that are not UTF-8 reach Python as lone surrogates, which plain encoding refuses.
    return name.encode("utf-8", "surrogatepass")


def _fold(name: str) -> str:
    ascii_only = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode("ascii")
    folded = re.sub(r"[^a-z0-9]+", "_", ascii_only.lower()).strip("_")
    return name if re.fullmatch(r"[a-z0-9_]+", name) else folded


def _keeps(slug: str) -> bool:
    return 1 <= len(slug) <= MAX_SLUG and slug not in _RESERVED


def _with_digest(name: str, slug: str, taken: set[str]) -> str:
    digest = hashlib.sha256(_bytes(name)).hexdigest()
    stem = slug or "class"
    for n_digits in range(8, MAX_SLUG - 1):
        candidate = f"{stem[: MAX_SLUG - n_digits - 1].rstrip('_') or 'class'}_{digest[:n_digits]}"[:MAX_SLUG]
        if candidate not in taken:
            return candidate
    raise SourceError(f"class name {name!a} finds no free slug; rename it")  # sha256 would have to collide
