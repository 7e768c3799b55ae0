"""Speed and memory of `prepare`'s scan, against Pillow alone.

Owns the made-up folders; peak memory is read in a process of its own (scan_memory.py).
"""

import subprocess
import sys
from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image
from ratios import Measured, compare

from synthgen.config import PrepareSection, SourceSection
from synthgen.dataset.scan import scan_source
from synthgen.dataset.sources import open_source

N_IMAGES = 3000
CPU = torch.device("cpu")
SIDE: Final = 64
SOURCE = SourceSection(type="imagefolder", path=".")


def make_folder(folder: Path, n_images: int = N_IMAGES, size: tuple[int, int] = (260, 200)) -> None:
    """Grey PNGs of `size` (width, height) in two class folders, no two alike."""
    rng = np.random.default_rng(0)
    coarse = (max(1, size[0] // 10), max(1, size[1] // 10))
    for class_name in ("good", "bad"):
        (folder / class_name).mkdir(parents=True)
    for i in range(n_images):
        picture = Image.fromarray(rng.integers(0, 256, coarse[::-1], dtype=np.uint8))
        path = folder / ("good" if i % 2 else "bad") / f"{i:06d}.png"
        picture.resize(size, Image.Resampling.BICUBIC).save(path)


def _scan(folder: Path, section: PrepareSection, n_workers: int | None) -> None:
    target = folder.parent / "images.npy"
    scan_source(open_source(SOURCE, folder, section), section, target, n_workers=n_workers)
    target.unlink()


def _pillow_alone(folder: Path) -> None:
    for path in sorted(folder.rglob("*.png")):
        with Image.open(path) as image:
            np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0))


def scan_against_pillow(folder: Path, rounds: int) -> Measured:
    """One scanning process against Pillow's decoding and resizing alone."""
    section = PrepareSection(image_size=SIDE, channels=1)
    return compare(lambda: _scan(folder, section, 1), lambda: _pillow_alone(folder), CPU, rounds=rounds)


def two_processes_against_one(folder: Path, rounds: int) -> Measured:
    """Two scanning processes, the start of their pool included, against one."""
    section = PrepareSection(image_size=SIDE, channels=1)
    return compare(lambda: _scan(folder, section, 2), lambda: _scan(folder, section, 1), CPU, rounds=rounds)


def peak_memory(n_images: int, folder: Path) -> float:
    """MB that a process of its own holds at most while it scans `n_images` images of 32 px."""
    make_folder(folder, n_images, (32, 32))
    found = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("scan_memory.py")), str(folder)],
        check=True,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    return float(found.stdout.strip().splitlines()[-1])
