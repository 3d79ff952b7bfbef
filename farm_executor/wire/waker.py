"""Waking a selector that another thread sleeps in.

It must not know what there is to do once it is awake.
"""

from __future__ import annotations

import contextlib
import socket

__all__ = ["Waker"]


class Waker:
    """Makes a selector in another thread, or below a signal handler, wake up."""

    def __init__(self) -> None:
        self._in, self._out = socket.socketpair()
        self._in.setblocking(False)
        self._out.setblocking(False)

    def fileno(self) -> int:
        """The end that becomes readable."""
        return self._in.fileno()

    def signal_fileno(self) -> int:
        """The end for `signal.set_wakeup_fd`."""
        return self._out.fileno()

    def wake(self) -> None:
        """Wake the selector. Takes no lock: safe in a destructor and in a signal handler."""
        with contextlib.suppress(OSError):  # full means that it is awake; closed, that nobody sleeps any more
            self._out.send(b"\0")

    def drain(self) -> None:
        """Take note of having woken up."""
        with contextlib.suppress(OSError):
            while len(self._in.recv(4096)) == 4096:
                pass

    def close(self) -> None:
        """Close both ends."""
        self._in.close()
        self._out.close()
