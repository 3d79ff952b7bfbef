"""What a received array leaves, the next one gets."""

import mmap
import sys
import threading
import types

import numpy as np
import pytest

from farm_executor.core.frames import Kind
from farm_executor.data import kept, memory

SIZE = memory.FRESH_SIZE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system takes memory no such way")


@pytest.fixture(autouse=True)
def nothing_kept():
    kept._kept.clear()
    yield
    kept.keep_at_most(kept.MOST)
    kept._kept.clear()


def received(size=SIZE):
    """An array over memory for a segment, as it is unpickled."""
    return np.frombuffer(memory.allocate(size, Kind.MEMORY), np.uint8)


def address(array):
    return array.__array_interface__["data"][0]


def test_memory_that_nobody_uses_is_the_next_arrays():
    array = received(SIZE + 100)
    array[:] = 7
    first = address(array)
    del array

    again = received()
    assert (address(again), len(again)) == (first, SIZE)
    again[:] = 8
    assert again.sum(dtype=np.int64) == 8 * SIZE


@pytest.mark.parametrize("view", [lambda a: a[5:10], lambda a: memoryview(a)[5:10], lambda a: a.view("u2")[::7]])
def test_memory_is_not_given_out_while_any_view_of_it_lives(view):
    array = received()
    array[:] = 7
    last = view(array)
    del array

    other = received()
    other[:] = 9
    assert not np.shares_memory(np.asarray(last), other)
    assert {int(item) for item in np.asarray(last).ravel()} <= {7, 0x0707}


def test_two_arrays_at_once_have_memory_of_their_own():
    arrays = [received() for _ in range(3)]
    for number, array in enumerate(arrays):
        array[:] = number
    assert [array.max() for array in arrays] == [0, 1, 2]

    del arrays, array
    assert len(kept._kept) == 1
    assert not kept._lent


def test_what_is_far_too_large_is_given_up_for_another():
    kept.keep_at_most(8 * SIZE)
    array = received(3 * SIZE)
    del array
    array = received()
    assert not kept._kept
    del array
    assert [len(mapping) for mapping in kept._kept] == [SIZE]


def test_no_more_is_kept_than_may_be():
    array = received(kept.MOST + 1)
    del array
    assert not kept._kept

    kept.keep_at_most(0)
    array = received()
    del array
    assert not kept._kept


@pytest.fixture
def farms(monkeypatch):
    monkeypatch.setattr(kept, "_farms", set())
    monkeypatch.setattr(kept, "MOST", SIZE)
    monkeypatch.setattr(kept, "MOST_OF_FARM", 4 * SIZE)
    kept.keep_at_most(SIZE)
    kept.join(1)
    kept.join(2)


@pytest.fixture
def clock(monkeypatch):
    clock = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr(kept, "time", types.SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.mark.usefixtures("farms")
def test_a_program_with_a_farm_keeps_more_until_nobody_has_used_it_for_long(clock):
    array = received(4 * SIZE)
    clock.now += kept.LONG + 1
    del array
    kept.look()
    assert len(kept._kept) == 1
    clock.now += kept.LONG
    array = received(4 * SIZE)
    assert not kept._kept
    del array
    clock.now += kept.LONG
    kept.look()
    assert len(kept._kept) == 1
    clock.now += 1
    kept.look()
    assert not kept._kept


@pytest.mark.usefixtures("farms")
def test_what_any_program_may_keep_stays_however_long_nobody_uses_it(clock):
    array = received()
    del array
    clock.now += 10 * kept.LONG
    kept.look()
    kept.leave(1)
    kept.leave(2)
    assert len(kept._kept) == 1


@pytest.mark.usefixtures("farms")
def test_the_last_farm_leaves_no_more_than_any_program_keeps():
    array = received(4 * SIZE)
    del array
    kept.leave(1)
    assert len(kept._kept) == 1
    kept.leave(2)
    assert not kept._kept
    array = received(4 * SIZE)
    del array
    assert not kept._kept


@pytest.mark.usefixtures("farms")
def test_a_farm_keeps_no_more_than_its_part_of_the_machine_and_a_worker_that_may_keep_none_keeps_none(monkeypatch):
    machine = {"SC_PAGE_SIZE": mmap.PAGESIZE, "SC_PHYS_PAGES": 3 * SIZE * kept.SHARE // mmap.PAGESIZE}
    monkeypatch.setattr(kept.os, "sysconf", machine.__getitem__)
    array = received(4 * SIZE)
    del array
    assert not kept._kept
    kept.keep_at_most(0)
    array = received()
    del array
    assert not kept._kept


def test_what_the_system_will_not_take_back_is_not_kept(monkeypatch):
    monkeypatch.setattr(mmap, "MADV_FREE", 12345)
    array = received()
    del array
    assert not kept._kept


class Over:
    """An event that has, or has not, come in time."""

    def __init__(self, came):
        self.came = came
        self.waits = []

    def wait(self, timeout=None):
        self.waits.append(timeout)
        return self.came


@pytest.mark.parametrize("came", [True, False])
def test_what_is_kept_goes_when_there_is_nothing_to_do_for_long(came):
    array = received()
    del array
    kept.rest(over := Over(came))
    assert len(kept._kept) == came
    assert over.waits == [kept.LONG] if came else [kept.LONG, None]


def test_threads_that_drop_arrays_at_once_keep_one():
    def work(number):
        for _ in range(20):
            array = received()
            array[:4096] = number
            assert array[4095] == number
            del array

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kept._kept) == 1
    assert not kept._lent
