"""The worker, spoken to by hand over a real lane: what it does with each frame, and with each kind of task."""

import contextlib
import os
import pickle
import struct
import sys
import threading

import pytest
from contract.gate import Gate
from contract.tasks import FailsToLoad, identity, pass_gate, return_lock
from hypothesis import HealthCheck, given, settings
from items import TaskItem
from server import tasks
from server.peers import LanePeer, SessionPeer, values_of
from server.processes import alive, exists, wait_until
from server.serving import Serving
from strategies import mutated

from farm_executor.core.batches import encode_tasks, encode_tasks_together
from farm_executor.core.frames import (
    BULK,
    ERROR,
    MAX_BODY,
    TOGETHER,
    FrameType,
    encode_frame,
    encode_payload,
    payload_of,
)
from farm_executor.data import payload
from farm_executor.data.failure import Origin, load_failure
from farm_executor.errors import TaskExecutionError

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
    pytest.mark.usefixtures("no_leaks"),
]

IDENTITY, GATE, SIGN, PID = 1, 2, 3, 4


@pytest.fixture
def session(serving: Serving):
    with SessionPeer(serving.address) as session:
        yield session


@pytest.fixture
def lane(session: SessionPeer) -> LanePeer:
    """A lane whose worker is ready and knows four functions."""
    return ready_lane(session)


def ready_lane(session: SessionPeer, lane: int = 1) -> LanePeer:
    peer = session.open_lane(lane=lane, slot=lane - 1)
    peer.start()
    for number, function in ((IDENTITY, identity), (GATE, pass_gate), (SIGN, tasks.sign), (PID, tasks.pid)):
        peer.teach(number, function)
    return peer


@pytest.fixture
def gate():
    with Gate() as gate:
        yield gate


# -- tasks in turn ------------------------------------------------------------------------------------------


def test_tasks_are_answered_in_order_whatever_frames_they_came_in(lane):
    lane.submit(0, (IDENTITY, "a"), (IDENTITY, "b"))
    lane.submit(2, (IDENTITY, "c"))
    lane.submit(3, *[(IDENTITY, number) for number in range(500)])
    expected = dict(enumerate(["a", "b", "c", *range(500)]))
    assert list(lane.outcomes(503).items()) == list(expected.items())


def test_large_values_come_and_go_as_segments(lane):
    """The second comes while the worker imports numpy to read the first."""
    array = pytest.importorskip("numpy").arange(1 << 18)
    lane.submit(0, (IDENTITY, array), (IDENTITY, "small"), (IDENTITY, b"x" * (5 << 20)))
    found = lane.outcomes(3)
    assert (found[0] == array).all()
    assert found[1] == "small"
    assert found[2] == b"x" * (5 << 20)


def test_outcomes_do_not_wait_for_a_long_task_behind_them(lane, gate):
    lane.submit(0, *[(IDENTITY, number) for number in range(20)], (GATE, gate.address, "late"))
    assert lane.outcomes(20) == dict(enumerate(range(20)))
    gate.wait_for_arrivals()
    gate.open()
    assert lane.outcomes(1) == {20: "late"}


def test_tasks_may_be_sent_while_one_runs(lane, gate):
    lane.submit(0, (GATE, gate.address))
    gate.wait_for_arrivals()
    for number in range(1, 50):
        lane.submit(number, (IDENTITY, number))
    gate.open()
    assert lane.outcomes(50) == {0: None, **{number: number for number in range(1, 50)}}


def test_a_task_may_be_larger_than_what_the_sockets_hold_while_another_runs(lane, gate):
    lane.submit(0, (GATE, gate.address))
    gate.wait_for_arrivals()
    lane.submit(1, (IDENTITY, bytes(32 << 20)))  # the worker must go on receiving, or this never returns
    gate.open()
    assert lane.outcomes(2)[1] == bytes(32 << 20)


# -- recall -------------------------------------------------------------------------------------------------


def recalled(lane: LanePeer) -> tuple[int, int]:
    frame = lane.receive()
    assert frame.type is FrameType.RECALLED, frame
    return frame.seq, frame.count


def test_what_is_recalled_is_given_back_from_the_end_and_never_run(lane, gate, tmp_path):
    book = tmp_path / "book"
    lane.submit(0, (GATE, gate.address), *[(SIGN, str(book), number) for number in range(1, 6)])
    gate.wait_for_arrivals()
    lane.recall(3)
    assert recalled(lane) == (3, 3)
    lane.submit(3, (IDENTITY, "in their place"))
    gate.open()
    assert lane.outcomes(4) == {0: None, 1: 1, 2: 2, 3: "in their place"}
    assert book.read_text().split() == [str(lane.pid)] * 2


def test_a_task_that_runs_is_not_given_back_however_many_are_recalled(lane, gate):
    lane.submit(0, (GATE, gate.address), (IDENTITY, 1))
    gate.wait_for_arrivals()
    lane.recall(65_535)
    assert recalled(lane) == (1, 1)
    lane.recall(1)
    assert recalled(lane) == (1, 0)
    gate.open()
    assert lane.outcomes(1) == {0: None}


def test_a_recall_when_there_is_nothing_to_do_gives_nothing(lane):
    lane.recall(4)
    assert recalled(lane) == (0, 0)
    lane.submit(0, (IDENTITY, "still there"))
    assert lane.outcomes(1) == {0: "still there"}


def test_a_recall_before_the_initializer_has_run_does_not_take_that_back(session):
    lane = session.open_lane()
    lane.send(*encode_payload(FrameType.INIT, payload.dumps(None)), *encode_frame(FrameType.RECALL, count=1))

    frames = [lane.receive(), lane.receive()]
    assert [(frame.type, frame.count, frame.seq) for frame in frames if frame.type is FrameType.RECALLED] == [
        (FrameType.RECALLED, 0, 0)
    ]
    assert FrameType.READY in [frame.type for frame in frames]


def test_recalls_while_tasks_are_done_lose_none_and_run_none_twice(lane, tmp_path):
    """Each number is answered or given back, and what was given back is answered when sent again."""
    book = tmp_path / "book"
    answered: dict[int, int] = {}
    for _ in range(30):
        first = len(answered)
        lane.submit(first, *[(SIGN, str(book), number) for number in range(first, first + 20)])
        lane.recall(10)
        end, given = first + 20, None
        while given is None or len(answered) < end:
            frame = lane.receive()
            if frame.type is FrameType.RECALLED:
                given = frame.count
                assert frame.seq == end - given
                end -= given
            else:
                for number, value in enumerate(values_of(frame), frame.seq):
                    assert number == len(answered)
                    answered[number] = value
    assert answered == {number: number for number in range(len(answered))}
    assert len(book.read_text().split()) == len(answered)


def test_calls_that_share_a_pickle_are_answered_one_by_one(lane):
    lane.send(together([IDENTITY, PID, IDENTITY], [(5,), (), ("text",)]))
    lane.submit(3, (IDENTITY, [1, 2]))
    assert lane.outcomes(4) == {0: 5, 1: lane.pid, 2: "text", 3: [1, 2]}


def test_plain_outcomes_share_a_pickle_and_others_stand_beside_them(lane, gate):
    lane.submit(0, (GATE, gate.address))
    gate.wait_for_arrivals()
    lane.submit(1, *[(IDENTITY, number) for number in range(50)], (IDENTITY, [7]), (IDENTITY, "x" * 5000))
    gate.open()
    found: dict[int, object] = {}
    shared = 0
    while len(found) < 53:
        frame = lane.receive()
        shared += frame.count if frame.flags & TOGETHER else 0
        found.update(enumerate(values_of(frame), frame.seq))
    assert list(found.values()) == [None, *range(50), [7], "x" * 5000]
    assert list(found) == list(range(53))


# -- functions ----------------------------------------------------------------------------------------------


def test_a_forgotten_function_is_still_called_by_the_tasks_before_it(lane, gate):
    lane.submit(0, (GATE, gate.address), (PID,))
    lane.forget(PID)
    gate.wait_for_arrivals()
    gate.open()
    assert lane.outcomes(2) == {0: None, 1: lane.pid}


def test_a_number_may_be_given_to_another_function(lane):
    lane.teach(9, tasks.pid)
    lane.submit(0, (9,))
    lane.forget(9)
    lane.teach(9, identity)
    lane.submit(1, (9, "another"))
    assert lane.outcomes(2) == {0: lane.pid, 1: "another"}


def test_forgetting_what_was_never_known_is_no_matter(lane):
    lane.forget(12345)
    lane.submit(0, (PID,))
    assert lane.outcomes(1) == {0: lane.pid}


# -- what ends a worker, and no more than that worker -------------------------------------------------------


def tasks_of(*items: TaskItem, seq: int = 0) -> bytes:
    return b"".join(map(bytes, encode_tasks(seq, items)))


def together(functions: list[int], calls: object, seq: int = 0) -> bytes:
    return b"".join(map(bytes, encode_tasks_together(seq, functions, pickle.dumps(calls))))


CALL = tuple(payload.dumps((("x",), {})))
BROKEN = {
    "a number too high": tasks_of(TaskItem(IDENTITY, CALL), seq=1),
    "a number used already": tasks_of(TaskItem(IDENTITY, CALL)) * 2,
    "a number beyond all": tasks_of(TaskItem(IDENTITY, CALL), seq=(1 << 64) - 1),
    "an unknown function": tasks_of(TaskItem(99, CALL)),
    "an unknown function in the middle": tasks_of(*[TaskItem(n, CALL) for n in (IDENTITY, 99, IDENTITY)]),
    "a forgotten function": b"".join(
        [*encode_frame(FrameType.FORGET, body=struct.pack("<I", PID)), tasks_of(TaskItem(PID, CALL))]
    ),
    "no task in a frame of tasks": b"".join(encode_frame(FrameType.TASKS)),
    "fewer tasks than counted": b"".join(encode_frame(FrameType.TASKS, count=9, body=bytes(10))),
    "a table that does not fit": b"".join(
        encode_frame(FrameType.TASKS, count=1, body=struct.pack("<II", IDENTITY, 5) + b"1234")
    ),
    "a segment table too short": b"".join(encode_frame(FrameType.TASKS, flags=BULK, body=b"\1\0\0\0")),
    "a segment without end": b"".join(
        encode_frame(FrameType.TASKS, flags=BULK, body=struct.pack("<IQI", 1, (1 << 64) - 1, IDENTITY))
    ),
    "an unknown function among those that share a pickle": together([IDENTITY, 99], [(1,), (2,)]),
    "fewer calls than counted in one pickle": together([IDENTITY, IDENTITY], [(1,)]),
    "one pickle that is no list": together([IDENTITY, IDENTITY], {1: 2, 3: 4}),
    "one pickle that cannot be read": b"".join(encode_tasks_together(0, [IDENTITY, IDENTITY], b"garbage")),
    "one pickle and no task": b"".join(encode_frame(FrameType.TASKS, flags=TOGETHER, body=b"N.")),
    "a FORGET without a number": b"".join(encode_frame(FrameType.FORGET)),
    "no such type": struct.pack("<IBBHQ", 0, 99, 0, 0, 0),
    "no such flag": struct.pack("<IBBHQ", 0, FrameType.RECALL, 64, 0, 0),
    "a body above the limit": struct.pack("<IBBHQ", MAX_BODY + 1, FrameType.TASKS, 0, 1, 0),
    "garbage": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    **{
        f"an unexpected frame, {kind.name}": b"".join(encode_frame(kind, body=b"{}"))
        for kind in FrameType
        if kind.name not in ("INIT", "FUNCTION", "FORGET", "TASKS", "RECALL", "ACK", "BYE")
    },
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_frame_against_the_rules_ends_that_worker_alone(serving, session, lane, what):
    other = ready_lane(session, lane=2)
    before = len(serving.lines(f"worker {lane.pid} ends"))
    lane.send(BROKEN[what])
    with contextlib.suppress(EOFError):
        while True:  # what was right before it may be answered
            assert lane.receive().type is FrameType.RESULTS
    report = session.wait_for_death()
    assert report["pid"] == lane.pid
    assert report["lane"] == 1
    assert len(serving.lines(f"worker {lane.pid} ends")) == before + 1, "one line in the log"
    other.submit(0, (PID,))
    assert other.outcomes(1) == {0: other.pid}


def test_a_truncated_frame_ends_that_worker_alone(session, lane):
    other = ready_lane(session, lane=2)
    lane.send(tasks_of(TaskItem(IDENTITY, CALL))[:-1])
    lane.close()
    assert session.wait_for_death()["pid"] == lane.pid
    other.submit(0, (PID,))
    assert other.outcomes(1) == {0: other.pid}


def test_a_truncated_segment_ends_that_worker_alone(session, lane):
    other = ready_lane(session, lane=2)
    lane.send(tasks_of(TaskItem(IDENTITY, (b"x", bytes(1 << 20))))[:-1])
    lane.close()
    assert session.wait_for_death()["pid"] == lane.pid
    other.submit(0, (PID,))
    assert other.outcomes(1) == {0: other.pid}


@pytest.mark.parametrize("what", ["garbage", "a number too high"])
def test_a_frame_against_the_rules_ends_the_worker_also_while_a_task_runs(session, lane, gate, what):
    lane.submit(0, (GATE, gate.address))
    gate.wait_for_arrivals()
    lane.send(BROKEN[what] if what == "garbage" else tasks_of(TaskItem(IDENTITY, CALL), seq=7))
    report = session.wait_for_death()
    assert (report["pid"], report["begun"]) == (lane.pid, 0)
    lane.wait_for_end()


def test_a_client_that_hangs_up_ends_the_task_that_runs_for_it(session, lane, gate):
    lane.submit(0, (GATE, gate.address))
    gate.wait_for_arrivals()
    lane.close()
    assert session.wait_for_death()["pid"] == lane.pid
    wait_until(lambda: not exists(lane.pid), "the worker is gone")


STREAM = b"".join(
    bytes(part)
    for part in [
        *encode_payload(FrameType.INIT, payload.dumps(None)),
        *encode_payload(FrameType.FUNCTION, payload.dumps(identity, out_of_band=False), seq=IDENTITY),
        *encode_tasks(0, [TaskItem(IDENTITY, CALL), TaskItem(IDENTITY, (b"N.", bytes(100)))]),
        *encode_frame(FrameType.RECALL, count=1),
        *encode_frame(FrameType.FORGET, body=struct.pack("<I", IDENTITY)),
    ]
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(stream=mutated(STREAM))
def test_no_stream_whatever_does_harm_beyond_its_own_worker(serving, stream):
    """Whatever was changed on the way, the worker ends when its client does, and the server lives."""
    with SessionPeer(serving.address) as session:
        lane = session.open_lane()
        with contextlib.suppress(OSError):
            lane.send(stream)
        lane.close()
        assert session.wait_for_death()["pid"] == lane.pid
    assert alive(serving.pid)


# -- initializers -------------------------------------------------------------------------------------------


def test_the_initializer_runs_once_before_the_first_task(session):
    lane = session.open_lane()
    lane.start(tasks.set_state, "set by the initializer")
    lane.teach(1, tasks.get_state)
    lane.submit(0, (1,))
    assert lane.outcomes(1) == {0: "set by the initializer"}


@pytest.mark.parametrize(
    ("initializer", "argument", "type_name"),
    [
        (sys.exit, 3, "SystemExit"),
        (int, "no number", "ValueError"),
        (identity, FailsToLoad(), "UnpicklingError"),
    ],
    ids=["exits", "raises", "cannot be read"],
)
def test_the_failure_of_an_initializer_is_told_and_the_worker_lives(session, initializer, argument, type_name):
    lane = session.open_lane()
    lane.send(*encode_payload(FrameType.INIT, payload.dumps((initializer, (argument,)))))
    frame = lane.receive()
    assert frame.type is FrameType.READY
    assert frame.flags & ERROR
    assert type_name in repr(load_failure(payload_of(frame), Origin()))
    assert alive(lane.pid)


# -- tasks that fail ----------------------------------------------------------------------------------------


def test_every_failure_is_the_outcome_of_its_own_task_and_of_no_other_in_the_batch(lane):
    lane.teach(5, tasks.raise_unpicklable)
    lane.teach(6, return_lock)
    lane.teach(7, sys.exit)
    lane.teach(8, int)
    bad_arguments = TaskItem(IDENTITY, tuple(payload.dumps(((FailsToLoad(),), {}))))
    no_pickle = TaskItem(IDENTITY, (b"no pickle",))
    nothing = TaskItem(IDENTITY, (b"",))
    no_pair = TaskItem(IDENTITY, tuple(payload.dumps(5)))
    good = TaskItem(IDENTITY, CALL)
    call = tuple(payload.dumps(((), {})))
    no_number = TaskItem(8, tuple(payload.dumps((("seven",), {}))))
    bad = [bad_arguments, no_pickle, nothing, no_pair, *[TaskItem(number, call) for number in (5, 6, 7)], no_number]
    lane.send(*encode_tasks(0, [item for failing in bad for item in (failing, good)]))
    found = lane.outcomes(2 * len(bad))
    assert [found[number] for number in range(1, 2 * len(bad), 2)] == ["x"] * len(bad)
    errors = [found[number] for number in range(0, 2 * len(bad), 2)]
    assert [type(error) for error in errors] == [TaskExecutionError] * 5 + [TypeError, SystemExit, ValueError]
    assert "it says what was wrong" in str(errors[4])


UNREADABLE = {"empty": b"", "garbage": b"no pickle", "fails": payload.dumps(FailsToLoad())[0]}


@pytest.mark.parametrize("data", UNREADABLE.values(), ids=UNREADABLE)
def test_a_function_that_cannot_be_read_fails_its_tasks_alone(lane, data):
    lane.send(*encode_payload(FrameType.FUNCTION, [data], seq=5))
    lane.submit(0, (5,), (IDENTITY, 1), (5,))
    found = lane.outcomes(3)
    assert isinstance(found[0], TaskExecutionError)
    assert "could not be read on the worker" in str(found[0])
    assert found[1] == 1
    assert isinstance(found[2], TaskExecutionError)


def close_output() -> None:
    sys.stdout.close()
    sys.stderr = None  # type: ignore[assignment]


def test_a_task_that_closes_the_output_hurts_no_other(lane):
    lane.teach(5, close_output)
    lane.submit(0, (5,), (PID,))
    assert lane.outcomes(2) == {0: None, 1: lane.pid}


def close_everything() -> None:
    os.closerange(3, 1024)


def test_a_task_that_closes_the_lane_itself_ends_its_worker_and_does_not_hang(session, lane):
    lane.teach(5, close_everything)
    lane.submit(0, (5,))
    assert session.wait_for_death()["begun"] == 0
    lane.wait_for_end()


def fork_and_return() -> tuple[int, int]:
    return os.fork(), os.getpid()


def test_a_child_that_comes_back_from_a_task_is_no_second_worker(lane):
    lane.teach(5, fork_and_return)
    lane.submit(0, (5,), (PID,))
    found = lane.outcomes(2)
    child, parent = found[0]
    assert parent == lane.pid
    assert found[1] == lane.pid
    wait_until(lambda: not alive(child), "the child has ended")
    lane.submit(2, (PID,))
    assert lane.outcomes(1) == {2: lane.pid}


def fork_and_raise() -> int:
    if os.fork() == 0:
        raise SystemExit(0)
    return os.getpid()


def test_a_child_that_exits_in_a_task_is_no_second_worker(lane):
    lane.teach(5, fork_and_raise)
    lane.submit(0, (5,), (PID,))
    assert lane.outcomes(2) == {0: lane.pid, 1: lane.pid}
    lane.submit(2, (PID,))
    assert lane.outcomes(1) == {2: lane.pid}


def use_multiprocessing() -> int:
    import multiprocessing

    queue = multiprocessing.get_context("fork").SimpleQueue()
    process = multiprocessing.get_context("fork").Process(target=queue.put, args=(7,))
    process.start()
    process.join()
    return queue.get()


def test_a_task_may_use_multiprocessing(lane):
    lane.teach(5, use_multiprocessing)
    lane.submit(0, (5,), (PID,))
    assert lane.outcomes(2) == {0: 7, 1: lane.pid}


def leave_a_thread() -> None:
    threading.Thread(target=threading.Event().wait).start()


def test_a_thread_that_a_task_left_does_not_keep_the_worker_when_its_session_is_gone(serving):
    with SessionPeer(serving.address) as session:
        lane = ready_lane(session)
        lane.teach(5, leave_a_thread)
        lane.submit(0, (5,))
        assert lane.outcomes(1) == {0: None}
    wait_until(lambda: not exists(lane.pid), "the worker is gone")
