"""When an outcome is settled, and what is bound to its future, step by step."""

import gc
import struct
import weakref
from collections import deque
from types import SimpleNamespace

import pytest

from farm_executor.client.farm import hearing
from farm_executor.client.farm.future import FarmFuture
from farm_executor.client.farm.hearing import Hearing
from farm_executor.client.farm.output import Output
from farm_executor.core.frames import HEADER_SIZE, Frame, FrameType
from farm_executor.data import payload
from farm_executor.errors import RemoteProtocolError


class Voice:
    """A thread that does one thing when it is told to."""

    def __init__(self, rest):
        self.rest = rest
        self.deeds = deque()
        self.is_stuck = False

    def put(self, deed):
        self.deeds.append(deed)

    def work(self):
        while self.deeds:
            self.deeds.popleft()()
        self.rest(False)

    def close(self, seconds):
        return len(self.deeds)


class Reactor:
    def __init__(self):
        self.timers = []

    def post(self, action):
        action()

    def after(self, seconds, action):
        self.timers.append(action)


class Session:
    control = "a connection"
    is_own = False
    features = frozenset({"output"})
    hears_nothing = False

    def count_received(self, size):
        pass

    def count_shown(self, connection, size):
        return 0


class Lane(SimpleNamespace):
    """One that can be referred to weakly."""


class Farm:
    """A hearing, one lane, and what has come of it, in order."""

    def __init__(self, monkeypatch):
        monkeypatch.setattr(hearing, "Voice", Voice)
        self.told = []
        self.reactor = Reactor()
        self.hearing = Hearing(self.reactor, Output(lambda line: self.told.append(line.text)))
        self.voice = self.hearing.voice
        self.session = Session()
        self.lane = Lane(id=1, server="host:1", slot=0, pid=7, session=self.session, hearing=None)
        self.tasks = [SimpleNamespace(future=SimpleNamespace(_output="")) for _ in range(5)]

    def output(self, offset, data, lane=1, stream=1):
        frame = Frame(FrameType.OUTPUT, count=stream, seq=offset, body=struct.pack("<Q", lane) + data)
        self.hearing.on_output(self.session, {1: self.lane}, frame)

    def mark(self, *marks):
        body = b"".join(struct.pack("<5Q", seq, begin, 0, end, 0) for seq, begin, end in marks)
        frame = Frame(FrameType.MARKS, count=len(marks), body=body)
        self.hearing.of(self.lane).mark(frame, lambda seq: self.tasks[seq] if seq < len(self.tasks) else None)

    def result(self, seq):
        self.lane.hearing.settle(seq, [self.tasks[seq]], lambda: self.told.append(seq))


@pytest.fixture
def farm(monkeypatch):
    return Farm(monkeypatch)


@pytest.mark.parametrize("order", ["output first", "mark first", "result first"])
def test_a_result_comes_after_its_output_whatever_comes_first(farm, order):
    if order == "output first":
        farm.output(0, b"hello\n")
    farm.mark((0, 0, 6))
    if order == "mark first":
        farm.output(0, b"hello\n")
    farm.result(0)
    if order == "result first":
        farm.output(0, b"hello\n")
    assert farm.told == []
    assert farm.hearing.pending == 1
    farm.voice.work()
    assert farm.told == ["hello", 0]
    assert farm.hearing.pending == 0
    assert farm.tasks[0].future._output == "hello\n"


def test_a_silent_task_waits_for_nobody_but_those_before_it(farm):
    farm.output(0, b"hello\n")
    farm.voice.work()
    farm.mark((0, 0, 6))
    farm.result(0)
    farm.result(1)
    assert farm.told == ["hello", 0, 1]
    farm.mark((2, 6, 10))
    farm.result(2)
    farm.result(3)
    assert farm.told == ["hello", 0, 1]
    farm.output(6, b"bye\n")
    farm.voice.work()
    assert farm.told == ["hello", 0, 1, "bye", 2, 3]


def test_output_that_does_not_come_is_not_waited_for_without_an_end(farm, monkeypatch):
    farm.mark((0, 0, 6))
    farm.result(0)
    assert len(farm.reactor.timers) == 1, "one for all"
    monkeypatch.setattr(hearing.time, "monotonic", lambda: float("inf"))
    farm.reactor.timers.pop()()
    assert farm.told == [0]
    assert farm.hearing.pending == 0


def test_output_that_comes_late_is_whole_though_showing_it_takes_long(farm, monkeypatch):
    now = hearing.time.monotonic()
    monkeypatch.setattr(hearing.time, "monotonic", lambda: now)
    farm.mark((0, 0, 6))
    farm.result(0)
    for _ in range(5):  # a server that gets no processor for seconds
        now += hearing.PATIENCE
        farm.reactor.timers.pop()()
    assert farm.told == []
    farm.output(0, b"hel")
    now += hearing.PATIENCE
    farm.reactor.timers.pop()()
    farm.output(3, b"lo\n")
    farm.reactor.timers.pop()()
    assert farm.told == [], "it must be shown, too"
    now += hearing.PATIENCE
    farm.reactor.timers.pop()()
    assert farm.told == [0]
    assert farm.tasks[0].future._output == "hello\n"


@pytest.mark.parametrize("come", ["before", "after"])
def test_a_thread_that_is_stuck_holds_nothing_up_but_output_is_still_bound(farm, come):
    farm.voice.is_stuck = True
    farm.mark((0, 0, 6))
    if come == "before":
        farm.output(0, b"hello\n")
    farm.result(0)
    if come == "after":
        assert farm.told == []
        farm.output(0, b"hello\n")
    assert farm.told == [0]
    assert farm.tasks[0].future._output == "hello\n"
    assert farm.hearing.pending == 0


def test_nobody_waits_for_what_cannot_come(farm):
    farm.mark((0, 0, 6))
    farm.result(0)
    farm.session.hears_nothing = True
    farm.mark((1, 6, 10))
    farm.result(1)
    assert farm.told == [0, 1]


def test_outcomes_that_wait_when_nothing_can_come_any_more_wait_for_the_timer_only(farm):
    farm.output(0, b"hello\n")
    farm.mark((0, 0, 6), (1, 6, 10))
    farm.result(0)
    farm.result(1)
    farm.session.hears_nothing = True
    farm.reactor.timers.pop()()
    assert farm.told == [], "the first has come, and is to be shown"
    farm.voice.work()
    assert farm.told == ["hello", 0, 1]


def test_marks_are_merged_and_those_of_the_running_task_are_kept(farm):
    farm.mark((0, 0, 6), (1, 6, 8))
    farm.output(0, b"hello\nab")
    farm.result(0)
    farm.voice.work()
    assert farm.told == ["hello", 0], "a line that has begun is the next task's"
    farm.mark((1, 6, 8))
    farm.mark((1, 8, 10))
    farm.output(8, b"c\n")
    farm.result(1)
    farm.voice.work()
    assert farm.told == ["hello", 0, "abc", 1]
    assert farm.tasks[1].future._output == "abc\n"


def test_a_dead_worker_leaves_its_last_words_to_the_task_that_ran(farm):
    farm.output(0, b"last words")
    farm.lane.hearing.lost(farm.tasks[0], lambda: farm.told.append("lost"))
    assert farm.told == []
    farm.voice.work()
    assert farm.told == ["last words", "lost"]
    assert farm.tasks[0].future._output == "last words"


def test_all_is_settled_when_the_farm_ends(farm):
    farm.mark((0, 0, 6))
    farm.result(0)
    farm.hearing.close()
    assert farm.told == [0]


def test_what_is_not_shown_before_the_farm_ends_is_said(farm, caplog):
    farm.output(0, b"hello\n")
    farm.hearing.close()
    assert "output lost bytes=6" in caplog.text


def test_output_of_a_lane_that_is_not_known_is_dropped(farm):
    farm.output(0, b"hello\n", lane=2)
    farm.voice.work()
    assert farm.told == []


@pytest.mark.parametrize(
    "frame",
    [
        Frame(FrameType.OUTPUT, count=1, body=b"1234567"),
        Frame(FrameType.OUTPUT, count=3, body=bytes(9)),
        Frame(FrameType.OUTPUT, count=0, body=bytes(9)),
        Frame(FrameType.OUTPUT, count=1, seq=1 << 63, body=bytes(9)),
    ],
)
def test_output_that_breaks_the_protocol(farm, frame):
    with pytest.raises(RemoteProtocolError):
        farm.hearing.on_output(farm.session, {0: farm.lane}, frame)


def test_output_must_not_go_backwards(farm):
    farm.output(0, b"hello\n")
    with pytest.raises(RemoteProtocolError):
        farm.output(2, b"hello\n")


@pytest.mark.parametrize("mark", [(5, 0, 1), (0, 2, 1), (0, 0, 1 << 63), (1 << 62, 0, 1)])
def test_marks_that_break_the_protocol(farm, mark):
    with pytest.raises(RemoteProtocolError):
        farm.mark(mark)


def test_marks_of_the_wrong_size(farm):
    with pytest.raises(RemoteProtocolError):
        farm.hearing.of(farm.lane).mark(Frame(FrameType.MARKS, count=2, body=bytes(40)), farm.tasks.__getitem__)


def test_only_the_tail_is_kept(farm):
    size = 5 * hearing.KEPT_OF_LANE
    for offset in range(0, size, 1024):
        farm.output(offset, b"%1023d\n" % offset)
    farm.voice.work()
    farm.mark((0, 0, size))
    farm.result(0)
    farm.voice.work()
    assert len(farm.tasks[0].future._output) == hearing.KEPT_OF_TASK
    assert farm.tasks[0].future._output.endswith(f"{size - 1024}\n")
    assert sum(len(tail._data) for tail in farm.lane.hearing._tails) <= 2 * hearing.KEPT_OF_LANE


def test_a_result_that_waits_to_be_read_is_read_before_its_output_is_let_go_of(farm):
    def read(lane):
        assert lane is farm.lane
        farm.mark((0, 0, 6))
        farm.result(0)
        farm.hearing.read = lambda lane: None

    farm.hearing.read = read
    farm.output(0, b"hello\n")
    farm.output(6, b"x" * 2 * hearing.KEPT_OF_LANE)
    assert farm.tasks[0].future._output == "hello\n"


def test_reports_that_come_faster_than_they_are_told_do_not_pile_up(farm):
    seen = []
    future = FarmFuture()
    future.add_progress_callback(lambda future: 1 / 0)
    future.add_progress_callback(lambda future: seen.append(future.progress.done))
    for done in range(1000):
        body = payload.dumps_together([done, None, ""])
        farm.hearing.on_report(
            farm.lane, Frame(FrameType.REPORT, count=1, body=body), SimpleNamespace(future=future)
        )
    assert len(farm.voice.deeds) == 1

    with pytest.raises(ZeroDivisionError):
        farm.voice.work()
    assert seen == [999]

    body = payload.dumps_together([1000, None, ""])
    farm.hearing.on_report(farm.lane, Frame(FrameType.REPORT, count=1, body=body), SimpleNamespace(future=future))
    with pytest.raises(ZeroDivisionError):
        farm.voice.work()
    assert seen == [999, 1000]


@pytest.mark.parametrize("data", [b"", b"x"])
def test_what_nobody_shows_takes_bounded_memory_however_small_its_pieces(farm, monkeypatch, data):
    monkeypatch.setattr(hearing, "MAX_UNSHOWN", 100 * hearing.PIECE_COST)
    heard = []
    farm.session.count_shown = lambda connection, size: heard.append(size)
    for offset in range(1000):
        farm.output(offset * len(data), data)
    assert len(farm.voice.deeds) <= 101
    farm.voice.work()
    assert sum(heard) == 1000 * (HEADER_SIZE + 8 + len(data)), "the server may go on"
    farm.told.clear()
    farm.output(1000 * len(data), b"more\n")
    farm.voice.work()
    assert farm.told[-1] == "more"


def test_of_output_of_a_lane_that_is_not_known_nothing_is_kept(farm):
    for number in range(1000):
        farm.output(number, b"x", lane=2)
    assert len(farm.voice.deeds) == 1


def test_log_records_that_nobody_handles_take_bounded_memory(farm, monkeypatch):
    monkeypatch.setattr(hearing, "MAX_UNHANDLED", 10)
    record = {"name": "x", "levelno": 30, "created": 1.0, "msg": "x"}
    for number in range(100):
        body = payload.dumps_together([record] * (number % 2))
        farm.hearing.on_records(farm.lane, Frame(FrameType.RECORDS, count=number % 2, body=body), None)
    assert len(farm.voice.deeds) == 10


def test_log_records_that_a_broken_connection_took_along_are_missed(farm, caplog):
    record = {"name": "x", "levelno": 30, "created": 1.0, "msg": "x"}
    for number, lost in [(0, ""), (2, ""), (7, "count=3"), (9, "")]:
        caplog.clear()
        farm.hearing._said_lost = 0.0
        body = payload.dumps_together([{**record, "farm_number": number}, record])
        farm.hearing.on_records(farm.lane, Frame(FrameType.RECORDS, count=2, body=body), None)
        assert lost in caplog.text
        assert ("log records lost" in caplog.text) == bool(lost)
    for number in (-1, 1.0, "1"):
        body = payload.dumps_together([{**record, "farm_number": number}])
        with pytest.raises(RemoteProtocolError):
            farm.hearing.on_records(farm.lane, Frame(FrameType.RECORDS, count=1, body=body), None)


def test_a_lane_that_is_lost_is_not_kept_by_what_it_has_said(farm):
    # With its connection, and that one's memory: hundreds of them, where connections break all the time.
    farm.output(0, b"hello\n")
    farm.mark((0, 0, 6))
    farm.voice.work()
    farm.hearing.lane_gone(farm.lane)
    lane, farm.lane = weakref.ref(farm.lane), None
    gc.collect()
    assert lane() is None
