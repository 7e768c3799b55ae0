"""The arm `pseudo_labelled`: who is the teacher, what it labels, what the student draws, what is kept of it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthgen.classifier import jobs
from synthgen.classifier.arms import CLASSICAL_ARMS, challenge_arm, needs_unlabelled
from synthgen.classifier.draws import RealImages, plan_draws
from synthgen.classifier.job_cache import job_digests
from synthgen.classifier.job_records import TrainingContext, TrainingJob, fold_jobs
from synthgen.classifier.prediction import predict_logits
from synthgen.classifier.pseudo_labels import PseudoLabelled, UnlabelledPool, choose_pseudo_labels, most_per_class
from synthgen.classifier.training import train_classifier
from synthgen.config import ClassifierSection
from synthgen.dataset.prepared import pixel_sha256
from synthgen.dataset.transforms import TransformBank
from synthgen.errors import ArtifactError, TrainingError
from tests.classifier.conftest import mixing

ARM = CLASSICAL_ARMS["pseudo_labelled"]


def shown(label: int, rng: np.random.Generator) -> np.ndarray:
    """Noise with a bright stripe whose place is the class."""
    image = rng.integers(0, 80, (8, 8, 1), dtype=np.uint8)
    image[1 + 2 * label : 3 + 2 * label] += 170
    return image


def pool_of(images: np.ndarray) -> UnlabelledPool:
    digests = np.array([pixel_sha256(image) for image in images])
    return UnlabelledPool(images, digests, TransformBank(np.repeat(images, 3, axis=0), 3 * np.arange(len(images) + 1)))


@pytest.fixture
def context(job_context: TrainingContext) -> TrainingContext:
    """Learnable images, and 24 unlabelled ones: ten of class a, ten of class b, four of noise, none of class c."""
    rng = np.random.default_rng(3)
    images = np.stack([shown(int(label), rng) for label in job_context.data.labels])
    hidden = [shown(k // 10, rng) for k in range(20)]
    noise = [rng.integers(0, 256, (8, 8, 1), dtype=np.uint8) for _ in range(4)]
    bank = TransformBank(np.repeat(images, 2, axis=0), np.arange(0, 61, 2))
    return replace(
        job_context,
        data=replace(job_context.data, images=images),
        images=images,
        banks={"classical": bank},
        section=ClassifierSection(width=8, steps=60, batch=24, lr=0.01),
        unlabelled=pool_of(np.stack([*hidden, *noise])),
    )


def todo(context: TrainingContext, crossfit: bool = True) -> list[TrainingJob]:
    return fold_jobs(context.data, ARM, "f0", 2, crossfit=crossfit)


def labelled_of(job: TrainingJob, context: TrainingContext) -> PseudoLabelled:
    """What the job's student is given."""
    reals = jobs._reals_of(job, context)
    teacher = jobs._train(CLASSICAL_ARMS["classical"], reals, job, context)
    found = jobs._with_pseudo_labels(reals, teacher, job, context).pseudo
    assert found is not None
    return found


@given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.integers(1, 6), st.sampled_from([0.0, 0.5, 0.95]))
@settings(max_examples=60, deadline=None)
def test_the_surest_of_each_class_by_a_plain_loop(seed: int, m: int, at_most: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    logits = (4 * rng.standard_normal((m, 3))).round(1).astype(np.float32)
    known = np.array(sorted(rng.choice(3, size=2, replace=False)))
    wanted: list[tuple[int, int]] = []
    for label in known:
        sure = []
        for row, values in enumerate(logits.astype(np.float64)):
            exponentials = np.exp(values - values.max())
            p = exponentials / exponentials.sum()
            if int(np.argmax(p)) == label and p.max() >= threshold:
                sure.append((-p.max(), row))
        wanted += [(row, int(label)) for _, row in sorted(sure)[:at_most]]
    rows, labels = choose_pseudo_labels(logits, known, at_most, threshold)
    assert list(zip(rows.tolist(), labels.tolist(), strict=True)) == sorted(wanted)


def test_no_more_of_a_class_than_are_drawn() -> None:
    assert most_per_class(60, 6, 3) == 120
    assert most_per_class(7, 2, 3) == 5


def test_the_teacher_is_the_arm_classical_of_the_same_training(context: TrainingContext) -> None:
    """Same rows, weights, seeds and steps; untransformed images; and it is right where it is sure."""
    for job in (todo(context)[0], todo(context)[2]):
        classical = replace(job, arm=CLASSICAL_ARMS["classical"])
        network = train_classifier(
            classical.arm,
            jobs._reals_of(classical, context),
            None,
            context.section,
            n_classes=3,
            real_share=0.25,
            mix_alpha=0.3,
            seed=jobs._seed_of(classical, context),
            device=context.device,
        )
        pool = context.unlabelled
        assert pool is not None
        rows, labels = choose_pseudo_labels(predict_logits(network, pool.images, context.device), np.arange(3), 120)
        found = labelled_of(job, context)
        assert np.array_equal(found.rows, rows) and np.array_equal(found.labels, labels)
        clear = rows < 20
        assert clear.sum() >= 5 and np.array_equal(labels[clear], rows[clear] // 10)


def test_no_row_that_is_held_out_decides_a_pseudo_label(context: TrainingContext) -> None:
    for job in todo(context)[1:3]:
        out = np.setdiff1d(np.arange(30), job.train)
        images, labels = context.images.copy(), context.data.labels.copy()
        images[out], labels[out] = 255 - images[out], 0
        bank = TransformBank(np.repeat(images, 2, axis=0), np.arange(0, 61, 2))
        other = replace(
            context,
            images=images,
            banks={"classical": bank},
            data=replace(context.data, images=images, labels=labels),
        )
        mine, theirs = labelled_of(job, context), labelled_of(job, other)
        assert np.array_equal(mine.rows, theirs.rows) and np.array_equal(mine.labels, theirs.labels)


@pytest.mark.parametrize("with_synthetic", [False, True])
def test_every_class_has_the_same_share_and_one_without_labels_keeps_its_reals(
    context: TrainingContext, with_synthetic: bool
) -> None:
    job = todo(context)[0]
    spec = challenge_arm("x+synthetic", ARM, mixing()) if with_synthetic else ARM
    pool = context.unlabelled
    assert pool is not None
    own = PseudoLabelled(np.array([1, 5, 12]), np.array([0, 0, 1]), pool.bank)  # none of class 2
    reals = replace(jobs._reals_of(job, context), pseudo=own)
    draws = plan_draws(spec, reals, context.synthetic["f0"], context.section, 0.25, 5)
    unlabelled = next(k for k, images in enumerate(draws.sources) if images is pool.bank.images)
    from_pool = (draws.source == unlabelled) | (draws.source == 1)
    assert unlabelled == 2 and (from_pool.sum(axis=1) == 6).all()
    assert [from_pool[draws.labels == label].mean() for label in range(3)] == pytest.approx([0.25] * 3, abs=0.05)
    assert set(np.unique(draws.labels[draws.source == unlabelled])) == {0, 1}
    assert set(np.unique(draws.labels[draws.source == 1])) == {2}  # its reals, transformed as ever
    assert draws.sources[1] is context.banks["classical"].images
    # a drawn variant is of the image that has the label
    shown_rows = draws.rows[draws.source == unlabelled] // 3
    label_of = {1: 0, 5: 0, 12: 1}
    assert [label_of[int(row)] for row in shown_rows] == draws.labels[draws.source == unlabelled].tolist()
    # and all three variants of each are shown
    assert set(np.unique(draws.rows[draws.source == unlabelled])) == {3 * row + k for row in label_of for k in range(3)}


def test_reals_are_drawn_as_in_the_arm_classical(context: TrainingContext) -> None:
    job = todo(context)[0]
    pool = context.unlabelled
    assert pool is not None
    reals = replace(jobs._reals_of(job, context), pseudo=PseudoLabelled(np.arange(3), np.arange(3), pool.bank))
    mine = plan_draws(ARM, reals, None, context.section, 0.25, 5)
    control = plan_draws(CLASSICAL_ARMS["duplicate"], reals, None, context.section, 0.25, 5)
    assert np.array_equal(mine.rows[mine.source == 0], control.rows[control.source == 0])
    assert np.array_equal(mine.source, control.source)


def test_when_nobody_is_sure_all_of_the_share_are_reals(context: TrainingContext) -> None:
    pool = context.unlabelled
    assert pool is not None
    nothing = PseudoLabelled(np.zeros(0, np.int64), np.zeros(0, np.int64), pool.bank)
    reals = replace(jobs._reals_of(todo(context)[0], context), pseudo=nothing)
    draws = plan_draws(ARM, reals, None, context.section, 0.25, 5)
    assert len(draws.sources) == 2 and all(images is not pool.bank.images for images in draws.sources)


def test_results_do_not_depend_on_the_processes(context: TrainingContext) -> None:
    short = replace(context, section=ClassifierSection(width=4, steps=12, batch=16, lr=0.01))
    one, two = (
        jobs.run_jobs(todo(short, crossfit=False), short, n_workers=n, description="test").logits for n in (1, 2)
    )
    assert np.array_equal(one, two)


def test_trained_side_by_side_results_are_the_same(context: TrainingContext) -> None:
    some = todo(context)[:2]
    alone = [jobs._run_job(job, context) for job in some]
    together = jobs._train_group(some, context)
    for mine, theirs in zip(alone, together, strict=True):
        assert mine.n_pseudo == theirs.n_pseudo and mine.n_pseudo is not None
        for a, b in zip(mine.predictions, theirs.predictions, strict=True):
            assert np.allclose(a.logits, b.logits, atol=2e-2)


def test_counts_are_kept_with_the_predictions_and_outlive_a_kill(context: TrainingContext, tmp_path: Path) -> None:
    some = todo(context, crossfit=False)
    jobs.run_jobs(some[:1], context, n_workers=1, description="killed after one", scratch=tmp_path)
    with pytest.raises(ArtifactError):
        jobs.count_pseudo_labels(some, context, tmp_path)
    jobs.run_jobs(some, context, n_workers=2, description="again", scratch=tmp_path)
    said = jobs.count_pseudo_labels(some, context, tmp_path)
    oracle = [labelled_of(job, context).counts(["a", "b", "c"]) for job in some]
    assert said == {"f0": {"pseudo_labels": {slug: [n[slug] for n in oracle] for slug in ("a", "b", "c")}}}
    other = fold_jobs(context.data, CLASSICAL_ARMS["classical"], "f0", 1, crossfit=False)
    assert jobs.count_pseudo_labels(other, context, tmp_path) == {}


@pytest.mark.parametrize(
    "content", [None, b"", b'{"a": 1', b"[1, 2]", b'{"a": 1}', b'{"a": 1, "b": "x", "c": -1}', b"\xff"]
)
def test_a_training_whose_counts_are_damaged_is_done_again(
    context: TrainingContext, tmp_path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    short = replace(context, section=ClassifierSection(width=4, steps=4, batch=16, lr=0.01))
    some = todo(short, crossfit=False)
    first = jobs.run_jobs(some, short, n_workers=1, description="first", scratch=tmp_path)
    said = jobs.count_pseudo_labels(some, short, tmp_path)
    damaged = tmp_path / f"{job_digests(some, short)[1]}.pseudo.json"
    if content is None:
        damaged.unlink()
    else:
        damaged.write_bytes(content)
    with pytest.raises(ArtifactError, match=damaged.name):
        jobs.count_pseudo_labels(some, short, tmp_path)
    caplog.set_level("INFO")
    again = jobs.run_jobs(some, short, n_workers=1, description="again", scratch=tmp_path)
    assert "again: 1 of 2 trainings were finished before" in caplog.messages  # and the other one alone is done again
    assert sum(damaged.name in line for line in caplog.messages) == 1
    # what was kept comes in the order of its file
    assert sorted(first.logits.tolist()) == sorted(again.logits.tolist())
    assert jobs.count_pseudo_labels(some, short, tmp_path) == said


def test_the_unlabelled_images_decide_the_digest_of_this_arm_alone(context: TrainingContext) -> None:
    pool = context.unlabelled
    assert pool is not None
    fewer = replace(context, unlabelled=pool_of(pool.images[:-1]))
    for arm, changes in ((ARM, True), (CLASSICAL_ARMS["classical"], False)):
        some = fold_jobs(context.data, arm, "f0", 1, crossfit=False)
        assert (job_digests(some, context) != job_digests(some, fewer)) == changes
    own = fold_jobs(context.data, CLASSICAL_ARMS["classical"], "f0", 1, crossfit=False)
    assert job_digests(own, context) == job_digests(own, replace(context, unlabelled=None))


def test_a_share_of_nothing_needs_no_teacher(context: TrainingContext) -> None:
    none = replace(context, real_share=0.0, unlabelled=None)
    done = jobs._run_job(todo(context)[0], none)
    classical = jobs._run_job(replace(todo(context)[0], arm=CLASSICAL_ARMS["classical"]), none)
    assert done.n_pseudo is None
    for a, b in zip(done.predictions, classical.predictions, strict=True):
        assert np.array_equal(a.logits, b.logits)


def test_missing_images_and_missing_labels_are_named(context: TrainingContext) -> None:
    job = todo(context)[0]
    with pytest.raises(TrainingError, match=r"pseudo_labelled needs unlabelled images"):
        jobs._run_job(job, replace(context, unlabelled=None))
    reals = jobs._reals_of(job, context)
    assert isinstance(reals, RealImages) and reals.pseudo is None
    with pytest.raises(TrainingError, match="no unlabelled image was labelled"):
        plan_draws(ARM, reals, None, context.section, 0.25, 0)


def test_who_needs_unlabelled_images() -> None:
    assert [name for name in CLASSICAL_ARMS if needs_unlabelled(name)] == ["pseudo_labelled"]
    assert not needs_unlabelled("best")
