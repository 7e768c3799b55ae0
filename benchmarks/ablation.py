"""What strategies, policies and rules of selection are worth: `python benchmarks/ablation.py SET [--splits 0 1]`.

Each split of a set of benchmarks/gain.py is brought to its GANs once, in the same project folder and ledger: what
stands there is used, what is made here serves gain.py. Of the classical arms only `BASES` are trained; `best` is the
best of those. Then every variant goes on from these GANs in a project of its own (hard links): it changes one thing,
samples, and `ARMS` are trained on what it accepts, with the same weights and repeats in all variants, so differences
are paired. A killed run goes on where it stopped. Numbers go to benchmarks/results/gain/ablation_SET.json, the table is
printed, or with --write put into docs/results.md; `--splits` without numbers makes the table alone.
"""

import argparse
import json
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_data import ROOT
from gain import RESULTS, Ledger, Split, measured_numbers, run_project, what_was_set
from gain_sets import SETS, GainSet, lay_out_project
from gain_table import Units, interval, read_units, write_tables
from ruamel.yaml import YAML
from side_by_side import Turn, groups_for, run_each

from synthgen.artifacts import digest_of, write_json
from synthgen.dataset.acceptance import read_acceptance
from synthgen.device import resolve_device
from synthgen.errors import SynthgenError
from synthgen.stages.adapt import run_adapt
from synthgen.stages.challenge import run_challenge
from synthgen.stages.synthesize import run_synthesize
from synthgen.stages.workspace import Workspace

BASES = ("balanced", "classical", "strong", "mixup_mild", "mixup")
ARMS = ("balanced+synthetic", "best+synthetic")
NONE = "none"
OFF: dict[str, Any] = {
    "min_agreement": 0.0,
    "max_agreement": 1.0,
    "min_nearest_ratio": 0.0,
    "max_nearest_ratio": None,
    "min_density": 0.0,
    "oversample": 3.0,  # of all variants, so that all judge the same candidates and strict ones find enough
}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    NONE: {},
    "agreement_50": {"synthesize": {"min_agreement": 0.5}},
    "agreement_90": {"synthesize": {"min_agreement": 0.9}},
    "copies_80": {"synthesize": {"min_nearest_ratio": 0.8}},
    "far_150": {"synthesize": {"max_nearest_ratio": 1.5}},
    "density_20": {"synthesize": {"min_density": 0.2}},
    "band_50_90": {"synthesize": {"min_agreement": 0.5, "max_agreement": 0.9}},
    "between_reals": {"synthesize": {"latents": "between_reals"}},
    "boundary": {"adapt": {"boundary": {}}},
    "shared": {"policy": {"pool": "shared"}},
    "blend_mixup": {"policy": {"blend": "mixup"}},
    "blend_cutmix": {"policy": {"blend": "cutmix"}},
}
"""One thing changed in each: rules of selection (agreement_50 is the default; that of min_nearest_ratio, 0.1, leaves
out too little on the digits to be measured), then strategies, then the policy `synthetic`. Thresholds were set by how
much they leave out on split 0, before any recall was seen."""
SHARE = 0.25
log = logging.getLogger("ablation")


def _change_params(source: Path, target: Path, changes: dict[str, dict[str, Any]]) -> None:
    yaml = YAML()
    params = yaml.load(source)
    for section, values in changes.items():
        params[section].update(values)
    with target.open("w", encoding="utf-8") as stream:
        yaml.dump(params, stream)


def make_base(one: GainSet, split: int, folder: Path, device: torch.device) -> None:
    """Brings a split's project to its GANs, with the classical arms `BASES`; afterwards params.yaml is gain.py's."""
    lay_out_project(one, split, folder)
    params = folder / "params.yaml"
    arms = [arm for arm in Workspace(folder).config.evaluate.arms if arm in BASES]
    _change_params(params, params, {"evaluate": {"arms": arms}})
    try:
        run_project(folder, "models", device)
    finally:
        lay_out_project(one, split, folder)


def _link_or_copy(source: str, target: str) -> None:
    # Stages replace files, they never write into one, so a link cannot change the base.
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def link_base(base: Path, folder: Path, arms: list[str]) -> None:
    """Gives a variant's project the images, classical arms and GANs of its base; removes what it had."""
    for name in ("data", "models", ".synthgen"):
        shutil.rmtree(folder / name, ignore_errors=True)
    evaluations = [f"data/evaluation/{arm}" for arm in arms]
    for name in ("data/prepared", "models", ".synthgen/banks", *evaluations):
        if (base / name).exists():
            shutil.copytree(base / name, folder / name, copy_function=_link_or_copy)


def run_variant(base: Path, folder: Path, changes: dict[str, dict[str, Any]], device: torch.device) -> None:
    """Adapts and samples with one variant and trains `ARMS` on what it accepts.

    Args:
        base: project with its GANs; only read.
        folder: the variant's project; made, or gone on with.
        changes: keys of `synthesize` that differ from `OFF`, of `adapt`, and of the `policy` of the arms.
        device: to train on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arms = [arm for arm in Workspace(base).config.evaluate.arms if arm in BASES]
    _change_params(
        base / "params.yaml",
        folder / "params.yaml",
        {
            "synthesize": {**OFF, **changes.get("synthesize", {})},
            "adapt": changes.get("adapt", {}),
            "evaluate": {"arms": arms},
            "challenge": {
                "arms": list(ARMS),
                "policies": {"synthetic": {"share": SHARE, **changes.get("policy", {})}},
            },
        },
    )
    for name in ("plan.yaml", "folds.csv"):
        shutil.copy(base / name, folder / name)
    done = Ledger(base).done
    used = ["plan", "prepare", *(f"evaluate {arm}" for arm in arms)]
    used += [name for name in done if name.split()[0] in ("pretrain", "adapt", "scratch")]
    ledger = Ledger(folder)
    ledger.run("base", {name: done[name]["key"] for name in used}, [], lambda: link_base(base, folder, arms))
    workspace = Workspace(folder)
    config, versions = what_was_set(workspace.config), workspace.plan.versions
    shared = [config["seed"], config["transforms"], config["classifier"], versions["classifier"]]
    sampled = []
    for fold in workspace.plan.measured_folds:
        adapted = [f"adapt {fold} {slug}" for slug in workspace.plan.adapt_slugs if "adapt" in changes]
        for name in adapted:
            ledger.run(
                name,
                [config["adapt"], config["pretrain"], versions["gan"]],
                ["base"],
                lambda fold=fold, name=name: run_adapt(workspace, fold, name.split()[-1], device),
            )
        sampled.append(f"synthesize {fold}")
        ledger.run(
            sampled[-1],
            [shared, config["synthesize"], versions["gan"], versions["selection"]],
            ["base", *adapted],
            lambda fold=fold: run_synthesize(workspace, fold, device),
        )
    for arm in ARMS:
        ledger.run(
            f"challenge {arm}",
            [shared, config["evaluate"], config["challenge"]],
            sampled,
            lambda arm=arm: run_challenge(workspace, arm, device),
        )


def accepted_counts(workspace: Workspace) -> dict[str, Any]:
    """What selection did, over the folds, for the pools that the arms use: scarce classes and others apart.

    Returns:
        `{scarce: {candidates, kept, accepted, classes, refused}, others: ..., rejected: {reason: n}}`; `kept` are the
        candidates that break no rule, `accepted` those of classes that were not refused.
    """
    plan = workspace.plan
    names = ("candidates", "kept", "accepted", "classes", "refused")
    found: dict[str, Any] = {side: dict.fromkeys(names, 0) for side in ("scarce", "others")}
    rejected: dict[str, int] = {}
    for fold in plan.measured_folds:
        entries = read_acceptance(workspace.synthetic(fold) / "acceptance.json")
        for slug in plan.slugs:
            entry, side = entries[slug], found["scarce" if plan.classes[slug].scarce else "others"]
            kept = entry.candidates - sum(entry.rejected.values())
            values = (entry.candidates, kept, entry.accepted, 1, int(entry.refused is not None))
            for name, value in zip(names, values, strict=True):
                side[name] += value
            for reason, count in entry.rejected.items():
                rejected[reason] = rejected.get(reason, 0) + count
    return {**found, "rejected": rejected}


def keep_numbers(one: GainSet, split: int, variant: str, folder: Path) -> None:
    """Puts the numbers of one variant of one split into the results; all others stay as they are."""
    path = RESULTS / f"ablation_{one.name}.json"
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"variants": {}}
    workspace = Workspace(folder)
    config = what_was_set(workspace.config)
    kept = record["variants"].setdefault(variant, {"splits": {}})
    kept["splits"][str(split)] = {
        "folds": _read_by_the_table(measured_numbers(workspace), variant),
        "counts": accepted_counts(workspace),
        "seconds": {name: entry["seconds"] for name, entry in Ledger(folder).done.items()},
        "params": digest_of({name: value for name, value in config.items() if name not in ("seed", "report")}),
        "versions": workspace.plan.versions,
    }
    record["scarce"] = workspace.plan.scarce_slugs
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_json(path, record)


def _read_by_the_table(folds: dict[str, dict[str, Any]], variant: str) -> dict[str, dict[str, Any]]:
    """Without the classical arms, which are those of the base in every variant; `none` alone keeps them."""
    if variant == NONE:
        return folds
    return {
        fold: {**numbers, "arms": {arm: numbers["arms"][arm] for arm in ARMS if arm in numbers["arms"]}}
        for fold, numbers in folds.items()
    }


def common_splits(record: dict[str, Any]) -> list[str]:
    """Splits that all of `VARIANTS` have been measured on; the others cannot be paired."""
    held = [set(record["variants"].get(name, {"splits": {}})["splits"]) for name in VARIANTS]
    return sorted(set.intersection(*held), key=int)


def table(one: GainSet, record: dict[str, Any]) -> str:
    """Markdown: how much each variant keeps, and its paired differences to `none`, arm by arm."""
    splits = common_splits(record)
    if not splits:
        return f"{one.title}: no split has all variants yet; run `python benchmarks/ablation.py {one.name}`.\n"
    rows = {name: {split: record["variants"][name]["splits"][split] for split in splits} for name in VARIANTS}
    units = {name: read_units({"scarce": record["scarce"], "splits": own}) for name, own in rows.items()}
    n_intervals = 2 * len(ARMS) * (len(VARIANTS) - 1)
    lines = [
        f"{one.title}: {len(splits)} of {one.n_splits} splits. Those that change rules alone judge the same "
        "candidates. `best` is the "
        f"best of {', '.join(f'`{arm}`' for arm in BASES if arm in units[NONE].recall)}, cross-fitted in the split.",
        "",
        "| variant | what it changes | kept, scarce classes | kept, others | images of a scarce class | refused |",
        "| --- | --- | --- | --- | --- | --- |",
        *(_count_row(name, [entry["counts"] for entry in rows[name].values()]) for name in VARIANTS),
    ]
    for arm in ARMS:
        lines += ["", f"`{arm}`, percent, and points over `{NONE}`, paired by split:", "", *_arm_rows(arm, units, one)]
    kinds = {json.dumps(entry["versions"], sort_keys=True) for own in rows.values() for entry in own.values()}
    if len(kinds) > 1:
        lines += ["", f"The splits were measured with {len(kinds)} different versions of synthgen."]
    seconds = sum(sum(entry["seconds"].values()) for own in rows.values() for entry in own.values())
    lines += [
        "",
        f"{n_intervals} intervals of 95 %: where no rule does anything, about {n_intervals / 20:.1f} of them leave out "
        f"0. Time of the variants: {seconds / 60 / len(splits):.1f} minutes a split. Again: "
        f"`python benchmarks/ablation.py {one.name} --write`.",
    ]
    return "\n".join(lines) + "\n"


def _count_row(name: str, counts: list[dict[str, Any]]) -> str:
    def total(side: str, what: str) -> int:
        return sum(count[side][what] for count in counts)

    def share(side: str) -> str:
        judged = total(side, "candidates")
        return f"{100 * total(side, 'kept') / judged:.1f} %" if judged else "–"

    rules = "; ".join(
        f"{section}: {', '.join(f'{key} {value}' if value else key for key, value in values.items())}"
        for section, values in VARIANTS[name].items()
    )
    images = total("scarce", "accepted") / max(1, total("scarce", "classes"))
    n_classes = total("scarce", "classes") + total("others", "classes")
    refused = f"{total('scarce', 'refused') + total('others', 'refused')} of {n_classes}"
    kept = f"{share('scarce')} | {share('others')}"
    return f"| `{name}` | {rules or 'nothing; no rule is on'} | {kept} | {images:.0f} | {refused} |"


def _arm_rows(arm: str, units: dict[str, Units], one: GainSet) -> list[str]:
    lines = [
        "| variant | scarce recall | over `none` | balanced accuracy | over `none` |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, own in units.items():
        cells = []
        for values, base in ((own.recall, units[NONE].recall), (own.balanced, units[NONE].balanced)):
            cells.append(f"{100 * np.nanmean(values[arm]):.2f}")
            cells.append("" if name == NONE else interval(values[arm] - base[arm], one.overlap))
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return lines


def run_split(split: Split, turn: Turn) -> None:
    """All variants of one split; `turn` is held while numbers are written beside those of other splits."""
    form = f"%(asctime)s {split.name} {split.number}: %(message)s"
    logging.basicConfig(level=logging.INFO, format=form, datefmt="%H:%M:%S", force=True)  # also of the next split here
    one, device = SETS[split.name], resolve_device(split.device)
    try:
        make_base(one, split.number, split.folder, device)
        for name, changes in VARIANTS.items():
            log.info(name)
            folder = split.folder.with_name(f"ablation-{split.number}") / name
            run_variant(split.folder, folder, changes, device)
            with turn:
                keep_numbers(one, split.number, name, folder)
    except SynthgenError as error:
        sys.exit(f"{split}: {error}")


def main() -> None:
    """Runs what is missing of the asked splits, then makes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("set", choices=sorted(SETS))
    parser.add_argument(
        "--folder", type=Path, default=ROOT / ".synthgen" / "gain", help="where gain.py's projects stand"
    )
    parser.add_argument("--splits", type=int, nargs="*", default=None, help="numbers of splits; default all")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--jobs", type=int, default=1, help="splits at the same time, each on its own cores (default 1)"
    )
    parser.add_argument("--write", action="store_true", help="put the table into docs/results.md")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    one, home = SETS[arguments.set], arguments.folder.resolve() / arguments.set
    numbers = range(one.n_splits) if arguments.splits is None else arguments.splits
    splits = [Split(one.name, k, home / f"split-{k}", "models", arguments.device, False) for k in numbers]
    try:
        groups_for(arguments.jobs)
    except ValueError as error:
        parser.error(f"--jobs {arguments.jobs}: {error}")
    run_each(splits, run_split, arguments.jobs)
    path = RESULTS / f"ablation_{one.name}.json"
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"variants": {}}
    if arguments.write:
        write_tables({f"ablation_{one.name}": table(one, record)})
    else:
        sys.stdout.write(table(one, record))


if __name__ == "__main__":
    main()
