"""Programs frozen into an executable of their own, as PyInstaller makes them.

This module owns how such a program becomes a server. There is no interpreter that takes ``-c``: ``sys.executable``
is the program itself. It is started once more with an argument that `freeze_support` recognizes. Without that call,
the child would run the whole program again and start further copies without end; so nothing is started then.
"""

from __future__ import annotations

import os
import signal
import sys

from farm_executor.errors import BrokenFarmError

__all__ = ["ARGUMENT", "check_supported", "freeze_support", "is_frozen"]

ARGUMENT = "--farm-executor-server"

_supported = False


def is_frozen() -> bool:
    """Return whether this program is frozen."""
    return bool(getattr(sys, "frozen", False))


def freeze_support() -> None:
    """Let a frozen program start servers; call this in its main module before anything else.

    In a process that was started as a server, this serves and then ends the process. Elsewhere, and in a program
    that is not frozen, it has no visible effect.
    """
    global _supported
    if not is_frozen():
        return
    _supported = True
    if sys.argv[1:] != [ARGUMENT]:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # until the supervisor decides otherwise
    parent = open(0, "rb", closefd=False)  # noqa: SIM115
    import json  # late: a client that starts a server would wait for it

    _, listeners = json.loads(parent.readline())
    from farm_executor.launch.child import run

    run(listeners, parent)
    os._exit(0)


def check_supported() -> None:
    """Check that this frozen program can start a server.

    Raises:
        BrokenFarmError: The program has not called `freeze_support`.
    """
    if not _supported:
        raise BrokenFarmError(
            f"cannot start a server: this program is frozen, and {sys.executable} would start all of it once more. "
            "Call farm_executor.freeze_support() first of all in its main module; or pass the addresses of "
            "servers: FarmExecutor(['host:11111'])"
        )
