"""`synthesize.latents: between_reals` through the stage: whose images are projected, what is written and refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from synthgen.artifacts import read_json, sha256_file, write_json
from synthgen.classifier.networks import SmallCnn
from synthgen.config import SynthesizeSection, parse_config
from synthgen.dataset.prepared import load_prepared
from synthgen.dataset.shards import read_images
from synthgen.errors import ConfigError, TrainingError
from synthgen.gan.anchor_file import SUFFIX, load_anchors, save_anchors
from synthgen.gan.checkpoint import load_gan
from synthgen.gan.sampling import sample_batch
from synthgen.stages.adapt import run_adapt
from synthgen.stages.between_reals import RealAnchors, choose_reals
from synthgen.stages.compare import procedure_digest
from synthgen.stages.plan import run_plan
from synthgen.stages.prepare import run_prepare
from synthgen.stages.pretrain import run_pretrain
from synthgen.stages.synthesize import run_synthesize
from synthgen.stages.translation import check_generator
from synthgen.stages.verify import verify_project
from synthgen.stages.workspace import Workspace

CPU = torch.device("cpu")
BETWEEN = "latents: between_reals, projection: {reals: 6, steps: 10, restarts: 2}"
PARAMS = """
seed: 3
source: {type: digits, simulate_scarcity: {keep: {KEPT}, surplus: drop}}
plan: {folds: 4, target: 8}
prepare: {image_size: 8, channels: 1}
classifier: {width: 8, steps: 20, batch: 32}
pretrain:
  kimg: 0.16
  batch: 32
  tick_kimg: 0.16
  ema: 0.9
  network: {channels: 4, max_channels: 8, latents: 8, embedding: 4}
  monitor: {samples_per_class: 8, reals_per_class: 20, feature_steps: 0}
adapt: {kimg: 0.16}
synthesize:
  {min_agreement: 0.0, min_nearest_ratio: 0.0, min_diversity_ratio: 0.0, teacher_steps: 10, batch: 16, LATENTS}
evaluate: {arms: [balanced]}
challenge: {arms: [best+synthetic]}
"""
PARAMS = PARAMS.replace("KEPT", ", ".join(f'"{digit}": {4 if digit == 3 else 16}' for digit in range(10)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the generators of one fold; class 3 has two training images in it."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "data" / "raw").mkdir(parents=True)
    (folder / "params.yaml").write_text(PARAMS.replace("LATENTS", BETWEEN))
    workspace = Workspace(folder)
    run_plan(workspace)
    run_prepare(workspace)
    run_pretrain(workspace, "f0", CPU)
    run_adapt(workspace, "f0", "3", CPU)
    return folder


@pytest.fixture(scope="module")
def made(trained: Path) -> Workspace:
    """The same after `synthesize`."""
    workspace = Workspace(trained)
    run_synthesize(workspace, "f0", CPU)
    return workspace


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in sorted(folder.iterdir())}


def test_a_class_without_training_images_is_refused(made: Workspace, tmp_path: Path) -> None:
    names = np.array(["a", "b"])
    anchors = RealAnchors(
        SynthesizeSection(),
        np.zeros((2, 8, 8, 1), np.uint8),
        np.array([0, 1]),
        names,
        names,
        np.zeros((2, 4), np.float32),
        teacher=SmallCnn(8, 1, 2, 4),
        fallback_distance=1.0,
        seed=0,
        fold="f0",
        device=CPU,
    )
    gan = load_gan(made.shared_model("f0"), CPU)
    with pytest.raises(TrainingError, match="f0 two: the training side has no image of this class"):
        anchors.find(tmp_path, "two", 2, gan)
    assert not list(tmp_path.iterdir())


def test_no_image_beyond_the_training_side_is_projected(made: Workspace, tmp_path: Path) -> None:
    other = Workspace(shutil.copytree(made.root, tmp_path / "project"))
    shutil.rmtree(other.synthetic("f0"))
    data = load_prepared(other.prepared)
    outside = np.setdiff1d(np.arange(len(data.labels)), data.split("f0").train)
    images = np.load(other.prepared / "images.npy")
    images[outside] = 255 - images[outside]
    np.save(other.prepared / "images.npy", images)
    run_synthesize(other, "f0", CPU)
    assert _digests(other.synthetic("f0")) == _digests(made.synthetic("f0"))  # and the same seed gives the same bytes


def test_anchors_are_training_images_of_the_class_of_both_generators(made: Workspace) -> None:
    data = load_prepared(made.prepared)
    train = data.split("f0").train
    for slug in ("3", "0"):
        own = set(data.sha256[train[data.labels[train] == made.plan.classes[slug].label]].tolist())
        gan = load_gan(made.model_of("f0", slug), CPU)
        anchors = load_anchors(made.synthetic("f0") / f"{slug}{SUFFIX}", gan.digest)
        assert set(anchors.sha256) <= own
        assert len(anchors.sha256) == min(6, len(own))
    shared = load_anchors(made.synthetic("f0") / f"3.shared{SUFFIX}", load_gan(made.shared_model("f0"), CPU).digest)
    assert len(shared.sha256) == 2


def test_every_sample_can_be_made_again_from_digest_seed_position_and_the_file_beside_it(made: Workspace) -> None:
    for name, model in (("3", made.model_of("f0", "3")), ("3.shared", made.shared_model("f0"))):
        shard = read_images(
            made.synthetic("f0") / f"{name}.parquet", ["seed", "position", "generator_digest", "source_sha256"]
        )
        gan = load_gan(model, CPU)
        assert set(shard.columns["generator_digest"]) == {gan.digest}
        anchors = load_anchors(made.synthetic("f0") / f"{name}{SUFFIX}", gan.digest)
        assert len(shard.images) == 8
        for i in (0, 7):
            seed, position = int(shard.columns["seed"][i]), shard.columns["position"][i]
            given = {"batch": 16, "truncation": 1.0, "device": CPU}
            again = sample_batch(gan.generator, made.plan.classes["3"].label, seed, anchors=anchors, **given)
            np.testing.assert_array_equal(again.images[position], shard.images[i])
            assert again.sources is not None
            assert again.sources[position] == shard.columns["source_sha256"][i]


def test_acceptance_says_how_well_the_reals_were_found(made: Workspace) -> None:
    acceptance = read_json(made.synthetic("f0") / "acceptance.json")
    assert acceptance["3"]["projection"]["reals"] == 2
    assert acceptance["0"]["projection"]["reals"] == 6
    for entry in acceptance.values():
        found = entry["projection"]
        assert 0.0 < found["pixel_error"] < found["random_pixel_error"] < 1.0
        assert found["feature_ratio"] < found["random_feature_ratio"]
        assert 0 <= found["outside"] <= found["reals"]
        assert found["objects"] <= found["reals"]


def test_verify_reads_the_anchors_and_names_those_of_another_generator(made: Workspace, tmp_path: Path) -> None:
    project = Workspace(shutil.copytree(made.root, tmp_path / "project"))
    outs = [
        {"path": path, "hash": "md5", "md5": "0" * 32 + ".dir"} for path in ("models/f0/shared", "data/synthetic/f0")
    ]
    lock = {"schema": "2.0", "stages": {str(k): {"cmd": "true", "outs": [out]} for k, out in enumerate(outs)}}
    YAML(typ="safe").dump(lock, project.root / "dvc.lock")

    def problems() -> list[str]:
        return [line for check in verify_project(project) if check.what == "samples" for line in check.problems]

    assert problems() == []
    path = project.synthetic("f0") / f"3{SUFFIX}"
    anchors = load_anchors(path, load_gan(project.model_of("f0", "3"), CPU).digest)
    save_anchors(path, anchors, "cd" * 32)
    assert len(problems()) == 1
    assert "holds latents of generator cdcdcdcdcdcd" in problems()[0]
    path.unlink()
    assert "cannot be read as anchors" in problems()[0]
    acceptance = read_json(project.synthetic("f0") / "acceptance.json")
    write_json(project.synthetic("f0") / "acceptance.json", acceptance | {"3": acceptance["3"] | {"projection": None}})
    assert problems() == []


def test_what_lies_nearer_than_the_limit_is_rejected_as_a_copy_here_too(trained: Path, tmp_path: Path) -> None:
    project = Workspace(shutil.copytree(trained, tmp_path / "project"))
    params = (project.root / "params.yaml").read_text()
    (project.root / "params.yaml").write_text(params.replace("min_nearest_ratio: 0.0", "min_nearest_ratio: 1.0e+9"))
    run_synthesize(Workspace(project.root), "f0", CPU)
    for entry in read_json(project.synthetic("f0") / "acceptance.json").values():
        assert entry["rejected"]["copies_a_real"] == entry["candidates"] > 0
        assert entry["accepted"] == 0


def test_normal_latents_write_nothing_new_and_are_no_new_look(made: Workspace, tmp_path: Path) -> None:
    project = Workspace(shutil.copytree(made.root, tmp_path / "project"))
    (project.root / "params.yaml").write_text(PARAMS.replace(", LATENTS", ""))
    project = Workspace(project.root)
    run_synthesize(project, "f0", CPU)
    assert not list(project.synthetic("f0").glob(f"*{SUFFIX}"))
    assert not any("projection" in e for e in read_json(project.synthetic("f0") / "acceptance.json").values())
    shard = read_images(project.synthetic("f0") / "3.parquet", ["source_sha256"])
    assert set(shard.columns["source_sha256"]) == {""}
    looks = [procedure_digest(project, ["balanced"])]
    for latents in ("latents: normal, projection: {steps: 7}", BETWEEN, BETWEEN.replace("10", "11")):
        (project.root / "params.yaml").write_text(PARAMS.replace("LATENTS", latents))
        looks.append(procedure_digest(Workspace(project.root), ["balanced"]))
    assert looks[0] == looks[1]
    assert len(set(looks)) == 3


@pytest.mark.parametrize("architecture", ["translate_free", "translate_masked"])
def test_generators_that_start_from_other_pictures_are_refused_before_any_work(
    architecture: str, trained: Path, tmp_path: Path
) -> None:
    params = YAML(typ="safe").load(PARAMS.replace("LATENTS", BETWEEN))
    params["pretrain"]["network"] = {"architecture": architecture}
    with pytest.raises(ConfigError, match=rf"synthesize\.latents between_reals .*{architecture}"):
        check_generator(parse_config(params))
    project = Workspace(shutil.copytree(trained, tmp_path / "project"))
    YAML(typ="safe").dump(params, project.root / "params.yaml")
    with pytest.raises(ConfigError, match=r"set synthesize\.latents normal"):
        run_synthesize(Workspace(project.root), "f0", CPU)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(2, 20), st.integers(0, 99))
def test_chosen_reals_show_as_many_objects_as_possible(objects: list[int], n: int, seed: int) -> None:
    shown = np.array(objects, dtype=np.int64)
    chosen = choose_reals(shown, n, np.random.default_rng(seed))
    assert len(chosen) == len(set(chosen.tolist())) == min(n, len(objects))
    assert len(set(shown[chosen].tolist())) == min(n, len(set(objects)))
    assert chosen.tolist() == sorted(chosen.tolist())
    np.testing.assert_array_equal(chosen, choose_reals(shown, n, np.random.default_rng(seed)))
