"""Which lane brings a shared object to its server."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from farm_executor.core.deliveries import Deliveries, Send
from farm_executor.core.sharing import State
from farm_executor.core.shelf import Room, Shelf


def test_a_lost_lane_leaves_what_it_has_carried_to_another():
    deliveries = Deliveries()
    assert deliveries.answered(1, State.WANTED) == []
    assert deliveries.lane_ready(7) == [Send(7, 1)]
    assert deliveries.lane_ready(8) == []
    assert deliveries.left(7) == []
    assert deliveries.lane_gone(7) == [Send(8, 1)]  # it has left whole, but nobody knows that it has arrived
    assert deliveries.left(8) == []
    assert not deliveries.holds(1)
    assert deliveries.answered(1, State.HELD) == []
    assert deliveries.holds(1)
    assert deliveries.lane_gone(8) == []
    assert deliveries.lane_ready(9) == []


def test_an_object_that_is_dropped_on_its_way_makes_room_for_the_next():
    deliveries = Deliveries()
    deliveries.lane_ready(7)
    deliveries.answered(1, State.WANTED)
    deliveries.answered(2, State.WANTED)

    assert deliveries.carried(7) == 1
    assert deliveries.drop(1) == [Send(7, 2)]
    assert deliveries.carried(7) == 2


class Farm(RuleBasedStateMachine):
    """A client, a server and lanes that come, go and are cut: in the end each object is held, or dropped."""

    def __init__(self):
        super().__init__()
        self.deliveries = Deliveries()
        self.room = Room(lambda: 10)
        self.shelf = Shelf(self.room)
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
