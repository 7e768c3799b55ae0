"""`synthgen report`: reports/index.html, the page that says whether synthetic images helped.

Owns reading what the stages before it wrote. Refuses nothing but damaged inputs:
what a strategy does not have (adapted generators, a `shared` pool) is left out of the page.

Reads of params.yaml: `report`, `classifier`, `synthesize.teacher_steps`, `evaluate` and `challenge`.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthgen.artifacts import atomic_file, read_json
from synthgen.config import MEASURED_POLICY, POLICIES, MixingSection
from synthgen.dataset.acceptance import SHARD_SUFFIX, read_acceptance
from synthgen.dataset.origin_record import ORIGIN_FILE, read_origin
from synthgen.dataset.prepared import PreparedData, load_prepared
from synthgen.dataset.shards import count_rows, read_rows
from synthgen.errors import ArtifactError
from synthgen.gan.history import THIRD_PLAYER
from synthgen.progress import track
from synthgen.records import FINAL
from synthgen.report.costs import cost_rows
from synthgen.report.grids import evenly_spaced, example_grid
from synthgen.report.page import (
    ArmChoice,
    ArmOrigin,
    ClassArea,
    ClassExamples,
    FoldGain,
    ModelHistory,
    ReportContent,
    render_page,
)
from synthgen.stages.assemble import released_shard
from synthgen.stages.workspace import Workspace

GAIN_SCHEMA = 1
GRID_COLUMNS = 6
MAX_CSV_FIELD = 10_000_000
HISTORY_COLUMNS = (
    "kimg",
    "d_loss",
    "g_loss",
    "r1",
    "r2",
    "d_real",
    "d_fake",
    "score",
    "recall",
    "precision",
    "diversity_ratio",
    "nearest_ratio",
)


def run_report(workspace: Workspace) -> None:
    """Writes reports/index.html; equal inputs give equal bytes.

    Raises:
        ArtifactError: metrics/gain.json or data/prepared is missing, or an input is damaged.
    """
    page = render_page(collect_content(workspace))
    with atomic_file(workspace.reports / "index.html") as temporary:
        temporary.write_text(page, encoding="utf-8")


def collect_content(workspace: Workspace) -> ReportContent:
    """Reads everything that the page shows.

    Raises:
        ArtifactError: see `run_report`.
    """
    config, plan = workspace.config, workspace.plan
    gain = _read_gain(workspace.metrics / "gain.json")
    acceptance_file = workspace.synthetic(FINAL) / "acceptance.json"
    acceptance = read_acceptance(acceptance_file) if acceptance_file.exists() else {}
    worth = read_json(workspace.worth) if workspace.worth.exists() else None
    histories, record = _histories(workspace), _arm_record(workspace, str(gain["challenger"]))
    return ReportContent(
        title=config.report.title,
        gain=gain,
        plan=plan,
        summary=read_json(workspace.prepared / "summary.json"),
        quarantine=_read_csv(workspace.prepared / "quarantine.csv", ("source", "reason", "detail")),
        folds=_read_folds(workspace.metrics / "folds.csv"),
        acceptance=acceptance,
        examples=_examples(workspace, load_prepared(workspace.prepared), config.report.n_examples),
        histories=histories,
        choices=_choices(record, gain),
        costs=cost_rows(config, plan, gain, histories, acceptance, worth),
        crossfit=config.evaluate.crossfit,
        choice_errors=config.challenge.choice_errors,
        weights=None if config.classifier.weights is None else config.classifier.weights.file,
        share=float(record.get("share", MixingSection().share)),
        worth=worth,
        origins=_origins(workspace, gain),
        areas=_areas(workspace),
    )


def _read_gain(path: Path) -> dict[str, Any]:
    gain = read_json(path)
    needed = ("challenger", "claim", "mode", "data", "arms", "gain", "looks", "n_folds", "n_repeats", "confidence")
    if not isinstance(gain, dict) or gain.get("schema") != GAIN_SCHEMA or any(key not in gain for key in needed):
        found = gain.get("schema") if isinstance(gain, dict) else type(gain).__name__
        raise ArtifactError(
            f"{path} has schema {found!r}, not {GAIN_SCHEMA}, or lacks a part of it; run `dvc repro compare`"
        )
    return gain


def _read_csv(path: Path, columns: tuple[str, ...], optional: tuple[str, ...] = ()) -> list[dict[str, str]]:
    csv.field_size_limit(MAX_CSV_FIELD)
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
            rows = list(csv.DictReader(stream, restval=""))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing; run the stage that writes it (dvc repro)") from error
    except (OSError, csv.Error) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); run the stage that writes it again") from error
    if rows and any(name not in rows[0] for name in columns):
        raise ArtifactError(f"{path} lacks one of the columns {', '.join(columns)}; run the stage that writes it again")
    found = [*columns, *(name for name in optional if rows and name in rows[0])]
    return [{name: row[name] for name in found} for row in rows]


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _read_folds(path: Path) -> list[FoldGain]:
    if not path.exists():
        return []
    return [
        FoldGain(row["fold"], row["slug"], _float(row["gain"])) for row in _read_csv(path, ("fold", "slug", "gain"))
    ]


def _examples(workspace: Workspace, data: PreparedData, n_wanted: int) -> list[ClassExamples]:
    plan = workspace.plan
    train = data.split(FINAL).train
    examples = []
    present = {path.name.removesuffix(SHARD_SUFFIX) for path in workspace.synthetic(FINAL).glob(f"*{SHARD_SUFFIX}")}
    for slug in track(plan.slugs, "report: examples", len(plan.slugs)):
        rows = train[data.labels[train] == plan.classes[slug].label]
        real = data.verified(rows[evenly_spaced(len(rows), n_wanted)])
        shard = workspace.synthetic(FINAL) / f"{released_shard(workspace, slug, present)}{SHARD_SUFFIX}"
        synthetic: NDArray[np.uint8] = real[:0]
        if shard.exists():
            synthetic = read_rows(shard, evenly_spaced(count_rows(shard), n_wanted))
        examples.append(ClassExamples(slug, example_grid(real, GRID_COLUMNS), example_grid(synthetic, GRID_COLUMNS)))
    return examples


def _histories(workspace: Workspace) -> list[ModelHistory]:
    """Training curves of every GAN of the release: the shared one first, then single classes in label order."""
    models, plan = workspace.shared_model(FINAL).parent, workspace.plan
    # by the plan, for folders of an earlier strategy stay on disk
    trained: dict[str, Sequence[str | None]] = {
        "shared": [None] if FINAL in plan.pretrain_folds else [],
        "adapted": [slug for slug in plan.slugs if slug in plan.adapt_slugs],
        "scratch": [slug for slug in plan.slugs if slug in plan.scratch_slugs],
    }
    histories = []
    for kind, slugs in trained.items():
        for slug in slugs:
            path = models / (kind if slug is None else f"{kind}-{slug}") / "history.csv"
            if not path.exists():
                continue
            rows = _read_csv(path, HISTORY_COLUMNS, THIRD_PLAYER)
            columns = {name: [_float(row[name]) for row in rows] for name in (rows[0] if rows else HISTORY_COLUMNS)}
            histories.append(ModelHistory(kind, slug, columns))
    return histories


def _origins(workspace: Workspace, gain: Mapping[str, Any]) -> list[ArmOrigin]:
    """Means over folds of what each arm with synthetic images owes to origin; arms without a record stay out."""
    found = []
    for arm in (str(gain["challenger"]), *gain.get("beside", {})):
        folds = _arm_record(workspace, arm).get("folds", {}).values()
        origins = [entry["origin"] for entry in folds if isinstance(entry, dict) and "origin" in entry]
        if origins:
            keys = ("auc", "label_origin_bits", "shortcut_bits")
            found.append(ArmOrigin(arm, *(_mean_known([one.get(key) for one in origins]) for key in keys)))
    return found


def _mean_known(values: Sequence[Any]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _areas(workspace: Workspace) -> list[ClassArea]:
    folder = workspace.synthetic(FINAL)
    if not (folder / ORIGIN_FILE).exists():
        return []
    pool = {**POLICIES, **workspace.config.challenge.policies}[MEASURED_POLICY].pool
    classes = read_origin(folder).pool(pool).classes
    shown = [(slug, classes[slug]) for slug in workspace.plan.slugs if slug in classes]
    return [ClassArea(slug, entry.auc, entry.error, entry.reason) for slug, entry in shown]


def _arm_record(workspace: Workspace, arm: str) -> dict[str, Any]:
    path = workspace.evaluation(arm) / "arm.json"
    record = read_json(path) if path.exists() else {}
    return record if isinstance(record, dict) else {}


def _choices(record: Mapping[str, Any], gain: Mapping[str, Any]) -> list[ArmChoice]:
    """The chosen arm of each fold, from gain.json, with the scores that arm.json of the challenger holds."""
    folds = record.get("folds", {})
    return [
        ArmChoice(fold, str(chosen), _scores(folds.get(fold, {}))) for fold, chosen in gain.get("chosen", {}).items()
    ]


def _scores(entry: Any) -> dict[str, float]:
    scores = entry.get("scores", {}) if isinstance(entry, dict) else {}
    return {str(arm): float(score) for arm, score in scores.items() if isinstance(score, int | float)}
