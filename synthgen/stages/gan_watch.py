"""What judges a GAN while it trains: a feature network and training images that the GAN does not see.

Owns both for one fold: `pretrain` makes them and writes them beside its GAN; `adapt` takes the same ones, for what
the shared GAN has seen cannot judge its child. `scratch`, which knows one class alone, has a network that was never
trained.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from synthgen.artifacts import read_json, write_json
from synthgen.classifier.arms import CLASSICAL_ARMS
from synthgen.classifier.draws import RealImages
from synthgen.classifier.networks import SmallCnn
from synthgen.classifier.prediction import extract_features
from synthgen.classifier.training import train_classifier
from synthgen.config import ClassifierSection, MonitorSection
from synthgen.errors import ArtifactError
from synthgen.gan.monitors import Monitor, hold_out
from synthgen.seeding import derive_seed, numpy_generator
from synthgen.stages.gan_output import TrainingImages

WIDTH = 16
HELD_OUT_FILE, FEATURES_FILE = "held_out.json", "features.safetensors"


@dataclass(frozen=True)
class Watch:
    """A feature network and a choice of images.

    Attributes:
        network: makes the features; in eval mode.
        held_out: sha256 of the training images that the GAN does not see.
    """

    network: SmallCnn
    held_out: frozenset[str]

    def seen(self, training: TrainingImages) -> NDArray[np.bool_]:
        """(n,) bool: images that the GAN trains on."""
        return np.array([sha not in self.held_out for sha in training.sha256], dtype=bool)

    def monitor(
        self,
        training: TrainingImages,
        section: MonitorSection,
        seed: int,
        device: torch.device,
        *,
        conditional: bool,
    ) -> Monitor:
        """The monitor of one training; `conditional` as the generator is."""
        seen = self.seen(training)
        network = self.network.to(device)
        # so that the kernel's x.y / d is the cosine
        scale = np.float32(network.head.in_features**0.5)
        return Monitor(
            lambda images: extract_features(network, images, device) * scale,
            training.images[seen],
            training.labels[seen],
            training.images[~seen],
            training.labels[~seen],
            section,
            numpy_generator(seed, "monitor"),
            conditional=conditional,
        )


def _empty_network(training: TrainingImages) -> SmallCnn:
    _, side, _, channels = training.images.shape
    return SmallCnn(side, channels, len(training.data.slugs), WIDTH)


def make_watch(
    training: TrainingImages, section: MonitorSection, seed: int, device: torch.device, *, looks: bool = True
) -> Watch:
    """Holds images out and trains the feature network on the others.

    Args:
        training: of the fold.
        section: shares and steps; 0 steps, or one class alone, leave the network as it was drawn.
        seed: of the fold.
        device: to train on.
        looks: False in a process that never looks through the network, which then stays untrained.
    """
    out = hold_out(training.labels, training.groups, section, numpy_generator(seed, "held out"))
    held_out = frozenset(sha for sha, is_out in zip(training.sha256, out, strict=True) if is_out)
    if not looks or section.feature_steps == 0 or len(np.unique(training.labels)) < 2:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "features"))
            network = _empty_network(training)
        return Watch(network.eval().requires_grad_(False), held_out)
    reals = RealImages(training.images[~out], training.labels[~out], np.arange(int((~out).sum())))
    trained = train_classifier(
        CLASSICAL_ARMS["balanced"],
        reals,
        None,
        ClassifierSection(width=WIDTH, steps=section.feature_steps),
        n_classes=len(training.data.slugs),
        real_share=0.0,
        mix_alpha=1.0,
        seed=derive_seed(seed, "features"),
        device=device,
    )
    assert isinstance(trained, SmallCnn)
    return Watch(trained.requires_grad_(False), held_out)


def save_watch(folder: Path, *, watch: Watch) -> None:
    """Writes both into a model's folder."""
    write_json(folder / HELD_OUT_FILE, sorted(watch.held_out))
    save_file({k: v.cpu().contiguous() for k, v in watch.network.state_dict().items()}, folder / FEATURES_FILE)


def load_watch(folder: Path, training: TrainingImages) -> Watch:
    """Reads what `save_watch` wrote.

    Raises:
        ArtifactError: missing or damaged, naming the file.
    """
    network = _empty_network(training)
    try:
        network.load_state_dict(load_file(folder / FEATURES_FILE))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ArtifactError(f"{folder / FEATURES_FILE} cannot be read ({error}); run pretrain again") from error
    return Watch(network.eval().requires_grad_(False), frozenset(read_json(folder / HELD_OUT_FILE)))
