"""What a run costs in images shown and optimizer steps, row by row: the same on every machine.

Owns what is counted and how often it was done. Reads no file: the stage hands in what the stages before it wrote.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from synthgen.classifier.arms import BEST, CLASSICAL_ARMS, trains_teacher
from synthgen.config import Config
from synthgen.dataset.acceptance import Acceptance
from synthgen.records import Plan
from synthgen.report.page import CostRow, ModelHistory
from synthgen.report.wording import count


def cost_rows(
    config: Config,
    plan: Plan,
    gain: Mapping[str, Any],
    histories: Sequence[ModelHistory],
    acceptance: Mapping[str, Acceptance],
    worth: Mapping[str, Any] | None = None,
) -> list[CostRow]:
    """The rows of the page's table of costs.

    Args:
        config: for steps, batches and repeats.
        plan: for folds and classes.
        gain: metrics/gain.json.
        histories: of the release's GANs.
        acceptance: class -> what became of its candidates; empty where there are none.
        worth: metrics/worth.json; None where it was not measured.
    """
    rows = _gan_costs(plan, histories)
    if acceptance:
        drawn = sum(entry.candidates for entry in acceptance.values())
        rows.append(CostRow("drawing candidates for the release", "", "", f"{count(drawn)} images"))
    n_folds, n_measured, repeats = len(plan.folds), len(plan.measured_folds), gain["n_repeats"]
    teacher = config.synthesize.teacher_steps
    rows.append(
        CostRow(
            "training the teacher that selects",
            f"{count(teacher)} steps",
            f"{n_folds} folds",
            f"{count(teacher * n_folds)} steps",
        )
    )
    steps = config.classifier.steps
    each = f"{count(steps)} steps × {count(config.classifier.batch)} images"
    challengers = {gain["challenger"], *gain.get("beside", {})}
    n_classical = len(set(gain["arms"]) - challengers)
    for what, n_arms in (("classical arms", n_classical), ("arms with synthetic images", len(challengers))):
        times = f"{n_arms} arms × {n_measured} folds × {repeats} repeats"
        total = f"{count(steps * n_arms * n_measured * repeats)} steps"
        rows.append(CostRow(f"training classifiers, {what}", each, times, total))
    if config.evaluate.crossfit:
        n_parts = _inner_parts(plan)
        times = f"{n_classical} arms × {n_measured} folds × {n_parts} parts"
        total = f"{count(steps * n_classical * n_measured * n_parts)} steps"
        rows.append(CostRow("cross-fitting, to choose the classical arm", each, times, total))
    if search := gain.get("search"):
        times = f"{count(search['cost']['trainings'])} trainings"
        rows.append(CostRow("the search for a policy", each, times, f"{count(search['cost']['steps'])} steps"))
    if n_thinner := _thinner_parts(worth):
        times = f"{n_measured} folds × {n_thinner} smaller parts × {repeats} repeats"
        total = f"{count(steps * n_measured * n_thinner * repeats)} steps"
        rows.append(CostRow("the learning curve, for the worth in real images", each, times, total))
    if n_teachers := _pseudo_teachers(config, plan, gain, _thinner_parts(worth)):
        total = f"{count(steps * n_teachers)} steps"
        rows.append(CostRow("training the teachers of arms with pseudo labels", each, f"{n_teachers} trainings", total))
    return rows


def _thinner_parts(worth: Mapping[str, Any] | None) -> int:
    """How many parts of the scarce images were trained on for the learning curve; all of them were anyway."""
    return max(len(worth["curve"]) - 1, 0) if worth else 0


def _pseudo_teachers(config: Config, plan: Plan, gain: Mapping[str, Any], n_thinner: int) -> int:
    """How many trainings began with that of a teacher.

    They are repeats; of classical arms also cross-fitted parts, of the chosen ones the points of the learning curve.
    What the search trained for its candidates stands in the search's own row.
    """

    def taught(name: str) -> bool:
        arm = CLASSICAL_ARMS.get(name)
        return arm is not None and trains_teacher(arm, config.evaluate.share, config.classifier.batch)

    challengers = {gain["challenger"], *gain.get("beside", {})}
    n_measured, repeats = len(plan.measured_folds), int(gain["n_repeats"])
    n_classical = sum(taught(arm) for arm in gain["arms"] if arm not in challengers)

    def taught_under(arm: str) -> int:
        base = arm.partition("+")[0]
        return sum(map(taught, gain.get("chosen", {}).values())) if base == BEST else taught(base) * n_measured

    n_repeated = n_classical * n_measured + sum(map(taught_under, challengers))
    n_repeated += taught_under(gain["challenger"]) * n_thinner
    n_parts = _inner_parts(plan) if config.evaluate.crossfit else 0
    return n_repeated * repeats + n_classical * n_measured * n_parts


def _inner_parts(plan: Plan) -> int:
    return plan.parts if plan.mode == "frozen" else plan.parts - 1


def _gan_costs(plan: Plan, histories: Sequence[ModelHistory]) -> list[CostRow]:
    words = {
        "shared": "training the shared GAN",
        "adapted": "adapting GANs to single classes",
        "scratch": "training GANs of single classes",
    }
    rows = []
    for kind, what in words.items():
        shown = [max(h.columns["kimg"]) for h in histories if h.kind == kind and h.columns["kimg"]]
        if shown:
            # Every fold trains as long as `final`, whose histories these are.
            n_folds = len(plan.folds)
            each = f"{shown[0]:g} kimg" if min(shown) == max(shown) else f"{min(shown):g} to {max(shown):g} kimg"
            times = f"{n_folds} folds" if kind == "shared" else f"{len(shown)} classes × {n_folds} folds"
            rows.append(CostRow(what, each, times, f"{count(sum(shown) * n_folds)} kimg"))
    return rows
