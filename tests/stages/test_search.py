"""`synthgen search` on digits made small: nothing of the test side, the same again, budgets that say what they need."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ruamel.yaml import YAML

from benchmarks.simulated_searches import simulate_search
from synthgen.artifacts import read_json, write_json
from synthgen.classifier.arms import classical_arm
from synthgen.config import parse_config
from synthgen.dataset.mixing_candidates import Candidate
from synthgen.dataset.origin_record import ORIGIN_FILE
from synthgen.dataset.predictions import load_predictions
from synthgen.dataset.prepared import load_prepared
from synthgen.dataset.shards import SyntheticRows, write_synthetic_shard
from synthgen.errors import ArtifactError, ConfigError, PlanError
from synthgen.records import NOTHING_SEARCHED, SEARCH_RESULT, save_plan
from synthgen.stages import search
from synthgen.stages.challenge import run_challenge
from synthgen.stages.compare import procedure_digest, run_compare
from synthgen.stages.evaluate import run_evaluate
from synthgen.stages.plan import check_arms, run_plan
from synthgen.stages.prepare import run_prepare
from synthgen.stages.search import run_search, trained_steps
from synthgen.stages.tables import verdict_table
from synthgen.stages.workspace import Workspace

CPU = torch.device("cpu")
PARAMS = """
seed: 3
source: {type: digits, simulate_scarcity: {keep: {"3": 15, "8": 15}, surplus: test}}
plan: {folds: 3, target: 10, strategy: shared}
prepare: {image_size: 8, channels: 1}
classifier: {width: 4, steps: 6, batch: 32}
evaluate: {arms: [balanced, classical], repeats: 2, crossfit: false}
challenge: {arms: [best+searched], policies: {half: {share: 0.45, blend: mixup}}}
search: {trainings: 72, candidates: [half]}
"""


def write_pool(workspace: Workspace) -> None:
    """Blurred training images stand for samples of a GAN."""
    data = load_prepared(workspace.prepared)
    for fold in workspace.plan.measured_folds:
        train = data.split(fold).train
        for label, slug in enumerate(data.slugs):
            images = data.images[train[data.labels[train] == label]][:10]
            blurred = ((images.astype(int) + np.roll(images, 1, axis=2)) // 2).astype(np.uint8)
            n = len(blurred)
            floats = np.full(n, 0.9, np.float32)
            rows = SyntheticRows(blurred, np.arange(n), np.arange(n, dtype=np.int32), floats, floats, floats)
            write_synthetic_shard(
                workspace.synthetic(fold) / f"{slug}.parquet",
                rows,
                label=label,
                class_name=data.class_names[label],
                slug=slug,
                fold=fold,
                generator_digest="0" * 64,
                class_names=data.class_names,
            )
        unmeasured = {"auc": None, "error": None, "hit": None, "false_alarm": None, "classes": {}}
        write_json(workspace.synthetic(fold) / ORIGIN_FILE, {"form": 1, "pools": {"default": unmeasured}})


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("searched")
    (folder / "data" / "raw").mkdir(parents=True)
    (folder / "params.yaml").write_text(PARAMS)
    workspace = Workspace(folder)
    run_plan(workspace)
    run_prepare(workspace)
    write_pool(workspace)
    for arm in workspace.config.evaluate.arms:
        run_evaluate(workspace, arm, CPU, n_workers=1)
    run_search(workspace, CPU, n_workers=1)
    return workspace


def _copy(workspace: Workspace, folder: Path, old: str = "", new: str = "") -> Workspace:
    shutil.copytree(workspace.root, folder)
    (folder / "params.yaml").write_text(PARAMS.replace(old, new))
    return Workspace(folder)


def test_every_fold_and_the_release_have_a_choice_with_its_gain_and_cost(searched: Workspace) -> None:
    record = read_json(searched.search_result)
    assert list(record["chosen"]) == ["f0", "f1", "f2", "final"]
    candidates = record["candidates"]
    for choice in record["chosen"].values():
        assert choice["candidate"] in candidates
        assert choice["policy"] == candidates[choice["candidate"]]["policy"]
        assert abs(choice["shrunk"]) <= abs(choice["mean"])
    assert candidates["no synthetic images"]["policy"] is None
    assert set(candidates["half"]["policy"]["shares"].values()) == {0.45}
    assert candidates["half"]["policy"]["blend"] == "mixup"
    cost = record["cost"]
    assert cost["trainings"] == sum(entry["trainings"] for entry in candidates.values()) <= 72
    assert cost["steps"] == 6 * cost["trainings"]
    assert cost["seconds"] is None  # budgets in trainings give equal bytes on every machine
    assert set(record["expected_gain"]) == {"score", "balanced_accuracy"}
    assert not (searched.root / ".synthgen" / "scratch" / "classifier-search").exists()


def test_a_base_with_a_teacher_costs_two_trainings() -> None:
    config = parse_config(YAML(typ="safe", pure=True).load(PARAMS))
    bases = {"f0": classical_arm("classical"), "f1": classical_arm("pseudo_labelled")}
    assert trained_steps(config, 40, dict.fromkeys(bases, bases["f0"])) == 6 * 40
    assert trained_steps(config, 40, bases) == 6 * (20 + 2 * 20)
    nothing = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"share": 0.0})})
    assert trained_steps(nothing, 40, bases) == 6 * 40


def test_the_default_over_itself_gains_nothing_and_the_base_is_trained_as_it_is(searched: Workspace) -> None:
    record = read_json(searched.search_result)
    assert record["candidates"]["synthetic"]["mean"] is None
    assert record["bases"].keys() == {"f0", "f1", "f2"}
    assert record["plan"]["candidates"][:3] == ["synthetic", "no synthetic images", "half"]


def test_the_gain_of_a_default_that_stays_has_no_error_since_nothing_was_estimated() -> None:
    # 0.0 would say that the gain was measured, and exactly
    choices = (simulate_search(seed, variants=0).search.run().choices["final"] for seed in range(20))
    stayed = next(choice for choice in choices if choice.name == "default")
    found = search._choice_record(stayed, {"default": Candidate("default", None)}, [])
    assert (found["mean"], found["error"], found["shrunk"]) == (0.0, None, 0.0)
    assert found["needed"] > 0.0


def test_test_labels_and_predictions_decide_nothing_and_it_is_the_same_again(
    searched: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = _copy(searched, tmp_path / "other")
    data = load_prepared(other.prepared)
    # rows that are only ever tested: they get the next label
    surplus = data.roles == "surplus"
    assert surplus.sum() > 100
    path = other.prepared / "manifest.parquet"
    table = pq.read_table(path)
    labels = np.where(surplus, (data.labels + 1) % 10, data.labels)
    column = table.schema.get_field_index("label")
    field = table.schema.field("label")
    pq.write_table(table.set_column(column, field, pa.array(labels.tolist(), field.type)), path)
    # test rows in the evaluations: their logits are turned round
    for arm in other.config.evaluate.arms:
        file = other.evaluation(arm) / "predictions.parquet"
        found = load_predictions(file)
        mixed = pq.read_table(file)
        logits = np.where((found.parts == "test")[:, None], -found.logits, found.logits)
        index = mixed.schema.get_field_index("logits")
        values = pa.array(logits.tolist(), mixed.schema.field("logits").type)
        pq.write_table(mixed.set_column(index, mixed.schema.field("logits"), values), file)
    predicted: list[str] = []
    run_jobs = search.run_jobs

    def spy(jobs, context, **settings):  # type: ignore[no-untyped-def]
        predicted.extend(name for job in jobs for name, _ in job.parts)
        return run_jobs(jobs, context, **settings)

    monkeypatch.setattr(search, "run_jobs", spy)
    other.search_result.unlink()
    run_search(other, CPU, n_workers=1)
    assert other.search_result.read_bytes() == searched.search_result.read_bytes()
    assert set(predicted) == {"val"}


def test_the_challenger_takes_each_folds_own_policy_and_the_verdict_tells_the_search(
    searched: Workspace, tmp_path: Path
) -> None:
    other = _copy(searched, tmp_path / "other")
    record = read_json(other.search_result)
    half = record["candidates"]["half"]["policy"]
    record["chosen"]["f1"] |= {"candidate": "half", "policy": half}
    record["chosen"]["f2"] |= {"candidate": "no synthetic images", "policy": None}
    write_json(other.search_result, record)
    run_challenge(other, "best+searched", CPU, n_workers=1)
    arm = read_json(other.evaluation("best+searched") / "arm.json")
    assert arm["folds"]["f1"]["policy"] == half
    assert arm["folds"]["f2"]["policy"] is None
    # without synthetic images the arm is the fold's classical arm itself: the same seeds give the same logits
    base = load_predictions(other.evaluation(arm["folds"]["f2"]["arm"]) / "predictions.parquet")
    own = load_predictions(other.evaluation("best+searched") / "predictions.parquet")
    np.testing.assert_array_equal(own.aligned("f2", "test").logits, base.aligned("f2", "test").logits)
    assert not np.array_equal(own.aligned("f1", "test").logits, base.aligned("f1", "test").logits)
    gain = run_compare(other)
    assert gain["search"]["chosen"]["f1"]["candidate"] == "half"
    assert gain["search"]["cost"] == record["cost"]
    assert verdict_table(gain)


def test_a_result_that_plan_yaml_knows_nothing_of_is_refused_with_the_remedy(
    searched: Workspace, tmp_path: Path
) -> None:
    # params.yaml has the arm, plan.yaml was written before: DVC would not track the result that still lies there
    other = _copy(searched, tmp_path / "other")
    save_plan(other.plan_file, other.plan.model_copy(update={"search_runs": []}))
    with pytest.raises(PlanError, match=r"run `synthgen plan`, then `dvc repro`"):
        run_challenge(Workspace(other.root), "best+searched", CPU, n_workers=1)


def test_a_candidate_that_there_is_not_is_said_by_plan(searched: Workspace, tmp_path: Path) -> None:
    other = _copy(searched, tmp_path / "other", "candidates: [half]", "candidates: [hallf]")
    with pytest.raises(ConfigError, match=r"search\.candidates: 'hallf' is no policy; there are half"):
        check_arms(other.config)


def test_a_result_of_other_folds_is_refused(searched: Workspace, tmp_path: Path) -> None:
    other = _copy(searched, tmp_path / "other")
    record = read_json(other.search_result)
    del record["chosen"]["f1"]
    write_json(other.search_result, record)
    with pytest.raises(ArtifactError, match=r"choices for f0, f2, final.*run `dvc repro` for search"):
        run_challenge(other, "best+searched", CPU, n_workers=1)
    other.search_result.write_text(json.dumps({"schema": 1}))
    with pytest.raises(ArtifactError, match="cannot be used"):
        run_challenge(other, "best+searched", CPU, n_workers=1)
    other.search_result.unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        run_challenge(other, "best+searched", CPU, n_workers=1)


def test_a_budget_too_small_says_what_it_takes(searched: Workspace, tmp_path: Path) -> None:
    few = _copy(searched, tmp_path / "few", "trainings: 72", "trainings: 11")
    with pytest.raises(ConfigError, match=r"search\.trainings is 11, but .* takes 12 trainings.*raise it to 12"):
        run_search(few, CPU, n_workers=1)
    short = _copy(searched, tmp_path / "short", "trainings: 72", "minutes: 1.0e-5")
    with pytest.raises(ConfigError, match=r"search\.minutes is 1e-05, .* takes 12 trainings .* raise it to 0\.\d+ "):
        run_search(short, CPU, n_workers=1)


def test_a_killed_search_goes_on_with_its_speed_and_trainings(
    searched: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = _copy(searched, tmp_path / "other", "trainings: 72", "minutes: 0.021")
    run_jobs, calls = search.run_jobs, []

    def dies(jobs, context, **settings):  # type: ignore[no-untyped-def]
        calls.append(len(jobs))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run_jobs(jobs, context, **settings)

    monkeypatch.setattr(search, "run_jobs", dies)
    monkeypatch.setattr(search.CandidateTrainer, "seconds_each", _slow(search.CandidateTrainer.seconds_each))
    with pytest.raises(KeyboardInterrupt):
        run_search(other, CPU, n_workers=1)
    scratch = other.root / ".synthgen" / "scratch" / "classifier-search"
    speed = read_json(scratch / "speed.json")
    assert len(list(scratch.glob("*.sha256"))) == 6
    write_json(scratch / "speed.json", {**speed, "seconds": 0.1})
    run_search(other, CPU, n_workers=1)
    budget = read_json(other.search_result)["budget"]
    assert budget == {"minutes": 0.021, "seconds_each": 0.1, "trainings": 12}


def _slow(method):  # type: ignore[no-untyped-def]
    def seconds_each(self, name):  # type: ignore[no-untyped-def]
        return min(method(self, name), 0.1)

    return seconds_each


def test_the_plan_has_the_stage_only_where_an_arm_is_searched_for(searched: Workspace, tmp_path: Path) -> None:
    assert (searched.plan.search_runs, searched.plan.searched_policies) == (["policies"], SEARCH_RESULT)
    other = _copy(searched, tmp_path / "other", "best+searched", "best+synthetic")
    plan = run_plan(other)
    assert (plan.search_runs, plan.searched_policies) == ([], NOTHING_SEARCHED)
    # a plan of before the search lacks what dvc.yaml interpolates, and is written anew
    lines = other.plan_file.read_text().splitlines(keepends=True)
    other.plan_file.write_text("".join(line for line in lines if not line.startswith("search")))
    run_plan(Workspace(other.root))
    assert "search_runs: []" in other.plan_file.read_text()


def test_another_budget_is_another_procedure_only_where_an_arm_is_searched_for(
    searched: Workspace, tmp_path: Path
) -> None:
    def digest(text: str) -> str:
        (tmp_path / "params.yaml").write_text(text)
        return procedure_digest(Workspace(tmp_path), ["balanced"])

    shutil.copy(searched.plan_file, tmp_path / "plan.yaml")
    assert digest(PARAMS) != digest(PARAMS.replace("trainings: 72", "trainings: 73"))
    unsearched = PARAMS.replace("best+searched", "best+synthetic")
    assert digest(unsearched) == digest(unsearched.replace("trainings: 72", "trainings: 73"))
