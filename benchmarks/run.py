"""Speed as ratios, measured in one run on this machine: `make bench`.

Owns the list of figures with their bars, `benchmarks/results/MACHINE.json` and the table between the two markers of
docs/performance.md, which shows every machine that was measured. What this machine cannot measure says so.

python benchmarks/run.py [--quick] [--memory] [--explain] [--only TEXT]

A figure is written as soon as it is measured, in place of the one that stood there: a run that is ended loses nothing.
"""

import argparse
import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from bare_loop import BareLoop
from classifier_speed import bf16_against_fp32, one_program_against_in_turn, repeats_against_in_turn
from gan_case import GanCase, make_case
from plain_loop import train_plain
from prepare_speed import make_folder, peak_memory, scan_against_pillow, two_processes_against_one
from ratios import ROUNDS, Measured, compare
from sampling_speed import sampling_against_encoding
from two_trainings import side_by_side_against_in_turn

from synthgen.artifacts import atomic_file, write_json
from synthgen.cores import usable_cores
from synthgen.device import is_slow_at_bf16
from synthgen.gan.training import train_gan

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
NOT_MEASURED = "not measured"
MEMORY_SIZES = (10_000, 100_000)


@dataclass(frozen=True)
class Figure:
    """One row of the table.

    Attributes:
        name: what is compared with what.
        on: `cpu` or `gpu`.
        bar: the least ratio (the largest, for memory); None where the row only explains a decision.
        measure: gives the ratio.
    """

    name: str
    on: str
    bar: float | None
    measure: Callable[[], Measured]


def _against(case: GanCase, reference: Callable[[], object], rounds: int) -> Measured:
    def ours() -> None:
        train_gan(
            case.images,
            case.labels,
            case.shape,
            case.section,
            case.transforms,
            kimg=case.kimg,
            seed=0,
            device=case.device,
            description="bench",
        )

    return compare(ours, reference, case.device, rounds=rounds)


def gan_figures(device: torch.device, *, quick: bool, rounds: int) -> list[Figure]:
    """Training of a GAN against the two loops."""
    on = "gpu" if device.type == "cuda" else "cpu"
    n_steps = 400 if on == "gpu" else 24
    case = make_case(4 if quick else n_steps, device)

    def bare() -> None:
        BareLoop(case).train()

    return [
        Figure(
            "GAN training, images/s over a plain loop",
            on,
            5.0 if on == "gpu" else 1.15,
            lambda: _against(case, lambda: train_plain(case), rounds),
        ),
        Figure("GAN training, images/s over the bare step", on, 0.9, lambda: _against(case, bare, rounds)),
        *_side_by_side(on, 2 if quick else 24, rounds),
    ]


def _side_by_side(on: str, steps: int, rounds: int) -> list[Figure]:
    if on == "gpu" or usable_cores() != 2:
        return []
    name = "two GAN trainings on a core each, over one after the other on both cores"
    return [Figure(name, on, 1.3, lambda: side_by_side_against_in_turn(steps, rounds))]


def classifier_figures(device: torch.device, *, quick: bool, explain: bool, rounds: int) -> list[Figure]:
    """Ten repeats of the classifier."""
    on = "gpu" if device.type == "cuda" else "cpu"
    found = []
    if on == "cpu":
        found.append(
            Figure(
                "a classifier training in bf16 over fp32, 32 px, width 32, one core",
                on,
                None if is_slow_at_bf16(device) else 1.5,
                lambda: bf16_against_fp32(32, 32, 2 if quick else 60, device, rounds),
            )
        )
    for size, width in ((8, 24), (32, 32)):
        steps = 2 if quick else {("cpu", 8): 300, ("cpu", 32): 40}.get((on, size), 400)
        what = f"10 classifier repeats, {size} px, width {width}"
        bar = 1.0 if on == "cpu" else 4.0 if size == 32 else None
        found.append(
            Figure(
                f"{what}, as the stages run them, over one after the other",
                on,
                bar,
                lambda size=size, width=width, steps=steps: repeats_against_in_turn(size, width, steps, device, rounds),
            )
        )
        if on == "cpu" and explain:
            found.append(
                Figure(
                    f"{what}, as one program on one thread, over one after the other",
                    on,
                    None,
                    lambda size=size, width=width, steps=steps: one_program_against_in_turn(
                        size, width, min(steps, 60), device, rounds
                    ),
                )
            )
    return found


def sampling_figures(device: torch.device, rounds: int) -> list[Figure]:
    """Sampling with encoding."""
    on = "gpu" if device.type == "cuda" else "cpu"
    return [
        Figure(
            f"sampling + PNG encoding over PNG encoding alone, one core, {size} px ({channels} channels)",
            on,
            0.8,
            lambda size=size, channels=channels: sampling_against_encoding(size, channels, device, rounds),
        )
        for size, channels in ((8, 32), (32, 16))
    ]


def prepare_figures(folder: Path, *, quick: bool, rounds: int) -> list[Figure]:
    """Speed of `prepare`."""
    raw = folder / "raw"
    make_folder(raw, 240 if quick else 3000)
    figures = [
        Figure(
            "prepare, images/s over Pillow decode + resize, one core",
            "cpu",
            0.8,
            lambda: scan_against_pillow(raw, rounds),
        )
    ]
    if len(os.sched_getaffinity(0)) > 1:
        figures.append(
            Figure("prepare on 2 cores over one core", "cpu", 1.8, lambda: two_processes_against_one(raw, rounds))
        )
    return figures


def memory_figure(folder: Path) -> dict[str, Any]:
    """Peak memory of prepare at two sizes, each in a process of its own, and bytes per further image."""
    few, many = (peak_memory(n, folder / str(n) / "raw") for n in MEMORY_SIZES)
    per_image = (many - few) * 2**20 / (MEMORY_SIZES[1] - MEMORY_SIZES[0])
    return {"few_mb": few, "many_mb": many, "bytes_per_image": round(per_image)}


def machine_name(device: torch.device) -> str:
    """`cpu-2-cores`, or the GPU's name as a slug; no host name, no date."""
    if device.type == "cuda":
        return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(device).lower()).strip("-")
    return f"cpu-{len(os.sched_getaffinity(0))}-cores"


def measure(
    arguments: argparse.Namespace, device: torch.device, keep: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """All figures that this machine can measure, those of the other kind as not measured; `keep` gets each state."""
    quick = arguments.quick
    rounds = 1 if quick else ROUNDS
    on = "gpu" if device.type == "cuda" else "cpu"
    with tempfile.TemporaryDirectory() as name:
        figures = [
            *gan_figures(device, quick=quick, rounds=rounds),
            *classifier_figures(device, quick=quick, explain=arguments.explain, rounds=rounds),
            *sampling_figures(device, rounds),
            *prepare_figures(Path(name), quick=quick, rounds=rounds),
        ]
        result: dict[str, Any] = {
            "machine": machine_name(device),
            "processor": platform.machine(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "rounds": rounds,
            "quick": quick,
            "rows": _not_measured() if on == "cpu" else [],
            "memory": None,
        }
        for figure in figures:
            if arguments.only and arguments.only not in figure.name:
                continue
            sys.stderr.write(f"{figure.name} ...\n")
            found = asdict(figure.measure())
            row = {"figure": figure.name, "on": figure.on, "bar": figure.bar, **_rounded(found)}
            result["rows"] = [row, *result["rows"]]
            keep(result)
        if arguments.memory:
            result["memory"] = memory_figure(Path(name))
            keep(result)
    return result


def merged(before: dict[str, Any] | None, now: dict[str, Any]) -> dict[str, Any]:
    """`now`, with the rows and the memory of `before` that were not measured again."""
    if before is None:
        return now
    known = {(row["figure"], row["on"]) for row in now["rows"]}
    rows = [*now["rows"], *(row for row in before["rows"] if (row["figure"], row["on"]) not in known)]
    rows.sort(key=lambda row: (row["on"], row["figure"]))
    return {**now, "rows": rows, "memory": now["memory"] or before["memory"]}


def _rounded(found: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.4g}") for name, value in found.items()}


def _not_measured() -> list[dict[str, Any]]:
    bars = {
        "GAN training, images/s over a plain loop": 5.0,
        "GAN training, images/s over the bare step": 0.9,
        "10 classifier repeats, 32 px, width 32, as the stages run them, over one after the other": 4.0,
        "sampling + PNG encoding over PNG encoding alone, one core, 32 px (16 channels)": 0.8,
    }
    return [{"figure": name, "on": "gpu", "bar": bar, "median": None} for name, bar in bars.items()]


def table(results: list[dict[str, Any]]) -> str:
    """The Markdown table of all machines; a GPU's rows replace those that a CPU could not measure."""
    has_gpu = any(row["on"] == "gpu" and row["median"] is not None for r in results for row in r["rows"])
    lines = ["| figure | machine | at least | median | least | most |", "| --- | --- | --- | --- | --- | --- |"]
    for result in results:
        for row in result["rows"]:
            bar = "–" if row["bar"] is None else f"{row['bar']:g}"
            if row["median"] is None:
                if not has_gpu:
                    lines.append(f"| {row['figure']} | GPU | {bar} | {NOT_MEASURED} | | |")
                continue
            missed = row["bar"] is not None and row["median"] < row["bar"]
            median = f"**{row['median']:.2f}** (missed)" if missed else f"{row['median']:.2f}"
            cells = (row["figure"], result["machine"], bar, median, f"{row['least']:.2f}", f"{row['most']:.2f}")
            lines.append(f"| {' | '.join(cells)} |")
        memory = result["memory"]
        shown = NOT_MEASURED + " (`--memory`)"
        if memory is not None:
            shown = f"{memory['few_mb']:.0f} MB, {memory['many_mb']:.0f} MB: {memory['bytes_per_image']} bytes an image"
        lines.append(
            f"| peak memory of prepare, 10,000 and 100,000 images of 32 px | {result['machine']} "
            f"| flat but for the index | {shown} | | |"
        )
    versions = ", ".join(f"{r['machine']}: torch {r['torch']}, {r['rounds']} rounds" for r in results)
    return "\n".join([*lines, "", f"{versions}."])


def write_page(results: list[dict[str, Any]], page: Path = PAGE) -> None:
    """Rewrites what stands between the markers of docs/performance.md, and nothing else."""
    text = page.read_text(encoding="utf-8")
    before, found_begin, rest = text.partition(BEGIN)
    _, found_end, after = rest.partition(END)
    if not (found_begin and found_end):
        raise SystemExit(f"{page} has no lines {BEGIN} and {END}; put them where the table belongs")
    with atomic_file(page) as temporary:
        temporary.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Measures, writes the file of this machine and the table of all."""
    parser = argparse.ArgumentParser(description="speed as ratios")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, writes nothing")
    parser.add_argument("--memory", action="store_true", help="also peak memory of prepare (minutes)")
    parser.add_argument("--explain", action="store_true", help="also rows that only explain a decision (minutes)")
    parser.add_argument("--only", default="", help="only figures whose name holds this text")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def keep(result: dict[str, Any]) -> None:
        if arguments.quick:
            return
        path = RESULTS / f"{result['machine']}.json"
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        write_json(path, merged(before, result))
        write_page([json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))])

    sys.stdout.write(table([measure(arguments, device, keep)]) + "\n")


if __name__ == "__main__":
    main()
