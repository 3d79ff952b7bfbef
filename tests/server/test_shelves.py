"""The shared objects of a session, as its supervisor has them."""

import pytest

from farm_executor.core.shelf import Room
from farm_executor.server.channel import Line, Word
from farm_executor.server.shared import ASK, REFUSED
from farm_executor.server.shelves import Shelves


@pytest.fixture
def line():
    mine, theirs = Line.pair()
    yield mine, theirs
    mine.close()
    theirs.close()


def test_a_worker_that_waits_for_an_object_is_told_that_it_was_dropped(line):
    mine, theirs = line
    shelves = Shelves(Room(lambda: 100), lambda buffers: None)
    shelves.offer(1, 10)
    theirs.say(Word(ASK, 1))
    assert shelves.heed(mine)

    shelves.drop(1)

    theirs._socket.setblocking(False)
    word = theirs.hear()
    assert (word.kind, word.number) == (REFUSED, 1)
    assert "nobody needs it" in word.text
