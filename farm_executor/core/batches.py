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
    "encode_result",
    "encode_results",
    "encode_results_together",
    "encode_task",
    "encode_tasks",
    "encode_tasks_together",
    "fit_together",
]

MAX_BATCH_BYTES = 1024 * 1024  # a larger batch gains nothing, and keeps the lane from answering

# Needed for each call; before Python 3.12 the lookup of an enum member is slow.
_TASKS, _RESULTS = FrameType.TASKS, FrameType.RESULTS

_U32 = struct.Struct("<I")
_TWO_U32 = struct.Struct("<II")

# More than 71 minutes do not fit a u32. The exact time makes no difference by then.
_LONGEST = 0xFFFFFFFF

# Never part of a size: a payload in a batch is shorter than BULK_THRESHOLD.
_ERROR_BIT = 1 << 31

# -- what tasks and results have in common ----------------------------------------------------------


def _runs(payloads: Sequence[Payload]) -> list[tuple[int, int]]:
    """Return where each run of payloads that travels in one frame begins and ends: a bulk one travels alone.

    Items are numbered by their place in the stream, so a bulk one must not overtake those before it.
    """
    sizes = [len(payload[0]) if len(payload) == 1 else BULK_THRESHOLD for payload in payloads]
    # Most often one frame has room for all, which is seen faster than by adding up one by one.
    if sizes and len(sizes) <= MAX_COUNT and sum(sizes) <= MAX_BATCH_BYTES and max(sizes) < BULK_THRESHOLD:
        return [(0, len(sizes))]
    runs = []
    begin = total = 0
    for place, size in enumerate(sizes):
        bulk = size >= BULK_THRESHOLD
        if begin < place and (bulk or total > MAX_BATCH_BYTES or place - begin == MAX_COUNT):
            runs.append((begin, place))
            begin, total = place, 0
        total += size
        if bulk:
            runs.append((begin, place + 1))
            begin, total = place + 1, 0
    return [*runs, (begin, len(sizes))] if begin < len(sizes) else runs


def _encode_one(
    kind: FrameType, flags: int, seq: int, head: int, payload: Payload, error: bool = False
) -> list[Buffer]:
    """Encode one item: a bulk one, or a call whose result is awaited, which must not wait for the general code."""
    body = payload[0]
    size = len(body)
    if len(payload) > 1 or size >= BULK_THRESHOLD:  # like is_bulk, but inline: this is done for every call
        flags |= ERROR if error else 0
        return encode_payload(kind, payload, seq=seq, flags=flags, prefix=_U32.pack(head))
    table = _TWO_U32.pack(head, size | _ERROR_BIT if error else size)
    return [HEADER.pack(8 + size, kind, flags, 1, seq) + table + body]


def _encode_run(
    kind: FrameType, flags: int, seq: int, head: list[int], payloads: list[Payload], errors: list[bool]
) -> list[Buffer]:
    """Encode one of the `_runs` as a frame, whose table has the numbers of ``head``, and then the sizes."""
    if len(payloads) == 1:
        return _encode_one(kind, flags, seq, head[0], payloads[0], True in errors)
    bodies = [payload[0] for payload in payloads]
    sizes = [len(body) for body in bodies]
    if True in errors:
        sizes = [size | _ERROR_BIT if error else size for size, error in zip(sizes, errors, strict=True)]
    table = struct.pack(f"<{len(head) + len(sizes)}I", *head, *sizes)
    return encode_frame(kind, flags=flags, count=len(sizes), seq=seq, body=b"".join([table, *bodies]))


def _split(body: Buffer, start: int, sizes: Sequence[int]) -> list[Payload]:
    # Bytes that no item claims are an error as well: then the table and the body are not of one frame.
    if start + sum(sizes) != len(body):
        raise RemoteProtocolError(f"a table of {sum(sizes)} bytes over a body of {len(body)}")
    ends = list(accumulate(sizes, initial=start))
    return [(body[begin:end],) for begin, end in pairwise(ends)]


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
    if len(tasks) == 1:
        ((function, payload),) = tasks
        return encode_task(seq, function, payload, once=once)
    flags = ONCE if once else 0
    functions = [function for function, _ in tasks]
    payloads = [payload for _, payload in tasks]
    out: list[Buffer] = []
    for begin, end in _runs(payloads):
        out += _encode_run(FrameType.TASKS, flags, seq + begin, functions[begin:end], payloads[begin:end], [])
    return out


def encode_task(seq: int, function: int, payload: Payload, *, once: bool = False) -> list[Buffer]:
    """Encode one task; see `encode_tasks`."""
    return _encode_one(_TASKS, ONCE if once else 0, seq, function, payload)


def decode_tasks(frame: Frame) -> list[tuple[int, Payload]]:
    """Decode a TASKS frame into a function number and arguments per task; the first has the frame's ``seq``.

    Raises:
        RemoteProtocolError: The table does not match the body.
    """
    _, flags, n, _, body, segments = frame
    if flags & BULK:
        (function,) = _U32.unpack(prefix_of(frame, 4))
        return [(function, segments)]
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


# -- results ----------------------------------------------------------------------------------------


def encode_results(seq: int, results: Sequence[tuple[Payload, bool]], busy_us: int) -> list[Buffer]:
    """Encode the outcomes of the tasks numbered from ``seq`` on, and how long the worker was busy with them.

    The body of a batch is the busy time (u32, microseconds), n sizes (u32, the top bit set for an error) and the n
    pickles. A bulk body is the segment table followed by the busy time.

    Args:
        seq: The number of the first outcome's task.
        results: For each outcome its payload, and whether it is an encoded failure instead of a value.
        busy_us: How long the worker was busy with all of them, in microseconds.
    """
    if len(results) == 1:
        ((payload, error),) = results
        return encode_result(seq, payload, busy_us, error=error)
    busy_us = min(busy_us, _LONGEST)
    payloads = [payload for payload, _ in results]
    errors = [error for _, error in results]
    out: list[Buffer] = []
    for begin, end in _runs(payloads):
        out += _encode_run(FrameType.RESULTS, 0, seq + begin, [busy_us], payloads[begin:end], errors[begin:end])
        busy_us = 0  # the time is that of all outcomes together, so only the first frame may report it
    return out


def encode_result(seq: int, payload: Payload, busy_us: int, *, error: bool) -> list[Buffer]:
    """Encode one outcome; see `encode_results`."""
    return _encode_one(_RESULTS, 0, seq, busy_us if busy_us < _LONGEST else _LONGEST, payload, error)


def decode_results(frame: Frame) -> tuple[int, list[tuple[Payload, bool]]]:
    """Decode a RESULTS frame into the busy time in microseconds and the outcomes.

    Each outcome is a payload and whether it is an error; the first has the frame's ``seq``.

    Raises:
        RemoteProtocolError: The table does not match the body.
    """
    _, flags, n, _, body, segments = frame
    if flags & BULK:
        (busy,) = _U32.unpack(prefix_of(frame, 4))
        return busy, [(segments, bool(flags & ERROR))]
    if not n or len(body) < 4 + 4 * n:
        raise RemoteProtocolError(f"RESULTS frame of {n} results in {len(body)} bytes")
    if n == 1:
        busy, size = _TWO_U32.unpack_from(body)
        if len(body) == 8 + size:
            return busy, [((body[8:],), False)]
    busy, *sizes = struct.unpack_from(f"<{1 + n}I", body)
    parts = _split(body, 4 + 4 * n, [size & ~_ERROR_BIT for size in sizes])
    return busy, [(part, size >= _ERROR_BIT) for part, size in zip(parts, sizes, strict=True)]


def encode_results_together(seq: int, count: int, pickle: bytes, busy_us: int) -> list[Buffer]:
    """Encode ``count`` results that share one pickle and `fit_together`; see `encode_results`.

    The body is the busy time (u32) and the pickle.
    """
    body = _U32.pack(min(busy_us, _LONGEST)) + pickle
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
