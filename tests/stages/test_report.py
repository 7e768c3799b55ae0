from html.parser import HTMLParser
from typing import Any

import pytest

from synthgen.artifacts import read_json, sha256_file, write_json
from synthgen.errors import ArtifactError
from synthgen.records import FINAL
from synthgen.report.costs import cost_rows
from synthgen.stages.report import collect_content, run_report
from synthgen.stages.workspace import Workspace


class Collector(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text: list[str] = []
        self.images: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag == "img":
            self.images.append(dict(attrs)["src"] or "")

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parse(run: Any) -> tuple[Collector, str]:
    page = (run.workspace.reports / "index.html").read_text(encoding="utf-8")
    collector = Collector()
    collector.feed(page)
    return collector, " ".join("".join(collector.text).split())


def test_the_page_says_what_was_measured(finished_run: Any) -> None:
    run_report(finished_run.workspace)
    collector, text = parse(finished_run)
    for fact in (
        "Perhaps.",
        "+4.0 (+1.0 to +7.0) points",
        "Exploratory.",
        "The scarcity is simulated.",
        "3 bytes, 'missing'",
        "chosen in 2 of 2 folds",
        "73.6 %",
        "2 arms × 2 folds × 2 repeats",
    ):
        assert fact in text, fact
    assert len(collector.images) == 4
    assert all(source.startswith("data:image/png;base64,") for source in collector.images)


def test_hostile_names_stay_text(finished_run: Any) -> None:
    run_report(finished_run.workspace)
    collector, text = parse(finished_run)
    assert "script" not in collector.tags
    assert not any(name.startswith("on") for name in collector.attributes)
    assert "{{7*7}}" in text
    assert "\u202e" not in text


def test_equal_inputs_give_equal_bytes(finished_run: Any) -> None:
    page = finished_run.workspace.reports / "index.html"
    run_report(finished_run.workspace)
    first = sha256_file(page)
    run_report(finished_run.workspace)
    assert sha256_file(page) == first
    assert str(finished_run.workspace.root) not in page.read_text(encoding="utf-8")


def test_costs_multiply(finished_run: Any) -> None:
    costs = {row.what: row.total for row in collect_content(finished_run.workspace).costs}
    steps = finished_run.workspace.config.classifier.steps
    assert costs["training the shared GAN"] == "24 kimg"  # 8 kimg in 3 folds
    assert costs["adapting GANs to single classes"] == "24 kimg"
    assert costs["training classifiers, classical arms"].replace("\u202f", "") == f"{steps * 2 * 2 * 2} steps"
    assert costs["cross-fitting, to choose the classical arm"].replace("\u202f", "") == f"{steps * 2 * 2 * 1} steps"


def test_cross_fitting_costs_as_many_parts_as_the_pool_is_cut_into(finished_run: Any) -> None:
    content = collect_content(finished_run.workspace)
    config, steps = finished_run.workspace.config, finished_run.workspace.config.classifier.steps
    # a test set of one's own, one generator, and the pool in three parts
    own = content.plan.model_copy(update={"mode": "frozen", "folds": ["f0", FINAL], "parts": 3})
    totals = {row.what: row.total.replace("\u202f", "") for row in cost_rows(config, own, content.gain, [], {})}
    assert totals["cross-fitting, to choose the classical arm"] == f"{steps * 2 * 1 * 3} steps"


def test_the_learning_curve_and_the_search_are_among_the_costs(finished_run: Any) -> None:
    workspace = finished_run.workspace
    content = collect_content(workspace)
    names = ("the search for a policy", "the learning curve, for the worth in real images")
    assert not {row.what for row in content.costs} & {*names}
    config, plan = workspace.config, content.plan
    steps = config.classifier.steps
    searched = {**content.gain, "search": {"cost": {"trainings": 12, "steps": 12 * steps}}}
    worth = {"curve": [{"images": n, "error": 0.5} for n in (2.0, 3.0, 6.0)]}
    totals = {row.what: row.total.replace("\u202f", "") for row in cost_rows(config, plan, searched, [], {}, worth)}
    assert totals[names[0]] == f"{12 * steps} steps"
    # 2 folds, 2 repeats, 2 parts: the third point, all images, is the classical arm itself
    assert totals[names[1]] == f"{2 * 2 * 2 * steps} steps"
    unplaced = cost_rows(config, plan, content.gain, [], {}, {"curve": []})
    assert names[1] not in {row.what for row in unplaced}


def test_the_teachers_of_pseudo_labelled_cost_a_training_each(finished_run: Any) -> None:
    content = collect_content(finished_run.workspace)
    row = "training the teachers of arms with pseudo labels"
    assert row not in {cost.what for cost in content.costs}
    config = finished_run.workspace.config
    classical = ["classical", "pseudo_labelled"]
    challengers = ["best+synthetic", "pseudo_labelled+shared"]
    gain = {
        **content.gain,
        "arms": dict.fromkeys([*classical, *challengers]),
        "chosen": dict(zip(content.gain["chosen"], reversed(classical), strict=True)),
        "beside": {challengers[1]: {}},
    }

    def total(share: float, crossfit: bool, n_points: int = 1) -> str | None:
        evaluate = config.evaluate.model_copy(update={"share": share, "crossfit": crossfit})
        worth = {"curve": [{"images": 2.0 + k, "error": 0.5} for k in range(n_points)]}
        costs = cost_rows(config.model_copy(update={"evaluate": evaluate}), content.plan, gain, [], {}, worth)
        return next((cost.total.replace("\u202f", "") for cost in costs if cost.what == row), None)

    # 2 repeats: in 2 folds of the classical arm, in 2 of pseudo_labelled+shared, in the 1 whose best arm it is
    assert total(0.25, False) == f"{config.classifier.steps * 2 * (2 + 2 + 1)} steps"
    assert total(0.25, True) == f"{config.classifier.steps * (2 * (2 + 2 + 1) + 2 * 1)} steps"
    # two points of the learning curve below all images: of the 1 fold whose best arm it is
    assert total(0.25, False, 3) == f"{config.classifier.steps * (2 * (2 + 2 + 1) + 2 * 2 * 1)} steps"
    assert total(0.0, True) is None


def test_the_choice_of_arm_is_told_by_evaluate_crossfit(finished_run: Any) -> None:
    assert collect_content(finished_run.workspace).crossfit
    params = finished_run.workspace.root / "params.yaml"
    params.write_text(params.read_text().replace("evaluate:", "evaluate:\n  crossfit: false"))
    assert not collect_content(Workspace(finished_run.workspace.root)).crossfit


def test_what_a_strategy_does_not_have_is_left_out(finished_run: Any) -> None:
    workspace = finished_run.workspace
    for path in (
        workspace.synthetic(FINAL) / "acceptance.json",
        workspace.synthetic(FINAL) / "dog.parquet",
        workspace.metrics / "folds.csv",
        workspace.evaluation("best+synthetic") / "arm.json",
        workspace.shared_model(FINAL) / "history.csv",
        workspace.adapted_model(FINAL, "dog") / "history.csv",
    ):
        path.unlink()
    gain = read_json(workspace.metrics / "gain.json")
    gain["beside"] = {}
    write_json(workspace.metrics / "gain.json", gain)
    run_report(workspace)
    _, text = parse(finished_run)
    assert "none was accepted" in text
    assert "Training of the generators" not in text
    assert "Which synthetic images were kept" not in text


def test_the_third_player_has_curves_where_it_played(finished_run: Any) -> None:
    workspace = finished_run.workspace
    run_report(workspace)
    assert "hird player" not in parse(finished_run)[1]
    path = workspace.adapted_model(FINAL, "dog") / "history.csv"
    header, *rows = path.read_text().splitlines()
    numbers = ["1.2,0.8,0.9,0.7,0.4", "1.1,0.9,0.8,0.6,0.3"]
    text = [f"{header},c_loss,c_real,c_fake,c_certainty,boundary"]
    text += [f"{row},{more}" for row, more in zip(rows, numbers, strict=True)]
    path.write_text("\n".join(text) + "\n")
    run_report(workspace)
    text = parse(finished_run)[1]
    assert "How often the third player is right" in text
    assert "boundary term" in text


def test_folders_of_an_earlier_strategy_are_no_part_of_the_page(finished_run: Any) -> None:
    workspace = finished_run.workspace
    left = workspace.scratch_model(FINAL, "dog")
    left.mkdir(parents=True)
    (left / "history.csv").write_bytes((workspace.shared_model(FINAL) / "history.csv").read_bytes())
    run_report(workspace)
    _, text = parse(finished_run)
    assert "training GANs of single classes" not in text


def test_missing_or_other_inputs_are_named(finished_run: Any) -> None:
    path = finished_run.workspace.metrics / "gain.json"
    write_json(path, {"schema": 2})
    with pytest.raises(ArtifactError, match="schema 2"):
        run_report(finished_run.workspace)
    path.unlink()
    with pytest.raises(ArtifactError, match=r"gain\.json is missing"):
        run_report(finished_run.workspace)
    assert not finished_run.workspace.reports.exists()
