"""Stages on workers with checkouts and DVC caches of their own, which share a remote and nothing else."""

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.toy_project import ToyProject, dvc, git, make_toy, quiet_environment
from pipelines import dvc as dvc_commands
from pipelines.checkout import isolated_checkout
from pipelines.cluster import order_for, shared_base, task_runner, travels
from pipelines.cluster_worker import Order, carry_out, repro_pulling
from pipelines.dvc import CommandError, PipelineError
from pipelines.remotes import PullError
from pipelines.worker_slots import WorkerError, free_gpu, gpu_of_slot, take_slot, visible_gpus, workers_folder

ORDER = Order("adapt@f0-crack", "/srv/origin.git", "0" * 40, "", "store", "/srv/store")


@pytest.fixture
def toy(tmp_path: Path) -> ToyProject:
    return make_toy(tmp_path / "toy", 0.1)


# GPUs and slots


def test_every_slot_has_a_gpu_of_its_own():
    devices = ("GPU-a", "3", "MIG-b")
    assert [gpu_of_slot(n, devices) for n in range(3)] == list(devices)
    for n in (3, -1):
        with pytest.raises(WorkerError, match=rf"slot {n} has no GPU: this machine has 3"):
            gpu_of_slot(n, devices)
    assert gpu_of_slot(0, ()) is gpu_of_slot(7, ()) is None


@pytest.mark.parametrize(
    ("given", "devices"),
    [("0,1", ("0", "1")), (" 2 , GPU-a ", ("2", "GPU-a")), ("", ()), ("-1", ()), ("1,-1,0", ("1",))],
)
def test_the_visible_gpus_are_those_that_cuda_would_take(given, devices):
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": given}) == devices


def test_trainings_at_the_same_time_get_different_gpus(tmp_path):
    devices = ("4", "5")
    with free_gpu(tmp_path, devices, 1) as first, free_gpu(tmp_path, devices, 1) as second:
        assert {first, second} == set(devices)
        with pytest.raises(WorkerError, match=r"none of the 2 GPUs"), free_gpu(tmp_path, devices, 0.1):
            pass
    with free_gpu(tmp_path, devices, 0) as again, free_gpu(tmp_path, (), 0) as without:
        assert (again, without) == ("4", None)


def test_a_slot_is_held_by_one_and_freed_by_a_kill(tmp_path):
    with take_slot(tmp_path) as first, take_slot(tmp_path) as second:
        assert [first.name, second.name] == ["slot-0", "slot-1"]
    hold = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom pipelines.worker_slots import take_slot\n"
        "with take_slot(Path(sys.argv[1])) as slot:\n    print(slot.name, flush=True)\n    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", hold, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=quiet_environment()) as holder:
        assert holder.stdout.readline().strip() == "slot-0"
        with take_slot(tmp_path) as other:
            assert other.name == "slot-1"
        holder.kill()
        holder.wait()
    with take_slot(tmp_path) as freed:
        assert freed.name == "slot-0"


def test_the_workers_folder_is_a_setting(tmp_path):
    assert workers_folder({"SYNTHGEN_WORKERS": str(tmp_path)}) == tmp_path.resolve()
    assert workers_folder({"XDG_CACHE_HOME": "/cache"}) == Path("/cache/synthgen/workers")


# Orders


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("stage", "--all", "no stage's name"),
        ("stage", "adapt@f0/../x", "no stage's name"),
        ("commit", "main", "no full commit id"),
        ("prefix", "../elsewhere", "reaches out"),
        ("inputs", ("/etc/passwd",), "reaches out"),
        ("inputs", ("data/../../x",), "reaches out"),
        ("files", {"step.py": ""}, "may bring"),
        ("origin", "--upload-pack=evil", "starts with `-`"),
        ("url", "/srv\n[core]", "control character"),
    ],
)
def test_an_order_that_reaches_out_of_a_slot_is_refused(field, value, words):
    with pytest.raises(WorkerError, match=words):
        replace(ORDER, **{field: value})


def test_matrix_instances_travel_and_single_stages_stay():
    assert travels("adapt@f0-crack")
    assert not travels("compare")


def test_what_holds_on_this_machine_alone_is_refused_with_a_remedy(toy):
    base = shared_base(toy.person)
    assert (base.origin, base.prefix, base.remote) == (str(toy.origin), "", "store")
    assert Path(base.url) == toy.root / "store"
    git(toy.person, "remote", "set-url", "origin", "../origin.git")
    assert shared_base(toy.person).origin == str(toy.origin)
    git(toy.person, "remote", "set-url", "origin", "https://ann:Canary-7f3a@example.invalid/x.git")
    with pytest.raises(WorkerError, match=r"credential helper") as caught:
        shared_base(toy.person)
    assert "Canary" not in str(caught.value)
    git(toy.person, "remote", "remove", "origin")
    with pytest.raises(WorkerError, match=r"git remote add origin"):
        shared_base(toy.person)


def test_runners_that_cannot_be_had_say_why():
    with pytest.raises(PipelineError, match=r"dask scheduler"):
        task_runner("dask", None, 2)
    with pytest.raises(PipelineError, match=r"use `slots`"):
        task_runner("threads", None, 2)
    with pytest.raises(PipelineError, match=r"ray start --head"):
        task_runner("ray", None, 2)
    for name in ("dask", "ray"):
        if importlib.util.find_spec(f"prefect_{name}") is None:
            with pytest.raises(PipelineError, match=rf"synthgen\[pipelines,{name}\]"):
                task_runner(name, "tcp://127.0.0.1:1", 2)


def test_a_commit_that_was_not_pushed_is_refused(toy, tmp_path):
    git(toy.person, "commit", "--quiet", "--allow-empty", "-m", "not pushed")
    base = shared_base(toy.person)
    order = replace(ORDER, origin=base.origin, commit=base.commit, url=base.url)
    with pytest.raises(WorkerError, match=r"push it"):
        carry_out(order, folder=tmp_path / "machine")


# Results by the run cache


def test_results_travel_by_the_run_cache_alone(toy, tmp_path):
    machine_a, machine_b = tmp_path / "a", tmp_path / "b"
    with isolated_checkout(toy.person, on_line=lambda _line: None) as checkout:
        project = checkout.project
        dvc_commands.plan(project, lambda _line: None)
        dvc_commands.repro(project, "prepare", lambda _line: None)
        base = shared_base(project)
        order = order_for(base, "adapt@f0-crack", {"prepare"})
        assert order.inputs == ("data/prepared",)
        with pytest.raises(PullError, match=r"data/prepared"):
            carry_out(order, lambda _line: None, 60, machine_a)
        dvc(project, "push", "--quiet", "prepare")
        assert carry_out(order, lambda _line: None, 60, machine_a) == "adapt@f0-crack"
        # Another machine, whose only slot was left broken: it takes what the first one made.
        [slot] = machine_a.glob("*/slot-0")
        (machine_b / slot.parent.name / "slot-0" / "tree" / ".git").mkdir(parents=True)
        lines: list[str] = []
        carry_out(order, lines.append, 60, machine_b)
        assert any("is cached - skipping run" in line for line in lines)
        # And so does the coordinator, which writes dvc.lock.
        repro_pulling(project, ["adapt@f0-crack"], 60, lambda _line: None)
        assert "adapt@f0-crack" in (project / "dvc.lock").read_text()
        assert (project / "models/f0/crack.txt").read_text() == "adapt@f0-crack of crack 0\n"
    assert toy.finished() == ["prepare", "adapt@f0-crack"]
    assert git(toy.origin, "log", "--format=%s", "main") == "start", "a worker's commit stays with it"


def test_a_failing_stage_fails_with_its_words(toy, tmp_path):
    (toy.person / "step.py").write_text("raise SystemExit('the kiln is cold')\n")
    git(toy.person, "commit", "--quiet", "-am", "broken")
    git(toy.person, "push", "--quiet", "origin", "main")
    base = shared_base(toy.person)
    order = replace(
        ORDER,
        origin=base.origin,
        commit=base.commit,
        url=base.url,
        stage="prepare",
        files={"plan.yaml": "folds: [f0]\nadapt: [crack]\n"},
    )
    with pytest.raises(CommandError, match=r"the kiln is cold"):
        carry_out(order, lambda _line: None, 60, tmp_path / "machine")


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.timeout(900)
@pytest.mark.parametrize("runner", ["slots", "dask", "ray"])
def test_two_workers_publish_what_one_machine_would(runner, tmp_path, server, monkeypatch):
    if runner != "slots" and importlib.util.find_spec(f"prefect_{runner}") is None:
        pytest.skip(f"prefect-{runner} is not installed: pip install 'synthgen[pipelines,{runner}]'")
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    four_workers = importlib.import_module("four_workers")
    toy = make_toy(tmp_path / "toy", 2)
    environment = {
        **server.environment,
        "SYNTHGEN_WORKERS": str(tmp_path / "workers"),
        "CUDA_VISIBLE_DEVICES": "6,7",
        "GIT_CONFIG_GLOBAL": os.devnull,
    }
    command = [sys.executable, "-m", "pipelines.flows", "--project", str(toy.person), "--publish", "--runner", runner]

    def spread(*more: str) -> None:
        done = subprocess.run(
            [*command, *more], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    if runner == "dask":
        with four_workers.dask_workers(tmp_path, 2, environment) as address:
            spread("--address", address)
    elif runner == "ray":
        with four_workers.ray_cluster(tmp_path, 2, environment) as address:
            spread("--address", address)
    else:
        spread("--max-workers", "2")
    assert list(toy.versions()) == ["augmented@v0.1.0"]
    assert Counter(toy.finished()) == Counter(["prepare", "adapt@f0-crack", "adapt@f0-fray", "assemble", "compare"])
    assert toy.published() == toy.undisturbed(toy.versions()["augmented@v0.1.0"])
    assert toy.faults_of_origin() + toy.faults_of_clone() == []
    rows = [row for row in toy.stamps() if row[0] == "start" and row[1].startswith("adapt@")]
    assert {row[4] for row in rows} <= {"6", "7"}, f"a training saw more than one GPU: {json.dumps(rows)}"
