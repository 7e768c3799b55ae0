"""How many cores a process may use: those that the system gives it, or fewer where $SYNTHGEN_CORES says so.

Owns that number for worker processes and for torch's threads alike: stages that run side by side share a machine by it.
"""

import os
from collections.abc import Mapping

from synthgen.errors import ConfigError

CORES_VARIABLE = "SYNTHGEN_CORES"


def system_cores() -> int:
    """Cores that the system lets this process run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def usable_cores(environment: Mapping[str, str] | None = None) -> int:
    """Cores that this process may keep busy, at least 1.

    Args:
        environment: where $SYNTHGEN_CORES is looked for; default this process's. It never adds cores.
    Raises:
        ConfigError: it is no whole number from 1 on.
    """
    asked = (os.environ if environment is None else environment).get(CORES_VARIABLE, "")
    if not asked:
        return system_cores()
    if not (asked.isascii() and asked.isdecimal() and len(asked) < 10 and int(asked) > 0):
        raise ConfigError(f"${CORES_VARIABLE} is {asked[:20]!r}; it wants the number of cores to use, from 1 on")
    return min(int(asked), system_cores())
