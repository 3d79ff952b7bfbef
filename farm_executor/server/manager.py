"""What a service manager such as systemd is told of a server: that it serves, and that it is about to end.

This module owns where it listens, in the way of `sd_notify`. It must not know what is said, nor when it is true.
"""

from __future__ import annotations

import contextlib
import os

from farm_executor.wire.sockets import send_datagram

__all__ = ["ServiceManager"]

VARIABLE = "NOTIFY_SOCKET"


class ServiceManager:
    """The one that has started this process, if there is one that wants to be told.

    The variable that says so is removed: what tasks start is not the service, and should not speak for it.
    """

    def __init__(self) -> None:
        self._path = os.environ.pop(VARIABLE, "")

    def tell(self, *words: str) -> None:
        """Say it, as far as anybody listens."""
        if self._path[:1] in ("/", "@"):
            path = self._path.replace("@", "\0", 1) if self._path[0] == "@" else self._path
            with contextlib.suppress(OSError):
                send_datagram(path, "\n".join(words).encode())
