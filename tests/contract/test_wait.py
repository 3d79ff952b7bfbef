"""concurrent.futures.wait and as_completed over the executors' futures."""

from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION, as_completed, wait
from concurrent.futures import TimeoutError as FuturesTimeoutError

import pytest
from contract import tasks
from contract.gate import DEADLINE

NEVER = 0.05
"""Seconds given to something that cannot happen, for the gate is closed."""


@pytest.fixture
def held(executor, gate):
    """A task that ends when the gate opens; one worker is free."""
    future = executor.submit(tasks.pass_gate, gate.address, "held")
    gate.wait_for_arrivals()
    return future


@pytest.mark.parametrize("return_when", [FIRST_COMPLETED, FIRST_EXCEPTION, ALL_COMPLETED])
def test_waiting_for_what_has_ended(executor, return_when):
    futures = [executor.submit(tasks.identity, number) for number in range(10)]
    for future in futures:
        future.result(timeout=DEADLINE)
    done, not_done = wait(futures, timeout=DEADLINE, return_when=return_when)
    assert done == set(futures)
    assert not_done == set()


def test_all_completed(executor):
    futures = [executor.submit(divmod, 6, number % 3) for number in range(100)]
    done, not_done = wait(futures, timeout=DEADLINE)
    assert done == set(futures)
    assert not_done == set()
    assert all(future.done() for future in futures)


def test_first_completed(executor, held):
    quick = executor.submit(tasks.identity, 1)
    done, not_done = wait([held, quick], timeout=DEADLINE, return_when=FIRST_COMPLETED)
    assert (done, not_done) == ({quick}, {held})


def test_first_exception(executor, held):
    success, failure = executor.submit(tasks.identity, 1), executor.submit(divmod, 1, 0)
    done, not_done = wait([held, success, failure], timeout=DEADLINE, return_when=FIRST_EXCEPTION)
    assert failure in done
    assert not_done >= {held}


def test_first_exception_without_one_waits_for_all(executor):
    futures = [executor.submit(tasks.identity, number) for number in range(10)]
    done, not_done = wait(futures, timeout=DEADLINE, return_when=FIRST_EXCEPTION)
    assert (done, not_done) == (set(futures), set())


def test_a_timeout_returns_what_has_ended(executor, held):
    quick = executor.submit(tasks.identity, 1)
    quick.result(timeout=DEADLINE)
    for timeout in (0, NEVER):
        assert wait([held, quick], timeout=timeout) == ({quick}, {held})


def test_duplicates_count_once(executor):
    future = executor.submit(tasks.identity, 1)
    assert wait([future, future], timeout=DEADLINE) == ({future}, set())


def test_nothing_to_wait_for(executor):
    assert wait([], timeout=DEADLINE) == (set(), set())


def test_a_task_that_ends_while_others_are_waited_for_again(executor, held, gate):
    done, not_done = wait([held], timeout=0)
    assert (done, not_done) == (set(), {held})
    gate.open()
    assert wait([held], timeout=DEADLINE) == ({held}, set())


def test_futures_of_several_executors(executor_factory):
    futures = [executor_factory(max_workers=1).submit(tasks.identity, number) for number in range(3)]
    assert wait(futures, timeout=DEADLINE) == (set(futures), set())


def test_a_cancelled_future_counts_as_completed(executor, gate):
    held = [executor.submit(tasks.pass_gate, gate.address) for _ in range(2)]
    gate.wait_for_arrivals(2)
    futures = [executor.submit(tasks.identity, number) for number in range(1000)]
    assert futures[-1].cancel()
    gate.open()
    done, not_done = wait([futures[-1]], timeout=DEADLINE)
    assert (done, not_done) == ({futures[-1]}, set())
    assert wait(held, timeout=DEADLINE).not_done == set()


def test_a_cancelled_future_wakes_who_already_waits(executor, gate):
    executor.submit(tasks.pass_gate, gate.address)
    executor.submit(tasks.pass_gate, gate.address)
    gate.wait_for_arrivals(2)
    futures = [executor.submit(tasks.identity, number) for number in range(1000)]
    completed = as_completed(futures, timeout=DEADLINE)
    assert futures[-1].cancel()
    gate.open()
    assert set(completed) == set(futures)


def test_as_completed_yields_each_future_once(executor):
    futures = [executor.submit(tasks.identity, number) for number in range(100)]
    completed = list(as_completed(futures + futures, timeout=DEADLINE))
    assert len(completed) == 100
    assert set(completed) == set(futures)


def test_as_completed_yields_in_the_order_of_completion(executor, held, gate):
    quick = [executor.submit(tasks.identity, number) for number in range(10)]
    completed = as_completed([held, *quick], timeout=DEADLINE)
    assert {next(completed) for _ in range(10)} == set(quick)
    gate.open()
    assert list(completed) == [held]


def test_as_completed_with_a_timeout_yields_what_has_ended_and_then_raises(executor, held):
    quick = [executor.submit(tasks.identity, number) for number in range(2)]
    wait(quick, timeout=DEADLINE)
    completed = as_completed([held, *quick], timeout=NEVER)
    assert {next(completed), next(completed)} == set(quick)
    with pytest.raises(FuturesTimeoutError) as caught:
        next(completed)
    assert str(caught.value) == "1 (of 3) futures unfinished"


def test_as_completed_of_failures(executor):
    futures = [executor.submit(divmod, 1, 0) for _ in range(10)]
    assert all(type(future.exception()) is ZeroDivisionError for future in as_completed(futures, timeout=DEADLINE))


def test_many_futures(executor):
    futures = {executor.submit(tasks.identity, number): number for number in range(1000)}
    assert all(future.result() == futures[future] for future in as_completed(futures, timeout=DEADLINE))
