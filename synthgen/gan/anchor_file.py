"""Anchors on disk: `SLUG.latents.safetensors` beside the shard whose samples were drawn between them.

Owns the form (docs/schema.md). With generator, seed and position it makes a sample again. Refuses anchors of another
form, and, when asked for those of a generator, of another one.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from synthgen.artifacts import atomic_file, canonical_json
from synthgen.errors import ArtifactError, TrainingError
from synthgen.gan.interpolation import Anchors

FORM = 1
SUFFIX = ".latents.safetensors"
DIGEST_BYTES = 32


def save_anchors(path: Path, anchors: Anchors, generator_digest: str) -> None:
    """Writes anchors; equal ones give equal bytes.

    Raises:
        ArtifactError: the file cannot be written.
    """
    about = {
        "form": FORM,
        "generator_digest": generator_digest,
        "jitter": anchors.jitter,
        "neighbour": anchors.neighbour,
    }
    digests = np.frombuffer(bytes.fromhex("".join(anchors.sha256.tolist())), dtype=np.uint8)
    tensors = {
        "latents": anchors.latents.contiguous(),
        "objects": torch.from_numpy(anchors.objects.copy()),
        "pixel_sha256": torch.from_numpy(digests.copy()).view(-1, DIGEST_BYTES),  # (m, 32)
    }
    with atomic_file(path) as temporary:
        # one entry: safetensors keeps several in no fixed order
        save_file(tensors, temporary, metadata={"anchors": canonical_json(about)})


def load_anchors(path: Path, generator_digest: str) -> Anchors:
    """Reads what `save_anchors` wrote.

    Args:
        path: of the file.
        generator_digest: of the generator that the samples are of.
    Raises:
        ArtifactError: missing, damaged, of another form or of another generator, naming the file.
    """
    remedy = "run `dvc checkout`, or synthesize again"
    try:
        with safe_open(path, framework="pt") as stored:
            about: Any = json.loads((stored.metadata() or {})["anchors"])
            tensors = {name: stored.get_tensor(name) for name in ("latents", "objects", "pixel_sha256")}
        form, digest = about["form"], about["generator_digest"]
        anchors = Anchors(
            tensors["latents"].float(),
            tensors["objects"].numpy().astype(np.int64),
            np.array([row.tobytes().hex() for row in tensors["pixel_sha256"].view(-1, DIGEST_BYTES).numpy()], np.str_),
            float(about["jitter"]),
            float(about["neighbour"]),
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError, TrainingError) as error:
        raise ArtifactError(f"{path} cannot be read as anchors ({error}); {remedy}") from error
    if form != FORM:
        raise ArtifactError(f"{path} has form {form}, this version reads {FORM}; {remedy}")
    if digest != generator_digest:
        raise ArtifactError(
            f"{path} holds latents of generator {str(digest)[:12]}, the samples are of {generator_digest[:12]}; "
            f"{remedy}"
        )
    return anchors
