"""Which servers and lanes are taken for lost, beat by beat."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from farm_executor.client.farm.liveness import Liveness
from farm_executor.core.liveness import MAX_MISSED, Flow


class Driven:
    """A liveness whose beats a test gives, and what it says."""

    def __init__(self):
        self.timers = []
        self.moved = Counter()
        self.silent = []
        self.stuck = []
        self.liveness = Liveness(
            1.0,
            lambda seconds, call: self.timers.append(call),
            lambda server, beat: None,
            lambda server: self.moved[server],
            self.silent.append,
            self.stuck.append,
        )

    def beat(self, count=1):
        for _ in range(count):
            self.timers.pop()()


class Way:
    bytes_received = 0
    bytes_sent = 100


def test_a_server_that_says_nothing_is_silent():
    driven = Driven()
    driven.liveness.watch("server")
    driven.beat(MAX_MISSED)
    assert not driven.silent
    driven.beat()
    assert driven.silent == ["server"]


def test_a_server_whose_lanes_move_is_not():
    driven = Driven()
    driven.liveness.watch("server")
    for _ in range(10 * MAX_MISSED):
        driven.moved["server"] += 1
        driven.beat()
    assert not driven.silent
    driven.beat(MAX_MISSED)
    assert driven.silent == ["server"]


def test_a_lane_in_doubt_must_move_by_the_second_answer():
    driven = Driven()
    driven.liveness.watch("server")
    driven.liveness.doubt({1: Way, 2: Way})
    for arrived in (0, 100):
        driven.liveness.answered([(1, 0, 0), (2, arrived, 0)], {1: Way, 2: Way})
    assert driven.stuck == [1]
    driven.liveness.answered([(2, 100, 0)], {2: Way})
    assert driven.stuck == [1]


moves = st.tuples(*[st.integers(0, 2)] * 4)


@given(st.lists(moves, max_size=30))
def test_a_lane_is_judged_by_both_its_flows(history):
    """However the bytes move: the short way for lanes that are fine must not change a judgement."""
    driven, way = Driven(), Way()
    there, back = Flow(), Flow()
    given = received = sent = taken = 0
    for more_given, more_received, more_sent, more_taken in history:
        given, sent = given + more_given, sent + more_sent
        received, taken = min(received + more_received, given), min(taken + more_taken, sent)
        way.bytes_sent, way.bytes_received = given, taken
        driven.liveness.answered([(1, received, sent)], {1: way})
        if there.beat(given, received) | back.beat(sent, taken):
            assert driven.stuck == [1]
            return
    assert not driven.stuck
