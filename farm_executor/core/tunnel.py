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
# Bytes of a piece, to which its last chunk may add: a call costs milliseconds, whatever its size. From 4 MiB on
# numpy, which Dask receives into, asks for huge pages, and a busy system takes long to find some.
PIECE = 7 << 19
WINDOW = 16 << 20  # bytes of a connection on their way: what a network of 1 Gbit/s and 128 ms has room for
QUEUED = 16 << 20  # bytes that wait for calls, of all connections
SMALL = 64 * 1024  # bytes of a piece that need not wait for more: it costs no more than a call has to
SPARE = 8  # pages that are kept for the next pieces: as many as wait or are on their way
AHEAD = 64  # pieces that have overtaken one: more than there are calls at once
CONNECTIONS = 1024  # a server has a few for each of its workers
MAX_PULLS, MAX_PUSHES = 4, 4  # calls at once

OPEN, DATA, CREDIT, END, RESET, WORD = range(1, 7)
_HEAD = struct.Struct(">QQ")  # epoch, number of the piece: 0 for none, in a call that only asks
_FRAME = struct.Struct(">BIQ")  # kind, connection, length or count
MAX_PIECE = PIECE + CHUNK + _HEAD.size + 2 * _FRAME.size
_NOTHING = memoryview(b"")


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


class Page:
    """A piece that is being put together, in memory that another has been in."""

    __slots__ = ("_at", "_count", "_number", "carried", "size", "view")

    def __init__(self, memory: bytearray) -> None:
        self.view = memoryview(memory)
        self.size = _HEAD.size
        self.carried = 0  # bytes of connections
        self._number = 0  # the connection that the last frame carries bytes of; 0 if it carries none
        self._at = self._count = 0  # where that frame is, and how many bytes it carries

    def add(self, kind: int, number: int, count: int, data: bytes = b"") -> None:
        """Add a frame."""
        _FRAME.pack_into(self.view, self.size, kind, number, count)
        self.size += _FRAME.size + len(data)
        self.view[self.size - len(data) : self.size] = data
        self._number = 0

    def space(self, number: int) -> int:
        """Return where the next bytes of a connection go."""
        return self.size if self._number == number else self.size + _FRAME.size

    def filled(self, number: int, count: int) -> None:
        """Note that so many of a connection's bytes are there now."""
        if self._number != number:
            self._number, self._at, self._count = number, self.size, 0
            self.size += _FRAME.size
        self._count += count
        self.size += count
        self.carried += count
        _FRAME.pack_into(self.view, self._at, DATA, number, self._count)


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
        self._out: deque[Page] = deque()  # all but the last are whole
        self._queued = 0
        self._memory: list[bytearray] = []  # of pages, to be used again
        self._rested = 0  # the piece that was taken last when it was looked last

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

    def space(self, number: int) -> memoryview:
        """Return where to put bytes of a connection, as many as are wanted; then call `filled`, at once."""
        wanted = self.wants(number)
        if not wanted:
            return _NOTHING
        page = self._page()
        at = page.space(number)
        return page.view[at : at + wanted]

    def filled(self, number: int, count: int) -> None:
        """Send so many bytes of a connection, which have been put where `space` has said."""
        self.connections[number].credit -= count
        self._queued += count
        self._out[-1].filled(number, count)

    def put(self, number: int, data: bytes) -> None:
        """Send bytes of a connection, no more than are wanted."""
        self.space(number)[: len(data)] = data
        self.filled(number, len(data))

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
        self._page().add(kind, number, count, data)

    def _page(self) -> Page:
        """Return the page that the next frame goes to."""
        if not self._out or self._out[-1].size >= PIECE:
            self._out.append(Page(self._find_memory()))
        return self._out[-1]

    def _find_memory(self) -> bytearray:
        # Fresh memory costs more than all that is done with it where the system provides it page by page. Memory
        # that has a view cannot change its size: so none is taken that an engine may have yet to send.
        for memory in self._memory:
            try:
                memory.pop()
            except BufferError:
                continue
            memory.append(0)
            return memory
        memory = bytearray(MAX_PIECE)
        if len(self._memory) < SPARE:
            self._memory.append(memory)
        return memory

    @property
    def waiting(self) -> int:
        """Bytes of the next piece; 0 if there is nothing to send."""
        return self._out[0].size if self._out else 0

    def take(self) -> memoryview:
        """Return the next piece; empty if there is nothing to send.

        Its memory is used again as soon as nobody has a view of it.
        """
        if not self._out:
            return _NOTHING
        self._sent += 1
        page = self._out.popleft()
        self._queued -= page.carried
        _HEAD.pack_into(page.view, 0, self.epoch, self._sent)
        return page.view[: page.size]

    def rest(self) -> None:
        """Keep no memory for pieces if none has been taken since this was called last."""
        if self._rested == self._sent:
            self._memory.clear()
        self._rested = self._sent

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

    A part of a piece waits until it is whole, as each call costs the engine milliseconds, or until nothing large is
    on its way. What is small waits for nothing.
    """

    def __init__(self) -> None:
        self.pulls = 0
        self._pushes = 0
        self._large = 0
        self._wanted = 1

    def may_push(self, size: int) -> bool:
        """Return whether a piece of that size, so far, may be sent now."""
        return size > 0 and self._pushes < MAX_PUSHES and not (self._large and SMALL <= size < PIECE)

    def pushed(self, size: int) -> None:
        """Note that a piece of that size is sent."""
        self._pushes += 1
        self._large += size >= SMALL

    def landed(self, size: int) -> None:
        """Note that a piece of that size has arrived, or has been lost."""
        self._pushes -= 1
        self._large -= size >= SMALL

    @property
    def may_pull(self) -> bool:
        """Whether another call is to wait."""
        return self.pulls < self._wanted

    def pulled(self, size: int) -> None:
        """Note that a call has brought so many bytes."""
        self.pulls -= 1
        self._wanted = min(self._wanted + 1, MAX_PULLS) if size >= PIECE else max(self._wanted - (size == 0), 1)
