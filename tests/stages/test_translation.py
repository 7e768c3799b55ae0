"""Image to image through the stages: right sources, samples made again, killed and adapted, and what is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML
from scipy.ndimage import gaussian_filter

from synthgen.artifacts import read_json, sha256_file
from synthgen.config import parse_config
from synthgen.dataset.prepared import load_prepared
from synthgen.dataset.shards import read_images
from synthgen.errors import ArtifactError, ConfigError, TrainingError
from synthgen.gan.architectures.translate import dilate_softly
from synthgen.gan.checkpoint import load_gan
from synthgen.gan.game import Game
from synthgen.gan.pixels import to_uint8
from synthgen.gan.sampling import sample_batch
from synthgen.gan.translation import TranslationRules
from synthgen.stages.adapt import run_adapt
from synthgen.stages.gan_output import training_images
from synthgen.stages.plan import run_plan
from synthgen.stages.prepare import run_prepare
from synthgen.stages.pretrain import run_pretrain
from synthgen.stages.synthesize import run_synthesize
from synthgen.stages.translation import ContentSource, check_generator
from synthgen.stages.workspace import Workspace

CPU = torch.device("cpu")
SIDE = 28
COUNTS = {"good": 40, "scratch": 10, "spot": 14}
BATCH = 8


def _params(architecture: str, masks: str | None = "data/raw/.masks", **network: Any) -> dict[str, Any]:
    return {
        "seed": 5,
        "source": {"type": "imagefolder", "path": "data/raw"},
        "plan": {"folds": 3, "target": 6, "strategy": "adapted", "scarce": ["scratch", "spot"]},
        "prepare": {"image_size": SIDE, "channels": 1, **({} if masks is None else {"masks": masks})},
        "classifier": {"width": 4, "steps": 6, "batch": 16},
        "pretrain": {
            "kimg": 0.064,
            "batch": 16,
            "tick_kimg": 0.016,
            "network": {
                "architecture": architecture,
                "channels": 4,
                "max_channels": 8,
                "latents": 4,
                "embedding": 4,
                **network,
            },
            "monitor": {
                "samples_per_class": 4,
                "reals_per_class": 8,
                "feature_steps": 4,
                "held_out": 0.3,
                "min_class_images": 10,
            },
        },
        "adapt": {"kimg": 0.032},
        "synthesize": {
            "min_agreement": 0.0,
            "min_nearest_ratio": 0.0,
            "min_diversity_ratio": 0.0,
            "teacher_steps": 4,
            "batch": BATCH,
        },
        "evaluate": {"arms": ["balanced"]},
        "challenge": {"arms": ["best+synthetic"]},
    }


def _write_params(root: Path, params: dict[str, Any]) -> None:
    with (root / "params.yaml").open("w", encoding="utf-8") as stream:
        YAML().dump(params, stream)


def _picture(rng: np.random.Generator) -> np.ndarray:
    smooth = gaussian_filter(rng.standard_normal((SIDE, SIDE)), 2.0)
    return 128 + 25 * smooth / smooth.std()


def _paint(root: Path) -> None:
    """Smooth grey pictures; scarce ones have a dark line or a bright spot, with its mask."""
    rng = np.random.default_rng(0)
    for name, count in COUNTS.items():
        for i in range(count):
            picture, mask = _picture(rng), np.zeros((SIDE, SIDE), np.uint8)
            y, x = rng.integers(4, SIDE - 10, 2)
            if name == "spot":
                mask[y : y + 5, x : x + 5] = 255
                picture[mask > 0] = 250
            elif name == "scratch":
                mask[y : y + 2, x : x + 8] = 255
                picture[mask > 0] = 0
            for folder, pixels in (("", picture.clip(0, 255).astype(np.uint8)), (".masks/", mask)):
                if not folder or mask.any():
                    path = (
                        root / "data" / "raw" / f"{folder}{name}" / f"{name}{chr(97 + i // 26)}{chr(97 + i % 26)}.png"
                    )
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project after `prepare`."""
    root = tmp_path_factory.mktemp("painted")
    _paint(root)
    _write_params(root, _params("translate_masked"))
    run_plan(Workspace(root))
    run_prepare(Workspace(root))
    return root


def _project(painted: Path, folder: Path, architecture: str) -> Workspace:
    shutil.copytree(painted, folder)
    _write_params(folder, _params(architecture))
    return Workspace(folder)


def _poison(workspace: Workspace, fold: str) -> None:
    """Alters every image that is not of the training side of `fold`: who looks at one of them, is found out."""
    data = load_prepared(workspace.prepared)
    others = np.setdiff1d(np.arange(len(data.labels)), data.split(fold).train)
    images = np.load(workspace.prepared / "images.npy")
    images[others] = 255 - images[others]
    np.save(workspace.prepared / "images.npy", images)


@pytest.fixture(scope="module", params=["translate_free", "translate_masked"])
def made(request: pytest.FixtureRequest, painted: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Both kinds after `pretrain`, `adapt` of one class and `synthesize` of a fold whose other rows were altered."""
    workspace = _project(painted, tmp_path_factory.mktemp(request.param) / "project", request.param)
    _poison(workspace, "f0")
    run_pretrain(workspace, "f0", CPU)
    for slug in workspace.plan.adapt_slugs:
        run_adapt(workspace, "f0", slug, CPU)
    run_synthesize(workspace, "f0", CPU)
    return workspace


def _shard(workspace: Workspace, name: str) -> Any:
    columns = ["seed", "position", "generator_digest", "source_sha256"]
    return read_images(workspace.synthetic("f0") / f"{name}.parquet", columns)


def _killed_after(n_steps: int, monkeypatch: pytest.MonkeyPatch, work: Callable[[], None]) -> None:
    class Killed(BaseException):
        pass

    left, play = [n_steps], Game.play

    def patched(game: Game, *arguments: Any, **keywords: Any) -> None:
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        play(game, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(Game, "play", patched)
        with pytest.raises(Killed):
            work()


def _digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


# End to end


def test_every_class_gets_the_same_number_and_the_sources_are_training_rows_of_the_right_classes(
    made: Workspace,
) -> None:
    data = load_prepared(made.prepared)
    label_of = dict(zip(data.sha256.tolist(), data.labels.tolist(), strict=True))
    train = set(data.sha256[data.split("f0").train].tolist())
    held_out = set(read_json(made.shared_model("f0") / "held_out.json"))
    assert held_out
    masked = made.config.pretrain.network.architecture == "translate_masked"
    for name in ("good", "scratch", "spot", "scratch.shared", "spot.shared"):
        shard = _shard(made, name)
        assert len(shard.images) == 6
        sources = set(shard.columns["source_sha256"].tolist())
        assert sources <= train - held_out
        classes = {made.plan.slugs[label_of[sha]] for sha in sources}
        if masked or name != "good":
            assert classes == {"good"}
        else:  # the only plentiful class is made from the others
            assert classes <= {"scratch", "spot"}


def test_every_sample_can_be_made_again_from_digest_seed_and_training_images(made: Workspace) -> None:
    contents = ContentSource(made, "f0")
    for slug in made.plan.slugs:
        shard = _shard(made, slug)
        gan = load_gan(made.model_of("f0", slug), CPU)
        assert set(shard.columns["generator_digest"]) == {gan.digest}
        for i in (0, len(shard.images) - 1):
            again = sample_batch(
                gan.generator,
                made.plan.classes[slug].label,
                int(shard.columns["seed"][i]),
                batch=BATCH,
                truncation=1.0,
                device=CPU,
                content=contents.of(gan),
            )
            position = shard.columns["position"][i]
            np.testing.assert_array_equal(again.images[position], shard.images[i])
            assert again.sources is not None
            assert again.sources[position] == shard.columns["source_sha256"][i]


def test_what_the_weights_saw_is_the_training_side_and_the_adapted_one_plays_by_the_same_rules(
    made: Workspace,
) -> None:
    data = load_prepared(made.prepared)
    train = set(data.sha256[data.split("f0").train].tolist())
    shared = read_json(made.shared_model("f0") / "model.json")
    for folder in (made.shared_model("f0"), made.adapted_model("f0", "spot")):
        about = read_json(folder / "model.json")
        assert set(read_json(folder / "trained_on.json")) == train
        assert about["content"] == shared["content"]
        masked = made.config.pretrain.network.architecture == "translate_masked"
        assert about["judged_size"] == (16 if masked else SIDE)
        if masked:
            assert {slug: entry["origin"] for slug, entry in about["regions"].items()} == {
                "scratch": "masks",
                "spot": "masks",
            }
        else:
            assert "regions" not in about


# Masked: what may change


@pytest.mark.parametrize("made", ["translate_masked"], indirect=True)
def test_masked_samples_differ_from_their_composite_inside_the_dilated_mask_alone(
    made: Workspace,
) -> None:
    gan = load_gan(made.shared_model("f0"), CPU)
    content = ContentSource(made, "f0").of(gan)
    assert content is not None
    data = load_prepared(made.prepared)
    image_of = dict(zip(data.sha256.tolist(), data.images, strict=True))
    for label in range(3):
        given = content.draw(label, BATCH, seed=4)
        made_now = sample_batch(
            gan.generator, label, 4, batch=BATCH, truncation=1.0, device=CPU, content=content
        ).images.astype(int)
        composites = to_uint8(given.tensors[0]).astype(int)
        reach = dilate_softly(given.tensors[1], 1).squeeze(1).numpy() > 0
        assert (made_now != composites)[~reach].sum() == 0
        assert (made_now != composites)[reach].any()
        # and a composite is its background where nothing was pasted
        bare = given.tensors[1].squeeze(1).numpy() == 0
        backgrounds = np.stack([image_of[sha] for sha in given.sources]).astype(int)
        assert (composites != backgrounds)[bare].sum() == 0
        assert bare.mean() > 0.3


def _mean_change(workspace: Workspace, keep_weight: float) -> float:
    """Of the composites' masks by the shared generator, in grey levels, after a training with quick rates."""
    params = _params("translate_masked")
    params["pretrain"] |= {"kimg": 0.32, "tick_kimg": 0.16, "g_lr": 5e-3, "keep_weight": keep_weight}
    _write_params(workspace.root, params)
    workspace = Workspace(workspace.root)
    run_pretrain(workspace, "f0", CPU)
    gan = load_gan(workspace.shared_model("f0"), CPU)
    content = ContentSource(workspace, "f0").of(gan)
    assert content is not None
    changes = []
    for label in range(3):
        given = content.draw(label, 32, seed=4)
        made_now = sample_batch(gan.generator, label, 4, batch=32, truncation=1.0, device=CPU, content=content).images
        changed = np.abs(made_now.astype(int) - to_uint8(given.tensors[0]).astype(int))[..., 0]  # (32, H, W)
        changes.append(changed[given.tensors[1].squeeze(1).numpy() > 0.5].mean())
    return float(np.mean(changes))


def test_the_weight_on_changes_keeps_a_composite_near_what_it_was(painted: Path, tmp_path: Path) -> None:
    workspace = _project(painted, tmp_path / "project", "translate_masked")
    free = _mean_change(workspace, 0.0)
    assert free > 1.0
    assert _mean_change(workspace, 30.0) < 0.5 * free


# Killed, and the same again


@pytest.mark.parametrize("architecture", ["translate_free", "translate_masked"])
def test_a_killed_training_started_again_writes_the_bytes_of_an_undisturbed_one(
    architecture: str, painted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = (_project(painted, tmp_path / name, architecture) for name in ("whole", "killed"))
    run_pretrain(whole, "f1", CPU)
    _killed_after(3, monkeypatch, lambda: run_pretrain(killed, "f1", CPU))
    assert list(killed.scratch.glob("*/state-*"))
    run_pretrain(killed, "f1", CPU)
    assert _digests(killed.shared_model("f1")) == _digests(whole.shared_model("f1"))
    assert not any(killed.scratch.glob("*"))


# Refused


@pytest.mark.parametrize(
    "change, text",
    [
        ({"pretrain": {"network": {"architecture": "super_resolution"}}}, "samples of another generator"),
        ({"plan": {"strategy": "scratch"}}, "plan.strategy shared or adapted"),
        ({"adapt": {"boundary": {}}}, "set adapt.boundary null"),
        ({"prepare": {"image_size": 16}}, "28, 32, 64, 128 px, prepare.image_size is 16"),
        (
            {"pretrain": {"network": {"architecture": "translate_free", "progressive": True}}},
            "progressive false",
        ),
    ],
)
def test_plan_refuses_what_cannot_work_with_image_to_image(change: dict[str, Any], text: str, tmp_path: Path) -> None:
    _write_params(tmp_path, {**_params("translate_free"), **change})
    with pytest.raises(ConfigError, match=text):
        run_plan(Workspace(tmp_path))


def test_plan_refuses_image_to_image_without_a_plentiful_class(painted: Path, tmp_path: Path) -> None:
    workspace = _project(painted, tmp_path / "project", "translate_free")
    params = _params("translate_free")
    params["plan"]["scarce"] = ["good", "scratch", "spot"]
    _write_params(workspace.root, params)
    with pytest.raises(ConfigError, match="leave a plentiful one out"):
        run_plan(workspace)


def test_masked_without_masks_is_told_what_to_do_by_plan_and_refused_by_pretrain_where_nothing_is_found(
    painted: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    params = _params("translate_masked", masks=None)
    check_generator(parse_config(params))
    assert "set prepare.masks" in caplog.text
    workspace = _project(painted, tmp_path / "project", "translate_masked")
    # nothing to find: every picture is of the plentiful kind
    rng = np.random.default_rng(1)
    for name in ("scratch", "spot"):
        for path in sorted((workspace.root / "data/raw" / name).iterdir()):
            Image.fromarray(_picture(rng).clip(0, 255).astype(np.uint8)).save(path)
    _write_params(workspace.root, params)
    run_plan(workspace, reassign=True)
    run_prepare(workspace)
    with pytest.raises(TrainingError, match="set prepare"):
        run_pretrain(Workspace(workspace.root), "f0", CPU)


# What the stages rest on


def test_the_train_index_names_masks_and_other_masks_are_refused(painted: Path, tmp_path: Path) -> None:
    workspace = _project(painted, tmp_path / "project", "translate_masked")
    training = training_images(workspace, "f0", workspace.plan.slugs)
    assert training.masks is not None
    index = workspace.fold_index("f0") / "train"
    named = {sha for path in index.glob("*.masks.json") for sha in read_json(path)["mask_sha256"]}
    marked = training.masks.any(axis=(1, 2))
    assert named == {sha for sha, has in zip(training.sha256, marked, strict=True) if has}
    assert not (index / "good.masks.json").exists()
    (index / "spot.masks.json").unlink()
    with pytest.raises(ArtifactError, match="names another mask"):
        training_images(workspace, "f0", workspace.plan.slugs)


def test_rules_survive_the_way_through_model_json(made: Workspace) -> None:
    gan = load_gan(made.shared_model("f0"), CPU)
    rules = TranslationRules.from_dict(gan.about["content"])
    assert rules.as_dict() == gan.about["content"]
    assert (rules.scarce, rules.n_labels) == ((1, 2), 3)
    for wrong in ({}, {**gan.about["content"], "kind": "other"}, {**gan.about["content"], "more": 1}):
        with pytest.raises(ArtifactError, match=r"model\.json"):
            TranslationRules.from_dict(wrong)
