"""Convert bytes to frames and back: the layout of everything that travels after the handshake.

This module owns the header, the frame types, the layout of the bodies and every size limit. It must not know
what a payload means, nor where bytes come from or go to.

A frame is a header of 16 bytes, little endian, a body, and, if the frame is flagged ``BULK``, segments::

    offset  size  field
    0       4     length of the body in bytes, at most 4 MiB (``MAX_BODY``)
    4       1     type: one of ``FrameType``
    5       1     flags: BULK = 1, ERROR = 2, ONCE = 4, TOGETHER = 8
    6       2     count: the number of items in the body, where the type has items
    8       8     seq: number of the first item, where the type has numbers
    16      ...   body
    ...     ...   segments, one after the other, of the sizes that the body's table lists (BULK only)

Small payloads travel in batches, many to a body; plain values, such as numbers and short strings, share one pickle
(``TOGETHER``). A payload whose pickle has 64 KiB or more (``BULK_THRESHOLD``), or that has buffers, travels alone
in a ``BULK`` frame: its parts are segments, received straight into memory of their own, so that a large array is
never copied on its way. Every size is checked before any memory is taken for it.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from farm_executor.errors import LocalProtocolError, RemoteProtocolError

__all__ = [
    "BULK",
    "BULK_THRESHOLD",
    "ERROR",
    "HEADER_SIZE",
    "MAX_BODY",
    "MAX_HELLO",
    "MAX_RECALLS",
    "ONCE",
    "TOGETHER",
    "Buffer",
    "Frame",
    "FrameReader",
    "FrameType",
    "Payload",
    "decode_number",
    "decode_results",
    "decode_results_together",
    "decode_tasks",
    "decode_tasks_together",
    "encode_frame",
    "encode_payload",
    "encode_results",
    "encode_results_together",
    "encode_tasks",
    "encode_tasks_together",
    "fit_together",
    "is_bulk",
    "payload_of",
    "payload_size",
]

Buffer = bytes | bytearray | memoryview
Payload = Sequence[Buffer]
"""An opaque value: its pickle, followed by the buffers that the pickle refers to, in order."""

_HEADER = struct.Struct("<IBBHQ")
_U32 = struct.Struct("<I")
_TWO_U32 = struct.Struct("<II")
HEADER_SIZE = _HEADER.size

MAX_BODY = 4 * 1024 * 1024
MAX_HELLO = 64 * 1024
MAX_SEGMENTS = 65_536
MAX_SEGMENT = 1 << 46  # 64 TiB, more memory than any machine has: such a size is garbage
MAX_MODULES = 320 * 1024 * 1024  # bytes of modules in one frame
MAX_COUNT = 65_535
MAX_RECALLS = 1 << 16  # counters of recalls wrap around here, to fit a header's count
BULK_THRESHOLD = 64 * 1024
MAX_BATCH_BYTES = 1024 * 1024  # a larger batch gains nothing, and keeps the lane from answering

BULK = 1
ERROR = 2
ONCE = 4
TOGETHER = 8
_FLAGS = BULK | ERROR | ONCE | TOGETHER


class FrameType(enum.IntEnum):
    """The type of a frame; ``docs/reference/protocol.md`` has the table of who sends which, and when."""

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
    # a lane, worker to client
    READY = 32
    RESULTS = 33
    RECALLED = 34
    RESUMED = 35
    WANTED = 36
    # the control connection and admin connections
    WORKER_DIED = 48
    DRAINING = 49
    KILL = 50
    SPARED = 51


_TYPES = {int(kind): kind for kind in FrameType}


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
    header = _HEADER.pack(len(body), kind, flags, count, seq)
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
    # Not len(), which counts the items of a buffer rather than its bytes.
    sizes = [memoryview(part).nbytes for part in payload]
    table = struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
    return encode_frame(kind, flags=flags | BULK, count=1, seq=seq, body=table + prefix, segments=payload)


def payload_of(frame: Frame, prefix: int = 0) -> Payload:
    """Return the one payload of a frame that `encode_payload` has made with a prefix of ``prefix`` bytes."""
    if frame.flags & BULK:
        return frame.segments
    return (memoryview(frame.body)[prefix:],)


def _prefix_of(frame: Frame, size: int) -> bytes:
    start = 4 + 8 * len(frame.segments) if frame.flags & BULK else 0
    if len(frame.body) != start + size or frame.count != 1:
        raise RemoteProtocolError(
            f"{frame.type.name} frame: {frame.count} items, a body of {len(frame.body)} bytes, not {start + size}"
        )
    return bytes(memoryview(frame.body)[start:])


# -- tasks ------------------------------------------------------------------------------------------


def encode_tasks(seq: int, tasks: Sequence[tuple[int, Payload]], *, once: bool = False) -> list[Buffer]:
    """Encode tasks numbered from ``seq`` on, in order, in as few frames as the limits allow.

    The body of a batch of n tasks is n function numbers (u32), n sizes (u32), and the n pickles.
    A bulk body is the segment table followed by the function number (u32).

    Args:
        seq: The number of the first task.
        tasks: For each task the number of its function on this lane, and its arguments.
        once: Whether any of them must not be sent again once it has begun. No outcome may wait for others then.
    """
    out: list[Buffer] = []
    flags = ONCE if once else 0
    numbers: list[int] = []
    bodies: list[Buffer] = []
    size = 0
    for function, payload in tasks:
        data = payload[0]
        # Like is_bulk, but inline: this is done for every call.
        bulk = len(payload) > 1 or len(data) >= BULK_THRESHOLD
        # Tasks are numbered by their place in the stream, so a bulk one must not overtake the batch before it.
        if numbers and (bulk or size > MAX_BATCH_BYTES or len(numbers) == MAX_COUNT):
            out += _encode_batch(seq, numbers, bodies, flags)
            seq += len(numbers)
            numbers, bodies, size = [], [], 0
        if bulk:
            out += encode_payload(FrameType.TASKS, payload, seq=seq, flags=flags, prefix=_U32.pack(function))
            seq += 1
        else:
            numbers.append(function)
            bodies.append(data)
            size += len(data)
    if numbers:
        out += _encode_batch(seq, numbers, bodies, flags)
    return out


def _encode_batch(seq: int, numbers: list[int], bodies: list[Buffer], flags: int) -> list[Buffer]:
    n = len(numbers)
    if n == 1:  # a call whose result is awaited: the general code below would take twice as long
        (data,) = bodies
        table = _TWO_U32.pack(numbers[0], len(data))
        return [_HEADER.pack(8 + len(data), FrameType.TASKS, flags, 1, seq) + table + data]
    table = struct.pack(f"<{2 * n}I", *numbers, *map(len, bodies))
    return encode_frame(FrameType.TASKS, flags=flags, count=n, seq=seq, body=b"".join([table, *bodies]))


def decode_tasks(frame: Frame) -> list[tuple[int, Payload]]:
    """Decode a TASKS frame into a function number and arguments per task; the first has the frame's ``seq``.

    Raises:
        RemoteProtocolError: The table does not match the body.
    """
    if frame.flags & BULK:
        (function,) = _U32.unpack(_prefix_of(frame, 4))
        return [(function, frame.segments)]
    n, body = frame.count, frame.body
    if not n or len(body) < 8 * n:
        raise RemoteProtocolError(f"TASKS frame of {n} tasks in {len(body)} bytes")
    if n == 1:  # the common case, for the same reason; if the size is wrong, the code below raises
        function, size = _TWO_U32.unpack_from(body)
        if len(body) == 8 + size:
            return [(function, (body[8:],))]
    table = struct.unpack_from(f"<{2 * n}I", body)
    return list(zip(table[:n], _split(body, 8 * n, table[n:]), strict=True))


def fit_together(count: int, pickle: bytes) -> bool:
    """Return whether one frame has room for ``count`` items in one pickle."""
    return count <= MAX_COUNT and len(pickle) <= MAX_BATCH_BYTES


def encode_tasks_together(seq: int, functions: Sequence[int], pickle: bytes, *, once: bool = False) -> list[Buffer]:
    """Encode tasks whose arguments share one pickle and `fit_together`; see `encode_tasks`.

    The body is n function numbers (u32) and the pickle.
    """
    flags = TOGETHER | ONCE if once else TOGETHER
    body = struct.pack(f"<{len(functions)}I", *functions) + pickle
    return encode_frame(FrameType.TASKS, flags=flags, count=len(functions), seq=seq, body=body)


def decode_tasks_together(frame: Frame) -> tuple[tuple[int, ...], Buffer]:
    """Decode a TASKS frame that is flagged ``TOGETHER`` into its function numbers and the pickle.

    Raises:
        RemoteProtocolError: The body is too short.
    """
    n, body = frame.count, frame.body
    if frame.flags & BULK or not n or len(body) < 4 * n:
        raise RemoteProtocolError(f"TASKS frame of {n} tasks together in {len(body)} bytes")
    return struct.unpack_from(f"<{n}I", body), memoryview(body)[4 * n :]


def _split(body: Buffer, start: int, sizes: Sequence[int]) -> list[Payload]:
    # Bytes that no item claims are an error as well: then the table and the body are not of one frame.
    if start + sum(sizes) != len(body):
        raise RemoteProtocolError(f"a table of {sum(sizes)} bytes over a body of {len(body)}")
    ends = list(accumulate(sizes, initial=start))
    return [(body[begin:end],) for begin, end in pairwise(ends)]


# -- results ----------------------------------------------------------------------------------------

# Never part of a size: a payload in a batch is shorter than BULK_THRESHOLD.
_ERROR_BIT = 1 << 31


def encode_results(seq: int, results: Sequence[tuple[Payload, bool]], busy_us: int) -> list[Buffer]:
    """Encode the outcomes of the tasks numbered from ``seq`` on, and how long the worker was busy with them.

    The body of a batch is the busy time (u32, microseconds), n sizes (u32, the top bit set for an error) and the n
    pickles. A bulk body is the segment table followed by the busy time.

    Args:
        seq: The number of the first outcome's task.
        results: For each outcome its payload, and whether it is an encoded failure instead of a value.
        busy_us: How long the worker was busy with all of them, in microseconds.
    """
    out: list[Buffer] = []
    sizes: list[int] = []
    bodies: list[Buffer] = []
    size = 0
    for payload, error in results:
        data = payload[0]
        bulk = len(payload) > 1 or len(data) >= BULK_THRESHOLD
        if sizes and (bulk or size > MAX_BATCH_BYTES or len(sizes) == MAX_COUNT):
            out += _encode_result_batch(seq, sizes, bodies, busy_us)
            seq += len(sizes)
            # The time is that of all outcomes together, so only the first frame may report it.
            sizes, bodies, size, busy_us = [], [], 0, 0
        if bulk:
            flags = ERROR if error else 0
            busy = _U32.pack(min(busy_us, 0xFFFFFFFF))
            out += encode_payload(FrameType.RESULTS, payload, seq=seq, flags=flags, prefix=busy)
            seq += 1
            busy_us = 0
        else:
            sizes.append(len(data) | _ERROR_BIT if error else len(data))
            bodies.append(data)
            size += len(data)
    if sizes:
        out += _encode_result_batch(seq, sizes, bodies, busy_us)
    return out


def _encode_result_batch(seq: int, sizes: list[int], bodies: list[Buffer], busy_us: int) -> list[Buffer]:
    # More than 71 minutes do not fit a u32. The exact time makes no difference by then.
    busy_us = min(busy_us, 0xFFFFFFFF)
    n = len(sizes)
    if n == 1:
        (data,) = bodies
        return [_HEADER.pack(8 + len(data), FrameType.RESULTS, 0, 1, seq) + _TWO_U32.pack(busy_us, sizes[0]) + data]
    table = struct.pack(f"<{1 + n}I", busy_us, *sizes)
    return encode_frame(FrameType.RESULTS, count=n, seq=seq, body=b"".join([table, *bodies]))


def decode_results(frame: Frame) -> tuple[int, list[tuple[Payload, bool]]]:
    """Decode a RESULTS frame into the busy time in microseconds and the outcomes.

    Each outcome is a payload and whether it is an error; the first has the frame's ``seq``.

    Raises:
        RemoteProtocolError: The table does not match the body.
    """
    if frame.flags & BULK:
        (busy,) = _U32.unpack(_prefix_of(frame, 4))
        return busy, [(frame.segments, bool(frame.flags & ERROR))]
    n, body = frame.count, frame.body
    if not n or len(body) < 4 + 4 * n:
        raise RemoteProtocolError(f"RESULTS frame of {n} results in {len(body)} bytes")
    if n == 1:
        busy, size = _TWO_U32.unpack_from(body)
        if len(body) == 8 + (size & ~_ERROR_BIT):
            return busy, [((body[8:],), size >= _ERROR_BIT)]
    busy, *sizes = struct.unpack_from(f"<{1 + n}I", body)
    parts = _split(body, 4 + 4 * n, [size & ~_ERROR_BIT for size in sizes])
    return busy, [(part, size >= _ERROR_BIT) for part, size in zip(parts, sizes, strict=True)]


def encode_results_together(seq: int, count: int, pickle: bytes, busy_us: int) -> list[Buffer]:
    """Encode ``count`` results that share one pickle and `fit_together`; see `encode_results`.

    The body is the busy time (u32) and the pickle.
    """
    body = _U32.pack(min(busy_us, 0xFFFFFFFF)) + pickle
    return encode_frame(FrameType.RESULTS, flags=TOGETHER, count=count, seq=seq, body=body)


def decode_results_together(frame: Frame) -> tuple[int, Buffer]:
    """Decode a RESULTS frame that is flagged ``TOGETHER`` into the busy time in microseconds and the pickle.

    Raises:
        RemoteProtocolError: The body is too short.
    """
    if frame.flags & BULK or not frame.count or len(frame.body) < 4:
        raise RemoteProtocolError(f"RESULTS frame of {frame.count} results together in {len(frame.body)} bytes")
    (busy,) = _U32.unpack_from(frame.body)
    return busy, memoryview(frame.body)[4:]


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
    memory that the next bytes of the stream belong in: read straight into it and report that with `received_into`.
    Using it is optional, as `receive_data` copies into it too; it saves the copy of bulk data.

    After an error the reader is unusable: the connection must end.

    Args:
        max_body: The longest body accepted; `MAX_HELLO` in hellos and on control connections, `MAX_BODY` on lanes.
        allocate: Returns writable memory of the given number of bytes for a segment.
    """

    def __init__(self, max_body: int = MAX_BODY, allocate: Callable[[int], Buffer] = bytearray) -> None:
        self.max_body = max_body
        self._allocate = allocate
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
                target = self._bulk.remaining()
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
            length, kind, flags, count, seq = _HEADER.unpack_from(view, start)
            frame_type = _TYPES.get(kind)
            if frame_type is None or flags & ~_FLAGS:
                raise RemoteProtocolError(f"no such frame: type {kind}, flags {flags}")
            # Before anything is kept for the body: a peer must not make us buffer more than the limit.
            if length > self.max_body:
                raise RemoteProtocolError(
                    f"{frame_type.name} frame of {length} bytes; the limit is {self.max_body}"
                )
            if end - start < HEADER_SIZE + length:
                self._needed = HEADER_SIZE + length
                break
            start += HEADER_SIZE
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


class _Bulk:
    """The segments of one frame while they arrive."""

    def __init__(self, head: Frame, allocate: Callable[[int], Buffer]) -> None:
        self._head = head
        self._allocate = allocate
        self._sizes = self._table(head)
        self._done: list[memoryview] = []
        self._current: memoryview | None = None
        self._filled = 0
        self._next()

    @staticmethod
    def _table(head: Frame) -> tuple[int, ...]:
        body = memoryview(head.body)
        n = _U32.unpack_from(body)[0] if len(body) >= 4 else 0
        if not 1 <= n <= MAX_SEGMENTS or len(body) < 4 + 8 * n:
            raise RemoteProtocolError(f"{head.type.name} frame with a table of {n} segments in {len(body)} bytes")
        # The sum is limited, not each size: many segments could promise more together than any one of them may.
        sizes: tuple[int, ...] = struct.unpack_from(f"<{n}Q", body, 4)
        if sum(sizes) > (MAX_MODULES if head.type in (FrameType.MODULES, FrameType.MODULE) else MAX_SEGMENT):
            raise RemoteProtocolError(f"{head.type.name} frame promises {sum(sizes)} bytes")
        return sizes

    def _next(self) -> None:
        """Begin the next segment that has bytes to come."""
        # One is allocated only when the one before it is full, so a table alone does not take memory for all.
        while len(self._done) < len(self._sizes):
            size = self._sizes[len(self._done)]
            if size:
                # The peer has promised more than there is memory for: only its connection must end for that.
                try:
                    self._current = memoryview(self._allocate(size)).cast("B")
                except MemoryError:
                    raise RemoteProtocolError(f"no memory for a segment of {size} bytes") from None
                self._filled = 0
                return
            self._done.append(memoryview(b""))
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
            self._done.append(self._current)
            self._next()

    def frame(self) -> Frame:
        head = self._head
        return Frame(head.type, head.flags, head.count, head.seq, head.body, tuple(self._done))
