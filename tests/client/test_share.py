"""`FarmExecutor.share`: objects that are sent once to a server, and are themselves inside tasks."""

import gc
import os
import pickle
import subprocess
import sys
import time
from array import array
from functools import partial
from pathlib import Path

import pytest
from client import share_tasks as tasks
from client.share_tasks import Plain
from server.serving import KEY as KEY_OF_SERVING
from server.serving import Serving

from farm_executor import FarmExecutor, Shared, SharedMemoryError, TaskExecutionError, start_server
from farm_executor.client.farm.missing import explain_missing
from farm_executor.wire.memory_objects import MemoryObject

SIZE = 3 * 1024 * 1024 + 17  # more than one piece, and not a whole number of them
KEY = bytes(range(32))
PATH = os.pathsep.join(str(folder) for folder in Path(__file__).parents[1:3])  # of this package, and the farm
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")


def data(first=7, size=SIZE):
    return array("B", bytes([first]) + bytes(size - 1))


@pytest.fixture(scope="module")
def farm():
    with FarmExecutor(2) as executor:
        yield executor


@pytest.fixture
def big(farm):
    with farm.share(Plain(data())) as shared:
        yield shared


def until(done, seconds=30):
    """Wait until something is so, which it is soon."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "it has not come to that"
        time.sleep(0.005)


# -- it is the object ---------------------------------------------------------------------------------


def test_it_is_the_object_wherever_a_call_holds_it(farm, big):
    assert farm.submit(tasks.first, big).result() == 7
    assert farm.submit(tasks.first, plain=big, number=1).result() == 8
    assert farm.submit(lambda table: table["deep"][0].data[0], {"deep": [big]}).result() == 7
    assert farm.submit(lambda: big.data[0]).result() == 7
    assert list(farm.map(partial(tasks.first, big), range(100))) == list(range(7, 107))
    assert list(farm.map(tasks.first, [big] * 30, range(30))) == list(range(7, 37))
    assert list(farm.map(partial(tasks.first, big), range(20), chunksize=5)) == list(range(7, 27))
    assert farm.broadcast(tasks.first, big) == [7, 7]
    assert farm.with_options(priority="high").submit(tasks.kinds, big).result() == "Plain"


def test_each_call_may_change_it_and_nobody_sees_that(farm, big):
    assert [farm.submit(tasks.add_one, big).result() for _ in range(4)] == [8, 8, 8, 8]
    assert big.value.data[0] == 7


def test_it_is_as_it_was_when_it_was_shared(farm):
    original = data(1)
    shared = farm.share(Plain(original))
    original[0] = 99

    assert farm.submit(tasks.first, shared).result() == 1
    assert shared.value.data is original


def test_a_frozen_object_is_one_for_all_calls_of_a_worker_and_read_only(farm):
    with farm.share(Plain(data()), frozen=True) as shared:
        by_worker = {}
        for pid, identity in [farm.submit(tasks.identity_of, shared).result() for _ in range(8)]:
            by_worker.setdefault(pid, set()).add(identity)

        assert {len(identities) for identities in by_worker.values()} == {1}
        with pytest.raises(TypeError, match="read-only"):
            farm.submit(tasks.add_one, shared).result()


@pytest.mark.parametrize("value", [b"x" * SIZE, bytearray(SIZE), "text" * 50_000, [1, {"a": None}], 5, None])
def test_any_object_can_be_shared(farm, value):
    for frozen in (False, True):
        with farm.share(value, frozen=frozen) as shared:
            assert farm.submit(lambda given: (type(given), given), shared).result() == (type(value), value)


def test_objects_that_travel_by_value_can_be_shared(farm):
    class Local:
        def __init__(self, number):
            self.number = number

    shared = farm.share([Local(1), lambda: 2])

    assert farm.submit(lambda given: (given[0].number, given[1]()), shared).result() == (1, 2)


def test_a_shared_object_may_hold_another(farm, big):
    with farm.share({"inner": big}) as outer:
        big.close()  # the outer one still needs it

        assert farm.submit(lambda given: given["inner"].data[0], outer).result() == 7


def test_sharing_a_handle_returns_it(farm, big):
    assert farm.share(big) is big


def test_what_cannot_be_pickled_raises_where_it_is_shared(farm):
    with pytest.raises(TypeError, match="generator"):
        farm.share(item for item in "abc")


def test_the_handle_describes_itself(farm):
    shared = farm.share(b"text", frozen=True)

    assert isinstance(shared, Shared)
    assert repr(shared).startswith("<Shared ")
    assert repr(shared).endswith(f": bytes, {shared.nbytes} bytes, frozen>")
    assert 0 < shared.nbytes < 1000
    shared.close()
    shared.close()
    assert shared.closed
    assert "closed" in repr(shared)
    assert shared.value == b"text"


# -- bad input ----------------------------------------------------------------------------------------


def test_a_closed_handle_is_a_value_error(farm):
    shared = farm.share([1])
    shared.close()

    for future in (farm.submit(len, shared), farm.submit(lambda: len(shared))):
        with pytest.raises(ValueError, match="closed: share it again"):
            future.result()
    with pytest.raises(ValueError, match="closed"):
        farm.share(shared)


def test_a_handle_of_another_farm_is_a_value_error(farm, big):
    with FarmExecutor(1) as other:
        with pytest.raises(ValueError, match="its own farm only"):
            other.submit(len, big).result()
        with other.share([1]) as own:
            with pytest.raises(ValueError, match="its own farm only"):
                other.submit(len, [own, big]).result()
            assert other.submit(len, own).result() == 1
            with pytest.raises(ValueError, match="another farm"):
                other.share(big)


def test_a_handle_is_not_pickled_outside_of_calls(big):
    with pytest.raises(ValueError, match="its own farm only"):
        pickle.dumps(big)


def test_the_argument_that_cannot_be_pickled_is_named_beside_a_handle(farm, big):
    with pytest.raises(TypeError, match=r"argument 1, of type generator"):
        farm.submit(len, big, (item for item in "abc")).result()


def test_sharing_after_the_end_is_an_error():
    executor = FarmExecutor(1)
    executor.shutdown()

    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.share(1)


def test_what_a_server_may_not_hold_fails_the_tasks_that_need_it_and_no_others():
    with FarmExecutor(1, max_shared=2 * SIZE) as executor:
        fits = executor.share(Plain(data()))
        large = executor.share(Plain(data(size=SIZE + 1000)))
        futures = [executor.submit(tasks.first, each) for each in (fits, large, fits)]

        assert futures[0].result() == futures[2].result() == 7
        with pytest.raises(SharedMemoryError) as caught:
            futures[1].result()
        assert f"shared object 2 of {large.nbytes} bytes" in str(caught.value)
        assert f"{2 * SIZE} bytes in all, of which {fits.nbytes} bytes are taken" in str(caught.value)
        del futures, fits
        gc.collect()
        # Its room is free once it has gone; an object that was refused stays so.
        again = executor.share(Plain(data(9, SIZE + 1000)))
        assert executor.submit(tasks.first, again).result() == 9


def test_a_program_that_cannot_map_it_is_told_so_and_its_farm_goes_on(monkeypatch):
    def refuse(self, *, private):
        raise OSError(24, "Too many open files")

    with FarmExecutor(1) as executor:
        executor.connect()
        with monkeypatch.context() as patch:
            patch.setattr(MemoryObject, "view", refuse)
            with pytest.raises(OSError, match="Too many open files"):
                executor.submit(tasks.first, executor.share(Plain(data()))).result()
        assert executor.submit(tasks.first, executor.share(Plain(data()))).result() == 7


# -- how long it stays --------------------------------------------------------------------------------


def test_calls_on_their_way_still_have_what_is_closed(farm):
    with farm.share(Plain(data())) as shared:
        futures = [farm.submit(tasks.first, shared, number) for number in range(50)]

    assert [future.result() for future in futures] == list(range(7, 57))


@on_linux
@pytest.mark.parametrize("end", [Shared.close, lambda shared: None])
def test_nothing_stays_once_it_is_closed_or_collected(end):
    with FarmExecutor(2) as executor:
        shared = executor.share(Plain(data()))
        pids = {executor.submit(tasks.supervisor).result(), os.getpid()}
        pids |= {pid for pid, _ in executor.broadcast(tasks.identity_of, shared)}
        # The server and two workers have one each, and a mapping another, on Pythons where it cannot do without.
        mapped = [0, 1, 1, 1] if sys.version_info >= (3, 13) else [1, 1, 1, 1]
        until(lambda: sorted(tasks.count(pid) for pid in pids) == mapped)
        end(shared)
        del shared
        gc.collect()
        until(lambda: not any(tasks.count(pid) for pid in pids))


@on_linux
def test_nothing_stays_after_the_farm():
    executor = FarmExecutor(1)
    shared = executor.share(Plain(data()))
    executor.submit(tasks.first, shared).result()
    executor.shutdown()

    assert tasks.count(os.getpid()) == 0
    shared.close()


def test_a_worker_replaced_after_a_crash_gets_it(farm, big, tmp_path):
    assert farm.submit(tasks.die_once, big, str(tmp_path / "died")).result() == 7


def test_workers_that_come_later_get_it():
    with FarmExecutor(1, max_tasks_per_child=1) as executor:
        shared = executor.share(Plain(data()))

        results = [executor.submit(tasks.identity_of, shared).result() for _ in range(3)]

    assert len({pid for pid, _ in results}) == 3


# -- servers ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server():
    with start_server("127.0.0.1", 0, background=True, workers=2, key=KEY) as server:
        yield server


def connected(*servers, **settings):
    return FarmExecutor([each.address for each in servers], key=KEY, **settings)


@on_linux
def test_all_workers_of_a_server_map_one_object(server, tmp_path):
    with connected(server) as executor:
        shared = executor.share(Plain(data()))
        futures = [executor.submit(tasks.meet, str(tmp_path), number, 2, shared) for number in range(2)]
        pids = [pid for pid, _ in (future.result() for future in futures)]

        assert len(set(pids)) == 2
        found = set()
        for pid in (*pids, server.pid):
            for descriptor in os.listdir(f"/proc/{pid}/fd"):
                if tasks.NAMES[0] in os.readlink(f"/proc/{pid}/fd/{descriptor}"):
                    found.add(os.stat(f"/proc/{pid}/fd/{descriptor}").st_ino)
        assert len(found) == 1


def test_servers_that_come_later_get_it(server):
    with (
        start_server("127.0.0.1", 0, background=True, workers=1, key=KEY) as later,
        connected(server) as executor,
    ):
        shared = executor.share(Plain(data()))
        assert executor.submit(tasks.first, shared).result() == 7
        executor.add_server(later.address)
        executor.connect()
        executor.remove_server(server.address)

        assert executor.submit(tasks.first, shared).result() == 7


@on_linux
def test_a_session_that_ends_frees_what_it_has_shared(server):
    with connected(server) as executor:
        shared = executor.share(Plain(data()))
        executor.submit(tasks.first, shared).result()
        assert tasks.count(server.pid) == 1
    until(lambda: tasks.count(server.pid) == 0)


CLIENT = """
import sys
from client.test_share import KEY, Plain, data, tasks
from farm_executor import FarmExecutor
executor = FarmExecutor([sys.argv[1]], key=KEY, resume_timeout=0)
shared = executor.share(Plain(data()))
executor.submit(tasks.first, shared).result()
print("shared", flush=True)
sys.stdin.read()
"""


@on_linux
def test_nothing_stays_where_the_client_was_killed(server):
    command = [sys.executable, "-c", CLIENT, server.address]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": PATH}, text=True
    ) as client:
        assert client.stdout.readline() == "shared\n"
        assert tasks.count(server.pid) == 1
        client.kill()
    until(lambda: tasks.count(server.pid) == 0)


# -- globals of functions that travel by value ---------------------------------------------------------

PROGRAM = """
import gc, sys
from client.test_share import Plain, data, tasks, until
from farm_executor import FarmExecutor

farm = FarmExecutor(1)
shared = farm.share(Plain(data()))
pid, parent = farm.submit(tasks.identity_of, 0).result()[0], farm.submit(tasks.supervisor).result()
for _ in range(3):
    assert farm.submit(lambda: shared.data[0]).result() == 7
assert tasks.count(pid) >= 1
shared.close()
until(lambda: tasks.count(pid) == 0 and tasks.count(parent) == 0)
shared = farm.share(Plain(data(9)))
assert farm.submit(lambda: shared.data[0]).result() == 9
farm.shutdown()
print("done")
"""


@on_linux
def test_a_global_of_the_program_may_be_a_handle(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": PATH},
        capture_output=True,
        text=True,
    )

    assert (done.stdout, done.stderr) == ("done\n", "")


def test_a_server_without_shared_objects_takes_what_does_not_fit_into_its_socket():
    before = "from farm_executor.server import supervisor; supervisor.ALWAYS = ()"
    with Serving(before=before, workers=1) as server, FarmExecutor(server.address, key=KEY_OF_SERVING) as executor:
        assert executor.submit(len, bytes(16 * SIZE)).result(30) == 16 * SIZE


def test_a_server_that_is_too_old_is_named():
    error = TaskExecutionError("could not be read")
    error.__cause__ = ModuleNotFoundError("No module named 'x'", name="farm_executor.data.shared")

    told = explain_missing(error, server="old:1")

    assert type(told) is SharedMemoryError
    assert str(told).startswith("server old:1 has an older farm_executor, which cannot hold shared objects")
