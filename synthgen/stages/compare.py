"""Stage `compare`: predictions of all arms in; metrics/gain.json, classes.csv, folds.csv and the log of looks out.

Owns reading, pairing and logging. Refuses arms that were measured on different images, an arm whose
baseline is not the one that the classical arms' own scores choose, and a test set that is not the plan's.
"""

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthgen.artifacts import atomic_file, digest_of, read_json, sha256_bytes, write_json
from synthgen.classifier.arms import REGULARISED, measured_arm, needs_unlabelled
from synthgen.config import MEASURED_POLICY, POLICIES, Config
from synthgen.dataset.predictions import AlignedLogits, Predictions, load_predictions
from synthgen.errors import ArtifactError, MeasurementError
from synthgen.metrics.choice import Rows, choose_arm
from synthgen.metrics.experiment import Experiment
from synthgen.metrics.gain import ClassFacts, compare_arms
from synthgen.metrics.outcomes import ArmFold, measure_arm
from synthgen.progress import track
from synthgen.records import Plan
from synthgen.stages.workspace import Workspace

PROCEDURE_SECTIONS = (
    "seed",
    "source",
    "transforms",
    "classifier",
    "plan",
    "prepare",
    "pretrain",
    "adapt",
    "scratch",
    "synthesize",
    "evaluate",
    "challenge",
    "compare",
)
"""Sections that decide what is compared and how: another value is another procedure, hence another look."""


TELLING_PARTS = ("report", "probe", "worth")
"""Parts of synthgen that describe a run and decide nothing of what is compared: a new version is no new look."""


def _checked_parts(arm: str, predictions: Predictions, plan: Plan) -> dict[str, tuple[AlignedLogits, AlignedLogits]]:
    """fold -> (test, val) of one arm."""
    if predictions.n_classes != len(plan.slugs):
        raise ArtifactError(
            f"data/evaluation/{arm} tells {predictions.n_classes} classes apart, plan.yaml has {len(plan.slugs)}; "
            "run `dvc repro`"
        )
    return {fold: (predictions.aligned(fold, "test"), predictions.aligned(fold, "val")) for fold in plan.measured_folds}


def _same_images(first: AlignedLogits, other: AlignedLogits) -> bool:
    return (
        np.array_equal(first.sha256, other.sha256)
        and np.array_equal(first.labels, other.labels)
        and np.array_equal(first.groups, other.groups)
        and first.logits.shape == other.logits.shape
    )


def _read_arms(
    workspace: Workspace, arms: list[str]
) -> tuple[dict[str, Predictions], dict[str, dict[str, tuple[AlignedLogits, AlignedLogits]]]]:
    predictions = {arm: load_predictions(workspace.evaluation(arm) / "predictions.parquet") for arm in arms}
    parts = {arm: _checked_parts(arm, predictions[arm], workspace.plan) for arm in arms}
    reference = parts[arms[0]]
    for arm in arms[1:]:
        for fold in workspace.plan.measured_folds:
            for name, ours, theirs in zip(("test", "val"), parts[arm][fold], reference[fold], strict=True):
                if not _same_images(theirs, ours):
                    raise MeasurementError(
                        f"arms {arms[0]} and {arm} were measured on different {name} images or numbers of repeats in "
                        f"fold {fold}; a paired comparison needs the same: run `dvc repro`"
                    )
    return predictions, parts


def _chosen_arms(
    workspace: Workspace, predictions: dict[str, Predictions], challengers: list[str]
) -> tuple[list[str], str]:
    """The classical arm chosen in each fold, checked against what the arms built on it recorded.

    Also the arm to train with on all data: the one that the same rule takes on the rows of all folds together.
    """
    config, plan = workspace.config, workspace.plan
    scarce = [plan.classes[slug].label for slug in plan.scarce_slugs]
    built = {arm: read_json(workspace.evaluation(arm) / "arm.json") for arm in challengers if arm.startswith("best+")}
    how = "cross-fitting" if config.evaluate.crossfit else "the score on validation rows"

    def choose(candidates: Mapping[str, Rows]) -> str:
        rules = config.challenge
        return choose_arm(candidates, rules.choice, scarce, regularised=REGULARISED, errors=rules.choice_errors)[0]

    rows = {arm: [predictions[arm].selection(fold) for fold in plan.measured_folds] for arm in config.evaluate.arms}
    chosen = []
    for k, fold in enumerate(plan.measured_folds):
        best = choose({arm: of_arm[k] for arm, of_arm in rows.items()})
        for arm, record in built.items():
            theirs = record.get("folds", {}).get(fold, {}).get("arm")
            if theirs != best:
                raise MeasurementError(
                    f"in fold {fold} {arm} was built on {theirs!r}, but {how} chooses {best!r}; its "
                    "predictions are older than those of the classical arms: run `dvc repro` for both"
                )
        chosen.append(best)
    pooled = {
        arm: (
            np.concatenate([labels for labels, _, _ in of_arm]),
            np.concatenate([logits for _, logits, _ in of_arm]),
            np.concatenate([groups for _, _, groups in of_arm]),
        )
        for arm, of_arm in rows.items()
    }
    return chosen, choose(pooled)


def _training_groups(plan: Plan, val_parts: list[AlignedLogits]) -> NDArray[np.float64]:
    """(K,) mean number of groups per class that a fold trains on: what neither tests nor validates.

    Over J folds every pool group is tested once, so a fold tests 1/J of them; test-only surplus is not in
    the plan's counts.
    """
    n_folds = len(plan.measured_folds)
    counts = []
    for slug in plan.slugs:
        label = plan.classes[slug].label
        validated = np.mean([len(np.unique(part.groups[part.labels == label])) for part in val_parts])
        counts.append(max(plan.classes[slug].groups * (1 - 1 / n_folds) - float(validated), 1 / n_folds))
    return np.asarray(counts)


def _test_digest(test_parts: list[AlignedLogits]) -> str:
    """sha256 over the distinct (pixels, label) of all test rows, sorted."""
    rows = {
        f"{sha} {label}"
        for part in test_parts
        for sha, label in zip(part.sha256.tolist(), part.labels.tolist(), strict=True)
    }
    return sha256_bytes("\n".join(sorted(rows)).encode())


def log_look(workspace: Workspace, test_digest: str, procedure_digest: str) -> int:
    """Number of this look at these test images, from 1; a procedure that looked before keeps its number.

    Raises:
        ArtifactError: metrics/looks.json is damaged or cannot be written.
    """
    path = workspace.metrics / "looks.json"
    looks = read_json(path) if path.exists() else {}
    known = looks.get(test_digest, []) if isinstance(looks, dict) else None
    if not isinstance(known, list):
        raise ArtifactError(f"{path} is not the log of looks; restore it with `git checkout {path.name}` in metrics/")
    if procedure_digest not in known:
        write_json(path, {**looks, test_digest: [*known, procedure_digest]})
        return len(known) + 1
    return known.index(procedure_digest) + 1


def _used_policies(config: Config) -> dict[str, dict[str, Any]]:
    """What arms and the search mix by, name by name, without what is at its default or not used."""
    policies = {**POLICIES, **config.challenge.policies}
    names = {arm.partition("+")[2] for arm in config.challenge.arms}
    if config.challenge.searched_arms:
        names |= {MEASURED_POLICY, *config.search.candidates}
    used = {name: policies[name].model_dump(mode="json", exclude_defaults=True) for name in names & policies.keys()}
    for policy in used.values():
        if "blend" not in policy:
            policy.pop("blend_alpha", None)
    return used


def _unused(config: Config) -> Iterator[tuple[str, str]]:
    """(section, key) of what nothing reads: a projection under normal latents, images that nobody asks for, ..."""
    if config.synthesize.latents == "normal":
        yield "synthesize", "projection"
    if config.pretrain.network.architecture != "translate_masked":
        yield "pretrain", "keep_weight"
    bases = [arm.partition("+")[0] for arm in (*config.evaluate.arms, *config.challenge.arms)]
    if not config.pretrain.unlabelled and not any(map(needs_unlabelled, bases)):
        yield "source", "unlabelled"


def procedure_digest(workspace: Workspace, arms: list[str]) -> str:
    """sha256 of what decides what is compared: arms, sections of params.yaml, versions of synthgen's parts."""
    # Without what is at its default, so that a field which synthgen gets anew is no new look at the same procedure; a
    # default that changes comes with another version of its part.
    config = workspace.config.model_dump(mode="json", exclude_defaults=True)
    # What is set but not used decides nothing either.
    config["challenge"]["policies"] = _used_policies(workspace.config)
    for section, key in _unused(workspace.config):
        config.get(section, {}).pop(key, None)
    if workspace.config.plan.strategy != "adapted":
        config.pop("adapt", None)  # `scratch` stays under every strategy: looks were logged with it
    searched = ["search"] if workspace.config.challenge.searched_arms else []
    morphed = ["morphs"] if workspace.config.synthesize.morphs is not None else []
    telling = {*TELLING_PARTS, "search", "morphs"} - {*searched, *morphed}
    return digest_of(
        {
            "arms": arms,
            "config": {section: config.get(section, {}) for section in [*PROCEDURE_SECTIONS, *searched]},
            "versions": {part: number for part, number in workspace.plan.versions.items() if part not in telling},
        }
    )


def _number(value: float | None) -> str:
    return "" if value is None or not np.isfinite(value) else f"{value:.6f}"


def _classes_csv(record: dict[str, Any]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["arm", "slug", "scarce", "recall", "precision", "auc", "average_precision"])
    for arm, values in record["arms"].items():
        for slug, facts in record["data"]["classes"].items():
            numbers = [_number(values[name][slug]) for name in ("recall", "precision", "auc", "average_precision")]
            writer.writerow([arm, slug, str(facts["scarce"]).lower(), *numbers])
    return stream.getvalue()


def _folds_csv(plan: Plan, record: dict[str, Any], by_fold: NDArray[np.float64]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["fold", "slug", "baseline", "challenger", "gain"])
    for fold, row in zip(plan.measured_folds, by_fold, strict=True):
        for slug in plan.slugs:
            gain = _number(float(row[plan.classes[slug].label]))
            writer.writerow([fold, slug, record["chosen"][fold], record["challenger"], gain])
    return stream.getvalue()


def _build_experiment(
    plan: Plan,
    parts: dict[str, dict[str, tuple[AlignedLogits, AlignedLogits]]],
    *,
    classical: list[str],
    chosen: list[str],
    challenger: str,
) -> Experiment:
    first = next(iter(parts.values()))
    test_parts = [first[fold][0] for fold in plan.measured_folds]
    outcomes = {}
    for arm, folds in track(parts.items(), "compare: arms", len(parts)):
        pairs = [folds[fold] for fold in plan.measured_folds]
        outcomes[arm] = measure_arm(
            [ArmFold(test.labels, test.groups, test.logits, val.labels, val.groups, val.logits) for test, val in pairs]
        )
    return Experiment(
        mode=plan.mode,
        folds=plan.measured_folds,
        labels=[part.labels for part in test_parts],
        groups=[part.groups for part in test_parts],
        n_classes=len(plan.slugs),
        scarce=sorted(plan.classes[slug].label for slug in plan.scarce_slugs),
        train_groups=_training_groups(plan, [first[fold][1] for fold in plan.measured_folds]),
        outcomes=outcomes,
        classical=classical,
        chosen=chosen,
        challenger=challenger,
    )


def run_compare(workspace: Workspace) -> dict[str, Any]:
    """Compares all arms and writes metrics/.

    Returns:
        The contents of metrics/gain.json.

    Raises:
        ArtifactError: a file of an earlier stage is missing or damaged.
        MeasurementError: arms that cannot be compared.
    """
    config, plan = workspace.config, workspace.plan
    challengers = list(dict.fromkeys(config.challenge.arms))
    classical = list(dict.fromkeys(config.evaluate.arms))
    if not challengers or not plan.scarce_slugs:
        raise MeasurementError(
            "there is nothing to compare: challenge.arms is empty or plan.yaml has no scarce class; "
            "name an arm in challenge.arms, or classes in plan.scarce"
        )
    arms = [*classical, *(arm for arm in challengers if arm not in classical)]
    predictions, parts = _read_arms(workspace, arms)
    test_parts = [parts[arms[0]][fold][0] for fold in plan.measured_folds]
    test_digest = _test_digest(test_parts)
    chosen, recommended = _chosen_arms(workspace, predictions, challengers)
    experiment = _build_experiment(
        plan,
        parts,
        classical=classical,
        chosen=chosen,
        challenger=measured_arm(challengers),
    )
    summary = read_json(workspace.prepared / "summary.json")
    record, gains = compare_arms(
        experiment,
        [
            ClassFacts(slug, plan.classes[slug].class_name, plan.classes[slug].images, plan.classes[slug].groups)
            for slug in plan.slugs
        ],
        n_images=int(summary["n_images"]),
        n_groups=int(summary["n_groups"]),
        rules=config.compare,
        digest=test_digest,
    )
    look = log_look(workspace, test_digest, procedure_digest(workspace, arms))
    record["recommended"] = recommended
    if config.challenge.searched_arms:
        record["search"] = read_json(workspace.evaluation(config.challenge.searched_arms[0]) / "arm.json")["search"]
    record["n_repeats"] = int(test_parts[0].logits.shape[0])
    record["looks"] = {"test_digest": test_digest, "look": look, "exploratory": look > 1}
    with atomic_file(workspace.metrics / "classes.csv") as temporary:
        temporary.write_text(_classes_csv(record), encoding="utf-8")
    with atomic_file(workspace.metrics / "folds.csv") as temporary:
        temporary.write_text(_folds_csv(plan, record, gains.by_fold), encoding="utf-8")
    write_json(workspace.metrics / "gain.json", record)
    return record
