"""`synthgen assemble`: data/augmented/, the data set that users take.

Owns bringing the real training images and the accepted synthetic images of the `final` fold together, with data
card, Croissant metadata and counts. Refuses shards that do not say the same as the plan, and pixels that
changed since `prepare`; writes all of the folder or nothing.
"""

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthgen.artifacts import atomic_folder, canonical_json, read_json, sha256_file
from synthgen.config import MEASURED_POLICY, POLICIES
from synthgen.dataset.acceptance import SHARD_SUFFIX, Acceptance, read_acceptance
from synthgen.dataset.croissant import croissant_metadata
from synthgen.dataset.mixing import MixingPolicy, build_policy, policy_record
from synthgen.dataset.pools import shards_for
from synthgen.dataset.prepared import PreparedData, load_prepared, rows_of_index
from synthgen.dataset.provenance import Provenance, read_provenance
from synthgen.dataset.shards import REAL, SYNTHETIC, TRAIN, iter_rows, write_real_shard
from synthgen.errors import ArtifactError
from synthgen.progress import track
from synthgen.records import FINAL, ClassPlan
from synthgen.report.data_card import CardClass, CardContent, render_data_card
from synthgen.stages.workspace import Workspace

SCHEMA = 1


def run_assemble(workspace: Workspace) -> None:
    """Writes data/augmented/; equal inputs give equal bytes.

    Raises:
        ArtifactError: an input is missing, altered, or says something else than the plan.
    """
    plan, data = workspace.plan, load_prepared(workspace.prepared)
    summary = read_json(workspace.prepared / "summary.json")
    source = workspace.synthetic(FINAL)
    acceptance = read_acceptance(source / "acceptance.json")
    entries: list[CardClass] = []
    with atomic_folder(workspace.augmented) as folder:
        for slug in track(plan.slugs, "assemble", len(plan.slugs)):
            name = released_shard(workspace, slug, acceptance)
            if name not in acceptance:
                raise ArtifactError(
                    f"{source / 'acceptance.json'} says nothing about {name}; run `dvc repro synthesize@{FINAL}`"
                )
            rows = final_rows(workspace, data, slug)
            write_real_shard(
                folder / f"{REAL}-{slug}.parquet",
                data.verified(rows),
                data.sha256[rows],
                data.groups[rows],
                label=plan.classes[slug].label,
                class_name=plan.classes[slug].class_name,
                slug=slug,
                split=TRAIN,
                fold=FINAL,
                class_names=data.class_names,
            )
            shard = source / f"{name}{SHARD_SUFFIX}"
            shape: tuple[int, ...] = data.images.shape[1:]
            check_synthetic(shard, slug, plan.classes[slug], acceptance[name], shape)
            # The bytes are taken as they are: what was selected is what is released.
            shutil.copyfile(shard, folder / f"{SYNTHETIC}-{slug}.parquet")
            entries.append(_entry(slug, name, plan.classes[slug], acceptance[name], data.groups[rows], summary))
        _describe(folder, entries, summary, _policy_of(workspace, data.class_names))


def final_rows(workspace: Workspace, data: PreparedData, slug: str) -> NDArray[np.int64]:
    """(n,) rows of `data` that the `final` fold trains on for one class, in the order of its index.

    Raises:
        ArtifactError: the index names an image that is missing or of another class.
    """
    rows = rows_of_index(data, workspace.fold_index(FINAL), [slug])
    label = workspace.plan.classes[slug].label
    if np.any(data.labels[rows] != label):
        raise ArtifactError(
            f"the index of {slug} in fold {FINAL} names images of other classes; run `dvc repro prepare`"
        )
    return rows


def check_synthetic(path: Path, slug: str, entry: ClassPlan, selection: Acceptance, shape: tuple[int, ...]) -> None:
    """Reads a synthetic shard through, once.

    Args:
        shape: (H, W, C) of the prepared images.
    Raises:
        ArtifactError: a row of another class, fold, size or generator, a provenance in the image that differs
            from the row's, or another number of rows than acceptance.json says.
    """
    n_rows = 0
    for n_rows, row in enumerate(iter_rows(path), start=1):
        values = row.values
        expected = {
            "slug": slug,
            "label": entry.label,
            "class_name": entry.class_name,
            "origin": SYNTHETIC,
            "fold": FINAL,
            "generator_digest": selection.generator_digest,
        }
        wrong = [
            f"{key} {values[key]!r} instead of {value!r}" for key, value in expected.items() if values[key] != value
        ]
        if row.image.shape != shape:
            wrong.append(f"size {row.image.shape} instead of {shape}")
        if not wrong and read_provenance(row.png) != Provenance(
            selection.generator_digest, values["seed"], values["position"]
        ):
            wrong.append("another provenance in the image than in the row")
        if wrong:
            raise ArtifactError(
                f"{path}: row {n_rows - 1} has {'; '.join(wrong)}; run `dvc repro synthesize@{FINAL}` to write it again"
            )
    if n_rows != selection.accepted:
        raise ArtifactError(
            f"{path} has {n_rows} images, acceptance.json says {selection.accepted}; run `dvc repro synthesize@{FINAL}`"
        )


def released_shard(workspace: Workspace, slug: str, present: Collection[str]) -> str:
    """Name of the shard of `final` that is released of a class: the first that the policy of the verdict draws from.

    Args:
        slug: of the class.
        present: names of the shards that there are.
    """
    pool = {**POLICIES, **workspace.config.challenge.policies}[MEASURED_POLICY].pool
    return shards_for(slug, pool, present)[0]


def _entry(
    slug: str, shard: str, planned: ClassPlan, selection: Acceptance, groups: NDArray[np.str_], summary: dict[str, Any]
) -> CardClass:
    simulated, counts = summary["simulate_scarcity"], summary["classes"][slug]
    was_cut = bool(simulated) and planned.class_name in simulated["keep"]
    return CardClass(
        slug=slug,
        class_name=planned.class_name,
        label=planned.label,
        scarce=planned.scarce,
        real=len(groups),
        groups=len(set(groups.tolist())),
        cut=was_cut,
        surplus=int(counts["surplus"]) if was_cut else 0,
        synthetic=selection.accepted,
        candidates=selection.candidates,
        generator=shard.partition(".")[2] or planned.generator,
        generator_digest=selection.generator_digest,
        diversity_ratio=selection.diversity_ratio,
        refused=selection.refused,
        between_reals=selection.projection is not None,
    )


def _policy_of(workspace: Workspace, class_names: list[str]) -> MixingPolicy:
    """How the arm of the verdict mixes the images, for those who train on them."""
    policies = {**POLICIES, **workspace.config.challenge.policies}
    scarce = [workspace.plan.classes[slug].label for slug in workspace.plan.scarce_slugs]
    return build_policy(MEASURED_POLICY, policies[MEASURED_POLICY], class_names, scarce)


def _describe(folder: Path, entries: list[CardClass], summary: dict[str, Any], policy: MixingPolicy) -> None:
    simulated = summary["simulate_scarcity"]
    card = CardContent(
        image_size=summary["image_size"],
        channels=summary["channels"],
        mode=summary["mode"],
        surplus=simulated["surplus"] if simulated else "",
        classes=entries,
        share=policy.share(),
        blend=policy.blend,
    )
    files = {
        path.name: {"sha256": sha256_file(path), "bytes": path.stat().st_size}
        for path in sorted(folder.glob("*.parquet"))
    }
    counts = {
        "schema": SCHEMA,
        "image_size": card.image_size,
        "channels": card.channels,
        "slugs": [entry.slug for entry in entries],
        "class_names": [entry.class_name for entry in entries],
        "simulate_scarcity": simulated,
        "n_real": sum(entry.real for entry in entries),
        "n_synthetic": sum(entry.synthetic for entry in entries),
        "classes": {
            entry.slug: {
                "class_name": entry.class_name,
                "label": entry.label,
                "scarce": entry.scarce,
                "real": entry.real,
                "groups": entry.groups,
                "synthetic": entry.synthetic,
                "candidates": entry.candidates,
                "generator": entry.generator,
                "generator_digest": entry.generator_digest,
                "refused": entry.refused,
            }
            for entry in entries
        },
        "files": files,
        "policy": policy_record(policy, [entry.class_name for entry in entries]),
    }
    description = (
        f"{counts['n_real']} real and {counts['n_synthetic']} synthetic training images in {len(entries)} classes; "
        "the column origin tells them apart. See README.md for how they were made and what they must not be used for."
    )
    croissant = croissant_metadata("augmented", description, files, counts["slugs"])
    (folder / "summary.json").write_text(canonical_json(counts), encoding="utf-8")
    (folder / "croissant.json").write_text(canonical_json(croissant), encoding="utf-8")
    (folder / "README.md").write_text(render_data_card(card), encoding="utf-8")
