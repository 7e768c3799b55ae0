"""The report page: everything that was measured, as one HTML file that needs nothing else.

Owns which facts stand where, and hands them to the templates. Text from outside is only ever printed by the
template engine with autoescape; the page has no script, and its policy forbids any to run.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from synthgen.config import CompareSection
from synthgen.dataset.acceptance import Acceptance
from synthgen.metrics.power import smallest_gain_at_best
from synthgen.records import Plan
from synthgen.report.environment import template_environment
from synthgen.report.grids import Sprite
from synthgen.report.plots import CurvePlot, bar_length, curve_plot, forest_axis, forest_mark
from synthgen.report.search_words import search_lines
from synthgen.report.verdict import FORMS, compose_answer, form_of, usual_arm
from synthgen.report.wording import worth_sentence

CONTENT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
MAX_QUARANTINE_ROWS = 100
FOREST_WIDTH = 380.0
CARD_WIDTH = 230.0
BAR_WIDTH = 220.0
CLASS_METRICS = (
    ("recall", "Recall", "share of the class's real test images that get its label"),
    ("precision", "Precision", "share of the images given this label that have it"),
    ("auc", "AUC", "one class against the rest; not moved by a shift of bias"),
    ("average_precision", "Average precision", "area under precision over recall"),
)


@dataclass(frozen=True)
class FoldGain:
    """One row of metrics/folds.csv: gain in recall of a class in a fold, a fraction."""

    fold: str
    slug: str
    gain: float


@dataclass(frozen=True)
class ClassExamples:
    """Real and synthetic examples of one class; None where there are none."""

    slug: str
    real: Sprite | None
    synthetic: Sprite | None


@dataclass(frozen=True)
class ModelHistory:
    """history.csv of one GAN of the `final` fold, by column.

    Attributes:
        kind: `shared`, `adapted` or `scratch`.
        slug: the class of an adapted or scratch GAN; None for the shared one.
        columns: name -> one value per tick.
    """

    kind: str
    slug: str | None
    columns: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class ArmChoice:
    """How the classical arm of a fold was chosen: score per arm, cross-fitted or of validation images; may be empty."""

    fold: str
    chosen: str
    scores: Mapping[str, float]


@dataclass(frozen=True)
class CostRow:
    """One line of the cost: what, how much each, how often, and the product with its unit."""

    what: str
    each: str
    times: str
    total: str


@dataclass(frozen=True)
class ArmOrigin:
    """What the label owes to origin in an arm, means over folds: in bits, and the probe's AUC; None if not measured."""

    arm: str
    auc: float | None
    label_origin_bits: float | None
    shortcut_bits: float | None


@dataclass(frozen=True)
class ClassArea:
    """Area under the curve of the shortcut probe in one class of the `final` fold, its standard error, or why none."""

    slug: str
    auc: float | None
    error: float | None
    reason: str | None


@dataclass(frozen=True)
class ReportContent:
    """All that the page shows.

    Attributes:
        title: heading of the page.
        gain: metrics/gain.json.
        plan: plan.yaml.
        summary: data/prepared/summary.json.
        quarantine: rows of quarantine.csv (source, reason, detail).
        real_counts: slug -> (training images, groups) of the `final` fold.
        folds: rows of metrics/folds.csv; may be empty.
        acceptance: shard -> selection, `SLUG`, `SLUG.shared` and `SLUG.morphed`, of the `final` fold.
        examples, histories, choices, costs: see their classes; each may be empty.
        crossfit: whether the classical arm was chosen by cross-fitting inside the fold, else on validation images.
        choice_errors: standard errors within which arms counted as equal, the most regularised being chosen.
        share: share of the draws that were synthetic.
        weights: file that every arm starts from; None: random weights.
        worth: metrics/worth.json; None where there is none.
        origins: one per arm with synthetic images; areas: one per class of the release; either may be empty.
    """

    title: str
    gain: Mapping[str, Any]
    plan: Plan
    summary: Mapping[str, Any]
    quarantine: Sequence[Mapping[str, str]]
    folds: Sequence[FoldGain] = ()
    acceptance: Mapping[str, Acceptance] = field(default_factory=dict)
    examples: Sequence[ClassExamples] = ()
    histories: Sequence[ModelHistory] = ()
    choices: Sequence[ArmChoice] = ()
    costs: Sequence[CostRow] = ()
    crossfit: bool = True
    choice_errors: float = 0.0
    share: float = 0.25
    weights: str | None = None
    worth: Mapping[str, Any] | None = None
    origins: Sequence[ArmOrigin] = ()
    areas: Sequence[ClassArea] = ()


def render_page(content: ReportContent) -> str:
    """The whole page as HTML; equal content gives equal bytes."""
    gain = content.gain
    names = {slug: entry.class_name for slug, entry in content.plan.classes.items()}
    names |= {slug: entry["class_name"] for slug, entry in gain["data"]["classes"].items()}
    return (
        template_environment()
        .get_template("page.html.j2")
        .render(
            policy=CONTENT_POLICY,
            title=content.title,
            gain=gain,
            plan=content.plan,
            summary=content.summary,
            names=names,
            answer=compose_answer(gain),
            claim=_sentence(str(gain["claim"])),
            usual=usual_arm(gain),
            form_of=form_of,
            forms=list(FORMS.values()),
            cards=_cards(content),
            arms=_arms(content),
            forest=_forest(content),
            class_metrics=_class_tables(content),
            counts=_counts(content),
            simulated=_simulated(content, names),
            quarantine=content.quarantine[:MAX_QUARANTINE_ROWS],
            quarantine_reasons=sorted(Counter(row["reason"] for row in content.quarantine).items()),
            n_quarantined=len(content.quarantine),
            examples=content.examples,
            selection=_selection(content),
            curves=_curves(content),
            choices=content.choices,
            choice_arms=sorted({arm for choice in content.choices for arm in choice.scores}),
            costs=content.costs,
            crossfit=content.crossfit,
            choice_errors=content.choice_errors,
            weights=content.weights,
            share=content.share,
            worth=content.worth,
            worth_sentence=worth_sentence(content.worth) if content.worth else "",
            origins=content.origins,
            areas=content.areas,
            search=_search(gain),
        )
    )


def _search(gain: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the search among mixing policies chose in each fold; None where nothing was searched for."""
    search = gain.get("search")
    if not search:
        return None
    return {"lines": search_lines(search), "chosen": search["chosen"], "default": search["default"]}


def _sentence(text: str) -> str:
    stop = "" if text.endswith((".", "!", "?")) else "."
    return f"{text[:1].upper()}{text[1:]}{stop}"


def _dots(content: ReportContent, slug: str) -> list[float]:
    return [row.gain for row in content.folds if row.slug == slug]


def _baseline(gain: Mapping[str, Any], slug: str) -> float | None:
    # gain.json holds no arm "best of each fold"; its mean is the challenger's less the mean paired difference.
    recall = gain["arms"].get(gain["challenger"], {}).get("recall", {}).get(slug)
    mean = gain["gain"][slug]["recall"]["mean"]
    return None if recall is None or mean is None else float(recall - mean)


def _cards(content: ReportContent) -> list[dict[str, Any]]:
    gain = content.gain
    entries = gain["gain"]
    axis = forest_axis([entry["recall"] for entry in entries.values()], [], CARD_WIDTH)
    challenger = gain["arms"].get(gain["challenger"], {})
    return [
        {
            "slug": slug,
            "entry": entry,
            "form": form_of(entry["verdict"]),
            "mark": forest_mark(entry["recall"], [], axis),
            "axis": axis,
            "baseline": _baseline(gain, slug),
            "challenger": challenger.get("recall", {}).get(slug),
            "counts": gain["data"]["classes"].get(slug, {}),
            "at_best": _at_best(gain, entry["n_test_groups"]),
        }
        for slug, entry in entries.items()
    ]


def _at_best(gain: Mapping[str, Any], n_groups: int) -> float | None:
    """The smallest gain that so many test groups could show in the best case; None where they could show none."""
    smallest = smallest_gain_at_best(
        n_groups,
        n_folds=gain["n_folds"],
        n_scarce=len(gain["gain"]),
        level=(1 - gain["confidence"]) / 2,
        frozen=gain["mode"] == "frozen",
    )
    return smallest if smallest < 1 and n_groups >= CompareSection().min_test_groups else None


def _arms(content: ReportContent) -> list[dict[str, Any]]:
    """Arms with synthetic images first, then classical ones, each by balanced accuracy."""
    gain = content.gain
    synthetic = {gain["challenger"], *gain.get("beside", {})}
    chosen = Counter(gain.get("chosen", {}).values())

    def order(arm: str) -> tuple[bool, bool, float, str]:
        accuracy = gain["arms"][arm].get("balanced_accuracy")
        return arm != gain["challenger"], arm not in synthetic, -(accuracy or 0.0), arm

    rows = []
    for arm in sorted(gain["arms"], key=order):
        if arm == gain["challenger"]:
            gains = {slug: entry["recall"] for slug, entry in gain["gain"].items()}
        else:
            gains = gain.get("beside", {}).get(arm, {})
        rows.append(
            {
                "arm": arm,
                "metrics": gain["arms"][arm],
                "is_challenger": arm == gain["challenger"],
                "is_synthetic": arm in synthetic,
                "chosen": chosen.get(arm, 0),
                "gains": gains,
            }
        )
    return rows


def _forest(content: ReportContent) -> dict[str, Any]:
    gain = content.gain
    beside: Mapping[str, Mapping[str, Any]] = gain.get("beside", {})
    dots = {slug: _dots(content, slug) for slug in gain["gain"]}
    shown = [entry["recall"] for entry in gain["gain"].values()]
    shown += [other[slug] for other in beside.values() for slug in gain["gain"] if slug in other]
    axis = forest_axis(shown, [dot for values in dots.values() for dot in values], FOREST_WIDTH)
    groups = []
    for slug, entry in gain["gain"].items():
        lines = [(gain["challenger"], entry["recall"], forest_mark(entry["recall"], dots[slug], axis), True)]
        lines += [
            (arm, other[slug], forest_mark(other[slug], [], axis), False)
            for arm, other in beside.items()
            if slug in other
        ]
        groups.append({"slug": slug, "entry": entry, "form": form_of(entry["verdict"]), "lines": lines})
    return {"axis": axis, "groups": groups, "width": FOREST_WIDTH, "has_dots": any(dots.values())}


def _class_tables(content: ReportContent) -> list[dict[str, Any]]:
    arms, slugs = content.gain["arms"], content.plan.slugs
    tables = []
    for key, title, meaning in CLASS_METRICS:
        rows = [
            (
                row["arm"],
                row["is_challenger"],
                [(value, _shade(value)) for value in (arms[row["arm"]].get(key, {}).get(slug) for slug in slugs)],
            )
            for row in _arms(content)
        ]
        tables.append({"title": title, "meaning": meaning, "rows": rows, "slugs": slugs})
    return tables


def _shade(value: Any) -> int:
    """0 to 10: how deep a cell's ground is."""
    return min(10, max(0, int(10 * value))) if isinstance(value, int | float) else 0


def _counts(content: ReportContent) -> dict[str, Any]:
    gain_classes = content.gain["data"]["classes"]
    rows = []
    for slug in content.plan.slugs:
        entry = content.plan.classes[slug]
        selection = content.acceptance.get(slug)
        rows.append(
            {
                "slug": slug,
                "scarce": entry.scarce,
                "real": entry.images,
                "groups": entry.groups,
                "test_groups": gain_classes.get(slug, {}).get("test_groups"),
                "synthetic": selection.accepted if selection else None,
                "target": entry.target,
            }
        )
    largest = max([1, *(row["real"] for row in rows), *(row["synthetic"] or 0 for row in rows)])
    for row in rows:
        row["real_bar"] = bar_length(row["real"], largest, BAR_WIDTH)
        row["synthetic_bar"] = bar_length(row["synthetic"] or 0, largest, BAR_WIDTH)
    return {"rows": rows, "width": BAR_WIDTH}


def _simulated(content: ReportContent, names: Mapping[str, str]) -> list[dict[str, Any]]:
    simulated = content.summary.get("simulate_scarcity")
    keep = simulated["keep"] if simulated else {}
    classes = content.summary["classes"]
    return [
        {"slug": slug, "kept": classes[slug]["images"], "surplus": classes[slug]["surplus"]}
        for slug in content.plan.slugs
        if names[slug] in keep and slug in classes
    ]


def _selection(content: ReportContent) -> dict[str, Any]:
    reasons = sorted({reason for entry in content.acceptance.values() for reason in entry.rejected})
    rows = []
    for slug in content.plan.slugs:
        own = content.plan.classes[slug].generator
        for shard, pool in ((slug, own), (f"{slug}.shared", "shared"), (f"{slug}.morphed", "morphed")):
            if shard in content.acceptance:
                rows.append({"slug": slug, "pool": pool, "entry": content.acceptance[shard]})
    return {"reasons": reasons, "rows": rows}


def _curves(content: ReportContent) -> list[dict[str, Any]]:
    shown = []
    for history in content.histories:
        columns = history.columns
        plots: list[CurvePlot | None] = [
            curve_plot(
                title,
                columns.get("kimg", ()),
                [(label, style, columns[key]) for key, label, style in lines if key in columns],
            )
            for title, lines in (
                ("Loss", (("d_loss", "discriminator", "a"), ("g_loss", "generator", "b"))),
                ("How often D is right", (("d_real", "real", "a"), ("d_fake", "synthetic", "b"))),
                ("Kernel distance to reals", (("score", "mean of classes", "a"),)),
                ("Precision and recall", (("precision", "precision", "a"), ("recall", "recall", "b"))),
                ("Weakest class", (("diversity_ratio", "diversity", "a"), ("nearest_ratio", "nearest real", "b"))),
                ("Gradient penalties", (("r1", "R1", "a"), ("r2", "R2", "b"))),
                ("How often the third player is right", (("c_real", "real", "a"), ("c_fake", "synthetic", "b"))),
                ("Third player", (("c_certainty", "certainty", "a"), ("boundary", "boundary term", "b"))),
            )
        ]
        kept = [plot for plot in plots if plot is not None]
        if kept:
            shown.append({"kind": history.kind, "slug": history.slug, "plots": kept})
    return shown
