"""Where a socket may have its file.

This module owns the choice of a directory. It must not know what else is put there.
"""

from __future__ import annotations

import errno
import os
import tempfile

__all__ = ["SOCKET", "private_directory"]

SOCKET = "socket"  # its name there
MAX_SOCKET_PATH = 103  # bytes; on macOS, and on Linux a few more


def private_directory() -> str:
    """Make a directory that only the user may enter, where temporary files go if that is not too deep for a socket.

    Raises:
        OSError: None can be made.
    """
    errors = []
    for place in (None, "/tmp"):  # None is what TMPDIR says
        try:
            directory = tempfile.mkdtemp(prefix="farm-", dir=place)
        except OSError as error:
            errors.append(error)
            continue
        if len(os.fsencode(os.path.join(directory, SOCKET))) <= MAX_SOCKET_PATH:
            return directory
        os.rmdir(directory)
        errors.append(OSError(errno.ENAMETOOLONG, "too deep for a socket", directory))
    raise errors[0]
