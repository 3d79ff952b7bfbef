"""The log of frames: a line for each, both ways, without what is in them, and never with a lock held."""

import logging
import os
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import frames as any_frame
from strategies import joined

from farm_executor import FarmExecutor
from farm_executor.core.batches import encode_results, encode_tasks
from farm_executor.core.frames import FrameType, encode_frame
from farm_executor.core.reader import FrameReader
from farm_executor.wire import trace
from farm_executor.wire.trace import Trace, pending, tell, trace_of

DEADLINE = 60.0


class Lines(logging.Handler):
    """Keeps the lines, and does something for each."""

    def __init__(self, react=lambda: None):
        super().__init__()
        self.lines = []
        self.react = react

    def emit(self, record):
        self.lines.append(record.getMessage())
        self.react()


@pytest.fixture
def lines():
    handler, logger = Lines(), trace.logger
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.setLevel(level)
    logger.removeHandler(handler)
    pending.clear()


def test_the_logger_has_its_documented_name():
    assert trace.logger.name == "farm_executor.wire"


def test_a_connection_has_no_trace_where_nobody_listens():
    assert not trace.logger.isEnabledFor(logging.DEBUG)
    assert trace_of("somewhere") is None


def test_what_is_sent_is_told_later_and_before_what_is_received(lines):
    one = trace_of("server=x lane=1")
    one.sent(encode_tasks(7, [(1, [b"abc"]), (1, [b"x" * 70_000, b"yy"]), (2, [b""])]))
    assert lines.lines == []
    one.received(FrameReader().receive_data(joined(encode_results(7, [([b"r"], False)], 5))))
    assert lines.lines == [
        "> TASKS count=1 seq=7 body=11 server=x lane=1",
        "> TASKS BULK count=1 seq=8 body=24 segments=2 size=70002 server=x lane=1",
        "> TASKS count=1 seq=9 body=8 server=x lane=1",
        "< RESULTS count=1 seq=7 body=9 server=x lane=1",
    ]


@settings(deadline=None)
@given(st.lists(any_frame, max_size=5))
def test_a_frame_reads_alike_sent_and_received(sent):
    one, handler = Trace("here"), Lines()
    trace.logger.addHandler(handler)
    trace.logger.setLevel(logging.DEBUG)
    try:
        encoded = []
        for frame in sent:
            encoded += encode_frame(
                *(frame.type,),
                flags=frame.flags,
                count=frame.count,
                seq=frame.seq,
                body=frame.body,
                segments=frame.segments,
            )
        one.sent(encoded)
        one.received(sent)
    finally:
        trace.logger.setLevel(logging.NOTSET)
        trace.logger.removeHandler(handler)
    half = len(sent)
    assert [line[1:] for line in handler.lines[:half]] == [line[1:] for line in handler.lines[half:]]
    assert [line[0] for line in handler.lines] == [">"] * half + ["<"] * half


def test_a_handler_that_fails_does_not_keep_the_rest_from_being_told(lines):
    lines.react = lambda: 1 / 0
    one = Trace("here")
    one.sent(encode_frame(FrameType.PING))
    with pytest.raises(ZeroDivisionError):
        tell()
    lines.react = lambda: None
    one.sent(encode_frame(FrameType.BYE))
    tell()
    assert [line.split()[1] for line in lines.lines] == ["PING", "BYE"]


def test_a_farm_logs_its_frames_and_nothing_that_is_in_them(lines):
    with FarmExecutor(max_workers=1) as farm:
        assert farm.submit(str.upper, "a word of the user's").result(DEADLINE) == "A WORD OF THE USER'S"
    text = "\n".join(lines.lines)
    ways = re.findall(r"^([<>]) (\w+)", text, re.MULTILINE)
    assert {(">", "HELLO"), ("<", "HELLO"), (">", "INIT"), ("<", "READY"), (">", "TASKS"), ("<", "RESULTS")} <= set(
        ways
    )
    assert ways.index((">", "TASKS")) < ways.index(("<", "RESULTS"))
    assert (">", "BYE") in ways, "the last frames are told, too"
    assert "word" not in text.lower()


def test_a_handler_that_submits_neither_deadlocks_nor_recurses(lines):
    """Where the lock of the engine is held, it would wait for itself; and each line would bring forth another."""
    futures = []
    with FarmExecutor(max_workers=1) as farm:
        farm.submit(abs, -1).result(DEADLINE)
        lines.react = lambda: len(futures) < 50 and futures.append(farm.submit(abs, -len(futures)))
        assert [farm.submit(abs, -i).result(DEADLINE) for i in range(20)] == list(range(20))
        lines.react = lambda: None
        assert [future.result(DEADLINE) for future in futures] == list(range(len(futures)))
    assert futures


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_tell_what_its_parent_has_sent(lines):
    Trace("here").sent(encode_frame(FrameType.PING))
    child = os.fork()
    if not child:
        os._exit(len(pending))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(pending) == 1
