"""Tables that the command line prints before anything is trained: the plan, and how large the networks are."""

from rich.table import Table

from synthgen.classifier.networks import build_classifier, count_parameters
from synthgen.gan.networks import Discriminator, GanShape, Generator
from synthgen.records import Plan
from synthgen.stages.workspace import Workspace


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
    from rich.markup import escape

    return escape("".join(c if c.isprintable() else "?" for c in text))


def sizes_table(workspace: Workspace) -> Table:
    """Parameters of each network and how long each is trained."""
    config, plan = workspace.config, workspace.plan
    prepare, n_classes = config.prepare, len(plan.slugs)
    shape = GanShape.of(config.pretrain.network, prepare.image_size, prepare.channels, n_classes)
    classifier = build_classifier(
        config.classifier.network, prepare.image_size, prepare.channels, n_classes, config.classifier.width
    )
    table = Table(title=f"networks at {prepare.image_size} px, {prepare.channels} channel(s)", title_justify="left")
    table.add_column("network")
    table.add_column("parameters", justify="right")
    table.add_column("trained for")
    own = {"adapted": f"; adapted {config.adapt.kimg:g} kimg", "scratch": f"; alone {config.scratch.kimg:g} kimg"}
    length = f"{config.pretrain.kimg:g} thousand images per fold{own.get(plan.strategy, '')}"
    table.add_row("generator", f"{count_parameters(Generator(shape)):,}", length)
    table.add_row("discriminator", f"{count_parameters(Discriminator(shape)):,}", length)
    steps = f"{config.classifier.steps} steps of {config.classifier.batch}, every arm the same"
    table.add_row(f"classifier {config.classifier.network}", f"{count_parameters(classifier):,}", steps)
    return table
