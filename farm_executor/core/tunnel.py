"""Many connections through calls that each carry a piece of their bytes to the far end, and one back.

This module owns what a piece holds, the order in which pieces count, how many bytes of a connection may be on
their way, and how many calls. It must not know sockets, threads, or whose calls they are.

It imports nothing of the package: `launch.far` has its text run where farm_executor may be missing.

The rules:

1. Calls overtake each other, and an engine may repeat one. So pieces are numbered, and read in that order, once.
2. Of each connection no more than a window is on its way or waits to be written, in each direction. So one whose
   reader is slow neither holds up the others, nor takes memory.
3. What is lost is not sent again: a call that fails ends all connections, at both ends, and a new epoch begins. The
   peers dial again, and resume, as after any broken network.
"""

from __future__ import annotations

import struct
from collections import deque

__all__ = ["CHUNK", "PIECE", "Flight", "Tunnel", "TunnelError", "heading", "request"]

CHUNK = 256 * 1024  # bytes of one connection that are read at once
PIECE = 4 << 20  # bytes of a piece, to which its last chunk may add: a call costs milliseconds, whatever its size
WINDOW = 16 << 20  # bytes of a connection on their way: what a network of 1 Gbit/s and 128 ms has room for
QUEUED = 16 << 20  # bytes that wait for calls, of all connections
AHEAD = 64  # pieces that have overtaken one: more than there are calls at once
CONNECTIONS = 1024  # a server has a few for each of its workers
MAX_PULLS, MAX_PUSHES = 4, 4  # calls at once

OPEN, DATA, CREDIT, END, RESET, WORD = range(1, 7)
_HEAD = struct.Struct(">QQ")  # epoch, number of the piece: 0 for none, in a call that only asks
_FRAME = struct.Struct(">BIQ")  # kind, connection, length or count
MAX_PIECE = PIECE + CHUNK + _HEAD.size + 2 * _FRAME.size


class TunnelError(Exception):
    """The other end has said what it cannot have said."""


def request(epoch: int) -> bytes:
    """Return what a call carries that only asks for a piece."""
    return _HEAD.pack(epoch, 0)


def heading(piece: bytes | memoryview) -> tuple[int, int]:
    """Return the epoch and the number of a piece.

    Raises:
        TunnelError: It is not a piece.
    """
    if len(piece) < _HEAD.size:
        raise TunnelError(f"{len(piece)} bytes are not a piece")
    epoch, number = _HEAD.unpack_from(piece)
    return epoch, number


class Connection:
    """One connection, at one end.

    Attributes:
        credit: Bytes that may still be put.
        held: What has come, and is yet to be written here.
        ends: Whether nothing more comes.
        ended: Whether nothing more is put.
        told: For who writes: whether its socket has been told that nothing more comes.
    """

    __slots__ = ("credit", "ended", "ends", "held", "room", "taken", "told")

    def __init__(self, window: int) -> None:
        self.credit = window
        self.room = window  # bytes that may still come
        self.taken = 0  # of those that have come, and that the other end has not been told of
        self.held: deque[memoryview] = deque()
        self.ends = False
        self.ended = False
        self.told = False


class Tunnel:
    """One end, in one epoch. Only the far end opens connections.

    Attributes:
        epoch: Which epoch it is.
        connections: Those that are open, by number.
        words: What the other end has said for itself.
    """

    def __init__(self, epoch: int, window: int = WINDOW) -> None:
        self.epoch = epoch
        self.connections: dict[int, Connection] = {}
        self.words: deque[bytes] = deque()
        self._window = window
        self._last = 0  # the connection that was opened last
        self._sent = 0  # the piece that was taken last
        self._read = 0  # the piece that was read last
        self._ahead: dict[int, bytes | memoryview] = {}
        self._out: deque[tuple[bytes, bytes]] = deque()  # frames, and what follows each
        self._queued = 0

    # -- what goes out ---------------------------------------------------------------------------------------

    def open(self) -> int:
        """Open a connection; return its number."""
        self._last += 1
        self.connections[self._last] = Connection(self._window)
        self._frame(OPEN, self._last)
        return self._last

    def wants(self, number: int) -> int:
        """Return how many bytes of a connection may be put now."""
        connection = self.connections[number]
        return 0 if connection.ended or self._queued >= QUEUED else min(connection.credit, CHUNK)

    def put(self, number: int, data: bytes) -> None:
        """Send bytes of a connection, no more than are wanted."""
        self.connections[number].credit -= len(data)
        self._frame(DATA, number, len(data), data)

    def end(self, number: int) -> None:
        """Send no more of a connection."""
        self.connections[number].ended = True
        self._frame(END, number)

    def reset(self, number: int) -> None:
        """Give a connection up, at both ends."""
        del self.connections[number]
        self._frame(RESET, number)

    def say(self, word: bytes) -> None:
        """Tell the other end something that belongs to no connection: at most a chunk."""
        self._frame(WORD, 0, len(word), word)

    def _frame(self, kind: int, number: int, count: int = 0, data: bytes = b"") -> None:
        self._out.append((_FRAME.pack(kind, number, count), data))
        self._queued += len(data)

    def take(self) -> bytes:
        """Return the next piece; empty if there is nothing to send."""
        if not self._out:
            return b""
        self._sent += 1
        parts = [_HEAD.pack(self.epoch, self._sent)]
        size = 0
        while self._out and size < PIECE:
            frame, data = self._out.popleft()
            parts += (frame, data)
            size += len(frame) + len(data)
            self._queued -= len(data)
        return b"".join(parts)

    # -- what comes in ---------------------------------------------------------------------------------------

    def receive(self, piece: bytes | memoryview) -> set[int]:
        """Read a piece, and those that it lets be read; return the connections that something has come of.

        Raises:
            TunnelError: It says what cannot be. Nothing more is to be read.
        """
        epoch, number = heading(piece)
        if epoch != self.epoch or number <= self._read:
            return set()
        if len(piece) > MAX_PIECE:
            raise TunnelError(f"a piece of {len(piece)} bytes")
        if number > self._read + AHEAD:
            raise TunnelError(f"piece {number} has come when {self._read + 1} was to come")
        self._ahead[number] = piece
        touched: set[int] = set()
        while (ready := self._ahead.pop(self._read + 1, None)) is not None:
            self._read += 1
            self._frames(memoryview(ready)[_HEAD.size :], touched)
        return touched

    def _frames(self, rest: memoryview, touched: set[int]) -> None:
        while rest:
            if len(rest) < _FRAME.size:
                raise TunnelError("half a frame")
            kind, number, count = _FRAME.unpack_from(rest)
            rest = rest[_FRAME.size :]
            carried = count if kind in (DATA, WORD) else 0
            if carried > len(rest):
                raise TunnelError("a frame without all of its bytes")
            self._on_frame(kind, number, count, rest[:carried])
            rest = rest[carried:]
            touched.add(number)

    def _on_frame(self, kind: int, number: int, count: int, data: memoryview) -> None:
        if kind == WORD:
            self.words.append(bytes(data))
            return
        if kind == OPEN:
            if number <= self._last or len(self.connections) >= CONNECTIONS:
                raise TunnelError(f"connection {number} cannot be opened")
            self._last = number
            self.connections[number] = Connection(self._window)
            return
        connection = self.connections.get(number)
        if connection is None:  # given up here, as the other end has yet to read
            return
        if kind == DATA:
            if count > connection.room or connection.ends:
                raise TunnelError(f"connection {number} has sent more than it may")
            if not count:  # whoever writes it would not get on
                raise TunnelError(f"connection {number} has sent nothing")
            connection.room -= count
            connection.held.append(data)
        elif kind == CREDIT:
            if connection.credit + count > self._window:
                raise TunnelError(f"connection {number} has been given back more than it had sent")
            connection.credit += count
        elif kind == END:
            connection.ends = True
        elif kind == RESET:
            del self.connections[number]
        else:
            raise TunnelError(f"a frame of kind {kind}")

    def wrote(self, number: int, count: int) -> None:
        """Note that so many of a connection's bytes have been written, the first of those that are held."""
        connection = self.connections[number]
        left = count
        while left:
            first = connection.held.popleft()
            if len(first) > left:
                connection.held.appendleft(first[left:])
            left -= min(left, len(first))
        connection.taken += count
        # Not with each write: what is told costs a call.
        if connection.taken >= self._window // 4 and not connection.ends:
            connection.room += connection.taken
            self._frame(CREDIT, number, connection.taken)
            connection.taken = 0

    def done(self, number: int) -> bool:
        """Return whether a connection has ended in both directions, and all of it has been written; forget it."""
        connection = self.connections[number]
        if not (connection.ended and connection.ends and not connection.held):
            return False
        del self.connections[number]
        return True


class Flight:
    """How many calls are on their way: those that carry something, and those that wait at the far end for it.

    One that waits is always there, for else nothing could come. There are more while each brings a whole piece.
    """

    def __init__(self) -> None:
        self.pushes = 0
        self.pulls = 0
        self._wanted = 1

    @property
    def may_push(self) -> bool:
        """Whether another call may carry something."""
        return self.pushes < MAX_PUSHES

    @property
    def may_pull(self) -> bool:
        """Whether another call is to wait."""
        return self.pulls < self._wanted

    def pulled(self, size: int) -> None:
        """Note that a call has brought so many bytes."""
        self.pulls -= 1
        self._wanted = min(self._wanted + 1, MAX_PULLS) if size >= PIECE else max(self._wanted - (size == 0), 1)
