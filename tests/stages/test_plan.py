"""`synthgen plan`: scarce classes by the stated rule, targets, and folds that hold still."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from ruamel.yaml import YAML
from scipy.ndimage import gaussian_filter

from synthgen.config import PlanSection
from synthgen.dataset.folds import read_folds
from synthgen.dataset.prepared import load_prepared
from synthgen.errors import ConfigError, LeakError, PlanError, SourceError
from synthgen.metrics.power import groups_needed, smallest_gain_at_best
from synthgen.records import load_plan
from synthgen.stages.plan import choose_scarce, run_plan, target_count
from synthgen.stages.prepare import run_prepare
from synthgen.stages.tables import power_table
from synthgen.stages.workspace import Workspace


def picture(name, size=16):
    generator = np.random.default_rng(list(name.encode()))
    smooth = gaussian_filter(generator.normal(size=(size, size)), 1.5)
    return np.clip(128 + 40 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def put(root, path, image=None):
    target = root / "data" / "raw" / path
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(path) if image is None else image).save(target)


def word(number):
    return "".join(chr(97 + int(digit)) for digit in str(number))


def project(root, counts, *, split=None, source=None, **plan):
    for name, count in counts.items():
        for i in range(count):
            put(root, f"{split + '/' if split else ''}{name}/{word(i)}.png")
    params = {
        "source": {"type": "imagefolder", **(source or {})},
        "plan": {"folds": 4, **plan},
        "prepare": {"image_size": 16, "channels": 1},
        "evaluate": {"arms": ["real"]},
        "challenge": {"arms": ["balanced+synthetic"]},
    }
    with (root / "params.yaml").open("w", encoding="utf-8") as stream:
        YAML().dump(params, stream)
    return Workspace(root)


def test_scarce_classes_targets_and_strategy_lists(tmp_path):
    plan = run_plan(project(tmp_path, {"big": 24, "mid dle": 20, "rare": 8, "tiny": 1}))
    assert plan == load_plan(tmp_path / "plan.yaml")
    assert plan.mode == "folds"
    assert plan.folds == plan.pretrain_folds == ["f0", "f1", "f2", "f3", "final"]
    assert [plan.classes[slug].class_name for slug in plan.slugs] == ["big", "mid dle", "rare", "tiny"]
    # median of 24, 20, 8, 1 is 14: below 7 is scarce; the user's share is 0.5.
    assert plan.scarce_slugs == ["tiny"]
    assert plan.adapt_slugs == []
    assert plan.classes["tiny"].target == 0
    assert {plan.classes[slug].target for slug in plan.slugs if slug != "tiny"} == {8}


def test_the_list_of_the_user_comes_first(tmp_path):
    plan = run_plan(project(tmp_path, {"big": 24, "mid": 20, "rare": 8}, scarce=["rare", "mid"], target=30))
    assert plan.scarce_slugs == plan.adapt_slugs == ["mid", "rare"]
    assert set(plan.targets.values()) == {30}


@pytest.mark.parametrize(
    ("strategy", "pretrain", "adapt", "scratch"),
    [
        ("adapted", True, ["rare"], []),
        ("shared", True, [], []),
        ("scratch", False, [], ["big", "mid", "rare"]),
    ],
)
def test_what_each_strategy_trains(tmp_path, strategy, pretrain, adapt, scratch):
    plan = run_plan(project(tmp_path, {"big": 20, "mid": 20, "rare": 8}, strategy=strategy))
    assert bool(plan.pretrain_folds) is pretrain
    assert (plan.adapt_slugs, plan.scratch_slugs) == (adapt, scratch)


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("- real", "- reel", r"evaluate\.arms: 'reel'"),
        ("- balanced+synthetic", "- best+synthetik", r"challenge\.arms: 'best\+synthetik'"),
        ("- balanced+synthetic", "- best+shared", "scratch has not"),
    ],
)
def test_arms_that_cannot_run_are_refused_before_anything_is_trained(tmp_path, old, new, match):
    workspace = project(tmp_path, {"big": 8, "rare": 4}, strategy="scratch")
    text = (tmp_path / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=match):
        run_plan(workspace)


def test_a_val_side_without_a_test_side_joins_the_folds(tmp_path, caplog):
    for split, count in (("train", 12), ("val", 4)):
        workspace = project(tmp_path, {"big": count, "rare": count}, split=split)
    plan = run_plan(workspace)
    assert (plan.mode, plan.classes["big"].images) == ("folds", 16)
    assert "no test side" in caplog.text


def test_the_rules_in_numbers():
    section = PlanSection()
    counts = {"a": 100, "b": 90, "c": 49, "d": 30}
    assert choose_scarce(section, counts) == ["d"]  # the median is 69.5
    assert target_count(section, counts, ["d"]) == 90 - 30
    assert target_count(section, counts, ["c", "d"]) == 95 - 30
    assert target_count(section, {"a": 50, "b": 48}, []) == 48
    assert target_count(PlanSection(target=7), counts, ["d"]) == 7
    assert target_count(section, {}, []) == 0
    with pytest.raises(ConfigError, match=r"plan\.scarce.*'fray '.*did you mean 'fray'"):
        choose_scarce(PlanSection(scarce=["fray "]), {"fray": 3, "free": 9})


def test_a_second_plan_writes_nothing(tmp_path):
    workspace = project(tmp_path, {"big": 12, "rare": 5})
    run_plan(workspace)
    stamps = [path.stat().st_mtime_ns for path in (workspace.plan_file, workspace.folds_file)]
    run_plan(Workspace(tmp_path))
    assert [path.stat().st_mtime_ns for path in (workspace.plan_file, workspace.folds_file)] == stamps
    assert list((tmp_path / ".synthgen" / "scan").iterdir()) == []


@pytest.mark.parametrize("simulated", [False, True])
def test_adding_images_moves_no_other_image(tmp_path, simulated):
    source = {"simulate_scarcity": {"keep": {"big": 6}}} if simulated else None
    workspace = project(tmp_path, {"big": 20, "rare": 5}, source=source)
    run_plan(workspace)
    known = read_folds(workspace.folds_file)
    for path in ("big/zz_new.png", "rare/00new.png", "other/x.png", "other/y.png"):
        put(tmp_path, path)
        run_plan(Workspace(tmp_path))
        now = read_folds(workspace.folds_file)
        assert len(now) == len(known) + 1
        assert {digest: now[digest] for digest in known} == known
        known = now
    (tmp_path / "data/raw/big/a.png").unlink()
    run_plan(Workspace(tmp_path))
    after = read_folds(workspace.folds_file)
    assert len(after) == len(known) - 1
    assert after.items() <= known.items()


def test_reassign_forgets_and_a_new_number_of_folds_asks_for_it(tmp_path):
    workspace = project(tmp_path, {"big": 20, "rare": 8})
    run_plan(workspace)
    again = project(tmp_path, {}, folds=8)
    with pytest.raises(PlanError, match=r"folds is 8, but folds\.csv was drawn for 4 .*--reassign"):
        run_plan(again)
    run_plan(again, reassign=True)
    assert {image.fold for image in read_folds(workspace.folds_file).values()} == set(range(8))


def test_a_damaged_plan_is_written_again(tmp_path):
    workspace = project(tmp_path, {"big": 12, "rare": 5})
    plan = run_plan(workspace)
    workspace.plan_file.write_text("version: 0\n", encoding="utf-8")
    assert run_plan(Workspace(tmp_path)) == plan == load_plan(workspace.plan_file)


@pytest.mark.parametrize("count", range(9))
def test_a_class_of_a_few_images_is_planned_or_reported_as_too_few(tmp_path, count):
    if count == 0:
        (tmp_path / "data/raw/few").mkdir(parents=True)
        with pytest.raises(SourceError, match="few"):
            run_plan(project(tmp_path, {"big": 20, "mid": 20}))
        return
    plan = run_plan(project(tmp_path, {"big": 20, "mid": 20, "few": count}))
    folds = [image.fold for image in read_folds(tmp_path / "folds.csv").values()]
    assert len(folds) == 40 + count
    # 4 folds, of which one tests and one validates: the worst fold trains on what the two fullest leave.
    per_fold = [count // 4 + (j < count % 4) for j in range(4)]
    least, most = count - sum(sorted(per_fold)[-2:]), count - sum(sorted(per_fold)[:2])
    served = plan.classes["few"].target > 0
    assert served == ("few" in plan.adapt_slugs)
    assert plan.classes["few"].scarce
    if least >= 2:
        assert served
    if most < 2:
        assert not served


def test_two_folds_leave_nothing_to_train_on(tmp_path):
    with pytest.raises(ConfigError, match="set it to 3 or more"):
        run_plan(project(tmp_path, {"big": 12, "rare": 5}, folds=2))


def test_scarcity_of_an_unknown_class_names_the_nearest(tmp_path):
    source = {"simulate_scarcity": {"keep": {"bgi": 3}}}
    with pytest.raises(ConfigError, match="'bgi' does not exist; did you mean 'big'"):
        run_plan(project(tmp_path, {"big": 12, "rare": 5}, source=source))


def test_one_image_with_two_labels_is_refused_naming_both(tmp_path):
    workspace = project(tmp_path, {"big": 12, "rare": 5})
    put(tmp_path, "rare/copy.png", picture("big/c.png"))
    with pytest.raises(LeakError, match=r"big/c\.png.*rare/copy\.png"):
        run_plan(workspace)


def test_a_new_picture_of_a_known_object_takes_its_fold(tmp_path):
    workspace = project(tmp_path, {"big": 20, "rare": 6})
    run_plan(workspace)
    known = read_folds(workspace.folds_file)
    put(tmp_path, "rare/zz.png", np.clip(picture("rare/c.png") * 0.97, 0, 255).astype(np.uint8))
    plan = run_plan(Workspace(tmp_path))
    assert (plan.classes["rare"].images, plan.classes["rare"].groups) == (7, 6)
    (added,) = read_folds(workspace.folds_file).keys() - known.keys()
    twin = Workspace(tmp_path)
    original = known[_sha(picture("rare/c.png"))]
    assert read_folds(twin.folds_file)[added] == original


def _sha(image):
    from synthgen.dataset.prepared import pixel_sha256

    return pixel_sha256(image[..., None])


def frozen_project(root, **plan):
    for split, count in (("train", 12), ("val", 3), ("test", 5)):
        project(root, {"big": count, "rare": count // 2 + 1}, split=split, **plan)
    return Workspace(root)


def test_a_frozen_test_set_is_left_out_of_the_folds(tmp_path):
    plan = run_plan(frozen_project(tmp_path))
    assert plan.mode == "frozen"
    assert plan.classes["big"].images == 12
    assert len(read_folds(tmp_path / "folds.csv")) == 12 + 7


def test_fewer_generators_than_parts_where_the_test_set_is_the_users(tmp_path):
    plan = run_plan(frozen_project(tmp_path, generator_seeds=1))
    assert plan.folds == plan.pretrain_folds == ["f0", "final"]
    assert plan.parts == 4
    # the pool is still cut into four, for the cross-fitted choice of the arm, and a second plan knows them
    assert {known.fold for known in read_folds(tmp_path / "folds.csv").values()} == {0, 1, 2, 3}
    run_prepare(Workspace(tmp_path))
    data = load_prepared(tmp_path / "data" / "prepared")
    assert len(data.crossfit("f0")) == 4
    assert len(data.split("f0").train) == 12 + 7
    assert run_plan(Workspace(tmp_path)) == plan
    assert run_plan(frozen_project(tmp_path, generator_seeds=2)).folds == ["f0", "f1", "final"]
    with pytest.raises(PlanError, match="drawn for 4 folds"):
        run_plan(frozen_project(tmp_path, folds=3, generator_seeds=1))


def test_generator_seeds_ask_for_a_test_set_and_for_enough_folds(tmp_path):
    with pytest.raises(ConfigError, match="no test side"):
        run_plan(project(tmp_path / "own", {"big": 12, "rare": 4}, generator_seeds=1))
    with pytest.raises(ConfigError, match=r"generator_seeds is 5, over plan\.folds = 4"):
        run_plan(frozen_project(tmp_path / "frozen", generator_seeds=5))


@pytest.mark.parametrize("side", ["val", "test"])
def test_a_leak_in_a_pre_split_set_is_refused_or_taken_out(tmp_path, side):
    workspace = frozen_project(tmp_path)
    put(tmp_path, f"{side}/big/leak.png", np.clip(picture("train/big/c.png") * 0.97, 0, 255).astype(np.uint8))
    with pytest.raises(LeakError, match=rf"train/big/c\.png \(train\) ~ {side}/big/leak\.png \({side}\)"):
        run_plan(workspace)
    values = YAML(typ="safe").load((tmp_path / "params.yaml").read_text())
    values["prepare"]["groups"] = {"leaks": "quarantine"}
    with (tmp_path / "params.yaml").open("w", encoding="utf-8") as stream:
        YAML().dump(values, stream)
    plan = run_plan(Workspace(tmp_path))
    assert plan.classes["big"].images == 11
    assert _sha(picture("train/big/c.png")) not in read_folds(tmp_path / "folds.csv")


def test_test_groups_are_counted_for_people_and_no_stage_depends_on_them(tmp_path):
    workspace = project(tmp_path, {"big": 24, "rare": 12}, source={"simulate_scarcity": {"keep": {"rare": 5}}})
    plan = run_plan(workspace)
    assert (plan.classes["rare"].groups, plan.test_groups) == (5, {"big": 24, "rare": 12})  # surplus is tested too
    stages = YAML(typ="safe").load(Path(__file__).parents[2] / "dvc.yaml")["stages"].values()
    named = [
        key for stage in stages for entry in stage["params"] if isinstance(entry, dict) for key in entry["plan.yaml"]
    ]
    assert named
    assert not [key for key in named if key.startswith("test_groups")]


def test_only_the_users_own_test_side_counts_where_there_is_one(tmp_path):
    project(tmp_path, {"big": 3, "rare": 2}, split="test")
    plan = run_plan(project(tmp_path, {"large": 12, "rare": 9, "big": 12}, split="train"))
    assert plan.mode == "frozen"
    assert plan.test_groups == {"big": 3, "large": 0, "rare": 2}


def test_sizes_says_before_training_what_the_test_set_could_show(tmp_path, capsys):
    workspace = project(tmp_path, {"big": 24, "mid": 22, "rare": 8, "tiny": 3}, scarce=["rare", "tiny"])
    run_plan(workspace)
    Console(width=120).print(power_table(workspace))
    said = capsys.readouterr().out
    gain = smallest_gain_at_best(8, n_folds=4, n_scarce=2, level=0.025)
    needed = groups_needed(0.05, n_folds=4, n_scarce=2, level=0.025)
    rows = {line.split()[1]: " ".join(line.split()) for line in said.splitlines() if line.startswith("│")}
    assert rows["rare"] == f"│ rare │ 8 │ {100 * gain:.1f} │ {needed} │"
    assert rows["tiny"] == f"│ tiny │ 3 │ none: under 5 objects │ {needed} │"
    assert "none is lost" in said
    text = (tmp_path / "plan.yaml").read_text()
    (tmp_path / "plan.yaml").write_text(text.replace("test_groups:\n  big: 24\n  mid: 22\n  rare: 8\n  tiny: 3\n", ""))
    with pytest.raises(PlanError, match="does not count the test groups of 'rare'"):
        power_table(Workspace(tmp_path))


def test_a_plan_of_an_older_form_is_written_again_with_what_the_graph_wants(tmp_path):
    workspace = project(tmp_path, {"big": 12, "rare": 4}, scarce=["rare"])
    run_plan(workspace)
    whole = workspace.plan_file.read_text(encoding="utf-8")
    workspace.plan_file.write_text(whole.replace("scarce_slugs:\n- rare\n", ""), encoding="utf-8")
    assert load_plan(workspace.plan_file).scarce_slugs == ["rare"]  # filled in, so that stages can read it
    run_plan(workspace)
    assert workspace.plan_file.read_text(encoding="utf-8") == whole
    with pytest.raises(PlanError, match="scarce_slugs"):
        workspace.plan_file.write_text(whole.replace("scarce_slugs:\n- rare\n", "scarce_slugs: []\n"), encoding="utf-8")
        load_plan(workspace.plan_file)
