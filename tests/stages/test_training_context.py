"""How many variants are rendered: enough for each fold, and no explosion where a fold lacks a class."""

import numpy as np

from synthgen.dataset.prepared import PreparedData
from synthgen.stages.training_context import variant_counts


def test_a_fold_without_a_class_asks_for_no_variants_of_it() -> None:
    # class 1 stands in part 0 alone, so f0 (tested there) and f2 (validated there) train on none of it
    folds = np.array([0, 1, 2] * 4 + [0] * 6)
    labels = np.array([0] * 12 + [1] * 6)
    data = PreparedData(
        images=np.zeros((18, 8, 8, 1), np.uint8),
        labels=labels,
        groups=np.arange(18).astype(np.str_),
        sha256=np.array([f"{i:02d}" for i in range(18)]),
        folds=folds,
        roles=np.full(18, "pool"),
        slugs=["a", "b"],
        class_names=["a", "b"],
        n_folds=3,
        frozen=False,
    )
    counts = variant_counts(data, ["f0", "f1", "f2"], 1200)
    assert set(counts[:12].tolist()) == {150}  # 600 draws of a over the 4 images of a fold
    assert set(counts[12:].tolist()) == {100}  # 600 draws of b over the 6 images of f1


def test_only_classes_that_are_thinned_out_ask_for_more_variants() -> None:
    labels = np.array([0] * 60 + [1] * 18)
    data = PreparedData(
        images=np.zeros((78, 8, 8, 1), np.uint8),
        labels=labels,
        groups=np.arange(78).astype(np.str_),
        sha256=np.array([f"{i:02d}" for i in range(78)]),
        folds=np.arange(78) % 3,
        roles=np.full(78, "pool"),
        slugs=["a", "b"],
        class_names=["a", "b"],
        n_folds=3,
        frozen=False,
    )
    folds = ["f0", "f1", "f2"]
    whole, thin = variant_counts(data, folds, 1200), variant_counts(data, folds, 1200, thinnest={1: 0.5})
    np.testing.assert_array_equal(thin[labels == 0], whole[labels == 0])
    # 600 draws of b over the 6 images that a fold trains on, then over half of them
    assert set(whole[labels == 1].tolist()) == {100}
    assert set(thin[labels == 1].tolist()) == {200}
    np.testing.assert_array_equal(variant_counts(data, folds, 1200, {0: 1.0, 1: 1.0}), whole)
