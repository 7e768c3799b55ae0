"""DVC fails at a stage whose parameters params.yaml does not name, long after the start: plan says it first."""

import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from synthgen.config import load_config
from synthgen.errors import ConfigError
from synthgen.stages.dvc_params import check_params_complete

ROOT = Path(__file__).parents[2]
GRAPH = """
stages:
  one:
    cmd: "true"
    params:
    - seed
    - compare
    - challenge.choice
    - plan.yaml:
      - versions.gan
  two:
    cmd: "true"
    params:
    - params.yaml:
      - classifier.steps
    deps:
    - ${source.path}
    - ${folds}
"""
LEAST = "source: {type: digits}\nevaluate: {arms: [classical]}\nchallenge: {arms: [best+synthetic]}\n"


def _folder(tmp_path: Path, graph: str, params: str) -> Path:
    (tmp_path / "dvc.yaml").write_text(graph)
    (tmp_path / "params.yaml").write_text(params)
    return tmp_path


def test_what_is_missing_is_named_with_the_lines_to_add_and_they_mend_it(tmp_path: Path) -> None:
    folder = _folder(tmp_path, GRAPH, LEAST)
    with pytest.raises(ConfigError) as refused:
        check_params_complete(load_config(folder / "params.yaml"), folder)
    said = str(refused.value)
    assert "has no challenge.choice, classifier.steps, compare, seed, source.path, which" in said
    lines = [line.strip() for line in said.splitlines()[1:]]
    assert lines == [
        "challenge: {choice: balanced_accuracy}",
        "classifier: {steps: 400}",
        "compare: {}",
        "seed: 0",
        "source: {path: data/raw}",
    ]
    values = YAML(typ="safe").load(LEAST)
    for line in lines:
        for key, value in YAML(typ="safe").load(line).items():
            values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    with (folder / "params.yaml").open("w") as stream:
        YAML().dump(values, stream)
    check_params_complete(load_config(folder / "params.yaml"), folder)


def test_a_folder_without_dvc_yaml_needs_nothing_more(tmp_path: Path) -> None:
    folder = _folder(tmp_path, GRAPH, LEAST)
    (folder / "dvc.yaml").unlink()
    check_params_complete(load_config(folder / "params.yaml"), folder)


@pytest.mark.parametrize(
    "path", [ROOT / "params.yaml", *sorted((ROOT / "examples").rglob("*.yaml"))], ids=lambda path: path.stem
)
def test_every_params_file_of_this_repository_runs_with_its_graph(path: Path, tmp_path: Path) -> None:
    shutil.copy(path, tmp_path / "params.yaml")
    shutil.copy(ROOT / "dvc.yaml", tmp_path / "dvc.yaml")
    check_params_complete(load_config(tmp_path / "params.yaml"), tmp_path)


def test_dvc_itself_refuses_what_this_refuses(tmp_path: Path) -> None:
    # the reason for the check; should DVC learn defaults, it may go
    from dvc.dependency.param import MissingParamsError
    from dvc.repo import Repo

    folder = _folder(tmp_path, GRAPH.partition("  two:")[0], "seed: 1\n")
    with (
        Repo.init(str(folder), no_scm=True) as repo,
        pytest.raises(MissingParamsError, match=r"(?=.*challenge\.choice)(?=.*compare)"),
    ):
        repo.index.stages[0].deps[0].get_hash()
