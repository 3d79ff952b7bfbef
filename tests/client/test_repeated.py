"""Large arguments that are passed again and again to servers on other machines."""

import array
import gc
import sys
import threading

import pytest
from client import share_tasks as tasks
from client.share_tasks import Plain
from client.test_share import until
from server.serving import KEY, Serving

from farm_executor import FarmExecutor
from farm_executor.client.farm.repeated import LEAST
from farm_executor.core.repeats import MAX_STRIKES
from farm_executor.wire.memory_objects import MemoryObject
from farm_executor.wire.sockets import beside

SIZE = LEAST + 17
DEADLINE = 30


def data(first=7, size=SIZE):
    return array.array("B", bytes([first]) + bytes(size - 1))


@pytest.fixture(scope="module")
def server():
    with Serving(workers=2) as serving:
        yield serving


@pytest.fixture
def elsewhere(monkeypatch):
    """Servers' sockets beside are out of reach, as from another machine or network namespace."""
    monkeypatch.setattr("farm_executor.client.farm.link.beside", lambda name: beside("elsewhere"))


@pytest.fixture
def farm(server, elsewhere):
    with FarmExecutor(server.address, key=KEY) as executor:
        ready(executor)
        yield executor


def ready(farm):
    """Wait until it is known that no lane of the farm can have a ring."""
    farm.broadcast(tasks.kinds, 0)
    large = bytes(LEAST - 1)
    until(lambda: farm.submit(len, large).result(DEADLINE) and all(host.dial_ring is None for host in hosts(farm)))


def hosts(farm):
    return farm._engine.sharing._hosts


def copies(farm):
    return len(farm._engine.sharing.live)


def sent(farm):
    return sum(lane.connection.bytes_sent for lane in list(farm._engine._lanes.values()))


def bytes_of(farm, call):
    """Return how many bytes a call sends."""
    before = sent(farm)
    call()
    return sent(farm) - before


def until_held(farm, count=1):
    until(lambda: all(len(host.deliveries._held) == count for host in hosts(farm)))


def test_what_repeats_is_sent_once_and_is_the_tasks_own(farm):
    plain = Plain(data())
    call = lambda: farm.submit(tasks.add_one, plain).result(DEADLINE)  # noqa: E731

    assert call() == 8
    assert copies(farm) == 0
    assert call() == 8
    until_held(farm)
    assert bytes_of(farm, lambda: [call() for _ in range(20)]) < LEAST // 10
    assert [call() for _ in range(4)] == [8] * 4
    assert plain.data[0] == 7


def test_a_write_between_two_calls_is_noticed(farm):
    plain = Plain(data())
    for epoch in range(4):
        plain.data[-1] = plain.data[0] = epoch
        # The last byte, too: what a sample does not look at counts as much.
        for _ in range(3):
            assert farm.submit(tasks.ends, plain).result(DEADLINE) == (epoch, epoch)
        until_held(farm)
        assert farm.submit(tasks.ends, plain).result(DEADLINE) == (epoch, epoch)


def test_every_single_byte_counts(farm):
    plain = Plain(data())
    for _ in range(2):
        farm.submit(tasks.first, plain).result(DEADLINE)
    until_held(farm)
    for place in (1, SIZE // 2, SIZE - 2):
        plain.data[place] ^= 1
        assert farm.submit(tasks.at, plain, place).result(DEADLINE) == 1
        plain.data[place] ^= 1
        assert farm.submit(tasks.at, plain, place).result(DEADLINE) == 0


def test_what_always_changes_is_not_copied_in_vain(farm):
    plain = Plain(data())
    taken = set()
    for number in range(12):
        plain.data[5] = number  # which the sample does not see
        farm.submit(tasks.first, plain).result(DEADLINE)
        taken |= set(farm._engine.sharing.live)
    assert len(taken) == MAX_STRIKES
    assert copies(farm) == 0


def test_the_copy_goes_with_the_object(farm):
    plain = Plain(data())
    for _ in range(2):
        farm.submit(tasks.first, plain).result(DEADLINE)
    until_held(farm)
    del plain
    gc.collect()
    assert copies(farm) == 0
    until_held(farm, 0)


def test_bytes_go_once_the_farm_is_idle(farm):
    value = bytes(SIZE)
    for _ in range(3):
        assert farm.submit(tasks.kinds, value).result(DEADLINE) == "bytes"
    assert copies(farm) == 1
    until(lambda: copies(farm) == 0)


def test_wherever_it_stands_and_several_of_them(farm):
    one, other = Plain(data(1)), Plain(data(2))
    for _ in range(3):
        assert farm.submit(tasks.sum_of_firsts, [one, {"deep": other}, one]).result(DEADLINE) == 4
    until_held(farm, 2)
    call = lambda: farm.submit(tasks.sum_of_firsts, [one, {"deep": other}, one]).result(DEADLINE)  # noqa: E731
    assert bytes_of(farm, lambda: [call() for _ in range(5)]) < LEAST // 10
    assert call() == 4


def test_small_arguments_and_those_of_another_size_are_not_looked_at(farm):
    small = Plain(data(size=LEAST - 1))
    for _ in range(4):
        farm.submit(tasks.first, small).result(DEADLINE)
    assert copies(farm) == 0


def test_within_a_machine_nothing_is_copied(server):
    plain = Plain(data())
    with FarmExecutor(1) as embedded, FarmExecutor(server.address, key=KEY) as beside_us:
        for each in (embedded, beside_us) if sys.platform == "linux" else ():
            for _ in range(4):
                assert each.submit(tasks.first, plain).result(DEADLINE) == 7
            assert copies(each) == 0


def test_a_server_without_room_gets_it_with_each_call(elsewhere):
    before = "import farm_executor.server.shelves as shelves\nshelves.Shelf.offer = refuse"
    refuse = "from farm_executor.core.sharing import State\nrefuse = lambda *_: (State.REFUSED, 'no room')\n"
    with Serving(before=refuse + before, workers=1) as server, FarmExecutor(server.address, key=KEY) as executor:
        ready(executor)
        plain = Plain(data())
        for _ in range(5):
            assert executor.submit(tasks.first, plain).result(DEADLINE) == 7
        until(lambda: copies(executor) == 0)


def test_a_server_that_knows_no_references_gets_it_with_each_call(elsewhere):
    before = (
        "from farm_executor.server import supervisor\n"
        "supervisor.ALWAYS = tuple(each for each in supervisor.ALWAYS if each != 'references')"
    )
    with Serving(before=before, workers=1) as server, FarmExecutor(server.address, key=KEY) as executor:
        ready(executor)
        plain = Plain(data())
        for _ in range(4):
            assert executor.submit(tasks.first, plain).result(DEADLINE) == 7
        assert copies(executor) == 0


def test_without_memory_for_a_copy_it_travels_with_each_call(farm, monkeypatch):
    def refuse(name, size):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MemoryObject, "create", refuse)
    plain = Plain(data())
    for _ in range(4):
        assert farm.submit(tasks.first, plain).result(DEADLINE) == 7
    assert copies(farm) == 0


def test_a_worker_that_comes_later_has_it(farm, tmp_path):
    plain = Plain(data())
    for _ in range(2):
        farm.submit(tasks.first, plain).result(DEADLINE)
    until_held(farm)
    assert farm.submit(tasks.die_once, plain, str(tmp_path / "died")).result(DEADLINE) == 7


def test_threads_that_pass_the_same_object_share_one_copy(farm):
    plain = Plain(data())
    results = []

    def call():
        results.extend(farm.submit(tasks.first, plain).result(DEADLINE) for _ in range(5))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [7] * 20
    assert copies(farm) == 1


def test_numpy_arrays_and_views_of_them(farm):
    numpy = pytest.importorskip("numpy")
    table = numpy.arange(2 * SIZE, dtype=numpy.uint8).reshape(2, SIZE)
    for _ in range(3):
        assert farm.submit(tasks.first_of, table[0]).result(DEADLINE) == 0
        assert farm.submit(tasks.first_of, table[1]).result(DEADLINE) == SIZE % 256
    assert copies(farm) == 2
    until_held(farm, 2)
    before = sent(farm)
    for shape in ((SIZE,), (1, SIZE)):  # what is said of the memory is this call's, whatever was said before
        found = farm.submit(tasks.shape_of, table[0].reshape(shape)).result(DEADLINE)
        assert found == (shape, True)
    read_only = table[0]
    read_only.flags.writeable = False
    assert farm.submit(tasks.shape_of, read_only).result(DEADLINE) == ((SIZE,), False)
    assert sent(farm) - before < LEAST // 10
    del table, read_only
    gc.collect()
    assert copies(farm) == 0
