import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

from synthgen.artifacts import read_json, sha256_file, write_json
from synthgen.dataset.shards import SyntheticRows, read_images, write_synthetic_shard
from synthgen.errors import ArtifactError
from synthgen.records import FINAL
from synthgen.stages.assemble import run_assemble


def test_real_and_synthetic_rows_are_all_there(finished_run: Any) -> None:
    run_assemble(finished_run.workspace)
    folder = finished_run.workspace.augmented
    for k, slug in enumerate(finished_run.plan.slugs):
        real = read_images(folder / f"real-{slug}.parquet", ["source_sha256", "origin", "split", "fold", "group"])
        expected = sorted(
            sha for sha, label in zip(finished_run.sha256, finished_run.labels, strict=True) if label == k
        )
        assert real.columns["source_sha256"].tolist() == expected
        assert set(real.labels) == {k}
        assert {*real.columns["origin"], *real.columns["split"], *real.columns["fold"]} == {"real", "train", FINAL}
        synthetic = read_images(folder / f"synthetic-{slug}.parquet", ["origin", "seed"])
        assert np.array_equal(synthetic.images, finished_run.synthetic[slug].images)
        assert set(synthetic.columns["origin"]) == {"synthetic"}


def test_summary_counts_and_digests(finished_run: Any) -> None:
    run_assemble(finished_run.workspace)
    folder = finished_run.workspace.augmented
    summary = read_json(folder / "summary.json")
    assert (summary["n_real"], summary["n_synthetic"]) == (16, 12)
    assert summary["classes"]["dog"]["real"] == 4
    assert summary["classes"]["dog"]["synthetic"] == 6
    shards = {path.name for path in folder.glob("*.parquet")}
    assert set(summary["files"]) == shards
    for name, facts in summary["files"].items():
        assert facts == {"sha256": sha256_file(folder / name), "bytes": (folder / name).stat().st_size}


def test_equal_inputs_give_equal_bytes(finished_run: Any) -> None:
    run_assemble(finished_run.workspace)
    folder = finished_run.workspace.augmented
    first = {path.name: sha256_file(path) for path in folder.iterdir()}
    run_assemble(finished_run.workspace)
    assert first == {path.name: sha256_file(path) for path in folder.iterdir()}


def test_the_card_says_what_else_samples_between_reals_are_made_from(finished_run: Any) -> None:
    run_assemble(finished_run.workspace)
    card = finished_run.workspace.augmented / "README.md"
    plain = card.read_text(encoding="utf-8")
    path = finished_run.workspace.synthetic(FINAL) / "acceptance.json"
    acceptance = read_json(path)
    write_json(path, acceptance | {"dog": acceptance["dog"] | {"projection": {"reals": 4}}})
    run_assemble(finished_run.workspace)
    told = card.read_text(encoding="utf-8")
    assert "SLUG.latents.safetensors" in told
    added = set(told.splitlines()) - set(plain.splitlines())
    assert len(told.splitlines()) - len(plain.splitlines()) == len(added) == 3


def test_data_card_header_and_facts(finished_run: Any) -> None:
    run_assemble(finished_run.workspace)
    folder = finished_run.workspace.augmented
    text = (folder / "README.md").read_text(encoding="utf-8")
    _, header, body = text.split("---\n", 2)
    card = YAML(typ="safe", pure=True).load(header)
    configs = {config["config_name"]: config["data_files"] for config in card["configs"]}
    assert set(configs) == {"default", "real", "synthetic"}
    for entries in configs.values():
        patterns = entries[0]["path"]
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            assert list(folder.glob(pattern))
    assert "license" not in card
    for fact in (
        "16 real images of 16 objects and 12 synthetic images in 2 classes",
        "It was simulated",
        "66.7\u00a0% of 9",
        "0123456789abcdef",
        "25 % of the draws",
        "**all** classes at **one** rate",
        "The licence of the raw data applies",
    ):
        assert fact in body


def test_hostile_names_cannot_become_markup_in_the_card(finished_run: Any) -> None:
    run_assemble(finished_run.workspace)
    text = (finished_run.workspace.augmented / "README.md").read_text(encoding="utf-8")
    assert "<img" not in text
    assert "\u202e" not in text
    assert "{{" not in text
    assert "&#60;img" in text
    rows = [line for line in text.splitlines() if line.startswith("| ") and "`0123456789abcdef`" in line]
    assert len(rows) == 2
    assert {len(re.findall(r"\|", row)) for row in rows} == {11}


def test_croissant_names_every_file_with_its_digest(finished_run: Any) -> None:
    run_assemble(finished_run.workspace)
    folder = finished_run.workspace.augmented
    croissant = read_json(folder / "croissant.json")
    assert croissant["@type"] == "sc:Dataset"
    assert croissant["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    objects = {entry["@id"]: entry for entry in croissant["distribution"] if entry["@type"] == "cr:FileObject"}
    assert {name: entry["sha256"] for name, entry in objects.items()} == {
        path.name: sha256_file(path) for path in folder.glob("*.parquet")
    }
    known = {entry["@id"] for entry in croissant["distribution"]}
    columns = {field["source"]["extract"]["column"] for field in croissant["recordSet"][0]["field"]}
    assert {"image", "label", "origin", "source_sha256", "generator_digest", "seed", "position"} <= columns
    for record_set in croissant["recordSet"]:
        for entry in record_set["field"]:
            assert entry["source"]["fileSet"]["@id"] in known
    assert "date" not in json.dumps(croissant).lower()


def test_mlcroissant_reads_every_row(finished_run: Any) -> None:
    mlcroissant = pytest.importorskip("mlcroissant", reason="mlcroissant is not a dependency")
    run_assemble(finished_run.workspace)
    dataset = mlcroissant.Dataset(finished_run.workspace.augmented / "croissant.json")
    assert len(list(dataset.records("real"))) == 16
    assert len(list(dataset.records("synthetic"))) == 12


def test_a_flipped_pixel_is_refused_and_nothing_is_written(finished_run: Any) -> None:
    path = finished_run.workspace.prepared / "images.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="no longer matches its sha256"):
        run_assemble(finished_run.workspace)
    assert not finished_run.workspace.augmented.exists()
    assert not list(finished_run.workspace.augmented.parent.glob("*.partial"))


def _rewrite(run: Any, path: Path, **changes: Any) -> None:
    rows: SyntheticRows = run.synthetic["dog"]
    given: dict[str, Any] = {
        "label": 1,
        "class_name": run.plan.classes["dog"].class_name,
        "slug": "dog",
        "fold": FINAL,
        "generator_digest": "0123456789abcdef" * 4,
        "class_names": [run.plan.classes[slug].class_name for slug in run.plan.slugs],
    }
    write_synthetic_shard(path, rows, **{**given, **changes})


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"fold": "f0"}, "fold 'f0' instead of 'final'"),
        ({"slug": "cat"}, "slug 'cat'"),
        ({"generator_digest": "f" * 64}, "generator_digest"),
        ({"label": 0, "class_name": "cat"}, "label 0"),
    ],
)
def test_a_shard_of_something_else_is_refused(finished_run: Any, changes: dict[str, Any], match: str) -> None:
    _rewrite(finished_run, finished_run.workspace.synthetic(FINAL) / "dog.parquet", **changes)
    with pytest.raises(ArtifactError, match=re.escape(match)):
        run_assemble(finished_run.workspace)


def test_counts_must_agree_with_the_selection(finished_run: Any) -> None:
    path = finished_run.workspace.synthetic(FINAL) / "acceptance.json"
    acceptance = read_json(path)
    acceptance["dog"]["accepted"] = 7
    write_json(path, acceptance)
    with pytest.raises(ArtifactError, match=r"has 6 images, acceptance\.json says 7"):
        run_assemble(finished_run.workspace)
    del acceptance["dog"]
    write_json(path, acceptance)
    with pytest.raises(ArtifactError, match="says nothing about dog"):
        run_assemble(finished_run.workspace)


def test_a_refused_class_is_released_without_synthetic_images(finished_run: Any) -> None:
    source = finished_run.workspace.synthetic(FINAL)
    nothing = np.zeros(0, np.float32)
    empty = SyntheticRows(
        np.zeros((0, 8, 8, 1), np.uint8), np.zeros(0, np.int64), np.zeros(0, np.int32), nothing, nothing, nothing
    )
    finished_run.synthetic["dog"] = empty
    _rewrite(finished_run, source / "dog.parquet", generator_digest="")
    acceptance = read_json(source / "acceptance.json")
    acceptance["dog"] = {"refused": "too few training images | for a <b>generator</b>", "candidates": 0, "accepted": 0}
    write_json(source / "acceptance.json", acceptance)
    run_assemble(finished_run.workspace)
    text = (finished_run.workspace.augmented / "README.md").read_text(encoding="utf-8")
    assert "the gate refused the samples" in text
    assert "<b>" not in text
    assert read_json(finished_run.workspace.augmented / "summary.json")["classes"]["dog"]["synthetic"] == 0
