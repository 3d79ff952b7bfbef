"""What is shared: its layout, and the frames that speak of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm_executor.core.frames import Frame, FrameType, Kind, size_and_kind
from farm_executor.core.reader import FrameReader
from farm_executor.core.sharing import (
    PIECE,
    State,
    decode_answer,
    decode_offer,
    decode_piece,
    encode_answer,
    encode_offer,
    encode_piece,
    layout_of,
    read_layout,
)
from farm_executor.errors import RemoteProtocolError


def received(buffers):
    (frame,) = FrameReader().receive_data(b"".join(buffers))
    return frame


# -- the layout ---------------------------------------------------------------------------------------


@given(st.lists(st.one_of(st.binary(max_size=200), st.binary(max_size=200).map(bytearray)), min_size=1, max_size=9))
def test_parts_are_found_where_they_were_put(parts):
    layout = layout_of([size_and_kind(part) for part in parts], frozen=len(parts) % 2 == 0)
    memory = bytearray(layout.size)
    memory[: len(layout.head)] = layout.head
    for part, place in zip(parts, layout.parts, strict=True):
        memory[place.begin : place.begin + place.size] = part

    found = read_layout(memory)

    assert found == layout
    assert [bytes(memory[begin : begin + size]) for begin, size, _ in found.parts] == parts
    assert all(begin % 64 == 0 for begin, _, _ in found.parts)
    assert [kind for *_, kind in found.parts] == [
        Kind.BYTES if type(part) is bytes else Kind.BYTEARRAY for part in parts
    ]


@given(st.binary(max_size=300))
def test_memory_that_is_no_shared_object_is_refused(memory):
    try:
        layout = read_layout(memory)
    except RemoteProtocolError:
        return
    assert all(begin + size <= len(memory) for begin, size, _ in layout.parts)


@pytest.mark.parametrize(
    "change",
    [
        lambda memory: memory[:-1],
        lambda memory: memory + bytes(64),
        lambda memory: memory[:4],
        lambda memory: b"\x02" + memory[1:],
        lambda memory: memory[:4] + bytes(4) + memory[8:],
        lambda memory: memory[:4] + b"\xff\xff\xff\xff" + memory[8:],
        lambda memory: memory[:15] + b"\xc0" + memory[16:],
        lambda memory: memory[:8] + b"\xff" * 7 + memory[15:],
    ],
)
def test_truncated_and_hostile_memory_is_refused(change):
    layout = layout_of([10, 20], frozen=False)
    memory = layout.head + bytes(layout.size - len(layout.head))
    assert read_layout(memory) == layout

    with pytest.raises(RemoteProtocolError, match="a shared object"):
        read_layout(change(memory))


# -- the frames ---------------------------------------------------------------------------------------


@given(st.integers(0, 2**64 - 1), st.integers(1, 2**46), st.booleans())
def test_an_offer_arrives_as_it_was(number, size, spare):
    assert decode_offer(received(encode_offer(number, size, spare))) == (number, size, spare)


@pytest.mark.parametrize("body", [b"", bytes(8), bytes(7), b"\xff" * 8, bytes(9)])
def test_a_malformed_offer_is_refused(body):
    with pytest.raises(RemoteProtocolError, match="SHARE frame"):
        decode_offer(Frame(FrameType.SHARE, body=body))


@pytest.mark.parametrize("state", State)
def test_an_answer_arrives_as_it_was(state):
    reason = "too large" if state is State.REFUSED else ""

    assert decode_answer(received(encode_answer(7, state, reason))) == (7, state, reason)


@pytest.mark.parametrize("frame", [Frame(FrameType.SHARED, 0, 3), Frame(FrameType.SHARED, 0, State.REFUSED)])
def test_a_malformed_answer_is_refused(frame):
    with pytest.raises(RemoteProtocolError, match="SHARED frame"):
        decode_answer(frame)


def test_a_reason_cannot_control_a_terminal():
    frame = received(encode_answer(7, State.REFUSED, "no\x1b[2Jroom\n" + "x" * 5000))

    _, _, reason = decode_answer(frame)

    assert "\x1b" not in reason
    assert "\n" not in reason
    assert len(reason) <= 500


@pytest.mark.parametrize("length", [1, 1000, 64 * 1024, PIECE])
def test_a_piece_arrives_as_it_was(length):
    data = bytes(range(251)) * (length // 251 + 1)
    number, begin, size, found = decode_piece(received(encode_piece(9, 100, 2 * PIECE, data[:length])))

    assert (number, begin, size, bytes(found)) == (9, 100, 2 * PIECE, data[:length])


@pytest.mark.parametrize(
    "buffers",
    [
        encode_piece(1, 0, 10, b""),
        encode_piece(1, 8, 10, b"abc"),
        encode_piece(1, 0, 2**47, b"abc"),
        encode_piece(1, 0, 2 * PIECE, bytes(PIECE + 1)),
    ],
)
def test_a_piece_beyond_its_object_is_refused(buffers):
    with pytest.raises(RemoteProtocolError, match="PIECE frame"):
        decode_piece(received(buffers))


@given(st.binary(max_size=40))
def test_a_malformed_piece_is_refused(body):
    try:
        _, begin, size, data = decode_piece(Frame(FrameType.PIECE, body=body))
    except RemoteProtocolError:
        return
    assert 0 < len(data) <= size - begin
