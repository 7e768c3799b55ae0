"""The parts of benchmarks/ that decide and print, without a server: who is killed, what is a fault, what is enough."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def toy(script, tmp_path):
    return script("toy_project").make_toy(tmp_path / "toy", 0)


# The toy project


def test_the_toys_stages_make_what_the_raw_data_says(toy):
    commit = toy.add_raw("crack", "1.txt", "crack 1\n")
    made = toy.undisturbed(commit)
    names = {"data/augmented", "data/prepared", "metrics/gain.json", "models/f0/crack.txt", "models/f0/fray.txt"}
    assert set(made) == names
    later = toy.undisturbed(toy.add_raw("fray", "1.txt", "fray 1\n"))
    assert {name for name in made if made[name] != later[name]} == names - {"models/f0/crack.txt"}
    assert toy.finished() == [], "the twin's stages are not the run's"


def test_a_half_published_origin_is_seen(toy, script):
    git = script("toy_project").git
    assert toy.versions() == {}
    assert toy.faults_of_origin() == []
    desk = toy.person
    git(desk, "commit", "--quiet", "--allow-empty", "-m", "augmented v0.1.0: helps")
    head = git(desk, "rev-parse", "HEAD")
    git(desk, "push", "--quiet", "origin", "main")
    assert toy.faults_of_origin() == [f"{head[:12]} says augmented@v0.1.0, which is not there"]
    git(desk, "tag", "--annotate", "-m", "x", "augmented@v0.1.0")
    git(desk, "push", "--quiet", "origin", "augmented@v0.1.0")
    assert toy.faults_of_origin() == []
    assert toy.versions() == {"augmented@v0.1.0": head}
    git(desk, "commit", "--quiet", "--allow-empty", "-m", "elsewhere")
    git(desk, "tag", "--annotate", "-m", "x", "augmented@v0.2.0")
    git(desk, "push", "--quiet", "origin", "augmented@v0.2.0")
    assert toy.faults_of_origin() == ["augmented@v0.2.0 is not on main"]


def test_a_clone_without_its_data_is_seen(toy, script):
    project = script("toy_project")
    lock = {"schema": "2.0", "stages": {"prepare": {"cmd": "x", "outs": [{"path": "data/prepared", "md5": "0" * 32}]}}}
    assert project.outputs(json.dumps(lock)) == {"data/prepared": "0" * 32}
    assert project.outputs("") == {}
    (toy.person / "plan.yaml").write_text("folds: [f0]\nadapt: [crack]\n")
    project.git(toy.person, "add", "plan.yaml")
    project.git(toy.person, "commit", "--quiet", "-m", "planned, not run")
    project.git(toy.person, "push", "--quiet", "origin", "main")
    [fault] = toy.faults_of_clone()
    assert fault.startswith("a fresh clone")


# chaos.py


def test_every_victim_is_killed_equally_often_at_moments_that_a_seed_gives(script):
    chaos = script("chaos")
    rounds = chaos.schedule(20, 8.0, random.Random(3))
    assert Counter(one.victim for one in rounds) == dict.fromkeys(chaos.VICTIMS, 5)
    assert rounds == chaos.schedule(20, 8.0, random.Random(3)) != chaos.schedule(20, 8.0, random.Random(4))
    assert all(0.4 <= one.moment <= 6.4 for one in rounds)


COMMANDS = {
    "dvc": "python -P -m dvc --wait-for-lock repro --single-item adapt@f0-crack",
    "worker": "python -m prefect worker start --pool synthgen --type process",
    "flow": "python -m prefect.engine",
    "server": "python -m prefect server start --host 127.0.0.1 --port 4200",
}
OTHERS = [
    "python -P -m dvc --wait-for-lock status --json",
    "python -P -m dvc --wait-for-lock repro --single-item prepare",
    "python -m pipelines.serve --project x",
    "python step.py adapt f0 crack",
    "python -m",
    "",
    *(f"python -I -S supervise.py 60 all {command}" for command in COMMANDS.values()),
]


def test_a_victim_is_the_process_itself_and_no_supervisor_of_it(script):
    is_victim = script("chaos").is_victim
    for kind, command in COMMANDS.items():
        assert [other for other in COMMANDS if is_victim(other, command.split())] == [kind]
    assert not [(kind, other) for kind in COMMANDS for other in OTHERS if is_victim(kind, other.split())]


def test_the_table_of_kills_counts_what_was_survived(script):
    chaos = script("chaos")
    good, bad = chaos.Round("dvc", 1.0, version="augmented@v0.1.0"), chaos.Round("flow", 2.0)
    bad.faults = [*chaos.differences({"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": "4"}), "x | y"]
    text = chaos.table([good, bad])
    assert "b differs from an undisturbed run's; c differs from an undisturbed run's; x / y" in text
    assert text.endswith("1 of 2 kills survived.")


# two_schedules.py


@pytest.mark.parametrize(
    ("kinds", "message", "new", "n_faults"),
    [
        (("COMPLETED", "CANCELLED"), "another run (a) works on this project", ["augmented@v0.1.0"], 0),
        (("CANCELLED", "COMPLETED"), "another run works", ["augmented@v0.1.0"], 0),
        (("COMPLETED", "COMPLETED"), "", ["augmented@v0.1.0"], 1),
        (("COMPLETED", "CANCELLED"), "", ["augmented@v0.1.0"], 1),
        (("COMPLETED", "CANCELLED"), "another run works", [], 1),
        (("CANCELLED", "CANCELLED"), "another run works", [], 2),
        (("COMPLETED", "FAILED"), "another run works", ["augmented@v0.1.0", "augmented@v0.1.1"], 2),
    ],
)
def test_one_publishes_and_the_other_is_cancelled_with_a_reason(script, kinds, message, new, n_faults):
    two_schedules = script("two_schedules")
    states = dict(zip(two_schedules.DEPLOYMENTS, ((kind, message) for kind in kinds), strict=True))
    one = two_schedules.judge(states, new)
    assert len(one.faults) == n_faults
    assert f"{int(not n_faults)} of 1 rounds" in two_schedules.table([one])


# prefect_overhead.py


def test_the_bar_is_a_tenth_or_twenty_seconds(script):
    overhead = script("prefect_overhead")
    assert overhead.allowed(60.0) == 80.0
    assert overhead.allowed(200.0) == 220.0
    assert overhead.allowed(1000.0) == 1100.0
    direct, slow = overhead.Way("functions", 60.0, "d"), overhead.Way("flow", 81.0, "d")
    assert not overhead.is_passed([direct, slow])
    assert overhead.is_passed([direct, overhead.Way("flow", 81.0, "d", is_judged=False)])
    assert not overhead.is_passed([direct, overhead.Way("flow", 10.0, "other")])
    assert "| flow | 81.0 | +21.0 | +35.0 | NO | yes |" in overhead.table([direct, slow])


def test_the_functions_are_called_for_every_stage_of_the_graph(script):
    overhead = script("prefect_overhead")
    source = Path(overhead.__file__).read_text()
    graph = (BENCHMARKS.parent / "dvc.yaml").read_text()
    stages = [
        line.strip(" :") for line in graph.splitlines() if line.startswith("  ") and line[2] != " " and line[-1] == ":"
    ]
    verbs = [stage for stage in stages if f"cmd: synthgen {stage}" in graph]
    assert len(verbs) >= 10
    assert [verb for verb in verbs if f"run_{verb}(" not in source] == []


def test_outputs_are_compared_by_content(script, tmp_path):
    digest_of = script("prefect_overhead").digest_of
    for name, text in (("one", "a"), ("two", "a"), ("three", "b")):
        path = tmp_path / name / "metrics" / "gain.json"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    assert digest_of(tmp_path / "one") == digest_of(tmp_path / "two") != digest_of(tmp_path / "three")


# four_workers.py


def test_the_speed_up_is_of_the_whole_flow_and_of_the_trainings(script, toy):
    four_workers = script("four_workers")
    rows = [["start", "adapt@f0-crack", 1, 10.0, None], ["start", "adapt@f0-fray", 2, 11.0, None]]
    rows += [["end", "adapt@f0-crack", 1, 20.0, None], ["end", "adapt@f0-fray", 2, 21.5, None]]
    toy.stamps_file.write_text("".join(json.dumps(row) + "\n" for row in [["start", "prepare", 3, 0.0, None], *rows]))
    script("toy_project").git(toy.person, "commit", "--quiet", "--allow-empty", "-m", "x")
    (toy.person / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    script("toy_project").git(toy.person, "add", "dvc.lock")
    script("toy_project").git(toy.person, "commit", "--quiet", "-m", "lock")
    script("toy_project").git(toy.person, "push", "--quiet", "origin", "main")
    many = four_workers.measured(toy, 2, 20.0)
    assert (many.training, many.trained) == (11.5, ("adapt@f0-crack", "adapt@f0-fray"))
    one = four_workers.Measured(1, 50.0, 23.0, {}, many.trained)
    assert "| 2 | 20 | 12 | 2.50 | 2.00 |" in four_workers.table([one, many], 10, "slots")
