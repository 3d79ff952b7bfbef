"""Channels: the order of outcomes, many who submit and receive, capacity, timeouts, and the end."""

import gc
import operator
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest
from contract.tasks import pass_gate, pass_gate_when_first, write_line
from lfarm import tasks
from server.processes import DEADLINE, wait_until

from farm_executor import FarmExecutor, InvalidTaskError, TaskExecutionError, lfarm
from farm_executor.lfarm import (
    Channel,
    deftask,
    do_fast_receives,
    end_kernel,
    make_channel,
    make_kernel,
    receive_result,
    submit_task,
    task_category,
    task_priority,
    try_receive_result,
    use_kernel,
)

deprecated = pytest.mark.filterwarnings("ignore:.*_timeout is deprecated:DeprecationWarning")


class Receiver(threading.Thread):
    """Receives in another thread, and keeps what came of it."""

    def __init__(self, receive):
        super().__init__()
        self.receive = receive
        self.outcome = None
        self.start()

    def run(self):
        try:
            self.outcome = self.receive()
        except BaseException as error:
            self.outcome = error

    def wait(self):
        self.join(DEADLINE)
        assert not self.is_alive(), "it hangs"
        return self.outcome


def is_waiting(thread):
    """Whether it is in the queue's own waiting, as far as can be told: it has begun, and has not ended."""
    return thread.is_alive() and thread.outcome is None


# -- order, and many -------------------------------------------------------------------------------------------


def test_results_come_in_the_order_in_which_they_are_done(kernel, gate):
    channel = make_channel()
    submit_task(channel, pass_gate_when_first, gate.address, 0)
    gate.wait_for_arrivals()
    for n in (1, 2):
        submit_task(channel, pass_gate_when_first, gate.address, n)
        assert receive_result(channel) == n
    gate.open()
    assert receive_result(channel) == 0


def test_a_failure_does_not_disturb_its_neighbours(kernel):
    channel = make_channel()
    for n in range(3):
        submit_task(channel, tasks.fail_when, n, 1)
    outcomes = []
    for _ in range(3):
        try:
            outcomes.append(channel.receive())
        except TaskExecutionError as error:
            outcomes.append(str(error.__cause__))
    assert sorted(map(str, outcomes)) == ["0", "1 is bad", "2"]
    assert channel.pending == 0


def test_fast_receives_end_at_a_failure_and_leave_the_rest(kernel):
    channel = make_channel()
    submit_task(channel, tasks.fail_when, 1, 1)
    submit_task(channel, abs, -3)
    results = do_fast_receives(channel, 2)
    received = []
    with pytest.raises(TaskExecutionError):
        received.extend(results)
    received += list(channel)
    assert received == [3]


@pytest.mark.parametrize("count", [True, 1.0, "1", None])
def test_a_count_is_an_integer(kernel, count):
    with pytest.raises(TypeError, match="count"):
        do_fast_receives(make_channel(), count)


def test_a_count_is_not_negative(kernel):
    with pytest.raises(ValueError, match="count"):
        do_fast_receives(make_channel(), -1)
    assert list(do_fast_receives(make_channel(), 0)) == []


def test_many_producers_and_consumers(kernel):
    channel = make_channel()
    received = []

    def produce(k):
        for n in range(100):
            submit_task(channel, operator.neg, 100 * k + n)

    producers = [threading.Thread(target=produce, args=(k,)) for k in range(4)]
    consumers = [Receiver(lambda: received.extend(do_fast_receives(channel, 100))) for _ in range(4)]
    for thread in producers:
        thread.start()
    for thread in producers:
        thread.join()
    assert [consumer.wait() for consumer in consumers] == [None] * 4
    assert sorted(received) == list(range(-399, 1))
    assert channel.pending == 0
    assert try_receive_result(channel) == (None, False)


def test_several_threads_iterate_and_all_come_to_an_end(kernel):
    channel = make_channel()
    for n in range(200):
        channel.submit(operator.neg, n)

    consumers = [Receiver(lambda: list(channel)) for _ in range(4)]

    assert sorted(sum((consumer.wait() for consumer in consumers), [])) == list(range(-199, 1))


def test_a_failure_while_iterating_leaves_the_count_right(kernel):
    channel = make_channel()
    channel.submit(tasks.fail_when, 1, 1)
    with pytest.raises(TaskExecutionError):
        list(channel)
    channel.submit(abs, -1)
    assert list(channel) == [1]


def test_pending_counts_what_is_submitted_and_not_received(kernel, gate):
    channel = make_channel()
    assert channel.pending == 0
    submit_task(channel, pass_gate, gate.address)
    submit_task(channel, abs, 1)
    assert channel.pending == 2
    assert receive_result(channel) == 1
    assert channel.pending == 1
    assert "1 pending" in repr(channel)
    gate.open()
    receive_result(channel)
    assert channel.pending == 0


def test_a_channel_stays_with_its_kernel(kernel):
    channel = make_channel()
    with ThreadPoolExecutor(1) as pool, use_kernel(make_kernel(pool, "other")):
        assert make_channel().kernel.name == "other"
        submit_task(channel, abs, -3)
        assert channel.kernel is kernel
        assert receive_result(channel) == 3


def test_a_task_that_is_none_leaves_nothing_behind(kernel):
    channel = make_channel()
    with pytest.raises(InvalidTaskError):
        channel.submit(42)
    assert channel.pending == 0


def test_a_call_that_cannot_be_pickled_fails_at_receive_as_it_is(farm_kernel):
    channel = make_channel()
    submit_task(channel, abs, threading.Lock())
    with pytest.raises(TypeError, match="lock"):
        receive_result(channel)


def test_cancelled_tasks_are_received_as_cancelled(kernel, gate):
    channel = make_channel()
    for _ in range(2):
        submit_task(channel, pass_gate, gate.address)
    gate.wait_for_arrivals(2)
    submit_task(channel, abs, 1)
    kernel.executor.shutdown(wait=False, cancel_futures=True)
    with pytest.raises(CancelledError):
        receive_result(channel)


def test_an_error_received_refers_to_no_frame_of_ours(kernel):
    channel = make_channel()
    channel.submit(tasks.fail_when, 1, 1)
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(TaskExecutionError) as caught:
            channel.receive()
        frames = [entry.frame for entry in caught.traceback]
        assert all(caught.value not in frame.f_locals.values() for frame in frames[1:])
    finally:
        gc.enable()


# -- the end ---------------------------------------------------------------------------------------------------


def test_who_waits_when_the_kernel_ends_is_told(kernel):
    channel = make_channel()
    waiting = [Receiver(channel.receive) for _ in range(3)]
    end_kernel()
    for receiver in waiting:
        assert isinstance(receiver.wait(), RuntimeError)
    with pytest.raises(RuntimeError, match=r"nothing is left.*ended"):
        receive_result(channel)
    assert try_receive_result(channel) == (None, False)
    assert try_receive_result(channel, timeout=DEADLINE) == (None, False)
    assert list(channel) == []


def test_who_waits_for_results_when_the_kernel_ends_gets_them(kernel, gate):
    channel = make_channel()
    for n in range(2):
        submit_task(channel, pass_gate, gate.address, n)
    gate.wait_for_arrivals(2)
    waiting = [Receiver(channel.receive) for _ in range(3)]
    end_kernel()
    gate.open()
    outcomes = [receiver.wait() for receiver in waiting]
    errors = [outcome for outcome in outcomes if isinstance(outcome, RuntimeError)]
    assert len(errors) == 1
    assert sorted(outcome for outcome in outcomes if outcome not in errors) == [0, 1]


def test_a_channel_of_an_ended_kernel_cannot_be_made(kernel):
    kernel.end()
    with pytest.raises(RuntimeError, match="ended"):
        Channel(kernel)


def test_leaving_a_channel_cancels_what_has_not_begun(kernel, gate, tmp_path):
    other = make_channel()
    with make_channel() as channel:
        for _ in range(2):
            submit_task(channel, pass_gate, gate.address)
        gate.wait_for_arrivals(2)
        for n in range(100):
            submit_task(channel, write_line, str(tmp_path / "book"), n)
        waiting = Receiver(channel.receive)
    assert isinstance(waiting.wait(), RuntimeError)
    gate.open()
    submit_task(other, abs, -1)
    assert receive_result(other) == 1
    for use in (channel.receive, lambda: channel.submit(abs, 1)):
        with pytest.raises(RuntimeError, match="closed"):
            use()
    assert channel.try_receive() == (None, False)
    assert channel.try_receive(0.01) == (None, False)
    assert list(channel) == []
    assert channel.pending == 0
    assert "closed" in repr(channel)
    assert not (tmp_path / "book").exists()


def test_a_channel_is_collected_with_its_results(kernel):
    import weakref

    channel = make_channel()
    for n in range(10):
        channel.submit(abs, n)
    list(channel)
    reference = weakref.ref(channel)
    del channel
    gc.collect()
    assert reference() is None


# -- capacity --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [0, -1])
def test_a_capacity_below_one_is_refused(kernel, capacity):
    with pytest.raises(ValueError, match="fixed_capacity"):
        make_channel(fixed_capacity=capacity)


@pytest.mark.parametrize("capacity", [True, 1.0, "1"])
def test_a_capacity_is_an_integer(kernel, capacity):
    with pytest.raises(TypeError, match="fixed_capacity"):
        make_channel(fixed_capacity=capacity)


def test_channel_capacity(kernel):
    channel = make_channel(fixed_capacity=1)
    for n in (3, 4, 5):
        submit_task(channel, operator.neg, n)
    assert sorted(receive_result(channel) for _ in range(3)) == [-5, -4, -3]


def test_a_full_channel_stalls_nobody_else(kernel, tmp_path):
    book = tmp_path / "book"
    full, other = make_channel(fixed_capacity=1), make_channel()
    for n in range(20):
        submit_task(full, write_line, str(book), n)
    for n in range(20):
        submit_task(other, abs, n)
    assert sorted(do_fast_receives(other, 20)) == list(range(20))
    wait_until(lambda: book.exists() and len(book.read_text().split()) == 3, "one for the channel, one a worker")
    assert full.pending == 20
    assert list(do_fast_receives(full, 20)) == [None] * 20
    assert sorted(map(int, book.read_text().split())) == list(range(20))


def test_what_waits_in_the_channel_is_as_it_was_at_submit(farm_kernel):
    channel = make_channel(fixed_capacity=1)
    values, n = [0], 0
    for n in range(10):
        values[0] = n
        submit_task(channel, lambda held: (held[0], values[0], n), values)  # noqa: B023
    values[0] = n = 99
    assert sorted(channel) == [(k, k, k) for k in range(10)]


def test_what_waits_keeps_its_category(farm_kernel, gate):
    channel = make_channel(fixed_capacity=1)
    with task_category("held"), task_priority("low"):
        for n in range(4):
            submit_task(channel, pass_gate, gate.address, n)
    gate.wait_for_arrivals(2)
    assert lfarm.kill_tasks("held") == 2
    gate.open()
    outcomes = [Receiver(channel.receive).wait() for _ in range(4)]
    assert sum(isinstance(outcome, lfarm.TaskKilledError) for outcome in outcomes) == 2


def test_what_waits_is_run_when_the_kernel_ends(kernel):
    channel = make_channel(fixed_capacity=1)
    for n in range(20):
        submit_task(channel, operator.neg, n)
    end_kernel(wait=True)
    assert channel.pending == 20
    assert sorted(channel) == list(range(-19, 1))
    with pytest.raises(RuntimeError, match="ended"):
        channel.submit(abs, 1)


def test_what_waits_fails_as_any_other(kernel):
    channel = make_channel(fixed_capacity=1)
    for n in range(10):
        submit_task(channel, tasks.fail_when, n, 9)
    with pytest.raises(TaskExecutionError, match="9 is bad"):
        list(channel)


def test_what_cannot_be_pickled_while_it_waits_fails_at_receive(farm_kernel):
    channel = make_channel(fixed_capacity=1)
    submit_task(channel, abs, threading.Lock())
    with pytest.raises(TypeError, match="lock"):
        channel.receive()
    with pytest.raises(InvalidTaskError):
        submit_task(channel, 42)


def test_deftasks_and_names_wait_too(kernel, absent_module):
    module = absent_module(
        "absent_held",
        "from farm_executor.lfarm import deftask\n"
        "def plus(x):\n    return x + 1\n"
        "@deftask(local=False)\ndef task(x):\n    return plus(x)\n",
    )
    channel = make_channel(fixed_capacity=1)
    for n in range(5):
        submit_task(channel, module.task, n)
        submit_task(channel, "operator:add", n, 1)
    assert sorted(channel) == sorted([1, 2, 3, 4, 5] * 2)


def test_leaving_a_channel_forgets_what_waits_in_it(kernel, gate):
    with make_channel(fixed_capacity=1) as channel:
        for _ in range(10):
            submit_task(channel, pass_gate, gate.address)
        gate.wait_for_arrivals(2)
    gate.open()
    assert channel.pending == 0


def test_many_threads_on_a_channel_with_a_capacity(kernel):
    channel = make_channel(fixed_capacity=3)
    received = []

    def produce(k):
        for n in range(100):
            submit_task(channel, operator.neg, 100 * k + n)

    producers = [threading.Thread(target=produce, args=(k,)) for k in range(4)]
    consumers = [Receiver(lambda: received.extend(channel.receives(100))) for _ in range(4)]
    for thread in producers:
        thread.start()
    for thread in producers:
        thread.join()
    assert [consumer.wait() for consumer in consumers] == [None] * 4
    assert sorted(received) == list(range(-399, 1))
    assert channel.pending == 0


# -- timeouts --------------------------------------------------------------------------------------------------


def test_timeouts_are_deprecated(kernel):
    channel = make_channel()
    with pytest.warns(DeprecationWarning, match="try_receive_result"):
        timeout = lfarm.submit_timeout(channel, 9999, "late")
    with pytest.warns(DeprecationWarning, match="try_receive_result"):
        lfarm.cancel_timeout(timeout, "now")
    assert receive_result(channel) == "now"


@deprecated
def test_a_timeout_may_be_cancelled_at_any_moment_and_the_first_counts(kernel):
    channel = make_channel()
    for _ in range(20):
        timeout = lfarm.submit_timeout(channel, 9999, "late")
        lfarm.cancel_timeout(timeout, "first")
        lfarm.cancel_timeout(timeout, "second")
        assert channel.pending == 1
        assert receive_result(channel) == "first"
    expired = lfarm.submit_timeout(channel, 0, "expired")
    assert receive_result(channel) == "expired"
    lfarm.cancel_timeout(expired, "too late")
    assert try_receive_result(channel) == (None, False)


@deprecated
def test_the_kernels_end_waits_for_a_timeout_to_be_received(kernel):
    channel = make_channel()
    timeout = lfarm.submit_timeout(channel, 9999, "late")
    waiting = [Receiver(channel.receive) for _ in range(2)]
    end_kernel()
    assert any(is_waiting(thread) for thread in waiting)
    lfarm.cancel_timeout(timeout, "now")
    outcomes = [thread.wait() for thread in waiting]
    assert sum(outcome == "now" for outcome in outcomes) == 1
    assert sum(isinstance(outcome, RuntimeError) for outcome in outcomes) == 1
    with pytest.raises(RuntimeError, match="ended"):
        lfarm.submit_timeout(channel, 1, "none")


@deprecated
def test_leaving_a_channel_ends_its_timers(kernel):
    with make_channel() as channel:
        lfarm.submit_timeout(channel, 9999, "late")
    assert channel.pending == 0  # that no thread is left, `no_leaks` says


@deprecated
@pytest.mark.parametrize("seconds", ["1", None])
def test_the_seconds_of_a_timeout_are_a_number(kernel, seconds):
    channel = make_channel()
    with pytest.raises(TypeError, match="seconds"):
        lfarm.submit_timeout(channel, seconds, "late")
    assert channel.pending == 0


# -- with the farm itself --------------------------------------------------------------------------------------


def test_a_future_cancelled_by_a_broken_farm_is_received(no_leaks):
    def fail():
        raise LookupError("no place to work in")

    with FarmExecutor(1, initializer=fail) as farm, use_kernel(make_kernel(farm)):
        channel = make_channel()
        submit_task(channel, abs, -1)
        with pytest.raises(lfarm.KernelCreationError.__base__, match="no place"):
            receive_result(channel)


def test_a_deftask_on_a_broken_farm_is_an_error_at_once(no_leaks):
    @deftask
    def task():
        return 1

    farm = FarmExecutor(1)
    with use_kernel(make_kernel(farm)):
        channel = make_channel()
        submit_task(channel, task)
        assert receive_result(channel) == 1
        farm.shutdown()
        for one in (task, abs):
            with pytest.raises(RuntimeError, match="after shutdown"):
                submit_task(channel, one)
        assert channel.pending == 0


# -- who waits does the farm's work, and must hear of all else ---------------------------------------------------


def test_who_receives_hears_of_what_comes_by_other_means_than_the_farms_work(farm_kernel, gate):
    channel = make_channel()
    submit_task(channel, pass_gate, gate.address, "passed")
    gate.wait_for_arrivals()
    receiver = Receiver(channel.receive)
    wait_until(lambda: is_waiting(receiver), "somebody waits")
    submit_task(channel, operator.neg, threading.Lock())  # cannot be pickled, and never gets to the farm
    assert isinstance(receiver.wait(), TypeError)

    receiver = Receiver(channel.receive)
    wait_until(lambda: is_waiting(receiver), "somebody waits")
    with pytest.warns(DeprecationWarning):
        lfarm.submit_timeout(channel, 0.05, "too late")
    assert receiver.wait() == "too late"
    gate.open()
    assert channel.receive() == "passed"


def test_who_receives_hears_of_the_end_of_a_kernel_whose_executor_goes_on(gate):
    with FarmExecutor(1) as farm:
        kernel = make_kernel(farm)
        assert farm.submit(abs, -1).result(DEADLINE) == 1
        channel = Channel(kernel)
        receiver = Receiver(channel.receive)
        wait_until(lambda: is_waiting(receiver), "somebody waits")
        kernel.end()
        assert "ended" in str(receiver.wait())
