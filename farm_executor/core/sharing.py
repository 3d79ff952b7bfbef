"""What is shared: its layout in memory, and the frames that speak of it.

This module owns both. It must not know who holds what (`shelf`), nor which lane brings it there (`deliveries`), nor
anything of descriptors, mappings, pickles or connections.

A shared object is pickled once, and stands in one *memory object*: a head, then the parts of its payload, each at
a multiple of 64 bytes::

    offset  size   field
    0       4      flags: FROZEN = 1
    4       4      the number n of parts
    8       8 * n  the size of each part, with its kind in the two top bits, as in a table of segments
    ...     ...    the parts; the first is the pickle

It has a number in its farm, which is never used again. A client *offers* it to each server, over the control
connection, and the server answers that it is to be sent, that it is held already, or why it cannot be held. It is
then sent in pieces over one lane, whose worker puts it into a memory object and hands that to its supervisor; every
other worker of the session gets it from there. If the lane is lost before the server has said that it holds the
object, it is sent over another.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from itertools import accumulate

from farm_executor._record import NamedTuple
from farm_executor.core.frames import (
    ERROR,
    MAX_SEGMENT,
    MAX_SEGMENTS,
    Buffer,
    Frame,
    FrameType,
    Kind,
    encode_frame,
    encode_payload,
    payload_of,
    prefix_of,
    split_size,
)
from farm_executor.core.text import one_line
from farm_executor.errors import RemoteProtocolError

__all__ = [
    "PIECE",
    "Layout",
    "Part",
    "State",
    "decode_answer",
    "decode_offer",
    "decode_piece",
    "encode_answer",
    "encode_offer",
    "encode_piece",
    "layout_of",
    "read_layout",
]

PIECE = 1024 * 1024  # bytes of an object in one frame: short, as whatever else the lane carries waits behind it
MAX_REASON = 500  # characters
FROZEN = 1

_ALIGNED = 64  # bytes: what vector instructions like best
_HEAD = struct.Struct("<II")
_SIZE = struct.Struct("<Q")
_WHERE = struct.Struct("<QQ")


# -- the layout ---------------------------------------------------------------------------------------


class Part(NamedTuple):
    """One part of a payload within a memory object."""

    begin: int
    size: int
    kind: Kind


class Layout(NamedTuple):
    """Where everything is in a memory object.

    Attributes:
        head: The bytes that it begins with.
        size: The size of the whole.
        frozen: Whether each worker unpickles the object once, with buffers that cannot be written to.
    """

    head: bytes
    parts: list[Part]
    size: int
    frozen: bool


def layout_of(sizes: Sequence[int], *, frozen: bool) -> Layout:
    """Lay out parts of these sizes, each with its kind in the top bits as in a table of segments."""
    head = _HEAD.pack(FROZEN if frozen else 0, len(sizes)) + struct.pack(f"<{len(sizes)}Q", *sizes)
    parts, size = _places(sizes)
    return Layout(head, parts, size, frozen)


def read_layout(memory: Buffer) -> Layout:
    """Read the layout of a whole memory object.

    Raises:
        RemoteProtocolError: It is not one.
    """
    if len(memory) < _HEAD.size:
        raise RemoteProtocolError(f"a shared object of {len(memory)} bytes")
    flags, count = _HEAD.unpack_from(memory)
    end = _HEAD.size + 8 * count
    if flags & ~FROZEN or not 1 <= count <= MAX_SEGMENTS or len(memory) < end:
        raise RemoteProtocolError(f"a shared object of {len(memory)} bytes, with {count} parts and flags {flags}")
    try:
        parts, size = _places(struct.unpack_from(f"<{count}Q", memory, _HEAD.size))
    except ValueError:
        raise RemoteProtocolError("a shared object with a part of an unknown kind") from None
    # Exactly: what a memory object has beyond its parts, nobody has announced.
    if size != len(memory):
        raise RemoteProtocolError(f"a shared object of {len(memory)} bytes, whose parts take {size}")
    return Layout(bytes(memory[:end]), parts, size, bool(flags & FROZEN))


def _places(sizes: Sequence[int]) -> tuple[list[Part], int]:
    split = [split_size(size) for size in sizes]
    # Each part takes whole units, so the next begins at one; nothing is added that could overflow, as in C.
    ends = [-(-size // _ALIGNED) * _ALIGNED for size, _ in split]
    begins = list(accumulate(ends, initial=-(-(_HEAD.size + 8 * len(sizes)) // _ALIGNED) * _ALIGNED))
    return [Part(begin, *each) for begin, each in zip(begins, split, strict=False)], begins[-1]


# -- the frames ---------------------------------------------------------------------------------------


class State(enum.IntEnum):
    """What a server answers to an offer; the count of a SHARED frame."""

    WANTED = 0
    """It is to be sent."""

    HELD = 1
    """The server has it."""

    REFUSED = 2
    """The server cannot hold it."""


def encode_offer(number: int, size: int, spare: bool = False) -> list[Buffer]:
    """Encode the offer of an object of that size; a ``spare`` one is of use, but no task fails without it."""
    return encode_frame(FrameType.SHARE, count=int(spare), seq=number, body=_SIZE.pack(size))


def decode_offer(frame: Frame) -> tuple[int, int, bool]:
    """Return the number and the size of what is offered, and whether it can be done without.

    Raises:
        RemoteProtocolError: The frame is malformed.
    """
    if len(frame.body) != _SIZE.size:
        raise RemoteProtocolError(f"SHARE frame with a body of {len(frame.body)} bytes, not {_SIZE.size}")
    (size,) = _SIZE.unpack(frame.body)
    if not 0 < size <= MAX_SEGMENT:
        raise RemoteProtocolError(f"SHARE frame of an object of {size} bytes")
    return frame.seq, size, frame.count > 0


def encode_answer(number: int, state: State, reason: str = "") -> list[Buffer]:
    """Encode the answer to an offer; a refusal comes with its reason."""
    flags = ERROR if state is State.REFUSED else 0
    body = reason.encode()[: 4 * MAX_REASON]
    return encode_frame(FrameType.SHARED, flags=flags, count=state, seq=number, body=body)


def decode_answer(frame: Frame) -> tuple[int, State, str]:
    """Return the number, the answer, and the reason of a refusal.

    Raises:
        RemoteProtocolError: The frame is malformed.
    """
    try:
        state = State(frame.count)
    except ValueError:
        raise RemoteProtocolError(f"SHARED frame with the unknown answer {frame.count}") from None
    if bool(frame.flags & ERROR) != (state is State.REFUSED):
        raise RemoteProtocolError(f"SHARED frame with flags {frame.flags} and the answer {state.name}")
    return frame.seq, state, one_line(bytes(frame.body).decode("utf-8", "replace"), MAX_REASON)


def encode_piece(number: int, begin: int, size: int, data: Buffer) -> list[Buffer]:
    """Encode the piece of an object of ``size`` bytes that begins at that offset."""
    return encode_payload(FrameType.PIECE, (data,), seq=number, prefix=_WHERE.pack(begin, size))


def decode_piece(frame: Frame) -> tuple[int, int, int, Buffer]:
    """Return the arguments of `encode_piece`.

    Raises:
        RemoteProtocolError: The frame is malformed, or the piece is not within its object.
    """
    size = _WHERE.size
    prefix = prefix_of(frame, size) if frame.flags else bytes(memoryview(frame.body)[:size])
    if len(prefix) != size or len(frame.segments) > 1:
        raise RemoteProtocolError(f"PIECE frame with a body of {len(frame.body)} bytes")
    begin, size = _WHERE.unpack(prefix)
    (data,) = payload_of(frame, _WHERE.size)
    if not 0 < len(data) <= PIECE or begin + len(data) > size or size > MAX_SEGMENT:
        raise RemoteProtocolError(f"PIECE frame of {len(data)} bytes at {begin} of {size}")
    return frame.seq, begin, size, data
