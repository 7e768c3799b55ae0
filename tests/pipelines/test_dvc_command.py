"""DVC's answers, asked for as a process: graph, status, running one stage."""

import inspect
import json
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import dvc
from pipelines.dvc import AnswerError, CommandError, CommandTimeoutError, PipelineError, out_of_date, parse_graph
from synthgen.errors import SynthgenError

GRAPH = {
    "prepare": set(),
    "adapt@f0-crack": {"prepare"},
    "adapt@f0-fray": {"prepare"},
    "compare": {"adapt@f0-crack", "adapt@f0-fray"},
}


LOCK = """\
schema: '2.0'
stages:
  prepare:
    cmd: python step.py
    deps:
    - path: step.py
      hash: md5
      md5: d61de90b30c535b2d5eade7cfc8758be
    outs:
    - path: data/prepared.txt
      hash: md5
      md5: 9dd4e461268c8034f5c8564e155c67a6
  compare:
    cmd: python step.py
    outs:
    - path: out
"""


def test_errors_are_one_tree_and_all_named():
    errors = {
        name: value
        for name, value in vars(dvc).items()
        if inspect.isclass(value) and issubclass(value, PipelineError) and value.__module__ == dvc.__name__
    }
    assert set(errors) <= set(dvc.__all__)
    assert issubclass(PipelineError, SynthgenError)
    assert issubclass(CommandTimeoutError, CommandError)


def test_project_without_dvc_is_refused_with_a_remedy(tmp_path):
    with pytest.raises(PipelineError, match=r"no dvc\.yaml.*pass the project's folder"):
        dvc.find_project(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {}")
    with pytest.raises(PipelineError, match="dvc init"):
        dvc.find_project(tmp_path)


def test_stages_see_nothing_of_prefect_and_this_environments_programs_first():
    environment = dvc.child_environment({"PREFECT_API_KEY": "canary", "PATH": "/bin", "HOME": "/h"})
    assert "canary" not in json.dumps(environment)
    assert environment["PATH"].split(":")[0] == sys.executable.rpartition("/")[0]
    assert (environment["PATH"].split(":")[-1], environment["HOME"]) == ("/bin", "/h")
    assert environment["DVC_NO_ANALYTICS"] == "1"


def test_graph_leaves_added_files_out():
    lines = ["strict digraph {", '"data/raw.dvc";', '"prepare";', "compare;", '"data/raw.dvc" -> "prepare";']
    assert parse_graph("\n".join([*lines, '"prepare" -> compare;', "}", ""])) == {
        "prepare": set(),
        "compare": {"prepare"},
    }


@pytest.mark.parametrize("line", ["nonsense here", '"a" -> ', "rankdir=LR"])
def test_graph_of_another_form_is_refused(line):
    with pytest.raises(AnswerError, match="neither a node nor an edge"):
        parse_graph(f"strict digraph {{\n{line}\n}}\n")


def test_out_of_date_takes_what_comes_after():
    assert out_of_date(GRAPH, {}) == {}
    assert out_of_date(GRAPH, {"adapt@f0-fray": []}) == {"adapt@f0-fray": set(), "compare": {"adapt@f0-fray"}}
    assert out_of_date(GRAPH, {"prepare": [], "elsewhere.dvc": []}) == GRAPH


@given(st.data())
def test_out_of_date_is_closed_downstream_and_no_larger_than_needed(data):
    n = data.draw(st.integers(1, 8))
    graph = {str(i): {str(j) for j in range(i) if data.draw(st.booleans())} for i in range(n)}
    dirty = data.draw(st.sets(st.sampled_from(sorted(graph))))

    def reaches_dirt(stage: str) -> bool:
        return stage in dirty or any(reaches_dirt(upstream) for upstream in graph[stage])

    chosen = out_of_date(graph, dict.fromkeys(dirty))
    assert set(chosen) == {stage for stage in graph if reaches_dirt(stage)}
    assert all(upstreams == graph[stage] & set(chosen) for stage, upstreams in chosen.items())


def test_one_toy_project_from_nothing_to_clean(toy, monkeypatch):
    monkeypatch.delenv("SYNTHGEN_CORES", raising=False)  # of whoever runs the tests
    lines = []
    dvc.plan(toy.folder, lines.append)
    assert lines == ["planned"]
    assert dvc.stage_names(toy.folder) == list(GRAPH)
    assert dvc.stage_graph(toy.folder) == GRAPH
    assert set(dvc.status(toy.folder)) == set(GRAPH)
    dvc.repro(toy.folder, "prepare", lines.append)
    assert {"making data/prepared.txt", "cores all"} <= set(lines)
    dvc.repro(toy.folder, "adapt@f0-crack", lines.append, n_cores=3)
    assert "cores 3" in lines
    dvc.repro(toy.folder, None, lines.append)
    assert dvc.status(toy.folder) == {}


@pytest.mark.parametrize("end", ["", "schema: ", "deps:", "- path:", "hash: md5\n      md5:"])
def test_torn_lock_is_set_aside(toy, end):
    lock = toy.folder / "dvc.lock"
    lock.write_text(LOCK)
    assert not dvc.mend_lock(toy.folder, print)
    lock.write_text(LOCK[: LOCK.index(end) + len(end)])
    said = []
    assert dvc.mend_lock(toy.folder, said.append)
    assert not lock.exists()
    assert "run cache" in said[0]


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8, 0.97])
def test_after_a_torn_lock_no_stage_runs_again(toy, share):
    dvc.repro(toy.folder, None, print)
    n_before = len((toy.folder / "stamps.jsonl").read_text().splitlines())
    lock = toy.folder / "dvc.lock"
    lock.write_bytes(lock.read_bytes()[: int(share * lock.stat().st_size)])
    dvc.mend_lock(toy.folder, print)
    dvc.repro(toy.folder, None, print)
    assert dvc.status(toy.folder) == {}
    assert len((toy.folder / "stamps.jsonl").read_text().splitlines()) == n_before


@pytest.mark.slow
def test_parallel_single_stages_overlap_and_leave_a_complete_lock(toy):
    toy.set_seconds(3)
    dvc.repro(toy.folder, "prepare", print)
    stages = ["adapt@f0-crack", "adapt@f0-fray"]
    threads = [threading.Thread(target=dvc.repro, args=(toy.folder, stage, print)) for stage in stages]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    stamps = [json.loads(line) for line in (toy.folder / "stamps.jsonl").read_text().splitlines()][-2:]
    assert max(row[1] for row in stamps) < min(row[2] for row in stamps), "they ran one after the other"
    assert set(dvc.status(toy.folder)) == {"compare"}


def test_failing_stage_is_named_with_status_and_last_lines(toy):
    (toy.folder / "broken").write_text("prepared")
    with pytest.raises(CommandError) as caught:
        dvc.repro(toy.folder, "prepare", print)
    assert caught.value.what == "stage 'prepare'"
    assert caught.value.status == 255
    assert "the kiln of prepared is cold" in str(caught.value)
    assert "exited with 1" in str(caught.value)


@pytest.mark.slow
def test_timeout_ends_the_stages_own_process_and_the_project_stays_usable(toy, is_running):
    toy.set_seconds(100)
    dvc.repro(toy.folder, "prepare", print)
    with pytest.raises(CommandTimeoutError, match=r"adapt@f0-crack.*limit of 6 s"):
        dvc.repro(toy.folder, "adapt@f0-crack", print, timeout_seconds=6)
    assert not is_running(toy.pid_of("crack.txt"))
    toy.set_seconds(0)
    dvc.repro(toy.folder, "adapt@f0-crack", print)


def test_unusable_yaml_is_reported_in_dvcs_own_words(toy):
    (toy.folder / "dvc.yaml").write_text("stages: [")
    with pytest.raises(CommandError, match=r"dvc dag --dot.*exit status"):
        dvc.stage_graph(toy.folder)


def test_plan_that_fails_carries_its_words(toy):
    (toy.folder / "synthgen" / "__main__.py").write_text("raise SystemExit('no raw data')")
    with pytest.raises(CommandError, match="no raw data"):
        dvc.plan(toy.folder, print)
