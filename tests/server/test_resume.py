"""What a server and its workers make of connections that break, and of clients that come back: spoken by hand."""

import contextlib
import os
import signal
import sys
import threading

import pytest
from contract.gate import Gate
from contract.tasks import identity, pass_gate
from server import tasks
from server.peers import LanePeer, SessionPeer, dial, prove_key
from server.processes import DEADLINE, alive, descriptors, resident_bytes, wait_until
from server.serving import KEY, Serving

from farm_executor import end_server, ping, status
from farm_executor.core.frames import FrameType, encode_frame
from farm_executor.core.handshake import encode_hello
from farm_executor.launch.local import PrivateServer
from farm_executor.server import sessions
from farm_executor.wire.dialling import RefusedError
from farm_executor.wire.security import read_key
from farm_executor.wire.versions import local_versions

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
    pytest.mark.usefixtures("no_leaks"),
]

IDENTITY, GATE, SIGN, PID, PAGE = 1, 2, 3, 4, 5
FUNCTIONS = {IDENTITY: identity, GATE: pass_gate, SIGN: tasks.sign, PID: tasks.pid, PAGE: tasks.fill_page}


@contextlib.contextmanager
def meeting(server: Serving, **options):
    """A session that is over at the end, and does not wait for its client."""
    with SessionPeer(server.address, **options) as session:
        try:
            yield session
        finally:
            with contextlib.suppress(OSError):
                session.send_frame(FrameType.BYE, count=1)


@pytest.fixture
def session(serving: Serving):
    with meeting(serving, resume_seconds=60) as session:
        yield session


@pytest.fixture
def lane(session: SessionPeer) -> LanePeer:
    return ready_lane(session)


@pytest.fixture
def gate():
    with Gate() as gate:
        yield gate


def teach_all(lane: LanePeer) -> None:
    for number, function in FUNCTIONS.items():
        lane.teach(number, function)


def ready_lane(session: SessionPeer, lane: int = 1, slot: int = 0) -> LanePeer:
    peer = session.open_lane(lane=lane, slot=slot)
    peer.start()
    teach_all(peer)
    return peer


def resumed(session: SessionPeer, lacking: int, *, expected: int, lane: int = 1) -> LanePeer:
    peer = session.resume_lane(lane)
    assert peer.resume(lacking) == expected
    return peer


def refusal(deed, *arguments, **options) -> str:
    with pytest.raises(RefusedError) as caught:
        deed(*arguments, **options)
    return caught.value.code


# -- a lane: outcomes --------------------------------------------------------------------------------------


def test_outcomes_are_kept_and_sent_again_from_the_one_that_lacks(session, lane):
    lane.submit(0, *[(IDENTITY, number) for number in range(6)])
    assert len(lane.outcomes(6)) == 6
    for lacking in (0, 0, 2, 3, 6):
        lane.cut()
        lane = resumed(session, lacking, expected=6)
        assert lane.outcomes(6 - lacking) == {number: number for number in range(lacking, 6)}
    teach_all(lane)
    lane.submit(6, (PID,))
    assert lane.outcomes(1) == {6: lane.pid}


def test_what_runs_when_the_connection_breaks_goes_on_and_so_does_what_waits(session, lane, gate, tmp_path):
    book = tmp_path / "book"
    lane.submit(0, (GATE, gate.address, "passed"), *[(SIGN, str(book), number) for number in (1, 2)])
    gate.wait_for_arrivals()
    lane.cut()
    lane = resumed(session, 0, expected=3)
    gate.open()
    assert lane.outcomes(3) == {0: "passed", 1: 1, 2: 2}
    assert book.read_text().split() == [str(lane.pid)] * 2


def test_tasks_are_run_to_the_end_while_nobody_is_there(session, lane, gate, tmp_path):
    book = tmp_path / "book"
    lane.submit(0, (GATE, gate.address), *[(SIGN, str(book), number) for number in range(1, 50)])
    gate.wait_for_arrivals()
    lane.cut()
    gate.open()
    wait_until(lambda: book.exists() and len(book.read_text().split()) == 49, "all have run")
    lane = resumed(session, 0, expected=50)
    assert lane.outcomes(50) == {0: None, **{number: number for number in range(1, 50)}}
    assert len(book.read_text().split()) == 49


def test_a_connection_may_break_again_and_again_under_a_running_task(session, lane, gate):
    lane.submit(0, (GATE, gate.address, "passed"))
    gate.wait_for_arrivals()
    before = descriptors(lane.pid)
    for _ in range(20):
        lane.cut()
        lane = resumed(session, 0, expected=1)
    assert len(descriptors(lane.pid)) == len(before), descriptors(lane.pid) ^ before
    gate.open()
    assert lane.outcomes(1) == {0: "passed"}


def test_a_connection_that_seems_to_live_is_ended_for_another(session, lane, gate):
    """Its client knows better: nothing arrives over it any more."""
    lane.submit(0, (GATE, gate.address, "passed"))
    gate.wait_for_arrivals()
    other = resumed(session, 0, expected=1)
    lane.wait_for_end()
    gate.open()
    assert other.outcomes(1) == {0: "passed"}


@pytest.mark.parametrize("breaks", [True, False], ids=["it breaks", "it seems to live"])
def test_an_outcome_that_is_being_sent_is_sent_anew(session, lane, breaks):
    """The worker stands in the midst of it, since nobody reads."""
    size = 64 << 20
    lane.submit(0, (IDENTITY, bytes(size)))
    wait_until(lambda: any(sent > size for _, _, sent in session.ping()["lanes"]), "it is being sent")
    if breaks:
        lane.cut()
    lane = resumed(session, 0, expected=1)
    assert lane.outcomes(1) == {0: bytes(size)}


def test_an_outcome_is_what_it_was_whatever_the_next_task_does_to_its_memory(session, lane):
    lane.submit(0, *[(PAGE, value) for value in (1, 2, 3)])
    assert [bytes(page[:1]) for page in lane.outcomes(3).values()] == [b"\1", b"\2", b"\3"]
    lane.cut()
    lane = resumed(session, 0, expected=3)
    pages = lane.outcomes(3)
    assert [set(bytes(page)) for page in pages.values()] == [{1}, {2}, {3}]


def test_an_outcome_is_what_it_was_also_if_its_task_ran_while_nobody_was_there(session, lane, gate, tmp_path):
    book = tmp_path / "book"
    pages = [(PAGE, value) for value in (1, 2, 3)]
    lane.submit(0, (GATE, gate.address), *pages, (SIGN, str(book)), (GATE, gate.address), (PAGE, 4))
    gate.wait_for_arrivals()
    lane.cut()
    gate.open()
    wait_until(book.exists, "the pages have been filled")
    lane = resumed(session, 0, expected=7)
    found = lane.outcomes(7)
    assert [set(bytes(found[seq])) for seq in (1, 2, 3, 6)] == [{1}, {2}, {3}, {4}]


def test_an_outcome_is_what_it_was_also_if_its_connection_broke_twice(session, lane, gate, tmp_path):
    book = tmp_path / "book"
    lane.teach(9, tasks.fill_page_and_sign)
    lane.submit(0, (GATE, gate.address), (9, 1, str(book)))
    gate.wait_for_arrivals()
    lane.cut()
    gate.open()
    wait_until(book.exists, "the page has been filled")
    lane = resumed(session, 0, expected=2)
    lane.outcomes(2)
    teach_all(lane)
    lane.submit(2, (PAGE, 2))
    lane.outcomes(1)
    lane.cut()
    lane = resumed(session, 0, expected=3)
    assert [set(bytes(lane_page)) for lane_page in list(lane.outcomes(3).values())[1:]] == [{1}, {2}]


def test_what_is_acknowledged_is_forgotten(session, lane):
    before = resident_bytes(lane.pid)
    size = 16 << 20
    for number in range(5):
        lane.submit(number, (IDENTITY, bytes(size)))
        assert lane.outcomes(1) == {number: bytes(size)}
    assert resident_bytes(lane.pid) - before > 4 * size
    lane.acknowledge(5)
    wait_until(lambda: resident_bytes(lane.pid) - before < 2 * size, "the memory has been given back")
    lane.cut()
    resumed(session, 5, expected=5)


def test_the_times_of_outcomes_sent_again_are_those_of_their_tasks(session, lane, gate):
    """Else a client would take them for tasks that cost nothing, and send a great many more."""
    lane.submit(0, (GATE, gate.address))
    gate.wait_for_arrivals()
    threading.Event().wait(0.05)
    gate.open()
    times = [int.from_bytes(lane.receive().body[:4], "little")]
    for _ in range(2):
        lane.cut()
        lane = resumed(session, 0, expected=1)
        times.append(int.from_bytes(lane.receive().body[:4], "little"))
    assert times[0] >= 50_000
    assert times == times[:1] * 3


# -- a lane: tasks -----------------------------------------------------------------------------------------


def test_what_has_not_come_whole_has_not_come(session, lane, gate):
    lane.submit(0, (GATE, gate.address), (IDENTITY, 1))
    gate.wait_for_arrivals()
    whole = b"".join(encode_frame(FrameType.TASKS, count=1, seq=2, body=bytes(100)))
    lane.send(whole[:-1])
    lane.cut()
    lane = resumed(session, 0, expected=2)
    teach_all(lane)
    lane.submit(2, (IDENTITY, "in its place"))
    gate.open()
    assert lane.outcomes(3) == {0: None, 1: 1, 2: "in its place"}


def test_what_was_given_back_is_not_expected_whether_the_client_heard_of_it_or_not(session, lane, gate, tmp_path):
    book = tmp_path / "book"
    lane.submit(0, (GATE, gate.address), *[(SIGN, str(book), number) for number in range(1, 6)])
    gate.wait_for_arrivals()
    lane.recall(3)
    assert lane.receive().type is FrameType.RECALLED  # nobody tells the worker that this has come
    lane.cut()
    lane = resumed(session, 0, expected=3)
    gate.open()
    assert lane.outcomes(3) == {0: None, 1: 1, 2: 2}
    assert len(book.read_text().split()) == 2


def test_functions_are_forgotten_but_for_tasks_that_have_come(session, lane, gate):
    lane.submit(0, (GATE, gate.address), (IDENTITY, "it had come"))
    gate.wait_for_arrivals()
    lane.cut()
    lane = resumed(session, 0, expected=2)
    gate.open()
    assert lane.outcomes(2)[1] == "it had come"
    lane.submit(2, (IDENTITY, "it has not"))
    assert session.wait_for_death()["code"] == 70


@pytest.mark.parametrize(("acknowledged", "lacking"), [(0, 4), (2, 1), (0, 2**64 - 1)])
def test_a_client_that_lacks_what_cannot_be_has_no_worker_any_more(session, lane, acknowledged, lacking):
    lane.submit(0, *[(IDENTITY, number) for number in range(3)])
    lane.outcomes(3)
    if acknowledged:
        lane.acknowledge(acknowledged)
        lane.submit(3, (PID,))  # behind it: when that has been answered, it has come
        lane.outcomes(1)
    lane.cut()
    session.resume_lane().send_frame(FrameType.RESUME, seq=lacking)
    assert session.wait_for_death()["code"] == 70


def test_what_is_not_broken_is_not_to_be_resumed(session, lane):
    lane.send_frame(FrameType.RESUME, seq=0)
    assert session.wait_for_death()["code"] == 70


# -- a lane: its worker ------------------------------------------------------------------------------------


def test_a_worker_that_died_meanwhile_is_refused_and_reported(session, lane, gate):
    lane.submit(0, (GATE, gate.address))
    gate.wait_for_arrivals()
    lane.cut()
    os.kill(lane.pid, signal.SIGKILL)
    report = session.wait_for_death()
    assert (report["lane"], report["code"], report["begun"]) == (1, -signal.SIGKILL, 0)
    assert refusal(session.resume_lane) == "worker"
    assert refusal(session.resume_lane, 77) == "worker"


def test_a_lane_that_breaks_before_its_worker_is_ready_has_none(session):
    lane = session.open_lane()
    lane.cut()
    assert session.wait_for_death()["lane"] == 1


def test_a_worker_whose_lane_has_been_given_up_ends(session, lane, gate):
    lane.submit(0, (GATE, gate.address))
    gate.wait_for_arrivals()
    lane.cut()
    other = ready_lane(session, lane=2)
    assert session.wait_for_death()["lane"] == 1
    assert refusal(session.resume_lane) == "worker"
    other.submit(0, (PID,))
    assert other.outcomes(1) == {0: other.pid}


def test_a_goodbye_ends_a_worker_that_could_be_resumed(session, lane, gate):
    lane.submit(0, (GATE, gate.address))
    gate.wait_for_arrivals()
    lane.send_frame(FrameType.BYE)
    assert session.wait_for_death()["code"] == 0


def test_a_worker_that_cannot_hear_goes_on_with_the_last_of_the_connections_that_it_was_given(
    session, lane, tmp_path
):
    book = tmp_path / "book"
    lane.teach(9, tasks.sign_and_sleep_with_the_lock)
    lane.submit(0, (9, str(book), 1))
    wait_until(book.exists, "it sleeps")
    lane.cut()
    former = session.resume_lane()
    former.send_frame(FrameType.RESUME, seq=0)
    last = resumed(session, 0, expected=1)
    former.wait_for_end()
    assert last.outcomes(1) == {0: 0}


def test_a_worker_without_room_for_another_connection_ends_and_is_reported(session, lane):
    lane.teach(9, tasks.use_up_descriptors)
    lane.submit(0, (9,))
    lane.outcomes(1)
    lane.cut()
    session.resume_lane()
    assert session.wait_for_death()["code"] == 70


@pytest.mark.parametrize("how", ["exit", "kill"])
def test_a_process_that_a_task_has_left_behind_keeps_no_connection_alive(session, lane, gate, tmp_path, how):
    lane.teach(9, tasks.leave_a_child_and_die)
    lane.submit(0, (9, str(tmp_path / "book"), gate.address))
    gate.wait_for_arrivals()
    assert session.wait_for_death()["code"] == 3
    lane.wait_for_end()


# -- a session ---------------------------------------------------------------------------------------------


def test_a_session_outlives_its_control_connection(serving, session, lane, gate):
    lane.submit(0, (GATE, gate.address, "passed"))
    gate.wait_for_arrivals()
    session.connection.hang_up()
    serving.wait_for_line("session cut")
    session.come_back()
    gate.open()
    assert lane.outcomes(1) == {0: "passed"}, "its lanes are not concerned"
    assert session.hello["session"] == session.id
    assert [numbers[0] for numbers in session.ping()["lanes"]] == [1]


def test_a_client_may_come_back_before_anybody_has_missed_it_and_again(session, lane):
    for number in range(3):
        session.come_back()
        session.former[-1].wait_for_end()
        session.ping(number)
    lane.submit(0, (PID,))
    assert lane.outcomes(1) == {0: lane.pid}


def test_deaths_are_reported_again_until_the_slot_has_another_worker(session, lane):
    one, other = ready_lane(session, lane=2, slot=1), lane
    session.connection.hang_up()
    os.kill(one.pid, signal.SIGKILL)
    one.wait_for_end()
    for _ in range(2):
        session.come_back()
        report = session.wait_for_death()
        assert (report["lane"], report["slot"], report["pid"]) == (2, 1, one.pid)
    ready_lane(session, lane=3, slot=1)
    session.come_back()
    lanes = wait_until(lambda: len(found := session.ping()["lanes"]) == 2 and found, "both have read what came")
    assert sorted(numbers[0] for numbers in lanes) == [1, 3], "and nothing before it"
    assert alive(other.pid)


def test_a_session_that_nobody_comes_back_to_ends_with_its_workers(serving):
    with meeting(serving, resume_seconds=0.2) as session, Gate() as gate:
        lane = ready_lane(session)
        lane.submit(0, (GATE, gate.address))
        gate.wait_for_arrivals()
        session.connection.hang_up()
        wait_until(lambda: not alive(lane.pid), "its worker has ended")
        assert refusal(session.come_back) == "session"
        assert refusal(session.resume_lane) == "session"


def test_there_is_no_way_back_to_a_session_that_never_was(session):
    session.id = "0" * 32
    assert refusal(session.come_back) == "session"
    assert refusal(session.resume_lane) == "session"


def test_there_is_no_way_back_after_a_goodbye(session, lane):
    session.send_frame(FrameType.BYE)
    session.wait_for_end()
    assert refusal(session.come_back) == "session"


@pytest.mark.parametrize("options", [{}, {"resume_seconds": 0}])
def test_who_has_not_asked_for_it_is_not_resumed(serving, options):
    with meeting(serving, **options) as session:
        lane = ready_lane(session)
        assert session.hello["resume_seconds"] == 0
        assert refusal(session.come_back) == "session"
        assert refusal(session.resume_lane) == "worker"
        session.ping()
        lane.cut()
        assert session.wait_for_death()["lane"] == 1
        wait_until(lambda: not alive(lane.pid), "its worker has ended")
    assert ping(serving.host, serving.port, key=KEY)


@pytest.mark.parametrize("seconds", [-1, "1", None, True, 1e400])
def test_what_is_no_number_of_seconds_is_no_hello(serving, seconds):
    with pytest.raises((EOFError, RefusedError)):
        SessionPeer(serving.address, resume_seconds=seconds)
    assert ping(serving.host, serving.port, key=KEY)


def test_nobody_is_waited_for_longer_than_an_hour(serving):
    with meeting(serving, resume_seconds=1e9) as session:
        assert session.hello["resume_seconds"] == sessions.MAX_RESUME_SECONDS == 3600


def test_the_end_of_a_unix_socket_is_the_end(tmp_path):
    server = PrivateServer(1)
    try:
        address = server.locate()
        with SessionPeer(str(address), read_key(address.path + ".key"), resume_seconds=60) as session:
            lane = ready_lane(session)
            assert session.hello["resume_seconds"] == 0
            session.connection.hang_up()
            wait_until(lambda: not alive(lane.pid), "its worker has ended")
            assert refusal(session.come_back) == "session"
    finally:
        server.end()


@contextlib.contextmanager
def draining_while_somebody_comes_back():
    """A server that is told to end when a client has knocked to come back."""
    with Serving(workers=1) as server, SessionPeer(server.address, resume_seconds=60) as session:
        lane = ready_lane(session)
        with dial(server.address) as guest:
            guest = prove_key(guest)
            end_server(server.host, server.port, key=KEY)
            assert session.receive().type is FrameType.DRAINING
            hello = {"role": "control", "resume": session.id, "versions": local_versions()._asdict()}
            guest.sendall(b"".join(encode_hello(hello)))
            yield server, session, lane, guest


def test_a_server_that_drains_takes_back_whom_it_serves():
    with draining_while_somebody_comes_back() as (server, session, lane, guest):
        assert guest.recv(4096)[4] == FrameType.HELLO
        session.wait_for_end()
        lane.submit(0, (PID,))
        assert lane.outcomes(1) == {0: lane.pid}
        guest.close()
        assert server.wait() == 0, "nobody else can come back"
        assert not alive(lane.pid)


def test_a_server_keeps_no_descriptor_of_what_was_resumed(serving, session, lane):
    before = len(descriptors(serving.pid))
    for _ in range(20):
        lane.cut()
        lane = resumed(session, 0, expected=0)
        session.come_back()
        session.former[-1].wait_for_end()
    wait_until(lambda: len(descriptors(serving.pid)) == before, "as many as before")


def test_a_server_whose_client_comes_back_serves_others_meanwhile(serving, session, lane, gate):
    lane.submit(0, (GATE, gate.address))
    gate.wait_for_arrivals()
    session.connection.hang_up()
    lane.cut()
    with meeting(serving) as other:
        peer = ready_lane(other)
        peer.submit(0, (PID,))
        assert peer.outcomes(1) == {0: peer.pid}
        assert len(status(serving.host, serving.port, key=KEY)["sessions"]) >= 2
    session.come_back()  # to say goodbye


# -- signs of life -----------------------------------------------------------------------------------------


def test_a_ping_is_answered_with_what_has_come_and_gone_on_each_lane(session, lane):
    other = ready_lane(session, lane=5, slot=1)
    lane.submit(0, (IDENTITY, bytes(1 << 20)))
    lane.outcomes(1)

    def agree(number: int) -> bool:
        expected = {
            (lane, peer.connection.bytes_sent, peer.connection.bytes_received)
            for lane, peer in ((1, session.lanes[-1]), (5, other))
        }
        return {tuple(numbers) for numbers in session.ping(number)["lanes"]} == expected

    session.lanes.append(lane)
    wait_until(lambda: agree(7), "all has arrived")
    lane.cut()
    resumed(session, 1, expected=1)
    wait_until(lambda: agree(8), "the count begins anew")


def test_a_client_that_can_read_them_is_answered_with_packed_counts(serving):
    with meeting(serving, resume_seconds=60, features=["counts"]) as session:
        lane = ready_lane(session).connection
        wait_until(
            lambda: session.ping()["lanes"] == [(1, lane.bytes_sent, lane.bytes_received)], "all has arrived"
        )


def test_nothing_is_said_of_a_lane_whose_worker_does_not_read(session, lane, tmp_path):
    """What is behind it cannot arrive: that is no fault of the network."""
    book = tmp_path / "book"
    lane.teach(9, tasks.sign_and_sleep_with_the_lock)
    lane.submit(0, (9, str(book), 2))
    wait_until(book.exists, "it is about to sleep")

    def something_is_unread():
        lane.teach(IDENTITY, identity)  # again, in case that it was still awake
        return session.ping()["lanes"] == []

    wait_until(something_is_unread, "it is left out")
    lane.outcomes(1)
    wait_until(lambda: session.ping()["lanes"], "it is back")


def test_a_client_that_falls_silent_is_cut_off_and_may_come_back(serving):
    with meeting(serving, resume_seconds=60, heartbeat=0.01) as session:
        lane = ready_lane(session)
        session.wait_for_end()
        session.come_back()
        lane.submit(0, (PID,))
        assert lane.outcomes(1) == {0: lane.pid}


def test_a_client_that_goes_on_speaking_is_not(serving):
    with meeting(serving, resume_seconds=60, heartbeat=0.05) as session:
        for number in range(40):  # longer than its server would wait for a word
            session.ping(number)
            threading.Event().wait(0.025)


def test_a_worker_that_stands_still_is_killed_and_reported(serving, gate):
    with meeting(serving, heartbeat=0.05) as session:
        lane = ready_lane(session)
        lane.submit(0, (GATE, gate.address))
        gate.wait_for_arrivals()
        os.kill(lane.pid, signal.SIGSTOP)
        report = session.wait_for_death()
        assert report["code"] == -signal.SIGKILL
        assert report["begun"] == 0
        assert report["frozen"] == pytest.approx(0.15)


def test_a_worker_that_goes_on_in_time_is_left_alone(serving):
    with meeting(serving, heartbeat=1) as session:
        lane = ready_lane(session)
        for _ in range(3):
            os.kill(lane.pid, signal.SIGSTOP)
            os.kill(lane.pid, signal.SIGCONT)
        lane.submit(0, (PID,))
        assert lane.outcomes(1) == {0: lane.pid}


def test_a_server_and_workers_that_are_stopped_together_for_long_go_on_together():
    """As by Ctrl-Z in a terminal."""
    with Serving(workers=1) as server, SessionPeer(server.address, heartbeat=0.05) as session:
        lane = ready_lane(session)
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for pid in (lane.pid, server.pid):
                os.kill(pid, number)
            threading.Event().wait(0.5)
        lane.submit(0, (PID,))
        assert lane.outcomes(1) == {0: lane.pid}


def test_workers_end_with_a_supervisor_that_is_killed_while_their_lanes_are_cut():
    with Serving(workers=1) as server, SessionPeer(server.address, resume_seconds=60) as session, Gate() as gate:
        lane = ready_lane(session)
        lane.submit(0, (GATE, gate.address))
        gate.wait_for_arrivals()
        lane.cut()
        server.process.kill()
        wait_until(lambda: not alive(lane.pid), "the worker has ended", DEADLINE)
