"""The common base of encrypted and sealed sockets.

This module owns how bytes go in and out in pieces. It must not know how they are sealed or encrypted.
"""

from __future__ import annotations

import abc
from socket import socket
from typing import Any

__all__ = ["LayeredSocket"]


class LayeredSocket(abc.ABC):
    """A connected socket whose bytes travel in records.

    As with a socket, reading returns no bytes at the end of the connection. The end need not be announced, since
    the frames themselves tell whether they are complete. Unlike with a socket, each call reads from the socket
    only once, so that even on a blocking socket it raises `BlockingIOError` if less than a record has arrived:
    a peer that sends half a record cannot block a reader that has waited for a selector.

    Args:
        sock: The connection; this object takes ownership of it.

    Attributes:
        bytes_received: Bytes on the wire read from the socket since `count_anew`, in whole records. Part of a
            record does not count: no data comes of it, so it must not look as if everything had arrived.
        bytes_sent: Bytes on the wire that the socket has taken since then.
        piece: The number of bytes that `send` takes at a time.

    Thread safety: one thread may receive while another sends.
    """

    piece: int

    def __init__(self, sock: socket) -> None:
        self._sock = sock
        self.bytes_received = self.bytes_sent = 0

    def count_anew(self) -> None:
        """Restart the byte counts, at a point where both ends know that everything before has arrived."""
        self.bytes_received = self.bytes_sent = 0

    @property
    @abc.abstractmethod
    def pending(self) -> bool:
        """Whether there is data to receive that no selector knows of."""

    @abc.abstractmethod
    def recv_into(self, buffer: Any) -> int:
        """Receive into a buffer; see the class for the differences from a socket.

        Raises:
            BlockingIOError: Less than a record has arrived.
            TimeoutError: The socket has a timeout, and it has expired.
            OSError: The connection is lost, or somebody has tampered with the traffic.
        """

    def fill(self, memory: memoryview) -> int:
        """Receive like `recv_into`, into memory that nobody else uses until it is full.

        More of the memory may be overwritten than the bytes reported as received. After a `BlockingIOError`, the
        next receiving call must be this one again, with the same memory.
        """
        return self.recv_into(memory)

    def recv(self, size: int) -> bytes:
        """Receive at most that many bytes; see `recv_into`."""
        buffer = bytearray(size)
        return bytes(buffer[: self.recv_into(buffer)])

    @abc.abstractmethod
    def send(self, data: Any) -> int:
        """Send at most one piece; return the number of bytes sent.

        If the socket does not take all of the piece, none of it counts as sent: the next call must begin with the
        same bytes, and continues where this one stopped.

        Raises:
            BlockingIOError: The socket is non-blocking and does not take more.
            OSError: The connection is lost, or the socket has a timeout and it has expired.
        """

    def sendmsg(self, buffers: list[Any]) -> int:
        """Send like `send`, from several buffers."""
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

    # -- passed through to the socket -------------------------------------------------------------------

    def fileno(self) -> int:
        """Return the file descriptor, for selectors, which do not know what is `pending`; -1 when closed."""
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
