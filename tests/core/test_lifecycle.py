"""The tables of states: nothing is missing in them, and nothing leads nowhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm_executor.core.lifecycle import (
    LANE,
    SESSION,
    LaneEvent,
    LaneState,
    SessionEvent,
    SessionState,
    after,
)

TABLES = [
    pytest.param(SESSION, SessionState, SessionEvent, SessionState.OPENING, SessionState.OVER, id="session"),
    pytest.param(LANE, LaneState, LaneEvent, LaneState.STARTING, LaneState.GONE, id="lane"),
]


@pytest.mark.parametrize(("table", "states", "events", "first", "last"), TABLES)
def test_every_state_can_be_reached_and_left_for_the_end(table, states, events, first, last):
    assert set(table) == set(states)
    reached, found = {first}, [first]
    while found:
        for state in table[found.pop()].values():
            if state not in reached:
                reached.add(state)
                found.append(state)
    assert reached == set(states)
    assert table[last] == {}
    end = list(events)[-1]
    assert all(table[state][end] is last for state in states if state is not last)
    assert {event for row in table.values() for event in row} == set(events)


@pytest.mark.parametrize(("table", "states", "events", "first", "last"), TABLES)
def test_an_event_that_the_table_lacks_raises(table, states, events, first, last):
    for state in states:
        for event in events:
            if event in table[state]:
                assert after(table, state, event) is table[state][event]
            else:
                with pytest.raises(RuntimeError, match="a bug"):
                    after(table, state, event)


@given(st.lists(st.sampled_from(LaneEvent)))
def test_a_lane_is_given_tasks_only_when_its_worker_is_ready_and_can_be_reached(events):
    state, ready, connected = LaneState.STARTING, False, True
    for event in events:
        if event not in LANE[state]:
            continue
        state = after(LANE, state, event)
        ready = ready or event is LaneEvent.READY
        if event in (LaneEvent.CUT, LaneEvent.END, LaneEvent.LOSE):
            connected = False
        elif event is LaneEvent.CONNECT:
            connected = True
        assert state.connected == connected
        assert state.ready == ready or state is LaneState.GONE
        assert (ready and connected) or state is not LaneState.OPEN


@given(st.lists(st.sampled_from(SessionEvent)))
def test_a_session_that_is_to_end_never_goes_on(events):
    state, leaving = SessionState.OPENING, False
    for event in events:
        if event in SESSION[state]:
            state = after(SESSION, state, event)
            leaving = leaving or event is SessionEvent.LEAVE
            assert not leaving or state in (SessionState.LEAVING, SessionState.LEAVING_CUT, SessionState.OVER)
