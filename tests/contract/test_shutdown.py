"""The end of an executor: by shutdown, by leaving the with-block, by losing its last reference."""

import gc
import itertools
import threading
import weakref
from concurrent.futures import as_completed, wait

import pytest
from contract import tasks
from contract.gate import DEADLINE


@pytest.mark.parametrize("arguments", [(), (True,)], ids=["default", "by position"])
def test_shutdown_waits_for_everything_submitted(executor, tmp_path, arguments):
    book = tmp_path / "book"
    futures = [executor.submit(tasks.write_line, str(book), number) for number in range(50)]
    executor.shutdown(*arguments)
    assert all(future.done() for future in futures)
    assert len(book.read_text().split()) == 50


@pytest.mark.parametrize(
    ("arguments", "options"), [((False,), {}), ((), {"wait": False})], ids=["position", "name"]
)
def test_shutdown_without_waiting_returns_and_the_tasks_go_on(executor_factory, gate, arguments, options):
    executor = executor_factory(max_workers=1)
    held = executor.submit(tasks.pass_gate, gate.address, "held")
    behind = [executor.submit(tasks.identity, number) for number in range(100)]
    gate.wait_for_arrivals()
    executor.shutdown(*arguments, **options)
    assert not held.done()
    with pytest.raises(RuntimeError):
        executor.submit(tasks.identity, 1)
    gate.open()
    assert held.result(timeout=DEADLINE) == "held"
    assert [future.result(timeout=DEADLINE) for future in behind] == list(range(100))


@pytest.mark.parametrize("wait_for_tasks", [True, False])
def test_shutdown_can_cancel_what_waits(executor_factory, gate, wait_for_tasks):
    executor = executor_factory(max_workers=1)
    held = executor.submit(tasks.pass_gate, gate.address, "held")
    behind = [executor.submit(tasks.identity, number) for number in range(1000)]
    gate.wait_for_arrivals()
    cancelled = threading.Event()
    behind[-1].add_done_callback(lambda future: cancelled.set())
    closer = threading.Thread(target=executor.shutdown, args=(wait_for_tasks,), kwargs={"cancel_futures": True})
    closer.start()
    assert cancelled.wait(DEADLINE), "what waits is cancelled while a task still runs"
    assert behind[-1].cancelled()
    assert not held.done()
    gate.open()
    closer.join(DEADLINE)
    assert held.result(timeout=DEADLINE) == "held"
    assert sum(future.cancelled() for future in behind) > 900
    for number, future in enumerate(behind):
        if not future.cancelled():
            assert future.result() == number


@pytest.mark.needs("notifies")
def test_nobody_waits_for_ever_for_what_shutdown_cancelled(executor_factory, gate):
    executor = executor_factory(max_workers=1)
    futures = [executor.submit(tasks.pass_gate, gate.address)]
    gate.wait_for_arrivals()
    futures += [executor.submit(tasks.identity, number) for number in range(100)]
    completed = as_completed(futures, timeout=DEADLINE)
    executor.shutdown(wait=False, cancel_futures=True)
    gate.open()
    assert set(completed) == set(futures)
    assert wait(futures, timeout=DEADLINE).not_done == set()


def test_cancel_futures_is_keyword_only(executor):
    with pytest.raises(TypeError):
        executor.shutdown(True, True)


def test_submit_and_map_after_shutdown_are_refused(executor):
    assert executor.submit(tasks.identity, 1).result(timeout=DEADLINE) == 1
    executor.shutdown()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(tasks.identity, 1)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.map(tasks.identity, [1])


def test_submit_after_the_shutdown_of_an_unused_executor_is_refused(executor):
    executor.shutdown()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(tasks.identity, 1)


def test_shutdown_may_be_called_again_and_again(executor):
    executor.submit(tasks.identity, 1)
    executor.shutdown()
    executor.shutdown()
    executor.shutdown(wait=False)
    executor.shutdown(wait=True, cancel_futures=True)


@pytest.mark.needs("closes_in_parallel")
def test_several_threads_may_shut_down_at_once(executor):
    futures = [executor.submit(tasks.identity, number) for number in range(100)]
    threads = [threading.Thread(target=executor.shutdown) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert not any(thread.is_alive() for thread in threads)
    assert [future.result(timeout=DEADLINE) for future in futures] == list(range(100))


def test_a_task_that_was_cancelled_just_before_does_not_keep_shutdown_waiting(executor_factory):
    executor = executor_factory(max_workers=1)
    assert executor.submit(tasks.identity, 1).result(timeout=DEADLINE) == 1
    executor.submit(tasks.identity, 2).cancel()
    closer = threading.Thread(target=executor.shutdown)
    closer.start()
    closer.join(DEADLINE)
    assert not closer.is_alive()


def test_the_with_block_gives_the_executor_and_waits_at_its_end(executor_factory):
    outer = executor_factory()
    with outer as executor:
        assert executor is outer
        futures = [executor.submit(tasks.identity, number) for number in range(50)]
    assert [future.result(timeout=0) for future in futures] == list(range(50))
    with pytest.raises(RuntimeError):
        executor.submit(tasks.identity, 1)


def test_an_exception_leaves_the_with_block_after_the_tasks_have_ended(executor_factory):
    futures = []
    with pytest.raises(LookupError, match="in the block"), executor_factory() as executor:
        futures += [executor.submit(tasks.identity, number) for number in range(50)]
        raise LookupError("in the block")
    assert [future.result(timeout=0) for future in futures] == list(range(50))


def test_an_executor_without_references_goes_and_its_tasks_finish(executor_factory, gate):
    executor = executor_factory(max_workers=1)
    reference = weakref.ref(executor)
    held = executor.submit(tasks.pass_gate, gate.address, "held")
    behind = [executor.submit(tasks.identity, number) for number in range(100)]
    gate.wait_for_arrivals()
    del executor
    gc.collect()
    assert reference() is None
    gate.open()
    assert held.result(timeout=DEADLINE) == "held"
    assert [future.result(timeout=DEADLINE) for future in behind] == list(range(100))


def test_the_iterator_of_map_does_not_keep_the_executor(executor_factory):
    executor = executor_factory()
    reference = weakref.ref(executor)
    results = executor.map(tasks.negate, range(100))
    del executor
    gc.collect()
    assert reference() is None
    assert list(results) == [-number for number in range(100)]


def test_an_unused_executor_without_references_goes(executor_factory):
    reference = weakref.ref(executor_factory())
    gc.collect()
    assert reference() is None


def test_many_executors_one_after_the_other(executor_factory):
    for number in range(10):
        with executor_factory(max_workers=1) as executor:
            assert executor.submit(tasks.identity, number).result(timeout=DEADLINE) == number


def test_shutdown_while_other_threads_submit(executor):
    """Each submit either is refused or gives a future that ends."""
    futures = []
    refused = threading.Event()
    started = threading.Event()

    def submit_until_refused():
        for number in itertools.count():
            try:
                futures.append(executor.submit(tasks.identity, number))
            except RuntimeError:
                refused.set()
                return
            if number == 50:
                started.set()

    threads = [threading.Thread(target=submit_until_refused) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert started.wait(DEADLINE)
    executor.shutdown(wait=True)
    for thread in threads:
        thread.join(DEADLINE)
    assert refused.is_set()
    assert wait(futures, timeout=DEADLINE).not_done == set()
    assert all(future.exception() is None for future in futures)
