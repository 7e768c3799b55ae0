"""bench-gain: how splits are drawn, and the arithmetic of its tables. Nothing is trained."""

import numpy as np
import pytest


def test_draws_are_disjoint_and_the_smaller_is_part_of_the_larger(script):
    take = script("gain_sets")._take
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 400).astype(np.int64)
    order = rng.permutation(400)
    seen: set[int] = set()
    for split in range(3):
        train, val = take(labels, order, split, 30, {0: (25, 5), 1: (25, 5), 2: (4, 2)})
        larger, same_val = take(labels, order, split, 30, {0: (25, 5), 1: (25, 5), 2: (8, 2)})
        assert np.bincount(labels[train]).tolist() == [25, 25, 4]
        assert np.bincount(labels[val]).tolist() == [5, 5, 2]
        assert set(train.tolist()) < set(larger.tolist())
        assert val.tolist() == same_val.tolist()
        rows = {*larger.tolist(), *val.tolist()}
        assert len(rows) == len(larger) + len(val), "an image is trained on and validated on"
        assert not rows & seen
        seen |= rows
    with pytest.raises(SystemExit, match="class 0 has"):
        take(labels, order, 8, 30, {0: (25, 5)})


def test_the_halves_of_the_digits_share_no_image(script, tmp_path):
    one = script("gain_sets").SETS["digits"]
    script("gain_sets").lay_out_project(one, 3, tmp_path)
    with np.load(tmp_path / "data" / "raw" / "images.npz") as archive:
        sides = {side: archive[f"x_{side}"] for side in ("train", "val", "test")}
        assert np.bincount(archive["y_train"])[[3, 8]].tolist() == [15, 15]
    pixels = {side: {image.tobytes() for image in images} for side, images in sides.items()}
    assert not pixels["train"] & pixels["test"]
    assert not pixels["val"] & pixels["test"]
    assert not pixels["train"] & pixels["val"]


def test_every_set_has_complete_parameters(script, tmp_path):
    from synthgen.stages.workspace import Workspace

    sets = script("gain_sets")
    for one in sets.SETS.values():
        (tmp_path / one.name / "data" / "raw").mkdir(parents=True)
        (tmp_path / one.name / "data" / "raw" / ".laid_out").touch()
        sets.lay_out_project(one, 1, tmp_path / one.name)
        config = Workspace(tmp_path / one.name).config
        assert config.seed == 1
        assert config.plan.scarce == list(one.scarce)


def record(recalls, chosen="b"):
    """Two classes, one scarce; arms a, b and b+synthetic in as many splits as there are rows."""
    splits = {}
    for split, row in enumerate(recalls):
        arms = {
            arm: {
                "recall": {"rare": value, "plenty": 0.9},
                "recall_after": {"rare": value, "plenty": 0.9},
                "balanced_accuracy": (value + 0.9) / 2,
                "scarce_auc": 0.8,
            }
            for arm, value in zip(("a", "b", "b+synthetic"), row, strict=True)
        }
        splits[str(split)] = {
            "folds": {"f0": {"arms": arms, "chosen": chosen}},
            "seconds": {"all": 60.0},
            "params": "0" * 64,
            "versions": {"dataset": 1, "gan": 1, "selection": 1, "classifier": 1, "metrics": 1, "report": 1},
        }
    return {"scarce": ["rare"], "splits": splits}


def test_the_gain_is_paired_by_split_and_its_interval_is_students(script):
    from scipy.stats import ttest_1samp

    table = script("gain_table")
    rows = [[0.5, 0.60, 0.70], [0.4, 0.70, 0.72], [0.6, 0.50, 0.61]]
    units = table.read_units(record(rows))
    differences = units.recall["b+synthetic"] - units.of_chosen(units.recall)
    np.testing.assert_allclose(differences, [0.10, 0.02, 0.11])
    low, high = ttest_1samp(differences, 0.0).confidence_interval(0.95)
    assert table.interval(differences, 0.0) == (
        f"{100 * differences.mean():+.2f} [{100 * low:+.2f}, {100 * high:+.2f}], n = 3"
    )
    wider = table.interval(differences, 1.0)
    assert wider != table.interval(differences, 0.0)
    text = table.table(script("gain_sets").SETS["digits"], record(rows))
    # error of the chosen arm 0.4, with synthetic images 0.3233
    assert "| `b+synthetic` | 67.67 |" in text
    assert "-19 %" in text


def test_an_arm_that_not_all_splits_have_is_paired_within_its_own(script):
    table, one = script("gain_table"), script("gain_sets").SETS["digits"]
    found = record([[0.5, 0.60, 0.70], [0.4, 0.70, 0.72], [0.6, 0.50, 0.61]])
    del found["splits"]["0"]["folds"]["f0"]["arms"]["b+synthetic"]
    units = table.read_units(found)
    differences = units.recall["b+synthetic"] - units.of_chosen(units.recall)
    np.testing.assert_allclose(differences, [np.nan, 0.02, 0.11])
    text = table.table(one, found)
    assert "| `b+synthetic` (2 units) | 66.50 |" in text
    assert "-16 %" in text  # errors 0.30 and 0.50, with synthetic images 0.28 and 0.39
    assert "n = 2" in text
    del found["splits"]["1"]["folds"]["f0"]["arms"]["b+synthetic"]
    assert "b+synthetic" not in table.table(one, found)


def test_the_table_says_which_splits_were_measured_differently_and_what_they_took(script):
    one, table = script("gain_sets").SETS["digits"], script("gain_table").table
    found = record([[0.5, 0.60, 0.70], [0.4, 0.70, 0.72]])
    first, second = found["splits"].values()
    first["versions"] |= {"report": 2, "probe": 1}  # no arm's numbers depend on them
    assert "different sets" not in table(one, found)
    first["cores"], second["cores"] = 1, 4
    first["seconds"], second["seconds"] = {"evaluate a": 300.0, "evaluate b": 60.0}, {"all": 30.0}
    assert "Time of a split: 4 core-minutes." in table(one, found)  # 6 and 2
    for part in ("dataset", "gan", "selection", "classifier", "metrics"):
        first["versions"][part] = 2
        assert "with 2 different sets" in table(one, found), part
        first["versions"][part] = 1
    first["params"] = "1" * 64
    assert "with 2 different sets" in table(one, found)


def test_a_project_of_another_version_is_planned_anew_into_the_same_folds(script, tmp_path, monkeypatch):
    from synthgen.records import load_plan, save_plan
    from synthgen.versions import VERSIONS

    class StopHere(Exception):
        pass

    def stop(*_):
        raise StopHere

    gain = script("gain")
    script("gain_sets").lay_out_project(script("gain_sets").SETS["digits"], 0, tmp_path)
    raw = tmp_path / "data" / "raw" / "images.npz"
    with np.load(raw) as archive:
        few = {name: archive[name][::7] for name in archive.files}
    np.savez(raw, **few)
    monkeypatch.setattr(gain, "run_prepare", stop)
    with pytest.raises(StopHere):
        gain.run_project(tmp_path, "models", None)
    plan, folds = load_plan(tmp_path / "plan.yaml"), (tmp_path / "folds.csv").read_bytes()
    save_plan(tmp_path / "plan.yaml", plan.model_copy(update={"versions": {**VERSIONS, "dataset": 0}}))
    (tmp_path / "folds.csv").write_text("damaged")
    with pytest.raises(StopHere):
        gain.run_project(tmp_path, "models", None)
    assert load_plan(tmp_path / "plan.yaml") == plan
    assert (tmp_path / "folds.csv").read_bytes() == folds
