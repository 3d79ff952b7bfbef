"""Output that a server tells its client: offsets, marks, the window, and peers that do not keep to it."""

import os
import socket
import struct
import sys

import pytest
from client import output_tasks as tasks
from server.peers import SessionPeer, values_of
from server.serving import Serving

from farm_executor.core.flow import WINDOW
from farm_executor.core.frames import HEADER_SIZE, FrameType
from farm_executor.errors import RemoteProtocolError
from farm_executor.server.forwarding import MAX_UNSENT, Forwarding

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
FLOOD = 3 * WINDOW


@pytest.fixture(scope="module")
def serving():
    with Serving(workers=2) as serving:
        yield serving


@pytest.fixture
def session(serving):
    with SessionPeer(serving.address, features=["output"]) as session:
        assert session.hello["features"] == ["output"]
        yield session


def start(session, *functions):
    lane = session.open_lane()
    lane.start()
    for number, function in enumerate(functions):
        lane.teach(number, function)
    return lane


def receive_output(session, until):
    """The bytes of standard output up to that offset, and the size of all frames."""
    data, size = bytearray(), 0
    while len(data) < until:
        frame = session.receive()
        if frame.type is FrameType.OUTPUT and frame.count == 1:
            assert frame.seq == len(data)
            assert struct.unpack_from("<Q", frame.body) == (1,), "the lane"
            data += frame.body[8:]
            size += HEADER_SIZE + len(frame.body)
    return bytes(data), size


def receive_results(lane, count):
    """Results without their marks."""
    while count > 0:
        frame = lane.receive()
        if frame.type is FrameType.RESULTS:
            count -= frame.count


def test_marks_come_before_results_and_say_whose_the_bytes_are(session):
    lane = start(session, tasks.write, tasks.quiet)
    lane.submit(0, (0, b"one\n"), (1,), (0, b"three\n"))
    marks, values = {}, []
    while len(values) < 3:
        frame = lane.receive()
        if frame.type is FrameType.MARKS:
            assert len(frame.body) == 40 * frame.count
            for seq, begin, _, end, _ in struct.iter_unpack("<5Q", frame.body):
                before = marks.get(seq, (begin, end))
                marks[seq] = min(begin, before[0]), max(end, before[1])
        else:
            values += values_of(frame)
            assert marks.keys() >= {0, 2} & set(range(len(values)))
    assert marks == {0: (0, 4), 2: (4, 10)}
    assert receive_output(session, 10)[0] == b"one\nthree\n"


def test_a_client_that_has_not_asked_gets_nothing(serving):
    with SessionPeer(serving.address) as session:
        assert session.hello.get("features", []) == []
        lane = start(session, tasks.write)
        lane.submit(0, (0, b"for the server alone\n"))
        assert lane.outcomes(1) == {0: None}, "and no marks"
        assert session.ping() is not None
    assert "for the server alone" in serving.process.stdout.readline()


def test_who_floods_waits_for_a_client_that_shows_what_it_gets(session):
    lane = start(session, tasks.write)
    lane.submit(0, *[(0, b"x" * 1000)] * (FLOOD // 1000))
    received, heard = 0, 0
    while received < FLOOD // 1000 * 1000:
        data, size = receive_output_piece(session, received)
        received += data
        heard += size
        assert heard - said_before(heard) <= WINDOW + 2**16
        session.send_frame(FrameType.HEARD, seq=heard)


def receive_output_piece(session, offset):
    while True:
        frame = session.receive()
        if frame.type is FrameType.OUTPUT and frame.count == 1:
            assert frame.seq == offset, "nothing has been dropped"
            return len(frame.body) - 8, HEADER_SIZE + len(frame.body)


def said_before(heard):
    return max(heard - WINDOW, 0)


def test_who_floods_a_deaf_client_goes_on_and_the_gap_shows(session):
    lane = start(session, tasks.write)
    lane.submit(0, *[(0, b"x" * 1000)] * (FLOOD // 1000))
    receive_results(lane, FLOOD // 1000)  # they come although nothing is heard
    end = FLOOD // 1000 * 1000
    heard, offset = 0, 0
    while offset < end:
        frame = session.receive()
        heard += HEADER_SIZE + len(frame.body)
        if len(frame.body) == 8:  # where the stream has come to
            assert frame.seq > offset
            offset = frame.seq
        else:
            assert frame.seq == offset
            offset += len(frame.body) - 8
            if heard > WINDOW // 2:
                session.send_frame(FrameType.HEARD, seq=heard)
    assert offset == end


@pytest.mark.parametrize("told", [[1000], [10, 5]])
def test_a_client_that_has_heard_too_much_or_less_than_before_is_sent_away(session, told):
    lane = start(session, tasks.write)
    lane.submit(0, (0, b"x" * 10))
    receive_output(session, 10)
    for heard in told:
        session.send_frame(FrameType.HEARD, seq=heard)
    session.wait_for_end()


def test_heard_without_the_feature_ends_the_session(serving):
    with SessionPeer(serving.address) as session:
        session.send_frame(FrameType.HEARD, seq=0)
        session.wait_for_end()


def test_the_last_words_of_a_worker_come_before_its_death(session):
    lane = start(session, tasks.say_and_die)
    lane.submit(0, (0, "last words"))
    frame = session.receive()
    assert (frame.type, frame.body[8:]) == (FrameType.OUTPUT, b"last words")
    assert session.wait_for_death()["code"] == 3


def test_counts_begin_again_with_each_connection():
    sent = []
    way = Forwarding(lambda buffers: sent.extend(buffers) or 0)
    assert way.say(1, 1, 0, b"x" * 100)
    way.hear(100)
    way.restart()
    with pytest.raises(RemoteProtocolError, match="heard"):
        way.hear(1)


def test_over_another_connection_the_client_hears_where_the_streams_have_come_to(serving):
    """What the broken one has taken last may not have arrived, and results wait for it."""
    with SessionPeer(serving.address, features=["output"], resume_seconds=60) as session:
        start(session, tasks.write).submit(0, (0, b"before\n"))
        assert receive_output(session, 7)[0] == b"before\n"
        session.come_back()
        frame = session.receive()
        assert (frame.type, frame.seq, frame.body[8:]) == (FrameType.OUTPUT, 7, b"")


def cut(session, serving):
    """End the control connection, and wait until the server knows."""
    session.connection.socket.shutdown(socket.SHUT_RDWR)
    with SessionPeer(serving.address):
        pass  # it reads what has ended before it greets those who come later


def test_what_is_written_while_there_is_no_connection_is_told_over_the_next(serving):
    with SessionPeer(serving.address, features=["output"], resume_seconds=60) as session:
        lane = start(session, tasks.write)
        cut(session, serving)
        lane.submit(0, (0, b"meanwhile\n"))
        receive_results(lane, 1)
        session.come_back()
        assert receive_output(session, 10)[0] == b"meanwhile\n"


def test_nobody_waits_for_long_for_a_connection(serving):
    with SessionPeer(serving.address, features=["output"], resume_seconds=60) as session:
        lane = start(session, tasks.write)
        cut(session, serving)
        lane.submit(0, *[(0, b"x" * 1000)] * 1000)
        receive_results(lane, 1000)
        session.come_back()
        frame = session.receive()
        assert (frame.type, frame.body[8:]) == (FrameType.OUTPUT, b"")
        assert frame.seq > 0, "and the gap shows"


def test_a_window_is_of_one_connection():
    way = Forwarding(lambda buffers: 0)
    way.say(1, 1, 0, b"x" * 2 * WINDOW)
    assert not way.has_room
    way.cut()
    way.restart()
    assert way.has_room
    way.cut()
    assert not way.has_room


def test_small_pieces_do_not_pile_up_in_front_of_a_socket_that_takes_none():
    waiting = []
    way = Forwarding(lambda buffers: waiting.append(buffers) or len(waiting))
    while way.has_room:
        way.say(1, 1, 0, b"x")
    assert len(waiting) == MAX_UNSENT
    way.drained()
    assert way.has_room
    assert os.getpid()
