"""The outbox: whatever breaks when, each outcome arrives once, in order, and what is kept stays bounded.

`client.test_histories` plays it against the client's lane; here the client is a list.
"""

from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from farm_executor.core.outbox import Outbox
from farm_executor.errors import RemoteProtocolError


class Lane(RuleBasedStateMachine):
    """A worker with an outbox, a client, and a connection that loses whatever is on it when it breaks."""

    def __init__(self):
        super().__init__()
        self.outbox = Outbox(resumable=True)
        self.made = 0
        self.there = deque()  # (number, outcomes), or the word that it goes on
        self.back = deque()  # acknowledgements, by number
        self.got = []
        self.acknowledged = 0  # the highest that has been sent over any connection

    @rule(count=st.integers(1, 3))
    def make(self, count):
        for _ in range(count):
            self.outbox.waiting.append(self.made)
            self.made += 1

    @rule()
    def send(self):
        first, items = self.outbox.take()
        assert not items or not self.outbox.mute
        if items:
            self.there.append((first, items))

    @precondition(lambda self: self.there)
    @rule(count=st.integers(1, 3))
    def arrive(self, count):
        for _ in range(min(count, len(self.there))):
            first, items = self.there.popleft()
            assert first == len(self.got), "the next one due, neither lost nor twice"
            self.got += items

    @precondition(lambda self: not self.outbox.mute)
    @rule()
    def acknowledge(self):
        self.back.append(len(self.got))
        self.acknowledged = len(self.got)

    @precondition(lambda self: self.back)
    @rule()
    def be_acknowledged(self):
        self.outbox.acknowledge(self.back.popleft())

    @rule()
    def cut(self):
        """Both ends lose what is under way; the worker may learn of it before or after the client."""
        self.there.clear()
        self.back.clear()
        self.outbox.cut()

    @precondition(lambda self: self.outbox.mute)
    @rule()
    def resume(self):
        self.outbox.resume(len(self.got))
        assert self.outbox.kept == 0

    @precondition(lambda self: self.outbox.mute)
    @rule(by=st.integers(1, 5))
    def resume_at_another_number(self, by):
        """A client that lies is refused, and nothing has changed."""
        for wrong in (self.outbox.sent + by, self.outbox.sent - self.outbox.kept - by):
            with pytest.raises(RemoteProtocolError, match="resumed at result"):
                self.outbox.resume(wrong)

    @precondition(lambda self: not self.outbox.mute)
    @rule()
    def resume_uncut(self):
        with pytest.raises(RemoteProtocolError, match="resumed at result"):
            self.outbox.resume(self.outbox.sent)

    @invariant()
    def what_has_arrived_is_what_was_made(self):
        assert self.got == list(range(len(self.got)))

    @invariant()
    def only_what_is_not_known_to_have_arrived_is_kept(self):
        assert self.outbox.sent - self.outbox.kept <= len(self.got)
        if not self.back and not self.outbox.mute and not self.there:
            assert self.outbox.kept <= self.made - self.acknowledged

    def teardown(self):
        if self.outbox.mute:
            self.resume()
        self.send()
        self.arrive(len(self.there))
        assert self.got == list(range(self.made))
        self.outbox.acknowledge(self.made)
        assert self.outbox.kept == 0


TestLane = Lane.TestCase
TestLane.settings = settings(deadline=None, stateful_step_count=40)


def test_without_resuming_nothing_is_kept():
    outbox = Outbox(resumable=False)
    outbox.waiting.extend("ab")
    assert outbox.take(loose=True) == (0, ["a", "b"])
    assert (outbox.kept, outbox.loose) == (0, False)


def test_what_is_loose_is_copied_once_and_no_more_after_its_acknowledgement():
    outbox = Outbox(resumable=True)
    outbox.waiting.extend("ab")
    outbox.take(loose=True)
    outbox.waiting.append("c")
    assert outbox.loose
    outbox.fix(str.upper)
    assert not outbox.loose
    outbox.cut()
    outbox.resume(1)
    assert outbox.take() == (1, ["B", "C"])
    outbox.take(loose=True)
    outbox.acknowledge(3)
    assert not outbox.loose
