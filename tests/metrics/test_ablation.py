"""ablation: pairing, counts and the variants' projects. Nothing is trained."""

from types import SimpleNamespace

import numpy as np

from synthgen.artifacts import write_json

VALUES = ([0.60, 0.70], [0.70, 0.72], [0.50, 0.61])
"""Recall of the scarce class in three splits: `balanced`, and every arm with synthetic images under `none`."""


def measured(value):
    """What gain.py keeps of one arm; two classes, one scarce."""
    return {
        "recall": {"rare": value, "plenty": 0.9},
        "recall_after": {"rare": value, "plenty": 0.9},
        "balanced_accuracy": (value + 0.9) / 2,
        "scarce_auc": 0.8,
    }


def ablation_record(script):
    """All variants on three splits; the n-th is better than `none` by n, 2n, 3n points."""
    ablation = script("ablation")
    variants = {}
    for place, name in enumerate(ablation.VARIANTS):
        splits = {}
        for split, (plain, value) in enumerate(VALUES):
            made = measured(value + 0.01 * place * (1 + split))
            kept = 100 - 10 * split
            side = {"candidates": 100, "kept": kept, "accepted": kept, "classes": 1, "refused": 0}
            splits[str(split)] = {
                "folds": {
                    "f0": {"arms": {"balanced": measured(plain), **dict.fromkeys(ablation.ARMS, made)}, "chosen": "x"}
                },
                "counts": {"scarce": side, "others": side, "rejected": {"too_easy": 100 - kept}},
                "seconds": {"all": 60.0},
                "versions": {"selection": 1},
            }
        variants[name] = {"splits": splits}
    return {"scarce": ["rare"], "variants": variants}


def test_variants_are_paired_to_none_on_the_splits_that_all_have(script):
    from scipy.stats import ttest_1samp

    ablation, one = script("ablation"), script("gain_sets").SETS["mnist_develop_n10"]
    found = ablation_record(script)
    text = ablation.table(one, found)
    differences = np.array([0.01, 0.02, 0.03])  # of the second variant, split by split
    low, high = ttest_1samp(differences, 0.0).confidence_interval(0.95)
    shown = f"{100 * differences.mean():+.2f} [{100 * low:+.2f}, {100 * high:+.2f}], n = 3"
    second = [line for line in text.splitlines() if line.startswith("| `agreement_50` | 69.67 |")]
    assert len(second) == len(ablation.ARMS)
    assert all(shown in line for line in second)
    assert "| `none` | nothing; no rule is on | 90.0 % | 90.0 % | 90 | 0 of 6 |" in text
    assert "3 of 10 splits" in text

    del found["variants"]["band_50_90"]["splits"]["1"]
    assert ablation.common_splits(found) == ["0", "2"]
    assert "n = 2" in ablation.table(one, found)
    assert "no split has all variants yet" in ablation.table(one, {"variants": {}})


def test_each_variant_is_valid_and_changes_one_thing(script):
    from synthgen.config import AdaptSection, MixingSection, SynthesizeSection

    ablation = script("ablation")
    defaults = {
        "synthesize": SynthesizeSection(**ablation.OFF),
        "adapt": AdaptSection(),
        "policy": MixingSection(share=ablation.SHARE),
    }
    for name, changes in ablation.VARIANTS.items():
        assert len(changes) == (name != ablation.NONE)
        for kind, values in changes.items():
            before = defaults[kind]
            after = type(before).model_validate({**before.model_dump(), **values})
            differing = {key for key in type(before).model_fields if getattr(before, key) != getattr(after, key)}
            assert differing == set(values), name
    assert ablation.VARIANTS["agreement_50"]["synthesize"]["min_agreement"] == SynthesizeSection().min_agreement


def test_a_variants_project_holds_the_bases_files_and_cannot_change_them(script, tmp_path):
    ablation = script("ablation")
    base, folder = tmp_path / "base", tmp_path / "variant"
    held = ("data/prepared/images.npy", "data/evaluation/balanced/arm.json", "models/f0/shared/model.json")
    for name in (*held, "data/evaluation/mild/arm.json", "data/synthetic/f0/acceptance.json"):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text(name)
    (folder / "models" / "f9").mkdir(parents=True)
    (folder / "stages.json").write_text("{}")
    ablation.link_base(base, folder, ["balanced"])
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == sorted(
        [*held, "stages.json"]
    )
    write_json(folder / held[2], {"other": 1})
    assert (base / held[2]).read_text() == held[2]


def test_what_selection_did_is_summed_by_side_and_a_refused_class_keeps_its_count(script, tmp_path):
    from synthgen.records import ClassPlan
    from synthgen.stages.workspace import Workspace

    def entry(candidates, accepted, rejected, refused=None):
        return {"candidates": candidates, "accepted": accepted, "rejected": rejected, "refused": refused}

    workspace = Workspace(tmp_path)
    classes = {
        slug: ClassPlan(
            class_name=slug, label=label, images=9, groups=9, scarce=slug != "c", target=5, generator="adapted"
        )
        for label, slug in enumerate("abc")
    }
    workspace.__dict__["plan"] = SimpleNamespace(
        folds=["f0"], measured_folds=["f0"], slugs=list("abc"), classes=classes
    )
    workspace.synthetic("f0").mkdir(parents=True)
    write_json(
        workspace.synthetic("f0") / "acceptance.json",
        {
            "a": entry(10, 5, {"too_easy": 5}),
            "a.shared": entry(99, 5, {"too_easy": 94}),
            "b": entry(10, 0, {"too_easy": 9}, "only 1 of 10"),
            "c": entry(5, 5, {"too_easy": 0}),
        },
    )
    counts = script("ablation").accepted_counts(workspace)
    assert counts["scarce"] == {"candidates": 20, "kept": 6, "accepted": 5, "classes": 2, "refused": 1}
    assert counts["others"] == {"candidates": 5, "kept": 5, "accepted": 5, "classes": 1, "refused": 0}
    assert counts["rejected"] == {"too_easy": 14}
