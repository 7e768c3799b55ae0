"""Kills stages at random moments with SIGKILL, starts them again, and compares what they write with an undisturbed run.

`python benchmarks/kill_resume.py [--seed 0] [--kills 20]` prints a Markdown table and exits with 1 on any difference.
Owns two small projects of the digits of scikit-learn in a temporary folder: one is left alone, in the other
`synthgen pretrain`, `synthgen adapt` and `synthgen evaluate` are killed, with all processes that they started, as often
as asked for. A round of kills begins with the output removed and ends when the stage has been let through; some rounds
have one kill, some more. CPU only: other devices do not promise equal bits.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

SYNTHGEN = Path(sys.executable).with_name("synthgen")
PARAMS = """
seed: 11
source: {type: digits, simulate_scarcity: {keep: {"3": 15, "8": 15}, surplus: test}}
plan: {folds: 3, target: 40}
prepare: {image_size: 8, channels: 1}
classifier: {width: 16, steps: 120}
pretrain:
  kimg: 7.68
  batch: 32
  tick_kimg: 0.32
  network: {channels: 16, max_channels: 32}
  class_ramp: 0.2
  lecam: 0.1
  adaptive: {target: 0.3, ramp_kimg: 20.0}
  monitor: {samples_per_class: 16, feature_steps: 60}
adapt: {kimg: 7.68}
evaluate: {arms: [classical], repeats: 2, crossfit: true}
challenge: {arms: [best+synthetic]}
"""
MOST_KILLS_IN_A_ROUND = 3
TIME_LIMIT = 600.0


@dataclass
class Stage:
    """A command of the pipeline.

    Attributes:
        name: as in the table; arguments: of `synthgen`; output: folder, relative to the project.
        seconds: of the undisturbed run.
        kills: what was found at each kill, in words.
        rounds, identical: rounds that were let through, and how many of them left the same files.
    """

    name: str
    arguments: list[str]
    output: str
    seconds: float = 0.0
    kills: list[str] = field(default_factory=list)
    rounds: int = 0
    identical: int = 0


STAGES = (
    Stage("pretrain", ["pretrain", "--fold", "f0"], "models/f0/shared"),
    Stage("adapt", ["adapt", "--fold", "f0", "--slug", "3"], "models/f0/adapted-3"),
    Stage("evaluate", ["evaluate", "--arm", "classical"], "data/evaluation/classical"),
)


def start(project: Path, arguments: list[str]) -> subprocess.Popen[bytes]:
    """Starts one stage as the leader of a process group of its own."""
    return subprocess.Popen(
        [str(SYNTHGEN), *arguments, "--project", str(project)],
        env={**os.environ, "SYNTHGEN_DEVICE": "cpu"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def _check(process: subprocess.Popen[bytes], said: bytes) -> None:
    if process.returncode != 0:
        raise RuntimeError(f"{process.args!r} ended with {process.returncode}: {said.decode()[-2000:]}")


def _kill(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def let_through(project: Path, arguments: list[str]) -> float:
    """Runs one stage to its end; returns its seconds.

    Raises:
        RuntimeError: it failed, with what it said.
    """
    began = time.monotonic()
    process = start(project, arguments)
    try:
        _, said = process.communicate(timeout=TIME_LIMIT)
    except BaseException:
        _kill(process)
        raise
    _check(process, said)
    return time.monotonic() - began


def kill_at(project: Path, arguments: list[str], seconds: float) -> bool:
    """Starts one stage and kills its process group after `seconds`; False where it had ended before.

    Raises:
        RuntimeError: it failed by itself.
    """
    process = start(project, arguments)
    try:
        _, said = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        _kill(process)
        return True
    except BaseException:
        _kill(process)
        raise
    _check(process, said)
    return False


def digests(folder: Path) -> dict[str, str]:
    """Relative path -> sha256 of every file in `folder`."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def unfinished(project: Path) -> str:
    """What the scratch folder holds, in words."""
    scratch = project / ".synthgen" / "scratch"
    states = sorted(path.name for path in scratch.glob("*/state-*"))
    if states:
        return f"state {int(states[-1].removeprefix('state-'))}"
    n_kept = len(list(scratch.glob("*/*.sha256")))
    return f"{n_kept} trainings" if n_kept else "nothing kept"


def disturb(project: Path, stage: Stage, expected: dict[str, str], n_kills: int, rng: random.Random) -> None:
    """Rounds of kills until there were `n_kills`; fills in what the table says."""
    longest = stage.seconds
    while len(stage.kills) < n_kills:
        shutil.rmtree(project / stage.output, ignore_errors=True)
        n_wanted = min(rng.randint(1, MOST_KILLS_IN_A_ROUND), n_kills - len(stage.kills))
        n_done = 0
        while n_done < n_wanted:
            moment = rng.uniform(0.1, 0.95) * longest
            if not kill_at(project, stage.arguments, moment):
                break  # what was left to do took less than that
            stage.kills.append(f"{moment:.1f} s ({unfinished(project)})")
            n_done += 1
        if n_done == n_wanted:
            let_through(project, stage.arguments)
        elif n_done == 0:
            longest = moment  # the machine has become faster
        if n_done == 0:
            continue
        stage.rounds += 1
        stage.identical += digests(project / stage.output) == expected
        counts = f"{len(stage.kills)} of {n_kills} kills, {stage.identical} of {stage.rounds} rounds identical"
        print(f"{stage.name}: {counts}", file=sys.stderr, flush=True)


def table(stages: tuple[Stage, ...]) -> str:
    """The result as Markdown."""
    lines = ["| stage | undisturbed | kills | when (what was kept) | identical |", "| --- | --- | --- | --- | --- |"]
    lines += [
        f"| {stage.name} | {stage.seconds:.1f} s | {len(stage.kills)} | {', '.join(stage.kills)} | "
        f"{stage.identical} of {stage.rounds} |"
        for stage in stages
    ]
    return "\n".join(lines)


def main() -> int:
    """Runs the whole test; 0 where every output is identical."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--kills", type=int, default=20, help="over all stages")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="synthgen-kills-") as temporary:
        alone, killed = Path(temporary) / "alone", Path(temporary) / "killed"
        alone.mkdir()
        (alone / "params.yaml").write_text(PARAMS, encoding="utf-8")
        for command in ("plan", "prepare"):
            let_through(alone, [command])
        shutil.copytree(alone, killed)
        for k, stage in enumerate(STAGES):
            stage.seconds = let_through(alone, stage.arguments)
            share = options.kills // len(STAGES) + (k < options.kills % len(STAGES))
            disturb(killed, stage, digests(alone / stage.output), share, rng)
        left = sorted(str(path.relative_to(killed)) for path in (killed / ".synthgen" / "scratch").glob("*"))
    print(table(STAGES))
    if left:
        print(f"\nLeft in the scratch folder: {', '.join(left)}")
    return 0 if not left and all(stage.identical == stage.rounds > 0 for stage in STAGES) else 1


if __name__ == "__main__":
    sys.exit(main())
