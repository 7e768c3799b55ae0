"""The command line: a verb per stage, the same that dvc.yaml runs, and a few for people.

Owns options, exit status and what is printed; every verb hands over to one function of `synthgen.stages`. Heavy
libraries are imported inside the verbs, so that `synthgen --help` answers at once.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

# Waiting threads must sleep: two stages on two cores would otherwise spin against each other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import typer

from synthgen.errors import SynthgenError
from synthgen.lifeline import end_with_parent
from synthgen.lock import FoundLock, hold_output, remove_dead_locks

if TYPE_CHECKING:
    import torch

    from synthgen.gan.distributed import Peers
    from synthgen.stages.workspace import Workspace

app = typer.Typer(
    help="Would synthetic images make your classifier better on its scarce classes?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Project = Annotated[Path, typer.Option("--project", help="Folder with params.yaml and dvc.yaml.")]
Fold = Annotated[str, typer.Option("--fold", help="f0, f1, ... or final, as in plan.yaml.")]
Slug = Annotated[str, typer.Option("--slug", help="Slug of a class, as in plan.yaml.")]
Arm = Annotated[str, typer.Option("--arm", help="Name of an arm, as in params.yaml.")]
Device = Annotated[
    str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps; default $SYNTHGEN_DEVICE, else auto.")
]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="Processes; default one per core.")]

SMALL_IMAGE = 16
HERE = Path()


def _workspace(project: Path) -> "Workspace":
    from synthgen.stages.workspace import Workspace

    return Workspace(project.resolve())


@contextmanager
def _writing(project: Path, output: Callable[["Workspace"], Path]) -> Iterator["Workspace"]:
    """The project, with the lock of the one output that a verb writes; taken before anything heavy is imported."""
    workspace = _workspace(project)
    _ = workspace.config  # in a folder that is no project nothing is written
    with hold_output(workspace.root, output(workspace)):
        yield workspace


@contextmanager
def _training(
    project: Path, output: Callable[["Workspace"], Path], device: str | None
) -> Iterator[tuple["Workspace", "torch.device", "Peers"]]:
    """As `_writing`, for a GAN that torchrun may train in several processes: the first alone holds the lock."""
    workspace = _workspace(project)
    _ = workspace.config
    follows = "WORLD_SIZE" in os.environ and os.environ.get("RANK", "0") != "0"
    with nullcontext() if follows else hold_output(workspace.root, output(workspace)):
        found = _device(device, workspace)

        from synthgen.gan.distributed import join_peers

        with join_peers(found) as (peers, own):
            if follows:
                logging.getLogger("synthgen").setLevel(logging.ERROR)
            yield workspace, own, peers


def _device(name: str | None, workspace: "Workspace") -> "torch.device":
    config = workspace.config  # a missing params.yaml is said before torch is loaded
    small = config.prepare.image_size <= SMALL_IMAGE

    import torch

    from synthgen.cores import usable_cores
    from synthgen.device import resolve_device, warn_of_slow_bf16

    device = resolve_device(name)
    if "bf16" in (config.classifier.precision, config.pretrain.precision):
        warn_of_slow_bf16(device)
    # handing pieces of an 8 px network to a second thread costs more than it saves
    most = 1 if device.type == "cpu" and small else usable_cores()
    torch.set_num_threads(min(torch.get_num_threads(), most))
    return device


@app.command()
def plan(
    project: Project = HERE,
    reassign: Annotated[bool, typer.Option("--reassign", help="Forget folds.csv and draw all folds again.")] = False,
) -> None:
    """Read the raw data; write plan.yaml (scarce classes, targets) and folds.csv."""
    with _writing(project, lambda workspace: workspace.plan_file) as workspace:
        from rich.console import Console

        from synthgen.stages.plan import check_scarce, run_plan
        from synthgen.stages.tables import plan_table

        found = run_plan(workspace, reassign=reassign)
    Console().print(plan_table(found))
    check_scarce(found)


@app.command()
def prepare(project: Project = HERE) -> None:
    """Open and judge every image; write data/prepared/."""
    with _writing(project, lambda workspace: workspace.prepared) as workspace:
        from synthgen.stages.prepare import run_prepare

        run_prepare(workspace)


@app.command()
def pretrain(fold: Fold, project: Project = HERE, device: Device = None) -> None:
    """Train the shared conditional GAN of a fold."""
    with _training(project, lambda workspace: workspace.shared_model(fold), device) as (workspace, own, peers):
        from synthgen.stages.pretrain import run_pretrain

        run_pretrain(workspace, fold, own, peers)


@app.command()
def adapt(fold: Fold, slug: Slug, project: Project = HERE, device: Device = None) -> None:
    """Fine-tune the shared GAN of a fold to one scarce class."""
    with _training(project, lambda workspace: workspace.adapted_model(fold, slug), device) as (workspace, own, peers):
        from synthgen.stages.adapt import run_adapt

        run_adapt(workspace, fold, slug, own, peers)


@app.command()
def scratch(fold: Fold, slug: Slug, project: Project = HERE, device: Device = None) -> None:
    """Train a GAN on one class alone."""
    with _training(project, lambda workspace: workspace.scratch_model(fold, slug), device) as (workspace, own, peers):
        from synthgen.stages.scratch import run_scratch

        run_scratch(workspace, fold, slug, own, peers)


@app.command()
def synthesize(fold: Fold, project: Project = HERE, device: Device = None) -> None:
    """Make, judge and select labelled synthetic images of a fold."""
    with _writing(project, lambda workspace: workspace.synthetic(fold)) as workspace:
        from synthgen.stages.synthesize import run_synthesize

        run_synthesize(workspace, fold, _device(device, workspace))


@app.command()
def assemble(project: Project = HERE) -> None:
    """Write data/augmented/, the data set that users take."""
    with _writing(project, lambda workspace: workspace.augmented) as workspace:
        from synthgen.stages.assemble import run_assemble

        run_assemble(workspace)


@app.command()
def evaluate(arm: Arm, project: Project = HERE, device: Device = None, workers: Workers = None) -> None:
    """Train and predict one classical arm in every fold."""
    with _writing(project, lambda workspace: workspace.evaluation(arm)) as workspace:
        from synthgen.stages.evaluate import run_evaluate

        run_evaluate(workspace, arm, _device(device, workspace), workers)


@app.command()
def search(project: Project = HERE, device: Device = None, workers: Workers = None) -> None:
    """Find how synthetic images are best mixed in, on validation images, within a stated budget."""
    with _writing(project, lambda workspace: workspace.search_result) as workspace:
        from synthgen.stages.search import run_search

        run_search(workspace, _device(device, workspace), workers)


@app.command()
def challenge(arm: Arm, project: Project = HERE, device: Device = None, workers: Workers = None) -> None:
    """Train and predict one arm with synthetic images in every fold."""
    with _writing(project, lambda workspace: workspace.evaluation(arm)) as workspace:
        from synthgen.stages.challenge import run_challenge

        run_challenge(workspace, arm, _device(device, workspace), workers)


@app.command()
def compare(project: Project = HERE) -> None:
    """Measure the gain and its interval; write metrics/."""
    with _writing(project, lambda workspace: workspace.metrics) as workspace:
        from rich.console import Console

        from synthgen.stages.compare import run_compare
        from synthgen.stages.tables import verdict_table

        Console().print(verdict_table(run_compare(workspace)))


@app.command()
def worth(project: Project = HERE, device: Device = None, workers: Workers = None) -> None:
    """Train on fewer real images: how many more the synthetic ones are worth; write metrics/worth.json."""
    with _writing(project, lambda workspace: workspace.worth) as workspace:
        from synthgen.stages.worth import run_worth

        run_worth(workspace, _device(device, workspace), workers)


@app.command()
def report(project: Project = HERE) -> None:
    """Write reports/index.html."""
    with _writing(project, lambda workspace: workspace.reports) as workspace:
        from synthgen.stages.report import run_report

        run_report(workspace)


@app.command()
def verdict(project: Project = HERE) -> None:
    """Print the verdict table of the last run, and where the report lies."""
    from rich.console import Console

    from synthgen.artifacts import read_json
    from synthgen.stages.tables import verdict_table

    workspace = _workspace(project)
    console = Console()
    worth = read_json(workspace.worth) if workspace.worth.exists() else None
    console.print(verdict_table(read_json(workspace.metrics / "gain.json"), worth))
    console.print(f"report: {workspace.reports / 'index.html'}", soft_wrap=True, highlight=False)


@app.command()
def verify(project: Project = HERE) -> None:
    """Compare every output, byte by byte, with what the stages wrote; status 1 if one was altered or is missing."""
    from rich.console import Console

    from synthgen.stages.verify import checks_table, refuse_altered, verify_project

    checks = verify_project(_workspace(project))
    Console().print(checks_table(checks))
    refuse_altered(checks)


@app.command()
def unlock(
    project: Project = HERE,
    force: Annotated[str | None, typer.Option("--force", help="A machine that is gone: remove its locks too.")] = None,
) -> None:
    """List the locks of outputs and remove those of dead processes; status 1 if any is left."""
    found = remove_dead_locks(project.resolve(), force)
    for lock in found:
        typer.echo(_lock_line(lock))
    if not found:
        typer.echo("no output is locked")
    if any(not lock.removed for lock in found):
        raise typer.Exit(1)


def _lock_line(lock: FoundLock) -> str:
    holder = lock.holder or "a process that did not say its name"
    if lock.removed:
        why = "as you asked" if lock.state == "foreign" else "its holder is dead"
        return f"{lock.name}: removed, {why}: {holder}"
    if lock.state == "held":
        return f"{lock.name}: kept, in use by {holder}"
    host = lock.holder.process.host if lock.holder else "HOST"
    return f"{lock.name}: kept, of another machine: {holder}; if that is gone: synthgen unlock --force {host}"


@app.command()
def sizes(project: Project = HERE) -> None:
    """Print network sizes, training lengths, and the smallest gain that the test set could show."""
    from rich.console import Console

    from synthgen.stages.tables import power_table, sizes_table

    workspace = _workspace(project)
    Console().print(sizes_table(workspace), power_table(workspace))


@app.command()
def export(
    destination: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    layout: Annotated[str, typer.Option("--layout", help="imagefolder, webdataset or coco.")] = "imagefolder",
    project: Project = HERE,
) -> None:
    """Write data/augmented/ as image files for tools that want files."""
    from synthgen.dataset.export import LAYOUTS, export_dataset
    from synthgen.errors import ConfigError

    if layout not in LAYOUTS:
        raise ConfigError(f"--layout {layout!r} is not one of {', '.join(LAYOUTS)}")
    n_images = export_dataset(_workspace(project).augmented, destination, layout)
    typer.echo(f"{n_images} images in {destination}")


def _run(command: Callable[[], object]) -> int:
    try:
        status = command()
    except SynthgenError as error:
        typer.echo(f"synthgen: {type(error).__name__}: {error}", err=True)
        return 1
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        typer.echo("synthgen: out of memory; lower classifier.batch, pretrain.batch or prepare.image_size", err=True)
        return 1
    return status if isinstance(status, int) else 0


def _is_out_of_memory(error: Exception) -> bool:
    # torch raises subclasses of RuntimeError; a pool breaks where the system ended one of its processes
    kind, text = type(error).__name__, str(error).lower()
    said = "out of memory" in text or "can't allocate memory" in text
    return isinstance(error, MemoryError) or kind in ("BrokenProcessPool", "OutOfMemoryError") or said


def _dispatch(arguments: list[str]) -> int:
    """Runs a verb of this file, else one that another package registered; start-up pays for those only if asked."""
    own = {command.name or getattr(command.callback, "__name__", "") for command in app.registered_commands}
    if not arguments or arguments[0] not in own:
        from synthgen.other_commands import find_command, list_commands

        if arguments and (command := find_command(arguments[0], own)):
            return command(arguments[1:])
        for name, purpose in list_commands(own).items():
            app.command(name, help=purpose)(lambda: None)  # for the list of --help; what runs it is above
    app()
    return 0


def main() -> None:
    """Entry point: errors that a user can act on are one line, status 1; anything else is a bug with its traceback."""
    end_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    sys.exit(_run(lambda: _dispatch(sys.argv[1:])))


if __name__ == "__main__":
    main()
