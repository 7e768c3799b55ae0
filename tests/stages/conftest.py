"""A project folder after all stages before `assemble` and `report`, written by hand from docs/schema.md."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synthgen.artifacts import write_json
from synthgen.dataset.prepared import pixel_sha256, save_manifest
from synthgen.dataset.shards import SyntheticRows, write_synthetic_shard
from synthgen.records import FINAL, ClassPlan, Plan, save_plan
from synthgen.stages.workspace import Workspace

DIGEST = "0123456789abcdef" * 4
HOSTILE_NAME = '<img src=x onerror="alert(1)">{{7*7}}\u202e'
PARAMS = """
source:
  type: digits
evaluate:
  arms: [classical, mixup]
challenge:
  arms: [best+synthetic, best+shared]
report:
  n_examples: 5
"""


@dataclass(frozen=True)
class FinishedRun:
    """A project and what its files were made from."""

    workspace: Workspace
    plan: Plan
    images: np.ndarray
    sha256: list[str]
    labels: list[int]
    synthetic: dict[str, SyntheticRows]


def make_gain(plan: Plan) -> dict[str, Any]:
    gain = {"mean": 0.04, "low": 0.01, "high": 0.07, "n": 2}
    slugs = plan.slugs
    arm = {
        "balanced_accuracy": 0.8,
        "macro_f1": 0.79,
        "scarce_recall": 0.7,
        "auc": dict.fromkeys(slugs, 0.9),
        "average_precision": dict.fromkeys(slugs),
        "recall": dict.fromkeys(slugs, 0.8),
        "precision": dict.fromkeys(slugs, 0.8),
        "after_offsets": {"balanced_accuracy": 0.8, "macro_f1": 0.8, "recall": dict.fromkeys(slugs, 0.8)},
    }
    return {
        "schema": 1,
        "mode": plan.mode,
        "n_folds": len(plan.measured_folds),
        "n_repeats": 2,
        "confidence": 0.95,
        "challenger": "best+synthetic",
        "claim": "expected difference on a new split, 2 grouped folds, 16 groups",
        "data": {
            "n_images": 16,
            "n_groups": 16,
            "classes": {
                slug: {
                    "class_name": plan.classes[slug].class_name,
                    "images": plan.classes[slug].images,
                    "groups": plan.classes[slug].groups,
                    "scarce": plan.classes[slug].scarce,
                    "test_groups": plan.classes[slug].groups,
                }
                for slug in slugs
            },
        },
        "chosen": dict.fromkeys(plan.measured_folds, "mixup"),
        "arms": dict.fromkeys(("classical", "mixup", "best+synthetic", "best+shared"), arm),
        "gain": {
            slug: {
                "recall": gain,
                "after_offsets": gain,
                "verdict": "promising",
                "reason": "shown in 2 folds, at least 5 are needed for a claim",
                "n_test_groups": 4,
                "smallest_visible": 0.03,
            }
            for slug in plan.scarce_slugs
        },
        "overall": {"balanced_accuracy": gain, "macro_f1": gain, "scarce_recall": gain},
        "beside": {"best+shared": dict.fromkeys(plan.scarce_slugs, gain)},
        "looks": {"test_digest": "9f" * 32, "look": 2, "exploratory": True},
        "verdict": "Promising.",
    }


def _write_prepared(workspace: Workspace, plan: Plan, images: np.ndarray, sha256: list[str], labels: list[int]) -> None:
    n = len(images)
    workspace.prepared.mkdir(parents=True)
    np.save(workspace.prepared / "images.npy", images)
    names = [plan.classes[slug].class_name for slug in plan.slugs]
    save_manifest(
        workspace.prepared / "manifest.parquet",
        {
            "row": list(range(n)),
            "source": [f"{i}.png" for i in range(n)],
            "class_name": [names[label] for label in labels],
            "slug": [plan.slugs[label] for label in labels],
            "label": labels,
            "file_sha256": sha256,
            "pixel_sha256": sha256,
            "group": [f"g{i}" for i in range(n)],
            "fold": [i % 2 for i in range(n)],
            "role": ["pool"] * n,
            "width": [8] * n,
            "height": [8] * n,
            "mode": ["L"] * n,
        },
    )
    write_json(
        workspace.prepared / "summary.json",
        {
            "schema": 1,
            "mode": "folds",
            "n_folds": 2,
            "slugs": plan.slugs,
            "class_names": names,
            "image_size": 8,
            "channels": 1,
            "n_images": n,
            "n_groups": n,
            "n_quarantined": 1,
            "simulate_scarcity": {"keep": {names[1]: 4}, "surplus": "test"},
            "classes": {
                slug: {"images": labels.count(k), "groups": labels.count(k), "surplus": 0, "val": 0, "test": 0}
                for k, slug in enumerate(plan.slugs)
            },
            "grouping": {"perceptual": 3},
        },
    )
    with (workspace.prepared / "quarantine.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerows([["source", "reason", "detail"], [f"{HOSTILE_NAME}.png", "truncated", "3 bytes, 'missing'"]])
    for k, slug in enumerate(plan.slugs):
        digests = sorted(sha for sha, label in zip(sha256, labels, strict=True) if label == k)
        path = workspace.fold_index(FINAL) / "train" / f"{slug}.json"
        write_json(path, {"fold": FINAL, "slug": slug, "label": k, "pixel_sha256": digests})


def _write_synthetic(workspace: Workspace, plan: Plan) -> dict[str, SyntheticRows]:
    rng = np.random.default_rng(1)
    names = [plan.classes[slug].class_name for slug in plan.slugs]
    made, acceptance = {}, {}
    for shard in (*plan.slugs, "dog.shared"):
        slug, n = shard.split(".")[0], 6
        floats = rng.random(n).astype(np.float32)
        rows = SyntheticRows(
            rng.integers(0, 256, (n, 8, 8, 1)).astype(np.uint8),
            np.arange(n) + 100,
            np.arange(n, dtype=np.int32),
            floats,
            floats,
            floats,
        )
        write_synthetic_shard(
            workspace.synthetic(FINAL) / f"{shard}.parquet",
            rows,
            label=plan.classes[slug].label,
            class_name=plan.classes[slug].class_name,
            slug=slug,
            fold=FINAL,
            generator_digest=DIGEST,
            class_names=names,
        )
        made[shard] = rows
        acceptance[shard] = {
            "candidates": 9,
            "accepted": n,
            "rejected": {"label": 3},
            "generator_digest": DIGEST,
            "refused": None,
            "diversity_ratio": 0.9,
        }
    write_json(workspace.synthetic(FINAL) / "acceptance.json", acceptance)
    return made


def _write_results(workspace: Workspace, plan: Plan) -> None:
    history = (
        "kimg,d_loss,g_loss,r1,r2,d_real,d_fake,score,precision,recall,diversity_ratio,nearest_ratio\n"
        "4,1.3,0.7,0.1,0.1,0.5,0.6,0.4,0.5,0.4,0.8,1.2\n8,1.2,0.8,0.1,nan,0.6,0.5,0.3,0.6,,0.9,1.1\n"
    )
    for folder in (workspace.shared_model(FINAL), workspace.adapted_model(FINAL, "dog")):
        folder.mkdir(parents=True)
        (folder / "history.csv").write_text(history)
    write_json(workspace.metrics / "gain.json", make_gain(plan))
    folds = "fold,slug,baseline,challenger,gain\nf0,dog,mixup,best+synthetic,0.050000\nf1,dog,mixup,best+synthetic,\n"
    (workspace.metrics / "folds.csv").write_text(folds)
    record = {"arm": "mixup", "scores": {"classical": 0.7123, "mixup": 0.736}}
    arm = {"schema": 1, "arm": "best+synthetic", "folds": {"f0": record, "f1": record}, "share": 0.25}
    write_json(workspace.evaluation("best+synthetic") / "arm.json", arm)


@pytest.fixture
def finished_run(tmp_path: Path) -> FinishedRun:
    root = tmp_path / "project"
    root.mkdir()
    (root / "params.yaml").write_text(PARAMS)
    classes = {
        "cat": ClassPlan(class_name="cat", label=0, images=12, groups=12, scarce=False, target=6, generator="shared"),
        "dog": ClassPlan(
            class_name=HOSTILE_NAME, label=1, images=4, groups=4, scarce=True, target=6, generator="adapted"
        ),
    }
    folds = ["f0", "f1", FINAL]
    plan = Plan.model_validate(
        {
            "version": 1,
            "mode": "folds",
            "strategy": "adapted",
            "folds": folds,
            "pretrain_folds": folds,
            "adapt_slugs": ["dog"],
            "scratch_slugs": [],
            "classes": classes,
        }
    )
    workspace = Workspace(root)
    save_plan(workspace.plan_file, plan)
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1)).astype(np.uint8)
    sha256 = [pixel_sha256(image) for image in images]
    labels = [0] * 12 + [1] * 4
    _write_prepared(workspace, plan, images, sha256, labels)
    synthetic = _write_synthetic(workspace, plan)
    _write_results(workspace, plan)
    return FinishedRun(workspace, plan, images, sha256, labels, synthetic)
