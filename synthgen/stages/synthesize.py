"""`synthgen synthesize --fold FOLD`: labelled samples of every class, judged and selected.

Reads the fold's generators and training images, from which image-to-image generators start; writes
`data/synthetic/FOLD/`. The teacher that judges is trained on the same training images as the generators; no other image
is seen. The shortcut probe then says how well what was accepted can be told from those. Under `latents: between_reals`
the same training images are found in each generator's latent space, and candidates lie between them.
"""

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
from synthgen.dataset.prepared import load_prepared, rows_of_index
from synthgen.dataset.shards import SyntheticRows, write_synthetic_shard
from synthgen.dataset.transforms import render_bank
from synthgen.gan.checkpoint import TrainedGan, failure_of, load_gan
from synthgen.gan.projection import refuse_without_latents
from synthgen.gan.sampling import Sampled, sample_images
from synthgen.gan.selection import Selection, select_samples, typical_distance
from synthgen.progress import progress_bar
from synthgen.seeding import derive_seed
from synthgen.stages.between_reals import RealAnchors
from synthgen.stages.gan_output import save_grid
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
    pools = [
        (slug, kind) for slug in plan.slugs for kind in _pools(plan.classes[slug].generator, plan.classes[slug].target)
    ]
    contents = ContentSource(workspace, fold)
    acceptance: dict[str, Any] = {}
    preview: list[NDArray[np.uint8]] = []
    with atomic_folder(workspace.synthetic(fold)) as partial, progress_bar(f"synthesize {fold}", len(pools)) as advance:
        for slug, kind in pools:
            entry = plan.classes[slug]
            name = f"{slug}.shared" if kind == "compare" else slug
            folder = workspace.model_of(fold, slug) if kind == "default" else workspace.shared_model(fold)
            failure = failure_of(folder)
            if failure is not None:
                _write_empty(partial, workspace, slug, fold, data.images.shape[1:])
                acceptance[name] = {"refused": failure, "candidates": 0, "accepted": 0}
                advance()
                continue
            gan = load_gan(folder, device)
            anchors, projected = between.find(partial, name, entry.label, gan) if between else (None, None)
            sampled = sample_images(
                gan.generator,
                gan.discriminator,
                entry.label,
                round(entry.target * section.oversample),
                seed=derive_seed(config.seed, "synthesize", fold, name),
                batch=section.batch,
                truncation=section.truncation,
                device=device,
                content=contents.of(gan),
                anchors=anchors,
            )
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
                generator_digest=gan.digest,
                class_names=data.class_names,
            )
            acceptance[name] = _acceptance(selection, gan) | ({} if projected is None else {"projection": projected})
            origin.see(name, kept.images)
            if kind == "default":
                preview.append(_preview_row(kept.images, sampled.images))
            advance()
        for slug in plan.slugs:
            if plan.classes[slug].target == 0:
                _write_empty(partial, workspace, slug, fold, data.images.shape[1:])
                acceptance[slug] = {
                    "refused": "too few training images for a generator",
                    "candidates": 0,
                    "accepted": 0,
                }
        write_json(partial / "acceptance.json", acceptance)
        write_json(partial / ORIGIN_FILE, origin.record())
        if preview:
            save_grid(partial / "preview.png", np.stack(preview))


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


def _pools(generator: str, target: int) -> list[str]:
    if target == 0:
        return []
    return ["default", "compare"] if generator == "adapted" else ["default"]


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


def _acceptance(selection: Selection, gan: TrainedGan) -> dict[str, Any]:
    return {
        "candidates": selection.n_judged,
        "accepted": len(selection.accepted),
        "rejected": selection.rejected,
        "generator_digest": gan.digest,
        "refused": selection.refused,
        "diversity_ratio": round(selection.diversity_ratio, 4),
    }


def _preview_row(accepted: NDArray[np.uint8], candidates: NDArray[np.uint8]) -> NDArray[np.uint8]:
    row = np.zeros((N_PREVIEW, *candidates.shape[1:]), dtype=np.uint8)
    row[: len(accepted[:N_PREVIEW])] = accepted[:N_PREVIEW]
    return row


def _write_empty(folder: Any, workspace: Workspace, slug: str, fold: str, shape: tuple[int, ...]) -> None:
    entry = workspace.plan.classes[slug]
    nothing = np.zeros(0, dtype=np.float32)
    rows = SyntheticRows(
        np.zeros((0, *shape), np.uint8), np.zeros(0, np.int64), np.zeros(0, np.int32), nothing, nothing, nothing
    )
    names = [workspace.plan.classes[other].class_name for other in workspace.plan.slugs]
    write_synthetic_shard(
        folder / f"{slug}.parquet",
        rows,
        label=entry.label,
        class_name=entry.class_name,
        slug=slug,
        fold=fold,
        generator_digest="",
        class_names=names,
    )
