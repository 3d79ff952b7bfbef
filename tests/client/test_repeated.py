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
from farm_executor.client.farm.repeated import LEAST, Repeated, Standing
from farm_executor.core.frames import Kind, size_and_kind
from farm_executor.core.reader import FrameReader
from farm_executor.core.repeats import MAX_SEEN, MAX_STRIKES
from farm_executor.core.sharing import State, encode_answer, layout_of
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


def test_a_server_without_room_keeps_others_from_nothing(server, elsewhere):
    """Neither another server from the copy, nor what the program shares by itself from its room."""
    with (
        Serving("--max-shared", str(3 * LEAST), workers=1) as full,
        FarmExecutor([full.address, server.address], key=KEY) as executor,
    ):
        large = bytes(LEAST - 1)
        until(
            lambda: (
                [future.result(DEADLINE) for future in [executor.submit(len, large) for _ in range(8)]]
                and len(hosts(executor)) == 2
                and all(host.dial_ring is None for host in hosts(executor))
            )
        )
        for _ in range(6):
            plain = Plain(data(size=2 * LEAST))
            for _ in range(2):
                assert executor.submit(tasks.first, plain).result(DEADLINE) == 7
            until(lambda: sorted(len(host.deliveries._held) for host in hosts(executor)) == [0, 1])
        with executor.share(Plain(data(8, size=3 * LEAST - 1024))) as shared:
            assert executor.broadcast(tasks.first, shared) == [8] * 3


def test_nobody_hears_that_a_copy_was_refused_which_is_not_needed_any_more(farm, caplog):
    """Its program has shared nothing, and would be told to share less."""
    refusal = FrameReader().receive_data(b"".join(encode_answer(999, State.REFUSED, "no room")))
    farm._engine.sharing.on_answer(hosts(farm)[0], refusal[0])
    assert not caplog.records


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


# -- without a farm ------------------------------------------------------------------------------------------------


class Copy:
    """A copy, as a farm's record of it."""

    refused = False

    def __init__(self, buffer):
        layout = layout_of([0, size_and_kind(buffer)], frozen=False)
        begin, size, self.kind = layout.parts[1]
        memory = bytearray(layout.size)
        memory[: len(layout.head)] = layout.head
        memory[begin : begin + size] = buffer
        self.view = memoryview(memory)


def look(repeated, memory):
    """Have the memory stand in a call; return the copy that is used."""
    arguments = repeated.standing((b"pickle", memory))
    return arguments.records[1] if type(arguments) is Standing else None


def test_of_parts_of_one_object_no_more_is_kept_than_is_remembered():
    repeated = Repeated(Copy, lambda: True)
    memory = memoryview(data(size=LEAST + 3 * MAX_SEEN))
    for end in range(LEAST, len(memory)):
        look(repeated, memory[:end])
    assert len(repeated._owners) == MAX_SEEN


def test_what_a_part_of_some_bytes_has_left_is_not_taken_for_bytes():
    """These often come to stand where the others were; the task would get something else than bytes."""
    repeated = Repeated(Copy, lambda: True)
    for _ in range(20):
        value = bytes(SIZE + 1)
        for _ in range(2):
            look(repeated, memoryview(value)[:SIZE])
        del value
        value = bytes(SIZE)
        copy = look(repeated, memoryview(value))
        assert copy is None or copy.kind is Kind.BYTES
        del value


def test_an_object_may_go_while_its_copy_is_looked_for():
    """In any thread, and in this one as garbage is collected."""
    repeated = Repeated(Copy, lambda: True)
    owners = [data(), data()]

    class Going(dict):
        def copy(self):
            found = dict(self)
            owners.clear()
            return found

        def items(self):
            return self.copy().items()

    repeated._copies = Going()
    for _ in range(2):
        copies = [look(repeated, memoryview(owner)) for owner in owners]
    assert copies == list(repeated._copies.values())
    repeated.leave(copies[1])
    assert not repeated._copies


def test_an_interrupt_while_a_copy_is_taken_leaves_its_room_to_others():
    def copy(buffer):
        raise KeyboardInterrupt

    repeated, owner = Repeated(copy, lambda: True), data()
    look(repeated, memoryview(owner))
    with pytest.raises(KeyboardInterrupt):
        look(repeated, memoryview(owner))
    assert repeated._repeats.used == 0

    repeated._copy = Copy
    assert [look(repeated, memoryview(owner)) is None for _ in range(3)] == [True, False, False]


def test_a_farm_may_end_while_its_copy_is_looked_at():
    class Ending(Copy):
        looks = 0

        @property
        def view(self):
            self.looks += 1
            return self.memory if self.looks == 1 else None

        @view.setter
        def view(self, memory):
            self.memory = memory

    repeated, owner = Repeated(Ending, lambda: True), data()
    for _ in range(4):
        look(repeated, memoryview(owner))
