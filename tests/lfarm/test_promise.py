"""Promises: fulfilled once, forced as often as one likes, and never a reason to hang."""

import concurrent.futures
import operator
import threading
import traceback
from concurrent.futures import CancelledError, Future

import pytest
from contract.gate import DEADLINE
from contract.tasks import pass_gate, pass_gate_and_raise

from farm_executor import lfarm
from farm_executor.errors import InvalidTaskError, NoKernelError, TaskExecutionError, TaskKilledError
from farm_executor.lfarm import chain, delay, force, fulfill, fulfilledp, future, promise, speculate


class Counter:
    """A function that counts its calls."""

    def __init__(self, value=None, error=None):
        self.calls, self.value, self.error = 0, value, error

    def __call__(self):
        self.calls += 1
        if self.error is not None:
            raise self.error
        return self.value


# -- as lfarm's own tests ---------------------------------------------------------------------------------


def test_promises():
    a, b = promise(), promise()
    fulfill(a, 3)
    fulfill(b, 4)
    assert force(a) * force(b) == 12

    c = promise()
    assert fulfill(c, 3) is True
    assert fulfill(c, 4) is False
    assert force(c) == 3


def test_promises_multiple_value(kernel):
    """What Lisp returns as several values is a tuple."""
    a = promise()
    fulfill(a, (3, 4, 5))

    assert force(a) == (3, 4, 5)
    assert force(future(lambda: (3, 4, 5))) == (3, 4, 5)
    assert force(delay(lambda: (3, 4, 5))) == (3, 4, 5)


def test_futures(kernel, gate):
    a, b = future(lambda: 3), future(lambda: 4)
    assert force(a) + force(b) == 7
    assert fulfilledp(a)
    assert force(a) == 3

    running = future(pass_gate, gate.address, 3)
    gate.wait_for_arrivals()
    assert not fulfilledp(running)
    assert fulfill(running, 4) is False
    assert not fulfilledp(running)
    gate.open()
    assert force(running) == 3
    assert fulfilledp(running)
    assert fulfill(running, 9) is False
    assert force(running) == 3


def test_future_closure(kernel):
    x, y = 5, 6

    class Data:
        def __init__(self, x, y):
            self.x, self.y = x, y

    data = Data(7, 8)

    assert force(future(lambda: x + y)) == 11
    assert force(future(lambda: data.x + data.y)) == 15


def test_a_future_in_a_future_is_refused(farm_kernel):
    inner = future(operator.add, 3, 4)

    outer = future(lambda: force(inner) + 5)

    for _ in range(2):
        with pytest.raises(TypeError, match="force it first"):
            force(outer)
    with pytest.raises(TypeError, match="force it first"):
        force(future(operator.add, inner, 5))
    assert force(future(operator.add, force(inner), 5)) == 12


def test_future_error(kernel):
    def fail():
        raise LookupError("foo")

    f = future(fail)

    for _ in range(2):
        with pytest.raises(TaskExecutionError, match="foo") as caught:
            force(f)
        assert isinstance(caught.value.__cause__, LookupError)
        assert caught.value.type_name == "LookupError"


# -- hazards of lfarm's -----------------------------------------------------------------------------------


def test_h7_a_failed_future_is_fulfilled_and_keeps_its_error(kernel):
    f = future(operator.truediv, 1, 0)
    with pytest.raises(TaskExecutionError):
        force(f)

    assert fulfilledp(f) is True
    with pytest.raises(TaskExecutionError):
        force(f)
    assert fulfilledp(f) is True


def test_h7_a_killed_future_raises_at_each_force(farm_kernel, gate):
    with lfarm.task_category("doomed"):
        f = future(pass_gate, gate.address)
    gate.wait_for_arrivals()

    assert lfarm.kill_tasks("doomed") == 1

    for _ in range(2):
        with pytest.raises(TaskKilledError):
            force(f, DEADLINE)
        assert fulfilledp(f)


def test_h8_speculate_runs_on_the_kernel_at_low_priority(kernel, gate, monkeypatch):
    used = []
    submit = kernel.submit

    def spy(*args, **kwargs):
        used.append(lfarm.task_options.current_options.get())
        return submit(*args, **kwargs)

    monkeypatch.setattr(kernel, "submit", spy)
    f = speculate(pass_gate, gate.address, 3)
    gate.wait_for_arrivals()  # lfarm would run it here, and hang

    assert used == [("default", "low")]
    assert not fulfilledp(f)
    gate.open()
    assert force(f) == 3
    assert force(future(lambda: 4)) == 4
    assert used[1:] == [("default", "default")]


def test_h8_chain_relays(kernel):
    assert force(chain(3)) == 3
    assert force(chain(chain(future(operator.add, 3, 4)))) == 7
    assert force(delay(lambda: chain(delay(lambda: chain(5))))) == 5
    assert force(future(lambda: chain(6))) == 6


# -- promises ---------------------------------------------------------------------------------------------


def test_what_is_no_promise_is_forced_to_itself():
    thing = object()

    assert force(thing) is thing
    assert fulfilledp(thing) is True
    assert fulfill(thing, 3) is False


def test_a_promise_as_value_is_not_forced():
    inner, outer = promise(), promise()
    fulfill(outer, inner)

    assert force(outer) is inner


def test_force_gives_up_in_time_and_may_be_asked_again(kernel, gate):
    a, running = promise(), future(pass_gate, gate.address, 3)

    for waiting in (a, running, chain(a)):
        with pytest.raises(TimeoutError):
            force(waiting, timeout=0)
        with pytest.raises(TimeoutError):
            force(waiting, 0.01)
    fulfill(a, 4)
    gate.open()
    assert (force(a, DEADLINE), force(running, DEADLINE)) == (4, 3)


def test_threads_that_force_a_promise_wait_for_it():
    a = promise()
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        forced = [pool.submit(force, a, DEADLINE) for _ in range(3)]
        fulfill(a, 7)
        assert [future.result() for future in forced] == [7, 7, 7]


def test_of_many_who_fulfil_one_succeeds():
    a, barrier = promise(), threading.Barrier(8)

    def try_it(number):
        barrier.wait(DEADLINE)
        return fulfill(a, number)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(try_it, range(8)))
    assert answers.count(True) == 1
    assert force(a) == answers.index(True)


def test_a_standard_future_is_forced_like_one_of_ours(kernel):
    plain = Future()
    assert not fulfilledp(plain)
    plain.set_result(chain(3))
    assert fulfilledp(plain)
    assert force(plain) == 3
    assert force(kernel.executor.submit(operator.add, 3, 4)) == 7
    with pytest.raises(TaskExecutionError):
        force(kernel.executor.submit(operator.truediv, 1, 0))


def test_promises_work_with_the_standard_library(kernel):
    a, b = promise(), future(lambda: 3)
    fulfill(a, 4)

    done, _ = concurrent.futures.wait([a.future, b.future], timeout=DEADLINE)

    assert {future.result() for future in done} == {3, 4}


def test_promises_say_what_they_are(kernel):
    a = promise()
    assert repr(a) == "<Promise unfulfilled>"
    fulfill(a, 3)
    assert repr(a) == "<Promise fulfilled>"
    assert "Delay unfulfilled" in repr(delay(int))


# -- futures ----------------------------------------------------------------------------------------------


def test_a_future_passes_every_argument(kernel):
    assert force(future(dict, [("a", 1)], task=2, timeout=3)) == {"a": 1, "task": 2, "timeout": 3}


def test_a_future_takes_deftasks_and_names(kernel):
    @lfarm.deftask
    def double(x):
        return 2 * x

    assert force(future(double, 4)) == 8
    assert force(future("operator:add", 3, 4)) == 7


def test_a_future_of_no_task_is_refused(kernel):
    for task in (42, None, [print], "no name"):
        with pytest.raises(InvalidTaskError):
            future(task)


def test_a_future_needs_a_kernel():
    with pytest.raises(NoKernelError):
        future(int)
    with pytest.raises(NoKernelError):
        speculate(int)


def test_an_argument_that_cannot_be_sent_raises_its_own_error(farm_kernel):
    f = future(id, threading.Lock())

    for _ in range(2):
        with pytest.raises(TypeError, match="lock") as caught:
            force(f)
        assert not isinstance(caught.value, TaskExecutionError)


def test_a_cancelled_future_raises_that(kernel, gate):
    running = [future(pass_gate, gate.address) for _ in range(kernel.worker_count)]
    gate.wait_for_arrivals(len(running))
    queued = [future(int) for _ in range(100)]
    assert queued[-1].future.cancel()

    assert fulfilledp(queued[-1])
    for _ in range(2):
        with pytest.raises(CancelledError):
            force(queued[-1])
    gate.open()
    assert [force(each) for each in [*running, *queued[:-1]]] == [None] * len(running) + [0] * 99


def test_a_traceback_does_not_grow_with_each_force(kernel):
    f = future(operator.truediv, 1, 0)
    d = delay(operator.truediv, 1, 0)
    for each in (f, d):
        lengths = []
        for _ in range(3):
            with pytest.raises(Exception) as caught:
                force(each)
            lengths.append(len(traceback.extract_tb(caught.value.__traceback__)))
        assert len(set(lengths)) == 1


def test_a_failure_is_forced_in_many_threads(kernel, gate):
    f = future(pass_gate_and_raise, gate.address)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        forced = [pool.submit(force, f, DEADLINE) for _ in range(4)]
        gate.open()
        assert all(isinstance(future.exception(), TaskExecutionError) for future in forced)


# -- delays -----------------------------------------------------------------------------------------------


def test_a_delay_runs_once_when_it_is_forced():
    count = Counter(3)
    d = delay(count)
    assert not fulfilledp(d)
    assert count.calls == 0

    assert [force(d), force(d)] == [3, 3]
    assert count.calls == 1
    assert fulfilledp(d)


def test_a_delay_takes_arguments():
    assert force(delay(dict, [("a", 1)], function=2)) == {"a": 1, "function": 2}


def test_a_delay_keeps_its_own_error():
    count = Counter(error=KeyError("mine"))
    d = delay(count)

    for _ in range(2):
        with pytest.raises(KeyError, match="mine"):
            force(d)
    assert count.calls == 1
    assert fulfilledp(d)


def test_a_delay_runs_in_the_thread_that_forces_it_first_and_others_wait():
    entered, go_on = threading.Event(), threading.Event()

    def call():
        entered.set()
        assert go_on.wait(DEADLINE)
        return threading.get_ident()

    d = delay(call)
    with concurrent.futures.ThreadPoolExecutor(1) as first, concurrent.futures.ThreadPoolExecutor(2) as others:
        running = first.submit(force, d)
        assert entered.wait(DEADLINE)
        waiting = [others.submit(force, d, DEADLINE) for _ in range(2)]
        assert fulfill(d, "too late") is False
        with pytest.raises(TimeoutError):
            force(d, timeout=0.01)
        go_on.set()
        ident = first.submit(threading.get_ident).result()
        assert {running.result(), *(future.result() for future in waiting)} == {ident}


def test_a_delay_can_be_fulfilled_before_it_is_forced():
    count = Counter(3)
    d = delay(count)

    assert fulfill(d, 4) is True
    assert fulfill(d, 5) is False
    assert force(d) == 4
    assert count.calls == 0


def test_a_delay_that_forces_itself_is_an_error():
    d = delay(lambda: force(d))

    with pytest.raises(RuntimeError, match="waits for itself"):
        force(d)


# -- chains -----------------------------------------------------------------------------------------------


def test_a_chain_relays_fulfill_and_fulfilledp():
    a = promise()
    link = chain(chain(a))

    assert not fulfilledp(link)
    assert fulfill(link, 3) is True
    assert fulfilledp(link)
    assert force(link) == 3
    assert fulfill(chain("no promise"), 3) is False
    assert fulfilledp(chain("no promise"))


def test_a_chain_to_a_delay_computes_a_promises_value_when_it_is_needed():
    count, wasted = Counter(3), Counter(4)
    a = promise()

    assert fulfill(a, chain(delay(count))) is True
    assert fulfill(a, chain(delay(wasted))) is False

    assert count.calls == 0
    assert [force(a), force(a)] == [3, 3]
    assert (count.calls, wasted.calls) == (1, 0)


def test_a_chain_that_leads_back_is_an_error():
    a, b = promise(), Future()
    fulfill(a, chain(b))
    b.set_result(chain(a))

    with pytest.raises(RuntimeError, match="waits for itself"):
        force(a)


def test_a_timeout_is_for_the_whole_chain():
    a = promise()
    fulfill(a, chain(promise()))

    with pytest.raises(TimeoutError):
        force(a, timeout=0.01)
