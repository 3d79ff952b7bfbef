"""The thread that tells the program what its tasks say."""

import io
import logging
import threading
from contextlib import redirect_stdout

import pytest

from farm_executor.client.farm import voice
from farm_executor.client.farm.voice import Voice

DEADLINE = 30.0


@pytest.fixture
def made():
    """A voice, and how it is ended."""
    voice = Voice(lambda closing: None)
    yield voice
    assert voice.close(DEADLINE) == 0


def done(voice):
    """Wait until all has been done that was put before."""
    event = threading.Event()
    voice.put(event.set)
    assert event.wait(DEADLINE)


def test_deeds_that_raise_are_complained_of_once_in_a_while(made, caplog, monkeypatch):
    with caplog.at_level(logging.WARNING):
        for number in range(100):
            made.put(lambda number=number: 1 // (number * 0))
        done(made)
        assert caplog.text.count("output not taken error=ZeroDivisionError") == 1
        monkeypatch.setattr(voice, "COMPLAIN_EVERY", 0.0)
        made.put(lambda: 1 // 0)
        done(made)
    assert caplog.text.count("output not taken") == 2


def test_a_deed_that_wants_to_exit_ends_no_thread(made):
    made.put(lambda: exit(3))
    done(made)


def test_it_writes_under_the_present_cell_of_a_notebook(made):
    """ipykernel 6.29 to 7.0 keeps in these tables which cell has started a thread."""
    stream = io.StringIO()
    stream._thread_to_parent, stream._thread_to_parent_header = {}, {}
    tables = (stream._thread_to_parent, stream._thread_to_parent_header)

    class Started(threading.Thread):
        def run(self):
            for table in tables:
                table[threading.get_ident()] = "an old cell"
            super().run()

    with pytest.MonkeyPatch.context() as patch, redirect_stdout(stream):
        patch.setattr(threading, "Thread", Started)
        done(made)
        assert tables == ({}, {})


def test_what_is_left_when_nobody_waits_any_longer_is_counted():
    stuck, go_on = threading.Event(), threading.Event()
    voice = Voice(lambda closing: None)
    voice.put(lambda: (stuck.set(), go_on.wait(DEADLINE)))
    assert stuck.wait(DEADLINE)
    voice.put(lambda: None)
    voice.put(lambda: None)
    thread = voice._thread
    try:
        assert voice.close(0.0) == 2
    finally:
        go_on.set()
        thread.join(DEADLINE)
