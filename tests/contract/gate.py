"""A gate that holds tasks back, in whatever thread, process or server they run."""

import os
import socket
import tempfile
from types import TracebackType

DEADLINE = 30.0
"""Seconds after which waiting for anything counts as a hang. Never reached by a test that passes."""

Address = str
UNIX = socket.AF_UNIX  # found here, before a test hides it


class Gate:
    """Each task that comes to the gate reports itself and waits there until the gate opens.

    It is a listening socket of the test process: a task connects, and blocks until its connection ends. So a
    test waits for "the task runs" and a task for "go on" without polling, and a test that dies holds nobody.
    """

    def __init__(self) -> None:
        # A unix socket, as its connections are made or refused at once: over TCP, one that is made in the moment
        # in which the listener closes may hear nothing at all.
        self._folder = tempfile.TemporaryDirectory(prefix="gate-")
        self.address: Address = os.path.join(self._folder.name, "socket")
        self._listener = socket.socket(UNIX)
        self._listener.bind(self.address)
        self._listener.listen(1024)
        self._listener.settimeout(DEADLINE)
        self._waiting: list[socket.socket] = []

    def wait_for_arrivals(self, count: int = 1) -> None:
        """Returns when this many more tasks have come to the gate."""
        for _ in range(count):
            self._waiting.append(self._listener.accept()[0])

    def open(self) -> None:
        """Lets everybody pass: those who wait, those not yet counted, and those still to come."""
        self._listener.close()
        for connection in self._waiting:
            connection.close()
        self._waiting.clear()

    def __enter__(self) -> "Gate":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.open()
        self._folder.cleanup()
