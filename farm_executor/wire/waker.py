"""A way to wake a selector in which another thread sleeps.

It must not know what there is to do once the selector is awake.
"""

from __future__ import annotations

import contextlib
import socket

__all__ = ["Waker"]


class Waker:
    """Wakes a selector in another thread, or in the code that a signal handler has interrupted."""

    def __init__(self) -> None:
        self._in, self._out = socket.socketpair()
        self._in.setblocking(False)
        self._out.setblocking(False)

    def fileno(self) -> int:
        """Return the descriptor that becomes readable."""
        return self._in.fileno()

    def signal_fileno(self) -> int:
        """Return the descriptor for `signal.set_wakeup_fd`."""
        return self._out.fileno()

    def wake(self) -> None:
        """Wake the selector. Takes no lock: safe in a destructor and in a signal handler."""
        with contextlib.suppress(OSError):  # full: it is awake anyway; closed: nothing sleeps any more
            self._out.send(b"\0")

    def drain(self) -> None:
        """Read the wake-ups that have arrived, so that the selector can sleep again."""
        with contextlib.suppress(OSError):
            while len(self._in.recv(4096)) == 4096:
                pass

    def close(self) -> None:
        """Close both ends."""
        self._in.close()
        self._out.close()
