"""The shared objects of a session, as its supervisor has them."""

import threading

import pytest

from farm_executor.core.sharing import layout_of
from farm_executor.core.shelf import Room
from farm_executor.data import payload
from farm_executor.server.channel import Line, Word
from farm_executor.server.shared import ASK, HERE, REFUSED, SharedObjects
from farm_executor.server.shelves import Shelves
from farm_executor.wire.memory_objects import MemoryObject


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


class Slow:
    """Unpickles when another thread unpickles one as well, or does not for a while."""

    made = 0
    both = threading.Event()

    def __reduce__(self):
        return Slow.make, ()

    @staticmethod
    def make():
        Slow.made += 1
        if Slow.made == 2:
            Slow.both.set()
        Slow.both.wait(0.2)
        return Slow()


def test_a_frozen_object_is_unpickled_once_however_many_threads_take_it(line):
    """The first to have it closes its descriptor, which the next might be about to map."""
    mine, theirs = line
    (pickled,) = payload.dumps(Slow())
    layout = layout_of([len(pickled)], frozen=True)
    memory = MemoryObject.create("farm-test", layout.size)
    memory.write(0, layout.head)
    memory.write(layout.parts[0].begin, pickled)
    memory.seal()
    mine.say(Word(HERE, 1, descriptor=memory.fileno()))

    objects, taken = SharedObjects(theirs), []
    threads = [threading.Thread(target=lambda: taken.append(objects.take(1))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 3
    assert len(set(map(id, taken))) == Slow.made == 1
