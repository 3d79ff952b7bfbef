"""The futures an executor returns: their states, cancellation, callbacks and time limits."""

import logging
import threading
from concurrent.futures import CancelledError, InvalidStateError, wait
from concurrent.futures import TimeoutError as FuturesTimeoutError

import pytest
from contract import tasks
from contract.gate import DEADLINE

NEVER = 0.05
"""Seconds given to something that cannot happen, for the gate is closed."""


@pytest.fixture
def busy(executor_factory, gate):
    """An executor whose only worker is held at the gate, and the future of the task that holds it."""
    executor = executor_factory(max_workers=1)
    held = executor.submit(tasks.pass_gate, gate.address, "held")
    gate.wait_for_arrivals()
    return executor, held


@pytest.fixture
def pending(busy, tmp_path):
    """The last of many futures behind a held task: whatever a worker takes ahead, this one is still waiting."""
    executor, _ = busy
    book = tmp_path / "book"
    return [executor.submit(tasks.write_line, str(book), number) for number in range(1000)][-1]


def test_the_states_of_a_task_that_runs(busy, gate):
    _, future = busy
    assert future.running()
    assert not future.done()
    assert not future.cancelled()
    gate.open()
    assert future.result(timeout=DEADLINE) == "held"
    assert not future.running()
    assert future.done()
    assert not future.cancelled()


def test_the_states_of_a_task_that_waits(pending):
    assert not pending.running()
    assert not pending.done()
    assert not pending.cancelled()


def test_a_task_that_waits_can_be_cancelled_and_never_runs(busy, pending, gate, tmp_path):
    executor, held = busy
    assert pending.cancel()
    assert pending.cancelled()
    assert pending.done()
    assert not pending.running()
    assert pending.cancel(), "cancelling twice is no error"
    with pytest.raises(CancelledError):
        pending.result(timeout=0)
    with pytest.raises(CancelledError):
        pending.exception(timeout=0)
    gate.open()
    executor.shutdown(wait=True)
    assert held.result() == "held"
    assert (tmp_path / "book").read_text().split() == [str(number) for number in range(999)]


def test_every_second_of_many_tasks_can_be_cancelled(busy, gate):
    executor, _ = busy
    futures = [executor.submit(tasks.identity, number) for number in range(1000)]
    cancelled = [future for future in futures[1::2] if future.cancel()]
    gate.open()
    assert len(cancelled) > 400
    for number, future in enumerate(futures):
        if future in cancelled:
            assert future.cancelled()
        else:
            assert future.result(timeout=DEADLINE) == number


def test_a_task_that_runs_cannot_be_cancelled(busy, gate):
    _, future = busy
    assert not future.cancel()
    assert not future.cancelled()
    gate.open()
    assert future.result(timeout=DEADLINE) == "held"


def test_a_task_that_has_ended_cannot_be_cancelled(executor):
    future = executor.submit(tasks.identity, 1)
    assert future.result(timeout=DEADLINE) == 1
    assert not future.cancel()
    assert future.result() == 1


@pytest.mark.parametrize("timeout", [0, NEVER])
def test_a_timeout_leaves_the_task_alone(busy, gate, timeout):
    _, future = busy
    with pytest.raises(FuturesTimeoutError):
        future.result(timeout=timeout)
    with pytest.raises(FuturesTimeoutError):
        future.exception(timeout)
    gate.open()
    assert future.result(timeout=DEADLINE) == "held"
    assert future.exception(timeout=0) is None


def test_exception_of_a_success_is_none(executor):
    assert executor.submit(tasks.identity, 1).exception(timeout=DEADLINE) is None


def test_several_threads_wait_for_one_future(busy, gate):
    _, future = busy
    results = []
    threads = [threading.Thread(target=lambda: results.append(future.result(timeout=DEADLINE))) for _ in range(5)]
    for thread in threads:
        thread.start()
    gate.open()
    for thread in threads:
        thread.join(DEADLINE)
    assert results == ["held"] * 5


def test_a_thread_that_waits_hears_of_the_cancellation(pending):
    outcome = []

    def wait_for_it():
        try:
            pending.result(timeout=DEADLINE)
        except CancelledError:
            outcome.append("cancelled")

    thread = threading.Thread(target=wait_for_it)
    thread.start()
    pending.cancel()
    thread.join(DEADLINE)
    assert outcome == ["cancelled"]


class TestCallbacks:
    def test_added_before_the_end_they_get_the_finished_future_in_order(self, busy, gate):
        _, future = busy
        seen = []
        called = threading.Event()
        future.add_done_callback(lambda done: seen.append(("first", done, done.done(), done.result())))
        future.add_done_callback(lambda done: seen.append(("second", done, done.done(), done.result())))
        future.add_done_callback(lambda done: called.set())
        assert seen == []
        gate.open()
        assert called.wait(DEADLINE)
        assert seen == [("first", future, True, "held"), ("second", future, True, "held")]

    def test_added_after_the_end_they_are_called_at_once_by_the_caller(self, executor):
        future = executor.submit(tasks.identity, 1)
        wait([future], timeout=DEADLINE)
        seen = []
        future.add_done_callback(lambda done: seen.append((done, threading.current_thread())))
        assert seen == [(future, threading.current_thread())]

    def test_added_twice_they_are_called_twice(self, busy, gate):
        _, future = busy
        called = threading.Semaphore(0)

        def callback(done):
            called.release()

        future.add_done_callback(callback)
        future.add_done_callback(callback)
        gate.open()
        assert called.acquire(timeout=DEADLINE)
        assert called.acquire(timeout=DEADLINE)

    def test_a_failed_task_calls_them_too(self, executor_factory, gate):
        future = executor_factory().submit(tasks.pass_gate_and_raise, gate.address)
        errors = []
        called = threading.Event()
        future.add_done_callback(lambda done: errors.append(done.exception()))
        future.add_done_callback(lambda done: called.set())
        gate.open()
        assert called.wait(DEADLINE)
        assert [type(error) for error in errors] == [ValueError]

    def test_a_cancelled_task_calls_them_too(self, pending):
        seen = []
        pending.add_done_callback(lambda done: seen.append(done.cancelled()))
        assert pending.cancel()
        assert seen == [True]

    def test_one_that_raises_is_logged_and_harms_nobody(self, busy, gate, caplog):
        executor, future = busy
        called = threading.Event()

        def fail(done):
            raise ArithmeticError("in a callback")

        future.add_done_callback(fail)
        future.add_done_callback(lambda done: called.set())
        with caplog.at_level(logging.ERROR, logger="concurrent.futures"):
            gate.open()
            assert called.wait(DEADLINE)
        text = caplog.text
        caplog.clear()  # its records hold the frames of the executor's thread, and these its descriptors
        assert "exception calling callback" in text
        assert "in a callback" in text
        assert future.result() == "held"
        assert executor.submit(tasks.identity, "on").result(timeout=DEADLINE) == "on"

    def test_one_may_shut_the_executor_down(self, busy, gate):
        executor, future = busy
        called = threading.Event()

        def shut_down(done):
            executor.shutdown(wait=False)
            called.set()

        future.add_done_callback(shut_down)
        gate.open()
        assert called.wait(DEADLINE)
        with pytest.raises(RuntimeError):
            executor.submit(tasks.identity, 1)


def test_a_future_that_has_ended_cannot_be_set_again(executor):
    success, failure = executor.submit(tasks.identity, 1), executor.submit(tasks.raise_it, ValueError("once"))
    wait([success, failure], timeout=DEADLINE)
    for future in (success, failure):
        with pytest.raises(InvalidStateError):
            future.set_result(2)
        with pytest.raises(InvalidStateError):
            future.set_exception(KeyError("twice"))
    assert success.result() == 1
    assert type(failure.exception()) is ValueError


def test_a_cancelled_future_cannot_be_set(pending):
    pending.cancel()
    with pytest.raises(InvalidStateError):
        pending.set_result(2)


def test_futures_are_distinct_and_can_be_keys(executor):
    futures = {executor.submit(tasks.identity, number): number for number in range(20)}
    assert len(futures) == 20
    assert all(future.result(timeout=DEADLINE) == number for future, number in futures.items())


def test_repr_tells_the_state(busy, pending, gate):
    _, future = busy
    assert "state=running" in repr(future)
    assert "state=pending" in repr(pending)
    pending.cancel()
    assert "state=cancelled" in repr(pending)
    gate.open()
    future.result(timeout=DEADLINE)
    assert "state=finished returned str" in repr(future)
