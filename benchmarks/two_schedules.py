"""Two deployments at once, again and again: one publishes, one is cancelled, and nothing is in a bad state.

`python benchmarks/two_schedules.py [--rounds 10] [--seconds 5]` prints a Markdown table and exits with 1 on any
failure. Owns a toy project in a temporary folder under `pipelines.serve`; in each round new raw data is pushed and the
deployments `nightly` and `on-demand` are started at the same time.
"""

import argparse
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from toy_project import CLASSES, make_toy
from toy_server import Served, served

DEPLOYMENTS = ("nightly", "on-demand")
RUN_SECONDS = 900.0
REASON = "another run"


@dataclass
class Round:
    """One pair of runs.

    Attributes:
        winner: deployment whose run completed.
        reason: what the other one was cancelled with.
        version: that was published.
        seconds: until both had ended.
        faults: empty where all is well.
    """

    winner: str = ""
    reason: str = ""
    version: str = ""
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


def judge(states: dict[str, tuple[str, str]], new_versions: list[str]) -> Round:
    """What one pair of ended runs shows.

    Args:
        states: deployment -> type and message of its run's last state.
        new_versions: tags that origin has now and had not before.
    """
    completed = sorted(name for name, (kind, _) in states.items() if kind == "COMPLETED")
    cancelled = sorted(name for name, (kind, _) in states.items() if kind == "CANCELLED")
    one = Round(", ".join(completed), "; ".join(states[name][1] for name in cancelled), ", ".join(new_versions))
    if len(completed) != 1 or len(cancelled) != 1:
        one.faults.append(f"the runs ended as {', '.join(f'{name} {kind}' for name, (kind, _) in states.items())}")
    elif REASON not in one.reason:
        one.faults.append(f"cancelled without a reason: {one.reason!r}")
    if len(new_versions) != 1:
        one.faults.append(f"{len(new_versions)} versions for one change")
    return one


def compete(stack: Served, number: int) -> Round:
    """One round."""
    toy = stack.toy
    before = toy.versions()
    commit = toy.add_raw(CLASSES[number % len(CLASSES)], f"{number:03d}.txt", f"round {number}\n")
    began = time.monotonic()
    with ThreadPoolExecutor(len(DEPLOYMENTS)) as threads:
        runs = dict(zip(DEPLOYMENTS, threads.map(stack.run, DEPLOYMENTS), strict=True))
    states = {name: stack.await_end(run, RUN_SECONDS) for name, run in runs.items()}
    seconds = time.monotonic() - began
    now = toy.versions()
    one = judge(states, sorted(set(now) - set(before)))
    one.seconds = seconds
    one.faults += [f"{tag} is lost" for tag, where in before.items() if now.get(tag) != where]
    one.faults += toy.faults_of_origin() + toy.faults_of_clone()
    expected, found = toy.undisturbed(commit), toy.published()
    one.faults += [f"{name} differs" for name in sorted(expected) if expected[name] != found.get(name)]
    return one


def table(rounds: list[Round]) -> str:
    """The result as Markdown."""
    lines = [
        "| # | published by | version | the other was cancelled: | s | faults |",
        "| ---: | --- | --- | --- | ---: | --- |",
    ]
    for k, one in enumerate(rounds, start=1):
        reason, faults = (
            " ".join(text.replace("|", "/").split())[:160] for text in (one.reason, "; ".join(one.faults) or "none")
        )
        lines.append(f"| {k} | {one.winner} | {one.version} | {reason} | {one.seconds:.0f} | {faults} |")
    well = sum(not one.faults for one in rounds)
    return "\n".join([*lines, "", f"{well} of {len(rounds)} rounds without a bad state."])


def main() -> int:
    """Runs all rounds; 0 where none left a bad state."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=5.0, help="that a training takes")
    options = parser.parse_args()
    rounds: list[Round] = []
    with tempfile.TemporaryDirectory(prefix="synthgen-two-") as folder:
        toy = make_toy(Path(folder), options.seconds)
        with served(toy) as stack:
            for number in range(1, options.rounds + 1):
                try:
                    rounds.append(compete(stack, number))
                except (RuntimeError, OSError) as error:
                    rounds.append(Round(faults=[str(error)]))
                print(f"{number} of {options.rounds}: {rounds[-1]}", file=sys.stderr, flush=True)
    print(table(rounds))
    return 0 if rounds and not any(one.faults for one in rounds) else 1


if __name__ == "__main__":
    sys.exit(main())
