"""What samples between training images are like, beside samples of random latents: one fold of the embedded digits.

Owns a project of its own, in a folder that goes when it ends: `plan`, `prepare`, `pretrain`, `adapt`, then `synthesize`
under both settings. Prints a row per setting and kind of class. Says nothing about the gain of a classifier.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from synthgen.artifacts import read_json
from synthgen.dataset.shards import read_images
from synthgen.stages.adapt import run_adapt
from synthgen.stages.plan import run_plan
from synthgen.stages.prepare import run_prepare
from synthgen.stages.pretrain import run_pretrain
from synthgen.stages.synthesize import run_synthesize
from synthgen.stages.workspace import Workspace

FOLD = "f0"
PARAMS = Path(__file__).parents[1] / "params.yaml"
CPU = torch.device("cpu")


def trained_project(folder: Path) -> Workspace:
    """The repository's own params.yaml in an empty `folder`, as far as the generators of one fold."""
    (folder / "data" / "raw").mkdir(parents=True)
    shutil.copyfile(PARAMS, folder / "params.yaml")
    workspace = Workspace(folder)
    plan = run_plan(workspace)
    run_prepare(workspace)
    run_pretrain(workspace, FOLD, CPU)
    for slug in plan.adapt_slugs:
        run_adapt(workspace, FOLD, slug, CPU)
    return workspace


def with_latents(workspace: Workspace, latents: str) -> Workspace:
    """The same project under another `synthesize.latents`."""
    text = PARAMS.read_text(encoding="utf-8")
    changed = text.replace("  oversample:", f"  latents: {latents}\n  oversample:")
    assert changed != text
    (workspace.root / "params.yaml").write_text(changed, encoding="utf-8")
    return Workspace(workspace.root)


def facts_of(workspace: Workspace, slugs: list[str]) -> dict[str, float]:
    """Means over classes of what acceptance.json and the shards say."""
    acceptance = read_json(workspace.synthetic(FOLD) / "acceptance.json")
    rows: list[dict[str, Any]] = []
    for slug in slugs:
        entry = acceptance[slug]
        shard = read_images(workspace.synthetic(FOLD) / f"{slug}.parquet", ["teacher_agreement", "nearest_real"])
        row = {
            "accepted, %": 100.0 * entry["accepted"] / entry["candidates"],
            "copies, %": 100.0 * entry["rejected"]["copies_a_real"] / entry["candidates"],
            "agreement": shard.columns["teacher_agreement"].mean() if len(shard.labels) else np.nan,
            "nearest real": np.median(shard.columns["nearest_real"]) if len(shard.labels) else np.nan,
            "diversity": entry["diversity_ratio"],
        }
        found = entry.get("projection", {})
        names = {"pixel error": "pixel_error", "of random": "random_pixel_error", "feature ratio": "feature_ratio"}
        rows.append(row | {title: found.get(name, np.nan) for title, name in names.items()})
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def main() -> None:
    """Trains, samples twice, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--project", type=Path, help="folder of a run before: nothing is trained again")
    kept: Path | None = parser.parse_args().project
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as own:
        folder = kept if kept is not None else Path(own) / "project"
        workspace = Workspace(folder) if folder.exists() else trained_project(folder)
        plan = workspace.plan
        kinds = {"scarce": plan.scarce_slugs, "others": [s for s in plan.slugs if s not in plan.scarce_slugs]}
        for latents in ("normal", "between_reals"):
            changed = with_latents(workspace, latents)
            started = time.process_time()
            run_synthesize(changed, FOLD, CPU)
            seconds = time.process_time() - started
            for kind, slugs in kinds.items():
                facts = facts_of(changed, slugs)
                if (latents, kind) == ("normal", "scarce"):
                    print("| latents | classes |", " | ".join(facts), "|")
                    print("| --- | --- |", " | ".join("---:" for _ in facts), "|")
                told = [
                    "" if np.isnan(v) else f"{v:.0f}" if name[-1] == "%" else f"{v:.2f}" for name, v in facts.items()
                ]
                print(f"| `{latents}` | {kind} |", " | ".join(told), "|")
            print(f"({latents}: {seconds:.0f} s of a core, the teacher's training among them)")


if __name__ == "__main__":
    main()
