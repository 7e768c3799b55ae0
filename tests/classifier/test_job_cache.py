"""A killed evaluation goes on where it was: missing trainings alone run, the file is the same, nothing else is used."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from synthgen.classifier import jobs
from synthgen.classifier.arms import CLASSICAL_ARMS, challenge_arm
from synthgen.classifier.draws import SyntheticImages
from synthgen.classifier.job_cache import job_digests, kept_predictions
from synthgen.classifier.job_records import TrainingContext, TrainingJob, fold_jobs
from synthgen.dataset.predictions import save_predictions
from synthgen.dataset.transforms import TransformBank
from synthgen.versions import VERSIONS
from tests.classifier.conftest import mixing

ARM = challenge_arm("best+synthetic", CLASSICAL_ARMS["control"], mixing())


class Killed(BaseException):
    """Stands for a signal."""


def _jobs(context: TrainingContext, arm: str = "control") -> list[TrainingJob]:
    return [
        job for fold in ("f0", "f1") for job in fold_jobs(context.data, CLASSICAL_ARMS[arm], fold, 2, crossfit=True)
    ]


@pytest.fixture
def count_trainings(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], list[int]]:
    train = jobs.train_classifier

    def install(die_after: int | None) -> list[int]:
        trained: list[int] = []

        def spy(*arguments: object, **settings: object) -> object:
            if die_after is not None and len(trained) == die_after:
                raise Killed
            trained.append(1)
            return train(*arguments, **settings)  # type: ignore[arg-type]

        monkeypatch.setattr(jobs, "train_classifier", spy)
        return trained

    return install


def _run(context: TrainingContext, scratch: Path | None, path: Path, n_workers: int = 1) -> bytes:
    predictions = jobs.run_jobs(_jobs(context), context, n_workers=n_workers, description="test", scratch=scratch)
    save_predictions(path, predictions)
    return path.read_bytes()


@pytest.mark.parametrize("n_workers", [1, 2])
def test_a_killed_run_trains_only_what_is_missing_and_gives_the_same_file(
    job_context: TrainingContext,
    tmp_path: Path,
    count_trainings: Callable[[int | None], list[int]],
    n_workers: int,
) -> None:
    expected = _run(job_context, None, tmp_path / "whole.parquet")
    n_jobs = len(_jobs(job_context))
    count_trainings(3)
    with pytest.raises(Killed), kept_predictions(tmp_path, "control") as scratch:
        _run(job_context, scratch, tmp_path / "never.parquet")
    assert len(list(scratch.glob("*.parquet"))) == 3
    trained = count_trainings(None)
    with kept_predictions(tmp_path, "control") as scratch:
        assert _run(job_context, scratch, tmp_path / "again.parquet", n_workers) == expected
        if n_workers == 1:
            assert len(trained) == n_jobs - 3
        assert len(list(scratch.glob("*.sha256"))) == n_jobs
    assert not scratch.exists()


def test_nothing_is_trained_where_everything_was_finished(
    job_context: TrainingContext, tmp_path: Path, count_trainings: Callable[[int | None], list[int]]
) -> None:
    expected = _run(job_context, tmp_path / "kept", tmp_path / "first.parquet")
    trained = count_trainings(None)
    assert _run(job_context, tmp_path / "kept", tmp_path / "second.parquet", n_workers=2) == expected
    assert not trained


@pytest.mark.parametrize("damage", ["flip", "cut", "no digest", "no file", "digest of nothing"])
def test_a_damaged_file_is_trained_again(
    job_context: TrainingContext, tmp_path: Path, count_trainings: Callable[[int | None], list[int]], damage: str
) -> None:
    expected = _run(job_context, tmp_path / "kept", tmp_path / "first.parquet")
    path = sorted((tmp_path / "kept").glob("*.parquet"))[0]
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 3] ^= 1
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "no digest":
        path.with_suffix(".sha256").unlink()
    elif damage == "no file":
        path.unlink()
    else:
        path.with_suffix(".sha256").write_bytes(b"\xff\xfe")
    trained = count_trainings(None)
    assert _run(job_context, tmp_path / "kept", tmp_path / "second.parquet") == expected
    assert len(trained) == 1


def _other_bank(context: TrainingContext) -> TrainingContext:
    images = context.banks["mild"].images.copy()
    images[-1, 0, 0, 0] ^= 1
    return replace(context, banks={**context.banks, "mild": TransformBank(images, context.banks["mild"].starts)})


def _other_pool(context: TrainingContext) -> TrainingContext:
    pool = context.synthetic["f0"]
    return replace(context, synthetic={"f0": SyntheticImages(255 - pool.images, pool.labels)})


CHANGES: dict[str, Callable[[TrainingContext], TrainingContext]] = {
    "section": lambda c: replace(c, section=c.section.model_copy(update={"lr": 1e-3})),
    "real share": lambda c: replace(c, real_share=0.5),
    "mix": lambda c: replace(c, mix_alpha=0.7),
    "seed": lambda c: replace(c, seed=1),
    "label": lambda c: replace(c, data=replace(c.data, labels=np.roll(c.data.labels, 1))),
    "pixels": lambda c: replace(c, data=replace(c.data, sha256=np.roll(c.data.sha256, 1))),
    "bank": _other_bank,
    "bank rows": lambda c: replace(c, bank_rows=np.roll(c.bank_rows, 1)),
    "pool": _other_pool,
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_decides_the_result_changes_the_digest(job_context: TrainingContext, change: str) -> None:
    todo = fold_jobs(job_context.data, ARM, "f0", 1, crossfit=False)
    assert job_digests(todo, job_context) == job_digests(todo, replace(job_context))
    assert job_digests(todo, job_context) != job_digests(todo, CHANGES[change](job_context))


def test_arms_seeds_rows_and_versions_change_the_digest(
    job_context: TrainingContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = fold_jobs(job_context.data, ARM, "f0", 1, crossfit=False)
    others = [
        replace(job, arm=replace(ARM, loss="weighted")),
        replace(job, arm=replace(ARM, mixing=mixing(0.5))),
        replace(job, fold="f1"),
        replace(job, stream="repeat 1"),
        replace(job, repeat=1),
        replace(job, train=job.train[1:]),
        replace(job, parts=job.parts[:1]),
    ]
    digests = job_digests([job, *others], job_context)
    monkeypatch.setitem(VERSIONS, "classifier", VERSIONS["classifier"] + 1)
    digests += job_digests([job], job_context)
    assert len(set(digests)) == len(others) + 2


def test_an_arm_without_synthetic_images_does_not_depend_on_them(job_context: TrainingContext) -> None:
    todo = _jobs(job_context)
    assert job_digests(todo, job_context) == job_digests(todo, _other_pool(job_context))


def test_another_config_reuses_nothing_and_its_files_go_with_the_arm(
    job_context: TrainingContext, tmp_path: Path, count_trainings: Callable[[int | None], list[int]]
) -> None:
    with pytest.raises(Killed), kept_predictions(tmp_path, "control") as scratch:
        _run(job_context, scratch, tmp_path / "a.parquet")
        raise Killed
    trained = count_trainings(None)
    other = CHANGES["section"](job_context)
    with kept_predictions(tmp_path, "control") as scratch:
        _run(other, scratch, tmp_path / "b.parquet")
    assert len(trained) == len(_jobs(job_context))
    assert not scratch.exists()
