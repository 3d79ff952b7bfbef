"""initializer, initargs and max_tasks_per_child: the life of a worker."""

import os
from concurrent.futures import BrokenExecutor

import pytest
from contract import tasks
from contract.gate import DEADLINE


@pytest.fixture(autouse=True)
def state_of_the_client():
    """Where tasks share the client's globals, each test starts from the same state."""
    tasks.set_state("never set")


def test_the_initializer_sets_what_every_task_sees(executor_factory):
    executor = executor_factory(initializer=tasks.set_state, initargs=({"connection": 1},))
    futures = [executor.submit(tasks.get_state) for _ in range(20)]
    assert [future.result(timeout=DEADLINE) for future in futures] == [{"connection": 1}] * 20


def test_initargs_have_a_default(executor_factory):
    executor = executor_factory(initializer=tasks.set_state)
    assert executor.submit(tasks.get_state).result(timeout=DEADLINE) == "set without arguments"


def test_the_initializer_runs_once_in_each_worker(executor_factory, gate, tmp_path):
    book = tmp_path / "book"
    executor = executor_factory(max_workers=2, initializer=tasks.write_line, initargs=(str(book), "started"))
    held = [executor.submit(tasks.pass_gate, gate.address) for _ in range(2)]
    gate.wait_for_arrivals(2)
    gate.open()
    assert list(executor.map(tasks.negate, range(100))) == [-number for number in range(100)]
    assert all(future.result(timeout=DEADLINE) is None for future in held)
    executor.shutdown()
    assert book.read_text().split() == ["started", "started"]


@pytest.mark.needs("isolates")
def test_the_initializer_leaves_the_client_alone(executor_factory):
    executor = executor_factory(initializer=tasks.set_state, initargs=("the worker's",))
    assert executor.submit(tasks.get_state).result(timeout=DEADLINE) == "the worker's"
    assert tasks.state == "never set"


@pytest.mark.needs("isolates")
def test_executors_do_not_share_their_workers(executor_factory):
    first, second = (
        executor_factory(max_workers=1, initializer=tasks.set_state, initargs=(name,)) for name in ("one", "two")
    )
    assert first.submit(tasks.get_state).result(timeout=DEADLINE) == "one"
    assert second.submit(tasks.get_state).result(timeout=DEADLINE) == "two"
    assert first.submit(tasks.get_state).result(timeout=DEADLINE) == "one"


@pytest.mark.needs("by_value")
def test_the_initializer_may_be_a_closure(executor_factory):
    value = ["closed over"]
    executor = executor_factory(initializer=lambda: tasks.set_state(value))
    assert executor.submit(tasks.get_state).result(timeout=DEADLINE) == ["closed over"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_initializer_that_fails_breaks_the_executor(executor_factory):
    executor = executor_factory(initializer=tasks.fail_to_start)
    futures = [executor.submit(tasks.identity, 1)]
    try:
        futures += [executor.submit(tasks.identity, number) for number in range(10)]
    except BrokenExecutor:
        pass  # it has broken already
    for future in futures:
        assert isinstance(future.exception(timeout=DEADLINE), BrokenExecutor)
    with pytest.raises(BrokenExecutor):
        executor.submit(tasks.identity, 1)
    executor.shutdown()


@pytest.mark.needs("isolates")
def test_an_initializer_that_kills_its_worker_breaks_the_executor(executor_factory):
    """It would kill the next one as well: nobody waits for that."""
    executor = executor_factory(max_workers=1, initializer=os._exit, initargs=(3,))
    future = executor.submit(tasks.identity, 1)
    assert isinstance(future.exception(timeout=DEADLINE), BrokenExecutor)
    with pytest.raises(BrokenExecutor):
        executor.submit(tasks.identity, 1)
    executor.shutdown()


@pytest.mark.needs("survives")
def test_a_broken_executor_says_what_its_initializer_raised(executor_factory):
    executor = executor_factory(initializer=tasks.fail_to_start)
    with pytest.raises(BrokenExecutor, match="no place to work in"):
        executor.submit(tasks.identity, 1).result(timeout=DEADLINE)
    with pytest.raises(BrokenExecutor, match="fail_to_start"):
        executor.submit(tasks.identity, 1)


@pytest.mark.needs("recycles")
def test_a_worker_ends_after_its_number_of_tasks(executor_factory):
    executor = executor_factory(max_workers=1, max_tasks_per_child=3)
    pids = [executor.submit(tasks.process_and_thread).result(timeout=DEADLINE)[0] for _ in range(7)]
    assert len(set(pids)) == 3
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [3, 3, 1]


@pytest.mark.needs("recycles_under_load")
@pytest.mark.parametrize("limit", [1, 2])
def test_no_task_is_lost_when_workers_end(executor_factory, limit):
    executor = executor_factory(max_workers=2, max_tasks_per_child=limit)
    futures = [executor.submit(tasks.identity, number) for number in range(12)]
    assert [future.result(timeout=DEADLINE) for future in futures] == list(range(12))


@pytest.mark.needs("recycles_under_load")
def test_no_task_is_lost_when_workers_end_after_shutdown(executor_factory):
    executor = executor_factory(max_workers=2, max_tasks_per_child=1)
    futures = [executor.submit(tasks.identity, number) for number in range(6)]
    executor.shutdown(wait=True)
    assert [future.result(timeout=0) for future in futures] == list(range(6))


@pytest.mark.needs("recycles")
def test_each_new_worker_is_initialized(executor_factory):
    executor = executor_factory(
        max_workers=1, max_tasks_per_child=1, initializer=tasks.set_state, initargs=("initialized",)
    )
    states = [executor.submit(tasks.get_state).result(timeout=DEADLINE) for _ in range(3)]
    assert states == ["initialized"] * 3
