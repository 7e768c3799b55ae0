"""A/A runs: a classical arm against itself under other seeds may never be said to help.

    python benchmarks/a_against_a.py PROJECT [N]

PROJECT is one that `dvc repro` has finished. Its arm `classical` is trained again under N other seeds; each stands in
for the challenger in a copy of the project, and `compare` gives its verdict. Nothing in PROJECT is changed.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import torch
from ruamel.yaml import YAML

from synthgen.artifacts import read_json, write_json
from synthgen.stages.compare import run_compare
from synthgen.stages.evaluate import run_evaluate
from synthgen.stages.workspace import Workspace

ARM, CHALLENGER = "classical", "best+synthetic"


def judge(project: Path, seed: int) -> dict[str, str]:
    """Verdict per scarce class of `classical` under `seed` against `classical` as it was trained."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        for file in ("plan.yaml", "folds.csv"):
            shutil.copy(project / file, copy / file)
        shutil.copytree(project / "data" / "prepared", copy / "data" / "prepared")
        shutil.copytree(project / "data" / "evaluation" / ARM, copy / "data" / "evaluation" / ARM)
        yaml = YAML()
        params = yaml.load(project / "params.yaml")
        params["evaluate"]["arms"], params["challenge"]["arms"] = [ARM], [CHALLENGER]
        params["seed"] = seed
        yaml.dump(params, copy / "params.yaml")

        original = copy / "data" / "evaluation" / ARM
        kept = copy / "kept"
        original.rename(kept)
        run_evaluate(Workspace(copy), ARM, torch.device("cpu"))
        other = copy / "data" / "challenge" / CHALLENGER
        other.parent.mkdir(parents=True)
        original.rename(other)
        kept.rename(original)
        write_json(other / "arm.json", {**read_json(other / "arm.json"), "arm": CHALLENGER})
        record = run_compare(Workspace(copy))
        return {slug: f"{entry['recall']['mean']:+.3f} {entry['verdict']}" for slug, entry in record["gain"].items()}


def main() -> None:
    """Prints a line per seed and how often `helps` was said."""
    project = Path(sys.argv[1]).resolve()
    n_runs = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    n_helps = n_verdicts = 0
    for k in range(n_runs):
        verdicts = judge(project, 1000 + k)
        n_verdicts += len(verdicts)
        n_helps += sum(verdict.endswith("helps") for verdict in verdicts.values())
        sys.stdout.write(f"seed {1000 + k}: {verdicts}\n")
        sys.stdout.flush()
    sys.stdout.write(f"helps: {n_helps} of {n_verdicts}\n")


if __name__ == "__main__":
    main()
