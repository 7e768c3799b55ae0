"""Measures what makes samples look synthetic: `python benchmarks/probe_tells.py PROJECT [PROJECT ...]`, seconds each.

Each PROJECT has samples (`python benchmarks/gain.py digits --until gan` leaves one a split in .synthgen/gain/digits/).
In its first fold the shortcut probe tells from real: the samples as they are; the same rounded to the grey levels that
occur in the reals; and, to know what an area means, transformed reals (half of all objects) from the other half as they
are. Prints a Markdown table of areas, mean and range over projects.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from synthgen.classifier.fixed_features import describe_texture, draw_filters
from synthgen.dataset.prepared import load_prepared
from synthgen.dataset.shards import read_images
from synthgen.dataset.transforms import Policy, build_transform
from synthgen.metrics.shortcut import probe_origin
from synthgen.seeding import derive_seed, numpy_generator, torch_generator
from synthgen.stages.workspace import Workspace

FOLD = "f0"
TRANSFORMS: tuple[Policy, ...] = ("mild", "classical", "strong")
Images = NDArray[np.uint8]


def round_to(levels: Images) -> Callable[[Images], Images]:
    """Rounds each value to the nearest of some sorted levels."""
    nearest = levels[np.abs(np.arange(256)[:, None] - levels.astype(np.int64)).argmin(axis=1)]
    return lambda images: nearest[images]


def areas_of(project: Path) -> dict[str, float]:
    """Row of the table -> area of one project's first fold."""
    workspace = Workspace(project)
    config = workspace.config
    data = load_prepared(workspace.prepared)
    rows = data.split(FOLD).train
    images, labels, groups = np.asarray(data.images[rows]), data.labels[rows], data.groups[rows]
    filters = draw_filters(images.shape[-1], torch_generator(config.seed, "shortcut", "filters"))
    classes = range(len(data.slugs))

    def area(reals: list[Images], own_groups: list[NDArray[np.str_]], others: list[Images]) -> float:
        described = [[describe_texture(filters, one, torch.device("cpu")) for one in pool] for pool in (reals, others)]
        probe = probe_origin(described[0], own_groups, described[1], numpy_generator(config.seed, "shortcut", FOLD))
        assert probe.auc is not None
        return probe.auc

    reals = [images[labels == k] for k in classes]
    own = [groups[labels == k] for k in classes]
    samples = [read_images(project / "data" / "synthetic" / FOLD / f"{slug}.parquet").images for slug in data.slugs]
    rounded = round_to(np.unique(images))
    found = {
        "samples": area(reals, own, samples),
        "samples, rounded to the reals' grey levels": area(reals, own, [rounded(one) for one in samples]),
    }
    half = np.isin(
        groups, np.unique(groups)[numpy_generator(config.seed, "halves").random(len(np.unique(groups))) < 0.5]
    )
    kept = [images[half & (labels == k)] for k in classes]
    kept_groups = [groups[half & (labels == k)] for k in classes]
    for name in TRANSFORMS:
        transform = build_transform(name, config.transforms)
        others = [
            np.stack([transform(image, derive_seed(config.seed, name, k, i)) for i, image in enumerate(images[chosen])])
            for k in classes
            for chosen in [~half & (labels == k)]
        ]
        found[f"reals, transformed ({name})"] = area(kept, kept_groups, others)
    return found


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("projects", nargs="+", type=Path, metavar="PROJECT")
    found = [areas_of(project) for project in parser.parse_args().projects]
    print(f"| told from real, {len(found)} projects | area: mean (lowest to highest) |\n| --- | --- |")
    for name in found[0]:
        areas = [one[name] for one in found]
        print(f"| {name} | {np.mean(areas):.3f} ({min(areas):.3f} to {max(areas):.3f}) |")


if __name__ == "__main__":
    main()
