"""The arms `paste` and `paste_whole` as trainings: rows, shares, seeds, digests and what arm.json says."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from synthgen.classifier import jobs
from synthgen.classifier.arms import CLASSICAL_ARMS, challenge_arm
from synthgen.classifier.draws import plan_draws
from synthgen.classifier.job_cache import job_digests
from synthgen.classifier.job_records import TrainingContext, TrainingJob, fold_jobs
from synthgen.classifier.pasted_pool import build_pasted_pool, describe_regions
from synthgen.classifier.together import Member, train_together
from synthgen.classifier.training import train_classifier
from synthgen.config import ClassifierSection
from synthgen.dataset.pasted_pool import MAX_COMPOSITES, PasteRules
from synthgen.dataset.pasting import PasteRanges
from synthgen.errors import TrainingError
from tests.classifier.conftest import mixing

ARMS = ["paste", "paste_whole"]


@pytest.fixture
def paste_context(job_context: TrainingContext) -> TrainingContext:
    """Masks on class b alone; class a is the largest that is not scarce."""
    masks = np.zeros(job_context.images.shape[:3], dtype=bool)
    masks[job_context.data.labels == 1, 2:5, 3:6] = True
    return replace(
        job_context, data=replace(job_context.data, masks=masks), paste=PasteRules(PasteRanges(), scarce=(1,))
    )


def _jobs(context: TrainingContext, arm: str, crossfit: bool = True) -> list[TrainingJob]:
    return fold_jobs(context.data, CLASSICAL_ARMS[arm], "f0", 2, crossfit=crossfit)


@pytest.mark.parametrize("arm", ARMS)
def test_no_row_that_is_held_out_decides_a_pixel(paste_context: TrainingContext, arm: str) -> None:
    rng = np.random.default_rng(9)
    for job in _jobs(paste_context, arm):
        pool = build_pasted_pool(job, paste_context)
        assert pool is not None
        used = set(pool.region_rows.tolist()) | set(pool.background_rows.tolist())
        assert used <= set(job.train.tolist())
        out = np.setdiff1d(np.arange(len(paste_context.images)), job.train)
        assert len(out)
        images = paste_context.images.copy()
        images[out] = rng.integers(0, 256, images[out].shape, dtype=np.uint8)
        masks, labels = paste_context.data.masks.copy(), paste_context.data.labels.copy()  # type: ignore[union-attr]
        masks[out], labels[out] = True, 0
        other = replace(
            paste_context, images=images, data=replace(paste_context.data, images=images, masks=masks, labels=labels)
        )
        again = build_pasted_pool(job, other)
        assert again is not None and again.images.tobytes() == pool.images.tobytes()
        assert np.array_equal(pool.labels, paste_context.data.labels[pool.region_rows])


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("with_synthetic", [False, True])
def test_every_class_has_the_same_share_of_composites(
    paste_context: TrainingContext, arm: str, with_synthetic: bool
) -> None:
    section = ClassifierSection(width=4, steps=40, batch=48)
    context = replace(paste_context, section=section)
    job = _jobs(context, arm)[0]
    spec = challenge_arm("x+synthetic", job.arm, mixing()) if with_synthetic else job.arm
    reals = jobs._reals_of(replace(job, arm=spec), context)
    assert reals.pasted is not None and len(reals.pasted.labels) == 40 * 12
    draws = plan_draws(spec, reals, context.synthetic["f0"], section, context.real_share, 5)
    assert draws.sources[1] is reals.pasted.images
    composites = draws.source == 1
    assert (composites.sum(axis=1) == 12).all()
    shares = [composites[draws.labels == label].mean() for label in range(3)]
    assert shares == pytest.approx([0.25] * 3, abs=1e-9)
    assert np.array_equal(draws.labels[composites], reals.pasted.labels[draws.rows[composites]])
    # as many were made as are drawn, so each is shown once
    assert np.bincount(draws.rows[composites], minlength=480).tolist() == [1] * 480


def test_repeats_and_inner_parts_have_composites_of_their_own(paste_context: TrainingContext) -> None:
    made = [build_pasted_pool(job, paste_context) for job in _jobs(paste_context, "paste")]
    assert len({pool.images.tobytes() for pool in made if pool is not None}) == len(made)
    again = build_pasted_pool(_jobs(paste_context, "paste")[1], paste_context)
    assert again is not None and made[1] is not None and np.array_equal(again.images, made[1].images)


def test_arms_without_composites_make_none_and_a_share_of_nothing_is_none(paste_context: TrainingContext) -> None:
    assert build_pasted_pool(_jobs(paste_context, "control")[0], paste_context) is None
    assert build_pasted_pool(_jobs(paste_context, "paste")[0], replace(paste_context, real_share=0.0)) is None
    long = replace(paste_context, section=ClassifierSection(width=4, steps=3000, batch=32))
    pool = build_pasted_pool(_jobs(long, "paste")[0], long)
    assert pool is not None and 0 <= len(pool.labels) - MAX_COMPOSITES < 3


@pytest.mark.parametrize("arm", ARMS)
def test_results_do_not_depend_on_the_processes(paste_context: TrainingContext, arm: str) -> None:
    todo = _jobs(paste_context, arm, crossfit=False)
    one, two = (
        jobs.run_jobs(todo, paste_context, n_workers=n_workers, description="test").logits for n_workers in (1, 2)
    )
    assert np.array_equal(one, two)


def test_trained_side_by_side_the_networks_are_the_same(paste_context: TrainingContext) -> None:
    job = _jobs(paste_context, "paste")[0]
    seed = jobs._seed_of(job, paste_context)
    shared = {"n_classes": 3, "real_share": 0.25, "mix_alpha": 0.3, "device": torch.device("cpu")}
    section = paste_context.section
    alone = train_classifier(job.arm, jobs._reals_of(job, paste_context), None, section, seed=seed, **shared)
    members = [Member(jobs._shared_reals_of(job, paste_context), None, seed)] * 2
    together = train_together(job.arm, members, section, **shared)
    for mine, theirs in zip(alone.parameters(), together[1].parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-4)


def test_a_mask_of_a_training_row_changes_the_digest_and_no_other_does(paste_context: TrainingContext) -> None:
    def with_mask(context: TrainingContext, row: int) -> TrainingContext:
        masks = context.data.masks.copy()  # type: ignore[union-attr]
        masks[row, 0, 0] ^= True
        return replace(context, data=replace(context.data, masks=masks))

    for arm, changes in (("paste", True), ("paste_whole", False), ("control", False)):
        todo = _jobs(paste_context, arm, crossfit=False)[:1]
        own = job_digests(todo, paste_context)
        out = int(np.setdiff1d(np.arange(30), todo[0].train)[0])
        assert job_digests(todo, with_mask(paste_context, out)) == own
        assert (job_digests(todo, with_mask(paste_context, int(todo[0].train[0]))) != own) == changes
        ranges = replace(paste_context, paste=PasteRules(PasteRanges(rotate=90.0), (1,)))
        assert (job_digests(todo, ranges) != own) == (arm != "control")


def test_what_arm_json_says(paste_context: TrainingContext) -> None:
    paste = CLASSICAL_ARMS["paste"]
    assert describe_regions(paste, paste_context, ["f0"]) == {
        "f0": {"backgrounds": "a", "regions": {"b": {"origin": "masks", "n": 3}, "c": {"origin": "none", "n": 0}}}
    }
    assert describe_regions(CLASSICAL_ARMS["paste_whole"], paste_context, ["f0"]) == {"f0": {}}
    without = replace(paste_context, data=replace(paste_context.data, masks=None))
    with pytest.raises(TrainingError, match=r"arm paste, fold f1.*prepare\.masks"):
        describe_regions(paste, without, ["f1"])


def test_missing_rules_and_missing_composites_are_named(paste_context: TrainingContext) -> None:
    job = _jobs(paste_context, "paste")[0]
    with pytest.raises(TrainingError, match="rules for pasting"):
        build_pasted_pool(job, replace(paste_context, paste=None))
    reals = replace(jobs._reals_of(job, paste_context), pasted=None)
    with pytest.raises(TrainingError, match="arm paste: no composites"):
        plan_draws(job.arm, reals, None, paste_context.section, 0.25, 0)
