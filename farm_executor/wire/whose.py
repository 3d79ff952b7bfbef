"""Whose a process is, for the people who look after its servers.

This module owns where a program's user, machine and name are found. It must not know what is done with them.
"""

from __future__ import annotations

import os
import sys
from typing import TypedDict

__all__ = ["Whose", "whose"]


class Whose(TypedDict):
    """The fields of a client's hello that say whose it is."""

    host: str
    user: str
    program: str


def whose() -> Whose:
    """Return who runs this program, and where."""
    import getpass  # late, like the next: nobody waits for them
    import platform

    try:
        user = getpass.getuser()
    except Exception:  # a user without a name, as in containers: KeyError, or OSError since Python 3.13
        user = str(os.getuid()) if hasattr(os, "getuid") else ""
    # Not the arguments, which may hold what is nobody else's business.
    program = os.path.basename(sys.argv[0]) if getattr(sys, "argv", None) else ""
    return Whose(host=platform.node(), user=user, program=program or "python")
