"""Both judgements, over any history of beats."""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm_executor.core.liveness import MAX_MISSED, Flow, Pulse, decode_counts, encode_counts
from farm_executor.core.reader import FrameReader
from farm_executor.errors import RemoteProtocolError

histories = st.lists(st.booleans(), max_size=30)


@given(histories)
def test_a_peer_is_silent_when_it_has_not_been_heard_for_so_many_beats_and_only_then(history: list[bool]) -> None:
    pulse = Pulse()
    so_far = [True]  # it has just spoken
    for heard in history:
        if heard:
            pulse.heard()
            so_far[-1] = True
        silent = len(so_far) >= MAX_MISSED and not any(so_far[-MAX_MISSED:])
        assert pulse.beat() is silent
        so_far.append(False)


def test_one_beat_after_a_long_stop_condemns_nobody() -> None:
    """However long the process was stopped between the two: a beat is a beat."""
    pulse = Pulse()
    assert not pulse.beat()
    assert not pulse.beat()
    pulse.heard()
    assert not pulse.beat()


steps = st.lists(st.integers(0, 100), min_size=1, max_size=30)


@given(steps)
def test_what_arrives_within_a_beat_flows(sizes: list[int]) -> None:
    flow = Flow()
    arrived = 0
    for sent in accumulate(sizes):
        assert not flow.beat(sent, arrived)
        arrived = sent


@given(st.integers(1, 2**40), st.lists(st.integers(0, MAX_MISSED - 2), max_size=20))
def test_what_moves_flows_however_slowly(sent: int, pauses: list[int]) -> None:
    flow = Flow()
    flow.beat(sent + len(pauses), 0)
    for arrived, pause in enumerate(pauses):
        for _ in range(pause + 1):
            assert not flow.beat(sent + len(pauses), arrived)


@given(st.integers(0, 1000), st.integers(1, 1000), st.lists(st.integers(0, 100), max_size=MAX_MISSED))
def test_what_stands_for_so_many_beats_is_stuck(arrived: int, missing: int, later: list[int]) -> None:
    """Whatever else is sent meanwhile."""
    flow = Flow()
    sent = arrived + missing
    assert not flow.beat(sent, arrived)
    verdicts = []
    for more in (later + [0] * MAX_MISSED)[:MAX_MISSED]:
        sent += more
        verdicts.append(flow.beat(sent, arrived))
    assert verdicts == [False] * (MAX_MISSED - 1) + [True]


@pytest.mark.parametrize("missed", range(MAX_MISSED))
def test_what_arrives_in_the_last_moment_is_not_stuck(missed: int) -> None:
    flow = Flow()
    flow.beat(10, 0)
    for _ in range(missed):
        assert not flow.beat(10, 0)
    assert not flow.beat(10, 10)
    for _ in range(2 * MAX_MISSED):
        assert not flow.beat(10, 10)


@given(st.integers(0, 1000))
def test_a_connection_on_which_nothing_is_due_is_not_stuck(count: int) -> None:
    flow = Flow()
    for _ in range(3 * MAX_MISSED):
        assert not flow.beat(count, count)


# -- in doubt ---------------------------------------------------------------------------------------------------


def test_with_patience_for_one_beat_what_does_not_move_is_taken_for_lost_at_the_second():
    flow = Flow(patience=1)
    assert not flow.beat(10, 0)
    assert flow.beat(10, 0)


def test_once_all_has_arrived_there_is_no_doubt_any_more():
    flow = Flow(patience=1)
    assert not flow.beat(10, 0)
    assert not flow.beat(20, 10)
    assert [flow.beat(20, 10) for _ in range(MAX_MISSED)] == [False] * (MAX_MISSED - 1) + [True]


u64 = st.integers(0, 2**64 - 1)


@given(st.lists(st.tuples(u64, u64, u64), max_size=9), u64)
def test_counts_are_read_as_they_were_packed(lanes: list[tuple[int, int, int]], seq: int) -> None:
    (frame,) = FrameReader().receive_data(b"".join(encode_counts(lanes, seq)))
    assert (frame.seq, list(decode_counts(frame))) == (seq, lanes)


@given(st.integers(0, 9), st.binary(max_size=99))
def test_counts_of_another_length_are_refused(count: int, body: bytes) -> None:
    (frame,) = FrameReader().receive_data(b"".join(encode_counts([], 1)))
    frame = frame._replace(count=count, body=body)
    if len(body) == 24 * count:
        assert len(list(decode_counts(frame))) == count
    else:
        with pytest.raises(RemoteProtocolError, match="PONG frame of"):
            decode_counts(frame)
