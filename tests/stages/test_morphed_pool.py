"""`synthesize.morphs` through the stages: whose images, what is written, trained on, released, verified and refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML

from synthgen.artifacts import read_json, sha256_file
from synthgen.config import Config, MorphSection, parse_config
from synthgen.dataset.mixing import MixingPolicy
from synthgen.dataset.mixing_candidates import list_candidates
from synthgen.dataset.origin_record import read_origin
from synthgen.dataset.pools import shards_for
from synthgen.dataset.prepared import load_prepared, rows_of_index
from synthgen.dataset.shards import read_images
from synthgen.errors import ConfigError
from synthgen.morphing.morphs import Morpher
from synthgen.seeding import derive_seed
from synthgen.stages.assemble import released_shard, run_assemble
from synthgen.stages.challenge import load_pool
from synthgen.stages.compare import procedure_digest
from synthgen.stages.plan import check_arms, run_plan
from synthgen.stages.prepare import run_prepare
from synthgen.stages.pretrain import run_pretrain
from synthgen.stages.synthesize import run_synthesize
from synthgen.stages.verify import verify_project
from synthgen.stages.workspace import Workspace

CPU = torch.device("cpu")
PARAMS = """
seed: 3
source: {type: digits, simulate_scarcity: {keep: {KEPT}, surplus: drop}}
plan: {folds: 4, target: 8, strategy: shared}
prepare: {image_size: 8, channels: 1}
classifier: {width: 8, steps: 20, batch: 32}
pretrain:
  kimg: 0.16
  batch: 32
  tick_kimg: 0.16
  network: {channels: 4, max_channels: 8, latents: 8, embedding: 4}
  monitor: {samples_per_class: 8, reals_per_class: 20, feature_steps: 0}
synthesize:
  {min_agreement: 0.0, min_nearest_ratio: 0.0, min_diversity_ratio: 0.0, teacher_steps: 10, batch: 16, MORPHS}
evaluate: {arms: [balanced]}
challenge:
  arms: [best+synthetic]
  policies: {synthetic: {pool: morphed, share: 0.5}}
"""
PARAMS = PARAMS.replace("KEPT", ", ".join(f'"{digit}": {4 if digit == 3 else 16}' for digit in range(10)))
MORPHS = "morphs: {pairs: 30}"


def _config(text: str) -> Config:
    return parse_config(YAML(typ="safe").load(text))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A project whose release has morphs beside a shared GAN's samples."""
    folder = tmp_path_factory.mktemp("morphed")
    (folder / "data" / "raw").mkdir(parents=True)
    (folder / "params.yaml").write_text(PARAMS.replace("MORPHS", MORPHS))
    workspace = Workspace(folder)
    run_plan(workspace)
    run_prepare(workspace)
    run_pretrain(workspace, "final", CPU)
    run_synthesize(workspace, "final", CPU)
    return workspace


def test_no_image_beyond_the_training_side_is_morphed(made: Workspace, tmp_path: Path) -> None:
    shutil.copytree(made.root, tmp_path / "project")
    other = Workspace(tmp_path / "project")
    run_pretrain(other, "f0", CPU)
    run_synthesize(other, "f0", CPU)
    first = {path.name: sha256_file(path) for path in other.synthetic("f0").glob("*.morphed.*")}
    assert len(first) == 11  # a shard of each class and the grid
    data = load_prepared(other.prepared)
    outside = np.setdiff1d(np.arange(len(data.labels)), data.split("f0").train)
    images = np.load(other.prepared / "images.npy")
    images[outside] = 255 - images[outside]
    np.save(other.prepared / "images.npy", images)
    shutil.rmtree(other.synthetic("f0"))
    run_synthesize(other, "f0", CPU)
    assert first == {path.name: sha256_file(path) for path in other.synthetic("f0").glob("*.morphed.*")}


def test_each_morph_can_be_made_again_from_the_training_images_seed_and_position(made: Workspace) -> None:
    data = load_prepared(made.prepared)
    rows = rows_of_index(data, made.fold_index("final"), made.plan.slugs)
    of_rows = (data.verified(rows), data.labels[rows], data.groups[rows], data.sha256[rows])
    again = Morpher(*of_rows, MorphSection(pairs=30), seed=derive_seed(3, "morphs", "final"))
    acceptance = read_json(made.synthetic("final") / "acceptance.json")
    for slug in ("3", "5"):
        shard = read_images(
            made.synthetic("final") / f"{slug}.morphed.parquet",
            ["seed", "position", "generator_digest", "source_sha256", "d_score"],
        )
        assert len(shard.images) == 8
        assert set(shard.columns["generator_digest"]) == {again.digest}
        assert (shard.columns["d_score"] == 0).all()
        for i in (0, 7):
            batch = again.draw(int(shard.labels[i]), 16, int(shard.columns["seed"][i]))
            position = int(shard.columns["position"][i])
            np.testing.assert_array_equal(batch.images[position], shard.images[i])
            assert of_rows[3][batch.sources[position]] == shard.columns["source_sha256"][i]
        pairs = again.pairs[int(shard.labels[0])]
        found = acceptance[f"{slug}.morphed"]["pairs"]
        assert found == {"tried": again.n_tried[int(shard.labels[0])], "fitted": len(pairs.first)}
        assert "pairs" not in acceptance[slug]


def test_an_arm_draws_from_the_pool_that_its_policy_names(made: Workspace) -> None:
    data = load_prepared(made.prepared)
    folder = made.synthetic("final")
    for pool, ending in (("morphed", ".morphed"), ("default", "")):
        images, stand_ins = load_pool(made, "final", MixingPolicy("p", pool, (0.5,) * 10), data)
        assert not stand_ins
        for label, slug in enumerate(data.slugs):
            expected = read_images(folder / f"{slug}{ending}.parquet").images
            np.testing.assert_array_equal(images.images[images.labels == label], expected)
    assert set(read_origin(folder).pools) == {"default", "morphed"}


def test_nothing_of_a_gan_stands_in_for_morphs() -> None:
    present = {"a", "a.shared", "a.morphed"}
    assert shards_for("a", "morphed", present) == ["a.morphed"]
    assert shards_for("a", "default", present) == ["a", "a.shared"]
    assert shards_for("a", "shared", present) == ["a.shared"]
    assert shards_for("a", "shared", {"a"}) == shards_for("a", "default", {"a"}) == ["a"]


def test_what_the_verdict_is_about_is_released_and_verified(made: Workspace, tmp_path: Path) -> None:
    other = Workspace(shutil.copytree(made.root, tmp_path / "project"))
    run_assemble(other)
    summary = read_json(other.augmented / "summary.json")
    assert summary["policy"]["pool"] == "morphed"
    for slug in other.plan.slugs:
        released = read_images(other.augmented / f"synthetic-{slug}.parquet").images
        wanted = read_images(other.synthetic("final") / f"{slug}.morphed.parquet").images
        np.testing.assert_array_equal(released, wanted)
        assert summary["classes"][slug]["generator"] == "morphed"
    assert "no network" in (other.augmented / "README.md").read_text()
    paths = ("models/final/shared", "data/synthetic/final", "data/augmented")
    outs = [{"path": path, "hash": "md5", "md5": "0" * 32 + ".dir"} for path in paths]
    lock = {"schema": "2.0", "stages": {str(k): {"cmd": "true", "outs": [out]} for k, out in enumerate(outs)}}
    YAML(typ="safe").dump(lock, other.root / "dvc.lock")
    checks = [check for check in verify_project(other) if check.what == "samples"]
    assert [check.n for check in checks] == [160, 148 + 80]  # two pools; the release has all reals and one pool
    assert not [problem for check in checks for problem in check.problems]


def test_a_policy_of_the_shared_gan_releases_its_samples(made: Workspace, tmp_path: Path) -> None:
    """Found on the way: the samples of the adapted GANs were released whatever the policy of the verdict drew from."""
    (tmp_path / "params.yaml").write_text(PARAMS.replace("pool: morphed", "pool: shared").replace("MORPHS", MORPHS))
    workspace = Workspace(tmp_path)
    assert released_shard(workspace, "3", {"3", "3.shared"}) == "3.shared"
    assert released_shard(workspace, "3", {"3"}) == "3"


def test_an_arm_with_morphs_is_refused_where_none_are_made() -> None:
    check_arms(_config(PARAMS.replace("MORPHS", MORPHS)))
    with pytest.raises(ConfigError, match=r"best\+synthetic needs the pool morphed.*`morphs: \{\}`"):
        check_arms(_config(PARAMS.replace("MORPHS", "morphs: null")))


def test_the_search_tries_morphs_only_where_there_are_some() -> None:
    config = _config(PARAMS.replace("pool: morphed, share: 0.5", "share: 0.25").replace("MORPHS", MORPHS))
    policies, names = dict(config.challenge.policies), [str(digit) for digit in range(10)]
    without = list_candidates(policies, [], names, [3], has_shared=True)
    some = list_candidates(policies, [], names, [3], has_shared=True, has_morphs=True)
    added = [candidate for candidate in some if candidate not in without]
    assert [candidate.policy.pool for candidate in added if candidate.policy] == ["morphed", "morphed"]
    assert [candidate for candidate in some if candidate in without] == without


def test_the_version_of_morphs_counts_as_a_look_only_where_morphs_are_made(made: Workspace, tmp_path: Path) -> None:
    def digest(morphs: str, version: int) -> str:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        text = PARAMS.replace("pool: morphed, ", "").replace("MORPHS", morphs)
        (folder / "params.yaml").write_text(text)
        workspace = Workspace(folder)
        plan = made.plan.model_copy(update={"versions": {**made.plan.versions, "morphs": version}})
        workspace.__dict__["plan"] = plan
        return procedure_digest(workspace, ["balanced"])

    assert digest("morphs: null", 1) == digest("morphs: null", 2)
    assert digest(MORPHS, 1) != digest(MORPHS, 2)
