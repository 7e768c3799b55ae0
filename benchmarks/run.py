"""Speed as ratios, each measured in one run on this machine: `make bench`.

Absolute times of a shared machine say little; a ratio of two things done in turn says something. Prints a Markdown
table. GPU rows and resume are not here yet: "not measured" means that.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from synthgen.classifier.arms import CLASSICAL_ARMS
from synthgen.classifier.training import RealImages, train_classifier
from synthgen.config import ClassifierSection, PrepareSection, SourceSection, TransformsSection
from synthgen.dataset.scan import scan_source
from synthgen.dataset.sources import open_source
from synthgen.dataset.transforms import render_bank

N_IMAGES = 1200
ROUNDS = 5


def ratio(numerator: Callable[[], object], denominator: Callable[[], object]) -> tuple[float, float, float]:
    """Median, smallest and largest of time(denominator) / time(numerator), the two done in turn."""
    found = []
    for _ in range(ROUNDS):
        times = []
        for work in (numerator, denominator):
            started = time.perf_counter()
            work()
            times.append(time.perf_counter() - started)
        found.append(times[1] / times[0])
    return statistics.median(found), min(found), max(found)


def make_folder(folder: Path) -> None:
    """Grey PNGs of 200 x 260 px in two class folders."""
    rng = np.random.default_rng(0)
    for i in range(N_IMAGES):
        path = folder / ("good" if i % 2 else "bad") / f"{i:05d}.png"
        path.parent.mkdir(exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (20, 26), dtype=np.uint8))
        coarse.resize((260, 200), Image.Resampling.BICUBIC).save(path)


def prepare_ratio(folder: Path, n_workers: int) -> tuple[float, float, float]:
    """Images a second of the scan, over those of Pillow decoding and resizing alone in one process."""
    section = PrepareSection(image_size=64, channels=1)
    source = SourceSection(type="imagefolder", path=".")

    def scan() -> None:
        target = folder.parent / "images.npy"
        scan_source(open_source(source, folder, section), section, target, n_workers=n_workers)
        target.unlink()

    def pillow() -> None:
        for path in sorted(folder.rglob("*.png")):
            with Image.open(path) as image:
                np.asarray(image.convert("L").resize((64, 64), Image.Resampling.LANCZOS))

    scan()  # starts the pool
    return ratio(scan, pillow)


def _train(reals: RealImages, seed: int) -> None:
    torch.set_num_threads(1)
    train_classifier(
        CLASSICAL_ARMS["balanced"],
        reals,
        None,
        ClassifierSection(width=24, steps=300, batch=64),
        n_classes=2,
        share=0.0,
        real_share=0.0,
        mix_alpha=0.3,
        seed=seed,
        device=torch.device("cpu"),
    )


def repeats_ratio() -> tuple[float, float, float]:
    """Four 8 px classifier trainings in two processes of one thread, against one after the other on all threads."""
    rng = np.random.default_rng(0)
    labels = (np.arange(400) % 2).astype(np.int64)
    reals = RealImages(rng.integers(0, 256, (400, 8, 8, 1), dtype=np.uint8), labels, np.arange(400))
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(_train, [reals] * 2, range(2)))  # starts and warms both

        def in_turn() -> None:
            for seed in range(4):
                _train(reals, seed)

        return ratio(lambda: list(pool.map(_train, [reals] * 4, range(4))), in_turn)


def bank_ratio(folder: Path) -> tuple[float, float, float]:
    """Opening rendered variants from the cache, against rendering them."""
    images = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), dtype=np.uint8)
    names = [str(i) for i in range(50)]
    counts = np.full(50, 20)

    def render(cache: Path) -> None:
        render_bank(images, names, counts, "classical", TransformsSection(), seed=0, cache=cache)

    render(folder / "bank")
    fresh = iter(range(10**6))
    return ratio(lambda: render(folder / "bank"), lambda: render(folder / f"bank{next(fresh)}"))


def main() -> None:
    """Measures and prints."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "raw"
        folder.mkdir()
        make_folder(folder)
        rows.append(("prepare, images/s over Pillow decode + resize, 1 process", prepare_ratio(folder, 1)))
        rows.append(("the same, 2 processes", prepare_ratio(folder, 2)))
        rows.append(("4 classifier trainings in 2 processes over in turn, 8 px", repeats_ratio()))
        rows.append(("rendered transforms from the cache over rendering", bank_ratio(Path(name))))
    sys.stdout.write(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n\n")
    sys.stdout.write("| figure | median | least | most |\n| --- | --- | --- | --- |\n")
    for figure, (median, least, most) in rows:
        sys.stdout.write(f"| {figure} | {median:.2f} | {least:.2f} | {most:.2f} |\n")
    sys.stdout.write("\nGPU rows, resume and memory: not measured here.\n")


if __name__ == "__main__":
    main()
