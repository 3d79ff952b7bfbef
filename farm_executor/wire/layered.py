"""A socket with something in between: what encryption and seals have in common.

This module owns how bytes go in and out in pieces. It must not know what is done with them.
"""

from __future__ import annotations

import abc
from socket import socket
from typing import Any

__all__ = ["LayeredSocket"]


class LayeredSocket(abc.ABC):
    """A connected socket whose bytes travel in records.

    As with a socket, an end of the connection is read as no bytes; it need not have been announced, for the frames
    that travel tell by themselves whether they are whole. Otherwise than with a socket, each reading call looks at
    the socket only once, so that it raises `BlockingIOError` also if that blocks and what came is less than a
    record: who has waited until there is something to read is never kept waiting by who sends half of it.

    Args:
        sock: The connection, which is this object's from now on.

    Attributes:
        bytes_received: What has been read from the socket since `count_anew`, as it travelled, in whole records. A
            part of one does not count: nothing comes of it, so that it must not look as if all had arrived.
        bytes_sent: What the socket has taken since then.
        piece: How many bytes `send` takes at a time.

    Thread safety: one thread may receive while another sends.
    """

    piece: int

    def __init__(self, sock: socket) -> None:
        self._sock = sock
        self.bytes_received = self.bytes_sent = 0

    def count_anew(self) -> None:
        """Count bytes from here, where both ends know that all before has arrived."""
        self.bytes_received = self.bytes_sent = 0

    @property
    @abc.abstractmethod
    def pending(self) -> bool:
        """Whether there is something to receive of which no selector knows."""

    @abc.abstractmethod
    def recv_into(self, buffer: Any) -> int:
        """Receive; see the class for what is not as with a socket.

        Raises:
            BlockingIOError: There is less than a record.
            TimeoutError: The socket has a timeout, and it is over.
            OSError: The connection is lost, or somebody has changed what travels there.
        """

    def fill(self, memory: memoryview) -> int:
        """As `recv_into`, into memory that is nobody else's until it is full.

        More of it may be written to than the bytes that count as received. After a `BlockingIOError` the next call
        of all that receive must be this one again, with the same memory.
        """
        return self.recv_into(memory)

    def recv(self, size: int) -> bytes:
        """Receive that many bytes at most; see `recv_into`."""
        buffer = bytearray(size)
        return bytes(buffer[: self.recv_into(buffer)])

    @abc.abstractmethod
    def send(self, data: Any) -> int:
        """Send as much as a piece; say how many bytes.

        If the socket does not take all of the piece, none of it counts as sent: the next call must begin with the
        same bytes, and goes on where this one has stopped.

        Raises:
            BlockingIOError: The socket does not block, and does not take more.
            OSError: The connection is lost, or the socket has a timeout and it is over.
        """

    def sendmsg(self, buffers: list[Any]) -> int:
        """As `send`, with bytes from several buffers."""
        if len(buffers[0]) >= self.piece:
            return self.send(buffers[0])
        parts, room = [], self.piece
        for buffer in buffers:
            parts.append(memoryview(buffer).cast("B")[:room])
            room -= len(parts[-1])
            if not room:
                break
        return self.send(b"".join(parts))

    def sendall(self, data: Any) -> None:
        """Send all; see `send`."""
        rest = memoryview(data).cast("B")
        while rest:
            rest = rest[self.send(rest) :]

    # -- the socket's own ------------------------------------------------------------------------------

    def fileno(self) -> int:
        """For selectors, which know nothing of what is `pending`; -1 when closed."""
        return self._sock.fileno()

    def setblocking(self, flag: bool) -> None:
        """See `socket.socket.setblocking`."""
        self._sock.setblocking(flag)

    def settimeout(self, value: float | None) -> None:
        """See `socket.socket.settimeout`."""
        self._sock.settimeout(value)

    def shutdown(self, how: int) -> None:
        """See `socket.socket.shutdown`."""
        self._sock.shutdown(how)

    def detach(self) -> int:
        """See `socket.socket.detach`."""
        return self._sock.detach()

    def close(self) -> None:
        """Close the connection."""
        self._sock.close()
