"""All stages, one after the other, on digits made small: what each writes is what the next one reads."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from synthgen.artifacts import read_json, write_json
from synthgen.dataset.mixing import MixingPolicy
from synthgen.dataset.origin_record import ORIGIN_FILE, OriginRecord, read_origin
from synthgen.dataset.predictions import load_predictions
from synthgen.dataset.prepared import load_prepared
from synthgen.dataset.shards import SyntheticRows, read_images, write_synthetic_shard
from synthgen.errors import ArtifactError, ConfigError, LeakError
from synthgen.gan.checkpoint import load_gan
from synthgen.gan.sampling import sample_batch
from synthgen.report.wording import worth_sentence
from synthgen.stages.adapt import run_adapt
from synthgen.stages.assemble import run_assemble
from synthgen.stages.challenge import load_pool, run_challenge
from synthgen.stages.compare import run_compare
from synthgen.stages.evaluate import run_evaluate
from synthgen.stages.plan import run_plan
from synthgen.stages.prepare import run_prepare
from synthgen.stages.pretrain import run_pretrain
from synthgen.stages.report import run_report
from synthgen.stages.scratch import run_scratch
from synthgen.stages.shortcut import mean_bits, origin_of_fold
from synthgen.stages.synthesize import run_synthesize
from synthgen.stages.workspace import Workspace
from synthgen.stages.worth import run_worth, thinned

CPU = torch.device("cpu")
PARAMS = """
seed: 3
source: {type: digits, simulate_scarcity: {keep: {"3": 15, "8": 15}, surplus: test}}
plan: {folds: 3, target: 20, strategy: STRATEGY}
prepare: {image_size: 8, channels: 1}
classifier: {width: 8, steps: 30, batch: 32}
pretrain: {kimg: 2.0, batch: 32, tick_kimg: 1.0, ema: 0.9, network: {channels: 8}}
adapt: {kimg: 0.3}
scratch: {kimg: 0.3}
synthesize: {min_agreement: 0.0, teacher_steps: 30, batch: 16}
evaluate: {arms: [balanced, classical], repeats: 2, crossfit: true}
challenge:
  arms: [best+synthetic, best+shared, classical+unwise]
  policies:
    unwise: {classes: scarce, share: 0.5, transforms: mild, labels: agreement, loss_weight: 0.5, schedule: falling}
"""


def _workspace(folder: Path, strategy: str = "adapted") -> Workspace:
    (folder / "data" / "raw").mkdir(parents=True)
    text = PARAMS.replace("STRATEGY", strategy)
    (folder / "params.yaml").write_text(text if strategy != "scratch" else text.replace(", best+shared", ""))
    return Workspace(folder)


def _train_and_judge(workspace: Workspace) -> None:
    for arm in workspace.config.evaluate.arms:
        run_evaluate(workspace, arm, CPU, n_workers=1)
    for arm in workspace.config.challenge.arms:
        run_challenge(workspace, arm, CPU, n_workers=1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = _workspace(tmp_path_factory.mktemp("digits"))
    plan = run_plan(workspace)
    run_prepare(workspace)
    for fold in plan.folds:
        run_pretrain(workspace, fold, CPU)
        for slug in plan.adapt_slugs:
            run_adapt(workspace, fold, slug, CPU)
        run_synthesize(workspace, fold, CPU)
    run_assemble(workspace)
    _train_and_judge(workspace)
    run_compare(workspace)
    run_worth(workspace, CPU, n_workers=1)
    run_report(workspace)
    return workspace


def test_the_scarce_classes_are_found_and_get_generators_of_their_own(finished: Workspace) -> None:
    assert finished.plan.scarce_slugs == finished.plan.adapt_slugs == ["3", "8"]
    about = read_json(finished.adapted_model("f0", "3") / "model.json")
    assert about["kind"] == "adapted"
    assert about["started_from"] == read_json(finished.shared_model("f0") / "model.json")["generator_digest"]


def test_generators_and_teacher_saw_training_images_alone(finished: Workspace) -> None:
    data = load_prepared(finished.prepared)
    for fold in finished.plan.measured_folds:
        split = data.split(fold)
        held_out = set(data.sha256[split.test]) | set(data.sha256[split.val])
        for folder in (finished.shared_model(fold), finished.adapted_model(fold, "8")):
            seen = set(read_json(folder / "trained_on.json"))
            assert seen == set(data.sha256[split.train])
            assert not seen & held_out


def test_every_synthetic_image_can_be_made_again_from_digest_and_seed(finished: Workspace) -> None:
    batch = finished.config.synthesize.batch
    for slug in ("3", "0"):
        shard = read_images(
            finished.synthetic("f0") / f"{slug}.parquet", columns=["seed", "position", "generator_digest"]
        )
        gan = load_gan(finished.model_of("f0", slug), CPU)
        assert set(shard.columns["generator_digest"]) == {gan.digest}
        for i in (0, len(shard.images) - 1):
            again = sample_batch(
                gan.generator,
                finished.plan.classes[slug].label,
                int(shard.columns["seed"][i]),
                batch=batch,
                truncation=1.0,
                device=CPU,
            )
            np.testing.assert_array_equal(again.images[shard.columns["position"][i]], shard.images[i])


def test_every_class_gets_the_same_number_so_that_origin_says_nothing(finished: Workspace) -> None:
    counts = {
        slug: len(read_images(finished.synthetic("f1") / f"{slug}.parquet").labels) for slug in finished.plan.slugs
    }
    assert set(counts.values()) == {20}
    assert (finished.synthetic("f1") / "3.shared.parquet").exists()
    assert not (finished.synthetic("f1") / "0.shared.parquet").exists()


def test_arms_predict_the_same_test_images_and_cross_fitting_none_of_them(finished: Workspace) -> None:
    data = load_prepared(finished.prepared)
    for arm in ("balanced", "classical", "best+synthetic"):
        predictions = load_predictions(finished.evaluation(arm) / "predictions.parquet")
        for fold in finished.plan.measured_folds:
            test = set(data.sha256[data.split(fold).test])
            assert set(predictions.aligned(fold, "test").sha256) == test
            inner = predictions.sha256[(predictions.folds == fold) & (predictions.parts == "inner")]
            assert not set(inner) & test
            assert bool(len(inner)) == (arm != "best+synthetic")


def test_the_challenger_builds_on_the_arm_chosen_in_each_fold(finished: Workspace) -> None:
    gain = read_json(finished.metrics / "gain.json")
    folds = read_json(finished.evaluation("best+synthetic") / "arm.json")["folds"]
    assert {fold: folds[fold]["arm"] for fold in folds} == gain["chosen"]
    assert all(set(folds[fold]["scores"]) == {"balanced", "classical"} for fold in folds)


def test_an_arm_says_by_which_policy_images_were_mixed_in(finished: Workspace) -> None:
    record = read_json(finished.evaluation("classical+unwise") / "arm.json")
    assert record["folds"]["f1"]["arm"] == "classical"
    policy = record["policy"]
    assert {name for name, share in policy["shares"].items() if share} == {"3", "8"}
    # two of ten classes synthetic half of the time: H(origin) - H(origin | label) = H(0.1) - 0.2 bits
    assert policy["label_origin_bits"] == pytest.approx(-0.1 * np.log2(0.1) - 0.9 * np.log2(0.9) - 0.2, abs=1e-6)
    assert read_json(finished.evaluation("best+synthetic") / "arm.json")["policy"]["label_origin_bits"] == 0.0
    assert read_json(finished.augmented / "summary.json")["policy"]["shares"] == dict.fromkeys("0123456789", 0.25)


def test_three_folds_can_never_say_helps(finished: Workspace) -> None:
    gain = read_json(finished.metrics / "gain.json")
    assert {entry["verdict"] for entry in gain["gain"].values()} <= {"promising", "no evidence", "cannot tell", "hurts"}


def test_report_and_data_set_are_there(finished: Workspace) -> None:
    page = (finished.reports / "index.html").read_text(encoding="utf-8")
    assert "Content-Security-Policy" in page
    assert "simulate" in page.lower()
    summary = read_json(finished.augmented / "summary.json")
    assert "real" in json.dumps(summary)


def test_the_same_config_and_seed_give_the_same_bytes_twice(finished: Workspace, tmp_path: Path) -> None:
    again = _workspace(tmp_path)
    run_plan(again)
    run_prepare(again)
    run_pretrain(again, "f0", CPU)
    for slug in again.plan.adapt_slugs:
        run_adapt(again, "f0", slug, CPU)
    run_synthesize(again, "f0", CPU)
    run_evaluate(again, "classical", CPU, n_workers=1)
    for name in ("prepared", "synthetic/f0", "evaluation/classical"):
        first, second = finished.root / "data" / name, again.root / "data" / name
        files = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
        assert files == sorted(p.relative_to(second) for p in second.rglob("*") if p.is_file())
        for file in files:
            assert (first / file).read_bytes() == (second / file).read_bytes(), file
    for name in ("shared", "adapted-3"):
        first, second = finished.root / "models/f0" / name, again.root / "models/f0" / name
        assert all((second / p.name).read_bytes() == p.read_bytes() for p in first.iterdir() if p.is_file())


def test_processes_side_by_side_give_the_same_predictions(finished: Workspace, tmp_path: Path) -> None:
    before = (finished.evaluation("classical") / "predictions.parquet").read_bytes()
    run_evaluate(finished, "classical", CPU, n_workers=2)
    assert (finished.evaluation("classical") / "predictions.parquet").read_bytes() == before


def test_a_pinned_base_is_taken_by_digest_and_refused_where_it_leaks(finished: Workspace, tmp_path: Path) -> None:
    digest = read_json(finished.shared_model("f0") / "model.json")["generator_digest"]
    pinned = finished.root / "params.yaml"
    text = pinned.read_text()
    try:
        for fold, path, pin, expected in (
            ("f0", "models/f0/shared", digest, None),
            ("f0", "models/f0/shared", "0" * 64, ConfigError),
            ("f1", "models/f0/shared", digest, LeakError),
            ("f0", "models/nowhere", digest, ArtifactError),
        ):
            base = f"base: {{{fold}: {{path: {path}, digest: '{pin}'}}}}, "
            pinned.write_text(text.replace("pretrain: {", "pretrain: {" + base))
            other = Workspace(finished.root)
            if expected is None:
                run_pretrain(other, fold, CPU)
                assert read_json(other.shared_model(fold) / "model.json")["generator_digest"] == digest
            else:
                with pytest.raises(expected):
                    run_pretrain(other, fold, CPU)
    finally:
        pinned.write_text(text)


def test_a_refused_class_keeps_its_share_of_the_draws(finished: Workspace) -> None:
    # left out, it would be the one class that is never synthetic, and origin would tell the label
    data = load_prepared(finished.prepared)
    folder = finished.synthetic("f0")
    kept = {name: (folder / name).read_bytes() for name in ("3.parquet", "3.shared.parquet")}
    names = [finished.plan.classes[slug].class_name for slug in finished.plan.slugs]
    none = np.zeros(0, np.float32)
    rows = SyntheticRows(
        np.zeros((0, 8, 8, 1), np.uint8), np.zeros(0, np.int64), np.zeros(0, np.int32), none, none, none
    )
    about = {"label": 3, "class_name": "3", "slug": "3", "fold": "f0", "generator_digest": "", "class_names": names}
    try:
        write_synthetic_shard(folder / "3.parquet", rows, **about)  # type: ignore[arg-type]
        shared, stand_ins = load_pool(finished, "f0", MixingPolicy("synthetic", "default", (0.25,) * 10), data)
        assert stand_ins == {"3": "shared"}
        assert np.sum(shared.labels == 3) == 20
        (folder / "3.shared.parquet").unlink()
        real, stand_ins = load_pool(finished, "f0", MixingPolicy("synthetic", "default", (0.25,) * 10), data)
        assert stand_ins == {"3": "real"}
        train = data.split("f0").train
        np.testing.assert_array_equal(real.images[real.labels == 3], data.images[train[data.labels[train] == 3]])
    finally:
        for name, content in kept.items():
            (folder / name).write_bytes(content)
    assert load_pool(finished, "f0", MixingPolicy("synthetic", "default", (0.25,) * 10), data)[1] == {}
    few, _ = load_pool(finished, "f0", MixingPolicy("few", "default", (0.25,) * 10, at_most=7), data)
    all_of_them, _ = load_pool(finished, "f0", MixingPolicy("synthetic", "default", (0.25,) * 10), data)
    for label in range(10):
        own = all_of_them.images[all_of_them.labels == label]
        np.testing.assert_array_equal(few.images[few.labels == label], own[:7])


def test_fault_03_a_flipped_byte_after_prepare_is_named(finished: Workspace) -> None:
    path = finished.prepared / "images.npy"
    content = path.read_bytes()
    changed = bytearray(content)
    changed[-1] ^= 1
    try:
        path.write_bytes(bytes(changed))
        with pytest.raises(ArtifactError, match=r"no longer matches its sha256"):
            run_evaluate(finished, "balanced", CPU, n_workers=1)
    finally:
        path.write_bytes(content)


def test_scratch_trains_each_class_alone(tmp_path: Path) -> None:
    workspace = _workspace(tmp_path, "scratch")
    plan = run_plan(workspace)
    assert plan.pretrain_folds == []
    assert plan.adapt_slugs == []
    assert plan.scratch_slugs == plan.slugs
    run_prepare(workspace)
    run_scratch(workspace, "f0", "3", CPU)
    data = load_prepared(workspace.prepared)
    train = data.split("f0").train
    seen = set(read_json(workspace.scratch_model("f0", "3") / "trained_on.json"))
    assert seen == set(data.sha256[train[data.labels[train] == 3]])


def test_parts_of_the_scarce_classes_are_nested_and_hold_whole_objects(finished: Workspace) -> None:
    data = load_prepared(finished.prepared)
    train = data.split("f1").train
    smaller, larger = (thinned(data, "f1", [3, 8], fraction, seed=0) for fraction in (0.25, 0.5))
    assert set(smaller.tolist()) < set(larger.tolist()) < set(train.tolist())
    assert np.array_equal(larger, train[np.isin(train, larger)])  # the order of training rows is kept
    for label in range(10):
        own, kept = (rows[data.labels[rows] == label] for rows in (train, larger))
        if label not in (3, 8):
            assert np.array_equal(own, kept)
            continue
        groups, kept_groups = set(data.groups[own].tolist()), set(data.groups[kept].tolist())
        assert len(kept_groups) == -(-len(groups) // 2)
        assert not kept_groups & set(data.groups[np.setdiff1d(own, kept)].tolist())


def test_worth_stands_on_the_errors_that_compare_measured(finished: Workspace) -> None:
    worth, gain = read_json(finished.worth), read_json(finished.metrics / "gain.json")
    assert worth["arm"] == gain["challenger"] == "best+synthetic"
    assert worth["error_with_synthetic"] == pytest.approx(1 - gain["arms"]["best+synthetic"]["scarce_recall"], abs=1e-6)
    change = gain["overall"]["scarce_recall"]["mean"]
    assert worth["curve"][-1]["error"] - worth["error_with_synthetic"] == pytest.approx(change, abs=1e-6)
    images = [point["images"] for point in worth["curve"]]
    assert images == sorted(images)
    assert images[-1] == worth["n_real"]
    assert "Worth in real images" in (finished.reports / "index.html").read_text()


def test_the_shortcut_probe_is_measured_in_every_fold_and_arm(finished: Workspace) -> None:
    plan = finished.plan
    for fold in plan.folds:
        record = read_origin(finished.synthetic(fold))
        assert set(record.pools) == {"default", "shared"}
        for pool in record.pools.values():
            # 30 steps of training leave a texture that cannot be missed
            assert pool.auc is not None
            assert pool.auc > 0.7
            assert set(pool.classes) == set(plan.slugs)
            assert all((entry.auc is None) == (entry.reason is not None) for entry in pool.classes.values())
    for arm in finished.config.challenge.arms:
        about = read_json(finished.evaluation(arm) / "arm.json")
        origins = [entry["origin"] for entry in about["folds"].values()]
        even = not any("real" in entry["stand_ins"].values() for entry in about["folds"].values())
        for origin in origins:
            assert 0.0 <= origin["shortcut_bits"] <= origin["label_origin_bits"] + 1e-6
        assert about["shortcut_bits"] == pytest.approx(
            np.mean([origin["shortcut_bits"] for origin in origins]), abs=1e-6
        )
        if arm == "classical+unwise":
            assert about["shortcut_bits"] > 0.01
        elif even:
            assert about["shortcut_bits"] == 0.0
    assert "best+synthetic" in (page := (finished.reports / "index.html").read_text(encoding="utf-8"))
    assert "shortcut bits" in page


def test_a_damaged_record_of_the_probe_is_one_line_with_the_remedy(finished: Workspace, tmp_path: Path) -> None:
    record = read_json(finished.synthetic("f0") / ORIGIN_FILE)
    for broken in ({**record, "pools": {}}, {**record, "pools": {"default": {"auc": "high"}}}, []):
        write_json(tmp_path / ORIGIN_FILE, broken)
        with pytest.raises(ArtifactError, match="dvc repro synthesize"):
            read_origin(tmp_path)


def test_a_class_that_its_own_reals_stand_in_for_gives_its_label_away() -> None:
    found = {"n_real": 9, "n_objects": 9, "n_synthetic": 9, "auc": 1.0, "error": 0.0, "reason": None}
    pool = {"auc": 1.0, "error": 0.0, "hit": 1.0, "false_alarm": 0.0, "classes": dict.fromkeys("ab", found)}
    record = OriginRecord.model_validate({"pools": {"default": pool}})
    policy = MixingPolicy("synthetic", "default", (0.25, 0.25))
    assert origin_of_fold(policy, ["a", "b"], {"a": "shared"}, record)["shortcut_bits"] == 0.0
    left_out = origin_of_fold(policy, ["a", "b"], {"a": "real"}, record)
    bits = MixingPolicy("x", "default", (0.0, 0.25)).dependence()
    assert left_out == {"auc": 1.0, "label_origin_bits": round(bits, 6), "shortcut_bits": round(bits, 6)}
    blind = OriginRecord.model_validate({"pools": {"default": {**pool, "auc": None, "hit": None, "false_alarm": None}}})
    assert origin_of_fold(policy, ["a", "b"], {}, blind)["shortcut_bits"] is None
    assert mean_bits({"f0": {"origin": {"shortcut_bits": None}}, "f1": {"origin": left_out}}) == round(bits, 6)
    assert mean_bits({"f0": {"origin": {"shortcut_bits": None}}}) is None
    assert mean_bits({"f0": {"arm": "classical", "stand_ins": {}}}) is None  # a search chose no synthetic images


def test_worth_says_why_where_no_class_is_large_enough_for_a_part(finished: Workspace, tmp_path: Path) -> None:
    # nothing is trained: the only part asked for is the whole
    kept = finished.worth.read_bytes()
    text = (finished.root / "params.yaml").read_text()
    try:
        (finished.root / "params.yaml").write_text(text + "worth: {fractions: [0.999]}\n")
        found = run_worth(Workspace(finished.root), CPU, n_workers=1)
    finally:
        (finished.root / "params.yaml").write_text(text)
        finished.worth.write_bytes(kept)
    assert found["more_real_images"]["mean"] is None
    assert "enough objects" in found["reason"]
    assert found["reason"] in worth_sentence(found)
