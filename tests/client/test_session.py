"""The rare ways through a session's life: events that come while a dialling thread's connection is on its way."""

import selectors
from types import SimpleNamespace
from unittest import mock

import pytest

from farm_executor.client.farm.crew import Crew
from farm_executor.client.farm.lane import Lane
from farm_executor.client.farm.session import Around, Session, Terms
from farm_executor.core.features import COUNTS
from farm_executor.core.flow import DEAF_SECONDS, WINDOW
from farm_executor.core.lifecycle import LaneEvent, LaneState, SessionState
from farm_executor.core.liveness import encode_counts
from farm_executor.core.messages import Pong, encode
from farm_executor.core.reader import FrameReader


@pytest.fixture
def posted():
    return []


@pytest.fixture
def session(posted):
    reactor = mock.Mock(post=posted.append)
    crew = mock.MagicMock()
    around = Around(5.0, 15.0, reactor, crew, mock.Mock(), mock.Mock(), lambda beat: [])
    server = mock.Mock(last_error="", __str__=lambda self: "a:1")
    terms = Terms("id", 2, resumable=True, features=frozenset(), version="0.1.0", peer=None, dial_ring=None)
    return Session(server, terms, around, mock.Mock(), mock.Mock())


def connection():
    return mock.Mock(socket=mock.Mock(), unsent=False, bytes_sent=0, bytes_received=0)


def run(posted):
    while posted:
        posted.pop(0)()


def test_a_server_may_be_removed_before_its_connection_is_taken_up(session, posted):
    late = connection()
    session.connected(late, first=True)
    session.leave()
    assert session.state is SessionState.OVER, "it has no lanes to wait for"
    run(posted)
    late.close.assert_called_once_with()
    session._up.assert_not_called()
    session._over.assert_called_once_with(session)


def test_a_session_that_leaves_while_it_is_cut_may_still_be_resumed(session, posted):
    session.connected(connection(), first=True)
    run(posted)
    session.lanes[1] = SimpleNamespace(
        id=1, connection=connection(), probe=mock.Mock(), state=LaneState.OPEN, change=mock.Mock()
    )
    session._on_end("the network is away")
    assert session.state is SessionState.CUT
    session.connected(connection(), first=False)
    session.leave()
    assert session.state is SessionState.LEAVING_CUT
    run(posted)
    assert session.state is SessionState.LEAVING
    del session.lanes[1]
    session.lane_lost(mock.Mock(id=1, slot=0), failed=False)
    assert session.state is SessionState.OVER


@pytest.mark.parametrize("counted", [True, False])
def test_lanes_are_judged_by_what_servers_of_either_form_answer(session, posted, counted):
    session.features = frozenset({COUNTS} if counted else ())
    control = connection()
    session.connected(control, first=True)
    run(posted)
    counts = [(1, 10, 20), (2, 30, 40)]
    answer = encode_counts(counts, 1) if counted else encode(Pong(counts), 1)
    control.receive.return_value = FrameReader().receive_data(b"".join(answer))
    session._on_events(control, selectors.EVENT_READ)
    (call,) = session._around.liveness.answered.call_args_list
    assert list(call.args[0]) == counts


def test_a_lane_that_has_ended_may_be_retired_when_its_server_drains():
    """Its report is awaited, and the scheduler does not know of its end yet."""
    lane = Lane(1, connection(), SimpleNamespace(features=frozenset()), 0, 4711)
    for event in (LaneEvent.READY, LaneEvent.END):
        lane.change(event)
    crew = SimpleNamespace(_lanes={1: lane}, _reactor=mock.Mock(), lose_lane=mock.Mock())
    Crew.retire_lane(crew, 1)
    assert lane.state is LaneState.ENDED
    (posting,) = crew._reactor.post.call_args_list
    posting.args[0]()
    crew.lose_lane.assert_called_once_with(lane)


def test_nothing_is_heard_without_a_connection_or_once_too_much_has_not_been_shown_for_a_second(
    session, posted, monkeypatch
):
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    assert session.hears_nothing
    first = connection()
    session.connected(first, first=True)
    run(posted)
    assert not session.hears_nothing
    session.count_received(WINDOW - 1)
    now += DEAF_SECONDS
    assert not session.hears_nothing, "there is room"
    session.count_received(1)
    assert not session.hears_nothing
    now += DEAF_SECONDS
    assert session.hears_nothing
    session.tell_heard(first, WINDOW // 2)
    now += DEAF_SECONDS
    assert not session.hears_nothing
    session.count_received(WINDOW)
    session.tell_heard(first, WINDOW // 2)
    assert not session.hears_nothing, "it has been heard of just now"
    now += DEAF_SECONDS
    assert session.hears_nothing
    session.control = connection()
    assert not session.hears_nothing, "each connection counts for itself"


def test_a_connection_that_has_just_broken_may_come_back(session, posted, monkeypatch):
    """What has been written meanwhile comes over it."""
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    session.connected(connection(), first=True)
    run(posted)
    session._on_end("the network is away")
    assert not session.hears_nothing
    now += DEAF_SECONDS
    assert session.hears_nothing


def test_a_connection_that_is_over_is_not_kept_for_what_came_over_it(session, posted):
    first = connection()
    session.connected(first, first=True)
    run(posted)
    session.count_received(100)
    session.count_shown(first, 100)
    session.close(hurry=False)
    assert all(value is not first for value in vars(session).values())
