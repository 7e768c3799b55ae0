"""`synthgen prepare`: data/prepared/, the one array and manifest that every later stage reads.

Owns writing the folder (docs/schema.md) and the check that plan.yaml and folds.csv still fit the raw data. Refuses a
plan that does not, naming what differs; writes all of the folder or nothing. The user's masks are written beside the
images; they decide no label, no group and no fold.
"""

import csv
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthgen.artifacts import atomic_folder, canonical_json, sha256_file
from synthgen.config import Config
from synthgen.dataset.folds import KnownImage, read_folds
from synthgen.dataset.masks import FoundMasks, gather_masks
from synthgen.dataset.prepared import MASKS_SUFFIX, PreparedData, mask_sha256, save_manifest
from synthgen.dataset.raw import QuarantineRow
from synthgen.dataset.unlabelled import write_unlabelled_index
from synthgen.errors import ConfigError, PlanError
from synthgen.records import PLAN_COMMAND, ClassPlan, Plan
from synthgen.stages.plan import build_plan, known_images, with_search
from synthgen.stages.raw_subfolder import check_raw_subfolder
from synthgen.stages.survey import Survey, count_groups, count_images, scratch_folder, survey_source
from synthgen.stages.unlabelled import FoundUnlabelled, gather_unlabelled
from synthgen.stages.workspace import Workspace

SCHEMA = 1
COPY_ROWS = 1024
NAMED = 5


def run_prepare(workspace: Workspace) -> None:
    """Scans the raw data again and writes data/prepared/; equal raw data and params give equal bytes.

    Raises:
        PlanError: plan.yaml or folds.csv is missing or no longer fits, naming classes, images and the command.
        SynthgenError: see `survey_source`.
        ArtifactError: the folder cannot be written.
    """
    config = workspace.config
    plan = workspace.plan
    if not workspace.folds_file.exists():
        raise PlanError(f"{workspace.folds_file} is missing; run `{PLAN_COMMAND}` first")
    previous = known_images(workspace)
    mask_folder = find_mask_folder(config, workspace.root)
    with scratch_folder(workspace.root) as scratch:
        survey = survey_source(config, workspace.root, previous, scratch)
        refuse_stale_plan(
            plan, with_search(build_plan(config.plan, survey), config), read_folds(workspace.folds_file), survey
        )
        unlabelled = gather_unlabelled(config, workspace.root, survey, scratch)
        with atomic_folder(workspace.prepared) as folder:
            write_prepared(folder, survey, plan, config, mask_folder, unlabelled)


def find_mask_folder(config: Config, root: Path) -> Path | None:
    """Where `prepare.masks` lies, or None where it is not set.

    Masks have to lie inside `source.path`: dvc.yaml watches that folder and no other, so that a mask that changed
    elsewhere would change no result.

    Raises:
        ConfigError: it is no folder, lies elsewhere, would be read as a class, or the source has no image files.
    """
    if config.prepare.masks is None:
        return None
    said = f"prepare.masks {config.prepare.masks!r}"
    if config.source.type not in {"imagefolder", "csv"}:
        raise ConfigError(
            f"{said}: masks belong to image files, not to source.type {config.source.type}; remove the setting, or use "
            "imagefolder or csv"
        )
    folder = root / check_raw_subfolder(config.source, "prepare.masks", config.prepare.masks, ".masks")
    if folder.is_symlink() or not folder.is_dir():
        raise ConfigError(f"{said} is no folder; put the masks there or remove the setting")
    return folder


def refuse_stale_plan(plan: Plan, fitting: Plan, previous: dict[str, KnownImage], survey: Survey) -> None:
    """Compares plan.yaml and folds.csv with what the raw data ask for.

    Raises:
        PlanError: naming every class that differs, and counts and examples of images that do.
    """
    differences = []
    for name in ("mode", "strategy", "folds", "parts", "pretrain_folds", "adapt_slugs", "scratch_slugs", "versions"):
        old, new = getattr(plan, name), getattr(fitting, name)
        if old != new:
            differences.append(f"{name}: plan {_short(old)}, now {_short(new)}")
    for slug in sorted({*plan.classes, *fitting.classes}):
        differences += _class_differences(slug, plan.classes.get(slug), fitting.classes.get(slug))
    known = survey.known
    sources = dict(zip(survey.column(survey.scan.pixel_sha256), survey.column(survey.scan.sources), strict=True))
    new_images = sorted(sources[digest] for digest in known.keys() - previous.keys())
    gone = sorted(previous.keys() - known.keys())
    moved = sorted(sources[digest] for digest in known.keys() & previous.keys() if known[digest] != previous[digest])
    for what, names in (
        ("new images", new_images),
        ("images gone (by pixel sha256)", [digest[:12] for digest in gone]),
        ("images with another role", moved),
    ):
        if names:
            more = ", ..." if len(names) > NAMED else ""
            differences.append(f"{len(names)} {what}: {', '.join(names[:NAMED])}{more}")
    if plan.unlabelled_in_pretrain != fitting.unlabelled_in_pretrain:
        differences.append(
            f"pretrain.unlabelled: plan {plan.unlabelled_in_pretrain}, now {not plan.unlabelled_in_pretrain}"
        )
    if differences:
        raise PlanError(
            f"plan.yaml and folds.csv no longer fit the raw data and params.yaml: {'; '.join(differences)}. "
            f"Run `{PLAN_COMMAND}`, look at the change, then run this again"
        )


def _short(value: Any) -> str:
    return ",".join(value) if isinstance(value, list) else str(value)


def _class_differences(slug: str, old: ClassPlan | None, new: ClassPlan | None) -> list[str]:
    if new is None:
        return [f"class {slug} is gone"]
    if old is None:
        return [f"class {slug} is new ({new.images} images)"]
    before, after = old.model_dump(), new.model_dump()
    return [f"class {slug}: {key} {before[key]} -> {after[key]}" for key in before if before[key] != after[key]]


def write_prepared(
    folder: Path,
    survey: Survey,
    plan: Plan,
    config: Config,
    mask_folder: Path | None = None,
    unlabelled: FoundUnlabelled | None = None,
) -> None:
    """Writes images, masks, manifest, quarantine list, summary and fold indexes into the empty `folder`.

    Args:
        folder: to write to.
        survey, plan, config: what is prepared, and how.
        mask_folder: of the user's masks; None writes none.
        unlabelled: images without a label, if the user has any.
    Raises:
        SourceError: `mask_folder` holds a mask for none of the images.
    """
    scan, rows = survey.scan, survey.rows
    found = None if mask_folder is None else _gather(survey, mask_folder, config)
    masks: NDArray[np.bool_] | None = None
    images = _copy_images(scan.images, rows, folder / "images.npy")
    names = survey.column(scan.class_names)
    slugs = [survey.slugs[name] for name in names]
    labels = np.asarray([plan.classes[slug].label for slug in slugs], dtype=np.int64)
    sha256 = survey.column(scan.pixel_sha256)
    save_manifest(
        folder / "manifest.parquet",
        {
            "row": list(range(len(rows))),
            "source": survey.column(scan.sources),
            "class_name": names,
            "slug": slugs,
            "label": labels.tolist(),
            "file_sha256": survey.column(scan.file_sha256),
            "pixel_sha256": sha256,
            "group": survey.groups,
            "fold": survey.folds.tolist(),
            "role": survey.roles,
            "width": [scan.widths[row] for row in rows],
            "height": [scan.heights[row] for row in rows],
            "mode": survey.column(scan.modes),
        },
    )
    quarantine = survey.quarantine if found is None else _with_masks(survey.quarantine, found, config)
    if unlabelled is not None:
        quarantine = unlabelled.quarantined(quarantine)
    with (folder / "quarantine.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["source", "reason", "detail"])
        writer.writerows((row.source, row.reason, row.detail) for row in quarantine)
    summary = {**summarise(survey, plan, config), "n_quarantined": len(quarantine)}
    if found is not None:
        summary["masks"] = _write_masks(folder / "masks.npy", found, slugs, images.shape[:3])
        masks = np.load(folder / "masks.npy", mmap_mode="r")
    if unlabelled is not None:
        summary["unlabelled"] = {**unlabelled.write(folder), "grouping_settings": survey.grouping_settings}
        summary["warnings"] = [*survey.warnings, *unlabelled.warnings]
    (folder / "summary.json").write_text(canonical_json(summary), encoding="utf-8")
    data = PreparedData(
        images=images,
        labels=labels,
        groups=np.asarray(survey.groups, dtype=np.str_),
        sha256=np.asarray(sha256, dtype=np.str_),
        folds=survey.folds,
        roles=np.asarray(survey.roles, dtype=np.str_),
        slugs=plan.slugs,
        class_names=survey.class_names,
        n_folds=config.plan.folds,
        frozen=survey.frozen,
        masks=masks,
    )
    for fold in plan.folds:
        _write_index(folder / "folds" / fold, data, fold)
        if unlabelled is not None and plan.unlabelled_in_pretrain:
            write_unlabelled_index(folder / "folds" / fold, unlabelled.digests)


def _copy_images(images: NDArray[np.uint8], rows: NDArray[np.int64], path: Path) -> NDArray[np.uint8]:
    # written, not mapped: on a full disk a page of a map that cannot be written ends the process without a word
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(rows), *images.shape[1:])}
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for start in range(0, len(rows), COPY_ROWS):
            stream.write(np.ascontiguousarray(images[rows[start : start + COPY_ROWS]]).data)
    written: NDArray[np.uint8] = np.load(path, mmap_mode="r")
    return written


def _gather(survey: Survey, folder: Path, config: Config) -> FoundMasks:
    scan = survey.scan
    return gather_masks(
        folder,
        survey.column(scan.sources),
        [(scan.widths[row], scan.heights[row]) for row in survey.rows],
        config.prepare,
        others=[*(set(scan.sources) - set(survey.column(scan.sources))), *(row.source for row in survey.quarantine)],
    )


def _with_masks(quarantine: list[QuarantineRow], found: FoundMasks, config: Config) -> list[QuarantineRow]:
    """Masks that are not used join the list under names inside `source.path`; the mask folder itself leaves it."""
    inside = PurePosixPath(str(config.prepare.masks)).relative_to(PurePosixPath(config.source.path))
    aside = [QuarantineRow((inside / row.source).as_posix(), row.reason, row.detail) for row in found.quarantine]
    kept = [row for row in quarantine if (row.source, row.reason) != (inside.parts[0], "hidden")]
    return sorted([*kept, *aside])


def _write_masks(path: Path, found: FoundMasks, slugs: list[str], shape: tuple[int, ...]) -> dict[str, Any]:
    """Writes masks.npy, (N, H, W) bool; what summary.json says of it."""
    header = {"descr": "|b1", "fortran_order": False, "shape": shape}
    empty = np.zeros(shape[1:], dtype=np.bool_).tobytes()
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for row in range(shape[0]):
            stream.write(found.regions[row].pixels.tobytes() if row in found.regions else empty)
    counts = Counter(slugs[row] for row in found.regions)
    return {
        "sha256": sha256_file(path),
        "n_images": len(found.regions),
        "n_quarantined": len(found.quarantine),
        "classes": {slug: counts[slug] for slug in sorted(set(slugs))},
    }


def _write_index(folder: Path, data: PreparedData, fold: str) -> None:
    split = data.split(fold)
    (folder / "train").mkdir(parents=True)
    for label, slug in enumerate(data.slugs):
        rows = split.train[data.labels[split.train] == label]
        index = {
            "fold": fold,
            "slug": slug,
            "label": label,
            "pixel_sha256": data.sha256[rows].tolist(),
            "group": data.groups[rows].tolist(),
        }
        (folder / "train" / f"{slug}.json").write_text(canonical_json(index), encoding="utf-8")
        marked = [] if data.masks is None else [row for row in rows if data.masks[row].any()]
        if data.masks is not None and marked:
            masks = {str(data.sha256[row]): mask_sha256(data.masks[row]) for row in marked}
            named = {"fold": fold, "slug": slug, "mask_sha256": masks}
            (folder / "train" / f"{slug}{MASKS_SUFFIX}").write_text(canonical_json(named), encoding="utf-8")
    for part, chosen in (("val", split.val), ("test", split.test)):
        index = {"fold": fold, "pixel_sha256": data.sha256[chosen].tolist()}
        (folder / f"{part}.json").write_text(canonical_json(index), encoding="utf-8")


def summarise(survey: Survey, plan: Plan, config: Config) -> dict[str, Any]:
    """The content of summary.json: counts that reports and claims name."""
    images, groups = count_images(survey), count_groups(survey)

    def count(role: str, name: str) -> int:
        return images[role][name] if role in images else 0

    scarcity = config.source.simulate_scarcity
    return {
        "schema": SCHEMA,
        "mode": plan.mode,
        "n_folds": config.plan.folds,
        "slugs": plan.slugs,
        "class_names": survey.class_names,
        "image_size": config.prepare.image_size,
        "channels": config.prepare.channels,
        "n_images": len(survey.rows),
        "n_groups": len(set(survey.groups)),
        "n_quarantined": len(survey.quarantine),
        "simulate_scarcity": None if scarcity is None else scarcity.model_dump(),
        "classes": {
            survey.slugs[name]: {
                "images": count("pool", name),
                "groups": groups["pool"][name] if "pool" in groups else 0,
                "surplus": count("surplus", name),
                "val": count("val", name),
                "test": count("test", name),
            }
            for name in survey.class_names
        },
        "grouping": survey.n_links,
        "grouping_settings": {key: survey.grouping_settings[key] for key in ("id_gap", "correlation")},
        "warnings": survey.warnings,
    }
