"""Convert tasks and results to frames and back: the layout of the bodies of TASKS and RESULTS.

This module owns how many items travel in one frame, and in which order their numbers, sizes and pickles stand in
its body. It must not know what an item means, nor what happens to it.

Small payloads travel in batches, many to a body; plain values, such as numbers and short strings, share one pickle
(``TOGETHER``). A bulk payload travels alone.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import accumulate, pairwise

from farm_executor.core.frames import (
    BULK,
    BULK_THRESHOLD,
    ERROR,
    HEADER,
    MAX_COUNT,
    ONCE,
    TOGETHER,
    Buffer,
    Frame,
    FrameType,
    Payload,
    encode_frame,
    encode_payload,
    prefix_of,
)
from farm_executor.errors import RemoteProtocolError

__all__ = [
    "decode_results",
    "decode_results_together",
    "decode_tasks",
    "decode_tasks_together",
    "encode_results",
    "encode_results_together",
    "encode_tasks",
    "encode_tasks_together",
    "fit_together",
]

MAX_BATCH_BYTES = 1024 * 1024  # a larger batch gains nothing, and keeps the lane from answering

_U32 = struct.Struct("<I")
_TWO_U32 = struct.Struct("<II")

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
        return [HEADER.pack(8 + len(data), FrameType.TASKS, flags, 1, seq) + table + data]
    table = struct.pack(f"<{2 * n}I", *numbers, *map(len, bodies))
    return encode_frame(FrameType.TASKS, flags=flags, count=n, seq=seq, body=b"".join([table, *bodies]))


def decode_tasks(frame: Frame) -> list[tuple[int, Payload]]:
    """Decode a TASKS frame into a function number and arguments per task; the first has the frame's ``seq``.

    Raises:
        RemoteProtocolError: The table does not match the body.
    """
    if frame.flags & BULK:
        (function,) = _U32.unpack(prefix_of(frame, 4))
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
        return [HEADER.pack(8 + len(data), FrameType.RESULTS, 0, 1, seq) + _TWO_U32.pack(busy_us, sizes[0]) + data]
    table = struct.pack(f"<{1 + n}I", busy_us, *sizes)
    return encode_frame(FrameType.RESULTS, count=n, seq=seq, body=b"".join([table, *bodies]))


def decode_results(frame: Frame) -> tuple[int, list[tuple[Payload, bool]]]:
    """Decode a RESULTS frame into the busy time in microseconds and the outcomes.

    Each outcome is a payload and whether it is an error; the first has the frame's ``seq``.

    Raises:
        RemoteProtocolError: The table does not match the body.
    """
    if frame.flags & BULK:
        (busy,) = _U32.unpack(prefix_of(frame, 4))
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
