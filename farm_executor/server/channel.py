"""A supervisor's line to one of its workers, over which sockets are passed as descriptors.

It must not know what the sockets are for; the note and the secret are for the lane to interpret.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket

from farm_executor.wire.sockets import Socket

__all__ = ["RING", "Channel"]

RING = 255
"""The note of a socket over which a ring is to be offered; keys, which the others number, are never that many."""

_SECRET = 32
_END = bytes([0, 255]) + bytes(_SECRET)  # all words have one length, as several may arrive together


class Channel:
    """One end of a supervisor's line to one of its workers, which carries a lane's new socket, or the word to end.

    At the worker it reaches its end when the supervisor is gone.
    """

    def __init__(self, sock: Socket) -> None:
        self._socket = sock

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Return both ends: the supervisor's, which does not block, and the worker's."""
        mine, theirs = socket.socketpair()
        mine.setblocking(False)
        return cls(mine), cls(theirs)

    def fileno(self) -> int:
        """Return the descriptor, for `select.poll`."""
        return self._socket.fileno()

    def pass_on(self, sock: Socket, note: int, secret: bytes) -> None:
        """Send the other end a socket, with a byte and either 32 or no further bytes about it; ours stays open.

        Raises:
            OSError: The other end is gone, or does not read.
        """
        socket.send_fds(self._socket, [bytes([note, len(secret)]) + secret.ljust(_SECRET, b"\0")], [sock.fileno()])

    def say_end(self) -> None:
        """Tell the other end to end."""
        with contextlib.suppress(OSError):
            self._socket.send(_END)

    def receive(self) -> tuple[Socket, int, bytes] | None:
        """Return a socket and the note and secret that came with it, or None for the word to end.

        Raises:
            EOFError: The other end is gone.
            OSError: A socket came, but this process has as many files open as it may.
        """
        try:
            word, descriptors, _, _ = socket.recv_fds(self._socket, len(_END), 1)
        except OSError as error:
            raise EOFError(str(error)) from None
        if not word:
            raise EOFError("the supervisor is gone")
        if word == _END:
            return None
        if not descriptors:  # the system drops a descriptor for which this process has no room
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        os.set_inheritable(descriptors[0], False)
        return Socket(fileno=descriptors[0]), word[0], word[2 : 2 + word[1]]

    def close(self) -> None:
        """Close this end."""
        self._socket.close()
