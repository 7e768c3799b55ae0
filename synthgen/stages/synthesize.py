"""`synthgen synthesize --fold FOLD`: labelled samples of every class, judged and selected.

Reads the fold's generators and training images, from which image-to-image generators start; writes
`data/synthetic/FOLD/`. The teacher that judges is trained on the same training images as the generators; no other image
is seen. The shortcut probe then says how well what was accepted can be told from those. Under `latents: between_reals`
the same training images are found in each generator's latent space, and candidates lie between them. Under `morphs`
there is one pool more, which no generator makes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from synthgen.artifacts import atomic_folder, write_json
from synthgen.classifier.arms import classical_arm
from synthgen.classifier.draws import RealImages
from synthgen.classifier.networks import SMALL, SmallCnn
from synthgen.classifier.prediction import extract_features, predict_logits
from synthgen.classifier.training import train_classifier
from synthgen.dataset.origin_record import ORIGIN_FILE
from synthgen.dataset.pools import Pool, shard_name
from synthgen.dataset.prepared import load_prepared, rows_of_index
from synthgen.dataset.shards import SyntheticRows, write_synthetic_shard
from synthgen.dataset.transforms import render_bank
from synthgen.gan.checkpoint import failure_of, load_gan
from synthgen.gan.projection import refuse_without_latents
from synthgen.gan.sampling import Sampled, sample_images
from synthgen.gan.selection import Selection, select_samples, typical_distance
from synthgen.progress import progress_bar
from synthgen.records import ClassPlan
from synthgen.seeding import derive_seed
from synthgen.stages.between_reals import RealAnchors
from synthgen.stages.gan_output import save_grid
from synthgen.stages.morphed_pool import MorphedPool
from synthgen.stages.shortcut import OriginWatch
from synthgen.stages.training_context import BANK_FOLDER
from synthgen.stages.translation import ContentSource
from synthgen.stages.workspace import Workspace

N_PREVIEW = 12
TEACHER_VARIANTS = 8


def run_synthesize(workspace: Workspace, fold: str, device: torch.device) -> None:
    """Makes the synthetic images of one fold.

    Raises:
        ArtifactError: a generator is missing or altered.
        ConfigError: `latents: between_reals` and a generator that starts from other pictures.
        TrainingError: the teacher's training failed.
    """
    config, plan = workspace.config, workspace.plan
    section = config.synthesize
    if section.latents == "between_reals":
        refuse_without_latents(config.pretrain.network.architecture)
    data = load_prepared(workspace.prepared)
    rows = rows_of_index(data, workspace.fold_index(fold), plan.slugs)
    labels, images = data.labels[rows], data.verified(rows)

    teacher = _train_teacher(workspace, fold, images, labels, data.sha256[rows].tolist(), device)
    features = extract_features(teacher, images, device)
    fallback = float(np.median([typical_distance(features[labels == k]) for k in range(len(data.slugs))]))

    between = None
    if section.latents == "between_reals":
        between = RealAnchors(
            section,
            images,
            labels,
            data.groups[rows],
            data.sha256[rows],
            features,
            teacher=teacher,
            fallback_distance=fallback,
            seed=config.seed,
            fold=fold,
            device=device,
        )
    origin = OriginWatch(images, labels, data.groups[rows], data.slugs, seed=config.seed, fold=fold, device=device)
    morphs = None
    if section.morphs is not None:
        groups, sha256 = data.groups[rows], data.sha256[rows]
        morphs = MorphedPool(
            section.morphs, images, labels, groups, sha256, plan.slugs, seed=config.seed, fold=fold, batch=section.batch
        )
    pools = [(slug, pool) for slug in plan.slugs for pool in _pools(plan.classes[slug], morphs is not None)]
    source = _CandidateSource(workspace, fold, device, between, morphs)
    acceptance: dict[str, Any] = {}
    preview: dict[Pool, list[NDArray[np.uint8]]] = {"default": [], "morphed": []}
    with atomic_folder(workspace.synthetic(fold)) as partial, progress_bar(f"synthesize {fold}", len(pools)) as advance:
        for slug, pool in pools:
            name, entry = shard_name(slug, pool), plan.classes[slug]
            drawn = source.draw(slug, pool, partial)
            if isinstance(drawn, str):
                _write_empty(partial, name, workspace, slug, fold, data.images.shape[1:])
                acceptance[name] = {"refused": drawn, "candidates": 0, "accepted": 0}
                advance()
                continue
            sampled = drawn.sampled
            agreement = _softmax(predict_logits(teacher, sampled.images, device))[:, entry.label]
            selection = select_samples(
                extract_features(teacher, sampled.images, device),
                agreement,
                features[labels == entry.label],
                fallback,
                section,
                entry.target,
            )
            kept = _shard_rows(sampled, agreement, selection)
            write_synthetic_shard(
                partial / f"{name}.parquet",
                kept,
                label=entry.label,
                class_name=entry.class_name,
                slug=slug,
                fold=fold,
                generator_digest=drawn.digest,
                class_names=data.class_names,
            )
            acceptance[name] = _acceptance(selection, drawn.digest) | drawn.about
            origin.see(name, kept.images)
            if pool in preview:
                preview[pool].append(_preview_row(kept.images, sampled.images))
            advance()
        without = [slug for slug in plan.slugs if plan.classes[slug].target == 0]
        for name, slug in [
            (shard_name(slug, pool), slug) for slug in without for pool in _own_pools(morphs is not None)
        ]:
            _write_empty(partial, name, workspace, slug, fold, data.images.shape[1:])
            acceptance[name] = {"refused": "too few training images for a generator", "candidates": 0, "accepted": 0}
        write_json(partial / "acceptance.json", acceptance)
        write_json(partial / ORIGIN_FILE, origin.record())
        for pool, grid in preview.items():
            if grid:
                save_grid(partial / f"{shard_name('preview', pool)}.png", np.stack(grid))


@dataclass(frozen=True)
class _Drawn:
    """Candidates of one class from one pool, the digest of what made them, and what acceptance.json says of it."""

    sampled: Sampled
    digest: str
    about: dict[str, Any]


class _CandidateSource:
    """Candidates of a fold: from its generators, or morphs."""

    def __init__(
        self,
        workspace: Workspace,
        fold: str,
        device: torch.device,
        between: RealAnchors | None,
        morphs: MorphedPool | None,
    ) -> None:
        self._workspace, self._fold, self._device = workspace, fold, device
        self._between, self._morphs = between, morphs
        self._contents = ContentSource(workspace, fold)

    def draw(self, slug: str, pool: Pool, partial: Path) -> _Drawn | str:
        """Enough candidates of a class, or why it has no generator; anchors between reals go to `partial`."""
        workspace, fold, device = self._workspace, self._fold, self._device
        section, entry = workspace.config.synthesize, workspace.plan.classes[slug]
        n_wanted = round(entry.target * section.oversample)
        if pool == "morphed" and self._morphs is not None:
            about = {"pairs": self._morphs.pairs(entry.label)}
            return _Drawn(self._morphs.sample(entry.label, n_wanted), self._morphs.digest, about)
        folder = workspace.model_of(fold, slug) if pool == "default" else workspace.shared_model(fold)
        failure = failure_of(folder)
        if failure is not None:
            return failure
        gan, name = load_gan(folder, device), shard_name(slug, pool)
        anchors, projected = self._between.find(partial, name, entry.label, gan) if self._between else (None, None)
        sampled = sample_images(
            gan.generator,
            gan.discriminator,
            entry.label,
            n_wanted,
            seed=derive_seed(workspace.config.seed, "synthesize", fold, name),
            batch=section.batch,
            truncation=section.truncation,
            device=device,
            content=self._contents.of(gan),
            anchors=anchors,
        )
        return _Drawn(sampled, gan.digest, {} if projected is None else {"projection": projected})


def _train_teacher(
    workspace: Workspace,
    fold: str,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    sha256: list[str],
    device: torch.device,
) -> SmallCnn:
    """The classical arm on the fold's training images, and nothing that depends on any other image."""
    config = workspace.config
    bank = render_bank(
        images,
        sha256,
        np.full(len(images), TEACHER_VARIANTS),
        "classical",
        config.transforms,
        seed=config.seed,
        cache=workspace.root / BANK_FOLDER,
    )
    teacher = train_classifier(
        classical_arm("classical"),
        RealImages(images, labels, np.arange(len(images)), transforms=bank),
        None,
        config.classifier.model_copy(
            update={"network": SMALL, "weights": None, "steps": config.synthesize.teacher_steps}
        ),
        n_classes=len(workspace.plan.slugs),
        real_share=0.0,
        mix_alpha=1.0,
        seed=derive_seed(config.seed, "teacher", fold),
        device=device,
    )
    assert isinstance(teacher, SmallCnn)
    return teacher


def _own_pools(has_morphs: bool) -> list[Pool]:
    """Pools that have a shard of every class."""
    return ["default", "morphed"] if has_morphs else ["default"]


def _pools(entry: ClassPlan, has_morphs: bool) -> list[Pool]:
    if entry.target == 0:
        return []
    pools = _own_pools(has_morphs)
    return [*pools, "shared"] if entry.generator == "adapted" else pools


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True), dtype=np.float32)


def _shard_rows(sampled: Sampled, agreement: NDArray[np.float32], selection: Selection) -> SyntheticRows:
    chosen = selection.accepted
    kept = sampled.take(chosen)
    return SyntheticRows(
        kept.images,
        kept.seeds,
        kept.positions,
        kept.d_score,
        agreement[chosen],
        selection.nearest_real[chosen],
        kept.sources,
    )


def _acceptance(selection: Selection, digest: str) -> dict[str, Any]:
    return {
        "candidates": selection.n_judged,
        "accepted": len(selection.accepted),
        "rejected": selection.rejected,
        "generator_digest": digest,
        "refused": selection.refused,
        "diversity_ratio": round(selection.diversity_ratio, 4),
    }


def _preview_row(accepted: NDArray[np.uint8], candidates: NDArray[np.uint8]) -> NDArray[np.uint8]:
    row = np.zeros((N_PREVIEW, *candidates.shape[1:]), dtype=np.uint8)
    row[: len(accepted[:N_PREVIEW])] = accepted[:N_PREVIEW]
    return row


def _write_empty(folder: Path, name: str, workspace: Workspace, slug: str, fold: str, shape: tuple[int, ...]) -> None:
    entry = workspace.plan.classes[slug]
    nothing = np.zeros(0, dtype=np.float32)
    rows = SyntheticRows(
        np.zeros((0, *shape), np.uint8), np.zeros(0, np.int64), np.zeros(0, np.int32), nothing, nothing, nothing
    )
    names = [workspace.plan.classes[other].class_name for other in workspace.plan.slugs]
    write_synthetic_shard(
        folder / f"{name}.parquet",
        rows,
        label=entry.label,
        class_name=entry.class_name,
        slug=slug,
        fold=fold,
        generator_digest="",
        class_names=names,
    )
