"""Notifications to a service manager such as systemd: that a server serves, and that it is about to end.

This module owns how to reach the manager, as `sd_notify` does. It must not know what is said, nor when it is true.
"""

from __future__ import annotations

import contextlib
import os

from farm_executor.wire.sockets import send_datagram

__all__ = ["ServiceManager"]

VARIABLE = "NOTIFY_SOCKET"


class ServiceManager:
    """The service manager that started this process, if there is one that wants notifications.

    Its environment variable is removed: processes that tasks start are not the service, and must not speak for it.
    """

    def __init__(self) -> None:
        self._path = os.environ.pop(VARIABLE, "")

    def tell(self, *words: str) -> None:
        """Send these words to the manager, if there is one."""
        if self._path[:1] in ("/", "@"):
            path = self._path.replace("@", "\0", 1) if self._path[0] == "@" else self._path
            with contextlib.suppress(OSError):
                send_datagram(path, "\n".join(words).encode())
