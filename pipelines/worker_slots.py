"""What a machine has for workers: slots with a checkout and a cache each, and its GPUs.

Owns who holds which: a slot is a folder that one worker has at a time, a GPU is one training's. Locks are the kernel's
(flock) and end with their holder, however that dies. Refuses to know what is done in a slot. Slots lie in
$SYNTHGEN_WORKERS, by default in the user's cache folder.

PipelineError
└── WorkerError  an order cannot be carried out here, and why
"""

import fcntl
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pipelines.dvc import PipelineError

__all__ = ["GPU_VARIABLE", "WorkerError", "free_gpu", "gpu_of_slot", "take_slot", "visible_gpus", "workers_folder"]

FOLDER_VARIABLE = "SYNTHGEN_WORKERS"
GPU_VARIABLE = "CUDA_VISIBLE_DEVICES"
MOST_SLOTS = 256


class WorkerError(PipelineError):
    """An order cannot be carried out here, and why."""


def workers_folder(environment: Mapping[str, str] | None = None) -> Path:
    """Where this machine's slots lie: $SYNTHGEN_WORKERS, else below the user's cache folder."""
    known = os.environ if environment is None else environment
    if given := known.get(FOLDER_VARIABLE):
        return Path(given).expanduser().resolve()
    return Path(known.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "synthgen" / "workers"


def visible_gpus(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The CUDA devices that this worker may use, as $CUDA_VISIBLE_DEVICES names them; none on a machine without.

    Where the variable is not set, `nvidia-smi` says how many there are.
    """
    known = os.environ if environment is None else environment
    if (given := known.get(GPU_VARIABLE)) is not None:
        names = [name.strip() for name in given.split(",")]
        # CUDA takes the list up to the first device that is not there, and -1 never is.
        return tuple(names[: names.index("-1")] if "-1" in names else [name for name in names if name])
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    done = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=60, check=False)
    rows = [line for line in done.stdout.splitlines() if line.startswith("GPU ")] if done.returncode == 0 else []
    return tuple(str(n) for n in range(len(rows)))


def gpu_of_slot(n: int, devices: Sequence[str]) -> str | None:
    """$CUDA_VISIBLE_DEVICES of the `n`-th training on this machine: one device, and no other training has it.

    Args:
        n: from 0.
        devices: of `visible_gpus`.
    Returns:
        The device; None where the machine has none, so that nothing is set.
    Raises:
        WorkerError: there are fewer devices.
    """
    if not devices:
        return None
    if not 0 <= n < len(devices):
        raise WorkerError(
            f"slot {n} has no GPU: this machine has {len(devices)} ({', '.join(devices)}), for slots from 0 on; "
            "start fewer workers here, or lower the limit `gpu`"
        )
    return devices[n]


def _lock(path: Path) -> IO[str] | None:
    stream = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException as error:
        stream.close()
        if isinstance(error, BlockingIOError):
            return None
        raise
    return stream


@contextmanager
def take_slot(folder: Path) -> Iterator[Path]:
    """The first slot in `folder` that nobody holds, held while the block runs.

    Args:
        folder: of one project's slots on this machine; made if it is not there.
    Yields:
        The slot's folder, which may hold what an earlier order left.
    Raises:
        WorkerError: all are held.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(MOST_SLOTS):
        stream = _lock(folder / f"slot-{n}.lock")
        if stream is not None:
            with stream:
                slot = folder / f"slot-{n}"
                slot.mkdir(exist_ok=True)
                yield slot
            return
    raise WorkerError(f"all {MOST_SLOTS} slots in {folder} are held; end some of this machine's workers")


@contextmanager
def free_gpu(folder: Path, devices: Sequence[str], timeout_seconds: float) -> Iterator[str | None]:
    """Waits for a GPU that no training of this machine holds, and holds it while the block runs.

    Args:
        folder: of this machine's slots.
        devices: of `visible_gpus`.
        timeout_seconds: longest wait.
    Yields:
        $CUDA_VISIBLE_DEVICES for the training; None on a machine without a GPU, at once.
    Raises:
        WorkerError: none became free.
    """
    if not devices:
        yield None
        return
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + timeout_seconds
    while True:
        for n in range(len(devices)):
            device = gpu_of_slot(n, devices)
            assert device is not None
            # By the device's own name, since workers of one machine may be given different lists.
            stream = _lock(folder / f"gpu-{re.sub(r'[^A-Za-z0-9._-]+', '-', device)}.lock")
            if stream is not None:
                with stream:
                    yield device
                return
        if time.monotonic() > deadline:
            raise WorkerError(
                f"none of the {len(devices)} GPUs became free within {timeout_seconds:g} s; set the limit "
                f"(`prefect concurrency-limit create gpu N`) to the GPUs that all workers have together"
            )
        time.sleep(0.2)
