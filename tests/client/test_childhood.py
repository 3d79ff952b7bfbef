"""A worker is a process such as multiprocessing's own children: who it is, what it shares, and how it ends."""

import multiprocessing
import os
import sys
from multiprocessing import shared_memory

import pytest
from client import childhood_tasks as tasks
from server.processes import exists, wait_until
from server.serving import KEY, Serving

from farm_executor import FarmExecutor, start_server

DEADLINE = 30.0
ENDS = ["Finalize", "a thread", "atexit", "weakref.finalize"]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture(params=["embedded", "a server", "the command line"])
def one(request, no_leaks):
    """A farm with one worker, of each kind of server."""
    if request.param == "embedded":
        with FarmExecutor(1) as farm:
            yield farm
    elif request.param == "a server":
        with (
            start_server("127.0.0.1", 0, background=True, workers=1) as server,
            FarmExecutor(server.address) as farm,
        ):
            yield farm
    else:
        with Serving(workers=1) as serving, FarmExecutor(f"127.0.0.1:{serving.port}", key=KEY) as farm:
            yield farm


# -- who it is ------------------------------------------------------------------------------------------


def test_a_worker_is_a_numbered_child_with_a_parent(one):
    found = one.submit(tasks.identity).result(timeout=DEADLINE)
    parent = found.pop("parent")

    (number,) = found.pop("number")
    assert found == {
        "name": f"FarmWorker-{number}",
        "daemon": False,
        "is the process": True,
        "children": [],
    }
    assert parent[0] == "MainProcess"
    assert parent[1] == (
        os.getpid() if one._backing.supply.given is None else one.submit(os.getppid).result(timeout=DEADLINE)
    )
    assert parent[2], "the parent lives"


def test_no_two_workers_of_a_program_have_the_same_number():
    with (
        start_server("127.0.0.1", 0, background=True, workers=2) as server,
        FarmExecutor(server.address) as farm,
        FarmExecutor(2, max_tasks_per_child=1) as other,
    ):
        numbers = [found["number"] for found in farm.broadcast(tasks.identity)]
        numbers += [other.submit(tasks.identity).result(timeout=DEADLINE)["number"] for _ in range(4)]
    assert len(set(numbers)) == 6


def test_children_of_a_worker_are_numbered_within_its_number(one):
    worker, child = one.submit(tasks.numbers_of_children).result(timeout=DEADLINE)
    assert child == [*worker, 1]


def test_a_worker_knows_that_its_program_has_ended(one):
    """What `parent_process().join()` waits for is not there as long as the program lives."""
    assert one.submit(parent_ends_within, 0.05).result(timeout=DEADLINE) is False


def parent_ends_within(seconds):
    multiprocessing.parent_process().join(seconds)
    return not multiprocessing.parent_process().is_alive()


def test_an_embedded_worker_starts_children_as_the_program_does():
    before = multiprocessing.get_start_method(allow_none=True)
    try:
        for method in ("spawn", "fork"):
            multiprocessing.set_start_method(method, force=True)
            with FarmExecutor(1) as farm:
                assert farm.submit(tasks.start_method).result(timeout=DEADLINE) == method
    finally:
        multiprocessing.set_start_method(before, force=True)


def test_a_start_method_that_a_library_has_added_here_is_left_out(monkeypatch):
    """As loky does in its workers: theirs have no such method."""
    contexts = multiprocessing.context._concrete_contexts
    monkeypatch.setitem(contexts, "added", contexts["spawn"])
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("added", force=True)
    try:
        monkeypatch.setattr(contexts["spawn"], "_name", "added")
        with FarmExecutor(1) as farm:
            assert farm.submit(tasks.start_method).result(timeout=DEADLINE) in ("fork", "spawn", "forkserver")
    finally:
        multiprocessing.set_start_method(before, force=True)


def test_the_modules_of_multiprocessing_are_as_they_are_elsewhere(one):
    here, kinds, readable = one.submit(tasks.imported_as_usual).result(timeout=DEADLINE)
    assert (here, kinds, readable) == ([True] * 3, ["SourceFileLoader"] * 3, True)


def test_a_worker_s_surroundings_are_those_of_a_fresh_process(one):
    assert one.submit(tasks.surroundings).result(timeout=DEADLINE) == {
        "root handlers": [],
        "stdin": "",
        "main thread": True,
        "native id": True,
        "SIGTERM": True,
        "SIGCHLD": True,
        "mask": set(),
    }


def test_workers_draw_different_random_numbers(no_leaks, tmp_path):
    with FarmExecutor(2) as farm:
        (one, first), (other, second) = farm.map(tasks.draw, [str(tmp_path / "gate")] * 2, timeout=DEADLINE)
    assert one != other
    assert first != second


# -- signals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["a signal", "interrupt_main"])
def test_a_task_that_is_interrupted_gets_keyboard_interrupt(one, how):
    for _ in range(2):
        assert one.submit(tasks.interrupt_oneself, how).result(timeout=DEADLINE) == "interrupted"


def test_programs_and_children_of_a_task_can_be_interrupted(one):
    assert one.submit(tasks.interrupted_child).result(timeout=DEADLINE) == "True"
    assert one.submit(tasks.interrupted_fork).result(timeout=DEADLINE) == 0


# -- how it ends ----------------------------------------------------------------------------------------


def noted(path):
    return sorted(path.read_text().split("\n")[:-1]) if path.exists() else []


def test_what_tasks_left_for_the_end_is_done_when_the_farm_is_shut_down(one, tmp_path):
    path = tmp_path / "book"
    one.submit(tasks.leave_things_for_the_end, str(path)).result(timeout=DEADLINE)
    one.shutdown()
    if one._backing.supply.given is None:
        assert noted(path) == ENDS
    wait_until(lambda: noted(path) == ENDS, "all is done")


def test_what_tasks_left_for_the_end_is_done_when_a_worker_is_replaced(one, tmp_path):
    path = tmp_path / "book"
    given = one._backing.settings
    with FarmExecutor(given.addresses or 1, max_tasks_per_child=1, key=given.key and given.key.secret) as farm:
        pid = farm.submit(tasks.leave_things_for_the_end, str(path)).result(timeout=DEADLINE)
        wait_until(lambda: noted(path) == ENDS, "all is done")
        assert farm.submit(os.getpid).result(timeout=DEADLINE) != pid


def test_what_tasks_left_for_the_end_is_done_when_a_server_is_removed(no_leaks, tmp_path):
    path = tmp_path / "book"
    with start_server("127.0.0.1", 0, background=True, workers=1) as server, FarmExecutor(server.address) as farm:
        farm.submit(tasks.leave_things_for_the_end, str(path)).result(timeout=DEADLINE)
        farm.remove_server(server.address)
        wait_until(lambda: noted(path) == ENDS, "all is done")


def test_what_tasks_left_for_the_end_is_done_when_a_server_is_drained(no_leaks, tmp_path):
    path = tmp_path / "book"
    with start_server("127.0.0.1", 0, background=True, workers=1) as server, FarmExecutor(server.address) as farm:
        farm.submit(tasks.leave_things_for_the_end, str(path)).result(timeout=DEADLINE)
        server.drain()
        assert server.wait(DEADLINE)
        assert noted(path) == ENDS


def test_processes_that_a_task_left_end_with_their_worker(one):
    left = one.submit(tasks.leave_processes).result(timeout=DEADLINE)
    one.shutdown()
    wait_until(lambda: not any(map(exists, left)), "they have ended")


# -- shared memory --------------------------------------------------------------------------------------


def test_a_segment_of_the_program_outlives_the_workers_that_use_it():
    segment = shared_memory.SharedMemory(create=True, size=100)
    try:
        for expected in (1, 2):
            with FarmExecutor(1, max_tasks_per_child=1) as farm:
                assert farm.submit(tasks.add_one, segment.name).result(timeout=DEADLINE) == 2 * expected - 1
                assert farm.submit(tasks.add_one, segment.name).result(timeout=DEADLINE) == 2 * expected
        shared_memory.SharedMemory(name=segment.name).close()
    finally:
        segment.close()
        segment.unlink()
