from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from synthgen.dataset.predictions import PREDICTIONS_SCHEMA, concatenate, load_predictions, one_part, save_predictions
from synthgen.errors import ArtifactError, MeasurementError


def piece(fold="f0", repeat=0, part="test", n=6, order=None, seed=0):
    order = np.arange(n) if order is None else np.asarray(order)
    logits = np.random.default_rng([seed, repeat]).standard_normal((n, 3)).astype(np.float32)
    return one_part(
        fold, repeat, part,
        sha256=np.asarray([f"{i:02d}" for i in range(n)])[order],
        groups=np.asarray([f"g{i // 2}" for i in range(n)])[order],
        labels=(np.arange(n) % 3)[order],
        logits=logits[order],
    )  # fmt: skip


def test_round_trip_in_one_order(tmp_path):
    save_predictions(tmp_path / "a.parquet", concatenate([piece(order=[5, 2, 0, 1, 4, 3]), piece(repeat=1)]))
    save_predictions(tmp_path / "b.parquet", concatenate([piece(repeat=1), piece()]))
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert pq.read_schema(tmp_path / "a.parquet").names == PREDICTIONS_SCHEMA.names
    found = load_predictions(tmp_path / "a.parquet")
    np.testing.assert_array_equal(found.logits[:6], piece().logits)
    assert found.n_classes == 3 and found.labels.dtype == np.int64


def test_aligned_orders_images_and_repeats():
    predictions = concatenate([piece(repeat=1, order=[3, 1, 0, 2, 5, 4]), piece(), piece(part="val", n=3)])
    aligned = predictions.aligned("f0", "test")
    assert aligned.sha256.tolist() == [f"{i:02d}" for i in range(6)]
    np.testing.assert_array_equal(aligned.logits[0], piece().logits)
    np.testing.assert_array_equal(aligned.logits[1], piece(repeat=1).logits)
    assert aligned.groups.tolist() == ["g0", "g0", "g1", "g1", "g2", "g2"]


def test_repeats_with_other_images_are_refused():
    with pytest.raises(MeasurementError, match=r"repeat 1 holds other images \(5\)"):
        concatenate([piece(), piece(repeat=1, n=5)]).aligned("f0", "test")
    with pytest.raises(MeasurementError, match="no 'test' predictions of fold f7"):
        piece().aligned("f7", "test")


def test_selection_prefers_cross_fitted_rows_and_never_sees_the_test_side():
    everything = concatenate(
        [piece(), piece(part="val", n=3), piece(part="val", n=3, repeat=1), piece(part="inner", n=4)]
    )
    _, logits, _ = everything.selection("f0")
    np.testing.assert_array_equal(logits, piece(part="inner", n=4).logits)
    labels, logits, groups = concatenate(
        [piece(n=0), piece(part="val", n=3), piece(part="val", n=3, repeat=1)]
    ).selection("f0")
    assert len(labels) == len(logits) == len(groups) == 6
    with pytest.raises(MeasurementError, match="neither"):
        piece().selection("f0")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": np.full((6, 3), np.nan, np.float32)}, "diverged"),
        ({"labels": np.full(6, 3)}, "do not fit 3 logits"),
        ({"parts": np.full(6, "tset")}, "unknown part"),
        ({"repeats": np.zeros(5, dtype=np.int64)}, "different length"),
    ],
)
def test_bad_rows_are_never_written(tmp_path, change, message):
    with pytest.raises(MeasurementError, match=message):
        save_predictions(tmp_path / "p.parquet", replace(piece(), **change))
    assert not list(tmp_path.iterdir())


def test_files_that_are_something_else(tmp_path):
    path = tmp_path / "p.parquet"
    with pytest.raises(ArtifactError, match="missing"):
        load_predictions(path)
    path.write_bytes(b"PAR1 and nothing more")
    with pytest.raises(ArtifactError, match="damaged"):
        load_predictions(path)
    pq.write_table(pa.table({"fold": ["f0"]}), path)
    with pytest.raises(ArtifactError, match="holds columns"):
        load_predictions(path)
    save_predictions(path, piece())
    table = pq.read_table(path)
    ragged = table.set_column(6, "logits", pa.array([[1.0]] + [[1.0, 2.0]] * 5, type=pa.list_(pa.float32())))
    pq.write_table(ragged, path)
    with pytest.raises(ArtifactError, match="rows hold"):
        load_predictions(path)


def test_without_cross_fitting_validation_rows_of_all_folds_choose_but_none_of_the_tested_objects():
    def rows(fold, part, images):  # image k is of object k // 2
        every = piece(fold=fold, part=part, n=12, seed=int(fold[1:]))
        chosen = np.isin(every.sha256, [f"{k:02d}" for k in images])
        return replace(every, **{name: column[chosen] for name, column in vars(every).items()})

    folds = {"f0": ([0, 1, 2, 3], [4, 5, 6, 7]), "f1": ([4, 5, 6, 7], [8, 9]), "f2": ([8, 9], [0, 1, 2])}
    everything = concatenate(
        [
            rows(fold, part, images)
            for fold, sides in folds.items()
            for part, images in zip(("test", "val"), sides, strict=True)
        ]
    )
    for fold, (tested, _) in folds.items():
        labels, logits, groups = everything.selection(fold)
        expected = [
            rows(other, "val", [k for k in val if k // 2 not in {t // 2 for t in tested}])
            for other, (_, val) in folds.items()
        ]
        np.testing.assert_array_equal(logits, np.concatenate([part.logits for part in expected]))
        np.testing.assert_array_equal(labels, np.concatenate([part.labels for part in expected]))
        np.testing.assert_array_equal(groups, np.concatenate([part.groups for part in expected]))
    # what f0 is tested on may say anything: its choice stays
    disturbed = replace(
        everything,
        logits=np.where(np.isin(everything.sha256, ["00", "01", "02", "03"])[:, None], 9.0, everything.logits),
    )
    np.testing.assert_array_equal(disturbed.selection("f0")[1], everything.selection("f0")[1])
