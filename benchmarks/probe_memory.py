"""Measures which features remember: `python benchmarks/probe_memory.py [--seeds 5]`, half a minute.

Handwritten digits (scikit-learn's 1,797) are cut in two at random. A teacher is trained on one half; then the shortcut
probe has to tell that half from the other. Both are real, so any area above 0.5 is what features remember of images
that were trained on. Then the other half gets a faint texture, as a generator might leave: a checkerboard of 8 of 255
levels, or a tenth of each image replaced by its blurred self; now the area says how well features see a texture. Prints
a Markdown table: the teacher's features against those of fixed random filters.
"""

import argparse

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_digits

from synthgen.classifier.arms import classical_arm
from synthgen.classifier.draws import RealImages
from synthgen.classifier.fixed_features import describe_texture, draw_filters
from synthgen.classifier.networks import SMALL, SmallCnn
from synthgen.classifier.prediction import extract_features
from synthgen.classifier.training import train_classifier
from synthgen.config import ClassifierSection
from synthgen.metrics.shortcut import OriginProbe, probe_origin
from synthgen.seeding import derive_seed, numpy_generator, torch_generator

CPU = torch.device("cpu")


def tell_halves(features: np.ndarray, labels: np.ndarray, trained_on: np.ndarray, seed: int) -> OriginProbe:
    """The probe between the half that was trained on (in the place of reals) and the other."""
    return probe_origin(
        [features[trained_on & (labels == k)] for k in range(10)],
        [np.flatnonzero(trained_on & (labels == k)).astype(str) for k in range(10)],
        [features[~trained_on & (labels == k)] for k in range(10)],
        numpy_generator(seed, "parts"),
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    digits = load_digits()
    images = np.round(digits.images * 255 / 16).astype(np.uint8)[..., None]  # (1797, 8, 8, 1)
    labels = digits.target.astype(np.int64)
    board = 8.0 * (-1.0) ** np.add.outer(np.arange(8), np.arange(8))[..., None]  # (8, 8, 1)
    blurred = gaussian_filter(images.astype(np.float64), (0, 1, 1, 0))
    looks = {
        "none": images,
        "checkerboard": np.clip(images + board, 0, 255).round().astype(np.uint8),
        "blur": (0.9 * images + 0.1 * blurred).round().astype(np.uint8),
    }
    areas: dict[tuple[str, str], list[float]] = {}
    for seed in seeds:
        trained_on = numpy_generator(seed, "halves").random(len(labels)) < 0.5
        teacher = train_classifier(
            classical_arm("balanced"),
            RealImages(images[trained_on], labels[trained_on], np.arange(int(trained_on.sum()))),
            None,
            ClassifierSection(network=SMALL, width=16, steps=400),
            n_classes=10,
            real_share=0.0,
            mix_alpha=1.0,
            seed=derive_seed(seed, "teacher"),
            device=CPU,
        )
        assert isinstance(teacher, SmallCnn)
        filters = draw_filters(1, torch_generator(seed, "filters"))
        for look, changed in looks.items():
            shown = np.where(trained_on[:, None, None, None], images, changed)
            for name, features in (
                ("teacher", extract_features(teacher, shown, CPU)),
                ("fixed random filters", describe_texture(filters, shown, CPU)),
            ):
                found = tell_halves(features, labels, trained_on, seed)
                assert found.auc is not None
                areas.setdefault((name, look), []).append(found.auc)
    print(f"| area, mean (lowest to highest) of {len(seeds)} seeds | " + " | ".join(looks) + " |")
    print("| --- |" + " --- |" * len(looks))
    for name in ("teacher", "fixed random filters"):
        cells = [areas[name, look] for look in looks]
        told = [f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})" for values in cells]
        print(f"| {name} | {' | '.join(told)} |")


if __name__ == "__main__":
    main()
