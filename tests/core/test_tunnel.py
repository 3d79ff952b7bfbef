"""Many connections through calls that overtake each other, are repeated, and stop."""

import struct
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farm_executor.core import tunnel
from farm_executor.core.tunnel import Flight, Tunnel, TunnelError, heading, request

WINDOW = 64
EPOCH = 3

# What a step does: to which connection, and how much of it; the numbers are taken modulo what there is.
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["put", "end", "take", "arrive", "twice", "write"]), st.integers(0, 999), st.booleans()
    ),
    max_size=120,
)


class End:
    """A tunnel's end with what a driver has: what was put, what was written, and the pieces on their way."""

    def __init__(self):
        self.tunnel = Tunnel(EPOCH, WINDOW)
        self.put = {}
        self.written = {}
        self.ended = set()
        self.on_their_way = []

    def give(self, piece):
        for number in self.tunnel.receive(piece):
            self.put.setdefault(number, b"")
            self.written.setdefault(number, b"")

    def step(self, other, what, amount, small):
        numbers = [number for number in sorted(self.tunnel.connections) if number in self.put]
        if what in ("put", "end", "write") and not numbers:
            return
        number = numbers[amount % len(numbers)] if numbers else 0
        if what == "put":
            size = min(self.tunnel.wants(number), amount % (4 if small else WINDOW))
            data = bytes((len(self.put[number]) + index) % 251 for index in range(size))
            if data:
                self.tunnel.put(number, data)
                self.put[number] += data
        elif what == "end" and number not in self.ended:
            self.ended.add(number)
            self.tunnel.end(number)
        elif what == "take":
            if piece := self.tunnel.take():
                self.on_their_way.append(piece)
        elif what in ("arrive", "twice") and self.on_their_way:
            index = amount % len(self.on_their_way)
            other.give(self.on_their_way[index])
            if what == "arrive":
                del self.on_their_way[index]
        elif what == "write":
            self.write(number, 1 if small else WINDOW)

    def write(self, number, most):
        held = self.tunnel.connections[number].held
        assert sum(map(len, held)) <= WINDOW
        if held:
            data = bytes(held[0][:most])
            self.written[number] += data
            self.tunnel.wrote(number, len(data))


def settle(near, far):
    """Have everything arrive, and write it."""
    moved = True
    while moved:
        moved = False
        for one, other in ((near, far), (far, near)):
            while piece := one.tunnel.take():
                one.on_their_way.append(piece)
            for piece in reversed(one.on_their_way):
                other.give(piece)
                moved = True
            one.on_their_way.clear()
            for number in list(one.tunnel.connections):
                while one.tunnel.connections[number].held:
                    one.write(number, WINDOW)
                    moved = True


@given(STEPS, st.integers(1, 4))
def test_all_bytes_come_once_and_in_order_however_pieces_arrive(steps, connections):
    near, far = End(), End()
    for _ in range(connections):
        number = far.tunnel.open()
        far.put[number] = far.written[number] = b""
    for index, (what, amount, small) in enumerate(steps):
        one, other = (near, far) if index % 2 else (far, near)
        one.step(other, what, amount, small)
    settle(near, far)
    for one, other in ((near, far), (far, near)):
        for number in far.put:
            assert other.written[number] == one.put.get(number, b"")
            assert other.tunnel.connections[number].ends == (number in one.ended)
    for number in far.put:
        both = number in near.ended and number in far.ended
        assert near.tunnel.done(number) == far.tunnel.done(number) == both


@given(st.integers(1, 5), st.lists(st.integers(1, WINDOW), min_size=1))
def test_a_reader_that_stands_still_holds_up_no_other_connection(connections, sizes):
    near, far = End(), End()
    numbers = [far.tunnel.open() for _ in range(connections + 1)]
    near.give(far.tunnel.take())
    still, *others = numbers
    while wanted := far.tunnel.wants(still):
        far.tunnel.put(still, bytes(wanted))
    sent = dict.fromkeys(others, 0)
    for size in sizes:
        for number in others:
            size = min(size, far.tunnel.wants(number))
            assert size
            far.tunnel.put(number, bytes(size))
            sent[number] += size
        near.give(far.tunnel.take())
        for number in others:
            while near.tunnel.connections[number].held:
                near.write(number, WINDOW)
        if piece := near.tunnel.take():
            far.give(piece)
        # As long as less than a quarter has been written, the other end is not told.
        for number in others:
            if not far.tunnel.wants(number):
                return
    assert {number: len(near.written[number]) for number in others} == sent
    assert sum(map(len, near.tunnel.connections[still].held)) == WINDOW


def test_no_more_than_a_bound_waits_for_calls():
    far = Tunnel(EPOCH)
    numbers = [far.open() for _ in range(9)]
    put = 0
    for number in numbers:
        while wanted := far.wants(number):
            far.put(number, bytes(wanted))
            put += wanted
    assert put == tunnel.QUEUED
    sizes = []
    while piece := far.take():
        sizes.append(len(piece))
    assert max(sizes) <= tunnel.MAX_PIECE
    assert len(sizes) <= tunnel.QUEUED // tunnel.PIECE + 1
    assert all(far.wants(number) for number in numbers[1:])


def test_a_connection_that_is_given_up_is_gone_at_both_ends():
    near, far = Tunnel(EPOCH), Tunnel(EPOCH)
    number = far.open()
    far.put(number, b"abc")
    assert near.receive(far.take()) == {number}
    near.reset(number)
    far.put(number, b"what was on its way")
    assert near.receive(far.take()) == {number}
    assert far.receive(near.take()) == {number}
    assert not near.connections
    assert not far.connections


def test_words_belong_to_no_connection():
    near, far = Tunnel(EPOCH), Tunnel(EPOCH)
    far.say(b"one")
    far.say(b"")
    near.receive(far.take())
    assert list(near.words) == [b"one", b""]


def test_pieces_of_another_epoch_are_not_read():
    near, far = Tunnel(EPOCH), Tunnel(EPOCH + 1)
    far.open()
    piece = far.take()
    assert heading(piece) == (EPOCH + 1, 1)
    assert near.receive(piece) == set()
    assert not near.connections
    assert near.receive(request(EPOCH)) == set()


HEAD, FRAME = struct.Struct(">QQ"), struct.Struct(">BIQ")


@pytest.mark.parametrize(
    "piece",
    [
        b"short",
        HEAD.pack(EPOCH, 1) + bytes(tunnel.MAX_PIECE),
        HEAD.pack(EPOCH, tunnel.AHEAD + 1),
        HEAD.pack(EPOCH, 1) + b"half",
        HEAD.pack(EPOCH, 1) + FRAME.pack(tunnel.WORD, 0, 5) + b"word",
        HEAD.pack(EPOCH, 1) + FRAME.pack(tunnel.OPEN, 1, 0) * 2,
        HEAD.pack(EPOCH, 1) + b"".join(FRAME.pack(tunnel.OPEN, number, 0) for number in range(1, 1026)),
        HEAD.pack(EPOCH, 1) + FRAME.pack(tunnel.OPEN, 1, 0) + FRAME.pack(99, 1, 0),
        HEAD.pack(EPOCH, 1) + FRAME.pack(tunnel.OPEN, 1, 0) + FRAME.pack(tunnel.CREDIT, 1, 1),
        HEAD.pack(EPOCH, 1) + FRAME.pack(tunnel.OPEN, 1, 0) + FRAME.pack(tunnel.DATA, 1, WINDOW + 1) + bytes(65),
        HEAD.pack(EPOCH, 1)
        + FRAME.pack(tunnel.OPEN, 1, 0)
        + FRAME.pack(tunnel.END, 1, 0)
        + FRAME.pack(2, 1, 1)
        + b".",
        HEAD.pack(EPOCH, 1) + FRAME.pack(tunnel.OPEN, 1, 0) + FRAME.pack(tunnel.DATA, 1, 0),
    ],
)
def test_what_cannot_have_been_said_is_refused(piece):
    with pytest.raises(TunnelError):
        Tunnel(EPOCH, WINDOW).receive(piece)


@given(st.binary(max_size=200))
@settings(max_examples=200)
def test_any_bytes_are_read_or_refused(data):
    end = Tunnel(EPOCH, WINDOW)
    try:
        end.receive(HEAD.pack(EPOCH, 1) + data)
    except TunnelError:
        pass
    assert all(sum(map(len, one.held)) <= WINDOW for one in end.connections.values())


@given(st.lists(st.integers(0, 2 * tunnel.PIECE)))
def test_a_call_always_waits_and_more_do_while_each_brings_a_whole_piece(sizes):
    flight = Flight()
    for size in sizes:
        while flight.may_pull:
            flight.pulls += 1
        assert 1 <= flight.pulls <= tunnel.MAX_PULLS
        flight.pulled(size)
    for _ in range(tunnel.MAX_PULLS):
        while flight.may_pull:
            flight.pulls += 1
        flight.pulled(0)
    while flight.may_pull:
        flight.pulls += 1
    assert flight.pulls >= 1


@given(st.lists(st.tuples(st.integers(1, 2 * tunnel.PIECE), st.integers(0, 9))))
def test_a_part_of_a_piece_waits_for_what_is_large_and_nothing_else_does(steps):
    flight, on_their_way = Flight(), []
    assert not flight.may_push(0)
    for size, landed in steps:
        may = len(on_their_way) < tunnel.MAX_PUSHES
        if tunnel.SMALL <= size < tunnel.PIECE:
            may = may and all(one < tunnel.SMALL for one in on_their_way)
        assert flight.may_push(size) == may
        if may:
            flight.pushed(size)
            on_their_way.append(size)
        if landed < len(on_their_way):
            flight.landed(on_their_way.pop(landed))


def test_bytes_that_follow_each_other_are_written_at_once():
    near, far = Tunnel(EPOCH), Tunnel(EPOCH)
    one, other = far.open(), far.open()
    for number, data in ((one, b"a"), (one, b"bc"), (other, b"d"), (one, b"e")):
        space = far.space(number)
        assert len(space) == tunnel.CHUNK
        space[: len(data)] = data
        far.filled(number, len(data))
    near.receive(far.take())
    assert list(map(bytes, near.connections[one].held)) == [b"abc", b"e"]
    assert list(map(bytes, near.connections[other].held)) == [b"d"]


def piece_of(end, number, byte):
    while end.waiting < tunnel.PIECE:
        end.put(number, byte * end.wants(number))
    return end.take()


def test_the_memory_of_a_piece_is_used_again_but_not_while_somebody_has_it():
    tracemalloc.start()
    try:
        end = Tunnel(EPOCH, 1 << 40)
        number = end.open()
        kept = piece_of(end, number, b"k")
        before = bytes(kept)
        for _ in range(2 * tunnel.SPARE):
            piece_of(end, number, b"x")
        assert kept == before
        assert tracemalloc.get_traced_memory()[1] < 4 * tunnel.MAX_PIECE
        end.rest()
        piece_of(end, number, b"y")
        end.rest()
        assert tracemalloc.get_traced_memory()[0] > 2 * tunnel.MAX_PIECE
        end.rest()
        del kept
        assert tracemalloc.get_traced_memory()[0] < 2 * tunnel.MAX_PIECE
    finally:
        tracemalloc.stop()


def test_no_more_memory_is_kept_than_the_bound():
    tracemalloc.start()
    try:
        end = Tunnel(EPOCH, 1 << 40)
        number = end.open()
        pieces = [piece_of(end, number, b"x") for _ in range(2 * tunnel.SPARE)]
        del pieces
        assert tracemalloc.get_traced_memory()[0] < (tunnel.SPARE + 1) * tunnel.MAX_PIECE
    finally:
        tracemalloc.stop()
