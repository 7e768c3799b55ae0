"""What DVC and Prefect cost: the digits run by calling the stages' functions, by `dvc repro`, and by the flow.

`python benchmarks/prefect_overhead.py [--toy] [--workers 1,2]` prints a Markdown table and exits with 1 where `dvc
repro` or the flow with one worker takes more than the functions and the bar (10 % or 20 s, whichever is more), or makes
other outputs. Owns three projects in a temporary folder with this repository's params.yaml and dvc.yaml (with `--toy`:
digits in a fraction of the time). The functions are called in one process, which pays for the imports once; the flow
talks to a Prefect server that is up already, as a worker's runs do. CPU only, one run each.
"""

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from toy_project import REPOSITORY, quiet_environment, run
from toy_server import prefect_server

SHARE, SECONDS = 0.10, 20.0
LIMIT_SECONDS = 4 * 3600.0
COMPARED = ("data/prepared", "data/augmented", "data/evaluation", "data/challenge", "metrics")
TOY = """
seed: 3
source: {type: digits, path: data/raw, simulate_scarcity: {keep: {"3": 15, "8": 15}, surplus: test}}
plan: {folds: 3, target: 20}
prepare: {image_size: 8, channels: 1}
classifier: {width: 8, steps: 30, batch: 32}
pretrain: {kimg: 2.0, batch: 32, tick_kimg: 1.0, ema: 0.9, network: {channels: 8}}
adapt: {kimg: 0.3}
scratch: {}
synthesize: {min_agreement: 0.0, teacher_steps: 30, batch: 16}
transforms: {}
evaluate: {arms: [balanced, classical], repeats: 2, crossfit: true, share: 0.25, mix_alpha: 0.3}
challenge: {arms: [best+synthetic, best+shared], policies: {}, choice: balanced_accuracy, choice_errors: 1.0}
assemble: {}
compare: {}
worth: {}
search: {}
report: {}
"""


@dataclass(frozen=True)
class Way:
    """One way to run the pipeline.

    Attributes:
        name: as in the table.
        seconds: from nothing to the report, by the clock.
        digest: of the outputs that are compared.
        is_judged: whether the bar is for this one.
    """

    name: str
    seconds: float
    digest: str
    is_judged: bool = True


def allowed(direct: float) -> float:
    """Seconds that a way may take, given those of the functions alone."""
    return direct + max(SHARE * direct, SECONDS)


def run_directly(project: Path) -> None:
    """All stages in this process, in the order of dvc.yaml."""
    import torch

    from synthgen.stages.adapt import run_adapt
    from synthgen.stages.assemble import run_assemble
    from synthgen.stages.challenge import run_challenge
    from synthgen.stages.compare import run_compare
    from synthgen.stages.evaluate import run_evaluate
    from synthgen.stages.plan import run_plan
    from synthgen.stages.prepare import run_prepare
    from synthgen.stages.pretrain import run_pretrain
    from synthgen.stages.report import run_report
    from synthgen.stages.scratch import run_scratch
    from synthgen.stages.search import run_search
    from synthgen.stages.synthesize import run_synthesize
    from synthgen.stages.workspace import Workspace
    from synthgen.stages.worth import run_worth

    torch.set_num_threads(1)  # as the command line does for images of this size
    device = torch.device("cpu")
    workspace = Workspace(project)
    plan = run_plan(workspace)
    run_prepare(workspace)
    for fold in plan.pretrain_folds:
        run_pretrain(workspace, fold, device)
    for fold in plan.folds:
        for slug in plan.adapt_slugs:
            run_adapt(workspace, fold, slug, device)
        for slug in plan.scratch_slugs:
            run_scratch(workspace, fold, slug, device)
        run_synthesize(workspace, fold, device)
    run_assemble(workspace)
    for arm in workspace.config.evaluate.arms:
        run_evaluate(workspace, arm, device)
    for _ in plan.search_runs:
        run_search(workspace, device)
    for arm in workspace.config.challenge.arms:
        run_challenge(workspace, arm, device)
    run_compare(workspace)
    run_worth(workspace, device)
    run_report(workspace)


def make_project(folder: Path, *, toy: bool) -> Path:
    """A project that has not run yet: settings and graph, no code."""
    (folder / "data" / "raw").mkdir(parents=True)
    for name in ("dvc.yaml", ".gitignore", ".dvcignore", "params.yaml"):
        shutil.copy(REPOSITORY / name, folder / name)
    if toy:
        (folder / "params.yaml").write_text(TOY, encoding="utf-8")
    run(folder, "git", "init", "--quiet")
    run(folder, sys.executable, "-m", "dvc", "init", "--quiet", environment=_environment())
    return folder


def _environment(**more: str) -> dict[str, str]:
    given = {name: os.environ[name] for name in ("OMP_NUM_THREADS",) if name in os.environ}
    return quiet_environment(SYNTHGEN_DEVICE="cpu", NO_ALBUMENTATIONS_UPDATE="1", **given, **more)


def digest_of(project: Path) -> str:
    """sha256 over names and contents of the outputs that do not depend on the way."""
    total = hashlib.sha256()
    for path in sorted(path for name in COMPARED for path in (project / name).rglob("*") if path.is_file()):
        if path.name != ".gitignore":
            total.update(f"{path.relative_to(project)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def timed(name: str, project: Path, commands: list[list[str]], environment: dict[str, str], *, judged: bool) -> Way:
    """Runs commands one after the other."""
    began = time.monotonic()
    for command in commands:
        run(project, *command, environment=environment, seconds=LIMIT_SECONDS)
    way = Way(name, time.monotonic() - began, digest_of(project), judged)
    print(way, file=sys.stderr, flush=True)
    return way


def measure(folder: Path, workers: list[int], *, toy: bool) -> list[Way]:
    """All ways, the functions first."""
    python, environment = [sys.executable], _environment()
    projects = [make_project(folder / name, toy=toy) for name in ("functions", "dvc", *(f"flow-{n}" for n in workers))]
    direct = [*python, str(Path(__file__).resolve()), "--directly", str(projects[0])]
    ways = [timed("functions, one process", projects[0], [direct], environment, judged=True)]
    by_hand = [[*python, "-m", "synthgen", "plan"], [*python, "-m", "dvc", "repro"]]
    ways.append(timed("`synthgen plan && dvc repro`", projects[1], by_hand, environment, judged=True))
    home = folder / "server"
    home.mkdir()
    with prefect_server(home) as server:
        reached = environment | {name: value for name, value in server.items() if name.startswith("PREFECT_")}
        for n, project in zip(workers, projects[2:], strict=True):
            flow = [*python, "-m", "pipelines.flows", "--project", str(project), "--max-workers", str(n)]
            ways.append(timed(f"Prefect flow, {n} at a time", project, [flow], reached, judged=n == 1))
    return ways


def table(ways: list[Way]) -> str:
    """The result as Markdown; the first way is what the others are compared with."""
    direct = ways[0].seconds
    lines = [
        f"Bar: {allowed(direct) - direct:.0f} s over the functions ({100 * SHARE:g} % or {SECONDS:g} s).",
        "",
        "| way | s | over the functions, s | % | within the bar | same outputs |",
        "| --- | ---: | ---: | ---: | --- | --- |",
    ]
    for way in ways:
        over = way.seconds - direct
        within = "yes" if way.seconds <= allowed(direct) else "NO" if way.is_judged else "no (not judged)"
        same = "yes" if way.digest == ways[0].digest else "NO"
        lines.append(
            f"| {way.name} | {way.seconds:.1f} | {over:+.1f} | {100 * over / direct:+.1f} | {within} | {same} |"
        )
    return "\n".join(lines)


def is_passed(ways: list[Way]) -> bool:
    """Whether all make the same outputs and those that are judged keep within the bar."""
    limit = allowed(ways[0].seconds)
    return all(way.digest == ways[0].digest and (way.seconds <= limit or not way.is_judged) for way in ways)


def main() -> int:
    """Measures all ways; 0 within the bar."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--toy", action="store_true", help="smaller trainings: some minutes in all")
    parser.add_argument("--workers", default="1,2", help="stages at a time in the flow; 1 is judged (default: 1,2)")
    parser.add_argument("--directly", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.directly:
        run_directly(options.directly)
        return 0
    with tempfile.TemporaryDirectory(prefix="synthgen-overhead-") as folder:
        ways = measure(Path(folder), [int(n) for n in options.workers.split(",")], toy=options.toy)
    print(table(ways))
    return 0 if is_passed(ways) else 1


if __name__ == "__main__":
    sys.exit(main())
