"""Kills dvc, worker, flow and server with SIGKILL in the middle of trainings, and looks what is left of it.

`python benchmarks/chaos.py [--seed 0] [--kills 20] [--seconds 8]` prints a Markdown table and exits with 1 on any
failure. Owns a toy project in a temporary folder under `pipelines.serve`; its publishing run is started anew in each
round, with new raw data in both classes. A round is survived when

- 10 s after the kill no process is left that nobody answers for,
- origin is whole right after the kill and at the end (no tag without its commit on the branch, nor the other way),
- no version that was there is gone, and a fresh clone can pull everything and has nothing to do,
- the next run publishes what an undisturbed run makes: equal digests of every output.
"""

import argparse
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from toy_project import CLASSES, ToyProject, make_toy
from toy_server import Served, command_of, kill, served

VICTIMS = ("dvc", "worker", "flow", "server")
ORPHAN_SECONDS = 10.0
START_SECONDS = 300.0
RUN_SECONDS = 900.0


@dataclass
class Round:
    """One kill and what came of it.

    Attributes:
        victim: of `VICTIMS`.
        moment: seconds after a training had begun.
        orphans_gone: seconds until the last orphan was gone.
        outcome: of the run that was disturbed.
        version: newest one afterwards.
        recovered: seconds from the kill to the end of the run that published.
        faults: empty where it was survived.
    """

    victim: str
    moment: float
    orphans_gone: float = 0.0
    outcome: str = ""
    version: str = ""
    recovered: float = 0.0
    faults: list[str] = field(default_factory=list)


def schedule(kills: int, seconds: float, rng: random.Random) -> list[Round]:
    """The rounds: every victim equally often, in random order, each at a random moment of the training."""
    victims = [VICTIMS[k % len(VICTIMS)] for k in range(kills)]
    rng.shuffle(victims)
    return [Round(victim, rng.uniform(0.05, 0.8) * seconds) for victim in victims]


def is_victim(kind: str, command: list[str]) -> bool:
    """Whether a process with this argument list is what is to be killed."""
    words = command[1:]
    module = words[words.index("-m") + 1] if "-m" in words[:-1] else ""
    if any(word.endswith("supervise.py") for word in words):
        return False  # a supervisor's arguments hold those of what it runs
    if kind == "dvc":
        return module == "dvc" and "repro" in words and any(word.startswith("adapt@") for word in words)
    if kind == "worker":
        return module == "prefect" and "worker" in words and "start" in words
    if kind == "flow":
        return module in {"prefect.engine", "prefect.flow_engine"}
    return module == "prefect" and "server" in words and "start" in words


def victims_of(stack: Served, kind: str) -> list[psutil.Process]:
    """The processes of that kind, oldest first."""
    found = [process for process in stack.family() if is_victim(kind, command_of(process))]
    return sorted(found, key=lambda process: process.pid)


def await_training(toy: ToyProject, known: int, seconds: float) -> None:
    """Waits until a training began that is not among the first `known` stamps.

    Raises:
        RuntimeError: none did.
    """
    deadline = time.monotonic() + seconds
    while not any(row[0] == "start" and row[1].startswith("adapt@") for row in toy.stamps()[known:]):
        if time.monotonic() > deadline:
            raise RuntimeError(f"no training began within {seconds:g} s")
        time.sleep(0.05)


def await_no_orphans(stack: Served) -> tuple[float, list[str]]:
    """Seconds until there was no orphan, and those that were still there after the limit."""
    began = time.monotonic()
    while left := stack.orphans():
        if time.monotonic() - began > ORPHAN_SECONDS:
            return time.monotonic() - began, left
        time.sleep(0.2)
    return time.monotonic() - began, []


def disturb(stack: Served, one: Round, number: int, rng: random.Random) -> None:
    """One round; what is wrong goes into `one.faults`."""
    toy = stack.toy
    stack.start()
    versions, known = toy.versions(), len(toy.stamps())
    commit = ""
    for slug in CLASSES:
        commit = toy.add_raw(slug, f"{number:03d}.txt", f"{slug} {number} {rng.random()}\n")
    run = stack.run("on-demand")
    await_training(toy, known, START_SECONDS)
    time.sleep(one.moment)
    candidates = victims_of(stack, one.victim)
    if not candidates:
        one.faults.append(f"there was no {one.victim} to kill")
        return
    struck = time.monotonic()
    kill(rng.choice(candidates))
    one.orphans_gone, left = await_no_orphans(stack)
    one.faults += [f"orphan: {process}" for process in left]
    one.faults += toy.faults_of_origin()
    if one.victim in ("worker", "server"):
        deadline = time.monotonic() + 30
        while stack.process is not None and stack.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)  # serve ends when a part of it does; as a service it would be started again
        if stack.process is not None and stack.process.poll() is None:
            one.faults.append(f"pipelines.serve goes on without its {one.victim}")
            stack.stop()
        one.outcome = "served anew"
        stack.start()
    elif one.victim == "dvc":
        one.outcome = stack.await_end(run, RUN_SECONDS)[0]
        if one.outcome == "COMPLETED":
            one.faults.append("the run says it completed")
    else:
        one.outcome = stack.state(run)[0]
    expected = toy.undisturbed(commit)
    _message, refused = stack.finish("on-demand", RUN_SECONDS)
    one.recovered = time.monotonic() - struck
    one.outcome += f", then {refused} refused" if refused else ""
    one.faults += toy.faults_of_origin() + toy.faults_of_clone()
    one.faults += differences(expected, toy.published())
    now = toy.versions()
    one.faults += [f"{tag} is lost" for tag, where in versions.items() if now.get(tag) != where]
    one.version = max(now, key=lambda tag: [int(part) for part in tag.partition("@v")[2].split(".")], default="")
    if len(now) != len(versions) + 1:
        one.faults.append(f"{len(now) - len(versions)} versions for one change")


def differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """Outputs whose digests are not those of an undisturbed run."""
    names = sorted(set(expected) | set(found))
    return [f"{name} differs from an undisturbed run's" for name in names if expected.get(name) != found.get(name)]


def table(rounds: list[Round]) -> str:
    """The result as Markdown."""
    lines = [
        "| # | killed | s into training | disturbed run | orphans gone, s | published again, s | version | faults |",
        "| ---: | --- | ---: | --- | ---: | ---: | --- | --- |",
    ]
    for k, one in enumerate(rounds, start=1):
        faults = "; ".join(" ".join(fault.replace("|", "/").split())[:200] for fault in one.faults) or "none"
        lines.append(
            f"| {k} | {one.victim} | {one.moment:.1f} | {one.outcome} | {one.orphans_gone:.1f} | "
            f"{one.recovered:.0f} | {one.version} | {faults} |"
        )
    survived = sum(not one.faults for one in rounds)
    return "\n".join([*lines, "", f"{survived} of {len(rounds)} kills survived."])


def main() -> int:
    """Runs the whole test; 0 where every kill was survived."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of victims and moments")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=8.0, help="that a training takes")
    parser.add_argument("--victims", default=",".join(VICTIMS), help="only these (default: all)")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    rounds = [one for one in schedule(options.kills, options.seconds, rng) if one.victim in options.victims.split(",")]
    done: list[Round] = []
    with tempfile.TemporaryDirectory(prefix="synthgen-chaos-") as folder:
        toy = make_toy(Path(folder), options.seconds)
        with served(toy) as stack:
            for number, one in enumerate(rounds, start=1):
                done.append(one)
                try:
                    disturb(stack, one, number, rng)
                except (RuntimeError, OSError) as error:
                    one.faults.append(str(error))
                print(f"{number} of {len(rounds)}: {one}", file=sys.stderr, flush=True)
    print(table(done))
    return 0 if done and not any(one.faults for one in done) else 1


if __name__ == "__main__":
    sys.exit(main())
