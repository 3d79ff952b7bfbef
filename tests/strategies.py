"""What hypothesis draws, shared by the tests: payloads, frames, ways to cut a stream, JSON, versions.

This module owns how test data is made. It asserts nothing and starts nothing.
"""

from __future__ import annotations

import array
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from hypothesis import strategies as st
from hypothesis.stateful import precondition
from items import Result, TaskItem

from farm_executor.core.frames import (
    BULK,
    ERROR,
    FRAMES,
    ONCE,
    TOGETHER,
    Buffer,
    Frame,
    FrameType,
    Kind,
)
from farm_executor.core.handshake import MIN_KEY_SIZE, NONCE_SIZE, Versions
from farm_executor.core.reader import FrameReader

u16 = st.integers(0, 0xFFFF)
u32 = st.integers(0, 0xFFFF_FFFF)
u64 = st.integers(0, 0xFFFF_FFFF_FFFF_FFFF)

# -- payloads -----------------------------------------------------------------------------------------------


def _doubles(values: list[float]) -> memoryview:
    return memoryview(array.array("d", values))


buffers: st.SearchStrategy[Buffer] = st.one_of(
    st.binary(max_size=40),
    st.binary(max_size=40).map(bytearray),
    st.binary(max_size=40).map(memoryview),
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=4).map(_doubles),
)
"""A part of a payload beyond its pickle: any object with bytes, also one whose items are wider than a byte."""

small_payloads = st.tuples(
    st.one_of(*(st.binary(max_size=60).map(kind) for kind in (bytes, bytearray, memoryview)))
)
bulk_payloads = st.builds(
    lambda pickle, parts: (pickle, *parts), st.binary(max_size=40), st.lists(buffers, min_size=1)
)
payloads = small_payloads | bulk_payloads

task_items = st.builds(TaskItem, u32, payloads)
results = st.builds(Result, payloads, st.booleans())

# -- frames -------------------------------------------------------------------------------------------------


@st.composite
def _bulk_frames(draw: st.DrawFn) -> Frame:
    segments = tuple(draw(st.lists(st.binary(max_size=40), min_size=1, max_size=6)))
    table = len(segments).to_bytes(4, "little") + b"".join(len(part).to_bytes(8, "little") for part in segments)
    prefix = draw(st.binary(max_size=8))
    kind = draw(st.sampled_from([kind for kind, meaning in FRAMES.items() if meaning.flags & BULK]))
    flags = BULK | draw(_flags_of(kind))
    return Frame(kind, flags, draw(u16), draw(u64), table + prefix, segments)


@st.composite
def _plain_frames(draw: st.DrawFn) -> Frame:
    kind = draw(st.sampled_from(FrameType))
    return Frame(kind, draw(_flags_of(kind)), draw(u16), draw(u64), draw(st.binary(max_size=80)), ())


def _flags_of(kind: FrameType) -> st.SearchStrategy[int]:
    """At most one of the flags that the type may have, but for BULK."""
    return st.sampled_from([0, *(flag for flag in (ERROR, ONCE, TOGETHER) if FRAMES[kind].flags & flag)])


plain_frames = _plain_frames()
frames = plain_frames | _bulk_frames()
"""Any frame that the reader may hand out, whatever it means."""

# -- streams ------------------------------------------------------------------------------------------------


def joined(parts: Sequence[Buffer]) -> bytes:
    """The bytes of the buffers one after the other, as a socket would send them."""
    return b"".join(parts)


@dataclass(frozen=True)
class Cuts:
    """A way to cut a stream: pieces of these sizes, again and again."""

    sizes: tuple[int, ...]

    def __call__(self, data: bytes) -> Iterator[bytes]:
        start = turn = 0
        while start < len(data):
            size = self.sizes[turn % len(self.sizes)]
            yield data[start : start + size]
            start += size
            turn += 1


EVERY_BYTE = Cuts((1,))
cuts = st.one_of(
    st.just(EVERY_BYTE),
    st.just(Cuts((1 << 40,))),
    st.lists(st.integers(1, 50), min_size=1, max_size=8).map(tuple).map(Cuts),
)


def mutated(data: bytes) -> st.SearchStrategy[bytes]:
    """The bytes with one to three places changed, one left out or put in, or the end cut off."""
    places = st.integers(0, max(len(data) - 1, 0))
    change = st.tuples(places, st.integers(1, 255))

    def flipped(changes: list[tuple[int, int]]) -> bytes:
        out = bytearray(data)
        for place, mask in changes:
            out[place] ^= mask
        return bytes(out)

    return st.one_of(
        # Distinct places, so that no change undoes another.
        st.lists(change, min_size=1, max_size=3, unique_by=lambda pair: pair[0]).map(flipped),
        places.map(lambda place: data[:place]),
        places.map(lambda place: data[:place] + data[place + 1 :]),
        st.tuples(places, st.binary(min_size=1, max_size=3)).map(
            lambda pair: data[: pair[0]] + pair[1] + data[pair[0] :]
        ),
    )


@dataclass
class Memory:
    """An allocator that counts, and has no more than ``limit`` bytes to give at once."""

    limit: int = 1 << 20
    asked: list[int] = field(default_factory=list)

    def __call__(self, size: int, kind: Kind) -> bytearray | io.BytesIO:
        self.asked.append(size)
        if size > self.limit:
            raise MemoryError
        return io.BytesIO(bytes(size)) if kind is Kind.BYTES else bytearray(size)


def feed(reader: FrameReader, pieces: Iterator[bytes], straight: Callable[[], bool] = lambda: False) -> list[Frame]:
    """Give the pieces to the reader, where ``straight`` says so by way of its `destination`."""
    out: list[Frame] = []
    for piece in pieces:
        while piece and (destination := reader.destination) is not None and straight():
            count = min(len(piece), len(destination))
            with destination:
                destination[:count] = piece[:count]
            out += reader.received_into(count)
            piece = piece[count:]
        out += reader.receive_data(piece)
    return out


# -- handshake ----------------------------------------------------------------------------------------------

keys = st.binary(min_size=MIN_KEY_SIZE, max_size=80)
nonces = st.binary(min_size=NONCE_SIZE, max_size=NONCE_SIZE)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
json_objects = st.dictionaries(st.text(), json_values, max_size=6)
words = st.text(st.characters(codec="utf-8").filter(str.isprintable), max_size=100)  # as they come through
versions = st.builds(Versions, words, words, words, words, st.integers(0, 255))


def name_of(value: object) -> str:
    """A test's id for a parameter, the same in every process that runs a part of the tests."""
    text = repr(value)
    return type(value).__name__ if " at 0x" in text else text


def when(condition):
    """The `precondition` of a state machine's rule.

    The oldest Hypothesis that the project is tested with parses a lambda's source again at each step, to print it.
    """
    condition.__name__ = "condition"
    return precondition(condition)
