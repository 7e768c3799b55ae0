"""Tables that the command line prints: the plan, the networks' sizes, what the test set could show, and the verdict."""

from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from synthgen.classifier.networks import build_classifier, count_parameters
from synthgen.errors import PlanError
from synthgen.gan.architectures.build import build_discriminator, build_generator
from synthgen.gan.architectures.shape import GanShape
from synthgen.metrics.power import groups_needed, smallest_gain_at_best
from synthgen.records import PLAN_COMMAND, Plan
from synthgen.report.search_words import search_lines
from synthgen.report.wording import worth_sentence
from synthgen.stages.workspace import Workspace

WANTED_GAIN = 0.05
"""The gain for which `power_table` says how many test objects it would take."""


def plan_table(plan: Plan) -> Table:
    """Classes, counts, which are scarce, and how many synthetic images each gets."""
    folds = len(plan.measured_folds)
    title = f"plan: {folds} folds" if plan.mode == "folds" else f"plan: your own test set, {folds} generator seeds"
    table = Table(title=f"{title}, strategy {plan.strategy}", title_justify="left")
    for heading in ("class", "slug", "scarce", "generator"):
        table.add_column(heading)
    for heading in ("real images", "objects", "synthetic"):
        table.add_column(heading, justify="right")
    for slug in plan.slugs:
        entry = plan.classes[slug]
        table.add_row(
            _plain(entry.class_name),
            slug,
            "scarce" if entry.scarce else "",
            entry.generator if entry.target else "none: too few images",
            str(entry.images),
            str(entry.groups),
            str(entry.target),
        )
    return table


def _plain(text: str) -> str:
    # class names are data: no markup, no control characters
    return escape("".join(c if c.isprintable() else "?" for c in text))


def sizes_table(workspace: Workspace) -> Table:
    """Parameters of each network and how long each is trained."""
    config, plan = workspace.config, workspace.plan
    prepare, n_classes = config.prepare, len(plan.slugs)
    n_labels = n_classes + config.pretrain.unlabelled
    shape = GanShape.of(config.pretrain.network, prepare.image_size, prepare.channels, n_labels)
    classifier = build_classifier(
        config.classifier.network, prepare.image_size, prepare.channels, n_classes, config.classifier.width
    )
    table = Table(title=f"networks at {prepare.image_size} px, {prepare.channels} channel(s)", title_justify="left")
    table.add_column("network")
    table.add_column("parameters", justify="right")
    table.add_column("trained for")
    own = {"adapted": f"; adapted {config.adapt.kimg:g} kimg", "scratch": f"; alone {config.scratch.kimg:g} kimg"}
    length = f"{config.pretrain.kimg:g} thousand images per fold{own.get(plan.strategy, '')}"
    table.add_row("generator", f"{count_parameters(build_generator(shape)):,}", length)
    table.add_row("discriminator", f"{count_parameters(build_discriminator(shape)):,}", length)
    steps = f"{config.classifier.steps} steps of {config.classifier.batch}, every arm the same"
    table.add_row(f"classifier {config.classifier.network}", f"{count_parameters(classifier):,}", steps)
    return table


def power_table(workspace: Workspace) -> RenderableType:
    """Before any training: the smallest gain in recall that the test set could show in the best case, per scarce class.

    Raises:
        PlanError: plan.yaml does not count test groups.
    """
    plan, rules = workspace.plan, workspace.config.compare
    level, n_folds, n_scarce = (1 - rules.confidence) / 2, len(plan.measured_folds), len(plan.scarce_slugs)
    frozen = plan.mode == "frozen"
    table = Table(title="what this test set could show, known before training", title_justify="left")
    table.add_column("scarce class")
    for heading in ("test objects", "smallest gain, points of recall", f"objects for {100 * WANTED_GAIN:g} points"):
        table.add_column(heading, justify="right")
    for slug in plan.scarce_slugs:
        if slug not in plan.test_groups:
            raise PlanError(f"{workspace.plan_file} does not count the test groups of {slug!r}; run `{PLAN_COMMAND}`")
        n_groups = plan.test_groups[slug]
        gain = smallest_gain_at_best(n_groups, n_folds=n_folds, n_scarce=n_scarce, level=level, frozen=frozen)
        needed = groups_needed(WANTED_GAIN, n_folds=n_folds, n_scarce=n_scarce, level=level, frozen=frozen)
        said = f"{100 * gain:.1f}" if gain < 1 else "none"
        if n_groups < rules.min_test_groups:
            said = f"none: under {rules.min_test_groups} objects"
        table.add_row(
            _plain(plan.classes[slug].class_name),
            f"{n_groups:,}",
            said,
            "-" if needed is None else f"{max(needed, rules.min_test_groups):,}",
        )
    meaning = (
        f"The best case, at {100 * rules.confidence:g} % confidence: objects are won outright, none is lost, folds "
        "agree. Even then a smaller gain would be found in fewer than 4 of 5 such experiments."
    )
    return Group(table, meaning) if plan.scarce_slugs else "no class is scarce: there is no gain to look for"


def verdict_table(gain: dict[str, Any], worth: dict[str, Any] | None = None) -> RenderableType:
    """What `make run` ends with: the arms in percent, then a row per scarce class with its gain and verdict.

    Args:
        gain: contents of metrics/gain.json.
        worth: contents of metrics/worth.json, where that stage ran.
    """
    classes = gain["data"]["classes"]
    scarce = [slug for slug, facts in classes.items() if facts["scarce"]]
    arms = Table(title="arms, percent on test images", title_justify="left")
    arms.add_column("arm", no_wrap=True)
    arms.add_column("chosen", no_wrap=True)
    arms.add_column("balanced accuracy", justify="right")
    for slug in scarce:
        arms.add_column(f"recall {_plain(classes[slug]['class_name'])}", justify="right")
    for arm, values in gain["arms"].items():
        n_chosen = sum(chosen == arm for chosen in gain["chosen"].values())
        arms.add_row(
            escape(arm),
            f"{n_chosen}/{gain['n_folds']} folds" if n_chosen else "",
            _percent(values["balanced_accuracy"]),
            *(_percent(values["recall"][slug]) for slug in scarce),
            style="bold" if arm == gain["challenger"] else None,
        )
    gains = Table(title=f"gain of {gain['challenger']} over the chosen arm, points of recall", title_justify="left")
    for heading in ("class", f"gain [{100 * gain['confidence']:g} %]", "after offsets", "verdict"):
        gains.add_column(heading, no_wrap=True)
    for slug in scarce:
        entry = gain["gain"][slug]
        name = _plain(classes[slug]["class_name"])
        gains.add_row(name, _points(entry["recall"]), _points(entry["after_offsets"]), entry["verdict"])
    told = [f"{gain['verdict']} ({gain['claim']})"]
    if gain["looks"]["exploratory"]:
        told.append(f"Exploratory: look {gain['looks']['look']} at these test images.")
    if worth is not None:
        told.append(worth_sentence(worth))
    if gain.get("search"):
        told += search_lines(gain["search"])
    return Group(arms, gains, *(escape(line) for line in told))


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _points(estimate: dict[str, Any]) -> str:
    mean, low, high = (estimate[name] for name in ("mean", "low", "high"))
    if mean is None or low is None or high is None:
        return "-" if mean is None else f"{100 * mean:+.1f}"
    return f"{100 * mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
