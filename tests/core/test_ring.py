"""Rings between the two ends of a lane: whose turn, and which parts of a frame."""

import struct
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from farm_executor.core.frames import BULK, BULK_THRESHOLD, RING, Frame, FrameType, encode_frame, encode_payload
from farm_executor.core.reader import FrameReader
from farm_executor.core.ring import (
    LEAST,
    MARK,
    MOST_CHUNKS,
    USUAL,
    Incoming,
    Outgoing,
    Part,
    Shape,
    divert,
    is_large,
    shape_of,
)
from farm_executor.errors import RemoteProtocolError

shapes = st.builds(Shape, st.integers(65_536, 70_000), st.integers(2, MOST_CHUNKS))


@given(shapes)
def test_a_shape_is_read_as_it_was_written(shape):
    assert shape_of(shape.encode()) == shape
    assert shape.size == 2 * shape.chunk * shape.count


@given(st.binary(max_size=12))
def test_whatever_comes_for_a_shape_is_one_within_the_limits_or_an_error(word):
    try:
        shape = shape_of(word)
    except RemoteProtocolError:
        return
    assert 65_536 <= shape.chunk <= 1 << 24
    assert 2 <= shape.count <= 64


@pytest.mark.parametrize(
    "pair", [(65_535, 4), ((1 << 24) + 1, 4), (65_536, 1), (65_536, 65), (0, 0), (2**32 - 1, 2**32 - 1)]
)
def test_a_shape_beyond_the_limits_is_refused(pair):
    with pytest.raises(RemoteProtocolError, match="a ring of"):
        shape_of(struct.pack("<II", *pair))


def test_our_own_shape_is_within_the_limits():
    assert shape_of(USUAL.encode()) == USUAL


class Turns(RuleBasedStateMachine):
    """Both ends of one direction: no chunk is filled before it has been emptied, and nothing is lost."""

    @initialize(shape=shapes, of_client=st.booleans())
    def begin(self, shape, of_client):
        self.shape = shape
        self.half = range(shape.size // 2) if of_client else range(shape.size // 2, shape.size)
        self.sender = Outgoing(shape, of_client=of_client)
        self.receiver = Incoming(shape, of_client=of_client)
        self.filled = []  # spans that are the receiver's
        self.sizes = []  # how much was still to be sent at each
        self.emptied = 0  # spans whose credit is on its way

    @precondition(lambda self: self.sender.free)
    @rule(size=st.integers(1, 300_000))
    def fill(self, size):
        span = self.sender.fill(size)
        assert span.stop - span.start == min(size, self.shape.chunk)
        assert span.start in self.half
        assert span.stop - 1 in self.half
        assert all(span.stop <= other.start or other.stop <= span.start for other in self.filled)
        self.filled.append(span)
        self.sizes.append(size)

    @precondition(lambda self: self.filled)
    @rule()
    def empty(self):
        assert self.receiver.empty(self.sizes.pop(0)) == self.filled.pop(0)
        self.emptied += 1

    @precondition(lambda self: self.emptied)
    @rule(data=st.data())
    def credit(self, data):
        count = data.draw(st.integers(1, self.emptied))
        self.sender.credit(count)
        self.emptied -= count

    @rule(more=st.integers(1, 100))
    def claim_too_much(self, more):
        free = self.sender.free
        with pytest.raises(RemoteProtocolError, match="came back"):
            self.sender.credit(self.shape.count - free + more)
        assert self.sender.free == free

    @invariant()
    def every_chunk_is_somewhere(self):
        if hasattr(self, "sender"):
            assert self.sender.free + len(self.filled) + self.emptied == self.shape.count


TestTurns = Turns.TestCase


@given(st.integers(1, 1 << 40), shapes)
def test_no_more_marks_are_read_at_once_than_there_can_be(size, shape):
    pieces = Incoming(shape, of_client=True).pieces(size)
    assert 1 <= pieces <= shape.count
    assert (pieces - 1) * shape.chunk < size


@settings(deadline=None)
@given(shapes, st.lists(st.integers(1, 1 << 22), min_size=1, max_size=3), st.integers(0, 2**32))
def test_marks_and_credits_that_go_in_groups_never_leave_both_ends_waiting(shape, segments, seed):
    """Whichever end is faster; and after each segment all chunks are the sender's again."""
    random = Random(seed)
    sender, receiver = Outgoing(shape, of_client=True), Incoming(shape, of_client=True)
    for size in segments:
        unsent = unread = size
        marks = credits = 0
        while unread:
            steps = [
                name
                for name, can in (("fill", unsent and sender.free), ("take", marks), ("credit", credits))
                if can
            ]
            assert steps, "nobody can go on"
            match random.choice(steps):
                case "fill":
                    done = 0
                    while not done or sender.joins(done, unsent):
                        span = sender.fill(unsent)
                        unsent -= span.stop - span.start
                        done += 1
                    assert done <= max(shape.count // 2, 1)
                    marks += done
                case "take":
                    span = receiver.empty(unread)
                    unread -= span.stop - span.start
                    marks -= 1
                    credits += receiver.emptied(unread)
                case "credit":
                    sender.credit(credits)
                    credits = 0
        sender.credit(credits)
        assert sender.free == shape.count


# -- which parts of a frame go through the ring -------------------------------------------------------------------


class Loop:
    """A ring whose both ends are here: what is put in comes out."""

    def __init__(self, chunk=65_536, count=3):
        shape = Shape(chunk, count)
        self.memory = bytearray(shape.size)
        self.sender = Outgoing(shape, of_client=True)
        self.receiver = Incoming(shape, of_client=True)

    def put(self, view):
        span = self.sender.fill(len(view))
        size = span.stop - span.start
        self.memory[span] = view[:size]
        return size

    def pieces(self, size):
        return self.receiver.pieces(size)

    def take(self, target):
        span = self.receiver.empty(len(target))
        size = span.stop - span.start
        target[:size] = self.memory[span]
        self.sender.credit(1)
        return size


def travel(buffers, reader, loop, cut=lambda data: [data]):
    """Bring diverted frames to a reader, as a connection does."""
    frames = []
    for item in divert(buffers):
        if not isinstance(item, Part):
            for piece in cut(bytes(item)):
                frames += reader.receive_data(piece)
            continue
        while len(item):
            item.view = item.view[loop.put(item.view) :]
            frames += reader.receive_data(MARK)
    return frames


def through(loop):
    reader = FrameReader()
    reader.ring = loop
    return reader


sizes = st.lists(st.sampled_from([0, 1, LEAST - 1, LEAST, LEAST + 1, 2 * LEAST]), max_size=3)


@settings(max_examples=25, deadline=None)
@given(st.lists(sizes, min_size=1, max_size=2), st.integers(1, 5), st.integers(0, 2**32))
def test_frames_arrive_as_they_would_without_a_ring(some, chunks, seed):
    random = Random(seed)
    loop = Loop(65_536 * chunks)
    sent, expected = [], []
    for number, lengths in enumerate(some):
        parts = [random.randbytes(length) for length in (10, *lengths)]
        parts = [bytearray(part) if random.random() < 0.3 else part for part in parts]
        frame = encode_payload(FrameType.FUNCTION, parts, seq=number)
        sent += frame + encode_frame(FrameType.RECALL, count=number)
        expected += FrameReader().receive_data(b"".join(frame)) + [Frame(FrameType.RECALL, count=number)]

    def cut(data):
        place = random.randrange(len(data) + 1)
        return [piece for piece in (data[:place], data[place:]) if piece]

    frames = travel(sent, through(loop), loop, cut)

    assert [frame[:5] for frame in frames] == [frame[:5] for frame in expected]
    for frame, other in zip(frames, expected, strict=True):
        assert [type(segment) for segment in frame.segments] == [type(segment) for segment in other.segments]
        assert [bytes(segment) for segment in frame.segments] == [bytes(segment) for segment in other.segments]
    assert loop.sender.free == 3


def test_a_large_body_is_not_a_segment_and_stays_on_the_lane():
    body = bytes(2 * LEAST)
    assert divert(encode_frame(FrameType.TASKS, count=1, body=body)) == encode_frame(
        FrameType.TASKS, count=1, body=body
    )


def test_a_frame_without_large_segments_is_left_alone():
    frame = encode_payload(FrameType.FUNCTION, (b"pickle", bytes(LEAST - 1)))
    assert divert(frame) == frame


def test_a_table_in_a_body_of_its_own_buffer_is_found():
    parts = [b"pickle", *[b""] * (BULK_THRESHOLD // 8), bytes(LEAST)]
    frame = encode_payload(FrameType.FUNCTION, parts)
    assert len(frame[0]) == 16
    loop = Loop(1 << 20)
    (received,) = travel(frame, through(loop), loop)
    assert len(received.segments) == len(parts)
    assert is_large(received)


def test_a_ring_where_there_is_none_is_an_error():
    (head, *_) = divert(encode_payload(FrameType.FUNCTION, (b"pickle", bytes(LEAST))))
    with pytest.raises(RemoteProtocolError, match="a ring where there is none"):
        FrameReader().receive_data(bytes(head))
    for kind in (FrameType.FUNCTION, FrameType.TASKS):
        with pytest.raises(RemoteProtocolError, match="a ring where there is none"):
            through(Loop()).receive_data(struct.pack("<IBBHQ", 0, kind, RING, 0, 0))
    with pytest.raises(RemoteProtocolError, match="with flags"):
        through(Loop()).receive_data(struct.pack("<IBBHQ", 0, FrameType.ACK, RING | BULK, 0, 0))


@pytest.mark.parametrize("mark", [b"\0", b"+", b"..x", b"\xff" * 4])
def test_anything_but_a_mark_where_one_is_due_is_an_error(mark):
    reader = through(Loop())
    (head, pickle, _) = divert(encode_payload(FrameType.FUNCTION, (b"pickle", bytes(4 * LEAST))))
    assert reader.receive_data(bytes(head) + bytes(pickle)) == []
    with pytest.raises(RemoteProtocolError, match="without the marks"):
        reader.receive_data(mark)


@given(st.binary(max_size=64), st.integers(1, 3))
def test_whatever_follows_a_head_with_a_ring_is_frames_or_an_error(garbage, segments):
    reader = through(Loop())
    sizes = [LEAST + 1] * segments
    body = struct.pack(f"<I{segments}Q", segments, *sizes)
    stream = b"".join(encode_frame(FrameType.FUNCTION, flags=BULK | RING, count=1, body=body))
    try:
        for frame in reader.receive_data(stream + garbage):
            assert all(type(segment) is memoryview for segment in frame.segments)
    except RemoteProtocolError:
        pass
