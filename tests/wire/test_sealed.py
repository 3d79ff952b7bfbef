"""Seals over sockets: what goes in comes out, however it is cut, and nothing else ever does."""

import contextlib
import itertools
import os
import random
import select
import socket
import threading
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from server.processes import DEADLINE
from strategies import frames, joined

from farm_executor.core.frames import FrameType, encode_frame, encode_payload
from farm_executor.core.seal import CLIENT, MAX_RECORD, RECORD_HEAD, Seal
from farm_executor.wire import sealed
from farm_executor.wire.connection import Connection
from farm_executor.wire.sealed import SealedSocket

pytestmark = pytest.mark.usefixtures("no_leaks")

RECORD = 64 * 1024  # bytes that a sender puts into one record even if it does not know how fast the connection is
SECRET = b"what the handshake has given us "


@contextlib.contextmanager
def sealed_pair(buffer=None, begun=0):
    one, other = socket.socketpair()
    for sock in (one, other):
        sock.settimeout(DEADLINE)
        if buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
    client = SealedSocket(one, SECRET, server_side=False, begun=begun)
    server = SealedSocket(other, SECRET, server_side=True, begun=begun)
    with contextlib.closing(client), contextlib.closing(server):
        yield client, server


@contextlib.contextmanager
def receiving():
    """A socket of somebody's who writes what he likes, and the end that reads it."""
    here, there = socket.socketpair()
    there.settimeout(DEADLINE)
    with here, contextlib.closing(SealedSocket(there, SECRET, server_side=True)) as end:
        yield here, end


def read_all(sock):
    """All that comes until the end, and what ends it."""
    found = b""
    while True:
        try:
            data = sock.recv(3000)
        except BlockingIOError:
            continue
        except OSError as error:
            return found, error
        if not data:
            return found, None
        found += data


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_bytes_arrive_as_sent_however_little_the_sockets_take_at_a_time(data):
    sizes = st.one_of(st.integers(0, 300), st.sampled_from([16384, RECORD, RECORD + 1, 5 * RECORD]))
    with sealed_pair(buffer=data.draw(st.sampled_from([4096, None]))) as (one, other):
        one.setblocking(False)
        other.setblocking(False)
        sent, came = bytearray(), bytearray()
        steps = itertools.cycle(data.draw(st.lists(st.sampled_from([1, 100, 100_000]), min_size=1, max_size=5)))
        for size in data.draw(st.lists(sizes, max_size=6)):
            block = os.urandom(size)
            sent += block
            rest = memoryview(block)
            while rest:
                try:
                    rest = rest[one.send(rest) :]
                except BlockingIOError:
                    with contextlib.suppress(BlockingIOError):
                        came += other.recv(next(steps))
        while len(came) < len(sent):
            with contextlib.suppress(BlockingIOError):
                came += other.recv(3000)
        assert came == sent
        assert not other.pending
        assert other.bytes_received == one.bytes_sent


@settings(max_examples=30, deadline=None)
@given(sent=st.lists(frames, min_size=1, max_size=8), data=st.data())
def test_frames_arrive_and_none_waits_where_no_selector_looks(sent, data):
    with sealed_pair() as (one, other):
        here, there = Connection(one), Connection(other)
        one.setblocking(False)
        for frame in sent:
            fields = {"flags": frame.flags, "count": frame.count, "seq": frame.seq, "body": frame.body}
            buffers = encode_frame(frame.type, **fields, segments=frame.segments)
            here.send(buffers if data.draw(st.booleans()) else [joined(buffers)])
        found = []
        other.setblocking(data.draw(st.booleans()))
        while len(found) < len(sent):
            here.flush()
            assert select.select([there], [], [], DEADLINE)[0], "nothing to read, and frames missing"
            found += there.receive()
            assert not other.pending
        assert [(f.type, f.seq, bytes(f.body), tuple(map(bytes, f.segments))) for f in found] == [
            (f.type, f.seq, bytes(f.body), tuple(map(bytes, f.segments))) for f in sent
        ]


@pytest.mark.parametrize("size", [1, 100, RECORD])
def test_records_in_both_directions_go_on_from_where_others_have_stopped(size):
    with sealed_pair(begun=1) as (one, other):
        threading.Thread(target=one.sendall, args=(b"x" * size,)).start()
        assert read_exactly(other, size) == b"x" * size
        assert other.is_after(2)
        other.sendall(b"y")
        assert one.recv(10) == b"y"


def read_exactly(sock, size):
    found = b""
    while len(found) < size:
        with contextlib.suppress(BlockingIOError):
            found += sock.recv(size - len(found))
    return found


def stream(messages):
    seal = Seal(SECRET, CLIENT)
    return [seal.head(data) + data for data in messages]


@pytest.mark.parametrize("seed", range(200))
def test_whatever_is_done_to_the_stream_only_a_beginning_of_it_arrives(seed):
    """Bits flipped, bytes left out, put in, repeated, records swapped."""
    chance = random.Random(seed)
    messages = [chance.randbytes(chance.choice([1, 30, 700])) for _ in range(chance.randrange(1, 8))]
    records = stream(messages)
    if chance.random() < 0.3:
        chance.shuffle(records)
    data = bytearray(b"".join(records))
    for _ in range(chance.randrange(3)):
        place, size = chance.randrange(len(data)), chance.choice([1, 20, 300])
        kind = chance.randrange(4)
        if kind == 0:
            data[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del data[place : place + size]
        elif kind == 2:
            data[place:place] = chance.randbytes(size)
        else:
            data[place:place] = data[place : place + size]
        if not data:
            break
    with receiving() as (here, end):
        here.sendall(data)
        here.shutdown(socket.SHUT_WR)
        came, _ = read_all(end)
    assert b"".join(messages).startswith(came)
    whole = [b"".join(messages[:number]) for number in range(len(messages) + 1)]
    assert came in whole, "a part of a record has come out"


def test_what_is_genuine_is_still_given_and_then_an_error_and_nothing_more():
    first, second = stream([b"genuine", b"not so"])
    with receiving() as (here, end):
        here.sendall(first + second[:-1] + b"!" + stream([b"more"])[0])
        assert end.recv(100) == b"genuine"
        assert end.pending, "the error is not to wait for a selector"
        for _ in range(2):
            with pytest.raises(ConnectionAbortedError, match="was not sent by the other end"):
                end.recv(100)


def test_a_part_of_a_record_does_not_count_as_received():
    (record,) = stream([b"x" * 500])
    with receiving() as (here, end):
        here.sendall(record[:-1])
        with pytest.raises(BlockingIOError):
            end.recv(100)
        assert end.bytes_received == 0
        here.sendall(record[-1:])
        assert end.recv(1000) == b"x" * 500
        assert end.bytes_received == RECORD_HEAD + 500


def test_a_length_takes_no_memory_before_the_bytes_have_come():
    with receiving() as (here, end):
        tracemalloc.start()
        try:
            here.sendall((MAX_RECORD).to_bytes(4, "little") + bytes(16))
            with pytest.raises(BlockingIOError):
                end.recv(10)
            assert tracemalloc.get_traced_memory()[1] < MAX_RECORD // 2
        finally:
            tracemalloc.stop()


def test_memory_that_the_caller_changes_while_it_is_on_its_way_breaks_nothing():
    with sealed_pair(buffer=4096) as (one, other):
        one.setblocking(False)
        data = bytearray(RECORD)
        with pytest.raises(BlockingIOError):
            one.send(data)
        data[:] = b"\xff" * RECORD
        one.setblocking(True)
        writer = threading.Thread(target=one.send, args=(data,))
        writer.start()
        assert read_exactly(other, RECORD) == bytes(RECORD)
        writer.join(DEADLINE)


def received(end):
    """The frames that come until the end."""
    connection, found = Connection(end), []
    with contextlib.suppress(EOFError):
        while True:
            assert end.pending or select.select([end], [], [], DEADLINE)[0]
            found += connection.receive()
    return found


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("buffer", [4096, None])
@pytest.mark.parametrize("heads_along", [True, False])
def test_large_segments_arrive_and_what_follows_them(monkeypatch, blocking, buffer, heads_along):
    if not heads_along:  # as on Windows
        monkeypatch.setattr(sealed, "_HAS_RECVMSG", False)
    segments = [os.urandom(size) for size in (1, 300_000, 17, 2_500_000, RECORD, 100_000)]
    messages = [
        encode_payload(FrameType.TASKS, segments, seq=3, prefix=b"four"),
        encode_payload(FrameType.TASKS, [os.urandom(1_000_000)], seq=4, prefix=b"four"),
        encode_frame(FrameType.BYE),
    ]

    def send():
        here = Connection(one)
        for message in messages:
            here.send_all(message)
        one.shutdown(socket.SHUT_WR)

    with sealed_pair(buffer) as (one, other):
        other.settimeout(None)
        other.setblocking(blocking)
        sender = threading.Thread(target=send)
        sender.start()
        first, second, last = received(other)
        sender.join(DEADLINE)
        assert (first.seq, [bytes(segment) for segment in first.segments]) == (3, segments)
        assert (second.seq, bytes(second.segments[0])) == (4, messages[1][-1])
        assert last.type is FrameType.BYE
        assert other.bytes_received == one.bytes_sent


@pytest.mark.parametrize("seed", range(40))
def test_of_a_segment_in_which_one_bit_is_another_nothing_is_handed_on(seed):
    chance = random.Random(seed)
    data = joined(encode_payload(FrameType.TASKS, [chance.randbytes(400_000)], seq=1, prefix=b"four"))
    cuts = sorted({0, len(data), *chance.sample(range(len(data)), 4)})
    records = stream([data[begin:end] for begin, end in zip(cuts, cuts[1:], strict=False)])
    whole = bytearray(b"".join(records))
    if seed:
        whole[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
    with receiving() as (here, end):
        end.settimeout(None)

        def send():
            with contextlib.suppress(OSError):
                here.sendall(whole)
                here.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        found = received(end)
        end.shutdown(socket.SHUT_RDWR)
        sender.join(DEADLINE)
    assert [bytes(frame.segments[0]) for frame in found] == ([data[-400_000:]] if not seed else [])


def test_what_a_large_record_took_is_given_back_with_the_next_small_one():
    """A farm has thousands of lanes, and each may have carried something large once."""

    def read(end, size):
        while size:
            with contextlib.suppress(BlockingIOError):  # less than a record has come
                size -= len(end.recv(size))

    with sealed_pair() as (one, other):
        reader = threading.Thread(target=read, args=(other, (4 << 20) + 5))
        reader.start()
        one.sendall(bytes(4 << 20))
        assert len(one._record) > 64 * 1024
        assert one.send(b"small") == 5
        reader.join()
        assert len(one._record) == 0
