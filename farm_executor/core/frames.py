"""Convert bytes to frames and back: the layout of everything that travels after the handshake.

This module owns the header, the frame types, the layout of the bodies and every size limit. It must not know
what a payload means, nor where bytes come from or go to.

A frame is a header of 16 bytes, little endian, a body, and, if the frame is flagged ``BULK``, segments::

    offset  size  field
    0       4     length of the body in bytes, at most 4 MiB (``MAX_BODY``)
    4       1     type: one of ``FrameType``; from 128 on (``OPTIONAL``) a receiver skips one that it does not know
    5       1     flags: BULK = 1, ERROR = 2, ONCE = 4, TOGETHER = 8
    6       2     count: the number of items in the body, where the type has items
    8       8     seq: number of the first item, where the type has numbers
    16      ...   body
    ...     ...   segments, one after the other, of the sizes that the body's table lists (BULK only)

Small payloads stand in the body; `batches` has the layout of many in one. A payload whose pickle has 64 KiB or more
(``BULK_THRESHOLD``), or that has buffers, travels alone in a ``BULK`` frame: its parts are segments, received
straight into memory of their own, so that a large array is never copied on its way. Every size is checked before
any memory is taken for it.
"""

from __future__ import annotations

import enum
import io
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from farm_executor.core.features import DETAILS, HEADERS, MODULES, OUTPUT, RECORDS, REPORTS, STREAMS
from farm_executor.errors import LocalProtocolError, RemoteProtocolError

__all__ = [
    "BULK",
    "BULK_THRESHOLD",
    "ERROR",
    "FRAMES",
    "HEADER",
    "HEADER_SIZE",
    "MAX_BODY",
    "MAX_COUNT",
    "MAX_HELLO",
    "MAX_RECALLS",
    "ONCE",
    "OPTIONAL",
    "TOGETHER",
    "Allocate",
    "Buffer",
    "Frame",
    "FrameReader",
    "FrameType",
    "Kind",
    "Meaning",
    "Payload",
    "Way",
    "decode_number",
    "encode_frame",
    "encode_payload",
    "is_bulk",
    "payload_of",
    "payload_size",
    "prefix_of",
]

Buffer = bytes | bytearray | memoryview
Payload = Sequence[Buffer]
"""An opaque value: its pickle, followed by the buffers that the pickle refers to, in order."""


class Kind(enum.IntEnum):
    """What a segment becomes where it is received; stands in the two top bits of its size."""

    MEMORY = 0
    """Writable memory of any type."""

    BYTES = 1
    BYTEARRAY = 2


Allocate = Callable[[int, Kind], "Buffer | io.BytesIO"]
"""Returns writable memory of the given number of bytes for a segment: for BYTES a BytesIO that holds as many, whose
value is the segment, and for BYTEARRAY a bytearray."""

HEADER = struct.Struct("<IBBHQ")
_U32 = struct.Struct("<I")
HEADER_SIZE = HEADER.size

# A body is kept until it is complete, so this is what one connection may make its other end hold.
MAX_BODY = 4 * 1024 * 1024
# No hello needs more, and a peer that says hello may not have proven anything yet.
MAX_HELLO = 64 * 1024
MAX_SEGMENTS = 65_536
_KIND_SHIFT = 62
_SIZE_MASK = (1 << _KIND_SHIFT) - 1
MAX_SEGMENT = 1 << 46  # 64 TiB, more memory than any machine has: such a size is garbage
MAX_MODULES = 320 * 1024 * 1024  # bytes of modules in one frame
# What the 16 bits of the header hold.
MAX_COUNT = 65_535
MAX_RECALLS = 1 << 16  # counters of recalls wrap around here, to fit a header's count
# From about here on, copying a payload into its frame costs more than sending one buffer more.
BULK_THRESHOLD = 64 * 1024

BULK = 1
ERROR = 2
ONCE = 4
TOGETHER = 8

OPTIONAL = 0x80
"""The bit of a type that makes a frame optional: a receiver that does not know the type skips it."""


class FrameType(enum.IntEnum):
    """The type of a frame; `FRAMES` has its meaning."""

    HELLO = 1
    REFUSED = 2
    BYE = 3
    PING = 4
    PONG = 5
    # a lane, client to worker
    INIT = 16
    FUNCTION = 17
    FORGET = 18
    TASKS = 19
    RECALL = 20
    ACK = 21
    RESUME = 22
    MODULES = 23
    MODULE = 24
    CALL_HEADER = 25
    # a lane, worker to client
    READY = 32
    RESULTS = 33
    RECALLED = 34
    RESUMED = 35
    WANTED = 36
    ITEMS = 37
    # the control connection and admin connections
    WORKER_DIED = 48
    DRAINING = 49
    KILL = 50
    SPARED = 51
    # optional: from OPTIONAL on
    STOP = 144
    DETAILS = 145
    LEVELS = 146
    CREDIT = 147
    PACKAGES = 160
    MARKS = 161
    REPORT = 162
    ABOUT = 163
    RECORDS = 164
    OUTPUT = 176
    HEARD = 177


class Way(enum.Flag):
    """Between whom a frame travels."""

    CLIENT_TO_SERVER = 1
    SERVER_TO_CLIENT = 2
    CLIENT_TO_WORKER = 4
    WORKER_TO_CLIENT = 8


_TO_SERVER, _FROM_SERVER = Way.CLIENT_TO_SERVER, Way.SERVER_TO_CLIENT
_TO_WORKER, _FROM_WORKER = Way.CLIENT_TO_WORKER, Way.WORKER_TO_CLIENT


class Meaning(NamedTuple):
    """What the table says about a type of frame.

    Attributes:
        ways: Between whom it travels.
        flags: Those that it may have.
        feature: It is sent only if both hellos have named this feature (`features`); empty if always.
    """

    ways: Way
    flags: int = 0
    feature: str = ""


# The one table of frames: ``docs/reference/protocol.md`` shows it, and a test compares the two.
FRAMES = {
    FrameType.HELLO: Meaning(_TO_SERVER | _FROM_SERVER),
    FrameType.REFUSED: Meaning(_FROM_SERVER),
    FrameType.BYE: Meaning(_TO_SERVER | _FROM_SERVER | _TO_WORKER),
    FrameType.PING: Meaning(_TO_SERVER),
    FrameType.PONG: Meaning(_FROM_SERVER),
    FrameType.INIT: Meaning(_TO_WORKER, BULK),
    FrameType.FUNCTION: Meaning(_TO_WORKER, BULK),
    FrameType.FORGET: Meaning(_TO_WORKER),
    FrameType.TASKS: Meaning(_TO_WORKER, BULK | ONCE | TOGETHER),
    FrameType.RECALL: Meaning(_TO_WORKER),
    FrameType.ACK: Meaning(_TO_WORKER),
    FrameType.RESUME: Meaning(_TO_WORKER),
    FrameType.MODULES: Meaning(_TO_WORKER, BULK, MODULES),
    FrameType.MODULE: Meaning(_TO_WORKER, BULK | ERROR, MODULES),
    FrameType.CALL_HEADER: Meaning(_TO_WORKER, 0, HEADERS),
    FrameType.READY: Meaning(_FROM_WORKER, BULK | ERROR),
    FrameType.RESULTS: Meaning(_FROM_WORKER, BULK | ERROR | TOGETHER),
    FrameType.RECALLED: Meaning(_FROM_WORKER),
    FrameType.RESUMED: Meaning(_FROM_WORKER),
    FrameType.WANTED: Meaning(_FROM_WORKER, 0, MODULES),
    FrameType.ITEMS: Meaning(_FROM_WORKER, BULK | TOGETHER, STREAMS),
    FrameType.WORKER_DIED: Meaning(_FROM_SERVER),
    FrameType.DRAINING: Meaning(_FROM_SERVER),
    FrameType.KILL: Meaning(_TO_SERVER),
    FrameType.SPARED: Meaning(_FROM_SERVER),
    FrameType.STOP: Meaning(_TO_WORKER, 0, DETAILS),
    FrameType.DETAILS: Meaning(_TO_WORKER, 0, DETAILS),
    FrameType.LEVELS: Meaning(_TO_WORKER, 0, RECORDS),
    FrameType.CREDIT: Meaning(_TO_WORKER, 0, STREAMS),
    FrameType.PACKAGES: Meaning(_FROM_WORKER, 0, MODULES),
    FrameType.MARKS: Meaning(_FROM_WORKER, 0, OUTPUT),
    FrameType.REPORT: Meaning(_FROM_WORKER, 0, REPORTS),
    FrameType.ABOUT: Meaning(_FROM_WORKER, 0, DETAILS),
    FrameType.RECORDS: Meaning(_FROM_WORKER, 0, RECORDS),
    FrameType.OUTPUT: Meaning(_FROM_SERVER, 0, OUTPUT),
    FrameType.HEARD: Meaning(_TO_SERVER, 0, OUTPUT),
}

# What the reader looks up for each frame: its type, and the bits that its flags must not have. Of a frame to be
# skipped no flag but BULK matters, which would announce more bytes than the limit of its body bounds.
_KNOWN: dict[int, tuple[FrameType | None, int]] = {
    int(kind): (kind, 0xFF & ~meaning.flags) for kind, meaning in FRAMES.items()
}
_UNKNOWN = (None, BULK)


class Frame(NamedTuple):  # a tuple because it is made for every call
    """One received frame."""

    type: FrameType
    flags: int = 0
    count: int = 0  # type: ignore[assignment]  # shadows tuple.count, which nobody misses
    seq: int = 0
    body: Buffer = b""
    segments: tuple[Buffer, ...] = ()


def payload_size(payload: Payload) -> int:
    """Return the total number of bytes in the payload's parts."""
    if len(payload) == 1:
        return len(payload[0])
    return sum(memoryview(part).nbytes for part in payload)


def is_bulk(payload: Payload) -> bool:
    """Return whether the payload must travel alone, with its parts as segments."""
    return len(payload) > 1 or len(payload[0]) >= BULK_THRESHOLD


def encode_frame(
    kind: FrameType,
    *,
    flags: int = 0,
    count: int = 0,
    seq: int = 0,
    body: Buffer = b"",
    segments: Payload = (),
) -> list[Buffer]:
    """Encode one frame as a list of buffers to be sent in order.

    Raises:
        LocalProtocolError: The frame exceeds a limit, so any peer would refuse it.
    """
    if len(body) > MAX_BODY or not 0 <= count <= MAX_COUNT or len(segments) > MAX_SEGMENTS:
        raise LocalProtocolError(f"{kind.name} frame too large: body of {len(body)} bytes, count {count}")
    header = HEADER.pack(len(body), kind, flags, count, seq)
    # To copy a short body is cheaper than to send one more buffer.
    if len(body) <= BULK_THRESHOLD:
        return [header + body, *segments]
    return [header, body, *segments]


# -- payloads alone: INIT, FUNCTION, READY ----------------------------------------------------------


def encode_payload(
    kind: FrameType, payload: Payload, *, seq: int = 0, flags: int = 0, prefix: bytes = b""
) -> list[Buffer]:
    """Encode a frame of one payload, whose body begins with ``prefix``."""
    if not is_bulk(payload):
        return encode_frame(kind, flags=flags, count=1, seq=seq, body=prefix + bytes(payload[0]))
    # The pickle itself may be received into any memory: nobody but the unpickler sees it.
    sizes = [memoryview(payload[0]).nbytes, *map(_size_and_kind, payload[1:])]
    table = struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
    return encode_frame(kind, flags=flags | BULK, count=1, seq=seq, body=table + prefix, segments=payload)


def _size_and_kind(part: Buffer) -> int:
    # Not len(), which counts the items of a buffer rather than its bytes.
    size = memoryview(part).nbytes
    whole: Any = part
    while isinstance(whole, memoryview):
        whole = whole.obj
    # The very object must be bytes, and all of it be sent: an array over some bytes is more than those.
    kind = _KINDS.get(type(whole), Kind.MEMORY)
    return size | kind << _KIND_SHIFT if kind and len(whole) == size else size


_KINDS: dict[type, Kind] = {bytes: Kind.BYTES, bytearray: Kind.BYTEARRAY}


def payload_of(frame: Frame, prefix: int = 0) -> Payload:
    """Return the one payload of a frame that `encode_payload` has made with a prefix of ``prefix`` bytes."""
    if frame.flags & BULK:
        return frame.segments
    return (memoryview(frame.body)[prefix:],)


def prefix_of(frame: Frame, size: int) -> bytes:
    """Return the prefix of ``size`` bytes of a bulk frame that `encode_payload` has made.

    Raises:
        RemoteProtocolError: The body has another length, or the frame another count.
    """
    start = 4 + 8 * len(frame.segments) if frame.flags & BULK else 0
    if len(frame.body) != start + size or frame.count != 1:
        raise RemoteProtocolError(
            f"{frame.type.name} frame: {frame.count} items, a body of {len(frame.body)} bytes, not {start + size}"
        )
    return bytes(memoryview(frame.body)[start:])


# -- a number alone ---------------------------------------------------------------------------------


def decode_number(frame: Frame) -> int:
    """Decode the u32 that is the whole body of a small frame, such as FORGET's function number.

    Raises:
        RemoteProtocolError: The body has another length.
    """
    if len(frame.body) != 4:
        raise RemoteProtocolError(f"{frame.type.name} frame with a body of {len(frame.body)} bytes, not 4")
    number: int = _U32.unpack(frame.body)[0]
    return number


# -- the incremental reader -------------------------------------------------------------------------


class FrameReader:
    """A parser that turns a stream of bytes, in whatever pieces it arrives, into frames.

    Call `receive_data` with the bytes that were read. After each call `destination` is either ``None`` or the
    memory that the next bytes of the stream belong in: read straight into it, release it, and report that with
    `received_into`. Using it is optional, as `receive_data` copies into it too; it saves the copy of bulk data.

    After an error the reader is unusable: the connection must end.

    Args:
        max_body: The longest body accepted; `MAX_HELLO` in hellos and on control connections, `MAX_BODY` on lanes.
        allocate: Returns the memory for a segment.
    """

    def __init__(self, max_body: int = MAX_BODY, allocate: Allocate | None = None) -> None:
        self.max_body = max_body
        self._allocate = allocate or _allocate
        self._pending = bytearray()
        self._needed = HEADER_SIZE  # no frame can be complete before this many bytes are pending
        self._bulk: _Bulk | None = None

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
            frame_type, refused = _KNOWN.get(kind, _UNKNOWN)
            if flags & refused or (frame_type is None and not kind & OPTIONAL):
                raise _unreadable(kind, flags)
            # Before anything is kept for the body: a peer must not make us buffer more than the limit.
            if length > self.max_body:
                name = f"type {kind}" if frame_type is None else frame_type.name
                raise RemoteProtocolError(f"{name} frame of {length} bytes; the limit is {self.max_body}")
            if end - start < HEADER_SIZE + length:
                self._needed = HEADER_SIZE + length
                break
            start += HEADER_SIZE
            if frame_type is None:  # skipped: the sender's version knows it, and can do without our reading it
                start += length
                continue
            # A copy, because the caller reads the next bytes of the stream into the same memory.
            body = bytes(view[start : start + length])
            start += length
            if flags & BULK:
                self._bulk = _Bulk(Frame(frame_type, flags, count, seq, body), self._allocate)
                if not self._bulk.complete:
                    return view[start:]
                # All segments are empty, so no more bytes would come to complete it.
                frames.append(self._bulk.frame())
                self._bulk = None
            else:
                frames.append(Frame(frame_type, flags, count, seq, body))
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


def _allocate(size: int, kind: Kind) -> Buffer | io.BytesIO:
    return io.BytesIO(bytes(size)) if kind is Kind.BYTES else bytearray(size)


_EMPTY: dict[Kind, Buffer] = {Kind.MEMORY: memoryview(b""), Kind.BYTES: b""}


class _Bulk:
    """The segments of one frame while they arrive."""

    def __init__(self, head: Frame, allocate: Allocate) -> None:
        self._head = head
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
        # The sum is limited, not each size: many segments could promise more together than any one of them may.
        if sum(sizes) > (MAX_MODULES if head.type in (FrameType.MODULES, FrameType.MODULE) else MAX_SEGMENT):
            raise RemoteProtocolError(f"{head.type.name} frame promises {sum(sizes)} bytes")
        try:
            return sizes, [Kind(entry >> _KIND_SHIFT) for entry in table]
        except ValueError:
            raise RemoteProtocolError(f"{head.type.name} frame with a segment of an unknown kind") from None

    def close(self) -> None:
        """Let go of the current segment."""
        # A BytesIO complains if it is collected, among what refers to it, with a view of its memory still there.
        if self._current is not None:
            self._current.release()
            self._current = None

    def _next(self) -> None:
        """Begin the next segment that has bytes to come."""
        # One is allocated only when the one before it is full, so a table alone does not take memory for all.
        while len(self._done) < len(self._sizes):
            size, kind = self._sizes[len(self._done)], self._kinds[len(self._done)]
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
                return
            self._done.append(bytearray() if kind is Kind.BYTEARRAY else _EMPTY[kind])
        self._current = None

    @property
    def complete(self) -> bool:
        return self._current is None

    def remaining(self) -> memoryview:
        assert self._current is not None
        return self._current[self._filled :]

    def advance(self, count: int) -> None:
        assert self._current is not None
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
