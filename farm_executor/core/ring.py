"""Rings of shared memory between the two ends of a lane: which span is whose, and when it is free again.

This module owns the shape of a ring, the turns of its chunks at either end, and which parts of a frame go through
it. It must not touch any memory, nor know how marks and credits travel.

Each direction has a ring of its own: a few chunks, which are used in turn. Where the bytes of a large segment would
stand on the lane, there is one *mark* for each piece of a chunk's size. The sender copies a piece into the next
chunk and then sends its mark; the receiver copies the piece out when it reads the mark, and returns the chunk with
a *credit*. So order, framing, acknowledgement and resumption are those of the lane, and neither a mark nor a credit
needs to say which chunk it is about. The two ends copy at the same time, and the ring stays in their caches.

The receiver ends up with memory of its own, and looks at nothing before it is there: a peer that goes on writing
into the ring only spoils what it sends.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from farm_executor._record import NamedTuple
from farm_executor.core.frames import BULK, HEADER, HEADER_SIZE, RING, Buffer, Frame
from farm_executor.errors import RemoteProtocolError

__all__ = [
    "LEAST",
    "MARK",
    "MOST_CHUNKS",
    "USUAL",
    "Incoming",
    "Outgoing",
    "Part",
    "Shape",
    "divert",
    "is_large",
    "shape_of",
]

MARK = b"."
LEAST = 256 * 1024
"""The size from which on a segment goes through the ring; below, marks and credits cost more than they save."""

_LONG = 8
"""Pieces still to come from which on marks and credits are sent for several at once. Each wakes the other end, and
nearer to the end of a segment it is better to have both copy at the same time."""

# Beyond these no ring makes sense, and a peer must not make us map any amount of memory.
_CHUNKS = range(64 * 1024, 16 * 1024 * 1024 + 1)
MOST_CHUNKS = 64
_SHAPE = struct.Struct("<II")
# Where the flags stand in a frame's header.
_FLAGS = 5
_U32 = struct.Struct("<I")


class Shape(NamedTuple):
    """The shape of a ring: for each direction ``count`` chunks of ``chunk`` bytes, the client's first."""

    chunk: int
    count: int  # type: ignore[assignment]  # shadows tuple.count, which nobody misses

    @property
    def size(self) -> int:
        """The bytes of both directions together."""
        return 2 * self.chunk * self.count

    def joins(self, done: int, left: int) -> bool:
        """Return whether to copy one more piece before the other end is told of the last ones.

        Args:
            done: How many pieces it has not been told of. It is never all chunks: the other ones keep it busy.
            left: How many bytes of their segment are still to come.
        """
        return done < self.count // 2 and left > _LONG * self.chunk

    def encode(self) -> bytes:
        """Return the bytes that tell a peer; see `shape_of`."""
        return _SHAPE.pack(*self)


USUAL = Shape(1024 * 1024, 4)
"""The shape of our rings: large enough to be worth its marks, and small enough for the processors' caches."""


def shape_of(word: bytes) -> Shape:
    """Decode the shape of a ring that a peer offers.

    Raises:
        RemoteProtocolError: It is none, or beyond the limits.
    """
    if len(word) != _SHAPE.size:
        raise RemoteProtocolError(f"a ring described by {len(word)} bytes")
    shape = Shape(*_SHAPE.unpack(word))
    if shape.chunk not in _CHUNKS or not 2 <= shape.count <= MOST_CHUNKS:
        raise RemoteProtocolError(f"a ring of {shape.count} chunks of {shape.chunk} bytes")
    return shape


class _Turns:
    def __init__(self, shape: Shape, *, of_client: bool) -> None:
        self.shape = shape
        self._start = 0 if of_client else shape.size // 2
        self._turn = 0

    def _next(self, size: int) -> slice:
        start = self._start + self._turn * self.shape.chunk
        self._turn = (self._turn + 1) % self.shape.count
        return slice(start, start + min(size, self.shape.chunk))


class Outgoing(_Turns):
    """The sender's end of one direction.

    Args:
        shape: The shape of the ring.
        of_client: Whether the client is the one that sends.

    Attributes:
        free: How many chunks may be filled.
    """

    def __init__(self, shape: Shape, *, of_client: bool) -> None:
        super().__init__(shape, of_client=of_client)
        self.free = shape.count

    def fill(self, size: int) -> slice:
        """Return the span for the next piece of ``size`` bytes that are still to be sent; one must be free."""
        assert self.free, "a chunk may be filled only once it has come back"
        self.free -= 1
        return self._next(size)

    def joins(self, done: int, left: int) -> bool:
        """Return whether to fill one more chunk before the other end is told of the last ``done``."""
        return self.free > 0 and self.shape.joins(done, left)

    def credit(self, count: int) -> None:
        """Take back chunks that the receiver has copied out.

        Raises:
            RemoteProtocolError: It has not had that many.
        """
        if self.free + count > self.shape.count:
            raise RemoteProtocolError(f"{count} chunks of a ring came back when {self.free} were free already")
        self.free += count


class Incoming(_Turns):
    """The receiver's end of one direction; see `Outgoing`."""

    def __init__(self, shape: Shape, *, of_client: bool) -> None:
        super().__init__(shape, of_client=of_client)
        self._owed = 0

    def pieces(self, size: int) -> int:
        """Return how many pieces of ``size`` bytes that are still to come there may be in the ring at once."""
        return min(-(-size // self.shape.chunk), self.shape.count)

    def empty(self, size: int) -> slice:
        """Return the span that holds the next piece, of ``size`` bytes that are still to come."""
        return self._next(size)

    def emptied(self, left: int) -> int:
        """Return how many credits to give, now that a piece has been copied out, with ``left`` bytes to come."""
        self._owed += 1
        if self.shape.joins(self._owed, left):
            return 0
        owed, self._owed = self._owed, 0
        return owed


class Part:
    """What is left of a segment that goes through the ring.

    Attributes:
        view: The bytes that are still to be copied.
    """

    __slots__ = ("view",)

    def __init__(self, view: memoryview) -> None:
        self.view = view

    def __len__(self) -> int:
        return len(self.view)


def is_large(frame: Frame) -> bool:
    """Return whether any segment of a received frame would go through a ring."""
    return any(len(segment) >= LEAST for segment in frame.segments)


def divert(buffers: Iterable[Buffer]) -> list[Buffer | Part]:
    """Return the buffers of complete frames with their large segments as parts, and the flag that says so."""
    items: list[Buffer | Part] = []
    rest = iter(buffers)
    for head in rest:
        length, _, flags, _, _ = HEADER.unpack_from(head)
        apart = [next(rest)] if length and len(head) == HEADER_SIZE else []  # a long body has a buffer of its own
        if not flags & BULK:
            items += [head, *apart]
            continue
        table: Buffer = apart[0] if apart else memoryview(head)[HEADER_SIZE:]
        segments = [memoryview(next(rest)).cast("B") for _ in range(_U32.unpack_from(table)[0])]
        if all(len(segment) < LEAST for segment in segments):
            items += [head, *apart, *segments]
            continue
        flagged = bytearray(head)
        flagged[_FLAGS] |= RING
        # By the sizes of segments, and not of buffers: a body may be as large, and stays on the lane.
        items += [flagged, *apart, *(segment if len(segment) < LEAST else Part(segment) for segment in segments)]
    return items
