"""`synthgen verify`: is what lies here still what the stages wrote?

Owns the comparison of every output with dvc.lock (bytes of files, listings of folders, blobs of the cache) and of what
the outputs say about themselves: pixels with their sha256, generators with their digest, synthetic images with the
generator that made them. DVC itself trusts sizes and times; this reads every byte. Refuses to repair: it names the
files and the command that brings them back.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from rich.markup import escape
from rich.table import Table

from synthgen.dataset.acceptance import SHARD_SUFFIX, Acceptance, read_acceptance
from synthgen.dataset.prepared import load_prepared
from synthgen.dataset.provenance import Provenance, read_provenance
from synthgen.dataset.shards import REAL, SYNTHETIC, iter_rows
from synthgen.dataset.unlabelled import load_unlabelled
from synthgen.errors import ArtifactError, SynthgenError
from synthgen.progress import track
from synthgen.records import FINAL
from synthgen.stages.assemble import released_shard
from synthgen.stages.dvc_lock import (
    Blobs,
    LockedOutput,
    files_below,
    find_cache,
    ignored_names,
    md5_of_file,
    md5_of_listing,
    read_dvc_lock,
)
from synthgen.stages.workspace import Workspace

ROWS_AT_ONCE = 1024
NAMED = 10
FILES = "files"
CACHE = "cache"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        path: the output.
        what: what was compared: `files`, `cache`, `pixels`, `generator` or `samples`.
        n: files, images or blobs that were compared.
        problems: one line for each that is not as it was written, naming the file.
        remedy: command that brings it back.
    """

    path: str
    what: str
    n: int
    problems: tuple[str, ...] = ()
    remedy: str = ""


def verify_project(workspace: Workspace) -> list[Check]:
    """Compares everything in the project that can be compared.

    Returns:
        one or more checks for each output, in the order of dvc.lock.
    Raises:
        ArtifactError: dvc.lock is missing or cannot be understood.
        PlanError: plan.yaml is missing or damaged.
    """
    outputs = read_dvc_lock(workspace.root / "dvc.lock")
    ignored = ignored_names(workspace.root)
    blobs = Blobs(find_cache(workspace.root))
    checks: list[Check] = []
    for output in track(outputs, "verify: bytes", len(outputs)):
        checks += _check_bytes(workspace.root, output, ignored, blobs)
    here = [output.path for output in outputs if (workspace.root / output.path).exists()]
    here.sort(key=lambda path: not path.startswith("models/"))  # samples are compared with their generators
    digests: dict[Path, str] = {}
    for path in track(here, "verify: contents", len(here)):
        found = _check_content(workspace, path, digests)
        if found is not None:
            checks.append(found)
    return checks


def checks_table(checks: list[Check]) -> Table:
    """A row for each output: how many files, blobs and contents were compared, and the result."""
    table = Table(title="verify: what lies here against what the stages wrote", title_justify="left")
    table.add_column("output", overflow="fold")
    for heading in ("files", "in the cache"):
        table.add_column(heading, justify="right")
    for heading in ("contents", "result"):
        table.add_column(heading)
    for path in dict.fromkeys(check.path for check in checks):
        own = {check.what: check for check in checks if check.path == path}
        n_problems = sum(len(check.problems) for check in own.values())
        contents = [f"{check.n} {what}" for what, check in own.items() if what not in (FILES, CACHE)]
        table.add_row(
            escape(path),
            str(own[FILES].n),
            str(own[CACHE].n) if CACHE in own else "-",
            " ".join(contents),
            f"{n_problems} altered or missing" if n_problems else "as written",
        )
    return table


def refuse_altered(checks: list[Check]) -> None:
    """Fails if anything is not as it was written.

    Raises:
        ArtifactError: naming the files and what to do.
    """
    failed = [check for check in checks if check.problems]
    if not failed:
        return
    problems = [problem for check in failed for problem in check.problems]
    more = f" and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
    remedies = list(dict.fromkeys(check.remedy for check in failed))
    raise ArtifactError(
        f"{len(problems)} of the things compared are not what the stages wrote: {'; '.join(problems[:NAMED])}{more}. "
        f"To bring them back: {'; '.join(remedies[:NAMED])}"
    )


# Bytes: files, listings and the cache.


def _check_bytes(root: Path, output: LockedOutput, ignored: list[str], blobs: Blobs) -> list[Check]:
    path = root / output.path
    remedy = f"`dvc checkout --force {output.path}` (from a remote: `dvc pull --force {output.path}`)"
    suffix = ".dir" if output.is_folder else ""
    stored = blobs.listing(output.md5) if output.is_folder else None
    problems: tuple[str, ...] = ()
    if not (path.is_dir() if output.is_folder else path.is_file()):
        checks = [Check(output.path, FILES, 0, (f"{output.path} is missing",), remedy)]
    elif not output.is_folder:
        problems = () if md5_of_file(path) == output.md5 else (f"{output.path} was altered",)
        checks = [Check(output.path, FILES, 1, problems, remedy)]
    else:
        found = {name: md5_of_file(file) for name, file in files_below(root, path, ignored)}
        whole = md5_of_listing(found) == output.md5
        problems = () if whole else _differences(output.path, found, stored)
        checks = [Check(output.path, FILES, len(found), problems, remedy)]
        stored = found if whole else stored
    wanted = [(output.md5, suffix), *((md5, "") for md5 in sorted(set((stored or {}).values())))]
    states = {blobs.path(*blob): blobs.is_intact(*blob) for blob in wanted}
    damaged = [blob for blob, state in states.items() if state is False]
    n_here = sum(state is not None for state in states.values())
    if n_here:
        problems = tuple(f"{_shown(root, blob)} (of {output.path}) was altered" for blob in damaged)
        names = " ".join(_shown(root, blob) for blob in damaged[:NAMED])
        again = f"remove {names}, then `dvc pull --force {output.path}` or `dvc repro --force {output.stage}`"
        checks.append(Check(output.path, CACHE, n_here, problems, again))
    return checks


def _shown(root: Path, path: Path) -> str:
    try:
        return path.relative_to(root).as_posix()
    except ValueError:
        return str(path)


def _differences(output: str, found: dict[str, str], stored: dict[str, str] | None) -> tuple[str, ...]:
    if stored is None:
        return (f"{output}: a file was altered, added or removed (the cache has no listing that tells which)",)
    problems = [f"{output}/{name} is missing" for name in sorted(stored.keys() - found.keys())]
    problems += [f"{output}/{name} was added" for name in sorted(found.keys() - stored.keys())]
    common = sorted(stored.keys() & found.keys())
    return (*problems, *(f"{output}/{name} was altered" for name in common if stored[name] != found[name]))


# Contents: what the outputs say about themselves.


def _check_content(workspace: Workspace, path: str, digests: dict[Path, str]) -> Check | None:
    """What can be said about one output beyond its bytes; fills `digests` with those of the generators seen."""
    folder, parts = workspace.root / path, PurePosixPath(path).parts
    look: Callable[[], int]
    if folder == workspace.prepared:
        what, look = "pixels", lambda: _look_at_pixels(folder)
    elif parts[0] == "models":
        what, look = "generator", lambda: _look_at_generator(folder, digests)
    elif parts[:2] == ("data", "synthetic"):
        what, look = "samples", lambda: _look_at_samples(workspace, parts[2], digests)
    elif folder == workspace.augmented:
        what, look = "samples", lambda: _look_at_augmented(workspace, digests)
    else:
        return None
    try:
        return Check(path, what, look())
    except (SynthgenError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        return Check(path, what, 0, (f"{path}: {error}",), f"`dvc checkout --force {path}`, or `dvc repro`")


def _look_at_pixels(folder: Path) -> int:
    data = load_prepared(folder)
    for first in range(0, len(data.labels), ROWS_AT_ONCE):
        data.verified(np.arange(first, min(first + ROWS_AT_ONCE, len(data.labels)), dtype=np.int64))
    unlabelled = load_unlabelled(folder)
    return len(data.labels) + (0 if unlabelled is None else len(unlabelled.verified()))


def _look_at_generator(folder: Path, digests: dict[Path, str]) -> int:
    import torch

    from synthgen.gan.checkpoint import failure_of, load_gan

    if failure_of(folder) is not None:
        return 0
    digests[folder] = load_gan(folder, torch.device("cpu")).digest
    return 1


def _look_at_samples(workspace: Workspace, fold: str, digests: dict[Path, str]) -> int:
    folder = workspace.synthetic(fold)
    acceptance = read_acceptance(folder / "acceptance.json")
    n_rows = 0
    for name, entry in sorted(acceptance.items()):
        model = _model_of_shard(workspace, fold, name)
        n_rows += _look_at_shard(folder / f"{name}{SHARD_SUFFIX}", entry, model, digests)
        if entry.projection is not None:
            _look_at_anchors(folder, name, entry)
    return n_rows


def _look_at_anchors(folder: Path, name: str, entry: Acceptance) -> None:
    """Samples between reals can be made again from their anchors alone, so these have to be of the same generator."""
    from synthgen.gan.anchor_file import SUFFIX, load_anchors

    path = folder / f"{name}{SUFFIX}"
    known = set(load_anchors(path, entry.generator_digest).sha256.tolist())
    sources = {row.values["source_sha256"] for row in iter_rows(folder / f"{name}{SHARD_SUFFIX}")}
    if not sources <= known:
        raise ArtifactError(f"{path} lacks {len(sources - known)} of the reals that samples of {name} lie between")


def _model_of_shard(workspace: Workspace, fold: str, name: str) -> Path | None:
    """Folder of the generator that made a shard; None for morphs, which no network makes."""
    slug, _, kind = name.partition(".")
    if kind == "morphed":
        return None
    return workspace.shared_model(fold) if kind == "shared" else workspace.model_of(fold, slug)


def _look_at_shard(path: Path, entry: Acceptance, model: Path | None, digests: dict[Path, str]) -> int:
    digest = entry.generator_digest
    if digest and model is not None and digests.get(model, digest) != digest:
        raise ArtifactError(f"{path} is of generator {digest[:12]}, {model.name} holds {digests[model][:12]}")
    n_rows = 0
    for row in iter_rows(path):
        values = row.values
        if values["generator_digest"] != digest:
            raise ArtifactError(f"{path}: row {n_rows} is of another generator than acceptance.json says")
        if read_provenance(row.png) != Provenance(digest, values["seed"], values["position"]):
            raise ArtifactError(f"{path}: row {n_rows} has another provenance in the image than in the row")
        n_rows += 1
    if n_rows != entry.accepted:
        raise ArtifactError(f"{path} has {n_rows} images, acceptance.json says {entry.accepted}")
    return n_rows


def _look_at_augmented(workspace: Workspace, digests: dict[Path, str]) -> int:
    folder, n_rows = workspace.augmented, 0
    acceptance = read_acceptance(workspace.synthetic(FINAL) / "acceptance.json")
    for slug in workspace.plan.slugs:
        n_rows += sum(1 for _ in iter_rows(folder / f"{REAL}-{slug}{SHARD_SUFFIX}"))  # checks each against its sha256
        name = released_shard(workspace, slug, acceptance)
        model = _model_of_shard(workspace, FINAL, name)
        n_rows += _look_at_shard(folder / f"{SYNTHETIC}-{slug}{SHARD_SUFFIX}", acceptance[name], model, digests)
    return n_rows
