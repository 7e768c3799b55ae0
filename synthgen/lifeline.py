"""A stage ends with the DVC that started it.

A killed `dvc repro` leaves its stage training on, and the next one would then write the same outputs beside it. On
Linux the kernel is asked to end this process when its parent dies; only under DVC, where the parent is not a shell.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent() -> bool:
    """Asks for SIGTERM at the death of the parent, if DVC started this process; returns whether it did."""
    if sys.platform != "linux" or "DVC_STAGE" not in os.environ:
        return False
    parent = os.getppid()
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        return False
    if os.getppid() != parent:  # it died between the two calls
        os.kill(os.getpid(), signal.SIGTERM)
    return True
