"""The layout of everything that travels after the handshake, as frames.

This module owns the header, the frame types, the layout of the bodies and every size limit. It must not know
what a payload means, nor where bytes come from or go to.

A frame is a header of 16 bytes, little endian, a body, and, if the frame is flagged ``BULK``, segments::

    offset  size  field
    0       4     length of the body in bytes, at most 4 MiB (``MAX_BODY``)
    4       1     type: one of ``FrameType``; from 128 on (``OPTIONAL``) a receiver skips one that it does not know
    5       1     flags: BULK = 1, ERROR = 2, ONCE = 4, TOGETHER = 8, RING = 16
    6       2     count: the number of items in the body, where the type has items
    8       8     seq: number of the first item, where the type has numbers
    16      ...   body
    ...     ...   segments, one after the other, of the sizes that the body's table lists (BULK only)

Small payloads stand in the body; `batches` has the layout of many in one. A payload whose pickle has 64 KiB or more
(``BULK_THRESHOLD``), or that has buffers, travels alone in a ``BULK`` frame: its parts are segments, received
straight into memory of their own, so that a large array is never copied on its way. `reader` is who receives them.
"""

from __future__ import annotations

import enum
import io
import struct
from collections.abc import Callable, Sequence
from typing import Any

from farm_executor._record import NamedTuple, maker
from farm_executor.core.features import (
    DETAILS,
    FUNCTIONS,
    HEADERS,
    MODULES,
    OUTPUT,
    RECORDS,
    REPORTS,
    RINGS,
    SHARING,
    STREAMS,
)
from farm_executor.errors import LocalProtocolError, RemoteProtocolError

__all__ = [
    "BULK",
    "BULK_THRESHOLD",
    "ERROR",
    "FRAMES",
    "HEADER",
    "HEADER_SIZE",
    "KIND_SHIFT",
    "MAX_BODY",
    "MAX_COUNT",
    "MAX_HELLO",
    "MAX_MODULES",
    "MAX_RECALLS",
    "MAX_SEGMENT",
    "MAX_SEGMENTS",
    "ONCE",
    "OPTIONAL",
    "RING",
    "TOGETHER",
    "Allocate",
    "Buffer",
    "Frame",
    "FrameType",
    "Kind",
    "Meaning",
    "Payload",
    "Reference",
    "Way",
    "decode_number",
    "encode_frame",
    "encode_payload",
    "is_bulk",
    "make_frame",
    "payload_of",
    "payload_size",
    "prefix_of",
    "size_and_kind",
    "split_size",
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
    REFERENCE = 3
    """Nothing: in place of the size stands the number of a shared object, whose buffer this is. Of tasks only."""


class Reference(bytes):
    """Stands in a payload for a part that the receiver has: the buffer of a shared object."""

    __slots__ = ()

    @classmethod
    def to(cls, number: int) -> Reference:
        """Return what stands for the buffer of the shared object of that number."""
        return cls(_U64.pack(number))

    @property
    def number(self) -> int:
        """The number of the shared object."""
        number: int = _U64.unpack(self)[0]
        return number


Allocate = Callable[[int, Kind], "Buffer | io.BytesIO"]
"""Returns writable memory of the given number of bytes for a segment: for BYTES a BytesIO that holds as many, whose
value is the segment, and for BYTEARRAY a bytearray."""

HEADER = struct.Struct("<IBBHQ")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
HEADER_SIZE = HEADER.size

# A body is kept until it is complete, so this is what one connection may make its other end hold.
MAX_BODY = 4 * 1024 * 1024
# No hello needs more, and a peer that says hello may not have proven anything yet.
MAX_HELLO = 64 * 1024
MAX_SEGMENTS = 65_536
KIND_SHIFT = 62
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
RING = 16  # with BULK only: large segments go through shared memory; see `ring`

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
    RINGED = 26
    PIECE = 27
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
    UNSHARE = 148
    PACKAGES = 160
    MARKS = 161
    REPORT = 162
    ABOUT = 163
    RECORDS = 164
    LACKING = 165
    OUTPUT = 176
    HEARD = 177
    SHARE = 178
    SHARED = 179


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


_BULK = BULK | RING
# The one table of frames: ``docs/reference/protocol.md`` shows it, and a test compares the two.
FRAMES = {
    FrameType.HELLO: Meaning(_TO_SERVER | _FROM_SERVER),
    FrameType.REFUSED: Meaning(_FROM_SERVER),
    FrameType.BYE: Meaning(_TO_SERVER | _FROM_SERVER | _TO_WORKER),
    FrameType.PING: Meaning(_TO_SERVER),
    FrameType.PONG: Meaning(_FROM_SERVER),
    FrameType.INIT: Meaning(_TO_WORKER, _BULK),
    FrameType.FUNCTION: Meaning(_TO_WORKER, _BULK | ERROR | TOGETHER),
    FrameType.FORGET: Meaning(_TO_WORKER),
    FrameType.TASKS: Meaning(_TO_WORKER, _BULK | ONCE | TOGETHER),
    FrameType.RECALL: Meaning(_TO_WORKER),
    FrameType.ACK: Meaning(_TO_WORKER),
    FrameType.RESUME: Meaning(_TO_WORKER),
    FrameType.MODULES: Meaning(_TO_WORKER, _BULK, MODULES),
    FrameType.MODULE: Meaning(_TO_WORKER, _BULK | ERROR, MODULES),
    FrameType.CALL_HEADER: Meaning(_TO_WORKER, 0, HEADERS),
    FrameType.RINGED: Meaning(_TO_WORKER, 0, RINGS),
    FrameType.PIECE: Meaning(_TO_WORKER, _BULK, SHARING),
    FrameType.READY: Meaning(_FROM_WORKER, _BULK | ERROR),
    FrameType.RESULTS: Meaning(_FROM_WORKER, _BULK | ERROR | TOGETHER),
    FrameType.RECALLED: Meaning(_FROM_WORKER),
    FrameType.RESUMED: Meaning(_FROM_WORKER),
    FrameType.WANTED: Meaning(_FROM_WORKER, 0, MODULES),
    FrameType.ITEMS: Meaning(_FROM_WORKER, _BULK | TOGETHER, STREAMS),
    FrameType.WORKER_DIED: Meaning(_FROM_SERVER),
    FrameType.DRAINING: Meaning(_FROM_SERVER),
    FrameType.KILL: Meaning(_TO_SERVER),
    FrameType.SPARED: Meaning(_FROM_SERVER),
    FrameType.STOP: Meaning(_TO_WORKER, 0, DETAILS),
    FrameType.DETAILS: Meaning(_TO_WORKER, 0, DETAILS),
    FrameType.LEVELS: Meaning(_TO_WORKER, 0, RECORDS),
    FrameType.CREDIT: Meaning(_TO_WORKER, 0, STREAMS),
    FrameType.UNSHARE: Meaning(_TO_WORKER | _TO_SERVER, 0, SHARING),
    FrameType.PACKAGES: Meaning(_FROM_WORKER, 0, MODULES),
    FrameType.MARKS: Meaning(_FROM_WORKER, 0, OUTPUT),
    FrameType.REPORT: Meaning(_FROM_WORKER, 0, REPORTS),
    FrameType.ABOUT: Meaning(_FROM_WORKER, 0, DETAILS),
    FrameType.RECORDS: Meaning(_FROM_WORKER, 0, RECORDS),
    FrameType.LACKING: Meaning(_FROM_WORKER, 0, FUNCTIONS),
    FrameType.OUTPUT: Meaning(_FROM_SERVER, 0, OUTPUT),
    FrameType.HEARD: Meaning(_TO_SERVER, 0, OUTPUT),
    FrameType.SHARE: Meaning(_TO_SERVER, 0, SHARING),
    FrameType.SHARED: Meaning(_FROM_SERVER, ERROR, SHARING),
}


class Frame(NamedTuple):  # a tuple because it is made for every call
    """One received frame."""

    type: FrameType
    flags: int = 0
    count: int = 0  # type: ignore[assignment]  # shadows tuple.count, which nobody misses
    seq: int = 0
    body: Buffer = b""
    segments: tuple[Buffer, ...] = ()


make_frame = maker(Frame)


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
    sizes = [memoryview(payload[0]).nbytes, *map(size_and_kind, payload[1:])]
    table = struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
    # Nothing is sent for a reference, but a buffer stands for it: `ring` counts them beside the table.
    segments = [b"" if type(part) is Reference else part for part in payload]
    return encode_frame(kind, flags=flags | BULK, count=1, seq=seq, body=table + prefix, segments=segments)


def size_and_kind(part: Buffer) -> int:
    """Return the entry of a part in a table of segments."""
    if type(part) is Reference:
        return part.number | Kind.REFERENCE << KIND_SHIFT
    # Not len(), which counts the items of a buffer rather than its bytes.
    size = memoryview(part).nbytes
    whole: Any = part
    while isinstance(whole, memoryview):
        whole = whole.obj
    # The very object must be bytes, and all of it be sent: an array over some bytes is more than those.
    kind = _KINDS.get(type(whole), Kind.MEMORY)
    return size | kind << KIND_SHIFT if kind and len(whole) == size else size


def split_size(entry: int) -> tuple[int, Kind]:
    """Return the size and the kind that an entry of a table stands for.

    Raises:
        ValueError: It is a reference.
    """
    kind = Kind(entry >> KIND_SHIFT)
    if kind is Kind.REFERENCE:
        raise ValueError("a reference has no size")
    return entry & ((1 << KIND_SHIFT) - 1), kind


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
