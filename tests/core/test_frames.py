"""The frames: what is written is read, in any pieces; what was never written is refused."""

from __future__ import annotations

import array
import random
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from items import Result, TaskItem
from skipped import without_skipped
from strategies import (
    EVERY_BYTE,
    Cuts,
    Memory,
    bulk_payloads,
    cuts,
    feed,
    frames,
    joined,
    mutated,
    payloads,
    plain_frames,
    results,
    small_payloads,
    task_items,
    u16,
    u32,
    u64,
)

from farm_executor.core.batches import (
    MAX_BATCH_BYTES,
    decode_results,
    decode_results_together,
    decode_tasks,
    decode_tasks_together,
    encode_results,
    encode_results_together,
    encode_tasks,
    encode_tasks_together,
    fit_together,
)
from farm_executor.core.frames import (
    BULK,
    BULK_THRESHOLD,
    ERROR,
    FRAMES,
    HEADER_SIZE,
    MAX_BODY,
    MAX_COUNT,
    MAX_HELLO,
    MAX_SEGMENT,
    MAX_SEGMENTS,
    ONCE,
    OPTIONAL,
    RING,
    TOGETHER,
    Buffer,
    Frame,
    FrameType,
    Kind,
    Payload,
    Reference,
    decode_number,
    encode_frame,
    encode_payload,
    is_bulk,
    payload_of,
    payload_size,
)
from farm_executor.core.reader import FrameReader
from farm_executor.errors import LocalProtocolError, RemoteProtocolError

# Examples take as long as a busy machine makes them; how many there are is the profile's to say.
unhurried = settings(deadline=None)

seqs = st.integers(0, 2**64 - 1 - 100)  # with room for a hundred items
kinds = st.sampled_from(FrameType)
bulk_kinds = st.sampled_from([kind for kind, meaning in FRAMES.items() if meaning.flags & BULK])


def read(parts: list[Buffer]) -> list[Frame]:
    """The frames of a stream that must be whole."""
    reader = FrameReader()
    out = reader.receive_data(joined(parts))
    assert not reader.mid_frame
    assert reader.destination is None
    return out


def encoded(frame: Frame) -> bytes:
    return joined(
        encode_frame(
            frame.type,
            flags=frame.flags,
            count=frame.count,
            seq=frame.seq,
            body=frame.body,
            segments=frame.segments,
        )
    )


def plain(payload: Payload) -> tuple[bytes, ...]:
    return tuple(bytes(memoryview(part).cast("B")) for part in payload)


def tasks_in(parts: list[Buffer]) -> list[tuple[int, int, tuple[bytes, ...]]]:
    """Every task of a stream as its number, its function, its payload."""
    out = []
    for frame in read(parts):
        assert frame.type is FrameType.TASKS
        items = decode_tasks(frame)
        assert len(items) == frame.count
        out += [(frame.seq + i, function, plain(payload)) for i, (function, payload) in enumerate(items)]
    return out


def results_in(parts: list[Buffer]) -> tuple[int, list[tuple[int, bool, tuple[bytes, ...]]]]:
    """The busy time of a stream, and every outcome as its number, whether it is an error, its payload."""
    out = []
    total = 0
    for frame in read(parts):
        assert frame.type is FrameType.RESULTS
        busy, items = decode_results(frame)
        assert len(items) == frame.count
        total += busy
        out += [(frame.seq + i, error, plain(payload)) for i, (payload, error) in enumerate(items)]
    return total, out


# -- round trips --------------------------------------------------------------------------------------------


@unhurried
@given(frames)
def test_a_frame_is_read_as_it_was_encoded(frame: Frame) -> None:
    assert read([encoded(frame)]) == [frame]


def test_the_header_is_laid_out_as_documented() -> None:
    parts = encode_frame(FrameType.TASKS, flags=ONCE, count=0x0203, seq=0x0405060708090A0B, body=b"body")
    assert joined(parts) == bytes.fromhex("04000000 13 04 0302 0b0a090807060504") + b"body"
    assert HEADER_SIZE == 16


def test_the_numbers_on_the_wire_are_the_documented_ones() -> None:
    assert {kind.name: kind.value for kind in FrameType} == {
        "HELLO": 1,
        "REFUSED": 2,
        "BYE": 3,
        "PING": 4,
        "PONG": 5,
        "INIT": 16,
        "FUNCTION": 17,
        "FORGET": 18,
        "TASKS": 19,
        "RECALL": 20,
        "ACK": 21,
        "RESUME": 22,
        "MODULES": 23,
        "MODULE": 24,
        "CALL_HEADER": 25,
        "RINGED": 26,
        "PIECE": 27,
        "READY": 32,
        "RESULTS": 33,
        "RECALLED": 34,
        "RESUMED": 35,
        "WANTED": 36,
        "ITEMS": 37,
        "WORKER_DIED": 48,
        "DRAINING": 49,
        "KILL": 50,
        "SPARED": 51,
        "STOP": 144,
        "DETAILS": 145,
        "LEVELS": 146,
        "CREDIT": 147,
        "UNSHARE": 148,
        "PACKAGES": 160,
        "MARKS": 161,
        "REPORT": 162,
        "ABOUT": 163,
        "RECORDS": 164,
        "LACKING": 165,
        "OUTPUT": 176,
        "HEARD": 177,
        "SHARE": 178,
        "SHARED": 179,
    }
    assert (BULK, ERROR, ONCE, TOGETHER, RING) == (1, 2, 4, 8, 16)
    assert (MAX_HELLO, MAX_BODY, BULK_THRESHOLD, MAX_BATCH_BYTES) == (2**16, 2**22, 2**16, 2**20)
    assert (MAX_COUNT, MAX_SEGMENTS, MAX_SEGMENT) == (2**16 - 1, 2**16, 2**46)


def test_a_frame_of_which_nothing_is_said_has_nothing() -> None:
    nothing = Frame(FrameType.BYE, flags=0, count=0, seq=0, body=b"", segments=())
    assert read(encode_frame(FrameType.BYE)) == [nothing] == [Frame(FrameType.BYE)]
    (frame,) = read(encode_payload(FrameType.INIT, (b"pickle",)))
    assert frame == Frame(FrameType.INIT, flags=0, count=1, seq=0, body=b"pickle", segments=())
    assert plain(payload_of(frame)) == (b"pickle",)


def test_batches_are_laid_out_as_documented() -> None:
    (frame,) = read(encode_tasks(0, [TaskItem(7, (b"ab",)), TaskItem(8, (b"",))]))
    assert frame.body == struct.pack("<4I", 7, 8, 2, 0) + b"ab"
    (frame,) = read(encode_results(0, [Result((b"ab",), error=True), Result((b"",))], 5))
    assert frame.body == struct.pack("<3I", 5, 2 | 1 << 31, 0) + b"ab"
    (frame,) = read(encode_tasks(0, [TaskItem(7, (b"ab", memoryview(b"-c")[1:]))]))
    assert frame.body == struct.pack("<I2QI", 2, 2, 1, 7)
    (frame,) = read(encode_results(0, [Result((b"ab", b"c", bytearray(b"d")), error=True)], 5))
    assert frame.flags == BULK | ERROR
    assert frame.body == struct.pack("<I3QI", 3, 2, 1 | 1 << 62, 1 | 2 << 62, 5)


@unhurried
@given(seqs, st.lists(task_items, max_size=12))
def test_tasks_are_read_as_they_were_encoded(seq: int, items: list[TaskItem]) -> None:
    expected = [(seq + i, item.function, plain(item.payload)) for i, item in enumerate(items)]
    assert tasks_in(encode_tasks(seq, items)) == expected


@unhurried
@given(seqs, st.lists(results, max_size=12), u32)
def test_results_are_read_as_they_were_encoded(seq: int, items: list[Result], busy: int) -> None:
    total, got = results_in(encode_results(seq, items, busy))
    assert got == [(seq + i, item.error, plain(item.payload)) for i, item in enumerate(items)]
    assert total == (busy if items else 0), "the busy time is told once, however many frames there are"


@unhurried
@given(bulk_kinds, payloads, u64, st.sampled_from([0, ERROR]), st.binary(max_size=9))
def test_a_payload_is_read_as_it_was_encoded(
    kind: FrameType, payload: Payload, seq: int, flags: int, prefix: bytes
) -> None:
    flags &= FRAMES[kind].flags
    (frame,) = read(encode_payload(kind, payload, seq=seq, flags=flags, prefix=prefix))
    assert (frame.type, frame.seq, frame.count, frame.flags & ERROR) == (kind, seq, 1, flags)
    assert plain(payload_of(frame, len(prefix))) == plain(payload)
    assert bytes(frame.body).endswith(prefix) if is_bulk(payload) else bytes(frame.body).startswith(prefix)


@unhurried
@given(payloads)
def test_payload_size_counts_the_bytes_that_travel(payload: Payload) -> None:
    assert payload_size(payload) == len(joined(list(payload)))


@unhurried
@given(st.lists(st.builds(TaskItem, u32, small_payloads), min_size=1, max_size=30), seqs)
def test_small_tasks_travel_in_one_frame(items: list[TaskItem], seq: int) -> None:
    (frame,) = read(encode_tasks(seq, items))
    assert (frame.count, frame.seq, frame.flags) == (len(items), seq, 0)


@unhurried
@given(bulk_payloads, u32)
def test_a_bulk_payload_is_sent_without_a_copy(payload: Payload, function: int) -> None:
    parts = encode_tasks(0, [TaskItem(function, payload)])
    assert [id(part) for part in parts[1:]] == [id(part) for part in payload]


@unhurried
@given(u32)
def test_a_number_is_read_as_it_was_encoded(number: int) -> None:
    (frame,) = read(encode_frame(FrameType.FORGET, body=struct.pack("<I", number)))
    assert decode_number(frame) == number


def test_no_tasks_and_no_results_are_no_frames() -> None:
    assert encode_tasks(0, []) == []
    assert encode_results(0, [], 0) == []


# -- limits at their edges ----------------------------------------------------------------------------------


def test_the_threshold_is_where_bulk_begins() -> None:
    small, bulk = TaskItem(1, (bytes(BULK_THRESHOLD - 1),)), TaskItem(2, (bytes(BULK_THRESHOLD),))
    assert not is_bulk(small.payload)
    assert is_bulk(bulk.payload)
    first, second, third = read(encode_tasks(5, [small, bulk, small]))
    assert (first.seq, second.seq, third.seq) == (5, 6, 7)
    assert [frame.flags for frame in (first, second, third)] == [0, BULK, 0]
    assert [memoryview(part).nbytes for part in second.segments] == [BULK_THRESHOLD]
    assert decode_tasks(first) + decode_tasks(second) + decode_tasks(third) == [small, bulk, small]


@pytest.mark.parametrize("count", [MAX_COUNT, MAX_COUNT + 1])
def test_a_batch_holds_as_many_items_as_the_header_can_count(count: int) -> None:
    tasks = read(encode_tasks(7, [TaskItem(3, (b"",))] * count))
    assert [frame.count for frame in tasks] == [MAX_COUNT, count - MAX_COUNT][: 1 + (count > MAX_COUNT)]
    assert [frame.seq for frame in tasks] == [7, 7 + MAX_COUNT][: len(tasks)]
    assert sum(len(decode_tasks(frame)) for frame in tasks) == count
    outcomes = read(encode_results(7, [Result((b"",))] * count, 9))
    assert [decode_results(frame)[0] for frame in outcomes] == [9, 0][: len(tasks)]
    assert sum(len(decode_results(frame)[1]) for frame in outcomes) == count


def test_a_batch_of_many_bytes_is_split_and_every_frame_is_within_the_limit() -> None:
    items = [TaskItem(i, (bytes([i]) * (BULK_THRESHOLD - 1),)) for i in range(50)]
    tasks = read(encode_tasks(0, items))
    assert len(tasks) > 1
    assert [item for frame in tasks for item in decode_tasks(frame)] == items
    for frame in tasks:
        assert len(frame.body) <= MAX_BATCH_BYTES + 2 * BULK_THRESHOLD
    outcomes = read(encode_results(0, [Result(item.payload) for item in items], 1))
    assert len(outcomes) == len(tasks)


def test_the_largest_batch_that_the_rules_allow_is_within_the_limit_of_a_body() -> None:
    longest = MAX_BATCH_BYTES // (MAX_COUNT - 1)
    items = [TaskItem(0, (bytes(longest),))] * (MAX_COUNT - 1) + [TaskItem(0, (bytes(BULK_THRESHOLD - 1),))]
    (frame,) = read(encode_tasks(0, items))
    assert len(frame.body) <= MAX_BODY


def test_a_long_body_is_sent_without_a_copy_and_a_short_one_with_its_header() -> None:
    body = bytes(BULK_THRESHOLD + 1)
    assert encode_frame(FrameType.INIT, body=body)[1] is body
    assert len(encode_frame(FrameType.INIT, body=body[:-1])) == 1


def test_a_body_of_the_limit_passes_and_a_longer_one_is_our_error() -> None:
    (frame,) = read(encode_frame(FrameType.INIT, body=bytes(MAX_BODY)))
    assert len(frame.body) == MAX_BODY
    with pytest.raises(LocalProtocolError):
        encode_frame(FrameType.INIT, body=bytes(MAX_BODY + 1))


@pytest.mark.parametrize("count", [-1, MAX_COUNT + 1])
def test_a_count_beyond_the_header_is_our_error(count: int) -> None:
    with pytest.raises(LocalProtocolError):
        encode_frame(FrameType.TASKS, count=count)


def test_as_many_segments_as_the_limit_pass_and_one_more_is_our_error() -> None:
    payload = [b"", *[b"x"] * (MAX_SEGMENTS - 1)]
    (frame,) = read(encode_payload(FrameType.INIT, payload))
    assert plain(payload_of(frame)) == tuple(payload)
    with pytest.raises(LocalProtocolError):
        encode_payload(FrameType.INIT, [*payload, b""])


@pytest.mark.parametrize("limit", [MAX_HELLO, MAX_BODY])
def test_a_body_too_long_is_refused_when_its_header_is_whole_and_not_later(limit: int) -> None:
    def header(length: int) -> bytes:
        return struct.pack("<IBBHQ", length, FrameType.HELLO, 0, 0, 0)

    reader = FrameReader(max_body=limit)
    assert reader.receive_data(header(limit)) == []
    assert reader.mid_frame
    reader = FrameReader(max_body=limit)
    assert feed(reader, EVERY_BYTE(header(limit + 1)[:-1])) == []
    with pytest.raises(RemoteProtocolError, match=str(limit)):
        reader.receive_data(header(limit + 1)[-1:])


def test_the_limit_of_bodies_can_be_raised_between_two_frames() -> None:
    """A connection begins with the limit of a hello."""
    reader = FrameReader(max_body=MAX_HELLO)
    (hello,) = reader.receive_data(joined(encode_frame(FrameType.HELLO, body=bytes(MAX_HELLO))))
    assert len(hello.body) == MAX_HELLO
    reader.max_body = MAX_BODY
    (frame,) = reader.receive_data(joined(encode_frame(FrameType.INIT, body=bytes(MAX_HELLO + 1))))
    assert len(frame.body) == MAX_HELLO + 1


def test_busy_time_stays_within_its_field() -> None:
    assert results_in(encode_results(0, [Result((b"",))], 2**40)) == (2**32 - 1, [(0, False, (b"",))])
    assert results_in(encode_results(0, [Result((b"", b""))], 2**40)) == (2**32 - 1, [(0, False, (b"", b""))])


def test_an_error_of_the_largest_small_size_is_told_from_a_value() -> None:
    payload = (bytes(BULK_THRESHOLD - 1),)
    _, got = results_in(encode_results(0, [Result(payload, error=True), Result(payload)], 0))
    assert [error for _, error, _ in got] == [True, False]


# -- in any pieces ------------------------------------------------------------------------------------------


@unhurried
@given(st.lists(frames, max_size=6), cuts, st.randoms())
def test_any_chunking_gives_the_same_frames(sent: list[Frame], cut: Cuts, whim: random.Random) -> None:
    """Also through `destination`, now and then."""
    stream = b"".join(map(encoded, sent))
    reader = FrameReader()
    assert feed(reader, cut(stream), lambda: whim.choice([True, False])) == sent
    assert not reader.mid_frame


@unhurried
@given(st.lists(frames, min_size=1, max_size=4))
def test_one_byte_at_a_time_each_frame_comes_with_its_last_byte(sent: list[Frame]) -> None:
    reader = FrameReader()
    for frame in sent:
        *before, last = EVERY_BYTE(encoded(frame))
        assert feed(reader, iter(before)) == []
        assert reader.receive_data(last) == [frame]


@unhurried
@given(frames, st.sampled_from([True, False]))
def test_a_truncated_stream_shows(frame: Frame, straight: bool) -> None:
    reader = FrameReader()
    assert not reader.mid_frame
    for byte in EVERY_BYTE(encoded(frame)[:-1]):
        assert feed(reader, iter([byte]), lambda: straight) == []
        assert reader.mid_frame
    feed(reader, iter([encoded(frame)[-1:]]), lambda: straight)
    assert not reader.mid_frame


def test_large_segments_go_straight_into_their_own_memory() -> None:
    payload = (b"pickle", b"", bytes(range(256)) * 1024, b"", b"y" * BULK_THRESHOLD)
    head, *_ = encode_payload(FrameType.READY, payload)
    memory = Memory()
    reader = FrameReader(allocate=memory)
    assert reader.receive_data(head) == []
    out: list[Frame] = []
    for part in (part for part in payload if part):
        destination = reader.destination
        assert destination is not None
        assert len(destination) == len(part)
        destination[:] = part
        out += reader.received_into(len(part))
    assert [plain(payload_of(frame)) for frame in out] == [payload]
    assert memory.asked == [len(part) for part in payload if part]


@unhurried
@given(
    st.lists(
        st.sampled_from([bytes, bytearray, memoryview]).flatmap(lambda kind: st.binary().map(kind)), min_size=1
    ),
    cuts,
)
def test_a_segment_is_received_as_what_it_was(parts: list[Buffer], cut: Cuts) -> None:
    (frame,) = feed(FrameReader(), cut(joined(encode_payload(FrameType.READY, (b"pickle", *parts)))))
    _, *got = payload_of(frame)
    assert got == parts
    assert [type(part) for part in got] == [bytes if type(part) is memoryview else type(part) for part in parts]


@pytest.mark.parametrize("part", [memoryview(bytes(4))[:3], memoryview(bytearray(4))[1:], array.array("B", b"123")])
def test_a_part_of_bytes_is_received_as_memory(part: Buffer) -> None:
    (frame,) = read(encode_payload(FrameType.READY, (b"pickle", part)))
    (_, got) = payload_of(frame)
    assert isinstance(got, memoryview)
    assert not got.readonly


@given(st.lists(st.integers(0, 2**62 - 1), min_size=1, max_size=5), cuts)
def test_references_arrive_in_place_of_the_buffers_that_they_stand_for(numbers: list[int], cut: Cuts) -> None:
    parts: list[Buffer] = [b"pickle"]
    for number in numbers:
        parts += [Reference.to(number), b"sent"]
    ((_, got),) = decode_tasks(*feed(FrameReader(), cut(joined(encode_tasks(3, [(7, parts)])))))

    assert list(got) == parts
    assert [part.number for part in got if type(part) is Reference] == numbers


@pytest.mark.parametrize("kind", [kind for kind in FrameType if FRAMES[kind].flags & BULK])
@pytest.mark.parametrize("place", [0, 1])
def test_references_are_those_of_tasks_and_never_a_pickle(kind: FrameType, place: int) -> None:
    entries = [0, 0]
    entries[place] = 5 | Kind.REFERENCE << 62
    buffers = encode_frame(kind, flags=BULK, count=1, body=struct.pack("<I2QI", 2, *entries, 0))
    if kind is FrameType.TASKS and place:
        assert len(read(buffers)) == 1
    else:
        with pytest.raises(RemoteProtocolError, match="a reference where there can be none"):
            read(buffers)


def test_references_do_not_count_as_bytes_that_are_promised() -> None:
    reference = (2**62 - 1) | Kind.REFERENCE << 62
    assert read(encode_frame(FrameType.TASKS, flags=BULK, body=struct.pack("<I2Q", 2, 0, reference)))
    with pytest.raises(RemoteProtocolError, match=f"promises {MAX_SEGMENT + 1} bytes"):
        read(encode_frame(FrameType.TASKS, flags=BULK, body=struct.pack("<I3Q", 3, 1, reference, MAX_SEGMENT)))


@pytest.mark.parametrize("kind", [Kind.MEMORY, Kind.BYTES, Kind.BYTEARRAY])
def test_an_empty_segment_has_its_kind(kind: Kind) -> None:
    (frame,) = read(encode_frame(FrameType.READY, flags=BULK, count=1, body=struct.pack("<IQ", 1, kind << 62)))
    assert type(frame.segments[0]) is {Kind.BYTES: bytes, Kind.BYTEARRAY: bytearray}.get(kind, memoryview)


def test_received_into_without_a_destination_is_our_error() -> None:
    with pytest.raises(LocalProtocolError):
        FrameReader().received_into(1)


def test_received_into_beyond_the_destination_is_our_error() -> None:
    head, *_ = encode_payload(FrameType.READY, (b"12", b"34"))
    reader = FrameReader()
    reader.receive_data(head)
    with pytest.raises(LocalProtocolError):
        reader.received_into(3)


# -- garbage ------------------------------------------------------------------------------------------------


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """A frame whose header is of the right form, and whose fields and table are whatever they are."""
    body = draw(st.binary(max_size=40))
    length = draw(st.one_of(st.just(len(body)), st.just(len(body)), st.integers(0, 60), u32))
    if draw(st.booleans()):
        body = struct.pack("<IQ", draw(st.integers(0, 3)), draw(st.integers(0, 50) | u64)) + body
    kind = draw(st.one_of(kinds, kinds, st.integers(0, 255)))
    flags = draw(st.one_of(st.integers(0, 3), st.integers(0, 255)))
    return struct.pack("<IBBHQ", length, kind, flags, draw(st.integers(0, 3)), draw(u64)) + body


garbage = st.one_of(
    st.binary(max_size=200),
    st.lists(headers(), min_size=1, max_size=3).map(b"".join),
    st.lists(frames, min_size=1, max_size=3).map(lambda sent: b"".join(map(encoded, sent))).flatmap(mutated),
)


def read_garbage(stream: bytes, cut: Cuts = EVERY_BYTE) -> tuple[list[Frame], FrameReader, bool]:
    """What a reader makes of the bytes, and whether it refused them in the end."""
    reader = FrameReader(max_body=1000, allocate=Memory())
    out: list[Frame] = []
    try:
        for piece in cut(stream):
            out += reader.receive_data(piece)
    except RemoteProtocolError:
        return out, reader, True
    return out, reader, False


@unhurried
@given(garbage)
@example(b"GET / HTTP/1.1\r\nHost: farm\r\n\r\n")
@example(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(100)))
def test_garbage_is_refused_or_encodes_back_to_the_same_bytes(stream: bytes) -> None:
    got, reader, refused = read_garbage(stream)
    again = b"".join(map(encoded, got))
    rest = without_skipped(stream)
    assert rest.startswith(again)
    if not refused:
        assert reader.mid_frame == (again != rest)


@unhurried
@given(garbage, cuts)
def test_garbage_is_judged_alike_in_any_pieces(stream: bytes, cut: Cuts) -> None:
    """What came in the same piece as what is refused is not handed out: the connection ends anyway."""
    expected, _, refused = read_garbage(stream)
    got, _, refused_too = read_garbage(stream, cut)
    assert refused_too == refused
    assert got == expected[: len(got)] if refused else got == expected


@unhurried
@given(garbage, cuts)
def test_memory_is_taken_segment_by_segment_and_within_what_was_promised(stream: bytes, cut: Cuts) -> None:
    memory = Memory(limit=1 << 16)
    reader = FrameReader(allocate=memory)
    received = 0
    try:
        for piece in cut(stream):
            received += len(piece)
            reader.receive_data(piece)
            # All but the newest segment are full of bytes that really came.
            assert sum(memory.asked[:-1]) <= received
            assert sum(memory.asked) <= MAX_SEGMENT
    except RemoteProtocolError:
        pass


@pytest.mark.parametrize(
    ("n", "sizes"),
    [
        pytest.param(0, [], id="no segments"),
        pytest.param(2, [1], id="more segments than sizes"),
        pytest.param(2**32 - 1, [1], id="four thousand million segments"),
        pytest.param(MAX_SEGMENTS + 1, [0] * (MAX_SEGMENTS + 1), id="one segment too many"),
        pytest.param(1, [MAX_SEGMENT + 1], id="a segment too large"),
        pytest.param(1, [2**64 - 1], id="a segment of all that 64 bits can say"),
        pytest.param(2, [MAX_SEGMENT, 1], id="segments too large together"),
    ],
)
def test_a_table_beyond_the_limits_takes_no_memory(n: int, sizes: list[int]) -> None:
    memory = Memory()
    body = struct.pack(f"<I{len(sizes)}Q", n, *sizes)
    with pytest.raises(RemoteProtocolError):
        FrameReader(allocate=memory).receive_data(joined(encode_frame(FrameType.TASKS, flags=BULK, body=body)))
    assert memory.asked == []


def test_a_bulk_frame_without_a_table_is_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        FrameReader().receive_data(joined(encode_frame(FrameType.TASKS, flags=BULK, body=b"\1\0\0")))


@pytest.mark.parametrize("size", [MAX_SEGMENT, 1 << 30])
def test_a_segment_for_which_there_is_no_memory_ends_the_connection_and_nothing_else(size: int) -> None:
    memory = Memory()
    body = struct.pack("<IQ", 1, size)
    with pytest.raises(RemoteProtocolError, match=str(size)):
        FrameReader(allocate=memory).receive_data(joined(encode_frame(FrameType.TASKS, flags=BULK, body=body)))
    assert memory.asked == [size]


@pytest.mark.parametrize("kind", [0, 6, 127])
def test_an_unknown_essential_type_is_refused_by_its_header(kind: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"unknown type {kind}, which cannot be skipped: .* version"):
        FrameReader().receive_data(struct.pack("<IBBHQ", 1000, kind, 0, 0, 0))


UNKNOWN = st.sampled_from([kind for kind in range(OPTIONAL, 256) if kind not in set(FrameType)])


@unhurried
@given(st.lists(frames | st.tuples(UNKNOWN, st.integers(0, 127), u16, u64, st.binary(max_size=80))), cuts)
def test_an_unknown_optional_frame_is_skipped_whatever_it_says(sent: list[Any], cut: Cuts) -> None:
    stream = b""
    for item in sent:
        if isinstance(item, Frame):
            stream += encoded(item)
        else:
            kind, flags, count, seq, body = item
            stream += struct.pack("<IBBHQ", len(body), kind, 2 * flags, count, seq) + body
    reader = FrameReader()
    got = [frame for piece in cut(stream) for frame in reader.receive_data(piece)]
    assert got == [item for item in sent if isinstance(item, Frame)]
    assert not reader.mid_frame


def test_an_unknown_optional_frame_has_the_limit_of_any_other_and_no_segments() -> None:
    with pytest.raises(RemoteProtocolError, match="type 255 frame of 1001 bytes; the limit is 1000"):
        FrameReader(max_body=1000).receive_data(struct.pack("<IBBHQ", 1001, 255, 0, 0, 0))
    with pytest.raises(RemoteProtocolError, match="unknown type 255, optional but with segments"):
        FrameReader().receive_data(struct.pack("<IBBHQ", 12, 255, BULK, 0, 0))


def test_every_type_is_in_the_table_and_an_optional_one_has_no_segments() -> None:
    assert list(FRAMES) == list(FrameType)
    assert not [kind for kind, meaning in FRAMES.items() if kind & OPTIONAL and meaning.flags & BULK]


@pytest.mark.parametrize("kind", FrameType)
def test_a_flag_that_the_table_does_not_give_the_type_is_refused(kind: FrameType) -> None:
    for flag in (1 << bit for bit in range(8)):
        if not FRAMES[kind].flags & flag:
            with pytest.raises(RemoteProtocolError, match=f"{kind.name} frame with flags {flag}"):
                FrameReader().receive_data(struct.pack("<IBBHQ", 0, kind, flag, 0, 0))


@pytest.mark.parametrize("flags", [16, 24, 128, 255])
def test_an_unknown_flag_is_refused(flags: int) -> None:
    with pytest.raises(RemoteProtocolError):
        FrameReader().receive_data(struct.pack("<IBBHQ", 0, FrameType.BYE, flags, 0, 0))


def test_frames_that_came_whole_before_garbage_are_handed_out_when_they_came_alone() -> None:
    reader = FrameReader()
    frame = Frame(FrameType.BYE, seq=3)
    assert reader.receive_data(encoded(frame)) == [frame]
    with pytest.raises(RemoteProtocolError):
        reader.receive_data(bytes(HEADER_SIZE))


@unhurried
@given(frames)
@example(Frame(FrameType.TASKS))
@example(Frame(FrameType.TASKS, count=0xFFFF))
@example(Frame(FrameType.TASKS, count=1, body=struct.pack("<II", 0, 2**32 - 1)))
@example(Frame(FrameType.RESULTS, count=1, body=struct.pack("<II", 0, 2**31)))
@example(Frame(FrameType.TASKS, BULK, 1, 0, struct.pack("<IQ", 1, 1), (b"x",)))
@example(Frame(FrameType.TASKS, BULK, 1, 0, struct.pack("<IQ", 1, 1) + b"12345", (b"x",)))
def test_a_body_of_any_bytes_is_decoded_or_refused(frame: Frame) -> None:
    decoders: list[Callable[[Frame], object]] = [
        decode_tasks,
        decode_results,
        decode_number,
        decode_tasks_together,
        decode_results_together,
    ]
    for decode in decoders:
        try:
            decode(frame)
        except RemoteProtocolError:
            pass


@pytest.mark.parametrize(
    ("count", "table", "rest"),
    [
        pytest.param(1, [0, 3], b"12", id="a part longer than the body"),
        pytest.param(1, [0, 1], b"12", id="bytes left over"),
        pytest.param(2, [0, 1], b"", id="a table shorter than its count"),
        pytest.param(0, [], b"", id="nothing"),
        pytest.param(0, [], b"12345678", id="nothing in some bytes"),
        pytest.param(0, [5], b"", id="a busy time and nothing"),
    ],
)
def test_a_batch_whose_table_does_not_fit_its_body_is_refused(count: int, table: list[int], rest: bytes) -> None:
    body = struct.pack(f"<{len(table)}I", *table) + rest
    with pytest.raises(RemoteProtocolError):
        decode_tasks(Frame(FrameType.TASKS, count=count, body=body))
    with pytest.raises(RemoteProtocolError):
        decode_results(Frame(FrameType.RESULTS, count=count, body=body))


@unhurried
@given(plain_frames)
def test_a_batch_that_is_decoded_encodes_back_to_the_same_body(frame: Frame) -> None:
    try:
        items = decode_tasks(frame)
    except RemoteProtocolError:
        pass
    else:
        assert len(items) == frame.count
        assert [again.body for again in read(encode_tasks(frame.seq, items))] == [frame.body]
    try:
        busy, outcomes = decode_results(frame)
    except RemoteProtocolError:
        pass
    else:
        assert len(outcomes) == frame.count
        assert [again.body for again in read(encode_results(frame.seq, outcomes, busy))] == [frame.body]


@unhurried
@given(seqs, st.lists(st.integers(0, 2**32 - 1), min_size=1), st.binary(), st.booleans(), st.integers(0, 2**40))
def test_what_shares_a_pickle_is_read_as_it_was_encoded(
    seq: int, functions: list[int], pickle: bytes, once: bool, busy: int
) -> None:
    (frame,) = read(encode_tasks_together(seq, functions, pickle, once=once))
    assert (frame.type, frame.seq, frame.count) == (FrameType.TASKS, seq, len(functions))
    assert (bool(frame.flags & ONCE), bool(frame.flags & TOGETHER)) == (once, True)
    assert decode_tasks_together(frame) == (tuple(functions), pickle)
    (frame,) = read(encode_results_together(seq, len(functions), pickle, busy))
    assert (frame.type, frame.seq, frame.count, frame.flags) == (FrameType.RESULTS, seq, len(functions), TOGETHER)
    assert decode_results_together(frame) == (min(busy, 2**32 - 1), pickle)


@pytest.mark.parametrize(
    ("count", "size", "fits"),
    [(MAX_COUNT, 1, True), (MAX_COUNT + 1, 1, False), (1, MAX_BATCH_BYTES, True), (1, MAX_BATCH_BYTES + 1, False)],
)
def test_what_fits_together_can_be_encoded(count: int, size: int, fits: bool) -> None:
    assert fit_together(count, bytes(size)) == fits
    if fits:
        assert len(read(encode_tasks_together(0, [1] * count, bytes(size)))) == 1


@pytest.mark.parametrize(
    ("flags", "count", "body"),
    [(0, 0, b""), (0, 0, bytes(8)), (0, 1, bytes(3)), (BULK, 1, struct.pack("<IQI", 1, 1, 0))],
)
def test_what_cannot_be_items_that_share_a_pickle_is_refused(flags: int, count: int, body: bytes) -> None:
    frame = Frame(FrameType.TASKS, TOGETHER | flags, count, 0, body)
    with pytest.raises(RemoteProtocolError):
        decode_tasks_together(frame)
    with pytest.raises(RemoteProtocolError):
        decode_results_together(frame)


@pytest.mark.parametrize("count", [0, 2])
def test_a_bulk_frame_of_other_than_one_item_is_refused(count: int) -> None:
    """Its count would not be that of what it holds."""
    segment = struct.pack("<IQI", 1, 1, 0)
    with pytest.raises(RemoteProtocolError):
        decode_tasks(Frame(FrameType.TASKS, BULK, count, 0, segment, (b"x",)))
    with pytest.raises(RemoteProtocolError):
        decode_results(Frame(FrameType.RESULTS, BULK, count, 0, segment, (b"x",)))


@unhurried
@given(st.lists(task_items, min_size=1, max_size=6), st.booleans())
def test_tasks_that_must_not_run_again_say_so_in_each_frame(items: list[TaskItem], once: bool) -> None:
    for frame in read(encode_tasks(0, items, once=once)):
        assert bool(frame.flags & ONCE) == once
