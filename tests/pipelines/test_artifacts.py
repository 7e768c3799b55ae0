"""What a run shows in Prefect's page: the picture, the links, and how far a training is."""

import base64
import io
import json
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from pipelines import progress_artifact
from pipelines.progress_artifact import live_progress, parse_progress, progress_key
from pipelines.run_artifacts import (
    KEPT_REPORTS,
    keep_report,
    labelled,
    page_of_version,
    picture_address,
    plain_address,
    report_of,
    samples_of,
)
from synthgen.errors import ArtifactError
from synthgen.progress import progress_bar


def picture(path: Path, height: int, width: int, mode: str = "L") -> Path:
    """Noise, which PNG cannot pack: the largest file of its size."""
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    noise = np.random.default_rng(0).integers(0, 256, (height, width, *channels), dtype=np.uint8)
    Image.fromarray(noise, mode=None).save(path)
    return path


def opened(address: str) -> Image.Image:
    head, _, content = address.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(content, validate=True)))


# Progress


def test_the_lines_that_stages_print_are_understood(monkeypatch, capsys):
    """The oracle is the writer itself."""
    clock = iter([0.0, *(float(n) for n in range(10, 200, 10))])
    monkeypatch.setattr("synthgen.progress.time.monotonic", lambda: next(clock))
    with progress_bar("adapt f0/crack", 8) as advance:
        for _ in range(8):
            advance(note="recall 0.4")
    told = [parse_progress(line) for line in capsys.readouterr().err.splitlines()]
    assert [(one.what, one.n_done, one.n_total) for one in told] == [("adapt f0/crack", n, 8) for n in range(1, 9)]
    assert [one.percent for one in told] == [12.5 * n for n in range(1, 9)]
    assert {one.note for one in told} == {"recall 0.4"}
    assert told[0].left_seconds == 70  # 10 s for one of eight
    assert told[-1].left_seconds == 0


@pytest.mark.parametrize(
    "line",
    ["", "making models/f0/crack.txt", "3/4", "a 3/0 elapsed 1 s left 1 s", "a b/c elapsed 1 s left 2 s", "x" * 9999],
)
def test_other_lines_are_no_progress(line):
    assert parse_progress(line) is None


def test_a_line_cannot_bring_markup_into_the_page_nor_hold_the_reader_up():
    told = parse_progress("<img src=x>|`[a](b) 1/2 elapsed 3 s left 4 s *bold*")
    assert not set("<>|`[]*") & set(told.words())
    started = time.monotonic()
    assert parse_progress("a 1/1 " * 160) is None
    assert parse_progress("a 1/1 elapsed 1 s left 1 s" * 1_000_000) is None
    assert time.monotonic() - started < 5


def test_keys_are_what_prefect_takes():
    assert progress_key("challenge@Best+shared_2") == "progress-challenge-best-shared-2"


@pytest.fixture(autouse=True)
def no_teller_is_left(monkeypatch):
    """Waits for the threads: one that outlives `Page` would start a temporary server for its last word.

    Asks for `monkeypatch` to be torn down before it is.
    """
    yield
    for thread in threading.enumerate():
        if thread.name.startswith("progress of "):
            thread.join(60)
            assert not thread.is_alive()


class Page:
    """Stands in for the server's two calls."""

    def __init__(self, monkeypatch, *, fails: bool = False, hangs: threading.Event | None = None) -> None:
        self.calls: list[tuple] = []
        self.fails, self.hangs = fails, hangs
        monkeypatch.setattr(progress_artifact, "create_progress_artifact", self.create)
        monkeypatch.setattr(progress_artifact, "update_progress_artifact", self.update)

    def create(self, percent, key, words):
        self._record("create", key, percent)
        return "id"

    def update(self, artifact, percent, words):
        self._record("update", artifact, percent)

    def _record(self, *call):
        self.calls.append(call)
        if self.hangs:
            self.hangs.wait(30)
        if self.fails:
            raise RuntimeError("no server")


def line(n: int, total: int = 100) -> str:
    return f"adapt 0 {n}/{total} elapsed 9 s left 9 s"


def test_of_many_lines_the_page_is_told_the_first_and_the_last(monkeypatch):
    page = Page(monkeypatch)
    problems: list[str] = []
    with live_progress("adapt@f0-crack", problems.append, every_seconds=60) as watch:
        watch(line(1))
        deadline = time.monotonic() + 30
        while not page.calls and time.monotonic() < deadline:
            time.sleep(0.01)
        for n in range(2, 101):
            watch(line(n))
            watch("something else")
    assert page.calls == [("create", "progress-adapt-f0-crack", 1.0), ("update", "id", 100.0)]
    assert problems == []


def test_calls_keep_their_distance(monkeypatch):
    page = Page(monkeypatch)
    with live_progress("a", print, every_seconds=0.5) as watch:
        started = time.monotonic()
        while time.monotonic() - started < 1.2:
            watch(line(round(50 * (time.monotonic() - started))))
            time.sleep(0.01)
    # At 0, 0.5 and 1 s, and the last word.
    assert 2 <= len(page.calls) <= 4


def test_a_stage_without_progress_makes_no_artifact_and_no_thread(monkeypatch):
    page = Page(monkeypatch)
    n_threads = threading.active_count()
    with live_progress("compare", print) as watch:
        watch("compared")
        assert threading.active_count() == n_threads
    assert page.calls == []


def test_a_server_that_refuses_costs_one_line_of_the_log(monkeypatch):
    page = Page(monkeypatch, fails=True)
    problems: list[str] = []
    with live_progress("a", problems.append, every_seconds=0.01) as watch:
        for n in range(5):
            watch(line(n))
            time.sleep(0.05)
    assert len(page.calls) >= 2
    assert len(problems) == 1
    assert "no server" in problems[0]


def test_a_server_that_hangs_holds_no_training_up(monkeypatch):
    monkeypatch.setattr(progress_artifact, "LAST_SECONDS", 0.2)
    release = threading.Event()
    Page(monkeypatch, hangs=release)
    started = time.monotonic()
    with live_progress("a", print) as watch:
        for n in range(1000):
            watch(line(n, 1000))
    assert time.monotonic() - started < 5
    release.set()


def test_the_error_of_a_training_is_the_trainings(monkeypatch):
    Page(monkeypatch, fails=True)
    with pytest.raises(ValueError, match="cold kiln"), live_progress("a", lambda _line: None) as watch:
        watch(line(1))
        raise ValueError("cold kiln")


# The picture


def test_a_small_picture_is_shown_as_it_is(tmp_path):
    path = picture(tmp_path / "a.png", 40, 60)
    assert np.array_equal(np.asarray(opened(picture_address(path))), np.asarray(Image.open(path)))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_a_large_picture_is_made_smaller_until_it_fits(tmp_path, mode):
    path = picture(tmp_path / "a.png", 500, 1000, mode)
    address = picture_address(path, 20_000)
    assert len(address) < 20_000 * 4 / 3 + 100
    with opened(address) as shown:
        assert shown.width == pytest.approx(2 * shown.height, abs=2)
        assert shown.width >= 60


def test_what_is_no_picture_is_refused_with_a_remedy(tmp_path):
    path = tmp_path / "a.png"
    for content in (b"", b"<html>", picture(tmp_path / "b.png", 30, 30).read_bytes()[:200]):
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match=r"dvc checkout"):
            picture_address(path)


def test_what_is_not_there_is_not_shown(tmp_path):
    assert samples_of(tmp_path) is report_of(tmp_path) is None


# Links


@pytest.mark.parametrize(
    ("origin", "page"),
    [
        ("https://github.com/team/tiles.git", "https://github.com/team/tiles/tree/augmented%40v0.1.0"),
        ("git@github.com:team/tiles.git", "https://github.com/team/tiles/tree/augmented%40v0.1.0"),
        ("ssh://git@gitlab.com/team/tiles.git", "https://gitlab.com/team/tiles/-/tree/augmented%40v0.1.0"),
        ("https://ann:s3cret@git.example.org/tiles?token=s3cret", "https://git.example.org/tiles"),
        ("https://github.com/a)[x](javascript:1)", None),
        ("me@git.example.org:tiles.git", None),
        ("/srv/my tiles (1).git", "file:///srv/my%20tiles%20%281%29.git"),
        ("file:///srv/tiles.git", "file:///srv/tiles.git"),
    ],
)
def test_the_link_to_a_version_has_no_secret_and_no_markup(origin, page):
    found = page_of_version(origin, "augmented@v0.1.0")
    if page is not None or found is None:
        assert found == page
    assert "s3cret" not in plain_address(origin) + str(found)
    assert not set("()<>[] ") & set(found or "")


def test_words_of_a_link_are_no_markup():
    assert not set("[]<>`*") & set(labelled("report", "/srv/[a](b)<img>`*"))


def test_reports_of_versions_are_kept_up_to_a_number(tmp_path):
    report = tmp_path / "index.html"
    for n in range(KEPT_REPORTS + 3):
        report.write_text(str(n))
        kept = keep_report(report, tmp_path, f"augmented@v0.{n}.0")
    assert kept.read_text() == str(KEPT_REPORTS + 2)
    assert kept.name == f"augmented@v0.{KEPT_REPORTS + 2}.0.html"
    assert len(list(kept.parent.iterdir())) == KEPT_REPORTS
    assert keep_report(report, tmp_path, "../../evil").parent == kept.parent


# All of it, in a real server


SPEAK = """\
for done in (1, 2, 3, 4):
    time.sleep(seconds / 4)
    print(f"{output.stem} {done}/4 elapsed 9 s left 1 s", file=sys.stderr, flush=True)
"""


def gain(mean: float) -> dict:
    return {"mean": mean, "low": mean - 0.05, "high": mean + 0.05}


@pytest.mark.server
@pytest.mark.timeout(1200)
def test_a_run_shows_verdict_samples_report_and_progress(toy, server):
    step = (toy.folder / "step.py").read_text()
    (toy.folder / "step.py").write_text(step.replace("time.sleep(seconds)\n", SPEAK))
    toy.set_seconds(4)
    sample = toy.folder / "data" / "synthetic" / "final" / "preview.png"
    for folder in (sample.parent, toy.folder / "reports", toy.folder / "metrics"):
        folder.mkdir(parents=True)
    content = picture(sample, 40, 60).read_bytes()
    (toy.folder / "reports" / "index.html").write_text("<p>report</p>")
    row = {"recall": gain(0.2), "after_offsets": gain(0.1), "verdict": "helps", "reason": "so", "n_test_groups": 40}
    (toy.folder / "metrics" / "gain.json").write_text(
        json.dumps(
            {
                "schema": 1,
                "claim": "a claim",
                "confidence": 0.95,
                "verdict": "helps",
                "data": {"classes": {"crack": {"class_name": "<b>Crack"}}},
                "arms": {"real": {"balanced_accuracy": 0.8, "macro_f1": 0.7, "scarce_recall": 0.5}},
                "gain": {"crack": row},
            }
        )
    )
    done = toy.flow(**{name: value for name, value in server.environment.items() if name.startswith("PREFECT_")})
    assert done.returncode == 0, done.stdout + done.stderr
    asked = httpx.post(
        f"{server.environment['PREFECT_API_URL']}/artifacts/latest/filter", json={}, timeout=60, trust_env=False
    )
    shown = {one["key"]: one for one in asked.json()}
    assert {"verdict", "samples", "report", "progress-adapt-f0-crack", "progress-adapt-f0-fray"} <= set(shown)
    assert {key: shown[key]["type"] for key in ("verdict", "samples", "report", "progress-adapt-f0-crack")} == {
        "verdict": "markdown",
        "samples": "image",
        "report": "markdown",
        "progress-adapt-f0-crack": "progress",
    }
    assert "| &lt;b&gt;Crack | +20.0" in shown["verdict"]["data"]
    assert shown["samples"]["data"] == "data:image/png;base64," + base64.b64encode(content).decode()
    assert shown["report"]["data"].endswith(f"]({(toy.folder / 'reports' / 'index.html').as_uri()})")
    for slug in ("crack", "fray"):
        told = shown[f"progress-adapt-f0-{slug}"]
        assert told["data"] == 100.0
        assert told["description"].startswith(f"{slug}: 4 of 4")
        assert told["task_run_id"] is not None
