"""What is shared: its layout in memory, what may be held on a server, and which lane brings it there.

This module owns the three. It must not know descriptors, mappings, pickles or connections.

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
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

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
    "MAX_OBJECTS",
    "PIECE",
    "Deliveries",
    "Layout",
    "Part",
    "Room",
    "Send",
    "Shelf",
    "State",
    "decode_answer",
    "decode_offer",
    "decode_piece",
    "encode_answer",
    "encode_offer",
    "encode_piece",
    "gone",
    "layout_of",
    "read_layout",
    "refusal",
]

PIECE = 1024 * 1024  # bytes of an object in one frame: short, as whatever else the lane carries waits behind it
MAX_OBJECTS = 65_535  # of one session on a server
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


def encode_offer(number: int, size: int) -> list[Buffer]:
    """Encode the offer of an object of that size."""
    return encode_frame(FrameType.SHARE, seq=number, body=_SIZE.pack(size))


def decode_offer(frame: Frame) -> tuple[int, int]:
    """Return the number and the size of what is offered.

    Raises:
        RemoteProtocolError: The frame is malformed.
    """
    if len(frame.body) != _SIZE.size:
        raise RemoteProtocolError(f"SHARE frame with a body of {len(frame.body)} bytes, not {_SIZE.size}")
    (size,) = _SIZE.unpack(frame.body)
    if not 0 < size <= MAX_SEGMENT:
        raise RemoteProtocolError(f"SHARE frame of an object of {size} bytes")
    return frame.seq, size


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


# -- on the server ------------------------------------------------------------------------------------


def refusal(number: int, size: int, limit: int, used: int) -> str:
    """Return why a server cannot hold an object for want of room."""
    others = f", of which {used} bytes are taken" if used else ""
    return (
        f"shared object {number} of {size} bytes exceeds what this server may hold: {limit} bytes in all{others}; "
        "share less, close() what is done with, or raise its --max-shared"
    )


def gone(number: int) -> str:
    """Return why a worker cannot have an object that its client has dropped, or that was one too many."""
    return f"shared object {number} is not on this server: nobody needs it any more, or there are too many of them"


class Room:
    """How many bytes of shared objects a server may hold, and how many objects, for all its clients together.

    Args:
        limit: Returns how many bytes that is; called when it is first needed, as few servers ever hold any.
        most: Returns how many objects that is: each takes a descriptor.

    Attributes:
        used: Bytes that are held, or promised to those that are on their way.
    """

    def __init__(self, limit: Callable[[], int], most: Callable[[], int] = lambda: MAX_OBJECTS) -> None:
        self._limit = limit
        self._most = most
        self._objects = 0
        self.used = 0

    @property
    def full(self) -> bool:
        """Whether there are as many objects as there may be."""
        return self._objects >= self._most()

    @cached_property
    def limit(self) -> int:
        """How many bytes there may be."""
        return self._limit()

    def take(self, size: int) -> bool:
        """Take that many bytes, if they are free."""
        if self.used + size > self.limit:
            return False
        self.used += size
        self._objects += 1
        return True

    def give_back(self, size: int) -> None:
        """Let others have the bytes of an object of that size."""
        self.used -= size
        self._objects -= 1


class _Entry:
    __slots__ = ("reason", "size", "state")

    def __init__(self, size: int, state: State, reason: str = "") -> None:
        self.size = size
        self.state = state
        self.reason = reason


class Shelf:
    """The objects of one session, as its server knows them.

    Workers may ask for an object before it is offered, as that goes another way than their tasks: they wait. One
    that is not here and has a lower number than another that was offered has been: they would wait for ever.

    Args:
        room: Where its bytes count.
    """

    def __init__(self, room: Room) -> None:
        self._room = room
        self._latest = 0  # the highest number that was offered; a client offers them in their order
        self._entries: dict[int, _Entry] = {}
        self._waiting: dict[int, list[Hashable]] = {}

    def offer(self, number: int, size: int) -> tuple[State, str]:
        """Return the answer to an offer, which may have come before: then the answer was lost with a connection."""
        entry = self._entries.get(number)
        # Room is taken before anything is sent: two objects that are on their way must both fit.
        if entry is None:
            self._latest = max(self._latest, number)
            if len(self._entries) >= MAX_OBJECTS:  # nor is this kept, as what is refused takes memory, too
                return State.REFUSED, f"this session shares {MAX_OBJECTS} objects already"
            if self._room.full:
                return State.REFUSED, f"this server has no descriptor left for shared object {number}: share less"
            if self._room.take(size):
                entry = _Entry(size, State.WANTED)
            else:
                reason = refusal(number, size, self._room.limit, self._room.used)
                entry = _Entry(size, State.REFUSED, reason)
            self._entries[number] = entry
        return entry.state, entry.reason

    def arrived(self, number: int, size: int) -> bool:
        """Note that a worker has handed in an object; return whether it is to be kept."""
        entry = self._entries.get(number)
        # It may have come twice, over two lanes, or have been dropped while it was on its way.
        if entry is None or entry.state is not State.WANTED or entry.size != size:
            return False
        entry.state = State.HELD  # its room was taken when it was offered
        return True

    def fail(self, number: int, reason: str) -> bool:
        """Note that a worker could not take an object in; return whether it was still to come."""
        entry = self._entries.get(number)
        if entry is None or entry.state is not State.WANTED:
            return False
        self._room.give_back(entry.size)
        # It stays refused, and is not tried over another lane: the system that had no room is the same.
        entry.state, entry.reason = State.REFUSED, reason
        return True

    def ask(self, number: int, worker: Hashable) -> tuple[State, str]:
        """Return what to tell a worker that needs an object; on WANTED it waits."""
        entry = self._entries.get(number)
        if entry is not None and entry.state is not State.WANTED:
            return entry.state, entry.reason
        if entry is None and number <= self._latest:
            return State.REFUSED, gone(number)
        # If it is not offered, it will be, as a task that needs it has been sent.
        self._waiting.setdefault(number, []).append(worker)
        return State.WANTED, ""

    def waiting(self, number: int) -> list[Hashable]:
        """Return the workers that wait for an object, which is now held or refused; they wait no longer."""
        return self._waiting.pop(number, [])

    def forget(self, worker: Hashable) -> None:
        """Note that a worker has ended."""
        for number, workers in list(self._waiting.items()):
            self._waiting[number] = [other for other in workers if other != worker]
            if not self._waiting[number]:
                del self._waiting[number]

    def drop(self, number: int) -> None:
        """Forget an object; who waits for it is to be told."""
        # What was refused has taken nothing, or has given it back.
        entry = self._entries.pop(number, None)
        if entry is not None and entry.state is not State.REFUSED:
            self._room.give_back(entry.size)

    def clear(self) -> None:
        """Forget all objects."""
        for number in list(self._entries):
            self.drop(number)
        self._waiting.clear()


# -- on the client ------------------------------------------------------------------------------------


class Send(NamedTuple):
    """The decision to send an object over a lane, from its first byte on."""

    lane: int
    number: int


class Deliveries:
    """Which lane of one session carries which object.

    A lane carries one at a time. Its methods are the events; they return what is to be sent now.
    """

    def __init__(self) -> None:
        self._due: deque[int] = deque()  # wanted by the server, and carried by no lane
        self._free: dict[int, None] = {}  # lanes that carry nothing; an ordered set
        self._carried: dict[int, int] = {}  # by lane
        self._sent: dict[int, int] = {}  # the lane of each object that has left whole, and is not known to be held
        self._held: set[int] = set()

    def carried(self, lane: int) -> int | None:
        """Return the object that a lane carries."""
        return self._carried.get(lane)

    def answered(self, number: int, state: State) -> list[Send]:
        """Take a server's answer."""
        if state is State.HELD:
            # After a cut it may be on its way once more; then it goes on, as its worker waits for the rest.
            self._held.add(number)
            self._sent.pop(number, None)
            if number in self._due:
                self._due.remove(number)
            return []
        if state is State.WANTED:
            # An offer is repeated after a cut, so it may be on its way.
            if number not in self._due and number not in self._sent and number not in self._carried.values():
                self._due.append(number)
            return self._send()
        return self.drop(number)

    def lane_ready(self, lane: int) -> list[Send]:
        """Note that a lane can carry something."""
        # A lane that is resumed says so as well.
        if lane not in self._carried:
            self._free[lane] = None
        return self._send()

    def lane_gone(self, lane: int) -> list[Send]:
        """Note that a lane carries nothing any more, and that what it has carried may not have arrived."""
        self._free.pop(lane, None)
        # What has left whole may be in the socket's buffers still, or in a worker that has just died.
        lost = [number for number, by in self._sent.items() if by == lane]
        for number in lost:
            del self._sent[number]
        if lane in self._carried:
            lost.append(self._carried.pop(lane))
        lost = [number for number in lost if number not in self._held]
        # In front: tasks may be waiting for these already.
        self._due.extendleft(reversed(lost))
        return self._send()

    def left(self, lane: int) -> list[Send]:
        """Note that the last byte of what a lane carries has left."""
        number = self._carried.pop(lane)
        if number not in self._held:
            self._sent[number] = lane
        self._free[lane] = None
        return self._send()

    def drop(self, number: int) -> list[Send]:
        """Note that an object need not be sent, or sent on."""
        self._held.discard(number)
        if number in self._due:
            self._due.remove(number)
        self._sent.pop(number, None)
        for lane, carried in list(self._carried.items()):
            if carried == number:
                del self._carried[lane]
                self._free[lane] = None
        return self._send()

    def _send(self) -> list[Send]:
        decisions = []
        # The lane that has been free for longest: it is the least likely to have just been given a long task.
        while self._due and self._free:
            lane = next(iter(self._free))
            del self._free[lane]
            self._carried[lane] = self._due.popleft()
            decisions.append(Send(lane, self._carried[lane]))
        return decisions
