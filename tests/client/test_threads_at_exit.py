"""Python starts no threads once the program ends, while tasks that were submitted still run and say things."""

import threading

import pytest

from farm_executor.client.farm.parcels import Parcels
from farm_executor.client.farm.voice import Voice


@pytest.fixture(autouse=True)
def _no_more_threads(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)


def test_what_tasks_say_is_told_by_the_thread_that_hears_it():
    told = []
    voice = Voice(lambda closing: told.append(closing))
    voice.put(lambda: told.append("one"))
    voice.put(lambda: told.append("two"))
    assert told == ["one", False, "two", False]
    assert voice.close(0.0) == 0
    assert told[4:] == [True]


def test_no_thread_comes_later_that_would_disturb_the_order(monkeypatch):
    """Threads may be refused for want of memory, too, and then granted again."""
    started, told = [], []
    voice = Voice(lambda closing: None)
    voice.put(lambda: told.append("one"))
    monkeypatch.setattr(threading.Thread, "start", started.append)
    voice.put(lambda: told.append("two"))
    assert (told, started) == (["one", "two"], [])


def test_a_voice_that_was_never_needed_says_nothing_at_its_end():
    told = []
    assert Voice(lambda closing: told.append(closing)).close(0.0) == 0
    assert told == []


def test_modules_are_looked_at_by_the_thread_that_needs_them():
    seen = []
    parcels = Parcels()
    parcels.do(lambda: seen.append("one"))
    parcels.do(lambda: seen.append("two"))
    assert seen == ["one", "two"]
    parcels.close()
