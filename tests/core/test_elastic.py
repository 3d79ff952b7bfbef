"""How many servers an elastic farm wants: one rule at a time, then any farm's life."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from farm_executor.core.elastic import PATIENCE, Elastic, Load

IDLE, BUSY = Load(False, 0), Load(True, 0)


def test_the_first_is_wanted_at_once_and_others_when_tasks_have_waited():
    elastic = Elastic(0, 5, 60.0, 2)
    assert elastic.wanted == 1
    assert elastic.decide(0.0, 6, {}) == []
    assert elastic.wanted == 1
    elastic.decide(PATIENCE, 6, {"a": BUSY})
    assert elastic.wanted == 4
    elastic.decide(PATIENCE, 600, {"a": BUSY})
    assert elastic.wanted == 5


def test_one_that_has_just_come_is_about_to_do_what_waits():
    elastic = Elastic(0, 5, 60.0, 1)
    elastic.decide(0.0, 1, {})
    elastic.decide(PATIENCE, 1, {"a": IDLE})
    assert elastic.wanted == 1
    elastic.decide(PATIENCE, 3, {"a": IDLE, "b": BUSY})
    assert elastic.wanted == 4


def test_a_burst_that_is_soon_over_asks_for_nothing():
    elastic = Elastic(1, 5, 60.0, 1)
    elastic.decide(0.0, 1000, {"a": BUSY})
    elastic.decide(PATIENCE / 2, 0, {"a": BUSY})
    elastic.decide(PATIENCE, 1000, {"a": BUSY})
    assert elastic.wanted == 1


def test_one_that_has_nothing_to_do_for_long_enough_is_let_go_and_not_wanted_again():
    elastic = Elastic(0, 5, 10.0, 1)
    assert elastic.decide(0.0, 0, {"a": IDLE}) == []
    assert elastic.decide(9.9, 0, {"a": IDLE}) == []
    assert elastic.decide(10.0, 0, {"a": IDLE}) == ["a"]
    assert elastic.wanted == 0
    assert elastic.decide(30.0, 0, {"a": IDLE}) == []  # it is on its way
    assert elastic.decide(31.0, 1, {"a": IDLE}) == []
    assert elastic.wanted == 1  # another: that one gets nothing more


def test_what_it_has_done_between_two_looks_counts():
    elastic = Elastic(0, 5, 10.0, 1)
    elastic.decide(0.0, 0, {"a": Load(False, 1)})
    assert elastic.decide(10.0, 0, {"a": Load(False, 2)}) == []
    assert elastic.decide(20.0, 0, {"a": Load(False, 2)}) == ["a"]


def test_as_many_stay_as_are_always_wanted_those_that_were_used_last():
    elastic = Elastic(1, 5, 10.0, 1)
    elastic.decide(0.0, 0, {"a": IDLE, "b": BUSY})
    elastic.decide(1.0, 0, {"a": IDLE, "b": IDLE})
    assert elastic.decide(20.0, 0, {"a": IDLE, "b": IDLE}) == ["a"]
    assert elastic.decide(40.0, 0, {"b": IDLE}) == []


def test_none_is_let_go_while_tasks_wait():
    elastic = Elastic(0, 1, 10.0, 1)
    elastic.decide(0.0, 0, {"a": IDLE})
    assert elastic.decide(10.0, 1, {"a": IDLE}) == []


@pytest.mark.parametrize("waiting", [0, 1])
def test_those_that_have_not_come_are_wanted_as_long_as_tasks_wait_and_a_while_longer(waiting):
    elastic = Elastic(0, 3, 10.0, 1)
    elastic.decide(0.0, 3, {})
    elastic.decide(PATIENCE, 3, {})
    assert elastic.wanted == 3
    elastic.decide(PATIENCE + 9.9, waiting, {})
    assert elastic.wanted == 3
    elastic.decide(PATIENCE + 10.0, waiting, {})
    assert elastic.wanted == (3 if waiting else 0)


class Life(RuleBasedStateMachine):
    """A farm whose servers come, work, die and are let go as they may, beside a record of what each has done."""

    @initialize(least=st.integers(0, 3), more=st.integers(0, 4), idle=st.sampled_from([0.5, 3.0]))
    def begin(self, least, more, idle):
        self.least, self.most, self.idle = least, max(least + more, 1), idle
        self.elastic = Elastic(least, self.most, idle, 2)
        self.now = 0.0
        self.names = 0
        self.there = {}  # by name: load, and when it last had something to do, or came
        self.leaving = set()

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 5.0]), waiting=st.sampled_from([0, 0, 1, 7]))
    def look(self, seconds, waiting):
        self.now += seconds
        for name, (load, _) in self.there.items():
            if load.busy:
                self.there[name] = load, self.now
        before = self.elastic.wanted
        gone = self.elastic.decide(self.now, waiting, {name: load for name, (load, _) in self.there.items()})
        staying = self.there.keys() - self.leaving
        assert staying >= set(gone)
        assert not (gone and waiting)
        assert len(staying) - len(gone) >= min(self.least, len(staying))
        for name in gone:
            assert not self.there[name][0].busy
            assert self.now - self.there[name][1] >= self.idle
        if waiting:
            assert self.elastic.wanted >= min(before, self.most)
            assert self.elastic.wanted >= 1
        self.leaving |= set(gone)

    @rule()
    def one_comes(self):
        if len(self.there.keys() - self.leaving) < self.elastic.wanted:
            self.names += 1
            # It is seen first by the next look, from which on its time counts.
            self.there[f"server {self.names}"] = Load(False, 0), self.now

    @rule(data=st.data(), busy=st.booleans())
    def one_works(self, data, busy):
        if self.there:
            name = data.draw(st.sampled_from(sorted(self.there)))
            self.there[name] = Load(busy, self.there[name][0].done + 1), self.now

    @rule(data=st.data())
    def one_goes(self, data):
        if self.there:
            name = data.draw(st.sampled_from(sorted(self.there)))
            del self.there[name]
            self.leaving.discard(name)

    @rule()
    def nothing_happens_for_long(self):
        self.there = {name: (Load(False, load.done), since) for name, (load, since) in self.there.items()}
        for _ in range(3):
            self.look(6.0, 0)
        assert self.elastic.wanted == self.least
        assert len(self.there.keys() - self.leaving) <= max(self.least, 0)

    @invariant()
    def it_keeps_to_its_limits(self):
        if hasattr(self, "elastic"):
            assert self.least <= self.elastic.wanted <= self.most


Life.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestLife = Life.TestCase
