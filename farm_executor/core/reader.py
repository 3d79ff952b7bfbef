"""Turn received bytes into frames.

This module owns the parser, and every check of a size that a peer has announced: it is made before any memory is
taken. It must not know what a payload means, nor where bytes come from, or what is behind a ring.
"""

from __future__ import annotations

import contextlib
import io
import struct
from typing import Protocol

from farm_executor.core.frames import (
    BULK,
    FRAMES,
    HEADER,
    HEADER_SIZE,
    KIND_SHIFT,
    MAX_BODY,
    MAX_MODULES,
    MAX_SEGMENT,
    MAX_SEGMENTS,
    OPTIONAL,
    RING,
    Allocate,
    Buffer,
    Frame,
    FrameType,
    Kind,
    Reference,
    make_frame,
)
from farm_executor.core.ring import LEAST, MARK, MOST_CHUNKS
from farm_executor.errors import LocalProtocolError, RemoteProtocolError

__all__ = ["FrameReader", "ReceivedBytes", "RingEnd"]

_U32 = struct.Struct("<I")
_SIZE_MASK = (1 << KIND_SHIFT) - 1
_SEGMENTS = BULK | RING

# What the reader looks up for each frame: its type, and the bits that its flags must not have. Of a frame to be
# skipped no flag but BULK matters, which would announce more bytes than the limit of its body bounds.
_KNOWN: dict[int, tuple[FrameType | None, int]] = {
    int(kind): (kind, 0xFF & ~meaning.flags) for kind, meaning in FRAMES.items()
}
_UNKNOWN = (None, BULK)


class RingEnd(Protocol):
    """The receiver's end of a ring, with the memory that `ring` decides about."""

    def pieces(self, size: int) -> int:
        """Return how many pieces of that many bytes there may be in the ring."""

    def take(self, target: memoryview) -> int:
        """Copy the next piece of a segment out of the ring to the beginning of what lacks; return its size."""


class FrameReader:
    """A parser that turns a stream of bytes, in whatever pieces it arrives, into frames.

    Call `receive_data` with the bytes that were read. After each call `destination` is either ``None`` or the
    memory that the next bytes of the stream belong in: read straight into it, release it, and report that with
    `received_into`. Using it is optional, as `receive_data` copies into it too; it saves the copy of bulk data.

    After an error the reader is unusable: the connection must end.

    Args:
        max_body: The longest body accepted; `MAX_HELLO` in hellos and on control connections, `MAX_BODY` on lanes.
        allocate: Returns the memory for a segment.

    Attributes:
        ring: What large segments of frames with the flag RING come through; None if they do not.
    """

    def __init__(self, max_body: int = MAX_BODY, allocate: Allocate | None = None) -> None:
        self.max_body = max_body
        self._allocate = allocate or _allocate
        self._pending = bytearray()
        self._needed = HEADER_SIZE  # no frame can be complete before this many bytes are pending
        self._bulk: _Bulk | None = None
        self.ring: RingEnd | None = None

    @property
    def destination(self) -> memoryview | None:
        """The memory for the next bytes of the stream while a segment is being received; None otherwise."""
        return self._bulk.remaining() if self._bulk else None

    @property
    def wanted(self) -> int:
        """The number of bytes that are certainly part of the current or next frame; not valid in a segment."""
        return self._needed - len(self._pending)

    def close(self) -> None:
        """Let go of a segment that will not arrive whole."""
        if self._bulk is not None:
            self._bulk.close()
            self._bulk = None

    @property
    def mid_frame(self) -> bool:
        """Whether the stream is within a frame, so that it would be truncated if it ended here."""
        return bool(self._pending) or self._bulk is not None

    def received_into(self, count: int) -> list[Frame]:
        """Take note that the first ``count`` bytes of `destination` have been filled."""
        if self._bulk is None or not 0 < count <= len(self._bulk.remaining()):
            raise LocalProtocolError(f"there was no room for {count} bytes")
        return self._advance_bulk(count)

    def receive_data(self, data: Buffer) -> list[Frame]:
        """Take the next bytes of the stream; return the frames that they complete.

        Raises:
            RemoteProtocolError: The stream is not one of frames, or a frame breaks a limit. No other exception
                comes from here, whatever the bytes.
        """
        frames: list[Frame] = []
        view = memoryview(data)
        while len(view):
            if self._bulk is not None:
                with self._bulk.remaining() as target:
                    count = min(len(target), len(view))
                    target[:count] = view[:count]
                view = view[count:]
                frames += self._advance_bulk(count)
            elif self._pending:
                self._pending += view
                # Parsed only when it can succeed: a body that trickles in would be copied again for every piece.
                if len(self._pending) < self._needed:
                    break
                whole = memoryview(bytes(self._pending))
                self._pending.clear()
                view = self._parse(whole, frames)
            else:
                view = self._parse(view, frames)
        return frames

    def _advance_bulk(self, count: int) -> list[Frame]:
        assert self._bulk is not None
        self._bulk.advance(count)
        if not self._bulk.complete:
            return []
        frame = self._bulk.frame()
        self._bulk = None
        return [frame]

    def _parse(self, view: memoryview, frames: list[Frame]) -> memoryview:
        """Parse complete frames and keep a partial one; return the rest of the view, which belongs to a segment."""
        start, end = 0, len(view)
        self._needed = HEADER_SIZE
        while end - start >= HEADER_SIZE:
            length, kind, flags, count, seq = HEADER.unpack_from(view, start)
            begin = start + HEADER_SIZE
            frame_type, refused = _KNOWN.get(kind, _UNKNOWN)
            if flags & refused or (frame_type is None and not kind & OPTIONAL):
                raise _unreadable(kind, flags)
            # Before anything is kept for the body: a peer must not make us buffer more than the limit.
            if length > self.max_body:
                name = f"type {kind}" if frame_type is None else frame_type.name
                raise RemoteProtocolError(f"{name} frame of {length} bytes; the limit is {self.max_body}")
            if end - begin < length:
                self._needed = HEADER_SIZE + length
                break
            start = begin + length
            if frame_type is None:  # skipped: the sender's version knows it, and can do without our reading it
                continue
            # A copy, because the caller reads the next bytes of the stream into the same memory.
            body = bytes(view[begin:start])
            if flags & _SEGMENTS:
                if flags & RING and (self.ring is None or not flags & BULK):
                    raise RemoteProtocolError(f"{frame_type.name} frame with a ring where there is none")
                head = Frame(frame_type, flags & ~RING, count, seq, body)
                self._bulk = _Bulk(head, self._allocate, self.ring if flags & RING else None)
                if not self._bulk.complete:
                    return view[start:]
                # All segments are empty, so no more bytes would come to complete it.
                frames.append(self._bulk.frame())
                self._bulk = None
            else:
                frames.append(make_frame((frame_type, flags, count, seq, body, ())))
        if start < end:
            self._pending += view[start:]
        return view[end:]


def _unreadable(kind: int, flags: int) -> RemoteProtocolError:
    if kind in _KNOWN:
        return RemoteProtocolError(f"{FrameType(kind).name} frame with flags {flags}")
    if kind & OPTIONAL:
        return RemoteProtocolError(f"a frame of the unknown type {kind}, optional but with segments")
    return RemoteProtocolError(
        f"a frame of the unknown type {kind}, which cannot be skipped: the other end has another version of "
        "farm_executor, or does not speak its protocol"
    )


class ReceivedBytes(io.BytesIO):
    """A segment that becomes ``bytes``, while it is received."""

    def close(self) -> None:
        """Let go of the memory, unless there are views of it."""
        # Called as it is collected, too, whereupon it would complain about views of its memory that are collected
        # with it: such as one in the traceback of the error that ended the connection.
        with contextlib.suppress(BufferError):
            super().close()


def _allocate(size: int, kind: Kind) -> Buffer | io.BytesIO:
    return ReceivedBytes(bytes(size)) if kind is Kind.BYTES else bytearray(size)


_BY_NUMBER = tuple(Kind)
_EMPTY: dict[Kind, Buffer] = {Kind.MEMORY: memoryview(b""), Kind.BYTES: b""}


class _Bulk:
    """The segments of one frame while they arrive."""

    def __init__(self, head: Frame, allocate: Allocate, ring: RingEnd | None) -> None:
        self._head = head
        self._ring = ring
        self._through: RingEnd | None = None  # the same if the current segment comes through it
        # What is read in place of such a segment: one mark for each of its pieces.
        self._marks = memoryview(b"" if ring is None else bytearray(MOST_CHUNKS))
        self._allocate = allocate
        self._sizes, self._kinds = self._table(head)
        self._done: list[Buffer] = []
        self._made: Buffer | io.BytesIO = b""  # what the current segment is received into
        self._current: memoryview | None = None  # its memory
        self._filled = 0
        self._next()

    @staticmethod
    def _table(head: Frame) -> tuple[list[int], list[Kind]]:
        body = memoryview(head.body)
        n = _U32.unpack_from(body)[0] if len(body) >= 4 else 0
        if not 1 <= n <= MAX_SEGMENTS or len(body) < 4 + 8 * n:
            raise RemoteProtocolError(f"{head.type.name} frame with a table of {n} segments in {len(body)} bytes")
        table: tuple[int, ...] = struct.unpack_from(f"<{n}Q", body, 4)
        sizes = [entry & _SIZE_MASK for entry in table]
        kinds = [_BY_NUMBER[entry >> KIND_SHIFT] for entry in table]
        promised = sum(sizes)
        if Kind.REFERENCE in kinds:
            # Never the first, which is the pickle: that is this call's own.
            if head.type is not FrameType.TASKS or kinds[0] is Kind.REFERENCE:
                raise RemoteProtocolError(f"{head.type.name} frame with a reference where there can be none")
            promised = sum([size for size, kind in zip(sizes, kinds, strict=True) if kind is not Kind.REFERENCE])
        # The sum is limited, not each size: many segments could promise more together than any one of them may.
        if promised > (MAX_MODULES if head.type in (FrameType.MODULES, FrameType.MODULE) else MAX_SEGMENT):
            raise RemoteProtocolError(f"{head.type.name} frame promises {promised} bytes")
        return sizes, kinds

    def close(self) -> None:
        """Let go of the current segment."""
        if self._current is not None:
            self._current.release()
            self._current = None

    def _next(self) -> None:
        """Begin the next segment that has bytes to come."""
        # One is allocated only when the one before it is full, so a table alone does not take memory for all.
        while len(self._done) < len(self._sizes):
            size, kind = self._sizes[len(self._done)], self._kinds[len(self._done)]
            if kind is Kind.REFERENCE:
                self._done.append(Reference.to(size))
                continue
            if size:
                # The peer has promised more than there is memory for: only its connection must end for that.
                try:
                    self._made = self._allocate(size, kind)
                except MemoryError:
                    raise RemoteProtocolError(f"no memory for a segment of {size} bytes") from None
                if isinstance(self._made, io.BytesIO):
                    self._current = self._made.getbuffer()
                else:
                    self._current = memoryview(self._made).cast("B")
                self._filled = 0
                self._through = self._ring if size >= LEAST else None
                return
            self._done.append(bytearray() if kind is Kind.BYTEARRAY else _EMPTY[kind])
        self._current = None

    @property
    def complete(self) -> bool:
        return self._current is None

    def remaining(self) -> memoryview:
        assert self._current is not None
        if self._through is not None:
            return self._marks[: self._through.pieces(len(self._current) - self._filled)]
        return self._current[self._filled :]

    def advance(self, count: int) -> None:
        assert self._current is not None
        if self._through is not None:
            if self._marks[:count] != MARK * count:
                raise RemoteProtocolError(f"{self._head.type.name} frame without the marks of its ring")
            for _ in range(count):
                with self._current[self._filled :] as target:
                    self._filled += self._through.take(target)
        else:
            self._filled += count
        if self._filled == len(self._current):
            self._done.append(self._received())
            self._next()

    def _received(self) -> Buffer:
        """Return the segment that is complete."""
        assert self._current is not None
        made, self._made = self._made, b""
        if self._kinds[len(self._done)] is Kind.MEMORY:
            return self._current
        self._current.release()
        # As nobody looks at its memory any more, the file's value is that memory itself; else it would be a copy.
        return made.getvalue() if isinstance(made, io.BytesIO) else made

    def frame(self) -> Frame:
        head = self._head
        return Frame(head.type, head.flags, head.count, head.seq, head.body, tuple(self._done))
