"""The tie of a worker to its supervisor: the worker dies when the supervisor does, whatever it is doing.

This module owns the system's own way to do so, which Linux has. It also ends a process that is stopped, or whose
interpreter is held by C code, which could not notice by itself. It must not know what a worker does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

try:  # at once: a supervisor has it ready for all its workers
    import ctypes
except ImportError:  # an interpreter that was built without
    ctypes = None  # type: ignore[assignment]

__all__ = ["die_with"]

PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Have the system kill this process as soon as its parent has died, where it can.

    Args:
        parent: The process that was to be the parent; if it has died already, this process ends here.
    """
    if sys.platform == "linux" and ctypes is not None:
        with contextlib.suppress(OSError, AttributeError):
            number = ctypes.c_ulong(signal.SIGKILL)
            ctypes.CDLL(None).prctl(
                PR_SET_PDEATHSIG, number, ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)
            )
    # Checked after the request: a parent that died before it is not covered by it.
    if os.getppid() != parent:
        os._exit(0)
