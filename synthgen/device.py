"""Which device a training runs on: resolved once, said once, refused early."""

import logging
import os

import torch

from synthgen.errors import DeviceError

logger = logging.getLogger(__name__)

DEVICE_VARIABLE = "SYNTHGEN_DEVICE"


def resolve_device(requested: str | None = None) -> torch.device:
    """The device to compute on.

    Args:
        requested: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`; None reads $SYNTHGEN_DEVICE, else `auto`.
            The device is a property of the machine, not of the data: it is never hashed by DVC.
    Returns:
        the device; `auto` takes CUDA, then MPS, then the CPU, and logs what it took.
    Raises:
        DeviceError: an explicitly requested device is not there (no silent fall-back).
    """
    name = requested or os.environ.get(DEVICE_VARIABLE) or "auto"
    if name == "auto":
        if torch.cuda.is_available():
            name = "cuda"
        elif torch.backends.mps.is_available():
            name = "mps"
        else:
            name = "cpu"
            logger.info("device auto: no CUDA or MPS device found, computing on the CPU")
        return torch.device(name)
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"device {name!r} is not one of auto, cpu, cuda, cuda:N, mps") from error
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }.get(device.type, False)
    if not there:
        raise DeviceError(
            f"device {name!r} was asked for but is not available to torch {torch.__version__}; "
            "install a build with support for it, or use --device auto or --device cpu"
        )
    return device


def is_slow_at_bf16(device: torch.device) -> bool:
    """Whether `device` is a CPU that has to emulate bfloat16, where fp32 is the faster precision.

    x86 alone is told apart: a core with AVX512-BF16 or AMX computes in bfloat16, one without converts at every step.
    """
    ask = getattr(torch.cpu, "get_capabilities", dict)  # the oldest torch allowed may lack it
    known: dict[str, object] = ask() if device.type == "cpu" else {}
    return known.get("architecture") == "x86_64" and not (known.get("avx512_bf16") or known.get("amx_bf16"))


def warn_of_slow_bf16(device: torch.device) -> None:
    """Logs that fp32 would be faster, where it would be."""
    if is_slow_at_bf16(device):
        logger.warning("precision bf16: this CPU has no instructions for it, so fp32 would be faster here")
