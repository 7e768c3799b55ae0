"""One GAN over two processes: what both compute together is what one computes, and neither waits for a dead one.

Run as a script (`python test_distributed.py FOLDER`, with torchrun's variables set) this file is one of the two.
"""

import csv
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from synthgen.config import GeneratorSection, PretrainSection, TransformsSection
from synthgen.dataset.sampling import BalancedBatches
from synthgen.errors import ConfigError, DeviceError, TrainingError
from synthgen.gan.architectures.build import build_discriminator, build_generator
from synthgen.gan.architectures.shape import GanShape
from synthgen.gan.distributed import ALONE, Peers, Place, device_of, join_peers, own_place
from synthgen.gan.game import Game, Progress
from synthgen.gan.one_batch import OneBatch
from synthgen.gan.scenes import NoiseScene, RealTransforms, SuperResolutionScene
from synthgen.gan.training import GanRun, train_gan
from synthgen.lock import hold_output
from synthgen.seeding import numpy_generator

N_IMAGES, SIDE, BATCH = 48, 16, 16
CPU = torch.device("cpu")
WHOLE = Progress(lr=1.0, class_share=1.0, growth=9.0, lecam=True)

VARIANTS: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "default": ({}, {"r1_every": 1}),
    "dcgan, dropout, label noise": (
        {"architecture": "dcgan", "dropout": 0.3},
        {"loss": "non_saturating", "label_noise": 0.2, "r1_every": 1, "r1_gamma": 1.0, "r2_gamma": 1.0},
    ),
    "style": ({"architecture": "style"}, {"r1_every": 2}),
    "wasserstein": ({"d_norm": "none"}, {"loss": "wasserstein", "wasserstein_penalty": 10.0, "d_steps": 2}),
    "lecam, consistency, clipping, auxiliary": (
        {"auxiliary": True},
        {"loss": "hinge", "lecam": 0.3, "consistency": 1.0, "clip_gradients": 0.1, "diffaugment_color": True},
    ),
    "adaptive strength": ({}, {"adaptive": {"target": 0.5, "ramp_kimg": 1.0}}),
    "super resolution": ({"architecture": "super_resolution", "low_size": 8}, {}),
}


def _section(**keywords: object) -> PretrainSection:
    return PretrainSection(**{"batch": BATCH, "tick_kimg": 0.064, "flip": True, **keywords})  # type: ignore[arg-type]


def _images() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    images = np.random.default_rng(0).integers(0, 256, (N_IMAGES, SIDE, SIDE, 1)).astype(np.uint8)
    return images, np.arange(N_IMAGES, dtype=np.int64) % 3


def _shape(**keywords: object) -> GanShape:
    small = {"latents": 8, "embedding": 4, "channels": 4, "max_channels": 8, **keywords}
    return GanShape.of(GeneratorSection(**small), SIDE, 1, 3)  # type: ignore[arg-type]


def _game(name: str, peers: Peers) -> Game:
    network, keywords = VARIANTS[name]
    shape, section = _shape(**network), _section(**keywords)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = build_generator(shape), build_discriminator(shape)
    images, labels = _images()
    data, known = torch.from_numpy(images), torch.from_numpy(labels)
    scene: Any = NoiseScene(data, TransformsSection(), section.real_transforms, section.flip)
    if name == "super resolution":
        low = shape.low_size
        scene = SuperResolutionScene(data, known, low, RealTransforms(TransformsSection(), 1.0, True))
    batches = BalancedBatches(labels, section.batch, numpy_generator(1, "batches"))
    game = Game(*networks, scene, batches, known, section, seed=1, lr_factor=1.0, peers=peers)
    if section.adaptive:
        game.strength.load(0.5)
    return game


def _played(name: str, n_parts: int, peers: Peers) -> dict[str, Tensor]:
    """Gradients of the first step and everything after two more."""
    game = _game(name, peers)
    game.n_parts = n_parts
    found: dict[str, Tensor] = {}
    finish = game._finish

    def finish_and_keep(optimizer: Any, parameters: Any, kind: str, *, look: bool) -> None:
        finish(optimizer, parameters, kind, look=look)
        for i, parameter in enumerate(parameters):
            if game.step == 0 and parameter.grad is not None:
                found.setdefault(f"{kind}.{i}", parameter.grad.clone())

    game._finish = finish_and_keep  # type: ignore[assignment,method-assign]
    for step in range(3):
        game.play(WHOLE, look=step == 2)
        if step == 0:
            found |= {f"first.{k}": v for k, v in game.snapshot().tensors.items()}
    found |= {f"last.{k}": v for k, v in game.snapshot().tensors.items()}
    for key, value in game.end_tick(3 * BATCH).items():
        found[f"mean.{key}"] = torch.tensor(value, dtype=torch.float64)
    return found


def _trained(peers: Peers, scratch: Path | None = None, **keywords: object) -> GanRun:
    images, labels = _images()
    section = _section(**{"adaptive": {"target": 0.05, "ramp_kimg": 0.5}, "lecam": 0.1, **keywords})
    return train_gan(
        images,
        labels,
        _shape(),
        section,
        TransformsSection(),
        kimg=0.256,
        seed=5,
        device=CPU,
        scratch=scratch,
        peers=peers,
    )


def _state(run: GanRun) -> dict[str, Tensor]:
    parts = {"g": run.generator.state_dict(), "d": run.discriminator.state_dict()}
    return {f"{part}.{k}": v.contiguous() for part, found in parts.items() for k, v in found.items()}


# The two processes


class Killed(BaseException):
    """As sudden as a signal."""


def _out_of_memory_once(rank: int, peers: Peers) -> Any:
    """Patches G's loss to fail, in one process, in the middle of the sixth step."""
    plain, calls = Game._generator_loss, [0]

    def patched(game: Game, rows: Tensor) -> Tensor:
        calls[0] += 1
        found = plain(game, rows)
        if calls[0] == 6 and peers.rank == rank:
            raise torch.OutOfMemoryError("injected")
        return found

    Game._generator_loss = patched  # type: ignore[assignment,method-assign]
    return plain


def _killed_in_both(peers: Peers, scratch: Path) -> None:
    """Trains until the middle of the third tick."""
    plain, left = Game.play, [10]

    def patched(game: Game, progress: Progress, *, look: bool) -> None:
        if not left[0]:
            raise Killed
        left[0] -= 1
        plain(game, progress, look=look)

    Game.play = patched  # type: ignore[assignment,method-assign]
    try:
        _trained(peers, scratch)
    except Killed:
        return
    finally:
        Game.play = plain  # type: ignore[method-assign]
    raise AssertionError("was not killed")


def _one_of_two(folder: Path, peers: Peers) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for name in VARIANTS:
        for n_parts in (1, 2):
            save_file(_played(name, n_parts, peers), folder / f"{name}-{n_parts}-{peers.rank}.safetensors")
    run = _trained(peers)
    save_file(_state(run), folder / f"trained-{peers.rank}.safetensors")
    said["history"] = [asdict(tick) for tick in run.history]
    said["n_grids"] = len(run.grids)

    _killed_in_both(peers, folder / "scratch")
    said["kept"] = sorted(path.name for path in (folder / "scratch").iterdir())
    if peers.leads:
        shutil.copytree(folder / "scratch", folder / "for one")
    peers.agree()  # what stands there is looked at before the other goes on writing
    save_file(_state(_trained(peers, folder / "scratch")), folder / f"resumed-{peers.rank}.safetensors")

    for rank in (0, 1):
        plain = _out_of_memory_once(rank, peers)
        run = _trained(peers)
        Game._generator_loss = plain  # type: ignore[method-assign]
        said[f"n_parts after {rank}"] = [tick.n_parts for tick in run.history]
        save_file(_state(run), folder / f"smaller-{rank}-{peers.rank}.safetensors")

    try:
        peers.require_equal("weights", [torch.tensor([1.0 + peers.rank])])
    except TrainingError as error:
        said["drift"] = str(error)
    peers.require_equal("weights", [torch.tensor([float("nan")])])
    said["decision"] = peers.from_first({"reason": "of the first", "score": None} if peers.leads else "mine")
    (folder / f"said-{peers.rank}.json").write_text(json.dumps(said))
    return said


def _main(folder: Path) -> None:
    with join_peers(CPU, timedelta(seconds=120)) as (peers, _):
        said = _one_of_two(folder, peers)
        peers.agree()
        if peers.rank == 1:
            time.sleep(0.5)  # the other waits by then
            os._exit(3)
        try:
            peers.add_up(torch.ones(2))
        except TrainingError as error:
            said["after the other died"] = str(error)
            (folder / "said-0.json").write_text(json.dumps(said))
            os._exit(0)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left."""
    folder = tmp_path_factory.mktemp("together")
    shared = {
        **os.environ,
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    processes, until = [], time.monotonic() + 240
    for rank in (0, 1):
        with (folder / f"errors-{rank}.txt").open("w") as errors:
            environment = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            command = [sys.executable, __file__, str(folder)]
            processes.append(subprocess.Popen(command, env=environment, stderr=errors))
    try:
        codes = [process.wait(timeout=max(1.0, until - time.monotonic())) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert codes == [0, 3], "\n".join(path.read_text() for path in sorted(folder.glob("errors-*.txt")))
    return folder


def _said(folder: Path, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"said-{rank}.json").read_text())
    return found


def _distance(a: dict[str, Tensor], b: dict[str, Tensor], prefix: str) -> float:
    """Euclidean, over the norm of `b`, of all tensors of that name together."""
    keys = [key for key in b if key.startswith(prefix) and b[key].is_floating_point()]
    assert keys
    difference = sum(float((a[key].double() - b[key].double()).square().sum()) for key in keys)
    return float((difference / sum(float(b[key].double().square().sum()) for key in keys)) ** 0.5)


@pytest.mark.parametrize("n_parts", [1, 2])
@pytest.mark.parametrize("name", VARIANTS)
def test_two_processes_compute_what_one_does(together: Path, name: str, n_parts: int) -> None:
    alone = _played(name, n_parts, ALONE)
    first, second = (load_file(together / f"{name}-{n_parts}-{rank}.safetensors") for rank in (0, 1))
    assert alone.keys() == first.keys() == second.keys()
    # the same to the last bit in both
    differing = [k for k in first if not k.startswith("mean") and not torch.equal(first[k], second[k])]
    assert not differing
    assert torch.equal(first["last.random.noise"], alone["last.random.noise"])
    assert _distance(first, alone, "d_gradient") < 1e-5
    assert _distance(first, alone, "g_gradient") < 1e-5
    for part in ("generator", "discriminator", "average"):
        # Adam divides by gradients that are nothing but rounding
        assert _distance(first, alone, f"last.{part}") < 2e-3
    for key in alone:
        if key.startswith("mean."):
            assert first[key].item() == second[key].item() == pytest.approx(alone[key].item(), rel=0.02, abs=0.02), key


def test_a_whole_training_is_that_of_one_process(together: Path) -> None:
    first, second = (load_file(together / f"trained-{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(first[key], second[key]) for key in first)
    alone = _trained(ALONE)
    history = [asdict(tick) for tick in alone.history]
    assert _said(together, 0)["history"] == _said(together, 1)["history"]
    for ours, theirs in zip(_said(together, 0)["history"], history, strict=True):
        assert ours["transform_strength"] == theirs["transform_strength"]
        # rounding grows from step to step, as Adam divides by small gradients
        near = 1e-4 if ours["kimg"] == history[0]["kimg"] else 0.02
        assert ours["d_loss"] == pytest.approx(theirs["d_loss"], rel=near)
    assert _distance(first, _state(alone), "d.") < 0.1
    assert _distance(first, _state(alone), "g.") < 0.1
    assert [_said(together, rank)["n_grids"] for rank in (0, 1)] == [len(history), 0]


def test_both_go_on_from_one_state_to_the_same_end(together: Path) -> None:
    assert _said(together, 0)["kept"] == _said(together, 1)["kept"] == ["state-000000000004", "state-000000000008"]
    for rank in (0, 1):
        whole, resumed = (load_file(together / f"{name}-{rank}.safetensors") for name in ("trained", "resumed"))
        assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_one_process_goes_on_from_the_state_of_two(together: Path) -> None:
    resumed, whole = _state(_trained(ALONE, together / "for one")), load_file(together / "trained-0.safetensors")
    assert _distance(resumed, whole, "d.") < 0.02
    assert _distance(resumed, whole, "g.") < 0.02


@pytest.mark.parametrize("without", [0, 1])
def test_both_work_in_smaller_parts_where_one_is_out_of_memory(together: Path, without: int) -> None:
    for rank in (0, 1):
        assert _said(together, rank)[f"n_parts after {without}"] == [1, 2, 2, 2]
    first, second = (load_file(together / f"smaller-{without}-{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_drift_a_decision_and_a_death_are_known_to_the_other(together: Path) -> None:
    for rank in (0, 1):
        said = _said(together, rank)
        assert "weights differ between the 2 processes" in said["drift"]
        assert said["decision"] == {"reason": "of the first", "score": None}
    assert "no longer hears the others" in _said(together, 0)["after the other died"]


# In one process


@pytest.mark.parametrize("n_rows", [16, 17])
@pytest.mark.parametrize("n", [2, 3])
def test_rows_and_their_random_numbers_are_shared_out(n: int, n_rows: int) -> None:
    noise, alone = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    expected = [
        torch.rand(n_rows, generator=alone),
        torch.randn(n_rows, 5, generator=alone),
        torch.rand((2 * n_rows, 1, 1, 1), generator=alone),
        torch.randint(-2, 3, (2 * n_rows,), generator=alone),
        torch.rand((2, n_rows), generator=alone),
        torch.rand(2, generator=alone),
    ]
    for rank in range(n):
        own = Peers(rank, n)
        rows = own.own_rows(torch.arange(n_rows))
        k = len(rows)
        noise.manual_seed(3)
        with OneBatch(rank, n, own.add_up, noise, n_rows):
            other = torch.rand(k, generator=torch.Generator().manual_seed(1))
            found = [
                torch.rand(k, generator=noise),
                torch.randn(k, 5, generator=noise),
                torch.rand((2 * k, 1, 1, 1), generator=noise),
                torch.randint(-2, 3, (2 * k,), generator=noise),
                torch.rand((2, k), generator=noise),
                torch.rand(2, generator=noise),
            ]
        assert torch.equal(other, torch.rand(k, generator=torch.Generator().manual_seed(1)))
        both = torch.cat([rows, rows + n_rows])
        wanted = [expected[0][rows], expected[1][rows], expected[2][both], expected[3][both], expected[4][:, rows]]
        for a, b in zip(found, [*wanted, expected[5]], strict=True):
            assert torch.equal(a, b)
        assert torch.equal(noise.get_state(), alone.get_state())


def test_a_place_is_what_torchrun_says() -> None:
    assert own_place({}) == own_place({"WORLD_SIZE": "1"}) == Place(0, 1, 0)
    assert own_place({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}) == Place(3, 4, 1)
    for wrong in ({"RANK": "4", "LOCAL_RANK": "0"}, {"RANK": "-1", "LOCAL_RANK": "0"}, {"RANK": "x"}, {}):
        with pytest.raises(ConfigError, match="torchrun"):
            own_place({"WORLD_SIZE": "4", **wrong})


def test_devices_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    card = torch.device("cuda")
    assert device_of(Place(3, 4, 1), card) == torch.device("cuda", 1)
    assert device_of(Place(1, 2, 1), torch.device("cuda", 0)) == torch.device("cuda", 0)
    assert device_of(Place(1, 2, 1), CPU) == CPU
    assert device_of(Place(0, 1, 0), card) == card
    with pytest.raises(DeviceError, match="nproc_per_node=2"):
        device_of(Place(2, 3, 2), card)
    with pytest.raises(DeviceError, match="mps"):
        device_of(Place(0, 2, 0), torch.device("mps"))


@pytest.mark.parametrize(("batch", "n", "fits"), [(16, 2, True), (16, 3, False), (4, 2, False), (3, 1, True)])
def test_a_batch_has_to_be_shared_evenly(batch: int, n: int, fits: bool) -> None:
    if fits:
        Peers(0, n).require_even(batch)
        return
    with pytest.raises(ConfigError, match="nproc_per_node"):
        Peers(0, n).require_even(batch)


def test_alone_nothing_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join_peers(CPU) as (peers, device):
        assert peers is ALONE
        assert device == CPU
    assert not torch.distributed.is_initialized()


# Through the command line

PARAMS = """
seed: 3
source: {type: digits, simulate_scarcity: {keep: {"3": 15, "8": 15}, surplus: test}}
plan: {folds: 3, target: 12, strategy: adapted}
prepare: {image_size: 8, channels: 1}
classifier: {width: 8, steps: 20, batch: 32}
pretrain:
  kimg: 0.64
  batch: 40
  tick_kimg: 0.16
  network: {channels: 4, max_channels: 8, latents: 8, embedding: 4}
  monitor: {samples_per_class: 8, reals_per_class: 20, feature_steps: 20}
adapt: {kimg: 0.32}
evaluate: {arms: [balanced], repeats: 2, crossfit: false}
challenge: {arms: [best+synthetic]}
"""


def _synthgen(project: Path, *arguments: str, n: int = 1) -> subprocess.CompletedProcess[str]:
    several = ["-m", "torch.distributed.run", f"--nproc_per_node={n}", f"--master_port={_free_port()}"] if n > 1 else []
    return subprocess.run(
        [sys.executable, *several, "-m", "synthgen", *arguments, "--project", str(project)],
        env={**os.environ, "SYNTHGEN_DEVICE": "cpu", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.mark.slow
def test_torchrun_trains_the_gan_that_one_process_trains(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    (one / "data" / "raw").mkdir(parents=True)
    (one / "params.yaml").write_text(PARAMS)
    for verb in ("plan", "prepare"):
        ended = _synthgen(one, verb)
        assert ended.returncode == 0, ended.stderr
    shutil.copytree(one, two)
    for project, n in ((one, 1), (two, 2)):
        for arguments in (["pretrain", "--fold", "f0"], ["adapt", "--fold", "f0", "--slug", "3"]):
            ended = _synthgen(project, *arguments, n=n)
            assert ended.returncode == 0, ended.stderr
    for name in ("shared", "adapted-3"):
        files = [
            sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
            for folder in (one / "models/f0" / name, two / "models/f0" / name)
        ]
        assert files[0] == files[1]
        rows = [
            list(csv.DictReader((project / "models/f0" / name / "history.csv").read_text().splitlines()))
            for project in (one, two)
        ]
        for ours, theirs in zip(*rows, strict=True):
            assert float(ours["d_loss"]) == pytest.approx(float(theirs["d_loss"]), rel=0.02)
    assert not list((two / ".synthgen").rglob("*.lock"))
    assert not list((two / ".synthgen").rglob("state-*"))

    with hold_output(two.resolve(), two.resolve() / "models/f0/shared"):
        refused = _synthgen(two, "pretrain", "--fold", "f0", n=2)
    assert refused.returncode != 0
    assert "LockedError" in refused.stderr


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
