"""Trained GANs on disk: safetensors, a model.json, and the digest that names a generator.

Owns the folder form of docs/schema.md (`models/FOLD/...`). Refuses weights whose digest is not the
one that model.json names: neither safetensors nor torch notices a flipped byte.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from synthgen.artifacts import digest_of, read_json, sha256_bytes, write_json
from synthgen.errors import ArtifactError
from synthgen.gan.architectures.build import build_discriminator, build_generator
from synthgen.gan.architectures.interface import Discriminator, Generator
from synthgen.gan.architectures.shape import GanShape

SCHEMA = 2


@dataclass(frozen=True)
class TrainedGan:
    """A generator with its discriminator, as trained.

    Attributes:
        generator: EMA weights, in eval mode.
        discriminator: the last weights, in eval mode.
        about: what model.json holds beside the shape and the digest (kind, fold, slugs, seed, trained_on...).
        digest: generator digest (docs/schema.md).
    """

    generator: Generator
    discriminator: Discriminator
    about: dict[str, Any]
    digest: str


def generator_digest(generator: Generator, slugs: list[str]) -> str:
    """Names a generator by its shape, its classes and its weights.

    Args:
        generator: with the weights that sample.
        slugs: classes in label order.
    Returns:
        hex sha256 (docs/schema.md, "Generator digest").
    """
    tensors = {
        name: sha256_bytes(tensor.detach().cpu().contiguous().numpy().tobytes())
        for name, tensor in generator.state_dict().items()
    }
    return digest_of({"shape": generator.shape.as_dict(), "slugs": slugs, "tensors": tensors})


def save_gan(folder: Path, gan: TrainedGan) -> None:
    """Writes both networks and model.json into `folder` (which the caller renames into place)."""
    for name, network in (("generator", gan.generator), ("discriminator", gan.discriminator)):
        state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
        save_file(state, folder / f"{name}.safetensors")
    about = {
        "schema": SCHEMA,
        **gan.about,
        "shape": gan.generator.shape.as_dict(),
        "judged_size": gan.discriminator.shape.image_size,
        "generator_digest": gan.digest,
    }
    write_json(folder / "model.json", about)


def save_failure(folder: Path, about: dict[str, Any], reason: str) -> None:
    """Writes a model.json that says why there are no weights."""
    write_json(folder / "model.json", {"schema": SCHEMA, **about, "failed": reason})


def failure_of(folder: Path) -> str | None:
    """Why `folder` holds no weights, or None where it does."""
    reason = read_json(folder / "model.json").get("failed")
    return None if reason is None else str(reason)


def load_gan(folder: Path, device: torch.device) -> TrainedGan:
    """Reads what `save_gan` wrote and checks the generator against its digest.

    Raises:
        ArtifactError: missing, damaged, altered or of another schema, naming the file.
    """
    about = read_json(folder / "model.json")
    if about.get("schema") != SCHEMA:
        raise ArtifactError(f"{folder / 'model.json'} has schema {about.get('schema')}, this version reads {SCHEMA}")
    if "failed" in about:
        raise ArtifactError(f"{folder} holds no generator: {about['failed']}")
    shape = GanShape(**about["shape"])
    networks: dict[str, Generator | Discriminator] = {
        "generator": build_generator(shape),
        "discriminator": build_discriminator(replace(shape, image_size=about["judged_size"])),
    }
    for name, network in networks.items():
        path = folder / f"{name}.safetensors"
        try:
            network.load_state_dict(load_file(path))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ArtifactError(f"{path} cannot be read ({error}); run `dvc checkout` or train it again") from error
        network.to(device).eval().requires_grad_(False)
    generator, discriminator = networks["generator"], networks["discriminator"]
    assert isinstance(generator, Generator)
    assert isinstance(discriminator, Discriminator)
    digest = generator_digest(generator, about["slugs"])
    if digest != about["generator_digest"]:
        raise ArtifactError(
            f"{folder / 'generator.safetensors'} has digest {digest[:12]}, model.json names "
            f"{about['generator_digest'][:12]}: the weights were altered; run `dvc checkout` or train again"
        )
    return TrainedGan(generator, discriminator, about, digest)
