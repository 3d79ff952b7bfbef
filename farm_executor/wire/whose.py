"""Whose a process is, for the people who look after its servers.

This module owns where a program's user, machine and name are found. It must not know what is done with them.
"""

from __future__ import annotations

import os
import sys

from farm_executor._record import TypedDict

__all__ = ["Whose", "whose"]


class Whose(TypedDict):
    """The fields of a client's hello that say whose it is."""

    host: str
    user: str
    program: str


def whose() -> Whose:
    """Return who runs this program, and where."""
    # By hand, as `getpass` and `platform` do it: to import these takes a tenth of the time to the first result.
    user = next(filter(None, map(os.environ.get, ("LOGNAME", "USER", "LNAME", "USERNAME"))), "") or _own_name()
    # Not the arguments, which may hold what is nobody else's business.
    program = os.path.basename(sys.argv[0]) if getattr(sys, "argv", None) else ""
    host = os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")
    return Whose(host=host, user=user, program=program or "python")


def _own_name() -> str:
    if not hasattr(os, "getuid"):
        return ""
    import pwd  # late: not on Windows

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a user without a name, as in containers
        return str(os.getuid())
