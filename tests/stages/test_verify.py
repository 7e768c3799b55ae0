"""FAULTS row 30: `synthgen verify` finds what was altered in outputs and in DVC's cache; training verifies first."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.tree import Tree
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from synthgen.errors import ArtifactError
from synthgen.stages.adapt import run_adapt
from synthgen.stages.assemble import run_assemble
from synthgen.stages.dvc_lock import find_cache, md5_of_listing, read_dvc_lock
from synthgen.stages.evaluate import run_evaluate
from synthgen.stages.plan import run_plan
from synthgen.stages.prepare import run_prepare
from synthgen.stages.pretrain import run_pretrain
from synthgen.stages.synthesize import run_synthesize
from synthgen.stages.verify import Check, checks_table, refuse_altered, verify_project
from synthgen.stages.workspace import Workspace

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
PARAMS = """
seed: 3
source: {type: digits, simulate_scarcity: {keep: {"3": 15}, surplus: test}}
plan: {folds: 3, target: 10}
prepare: {image_size: 8, channels: 1}
classifier: {width: 8, steps: 5, batch: 16}
pretrain: {kimg: 0.2, batch: 32, tick_kimg: 0.2, ema: 0.9, network: {channels: 8}}
adapt: {kimg: 0.1}
synthesize: {min_agreement: 0.0, teacher_steps: 5, batch: 16}
evaluate: {arms: [classical]}
challenge: {arms: [best+synthetic]}
"""
OUTPUTS = {
    "prepare": "data/prepared",
    "pretrain": "models/final/shared",
    "adapt": "models/final/adapted-3",
    "synthesize": "data/synthetic/final",
    "assemble": "data/augmented",
    "compare": "metrics/gain.json",
}


def _dvc(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=root,
        env={**os.environ, "DVC_NO_ANALYTICS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("verify") / "project"
    (root / "data" / "raw").mkdir(parents=True)
    (root / "params.yaml").write_text(PARAMS)
    (root / ".dvcignore").write_text(".gitignore\n__pycache__\n*.partial\n.synthgen\n")
    workspace = Workspace(root)
    run_plan(workspace)
    run_prepare(workspace)
    run_pretrain(workspace, "final", CPU)
    run_adapt(workspace, "final", "3", CPU)
    run_synthesize(workspace, "final", CPU)
    run_assemble(workspace)
    workspace.metrics.mkdir()
    (workspace.metrics / "gain.json").write_text("{}\n")
    stages = {
        name: {"cmd": "true", **({"metrics": [{path: {"cache": False}}]} if "." in path else {"outs": [path]})}
        for name, path in OUTPUTS.items()
    }
    YAML(typ="safe").dump({"stages": stages}, root / "dvc.yaml")
    _dvc(root, "init", "--quiet", "--no-scm")
    _dvc(root, "commit", "--quiet", "--force")
    return root


@pytest.fixture
def project(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "project"))


def _problems(root: Path) -> list[str]:
    return [problem for check in verify_project(Workspace(root)) for problem in check.problems]


def _flip(path: Path, at: int = -1) -> None:
    """Changes one bit and nothing that sizes or times tell."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[at] ^= 1
    path.chmod(0o644)
    path.write_bytes(bytes(content))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _blob(root: Path, output: str) -> Path:
    md5 = hashlib.md5((root / output).read_bytes()).hexdigest()
    return root / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]


def test_what_nobody_touched_is_as_written(project: Path) -> None:
    checks = verify_project(Workspace(project))
    refuse_altered(checks)
    compared = {(check.path, check.what): check.n for check in checks}
    assert {path for path, _ in compared} == set(OUTPUTS.values())
    n_files = sum(path.is_file() for path in (project / "data/prepared").rglob("*"))
    assert compared["data/prepared", "files"] == n_files
    assert compared["data/prepared", "pixels"] == 1797 - 0
    assert compared["models/final/adapted-3", "generator"] == 1
    assert compared["data/synthetic/final", "samples"] == 110  # ten classes, one of them from two generators
    assert ("metrics/gain.json", "cache") not in compared
    table = checks_table(checks)
    assert table.row_count == len(OUTPUTS)


@pytest.mark.parametrize(
    "name",
    [
        "data/prepared/images.npy",
        "data/prepared/folds/f0/val.json",
        "models/final/shared/discriminator.safetensors",
        "data/synthetic/final/3.parquet",
        "data/augmented/real-0.parquet",
        "metrics/gain.json",
    ],
)
def test_fault_30_an_altered_output_is_named_though_size_and_time_are_the_same(project: Path, name: str) -> None:
    _flip(project / name)
    assert f"{name} was altered" in _problems(project)


def test_fault_30_an_edited_blob_of_the_cache_is_named(project: Path) -> None:
    blob = _blob(project, "models/final/shared/generator.safetensors")
    _flip(blob)
    with pytest.raises(ArtifactError) as refused:
        refuse_altered(verify_project(Workspace(project)))
    relative = blob.relative_to(project).as_posix()
    assert f"1 of the things compared are not what the stages wrote: {relative} (of models/final/shared)" in str(
        refused.value
    )
    assert f"remove {relative}, then `dvc pull --force models/final/shared` or `dvc repro" in str(refused.value)
    # what DVC makes of it without being asked to look: it is checked out as if it were right
    shutil.rmtree(project / "models/final/shared")
    _dvc(project, "checkout", "--quiet")
    assert "models/final/shared/generator.safetensors was altered" in _problems(project)


def test_fault_30_the_remedy_brings_it_back(project: Path) -> None:
    name = "data/prepared/images.npy"
    content = (project / name).read_bytes()
    (project / name).write_bytes(content[:-7] + b"altered")
    assert f"{name} was altered" in _problems(project)
    _dvc(project, "checkout", "--quiet", "--force", "data/prepared")
    assert (project / name).read_bytes() == content
    assert _problems(project) == []


def test_files_that_came_or_went_are_named_and_ignored_ones_are_not(project: Path) -> None:
    (project / "data/augmented/real-0.parquet").unlink()
    (project / "data/prepared/extra.csv").write_text("a")
    (project / "data/prepared/.x.partial").write_text("a")
    (project / "data/prepared/__pycache__").mkdir()
    (project / "data/prepared/__pycache__" / "x.pyc").write_text("a")
    shutil.rmtree(project / "models/final/adapted-3")
    found = _problems(project)
    assert found[:3] == [
        "models/final/adapted-3 is missing",
        "data/augmented/real-0.parquet is missing",
        "data/prepared/extra.csv was added",
    ]


def test_without_the_cache_the_folder_is_still_found_altered(project: Path) -> None:
    shutil.rmtree(project / ".dvc" / "cache")
    assert _problems(project) == []
    _flip(project / "data/prepared/images.npy")
    assert _problems(project)[0].startswith("data/prepared: a file was altered, added or removed")


def _commit(project: Path) -> None:
    _dvc(project, "commit", "--quiet", "--force")


def _swap_generator(project: Path) -> None:
    shutil.rmtree(project / "models/final/adapted-3")
    shutil.copytree(project / "models/final/shared", project / "models/final/adapted-3")


def test_fault_30_what_was_committed_after_it_was_altered_is_found_by_its_content(project: Path) -> None:
    _flip(project / "data/prepared/images.npy")
    _flip(project / "models/final/shared/generator.safetensors")
    shutil.copy(project / "data/synthetic/final/0.parquet", project / "data/synthetic/final/3.parquet")
    shutil.copy(project / "data/augmented/real-0.parquet", project / "data/augmented/synthetic-0.parquet")
    _commit(project)
    found = _problems(project)
    assert len(found) == 4
    expected = ("the weights were altered", "another generator", "no longer matches its sha256", "another generator")
    for words in expected:
        assert any(words in problem for problem in found), words


def test_fault_30_samples_of_another_generator_than_the_one_that_lies_there_are_found(project: Path) -> None:
    _swap_generator(project)
    _commit(project)
    assert _dvc(project, "status", "--json").strip() == "{}"
    found = _problems(project)
    assert found
    assert all("3.parquet is of generator" in problem and "adapted-3 holds" in problem for problem in found)


def test_fault_30_training_verifies_before_it_starts(project: Path) -> None:
    shutil.rmtree(project / ".synthgen")
    _flip(project / "data/prepared/images.npy", at=500)
    workspace = Workspace(project)
    before = (project / "models/final/shared/model.json").read_bytes()
    with pytest.raises(ArtifactError, match=r"no longer matches its sha256.*dvc checkout"):
        run_pretrain(workspace, "final", CPU)
    with pytest.raises(ArtifactError, match=r"no longer matches its sha256.*dvc checkout"):
        run_evaluate(workspace, "classical", CPU, n_workers=1)
    assert (project / "models/final/shared/model.json").read_bytes() == before
    assert not (project / "data/evaluation").exists()
    assert not (project / ".synthgen").exists()  # nothing was rendered or trained


def test_the_command_prints_a_table_names_the_file_and_ends_with_1(project: Path) -> None:
    _flip(project / "data/prepared/images.npy")
    done = subprocess.run(
        [sys.executable, "-m", "synthgen", "verify", "--project", str(project)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "data/prepared" in done.stdout
    line = next(line for line in done.stderr.splitlines() if line.startswith("synthgen: ArtifactError: 2 of the"))
    assert "data/prepared/images.npy was altered" in line
    assert "`dvc checkout --force data/prepared`" in line


def _lock(**out: str) -> str:
    fields = "".join(f"      {key}: {value}\n" for key, value in out.items())
    return f"schema: '2.0'\nstages:\n  s:\n    cmd: x\n    outs:\n    -\n{fields}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "is missing: nothing was run here"),
        ("", "is damaged"),
        ("stages: [", "is damaged"),
        ("schema: '1.0'\nstages: {}\n", "has schema '1.0'"),
        (_lock(path="../x", hash="md5", md5="a" * 32), "lies outside of the project"),
        (_lock(path="/etc/x", hash="md5", md5="a" * 32), "lies outside of the project"),
        (_lock(path="x", md5="a" * 32), "hashed by DVC 2"),
        (_lock(path="x", hash="md5", md5="../../../etc/passwd"), "which is none"),
        (_lock(path="x", hash="md5"), "is damaged"),
    ],
)
def test_a_lock_file_that_cannot_be_used_is_refused_by_name(tmp_path: Path, text: str | None, expected: str) -> None:
    path = tmp_path / "dvc.lock"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ArtifactError, match=expected) as refused:
        read_dvc_lock(path)
    assert str(path) in str(refused.value)


def test_a_shared_cache_is_found_where_the_configuration_says(tmp_path: Path) -> None:
    (tmp_path / ".dvc").mkdir()
    assert find_cache(tmp_path) == tmp_path / ".dvc" / "cache" / "files" / "md5"
    (tmp_path / ".dvc" / "config").write_text(
        "['remote \"x\"']\n    url = ssh://u:hunter2@h/x\n[cache]\n    dir = ../one\n"
    )
    assert find_cache(tmp_path).resolve() == tmp_path / "one" / "files" / "md5"
    _dvc(tmp_path, "config", "--local", "cache.dir", str(tmp_path / "shared, cache"))
    assert find_cache(tmp_path).resolve() == tmp_path / "shared, cache" / "files" / "md5"
    (tmp_path / ".dvc" / "config.local").write_text("password = hunter2")
    assert find_cache(tmp_path).resolve() == tmp_path / "one" / "files" / "md5"


names = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/"), min_size=1, max_size=9)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.lists(names, min_size=1, max_size=3).map(tuple), st.binary(max_size=3), max_size=6))
def test_a_listing_has_the_md5_that_dvc_gives_it(files: dict[tuple[str, ...], bytes]) -> None:
    tree = Tree()
    listing = {}
    for parts, content in files.items():
        md5 = hashlib.md5(content).hexdigest()
        tree.add(parts, None, HashInfo("md5", md5))
        listing["/".join(parts)] = md5
    tree.digest()
    assert tree.hash_info is not None
    assert f"{md5_of_listing(listing)}.dir" == tree.hash_info.value


def test_many_problems_are_counted_and_the_first_ones_named() -> None:
    check = Check("out", "files", 30, tuple(f"out/{k} was altered" for k in range(30)), "`dvc checkout --force out`")
    with pytest.raises(ArtifactError, match=r"^30 of .*out/0 was altered.*out/9 was altered and 20 more\. To bring"):
        refuse_altered([check])
