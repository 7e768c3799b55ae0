"""The whole pipeline on a real data set, in a project folder of its own.

    python benchmarks/whole_run.py magnetic_tiles FOLDER
    python benchmarks/whole_run.py colour32 FOLDER [--flow]

Makes FOLDER (git, DVC, raw images from $SYNTHGEN_BENCH_DATA and examples/NAME/params.yaml), runs `synthgen plan` and
`dvc repro` there, and prints the minutes of each stage and the Markdown that stands in docs/results.md. Run again, it
goes on where it stopped. With --flow the Prefect flow runs the graph instead, with as many stages side by side as by
default, and the time of all is printed. `colour32` are 3,391 images of CIFAR-10-LT's training side, at most 500 each.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

from bench_data import ROOT
from gain_sets import lay_out_colour, lay_out_tiles
from results_table import results_markdown

EXAMPLES = {"magnetic_tiles": lay_out_tiles, "colour32": lay_out_colour}


def make_project(example: str, folder: Path) -> None:
    """Lays the project out, unless it stands already."""
    if (folder / "dvc.yaml").exists():
        return
    EXAMPLES[example](folder, 0)
    for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copy(ROOT / "examples" / example / "params.yaml", folder / "params.yaml")
    run(folder, "git", "init", "-q")
    run(folder, "dvc", "init", "-q")


def run(folder: Path, *command: str) -> None:
    """Runs a command in the project, with this environment's programs first."""
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    subprocess.run(command, cwd=folder, env=environment, check=True)


def repro(folder: Path) -> dict[str, float]:
    """Runs `dvc repro`; returns minutes per kind of stage, as DVC announced them."""
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    process = subprocess.Popen(
        ["dvc", "repro"], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    minutes: dict[str, float] = defaultdict(float)
    stage, started = "", time.monotonic()
    for line in process.stdout:
        sys.stderr.write(line)
        found = re.match(r"Running stage '([a-z]+)", line)
        if found:
            if stage:
                minutes[stage] += (time.monotonic() - started) / 60
            stage, started = found.group(1), time.monotonic()
    if stage:
        minutes[stage] += (time.monotonic() - started) / 60
    if process.wait() != 0:
        sys.exit("dvc repro failed; see above")
    return dict(minutes)


def main() -> None:
    """Lays out, runs, prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("example", choices=sorted(EXAMPLES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--flow", action="store_true", help="by the Prefect flow, not by `dvc repro`")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    make_project(arguments.example, folder)
    if arguments.flow:
        started = time.monotonic()
        run(folder, sys.executable, "-m", "pipelines.flows", "--project", str(folder))
        print(f"\nAll, by the flow: {(time.monotonic() - started) / 60:.1f} minutes\n")
        print(results_markdown(folder))
        return
    run(folder, "synthgen", "plan")
    minutes = repro(folder)
    print("\n| stage | minutes |\n| --- | --- |")
    for stage, taken in minutes.items():
        print(f"| {stage} | {taken:.1f} |")
    print(f"| all | {sum(minutes.values()):.1f} |\n")
    print(results_markdown(folder))


if __name__ == "__main__":
    main()
