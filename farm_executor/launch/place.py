"""Private directories for the files of unix sockets.

This module owns the choice of a directory. It must not know what else is put there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys

__all__ = ["SOCKET", "private_directory"]

SOCKET = "socket"  # the name of the socket in the directory
MAX_SOCKET_PATH = 103  # bytes, on macOS; Linux allows a few more


def private_directory() -> str:
    """Make a directory that only the user may enter, with a path short enough for a socket in it.

    It is made in the usual place for temporary files, or in /tmp if that place is too deep.

    Raises:
        OSError: No such directory can be made.
    """
    errors = []
    for place in (None, "/tmp"):  # None: the default, which follows TMPDIR
        try:
            directory = _make(place)
        except OSError as error:
            errors.append(error)
            continue
        if len(os.fsencode(os.path.join(directory, SOCKET))) <= MAX_SOCKET_PATH:
            return directory
        os.rmdir(directory)
        errors.append(OSError(errno.ENAMETOOLONG, "too deep for a socket", directory))
    raise errors[0]


def _make(place: str | None) -> str:
    # In the usual case, without `tempfile`: a program waits for its first result, and importing that takes longer
    # than all else here. Where this fails, `tempfile` knows other places.
    if place is None and "tempfile" not in sys.modules:
        usual = os.path.abspath(os.environ.get("TMPDIR") or "/tmp")
        directory = os.path.join(usual, f"farm-{os.urandom(4).hex()}")
        with contextlib.suppress(OSError):
            os.mkdir(directory, 0o700)
            return directory
    import tempfile

    return tempfile.mkdtemp(prefix="farm-", dir=place)
