import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console
from ruamel.yaml import YAML

from synthgen.artifacts import read_json, sha256_bytes, write_json
from synthgen.config import Config
from synthgen.dataset.predictions import concatenate, load_predictions, one_part, save_predictions
from synthgen.errors import ArtifactError, MeasurementError
from synthgen.records import ClassPlan, Plan, save_plan
from synthgen.stages.challenge import choose_in_folds
from synthgen.stages.compare import PROCEDURE_SECTIONS, procedure_digest, run_compare
from synthgen.stages.tables import verdict_table
from synthgen.stages.workspace import Workspace

FOLDS = [f"f{j}" for j in range(5)]
NAMES = ["plenty", "[b]rare[/b]", "few"]
SLUGS = ["plenty", "rare", "few"]
CLASSICAL = ["real", "classical"]
SKILL = {"real": 0.3, "classical": 1.5, "best+synthetic": 4.0, "synthetic": 0.5}


def _rows(fold, part, per_class, n_repeats, skill, seed):
    pieces = []
    labels = np.repeat(np.arange(3), per_class)
    names = np.asarray([f"{fold}-{part}-{i}" for i in range(len(labels))])
    sha256 = np.asarray([sha256_bytes(name.encode()) for name in names.tolist()])
    for repeat in range(n_repeats):
        generator = np.random.default_rng([seed, repeat, len(part), int(fold[1:])])
        logits = generator.standard_normal((len(labels), 3)) + skill * np.eye(3)[labels]
        pieces.append(
            one_part(fold, repeat, part, sha256=sha256, groups=names, labels=labels, logits=logits.astype(np.float32))
        )
    return concatenate(pieces)


def make_project(root: Path, mode="folds", challenge=("best+synthetic", "synthetic")) -> Workspace:
    params = {
        "source": {"type": "digits"},
        "evaluate": {"arms": CLASSICAL},
        "challenge": {"arms": list(challenge)},
        "compare": {"n_bootstrap": 200},
    }
    with (root / "params.yaml").open("w") as stream:
        YAML().dump(params, stream)
    classes = {
        slug: ClassPlan(
            class_name=name,
            label=label,
            images=100 if label == 0 else 40,
            groups=100 if label == 0 else 40,
            scarce=label > 0,
            target=60,
            generator="adapted",
        )
        for label, (slug, name) in enumerate(zip(SLUGS, NAMES, strict=True))
    }
    plan = Plan(
        version=1,
        mode=mode,
        strategy="adapted",
        folds=[*FOLDS, "final"],
        pretrain_folds=FOLDS,
        adapt_slugs=SLUGS[1:],
        scratch_slugs=[],
        classes=classes,
    )
    workspace = Workspace(root)
    save_plan(workspace.plan_file, plan)
    workspace.prepared.mkdir(parents=True)
    write_json(workspace.prepared / "summary.json", {"n_images": 180, "n_groups": 180})
    for seed, arm in enumerate([*CLASSICAL, *challenge]):
        pieces = []
        for fold in FOLDS:
            tested = "f0" if mode == "frozen" else fold
            test = _rows(tested, "test", [20, 8, 8], 2, SKILL[arm], seed + 10 * int(fold[1:]))
            pieces.append(replace(test, folds=np.full(len(test.labels), fold)))
            pieces.append(_rows(fold, "val", [20, 8, 8], 2, SKILL[arm], seed))
            if arm in CLASSICAL:
                pieces.append(_rows(fold, "inner", [40, 16, 16], 1, SKILL[arm], seed))
        save_predictions(workspace.evaluation(arm) / "predictions.parquet", concatenate(pieces))
        folds = {fold: {"arm": "classical"} if arm.startswith("best+") else {} for fold in FOLDS}
        write_json(
            workspace.evaluation(arm) / "arm.json", {"schema": 1, "arm": arm, "description": arm, "folds": folds}
        )
    return workspace


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path)


def test_writes_everything_and_says_helps_where_the_gain_is_large(project):
    record = run_compare(project)
    assert json.loads((project.metrics / "gain.json").read_text()) == record
    assert record["chosen"] == dict.fromkeys(FOLDS, "classical")
    assert record["n_repeats"] == 2 and record["n_folds"] == 5 and record["challenger"] == "best+synthetic"
    assert record["gain"]["rare"]["verdict"] == record["gain"]["few"]["verdict"] == "helps"
    assert record["data"]["classes"]["rare"]["test_groups"] == 40
    assert set(record["beside"]) == {"synthetic"}
    with (project.metrics / "classes.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 4 * 3 and {row["arm"] for row in rows} == set(SKILL)
    assert float(rows[0]["recall"]) == pytest.approx(record["arms"]["real"]["recall"]["plenty"], abs=1e-6)
    with (project.metrics / "folds.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["slug"] == "rare"]
    mean = np.mean([float(row["gain"]) for row in rows])
    assert mean == pytest.approx(record["gain"]["rare"]["recall"]["mean"], abs=1e-5)


def test_frozen_test_set(tmp_path):
    record = run_compare(make_project(tmp_path, mode="frozen"))
    assert record["claim"].startswith("difference on this test set (36 groups), over 5 generator seeds")
    assert record["data"]["classes"]["rare"]["test_groups"] == 8
    low, high = (record["gain"]["rare"]["recall"][end] for end in ("low", "high"))
    assert low < record["gain"]["rare"]["recall"]["mean"] < high


def test_the_same_procedure_looks_once_and_another_is_exploratory(project):
    first = run_compare(project)
    before = (project.metrics / "gain.json").read_bytes(), (project.metrics / "looks.json").read_bytes()
    assert first["looks"] == {"test_digest": first["looks"]["test_digest"], "look": 1, "exploratory": False}
    run_compare(project)
    assert ((project.metrics / "gain.json").read_bytes(), (project.metrics / "looks.json").read_bytes()) == before
    params = project.root / "params.yaml"
    original = params.read_text()
    params.write_text(original + "seed: 7\n")
    second = run_compare(Workspace(project.root))
    assert second["looks"]["look"] == 2 and second["looks"]["exploratory"]
    params.write_text(original)
    assert run_compare(Workspace(project.root))["looks"]["look"] == 1
    assert len(read_json(project.metrics / "looks.json")[first["looks"]["test_digest"]]) == 2


@pytest.mark.parametrize(
    "section", [name for name in Config.model_fields if name not in ("assemble", "report", "search", "worth")]
)
def test_every_section_that_decides_what_is_compared_is_part_of_the_procedure(section):
    assert section in PROCEDURE_SECTIONS


def test_a_report_setting_is_no_new_look(project):
    run_compare(project)
    with (project.root / "params.yaml").open("a") as stream:
        stream.write("report: {title: Other}\n")
    assert run_compare(Workspace(project.root))["looks"]["look"] == 1


def _digest(project: Workspace, arm: str, search: int = 1, **policy: object) -> str:
    params = project.root / "params.yaml"
    config = YAML(typ="safe", pure=True).load(params.read_text())
    with params.open("w") as stream:
        YAML().dump({**config, "challenge": {"arms": [arm], "policies": {"own": policy}}}, stream)
    workspace = Workspace(project.root)
    workspace.plan.versions["search"] = search
    return procedure_digest(workspace, ["real"])


def test_a_blend_and_a_search_are_part_of_the_procedure_only_where_they_are_used(project):
    digests = {
        (kind, alpha): _digest(project, "best+own", blend=kind, blend_alpha=alpha)
        for kind in ("none", "mixup", "cutmix")
        for alpha in (0.3, 0.7)
    }
    assert digests["none", 0.3] == digests["none", 0.7]
    assert len(set(digests.values())) == 5
    for arm, n_procedures in (("best+own", 1), ("best+searched", 2)):
        assert len({_digest(project, arm, search=number) for number in (1, 9)}) == n_procedures


def _digest_of(project: Workspace, **sections: object) -> str:
    params = project.root / "params.yaml"
    before = params.read_text()
    with params.open("w") as stream:
        YAML().dump({**YAML(typ="safe", pure=True).load(before), **sections}, stream)
    found = procedure_digest(Workspace(project.root), ["real"])
    params.write_text(before)
    return found


@pytest.mark.parametrize(
    ("unused", "used"),
    [
        ({"source": {"type": "digits", "unlabelled": "data/raw/.x"}}, {"pretrain": {"unlabelled": True}}),
        ({"source": {"type": "digits", "unlabelled": "data/raw/.x"}}, {"evaluate": {"arms": ["pseudo_labelled"]}}),
        (
            {"pretrain": {"keep_weight": 2.0, "network": {"architecture": "dcgan"}}},
            {"pretrain": {"keep_weight": 2.0, "network": {"architecture": "translate_masked"}}},
        ),
        (
            {"challenge": {"arms": ["best+synthetic"], "policies": {"own": {"share": 0.4}}}},
            {"challenge": {"arms": ["best+synthetic", "best+own"], "policies": {"own": {"share": 0.4}}}},
        ),
        (
            {"challenge": {"arms": ["best+synthetic"], "policies": {"synthetic": {"share": 0.25}}}},
            {"challenge": {"arms": ["best+synthetic"], "policies": {"synthetic": {"share": 0.3}}}},
        ),
        ({"adapt": {"kimg": 9.0}, "plan": {"strategy": "shared"}}, {"plan": {"strategy": "adapted"}}),
    ],
)
def test_what_is_set_but_not_used_is_no_part_of_the_procedure(project, unused, used):
    base = {"challenge": {"arms": ["best+synthetic"]}}
    within = {key: value for key, value in {**base, **unused}.items() if key not in ("source", "adapt", "challenge")}
    if "pretrain" in within:
        within["pretrain"] = {"network": {"architecture": "dcgan"}}
    assert _digest_of(project, **{**base, **unused}) == _digest_of(project, **{**base, **within})
    without = {**base, **within, **used}
    if "keep_weight" in without.get("pretrain", {}):
        without["pretrain"] = {"network": without["pretrain"]["network"]}
    if "challenge" in used:
        without["challenge"] = base["challenge"]
    assert _digest_of(project, **{**base, **unused, **used}) != _digest_of(project, **without)


def test_a_stale_challenger_is_refused(project):
    path = project.evaluation("best+synthetic") / "arm.json"
    record = read_json(path)
    record["folds"]["f3"]["arm"] = "real"
    write_json(path, record)
    with pytest.raises(MeasurementError, match="in fold f3 best\\+synthetic was built on 'real'"):
        run_compare(project)
    assert not (project.metrics / "looks.json").exists()


@pytest.mark.parametrize(("crossfit", "how"), [(True, "cross-fitting"), (False, "the score on validation rows")])
def test_the_refusal_says_how_the_arm_was_chosen(project, crossfit, how):
    params = project.root / "params.yaml"
    config = YAML(typ="safe", pure=True).load(params.read_text())
    with params.open("w") as stream:
        YAML().dump({**config, "evaluate": {"arms": CLASSICAL, "crossfit": crossfit}}, stream)
    path = project.evaluation("best+synthetic") / "arm.json"
    write_json(path, {**read_json(path), "folds": {fold: {"arm": "real"} for fold in FOLDS}})
    with pytest.raises(MeasurementError, match=f"but {how} chooses 'classical'"):
        run_compare(Workspace(project.root))


def test_arms_on_different_images_are_refused(project):
    path = project.evaluation("synthetic") / "predictions.parquet"
    predictions = load_predictions(path)
    keep = ~((predictions.folds == "f2") & (predictions.sha256 == predictions.aligned("f2", "test").sha256[0]))
    save_predictions(
        path, replace(predictions, **{name: getattr(predictions, name)[keep] for name in vars(predictions)})
    )
    with pytest.raises(MeasurementError, match="different test images or numbers of repeats in fold f2"):
        run_compare(project)


def test_missing_and_misfit_predictions_are_named(project):
    (project.evaluation("real") / "predictions.parquet").unlink()
    with pytest.raises(ArtifactError, match=r"real/predictions\.parquet is missing"):
        run_compare(project)


def test_nothing_to_compare_is_said(tmp_path):
    with pytest.raises(MeasurementError, match=r"challenge\.arms"):
        run_compare(make_project(tmp_path, challenge=()))


def test_a_challenger_that_is_not_built_on_the_chosen_arm(tmp_path):
    record = run_compare(make_project(tmp_path, challenge=("synthetic",)))
    assert record["challenger"] == "synthetic" and record["gain"]["rare"]["recall"]["mean"] < 0


def test_table_shows_names_as_they_are(project):
    record = run_compare(project)
    console = Console(width=200, file=io.StringIO())
    console.print(verdict_table(record))
    text = console.file.getvalue()
    assert (
        "recall [b]rare[/b]" in text
        and "5/5 folds" in text
        and record["recommended"] == "classical"
        and "helps" in text
    )
    assert record["claim"].split(",")[0] in text


def test_damaged_log_of_looks_is_refused(project):
    write_json(project.metrics / "looks.json", ["x"])
    with pytest.raises(ArtifactError, match=r"looks\.json"):
        run_compare(project)


def _inner_of(project, arm, fold, change):
    """Says another thing about the cross-fitted rows of one fold: `change(labels, logits)`."""
    path = project.evaluation(arm) / "predictions.parquet"
    predictions = load_predictions(path)
    rows = (predictions.folds == fold) & (predictions.parts == "inner")
    logits = predictions.logits.copy()
    logits[rows] = change(predictions.labels[rows], logits[rows])
    save_predictions(path, replace(predictions, logits=logits))


def _luckier_by_one(labels, logits):
    """Two images more are right and one is wrong, all of the plentiful class."""
    right = logits.argmax(axis=1) == labels
    better = logits.copy()
    better[np.flatnonzero(~right & (labels == 0))[:2]] = 9.0 * np.eye(3)[0]
    better[np.flatnonzero(right & (labels == 0))[0]] = 9.0 * np.eye(3)[1]
    return better


def test_an_arm_that_is_better_by_one_image_does_not_win_against_a_more_regularised_one(tmp_path):
    project = make_project(tmp_path, challenge=("synthetic",))
    classical = load_predictions(project.evaluation("classical") / "predictions.parquet")
    for fold in FOLDS:
        said = classical.logits[(classical.folds == fold) & (classical.parts == "inner")]
        change = _luckier_by_one if fold == "f0" else lambda _, logits: logits
        _inner_of(project, "real", fold, lambda labels, _, change=change, said=said: change(labels, said))
    data = SimpleNamespace(slugs=SLUGS)
    record = run_compare(project)
    assert record["chosen"] == dict.fromkeys(FOLDS, "classical") and record["recommended"] == "classical"
    chosen = choose_in_folds(project, data)
    assert {fold: entry["arm"] for fold, entry in chosen.items()} == record["chosen"]
    assert chosen["f0"]["scores"]["real"] > chosen["f0"]["scores"]["classical"]
    # where one fold tells the arms apart, that fold has the better one, and so has what is trained on all data
    _inner_of(project, "classical", "f0", lambda labels, logits: -logits)
    record = run_compare(project)
    assert record["chosen"] == {**dict.fromkeys(FOLDS, "classical"), "f0": "real"}
    assert record["recommended"] == "real"
    params = project.root / "params.yaml"
    params.write_text(params.read_text().replace("challenge:\n", "challenge:\n  choice_errors: 0.0\n"))
    plainly = Workspace(project.root)
    record = run_compare(plainly)
    assert record["chosen"] == dict.fromkeys(FOLDS, "real") and record["recommended"] == "real"
    assert {entry["arm"] for entry in choose_in_folds(plainly, data).values()} == {"real"}
