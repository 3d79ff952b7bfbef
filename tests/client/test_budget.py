"""`max_pending_bytes`: what a farm holds is bounded, and nobody waits for ever."""

import signal
import sys
import threading
import time

import pytest
from contract import tasks
from contract.gate import Gate
from hypothesis import given
from hypothesis import strategies as st

from farm_executor import BrokenFarmError, FarmExecutor, FarmFullError
from farm_executor.client.farm import statistics
from farm_executor.client.farm.budget import Budget

DEADLINE = 20.0
LARGE = bytes(100_000)


def until(condition):
    deadline = time.monotonic() + DEADLINE
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.002)
    return condition()


@given(st.integers(1, 1000), st.lists(st.tuples(st.booleans(), st.integers(0, 1500))))
def test_no_more_is_held_than_the_limit_except_one_that_is_larger_or_cannot_wait(limit, requests):
    budget, held = Budget(limit, may_wait=False), []
    for now, size in requests:
        if budget.take(size, now=now):
            held.append(size)
            assert now or sum(held) <= limit or sum(held) == size
        else:
            assert sum(held) + size > limit
            with pytest.raises(FarmFullError, match=f"holds {sum(held)} bytes .* max_pending_bytes={limit}"):
                budget.wait(size)
            budget.give_back(held.pop())


def test_whoever_waits_goes_on_when_there_is_room():
    budget = Budget(10, may_wait=True)
    assert budget.take(8)
    assert not budget.take(3)
    waiter = threading.Thread(target=budget.wait, args=(3,))
    waiter.start()
    assert until(lambda: budget.waiting == 1)
    budget.give_back(8)
    waiter.join(DEADLINE)

    assert not waiter.is_alive()
    assert budget.waiting == 0


def test_the_end_lets_everybody_through():
    budget = Budget(10, may_wait=True)
    assert budget.take(10)
    waiter = threading.Thread(target=budget.wait, args=(3,))
    waiter.start()
    assert until(lambda: budget.waiting == 1)
    budget.close()
    waiter.join(DEADLINE)

    assert not waiter.is_alive()
    assert budget.take(3)


@pytest.mark.parametrize("bad", [0, -1])
def test_a_limit_is_at_least_one_byte(bad):
    with pytest.raises(ValueError, match="max_pending_bytes must be >= 1"):
        FarmExecutor(max_pending_bytes=bad)


def test_arguments_are_checked():
    with pytest.raises(TypeError, match="max_pending_bytes must be an integer"):
        FarmExecutor(max_pending_bytes="1 GB")
    with pytest.raises(ValueError, match='when_full must be "wait" or "raise"'):
        FarmExecutor(when_full="drop")


def test_submit_waits_while_the_farm_is_full(no_leaks):
    with Gate() as gate, FarmExecutor(1, max_pending_bytes=250_000) as farm:
        first = farm.submit(tasks.pass_gate, gate.address, LARGE)
        second = farm.submit(tasks.identity, LARGE)
        third = []
        submitter = threading.Thread(target=lambda: third.append(farm.submit(tasks.identity, LARGE)))
        submitter.start()
        assert until(lambda: farm.statistics().waiting_submitters == 1)
        assert 200_000 < farm.statistics().pending_bytes < 250_000
        assert not third
        gate.open()
        submitter.join(DEADLINE)

        assert [future.result(DEADLINE) for future in (first, second, *third)] == [LARGE] * 3
        assert until(lambda: farm.statistics().pending_bytes == 0)
        assert farm.statistics().waiting_submitters == 0


def test_submit_raises_if_asked_and_the_farm_goes_on(no_leaks):
    with Gate() as gate, FarmExecutor(1, max_pending_bytes=150_000, when_full="raise") as farm:
        first = farm.submit(tasks.pass_gate, gate.address, LARGE)
        with pytest.raises(FarmFullError, match="max_pending_bytes=150000"):
            farm.submit(tasks.identity, LARGE)
        assert not first.done()
        gate.open()

        assert first.result(DEADLINE) == LARGE
        assert farm.submit(tasks.identity, LARGE).result(DEADLINE) == LARGE


def test_a_task_larger_than_the_limit_is_taken_alone(no_leaks):
    with FarmExecutor(1, max_pending_bytes=10) as farm:
        assert [farm.submit(tasks.identity, LARGE).result(DEADLINE) for _ in range(3)] == [LARGE] * 3


def test_map_takes_as_much_as_fits_and_goes_on(no_leaks):
    with FarmExecutor(2, max_pending_bytes=300_000) as farm:
        assert list(farm.map(len, (LARGE for _ in range(50)))) == [len(LARGE)] * 50


def test_cancelled_failed_and_unpicklable_tasks_give_back_what_they_held(no_leaks):
    with Gate() as gate, FarmExecutor(1, max_pending_bytes=350_000) as farm:
        running = farm.submit(tasks.pass_gate, gate.address, LARGE)
        queued = [farm.submit(tasks.identity, LARGE) for _ in range(2)]
        assert [future.cancel() for future in queued] == [True, True]
        assert type(farm.submit(tasks.identity, threading.Lock()).exception(DEADLINE)) is TypeError
        more = [farm.submit(tasks.identity, LARGE) for _ in range(2)]  # waits for ever if nothing came back
        gate.open()
        assert [future.result(DEADLINE) for future in (running, *more)] == [LARGE] * 3
        for _ in range(10):
            assert type(farm.submit(pow, LARGE, 2).exception(DEADLINE)) is TypeError
        assert farm.statistics().cancelled == 2


def test_a_callback_never_waits(no_leaks):
    """It runs in the thread that would make room."""
    done, second = threading.Event(), []
    with FarmExecutor(1, max_pending_bytes=150_000) as farm:

        def submit_more(future):
            second.extend(farm.submit(tasks.identity, LARGE) for _ in range(3))
            done.set()

        farm.submit(tasks.identity, LARGE).add_done_callback(submit_more)
        assert done.wait(DEADLINE)
        assert [future.result(DEADLINE) for future in second] == [LARGE] * 3


@pytest.mark.parametrize("end", ["break", "shut down"])
def test_whoever_waits_is_told_of_the_end(end, no_leaks):
    with Gate() as gate:
        farm = FarmExecutor(1, max_pending_bytes=150_000)
        farm.submit(tasks.pass_gate, gate.address, LARGE)
        told = []

        def submit():
            try:
                told.append(farm.submit(tasks.identity, LARGE).exception(DEADLINE))
            except BaseException as error:
                told.append(error)

        submitter = threading.Thread(target=submit)
        submitter.start()
        assert until(lambda: farm.statistics().waiting_submitters == 1)
        if end == "break":
            farm._engine.abort("enough")
        else:
            farm.shutdown(wait=False)
            gate.open()
        submitter.join(DEADLINE)
        farm.shutdown()

    (error,) = told
    if end == "break":
        assert type(error) is BrokenFarmError
    else:  # what had begun to wait before may still find its place
        assert error is None or type(error) is RuntimeError


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_an_interrupted_wait_takes_nothing(no_leaks):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Gate() as gate, FarmExecutor(1, max_pending_bytes=150_000) as farm:
            first = farm.submit(tasks.pass_gate, gate.address, LARGE)

            def interrupt():
                if until(lambda: farm.statistics().waiting_submitters == 1):
                    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

            thread = threading.Thread(target=interrupt)
            thread.start()
            with pytest.raises(KeyboardInterrupt):
                farm.submit(tasks.identity, LARGE)
            thread.join(DEADLINE)
            gate.open()

            assert first.result(DEADLINE) == LARGE
            assert farm.submit(tasks.identity, LARGE).result(DEADLINE) == LARGE
            assert farm.statistics().waiting_submitters == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_a_worker_gives_back_of_a_map_goes_on_however_full_the_farm_is(no_leaks):
    """The leader that takes the answer would wait for itself."""
    items = [bytes([number % 256]) * 3000 for number in range(300)]
    with FarmExecutor(2, max_pending_bytes=20_000) as farm:
        assert list(farm.map(tasks.size_after, items, [0.002] * 300)) == [3000] * 300


def test_the_bytes_of_a_long_queue_are_reckoned_from_its_first(no_leaks, monkeypatch):
    monkeypatch.setattr(statistics, "QUEUED_AT_MOST", 10)
    with Gate() as gate, FarmExecutor(1) as farm:
        blocker = farm.submit(tasks.pass_gate, gate.address)
        gate.wait_for_arrivals()
        waiting = [farm.submit(tasks.identity, LARGE) for _ in range(100)]
        found = farm.statistics()
        assert found.queued + found.running == 101
        assert 100 * len(LARGE) <= found.pending_bytes < 101 * len(LARGE)
        gate.open()
        assert [future.result(DEADLINE) for future in waiting] == [LARGE] * 100
        blocker.result(DEADLINE)
