"""Items of streams on their way: how ITEMS and CREDIT are laid out, and how far a worker may be ahead.

This module owns that. It must not know what an item is, nor when any is sent.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from farm_executor.core.frames import (
    BULK,
    TOGETHER,
    Buffer,
    Frame,
    FrameType,
    Payload,
    encode_frame,
    encode_payload,
    is_bulk,
    prefix_of,
)
from farm_executor.errors import RemoteProtocolError

__all__ = [
    "MAX_AHEAD",
    "MAX_BYTES_AHEAD",
    "decode_credit",
    "decode_items",
    "encode_credit",
    "encode_items",
    "encode_items_together",
    "number_of",
]

# Frames rather than items: those of a fast generator hold a millisecond's worth, so that a network with a round
# trip of a few milliseconds does not slow it down, and a slow generator is ahead by few items.
MAX_AHEAD = 16
MAX_BYTES_AHEAD = 16 * 1024 * 1024

_NUMBER = struct.Struct("<Q")


def encode_items(seq: int, number: int, items: Sequence[Payload]) -> list[Buffer]:
    """Encode items of a task, either small ones or a single bulk one, as its frame of that number."""
    prefix = _NUMBER.pack(number)
    if len(items) == 1 and is_bulk(items[0]):
        return encode_payload(FrameType.ITEMS, items[0], seq=seq, prefix=prefix)
    table = struct.pack(f"<{len(items)}I", *[len(item[0]) for item in items])
    body = b"".join([prefix, table, *[item[0] for item in items]])
    return encode_frame(FrameType.ITEMS, count=len(items), seq=seq, body=body)


def encode_items_together(seq: int, number: int, count: int, pickle: bytes) -> list[Buffer]:
    """Encode plain items that share a pickle."""
    body = _NUMBER.pack(number) + pickle
    return encode_frame(FrameType.ITEMS, flags=TOGETHER, count=count, seq=seq, body=body)


def number_of(frame: Frame) -> int:
    """Return which of its task's frames this is.

    Raises:
        RemoteProtocolError: The frame is malformed.
    """
    if frame.flags & BULK:
        return int(_NUMBER.unpack(prefix_of(frame, _NUMBER.size))[0])
    if not frame.count or len(frame.body) < _NUMBER.size + (0 if frame.flags & TOGETHER else 4 * frame.count):
        raise RemoteProtocolError(f"ITEMS frame of {frame.count} items in {len(frame.body)} bytes")
    return int(_NUMBER.unpack_from(frame.body)[0])


def decode_items(frame: Frame) -> tuple[list[Payload], Buffer]:
    """Decode a frame into its payloads, or, if it is flagged ``TOGETHER``, into none and the pickle.

    Raises:
        RemoteProtocolError: The table does not match the body.
    """
    if frame.flags & BULK:
        return [frame.segments], b""
    body = memoryview(frame.body)[_NUMBER.size :]
    if frame.flags & TOGETHER:
        return [], body
    sizes = struct.unpack_from(f"<{frame.count}I", body)
    start = 4 * frame.count
    if start + sum(sizes) != len(body):
        raise RemoteProtocolError(f"a table of {sum(sizes)} bytes over a body of {len(body)}")
    found: list[Payload] = []
    for size in sizes:
        found.append((body[start : start + size],))
        start += size
    return found, b""


def encode_credit(seq: int, taken: int) -> list[Buffer]:
    """Encode how many frames of a task have been taken."""
    return encode_frame(FrameType.CREDIT, seq=seq, body=_NUMBER.pack(taken))


def decode_credit(frame: Frame) -> int:
    """Decode how many frames of a task have been taken.

    Raises:
        RemoteProtocolError: The frame is malformed.
    """
    if len(frame.body) != _NUMBER.size:
        raise RemoteProtocolError(f"CREDIT frame with a body of {len(frame.body)} bytes")
    return int(_NUMBER.unpack(frame.body)[0])
