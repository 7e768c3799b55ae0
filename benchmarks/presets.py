"""Trains a preset on MNIST and measures its labelled samples: `python benchmarks/presets.py NAME [--scarce]`.

Writes one JSON per preset to benchmarks/results/presets/ and its grid to docs/presets/; `--table` rewrites the table of
docs/presets.md from them. Judged on 2,000 samples (200 a class) by an oracle, a CNN trained on all 60,000 MNIST
training images at the preset's size, and by features of that oracle against 2,000 test images, which the generator
never sees. Trained on 500 images a class; with `--scarce` on 20 of classes 3, 5 and 8.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_data import ROOT, find_bench_file
from numpy.typing import NDArray
from PIL import Image
from ruamel.yaml import YAML

from synthgen.artifacts import canonical_json, digest_of, sha256_bytes, write_json
from synthgen.classifier.arms import CLASSICAL_ARMS
from synthgen.classifier.draws import RealImages
from synthgen.classifier.networks import SmallCnn
from synthgen.classifier.prediction import extract_features, predict_logits
from synthgen.classifier.training import train_classifier
from synthgen.config import ClassifierSection, Config, load_config, parse_config
from synthgen.device import resolve_device
from synthgen.gan.architectures.shape import GanShape
from synthgen.gan.monitors import Monitor, hold_out
from synthgen.gan.pixels import to_uint8
from synthgen.gan.scenes import FreeScene, FreeWeights, RealTransforms, Scene
from synthgen.gan.state import remove_snapshots
from synthgen.gan.training import GanRun, train_gan
from synthgen.metrics.coverage import measure_coverage
from synthgen.metrics.fidelity import kernel_distance
from synthgen.metrics.memorisation import nearest_distances
from synthgen.seeding import derive_seed, numpy_generator
from synthgen.stages.gan_output import save_grid

RESULTS = ROOT / "benchmarks" / "results" / "presets"
PICTURES = ROOT / "docs" / "presets"
TABLE = ROOT / "docs" / "presets.md"
START, END = "<!-- table: start -->", "<!-- table: end -->"
N_PER_CLASS, N_SCARCE, SCARCE = 500, 20, (3, 5, 8)
N_SAMPLES, N_TEST = 200, 200
MAX_JUDGED_SIDE = 32
"""Larger images are judged at this side: digits show no more above it, and a larger oracle costs more than the GAN."""
CONFIDENT, COVERED = 0.9, 0.02
"""A class counts as covered where 2 % of the samples are taken for it with a confidence of at least 0.9."""


@dataclass(frozen=True)
class Digits:
    """MNIST at one side: (n, S, S, 1) uint8 and (n,) int64."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def reduced(self, side: int) -> "Digits":
        """The same at a side that divides theirs, by the mean over each square."""
        n, factor = len(self.images), self.images.shape[1] // side
        squares = self.images.reshape(n, side, factor, side, factor).astype(np.float32)
        return Digits(squares.mean(axis=(2, 4)).round().astype(np.uint8)[..., None], self.labels)

    def first_of_each(self, counts: list[int], rng: np.random.Generator) -> "Digits":
        """`counts[k]` random images of label k."""
        rows = np.concatenate(
            [rng.permutation(np.flatnonzero(self.labels == k))[:count] for k, count in enumerate(counts)]
        )
        return Digits(self.images[rows], self.labels[rows])


def read_mnist(side: int) -> tuple[Digits, Digits]:
    """Training and test images, resized as `prepare` does."""
    path = find_bench_file("mnist.npz")
    if path is None:
        sys.exit(
            "mnist.npz is not on this machine; put it into .bench-data/ or name its folder in $SYNTHGEN_BENCH_DATA"
        )
    with np.load(path) as arrays:
        parts = [(arrays[f"x_{part}"], arrays[f"y_{part}"].astype(np.int64)) for part in ("train", "test")]

    def resized(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if images.shape[1] != side:
            size = (side, side)
            images = np.stack([np.asarray(Image.fromarray(x).resize(size, Image.Resampling.LANCZOS)) for x in images])
        return images[..., None]

    train, test = (Digits(resized(images), labels) for images, labels in parts)
    return train, test


def classifier_on(digits: Digits, steps: int, width: int, seed: int, device: torch.device) -> SmallCnn:
    """A CNN trained on all of `digits`, class-balanced."""
    network = train_classifier(
        CLASSICAL_ARMS["balanced"],
        RealImages(digits.images, digits.labels, np.arange(len(digits.labels))),
        None,
        ClassifierSection(width=width, steps=steps, batch=100),
        n_classes=10,
        real_share=0.0,
        mix_alpha=0.3,
        seed=seed,
        device=device,
    )
    assert isinstance(network, SmallCnn)
    return network


def oracle_for(side: int, train: Digits, device: torch.device) -> SmallCnn:
    """The oracle of this size, trained once and kept in .synthgen/."""
    from safetensors.torch import load_file, save_file

    path = ROOT / ".synthgen" / f"oracle-{side}.safetensors"
    if path.exists():
        network = SmallCnn(side, 1, 10, 24)
        network.load_state_dict(load_file(path))
        return network.to(device).eval().requires_grad_(False)
    network = classifier_on(train, 1800, 24, 0, device).requires_grad_(False)
    path.parent.mkdir(exist_ok=True)
    save_file({k: v.contiguous().cpu() for k, v in network.state_dict().items()}, path)
    return network


def train_preset(config: Config, data: Digits, device: torch.device) -> GanRun:
    """Trains the preset's GAN as `pretrain` does, monitors and all."""
    section = config.pretrain
    side = config.prepare.image_size
    shape = GanShape.of(section.network, side, 1, 10)
    kept_out = hold_out(data.labels, np.arange(len(data.labels)), section.monitor, numpy_generator(0, "held out"))
    seen = Digits(data.images[~kept_out], data.labels[~kept_out])
    network = classifier_on(seen, section.monitor.feature_steps, 16, 1, device)
    scale = np.float32(network.head.in_features**0.5)
    monitor = Monitor(
        lambda images: extract_features(network, images, device) * scale,
        seen.images,
        seen.labels,
        data.images[kept_out],
        data.labels[kept_out],
        section.monitor,
        numpy_generator(0, "monitor"),
        conditional=section.network.conditioning != "none",
    )
    scene: Scene | None = None
    if section.network.architecture == "translate_free":
        images, labels = (torch.from_numpy(x).to(device) for x in (seen.images, seen.labels))
        jitter = RealTransforms(config.transforms, section.real_transforms, section.flip)
        scene = FreeScene(images, labels, tuple(range(10)), jitter, FreeWeights())
    decides = {
        "section": section.model_dump(mode="json"),
        "images": sha256_bytes(data.images.tobytes()),
        "shape": asdict(shape),
    }
    scratch = ROOT / ".synthgen" / "scratch" / f"preset-{digest_of(decides)[:24]}"
    run = train_gan(
        seen.images,
        seen.labels,
        shape,
        section,
        config.transforms,
        kimg=section.kimg,
        seed=derive_seed(config.seed, "preset"),
        device=device,
        monitor=monitor,
        scene=scene,
        scratch=scratch,
        description=config.report.title,
    )
    remove_snapshots(scratch)
    return run


@torch.inference_mode()
def samples_of(run: GanRun, config: Config, data: Digits, device: torch.device) -> Digits:
    """N_SAMPLES of each class."""
    chance = torch.Generator().manual_seed(7)
    images, labels = [], []
    scene: FreeScene | None = None
    if config.pretrain.network.architecture == "translate_free":
        jitter = RealTransforms(config.transforms, 0.0, flip=False)
        sources = (torch.from_numpy(data.images), torch.from_numpy(data.labels))
        scene = FreeScene(*sources, tuple(range(10)), jitter, FreeWeights()).for_sampling()
    for label in range(10):
        y = torch.full((N_SAMPLES,), label)
        latents = torch.randn(N_SAMPLES, run.generator.shape.latents, generator=chance)
        content = scene.content(y, chance) if scene is not None else ()
        made = run.generator(latents.to(device), y.to(device), *(tensor.to(device) for tensor in content))
        images.append(to_uint8(made))
        labels.append(np.full(N_SAMPLES, label, dtype=np.int64))
    return Digits(np.concatenate(images), np.concatenate(labels))


def measure(samples: Digits, train: Digits, test: Digits, oracle: SmallCnn, device: torch.device) -> dict[str, Any]:
    """The row of the table."""
    logits = predict_logits(oracle, samples.images, device)
    odds = torch.from_numpy(logits).softmax(1).numpy()
    taken_for = odds.argmax(1)
    right = taken_for == samples.labels
    sure = [float(((taken_for == k) & (odds.max(1) >= CONFIDENT)).mean()) for k in range(10)]
    test_features = extract_features(oracle, test.images, device)
    train_features = extract_features(oracle, train.images, device)
    features = extract_features(oracle, samples.images, device)
    scale = np.float32(features.shape[1] ** 0.5)
    found = measure_coverage(test_features, features)
    held_out = float(np.median(nearest_distances(test_features, train_features)))
    return {
        "oracle_on_test": float((predict_logits(oracle, test.images, device).argmax(1) == test.labels).mean()),
        "oracle_accuracy": float(right.mean()),
        "oracle_accuracy_by_class": {str(k): float(right[samples.labels == k].mean()) for k in range(10)},
        "confidence": float(odds.max(1).mean()),
        "classes_covered": int(sum(share >= COVERED for share in sure)),
        "precision": found.precision,
        "recall": found.recall,
        "density": found.density,
        "coverage": found.coverage,
        "kernel_distance": kernel_distance(test_features * scale, features * scale),
        "nearest_ratio": float(np.median(nearest_distances(features, train_features))) / held_out,
    }


def changed(config: Config, changes: list[str]) -> Config:
    """`config` with `KEY=VALUE` of its section `pretrain` (dots go deeper), checked as params.yaml is."""
    values = config.model_dump()
    for change in changes:
        key, _, value = change.partition("=")
        *path, last = key.split(".")
        place = values["pretrain"]
        for part in path:
            place = place[part]
        place[last] = YAML(typ="safe", pure=True).load(value)
    return parse_config(values, "--change")


def run_preset(name: str, *, scarce: bool, changes: list[str]) -> None:
    """Trains and measures; writes the row and the picture, unless the preset was changed."""
    config = changed(load_config(ROOT / "examples" / "presets" / f"{name}.yaml"), changes)
    row = f"{name}_scarce" if scarce else name
    config = config.model_copy(update={"report": config.report.model_copy(update={"title": row})})
    device = resolve_device()
    train, test = read_mnist(config.prepare.image_size)
    judged_side = min(config.prepare.image_size, MAX_JUDGED_SIDE)
    oracle = oracle_for(judged_side, train.reduced(judged_side), device)
    counts = [N_SCARCE if scarce and k in SCARCE else N_PER_CLASS for k in range(10)]
    data = train.first_of_each(counts, numpy_generator(0, "mnist"))
    held_out = test.first_of_each([N_TEST] * 10, numpy_generator(0, "mnist test"))
    started = time.monotonic()
    run = train_preset(config, data, device)
    minutes = (time.monotonic() - started) / 60
    samples = samples_of(run, config, data, device)
    judged = [digits.reduced(judged_side) for digits in (samples, data, held_out)]
    found = measure(judged[0], judged[1], judged[2], oracle, device)
    last = run.history[run.best if run.best is not None else -1]
    about = {
        "preset": row,
        "conditional": config.pretrain.network.conditioning != "none",
        "machine": "GPU" if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads",
        "minutes": round(minutes, 1),
        "kimg": run.history[-1].kimg,
        "best_kimg": last.kimg,
        "rollbacks": len(run.rollbacks),
        "stopped": run.stopped,
    }
    rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in found.items()}
    if not changes:
        write_json(RESULTS / f"{row}.json", {**about, **rounded})
        PICTURES.mkdir(exist_ok=True)
        save_grid(PICTURES / f"{row}.png", samples.images.reshape(10, N_SAMPLES, *samples.images.shape[1:])[:, :16])
    sys.stdout.write(canonical_json({**about, **rounded}))


def write_table() -> None:
    """Rewrites the table of docs/presets.md from the JSON files."""
    lines = [
        "| preset | minutes | kimg (best) | oracle accuracy | confidence | classes covered | precision / recall | "
        "density / coverage | nearest-real ratio | grid |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for path in sorted(RESULTS.glob("*.json")):
        row = json.loads(path.read_text(encoding="utf-8"))
        accuracy = f"{100 * row['oracle_accuracy']:.1f} %" if row["conditional"] else "unconditional"
        if row["preset"].endswith("_scarce"):
            of_scarce = np.mean([row["oracle_accuracy_by_class"][str(k)] for k in SCARCE])
            accuracy += f" (scarce: {100 * of_scarce:.1f} %)"
        lines.append(
            f"| `{row['preset']}` | {row['minutes']:.1f} | {row['kimg']:.0f} ({row['best_kimg']:.0f}) | {accuracy} | "
            f"{row['confidence']:.3f} | {row['classes_covered']} of 10 | "
            f"{row['precision']:.2f} / {row['recall']:.2f} | "
            f"{row['density']:.2f} / {row['coverage']:.2f} | {row['nearest_ratio']:.2f} | "
            f"[picture](presets/{row['preset']}.png) |"
        )
    text = TABLE.read_text(encoding="utf-8")
    before, after = text.split(START)[0], text.split(END)[1]
    TABLE.write_text(before + START + "\n" + "\n".join(lines) + "\n" + END + after, encoding="utf-8")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="presets by name; each a file of examples/presets")
    parser.add_argument("--scarce", action="store_true", help="20 images of 3, 5 and 8, 500 of the others")
    parser.add_argument("--change", action="append", default=[], metavar="KEY=VALUE", help="try it; writes nothing")
    parser.add_argument("--table", action="store_true", help="rewrite the table of docs/presets.md")
    arguments = parser.parse_args()
    for name in arguments.names:
        run_preset(Path(name).stem, scarce=arguments.scarce, changes=arguments.change)
    if arguments.table:
        write_table()


if __name__ == "__main__":
    main()
