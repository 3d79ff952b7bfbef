"""Functions over large data are sent once to each server, for all its workers."""

import os
import sys
from functools import partial
from types import SimpleNamespace

import pytest
from client import share_tasks as tasks
from client.share_tasks import Plain
from client.test_resume import LANE, proxied
from client.test_share import data, until
from faults.proxy import TO_SERVER
from server.processes import DEADLINE
from server.serving import KEY, Serving

from farm_executor import FarmExecutor, SharedMemoryError
from farm_executor.client.farm.functions import Function, Kept
from farm_executor.client.farm.spreading import LEAST, Common, encode_function, encode_whole, size_of
from farm_executor.core.batches import encode_tasks
from farm_executor.core.frames import BULK, ERROR, TOGETHER, Frame, FrameType
from farm_executor.core.reader import FrameReader
from farm_executor.core.sharing import State
from farm_executor.core.spread import Spread
from farm_executor.server import handed
from farm_executor.server.asking import Questions
from farm_executor.server.channel import Line, Word
from farm_executor.server.handed import Handed, handed_in
from farm_executor.server.sent import Backlog
from farm_executor.server.shared import HERE, REFUSED, SharedObjects
from farm_executor.wire import memfd

pytestmark = pytest.mark.skipif(not memfd.AVAILABLE, reason="the system has no memory objects")

SIZE = 2 * LEAST + 17
WORKERS = 3


@pytest.fixture(scope="module")
def farm():
    with FarmExecutor(WORKERS) as executor:
        executor.broadcast(tasks.pid_of)
        yield executor


def over(plain):
    return partial(tasks.first, plain)


def memories(farm):
    """The memory objects of functions that any process of the farm's server has."""
    return set().union(*[found for both in farm.broadcast(tasks.function_memories) for found in both])


def until_held(farm):
    """Wait until the server has said of each function that it holds it."""
    until(lambda: all(not host.spread._bringers for host in farm._engine.sharing._hosts))


# -- what programs see ---------------------------------------------------------------------------------


def test_its_buffers_are_held_once_for_all_workers_and_given_back(farm):
    plain = Plain(data(size=SIZE))

    assert farm.broadcast(over(plain), 1) == [8] * WORKERS
    assert len(memories(farm)) == 1
    pids = {*farm.broadcast(tasks.pid_of), farm.submit(tasks.supervisor).result(DEADLINE)}
    # Once the farm has been idle for a while, so nothing may be submitted meanwhile.
    until(lambda: not any(tasks.inodes(tasks.NAMES[1], pid) for pid in pids))


def test_a_call_may_write_to_them_and_nobody_else_sees_that(farm):
    plain = Plain(data(size=SIZE))
    adding = partial(tasks.add_one, plain)

    assert [farm.submit(adding).result(DEADLINE) for _ in range(2 * WORKERS)] == [8] * 2 * WORKERS
    assert farm.broadcast(adding) == [8] * WORKERS
    assert plain.data[0] == 7


def test_what_the_program_writes_to_them_the_next_call_finds(farm):
    plain = Plain(data(size=SIZE))
    for value in range(1, 6):
        plain.data[0] = value
        assert farm.broadcast(over(plain)) == [value] * WORKERS


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_each_call_gets_memory_that_can_be_written_to_if_the_original_can(farm, kind):
    plain = Plain(kind(SIZE))
    assert farm.broadcast(lambda: memoryview(plain.data).readonly) == [kind is bytes] * WORKERS


def test_a_lambda_over_arrays_of_several_sizes_finds_each(farm):
    numpy = pytest.importorskip("numpy")
    arrays = [numpy.arange(size) for size in (3, 20_000, 300_000, 0)]

    assert (
        farm.broadcast(lambda: [int(array.sum()) for array in arrays])
        == [[int(array.sum()) for array in arrays]] * WORKERS
    )


def test_a_worker_that_takes_the_place_of_another_gets_it_from_its_server(farm, tmp_path):
    fn = partial(tasks.die_once, Plain(data(size=SIZE)))
    assert farm.broadcast(fn, str(tmp_path)) == [7] * WORKERS  # which is there, so none dies
    until_held(farm)
    before = memories(farm)
    pids = set(farm.broadcast(tasks.pid_of))

    assert farm.submit(fn, str(tmp_path / "died")).result(DEADLINE) == 7
    assert farm.broadcast(fn, str(tmp_path)) == [7] * WORKERS
    assert memories(farm) == before
    assert set(farm.broadcast(tasks.pid_of)) != pids


def test_the_last_of_many_functions_are_kept_and_the_others_given_back(farm):
    for value in range(10):
        assert farm.broadcast(over(Plain(data(value, SIZE)))) == [value] * WORKERS
    until_held(farm)
    until(lambda: len(memories(farm)) <= 2)  # of this size; the last one is kept however large it is


def test_without_room_on_the_server_each_worker_has_its_own():
    with FarmExecutor(WORKERS, max_shared=0) as farm:
        plain = Plain(data(size=SIZE))
        assert farm.broadcast(over(plain)) == [7] * WORKERS
        plain.data[0] = 9
        assert farm.broadcast(over(plain)) == [9] * WORKERS
        assert len(memories(farm)) > 1
        assert farm.submit(tasks.first, plain).result(DEADLINE) == 9


@pytest.mark.parametrize("lacking", ["shared", "ALWAYS"])
def test_a_server_without_the_feature_gets_it_for_each_worker(lacking):
    before = {
        "shared": "import farm_executor.core.features as features\nfeatures.shared = lambda *both: frozenset()",
        "ALWAYS": "import farm_executor.wire.memfd as memfd\nmemfd.AVAILABLE = False",
    }[lacking]
    with Serving(workers=2, before=before) as server, FarmExecutor(server.address, key=KEY) as farm:
        assert farm.broadcast(over(Plain(data(size=SIZE)))) == [7, 7]


def test_a_server_with_one_worker_is_sent_it_as_ever():
    with Serving(workers=1) as server, FarmExecutor(server.address, key=KEY) as farm:
        assert farm.submit(abs, -1).result(DEADLINE) == 1
        assert farm.submit(over(Plain(data(size=SIZE)))).result(DEADLINE) == 7
        assert not farm._engine.sharing._common


def test_what_is_cut_off_on_its_way_comes_again():
    with proxied() as (proxy, farm):
        proxy.stall(TO_SERVER, numbers=[LANE, LANE + 1])  # so that some of it has left, and not all
        fn = over(Plain(data(size=16 << 20)))
        futures = [farm.submit(fn, number) for number in range(20)]
        proxy.cut()
        proxy.flow()

        assert [future.result(DEADLINE) for future in futures] == list(range(7, 27))


def test_a_worker_that_dies_before_it_has_brought_it_leaves_the_others_to_ask_the_client(monkeypatch):
    """The supervisor is in this process's child: its workers end before they hand in what they are sent first."""
    before = """
import os, farm_executor.server.sent as sent
def die(objects, number, buffers):
    os._exit(1)
sent.handed_in = die
"""
    with Serving(workers=2, before=before) as server, FarmExecutor(server.address, key=KEY) as farm:
        pids = set(farm.broadcast(tasks.pid_of))
        futures = [farm.submit(over(Plain(data(size=SIZE))), number) for number in range(4)]

        assert [future.result(DEADLINE) for future in futures] == list(range(7, 11))
        assert set(farm.broadcast(tasks.pid_of)) & pids, "one of them has brought nothing, and lives"


# -- the client ----------------------------------------------------------------------------------------


def function(number=1, common=5, size=LEAST):
    return Function(number, (b"pickle", bytearray(size)), size, common=Common(common, size, lambda number: None))


def frame_of(buffers):
    (frame,) = FrameReader().receive_data(b"".join(map(bytes, buffers)))
    return frame


def test_only_what_is_large_enough_is_worth_it():
    assert size_of((b"pickle" * LEAST, bytearray(LEAST - 1))) == 0
    assert size_of((b"pickle", bytearray(LEAST // 2), bytearray(LEAST - LEAST // 2))) > LEAST


def test_it_is_sent_whole_to_the_first_worker_and_without_buffers_to_the_others():
    host = SimpleNamespace(spread=Spread())
    brought, taken = [frame_of(encode_function(function(), host, lane)) for lane in (1, 2)]
    host.spread.answered(5, State.REFUSED)
    alone = frame_of(encode_function(function(), host, 3))

    assert [(frame.flags, len(frame.segments)) for frame in (brought, taken, alone)] == [
        (TOGETHER | BULK, 2),
        (TOGETHER, 0),
        (BULK, 2),
    ]


def test_a_worker_that_lacks_it_is_sent_it_whole_if_a_call_still_needs_it():
    calls = [SimpleNamespace(function=each) for each in (None, function(2), function(1))]
    kept = Kept()

    whole = frame_of(encode_whole(1, calls, kept))
    assert (whole.type, whole.seq, whole.flags, len(whole.segments)) == (FrameType.FUNCTION, 1, BULK, 2)
    assert frame_of(encode_whole(3, calls, kept)) == Frame(FrameType.FUNCTION, ERROR, 0, 3)
    assert list(kept.large) == [1]  # else it would not be told to forget it


# -- a worker ------------------------------------------------------------------------------------------


@pytest.fixture
def line():
    mine, theirs = Line.pair()
    yield mine, theirs
    mine.close()
    theirs.close()


def never():
    raise AssertionError("the client need not be asked")


def test_one_worker_hands_it_in_and_another_takes_it(line):
    mine, theirs = line
    buffers = [bytearray(b"x" * LEAST), b"y" * LEAST]
    made = handed_in(SharedObjects(theirs), 5, buffers)
    word = mine.hear()
    mine.say(Word(HERE, 5, descriptor=word.descriptor))
    os.close(word.descriptor)
    taken = Handed(SharedObjects(theirs), 5, never)

    for found in (made, taken):
        for _ in range(2):
            copies = found.copies()
            assert copies == buffers
            copies[0][:1] = b"z"


def test_one_that_cannot_be_handed_in_is_this_workers_own_and_the_others_are_told(line, monkeypatch):
    def refuse(*_):
        raise OSError("no room")

    monkeypatch.setattr("farm_executor.server.shared.MemoryObject.create", refuse)
    mine, theirs = line

    assert handed_in(SharedObjects(theirs), 5, [bytearray(LEAST)]).copies() == [bytearray(LEAST)]
    assert "function, shared object 5, cannot be held by this server: no room" in mine.hear().text


def test_one_that_is_refused_comes_from_the_client_once(line):
    mine, theirs = line
    mine.say(Word(REFUSED, 5, "no room"))
    asked = []

    def ask():
        asked.append(1)
        return b"pickle", bytearray(LEAST)

    taken = Handed(SharedObjects(theirs), 5, ask)
    assert [taken.copies() for _ in range(3)] == [[bytearray(LEAST)]] * 3
    assert len(asked) == 1


def test_one_that_does_not_come_is_waited_for_no_longer_and_closed_when_it_comes(line, monkeypatch):
    """Its worker may not read what it is sent, as its task keeps the interpreter."""
    monkeypatch.setattr(handed, "PATIENCE", 0.01)
    mine, theirs = line
    objects = SharedObjects(theirs)
    assert Handed(objects, 5, lambda: (b"pickle", b"whole")).copies() == [b"whole"]
    assert mine.hear().number == 5
    before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    made = handed_in(SharedObjects(theirs), 5, [b"y" * LEAST])
    word = mine.hear()
    mine.say(Word(HERE, 5, descriptor=word.descriptor))
    os.close(word.descriptor)
    mine.say(Word(REFUSED, 6, "no room"))

    with pytest.raises(SharedMemoryError, match="no room"):
        objects.take(6)
    del made
    assert not objects._held
    assert not objects._late
    if sys.platform == "linux":
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("forgets", [False, True])
def test_one_that_comes_whole_while_it_is_asked_for_is_there_for_the_tasks_that_follow(line, forgets):
    """After a cut, or behind a FORGET, a client sends it again before it reads that it is asked for it."""
    objects, backlog, questions = SharedObjects(line[1]), Backlog(), Questions()

    def take(buffers):
        backlog.introduce(frame_of(buffers), objects, questions, never)

    large, host = function(), SimpleNamespace(spread=Spread())
    host.spread.send(5, 1)
    take(encode_function(large, host, 2))
    backlog.add(frame_of(encode_tasks(0, [(1, (b"first",))])))
    questions.add(question := questions.lacking(1))
    host.spread.lane_gone(1)
    if forgets:
        backlog.functions.clear()
    for whole in (encode_function(large, host, 2), encode_whole(1, [SimpleNamespace(function=large)], Kept())):
        take(whole)
        backlog.add(frame_of(encode_tasks(backlog.expected, [(1, (b"next",))])))

    assert len(question.function()) == 2
    assert len(backlog.tasks) == 3
