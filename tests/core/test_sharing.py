"""What is shared: its layout, what a server may hold, and which lane brings an object to it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from farm_executor.core.frames import Frame, FrameType, Kind, size_and_kind
from farm_executor.core.reader import FrameReader
from farm_executor.core.sharing import (
    MAX_OBJECTS,
    PIECE,
    Deliveries,
    Room,
    Send,
    Shelf,
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


def shelf(limit=100):
    room = Room(lambda: limit)
    return Shelf(room), room


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


@given(st.integers(0, 2**64 - 1), st.integers(1, 2**46))
def test_an_offer_arrives_as_it_was(number, size):
    assert decode_offer(received(encode_offer(number, size))) == (number, size)


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


# -- on the server ------------------------------------------------------------------------------------


def test_an_object_is_wanted_then_held_then_gone():
    held, room = shelf()

    assert held.offer(1, 60) == (State.WANTED, "")
    assert held.offer(1, 60) == (State.WANTED, "")  # an offer that is repeated takes no more room
    assert room.used == 60
    assert held.ask(1, "worker") == (State.WANTED, "")
    assert held.arrived(1, 60)
    assert held.waiting(1) == ["worker"]
    assert held.waiting(1) == []
    assert held.ask(1, "another") == held.offer(1, 60) == (State.HELD, "")
    held.drop(1)
    assert room.used == 0


def test_a_refusal_names_the_number_the_size_and_the_limit():
    held, room = shelf(limit=100)
    held.offer(1, 60)

    state, reason = held.offer(2, 50)

    assert state is State.REFUSED
    assert "shared object 2 of 50 bytes" in reason
    assert "100 bytes in all, of which 60 bytes are taken" in reason
    assert "--max-shared" in reason
    assert held.ask(2, "worker") == (State.REFUSED, reason)
    held.drop(2)
    assert room.used == 60


def test_sessions_share_the_room_and_give_it_back_at_their_end():
    room = Room(lambda: 100)
    one, other = Shelf(room), Shelf(room)
    one.offer(1, 100)

    assert other.offer(1, 1)[0] is State.REFUSED
    one.clear()
    assert other.offer(2, 100)[0] is State.WANTED


def test_a_session_has_a_limit_of_objects():
    held, _ = shelf(limit=10**9)
    for number in range(MAX_OBJECTS):
        held.offer(number, 1)

    state, reason = held.offer(MAX_OBJECTS, 1)

    assert state is State.REFUSED
    assert str(MAX_OBJECTS) in reason


def test_what_is_one_too_many_takes_no_memory():
    held, _ = shelf(limit=10**9)
    for number in range(1, MAX_OBJECTS + 1000):
        held.offer(number, 1)

    assert len(held._entries) == MAX_OBJECTS
    state, reason = held.ask(MAX_OBJECTS + 1, "worker")
    assert state is State.REFUSED
    assert "too many" in reason
    assert held.ask(MAX_OBJECTS + 1000, "worker") == (State.WANTED, "")  # it has yet to be offered


def test_sessions_share_the_descriptors_and_give_them_back():
    room = Room(lambda: 100, lambda: 2)
    one, other = Shelf(room), Shelf(room)
    assert one.offer(1, 1)[0] is other.offer(1, 1)[0] is State.WANTED

    state, reason = one.offer(2, 1)
    assert state is State.REFUSED
    assert "no descriptor left for shared object 2" in reason
    assert one.ask(2, "worker")[0] is State.REFUSED
    assert one.offer(1, 1)[0] is State.WANTED  # an offer that is repeated takes no more
    other.fail(1, "no memory")
    other.drop(1)
    assert one.offer(3, 1)[0] is State.WANTED
    assert one.offer(4, 1)[0] is State.REFUSED


def test_nobody_waits_for_what_was_dropped():
    held, _ = shelf()
    held.offer(1, 10)
    held.ask(1, "early")
    held.drop(1)

    assert held.waiting(1) == ["early"]
    state, reason = held.ask(1, "late")
    assert state is State.REFUSED
    assert "nobody needs it" in reason


def test_what_was_dropped_or_has_come_already_is_not_kept():
    held, _ = shelf()
    held.offer(1, 10)

    assert not held.arrived(1, 11)
    assert held.arrived(1, 10)
    assert not held.arrived(1, 10)
    assert not held.arrived(2, 10)
    held.drop(1)
    assert not held.arrived(1, 10)


def test_a_worker_that_cannot_take_an_object_in_fails_those_who_wait_for_it():
    held, room = shelf()
    held.ask(1, "early")
    held.offer(1, 10)

    assert held.fail(1, "no room")
    assert not held.fail(1, "again")
    assert held.waiting(1) == ["early"]
    assert held.ask(1, "late") == (State.REFUSED, "no room")
    assert room.used == 0


def test_a_worker_that_has_ended_waits_no_longer():
    held, _ = shelf()
    held.ask(1, "one")
    held.ask(1, "other")
    held.forget("one")

    assert held.waiting(1) == ["other"]


# -- on the client ------------------------------------------------------------------------------------


def test_a_lost_lane_leaves_what_it_has_carried_to_another():
    deliveries = Deliveries()
    assert deliveries.answered(1, State.WANTED) == []
    assert deliveries.lane_ready(7) == [Send(7, 1)]
    assert deliveries.lane_ready(8) == []
    assert deliveries.left(7) == []
    assert deliveries.lane_gone(7) == [Send(8, 1)]  # it has left whole, but nobody knows that it has arrived
    assert deliveries.left(8) == []
    assert deliveries.answered(1, State.HELD) == []
    assert deliveries.lane_gone(8) == []
    assert deliveries.lane_ready(9) == []


def test_an_object_that_is_dropped_on_its_way_makes_room_for_the_next():
    deliveries = Deliveries()
    deliveries.lane_ready(7)
    deliveries.answered(1, State.WANTED)
    deliveries.answered(2, State.WANTED)

    assert deliveries.drop(1) == [Send(7, 2)]


class Farm(RuleBasedStateMachine):
    """A client, a server and lanes that come, go and are cut: in the end each object is held, or dropped."""

    def __init__(self):
        super().__init__()
        self.deliveries = Deliveries()
        self.shelf, self.room = shelf(limit=10)
        self.lanes = set()
        self.carried = {}
        self.on_the_way = []  # what has left whole, by lane
        self.live = {}
        self.held = set()
        self.numbers = iter(range(1, 10_000))

    def carry_out(self, sends):
        for send in sends:
            assert send.lane in self.lanes
            assert send.lane not in self.carried
            assert send.number in self.live
            assert send.number not in self.held
            self.carried[send.lane] = send.number

    @rule(size=st.integers(1, 4))
    def share(self, size):
        number = next(self.numbers)
        state, _ = self.shelf.offer(number, size)
        if state is State.WANTED:
            self.live[number] = size
        self.carry_out(self.deliveries.answered(number, state))

    @rule(lane=st.integers(0, 3))
    def come(self, lane):
        self.lanes.add(lane)
        self.carry_out(self.deliveries.lane_ready(lane))

    @rule(lane=st.integers(0, 3))
    def go(self, lane):
        self.lanes.discard(lane)
        self.carried.pop(lane, None)
        self.on_the_way = [each for each in self.on_the_way if each[0] != lane]
        self.carry_out(self.deliveries.lane_gone(lane))

    @precondition(lambda self: self.carried)
    @rule(data=st.data())
    def leave(self, data):
        lane = data.draw(st.sampled_from(sorted(self.carried)))
        self.on_the_way.append((lane, self.carried.pop(lane)))
        self.carry_out(self.deliveries.left(lane))

    @precondition(lambda self: self.on_the_way)
    @rule()
    def arrive(self):
        _, number = self.on_the_way.pop(0)
        if number in self.live and self.shelf.arrived(number, self.live[number]):
            self.held.add(number)
            self.carry_out(self.deliveries.answered(number, State.HELD))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def drop(self, data):
        number = data.draw(st.sampled_from(sorted(self.live)))
        del self.live[number]
        self.held.discard(number)
        self.shelf.drop(number)
        self.carried = {lane: each for lane, each in self.carried.items() if each != number}
        self.carry_out(self.deliveries.drop(number))

    @rule()
    def resume(self):
        for number, size in self.live.items():
            state, _ = self.shelf.offer(number, size)
            self.carry_out(self.deliveries.answered(number, state))

    @invariant()
    def the_room_is_that_of_what_lives(self):
        assert self.room.used == sum(self.live.values()) <= 10

    @invariant()
    def each_object_is_held_or_carried_or_waits_for_a_lane(self):
        moving = [*self.carried.values(), *[number for _, number in self.on_the_way]]
        waiting = set(self.live) - self.held - set(moving)
        assert not (waiting and self.lanes - set(self.carried))

    @invariant()
    def a_lane_carries_what_it_is_said_to(self):
        for lane in range(4):
            assert self.deliveries.carried(lane) == self.carried.get(lane)


TestFarm = Farm.TestCase
