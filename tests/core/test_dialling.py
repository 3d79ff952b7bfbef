"""What is dialled next: the rules, and any order of events."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from strategies import when

from farm_executor.core.dialling import (
    LONGEST_PAUSE,
    MAX_TOGETHER,
    REFUSED_SECONDS,
    RESUME_PAUSE,
    Attempt,
    Dialling,
    Kind,
)


def opened(lanes=2):
    plan = Dialling()
    plan.next()
    plan.opened("s", lanes)
    plan.drop(Attempt(Kind.OPEN))
    return plan


def all_next(plan):
    attempts = []
    while (found := plan.next()) is not None:
        attempts.append(found[0])
    return attempts


# -- the rules ----------------------------------------------------------------------------------------------


def test_without_a_session_one_attempt_is_made_for_one():
    assert all_next(Dialling()) == [Attempt(Kind.OPEN)]


def test_a_session_s_lanes_are_dialled_side_by_side_the_lowest_slot_first():
    assert all_next(opened(3)) == [Attempt(Kind.LANE, "s", slot) for slot in range(3)]
    assert len(all_next(opened(1000))) == MAX_TOGETHER


def test_a_cut_control_connection_comes_before_the_lanes():
    plan = opened()
    plan.control_cut()
    assert all_next(plan) == [Attempt(Kind.RESUME, "s")]
    plan.resumed()
    plan.drop(Attempt(Kind.RESUME, "s"))
    assert {attempt.kind for attempt in all_next(plan)} == {Kind.LANE}


def test_lanes_that_are_cut_come_before_new_ones_in_the_order_of_the_cuts():
    plan = opened(3)
    plan.lane_up(1)
    plan.lane_up(2)
    plan.lane_cut(22, 2)
    plan.lane_cut(11, 1)
    assert [attempt.lane for attempt in all_next(plan)] == [22, 11, 0]


def test_pauses_grow_and_news_makes_them_short_again():
    plan = opened()
    plan.control_cut()
    (attempt,) = all_next(plan)
    pauses = [plan.failed(attempt, 0.0).pause for _ in range(20)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == RESUME_PAUSE
    plan.control_cut()
    assert plan.failed(attempt, 0.0).pause == pauses[0]


def test_a_server_that_does_not_know_the_session_has_ended_it():
    plan = opened()
    plan.control_cut()
    (attempt,) = all_next(plan)
    assert plan.failed(attempt, 0.0, unknown=True).over
    assert not plan.is_wanted(attempt)
    plan.drop(attempt)
    assert not all_next(plan), "until who listens has said so"
    plan.session_over()
    assert all_next(plan) == [Attempt(Kind.OPEN)]


def test_another_server_that_answers_for_a_lane_has_not_ended_the_session():
    plan = opened()
    attempt = all_next(plan)[0]
    verdict = plan.failed(attempt, 0.0, unknown=True)
    assert not verdict.over
    assert verdict.pause
    assert plan.is_wanted(attempt)


def test_a_port_that_refuses_for_long_enough_ends_the_session_s_hope():
    plan = opened()
    plan.control_cut()
    (attempt,) = all_next(plan)
    assert not plan.failed(attempt, 100.0, refused=True).over
    assert not plan.failed(attempt, 100.0 + REFUSED_SECONDS / 2, refused=True).over
    assert plan.failed(attempt, 100.0 + REFUSED_SECONDS, refused=True).over


def test_a_network_that_is_broken_in_between_leaves_hope():
    plan = opened()
    plan.control_cut()
    (attempt,) = all_next(plan)
    plan.failed(attempt, 0.0, refused=True)
    plan.failed(attempt, 1.0)
    assert not plan.failed(attempt, 1.0 + REFUSED_SECONDS / 2, refused=True).over
    assert not plan.failed(attempt, REFUSED_SECONDS, refused=True).over


def test_sessions_that_never_have_a_lane_are_opened_more_and_more_rarely():
    plan = Dialling()
    pauses = []
    for _ in range(12):
        attempt, pause = plan.next()
        pauses.append(pause)
        plan.opened("s", 1)
        plan.drop(attempt)
        plan.session_over()
    assert pauses[0] == 0.0
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE
    plan.next()
    plan.opened("s", 1)
    plan.drop(Attempt(Kind.OPEN))
    plan.lane_up(0)
    plan.session_over()
    assert plan.next() == (Attempt(Kind.OPEN), 0.0)


def test_lanes_that_are_never_ready_are_dialled_more_and_more_rarely():
    plan = opened(1)
    for number in range(5):
        attempt, pause = plan.next()
        assert (pause > 0) == (number > 0)
        plan.lane_up(0)
        plan.drop(attempt)
        plan.lane_gone(number, 0, failed=True)
    plan.next()
    plan.lane_up(0)
    plan.drop(Attempt(Kind.LANE, "s", 0))
    plan.lane_gone(9, 0, failed=False)
    assert plan.next() == (Attempt(Kind.LANE, "s", 0), 0.0)


def test_a_session_that_is_to_end_gets_no_more_lanes_but_those_that_it_has_are_resumed():
    plan = opened()
    plan.lane_up(0)
    plan.leave()
    plan.lane_cut(7, 0)
    assert all_next(plan) == [Attempt(Kind.RESUME_LANE, "s", 0, 7)]
    plan.lane_gone(7, 0, failed=False)
    assert not all_next(plan)


# -- any order ----------------------------------------------------------------------------------------------


class Histories(RuleBasedStateMachine):
    """A link's life; each slot's lane, as the model sees it, is None, "up", "cut" or its number."""

    @initialize()
    def begin(self):
        self.plan = Dialling()
        self.under_way = set()
        self.sessions = 0
        self.lanes = {}  # lane -> slot, of those that are up
        self.cut = {}
        self.slots = 0
        self.now = 0.0
        self.numbers = iter(range(1, 10**9))

    @rule()
    def dial(self):
        found = self.plan.next()
        if found is not None:
            attempt, pause = found
            assert attempt not in self.under_way
            assert self.plan.is_wanted(attempt)
            assert 0.0 <= pause <= LONGEST_PAUSE
            self.under_way.add(attempt)

    @when(lambda self: self.under_way)
    @rule(data=st.data(), slots=st.integers(1, 40))
    def succeed(self, data, slots):
        attempt = data.draw(st.sampled_from(sorted(self.under_way, key=str)))
        self.under_way.remove(attempt)
        if self.plan.is_wanted(attempt):
            if attempt.kind is Kind.OPEN:
                self.sessions += 1
                self.plan.opened(f"s{self.sessions}", slots)
                self.lanes, self.cut, self.slots = {}, {}, slots
            elif attempt.kind is Kind.RESUME:
                self.plan.resumed()
            elif attempt.kind is Kind.LANE:
                assert attempt.slot not in {*self.lanes.values(), *self.cut.values()}, "one lane a slot"
                self.plan.lane_up(attempt.slot)
                self.lanes[next(self.numbers)] = attempt.slot
            else:
                self.plan.lane_resumed(attempt.lane)
                self.lanes[attempt.lane] = self.cut.pop(attempt.lane)
        self.plan.drop(attempt)

    @when(lambda self: self.under_way)
    @rule(data=st.data(), refused=st.booleans(), unknown=st.booleans(), seconds=st.floats(0, 1.5))
    def fail(self, data, refused, unknown, seconds):
        self.now += seconds
        attempt = data.draw(st.sampled_from(sorted(self.under_way, key=str)))
        was_wanted = self.plan.is_wanted(attempt)
        verdict = self.plan.failed(attempt, self.now, refused=refused, unknown=unknown)
        assert 0.0 <= verdict.pause <= LONGEST_PAUSE
        if verdict.over:
            assert was_wanted
            assert attempt.kind is Kind.RESUME
            assert unknown or refused
            self._end_session()
        if not self.plan.is_wanted(attempt):
            self.under_way.discard(attempt)
            self.plan.drop(attempt)

    @when(lambda self: self.plan.session)
    @rule()
    def cut_control(self):
        self.plan.control_cut()

    @when(lambda self: self.lanes)
    @rule(data=st.data())
    def cut_lane(self, data):
        lane = data.draw(st.sampled_from(sorted(self.lanes)))
        self.cut[lane] = self.lanes.pop(lane)
        self.plan.lane_cut(lane, self.cut[lane])

    @when(lambda self: self.lanes or self.cut)
    @rule(data=st.data(), failed=st.booleans())
    def lose_lane(self, data, failed):
        lane = data.draw(st.sampled_from(sorted({**self.lanes, **self.cut})))
        slot = self.lanes.pop(lane, None)
        slot = self.cut.pop(lane) if slot is None else slot
        self.plan.lane_gone(lane, slot, failed=failed)

    @when(lambda self: self.plan.session)
    @rule()
    def leave(self):
        self.plan.leave()

    @when(lambda self: self.plan.session)
    @rule()
    def end_session(self):
        self._end_session()

    def _end_session(self):
        self.plan.session_over()
        self.lanes, self.cut, self.slots = {}, {}, 0

    @rule()
    def nothing_is_forgotten(self):
        """All that is lacking can be dialled, a bounded number at once, if nothing that is useless is under way."""
        for attempt in [attempt for attempt in self.under_way if not self.plan.is_wanted(attempt)]:
            self.under_way.remove(attempt)
            self.plan.drop(attempt)
        self.under_way.update(all_next(self.plan))
        if not self.plan.session:
            assert self.under_way == {Attempt(Kind.OPEN)}
            return
        if self.plan.cut:
            assert Attempt(Kind.RESUME, self.plan.session) in self.under_way
            return
        lacking = set(self.cut.values())
        if not self.plan.is_leaving():
            lacking |= set(range(self.slots)) - set(self.lanes.values())
        assert {attempt.slot for attempt in self.under_way} <= lacking
        assert len(self.under_way) == min(len(lacking), MAX_TOGETHER)

    @invariant()
    def a_bounded_number_is_under_way(self):
        if hasattr(self, "under_way"):
            assert len(self.under_way) <= MAX_TOGETHER + 2


Histories.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestHistories = Histories.TestCase
