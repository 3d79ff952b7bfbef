"""A supervisor's lines to one of its workers, over which descriptors are passed.

It must not know what they are for; the note and the secret are for the lane to interpret, and what is said on the
second line for those that share objects.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct

from farm_executor._record import NamedTuple
from farm_executor.wire.sockets import Socket

__all__ = ["RING", "Channel", "Line", "NoRingError", "Word"]

RING = 255
"""The note of a socket over which a ring is to be offered; keys, which the others number, are never that many."""

_SECRET = 32
_END = bytes([0, 255]) + bytes(_SECRET)  # all words have one length, as several may arrive together


class NoRingError(OSError):
    """A socket for a ring cannot be taken, which its lane can do without."""


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
            NoRingError: A socket for a ring came, but this process has as many files open as it may.
            OSError: The same for a lane's socket.
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
            kind = NoRingError if word[0] == RING else OSError
            raise kind(errno.EMFILE, os.strerror(errno.EMFILE))
        os.set_inheritable(descriptors[0], False)
        return Socket(fileno=descriptors[0]), word[0], word[2 : 2 + word[1]]

    def close(self) -> None:
        """Close this end."""
        self._socket.close()


class Word(NamedTuple):
    """What is said on a `Line`.

    Attributes:
        kind: One byte.
        number: What it is about.
        text: For people.
        descriptor: What came with it, which the receiver owns; None if nothing came.
    """

    kind: bytes
    number: int
    text: str = ""
    descriptor: int | None = None


_WORD = struct.Struct("<cQ1015s")  # all have one length, as several may arrive together
_SPOKEN = 1015


class Line:
    """One end of the line on which a worker and its supervisor speak of shared objects.

    Thread safety: several threads may send, and one receive.
    """

    def __init__(self, sock: Socket) -> None:
        self._socket = sock

    @classmethod
    def pair(cls) -> tuple[Line, Line]:
        """Return both ends: the supervisor's, which does not block, and the worker's."""
        mine, theirs = socket.socketpair()
        mine.setblocking(False)
        return cls(mine), cls(theirs)

    def fileno(self) -> int:
        """Return the descriptor, for selectors."""
        return self._socket.fileno()

    def say(self, word: Word) -> None:
        """Send a word, and a copy of its descriptor; ours stays open.

        Raises:
            OSError: The other end is gone, or does not read.
        """
        data = _WORD.pack(word.kind, word.number, word.text.encode()[:_SPOKEN])
        if word.descriptor is None:
            self._socket.sendall(data)
        else:
            socket.send_fds(self._socket, [data], [word.descriptor])

    def has_word(self, seconds: float) -> bool:
        """Wait for a word, for that long at most; return whether there is one, or the other end is gone."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def hear(self) -> Word:
        """Return the next word.

        Raises:
            EOFError: The other end is gone.
            BlockingIOError: There is none, and this end does not block.
        """
        try:
            data, descriptors, _, _ = socket.recv_fds(self._socket, _WORD.size, 1)
        except ConnectionError as error:
            raise EOFError(str(error)) from None
        if len(data) < _WORD.size:
            raise EOFError("the other end is gone")
        kind, number, text = _WORD.unpack(data)
        descriptor = descriptors[0] if descriptors else None
        if descriptor is not None:
            os.set_inheritable(descriptor, False)
        return Word(kind, number, text.rstrip(b"\0").decode("utf-8", "replace"), descriptor)

    def close(self) -> None:
        """Close this end."""
        self._socket.close()
