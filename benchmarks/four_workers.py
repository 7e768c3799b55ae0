"""How much faster four workers are than one, with a stage that sleeps instead of computing.

`python benchmarks/four_workers.py [--workers 4] [--seconds 90] [--runner dask|slots]` prints a Markdown table and exits
with 1 where the speed-up is below --bar (3). Owns a toy project with as many scarce classes as workers, a Prefect
server and, with `dask`, a scheduler and worker processes on loopback, started apart from the flow; every worker has
checkouts and DVC caches of its own and shares the remote alone. The flow `spread` runs twice from nothing, with one
worker and with all; both have to publish the same digests.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from toy_project import REPOSITORY, ToyProject, make_toy, run
from toy_server import free_port, prefect_server, running


@dataclass(frozen=True)
class Measured:
    """One run.

    Attributes:
        workers: how many there were.
        seconds: of the whole flow, from the command's start to its end.
        training: seconds from the first training's start to the last one's end.
        outputs: output -> digest, as published.
        trained: trainings that ran; one per class, none twice.
    """

    workers: int
    seconds: float
    training: float
    outputs: dict[str, str]
    trained: tuple[str, ...]


@contextmanager
def dask_workers(folder: Path, n: int, environment: dict[str, str]) -> Iterator[str]:
    """A scheduler and `n` workers of one thread, each a process tree of its own; yields the scheduler's address."""
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    dask = [sys.executable, "-m", "dask"]
    start = [*dask, "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]
    with running("scheduler", start, folder, environment):
        work = [*dask, "worker", address, "--host", "127.0.0.1", "--nthreads", "1", "--no-dashboard"]
        # Each on a machine of its own, as far as it can tell: a folder of slots for each.
        with ExitStack() as stack:
            for k in range(n):
                own = [*work, "--name", f"w{k}", "--local-directory", str(folder / f"dask-{k}")]
                place = {**environment, "SYNTHGEN_WORKERS": str(folder / f"machine-{k}")}
                stack.enter_context(running(f"worker-{k}", own, folder, place))
            await_workers(address, n, environment)
            yield address


@contextmanager
def ray_cluster(folder: Path, n: int, environment: dict[str, str]) -> Iterator[str]:
    """A Ray head with `n` CPUs, so that `n` tasks run at a time, each in a process of its own; yields its address."""
    port = free_port()
    # a socket's path may not be longer than 107 characters
    with tempfile.TemporaryDirectory(prefix="ray-") as short:
        start = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus", str(n)]
        start += ["--node-ip-address", "127.0.0.1", "--port", str(port), "--include-dashboard", "false"]
        start += ["--disable-usage-stats", "--temp-dir", short, "--object-store-memory", str(100_000_000)]
        place = {**environment, "SYNTHGEN_WORKERS": str(folder / "machine-0"), "RAY_USAGE_STATS_ENABLED": "0"}
        with running("ray", start, folder, place):
            address = f"127.0.0.1:{port}"
            await_ray(address, environment)
            yield address


def await_ray(address: str, environment: dict[str, str]) -> None:
    """Waits until the head takes drivers."""
    ask = "import sys, ray\nray.init(address=sys.argv[1], logging_level='ERROR', log_to_driver=False)"
    deadline = time.monotonic() + 180
    while True:
        try:
            run(REPOSITORY, sys.executable, "-c", ask, address, environment=environment)
            return
        except RuntimeError:
            if time.monotonic() > deadline:
                raise
            time.sleep(2.0)


def await_workers(address: str, n: int, environment: dict[str, str]) -> None:
    """Waits until the scheduler knows all its workers."""
    ask = (
        "import sys; from distributed import Client\n"
        "with Client(sys.argv[1]) as client: client.wait_for_workers(int(sys.argv[2]), timeout=180)"
    )
    run(REPOSITORY, sys.executable, "-c", ask, address, str(n), environment=environment)


def measure(folder: Path, workers: int, n_classes: int, seconds: float, runner: str) -> Measured:
    """One publishing run from nothing."""
    folder.mkdir(parents=True)
    toy = make_toy(folder / "toy", seconds, tuple(f"class-{k}" for k in range(n_classes)))
    command = [sys.executable, "-m", "pipelines.flows", "--project", str(toy.person), "--publish", "--runner", runner]
    with prefect_server(folder, SYNTHGEN_WORKERS=str(folder / "workers")) as environment:
        if runner == "dask":
            with dask_workers(folder, workers, environment) as address:
                began = time.monotonic()
                said = run(REPOSITORY, *command, "--address", address, environment=environment, seconds=7200)
        else:
            began = time.monotonic()
            said = run(REPOSITORY, *command, "--max-workers", str(workers), environment=environment, seconds=7200)
        took = time.monotonic() - began
    (folder / "flow.log").write_text(said, encoding="utf-8")
    faults = toy.faults_of_origin() + toy.faults_of_clone()
    if faults:
        raise RuntimeError(f"with {workers} workers: {'; '.join(faults)}")
    return measured(toy, workers, took)


def measured(toy: ToyProject, workers: int, seconds: float) -> Measured:
    """What one run shows."""
    rows = [row for row in toy.stamps() if row[1].startswith("adapt@")]
    begins, ends = ([row[3] for row in rows if row[0] == what] for what in ("start", "end"))
    trained = tuple(sorted(row[1] for row in rows if row[0] == "end"))
    return Measured(workers, seconds, max(ends) - min(begins), toy.published(), trained)


def table(runs: list[Measured], seconds: float, runner: str) -> str:
    """The result as Markdown; the first run is what the others are compared with."""
    lines = [
        f"{len(runs[0].trained)} scarce classes, {seconds:g} s of sleep each, runner `{runner}`:",
        "",
        "| workers | whole flow, s | trainings, s | speed-up of the flow | of the trainings |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {one.workers} | {one.seconds:.0f} | {one.training:.0f} | {runs[0].seconds / one.seconds:.2f} | "
        f"{runs[0].training / one.training:.2f} |"
        for one in runs
    ]
    return "\n".join(lines)


def main() -> int:
    """Measures one worker and all; 0 where the speed-up is enough and the outputs are the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=4, help="and as many scarce classes")
    parser.add_argument("--seconds", type=float, default=90.0, help="that a training takes")
    parser.add_argument("--runner", choices=("slots", "dask"), default="slots")
    parser.add_argument("--bar", type=float, default=3.0, help="least speed-up of the whole flow")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="synthgen-workers-") as folder:
        runs = []
        for workers in (1, options.workers):
            place = Path(folder) / f"with-{workers}"
            runs.append(measure(place, workers, options.workers, options.seconds, options.runner))
            print(runs[-1], file=sys.stderr, flush=True)
    print(table(runs, options.seconds, options.runner))
    one, many = runs[0], runs[-1]
    is_same = one.outputs == many.outputs and one.trained == many.trained == tuple(sorted(set(many.trained)))
    if not is_same:
        print("\nThe two runs did not make the same outputs, or trained something twice.")
    return 0 if is_same and one.seconds / many.seconds >= options.bar else 1


if __name__ == "__main__":
    sys.exit(main())
