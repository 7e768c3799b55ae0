"""`synthgen prepare`: data/prepared/, the one array and manifest that every later stage reads.

Owns writing the folder (docs/schema.md) and the check that plan.yaml and folds.csv still fit the raw data. Refuses a
plan that does not, naming what differs; writes all of the folder or nothing.
"""

import csv
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthgen.artifacts import atomic_folder, canonical_json
from synthgen.config import Config
from synthgen.dataset.folds import KnownImage, read_folds
from synthgen.dataset.prepared import PreparedData, save_manifest
from synthgen.errors import PlanError
from synthgen.records import PLAN_COMMAND, ClassPlan, Plan
from synthgen.stages.plan import build_plan, known_images
from synthgen.stages.survey import Survey, count_groups, count_images, scratch_folder, survey_source
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
    with scratch_folder(workspace.root) as scratch:
        survey = survey_source(config, workspace.root, previous, scratch)
        refuse_stale_plan(plan, build_plan(config.plan, survey), read_folds(workspace.folds_file), survey)
        with atomic_folder(workspace.prepared) as folder:
            write_prepared(folder, survey, plan, config)


def refuse_stale_plan(plan: Plan, fitting: Plan, previous: dict[str, KnownImage], survey: Survey) -> None:
    """Compares plan.yaml and folds.csv with what the raw data ask for.

    Raises:
        PlanError: naming every class that differs, and counts and examples of images that do.
    """
    differences = []
    for name in ("mode", "strategy", "folds", "pretrain_folds", "adapt_slugs", "scratch_slugs", "versions"):
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


def write_prepared(folder: Path, survey: Survey, plan: Plan, config: Config) -> None:
    """Writes images, manifest, quarantine list, summary and fold indexes into the empty `folder`."""
    scan, rows = survey.scan, survey.rows
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
    with (folder / "quarantine.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["source", "reason", "detail"])
        writer.writerows((row.source, row.reason, row.detail) for row in survey.quarantine)
    (folder / "summary.json").write_text(canonical_json(summarise(survey, plan, config)), encoding="utf-8")
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
    )
    for fold in plan.folds:
        _write_index(folder / "folds" / fold, data, fold)


def _copy_images(images: NDArray[np.uint8], rows: NDArray[np.int64], path: Path) -> NDArray[np.uint8]:
    # written, not mapped: on a full disk a page of a map that cannot be written ends the process without a word
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(rows), *images.shape[1:])}
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for start in range(0, len(rows), COPY_ROWS):
            stream.write(np.ascontiguousarray(images[rows[start : start + COPY_ROWS]]).data)
    written: NDArray[np.uint8] = np.load(path, mmap_mode="r")
    return written


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
        "grouping_settings": survey.grouping_settings,
        "warnings": survey.warnings,
    }
