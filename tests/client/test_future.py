"""FarmFuture is a standard future whose Condition is made late: each order of looking and settling is right."""

import asyncio
import contextlib
import gc
import threading
from concurrent import futures
from concurrent.futures import (
    FIRST_COMPLETED,
    CancelledError,
    Future,
    InvalidStateError,
    as_completed,
    wait,
)

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from farm_executor import FarmExecutor
from farm_executor.client.farm.call import Call
from farm_executor.client.farm.future import FarmFuture, call_of, cancelled, settle_plainly, start_all
from farm_executor.core.options import TaskOptions

DEADLINE = 20.0


def _settled(value=1):
    future = FarmFuture()
    assert start_all([future]) == [True]
    assert settle_plainly([(future, value)]) == ([], [])
    return future


def test_no_condition_is_made_for_a_future_that_is_settled_and_then_read():
    future = _settled(5)

    assert (future.done(), future.result()) == (True, 5)
    assert future._own_condition is None


@pytest.mark.parametrize("looked_at", [False, True])
def test_what_a_standard_future_forbids_is_forbidden(looked_at):
    future = FarmFuture()
    if looked_at:
        future.running()
    future.set_result(1)

    with pytest.raises(InvalidStateError):
        future.set_result(2)
    with pytest.raises(InvalidStateError):
        future.set_exception(ValueError())
    assert future.result() == 1
    assert not future.cancel()


def test_wait_and_as_completed_take_settled_and_unsettled_ones():
    settled, unsettled = [_settled(i) for i in range(3)], [FarmFuture() for _ in range(3)]

    done, not_done = wait(settled + unsettled, return_when=FIRST_COMPLETED)
    assert (done, not_done) == (set(settled), set(unsettled))

    thread = threading.Thread(target=lambda: [future.set_result(None) for future in unsettled])
    thread.start()
    assert set(as_completed(settled + unsettled, timeout=DEADLINE)) == {*settled, *unsettled}
    thread.join()


def test_a_future_settled_twice_over_is_counted_once_by_wait():
    """The race that a lock-free check would lose: the waiter comes between settling and notifying."""
    for _ in range(300):
        eight = [FarmFuture() for _ in range(8)]
        thread = threading.Thread(target=lambda fs=eight: [future.set_result(0) for future in fs])
        thread.start()
        done, not_done = wait(eight, timeout=DEADLINE)
        thread.join()

        assert (len(done), len(not_done)) == (8, 0)


def test_every_callback_is_called_once_whenever_it_is_added():
    for _ in range(300):
        future, calls = FarmFuture(), []
        thread = threading.Thread(target=future.set_result, args=(1,))
        thread.start()
        future.add_done_callback(calls.append)
        thread.join()

        assert calls == [future]


def test_every_waiter_wakes():
    for _ in range(100):
        future, results = FarmFuture(), []
        threads = [
            threading.Thread(target=lambda f=future, r=results: r.append(f.result(DEADLINE))) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        future.set_result("value")
        for thread in threads:
            thread.join(DEADLINE)

        assert results == ["value"] * 4


def test_a_timeout_passes():
    with pytest.raises(futures.TimeoutError):
        FarmFuture().result(timeout=0.01)


def test_asyncio_wraps_it():
    async def main():
        future = FarmFuture()
        wrapped = asyncio.wrap_future(future)
        threading.Thread(target=future.set_result, args=(3,)).start()
        return await asyncio.wait_for(wrapped, DEADLINE)

    assert asyncio.run(main()) == 3


def test_cancelling_tells_whom_it_concerns_once():
    owner = NotedOwner()
    call = call_for(owner)
    future = call.future

    assert future.cancel()
    assert future.cancel()
    assert owner.withdrawn == [call]
    with pytest.raises(CancelledError):
        future.result()


def call_for(owner):
    return Call(1, owner, None, None, (), TaskOptions())


def test_an_ordinary_call_has_no_dict():
    """A million of them may wait, and each dict would take more than all of the rest."""

    def dicts(call):
        return [held for held in gc.get_referents(call) if type(held) is dict]

    call = call_for(NotedOwner())
    assert not dicts(call)
    call.release()
    assert not dicts(call)
    assert (call.calls, call.losses, call.begun, call.unwanted) == (1, 0, False, None)
    assert not dicts(Call(1, NotedOwner(), None, None, (), TaskOptions(5, "mine", 1, timeout=5.0)))
    seated = Call(1, NotedOwner(), None, None, (), TaskOptions(), 7)
    assert vars(seated) == {"seat": 7}  # Python 3.12 keeps a few values without a dict, until one asks for it


class NotedOwner:
    def __init__(self, value=None):
        self.withdrawn, self.led, self.value = [], [], value

    def withdraw(self, task):
        self.withdrawn.append(task)

    def waiting(self, future):
        return contextlib.nullcontext()

    def lead(self, future, timeout):
        self.led.append(timeout)
        if self.value is not None:
            future.set_result(self.value)
        return 0.0


@pytest.mark.parametrize("look", [FarmFuture.result, FarmFuture.exception])
def test_whoever_waits_may_do_the_owners_work_meanwhile(look):
    owner = NotedOwner(5)
    future = call_for(owner).future

    assert look(future, 7.0) == (5 if look is FarmFuture.result else None)
    assert owner.led == [7.0]
    assert look(future) == (5 if look is FarmFuture.result else None)
    assert owner.led == [7.0], "there is nothing to wait for"


@pytest.mark.parametrize("look", [FarmFuture.result, FarmFuture.exception])
def test_the_time_spent_on_the_owners_work_counts(look):
    future = call_for(NotedOwner()).future

    with pytest.raises(futures.TimeoutError):
        look(future, 3600.0)


def test_a_future_holds_nothing_but_its_outcome_once_it_is_settled():
    with FarmExecutor(1) as farm:
        future = farm.submit(abs, -1)
        assert future.result() == 1
        assert call_of(future) is None
        assert {name for name, value in vars(future).items() if value is not None} == {"_state", "_result"}


def test_exceptions_are_set_together_as_results_are():
    plain, looked_at = FarmFuture(), FarmFuture()
    assert start_all([plain, looked_at]) == [True, True]
    assert looked_at.running()
    errors = [ValueError(), LookupError()]

    others, _ = settle_plainly(zip([plain, looked_at], errors, strict=True), as_errors=True)

    assert others == [(looked_at, errors[1])]
    assert plain.exception() is errors[0]


def test_results_are_set_together_only_where_nobody_has_looked():
    plain, looked_at, cancelled = FarmFuture(), FarmFuture(), FarmFuture()
    assert start_all([plain, looked_at]) == [True, True]
    assert looked_at.running()
    assert cancelled.cancel()

    others, to_call = settle_plainly([(plain, 1), (looked_at, 2), (cancelled, 3)])

    assert others == [(looked_at, 2), (cancelled, 3)]
    assert to_call == []
    assert (plain.result(), looked_at.done(), cancelled.cancelled()) == (1, False, True)


def test_a_callback_needs_no_condition_and_is_called_by_whoever_settles(caplog):
    future, other, calls = FarmFuture(), FarmFuture(), []
    for one in (future, other):
        one.add_done_callback(lambda future: calls.append(("first", future.result(0))))
        one.add_done_callback(lambda future: 1 / 0)
        one.add_done_callback(lambda future: calls.append(("last", future.result(0))))
        assert start_all([one]) == [True]
        assert one._own_condition is None

    assert settle_plainly([(future, 1)]) == ([], [future])
    future._call_back()
    assert calls == [("first", 1), ("last", 1)]

    others, to_call = settle_plainly([(other, 2)])
    assert (others, to_call, len(calls)) == ([], [other], 2)
    to_call[0]._call_back()
    assert calls[2:] == [("first", 2), ("last", 2)]
    assert [record.exc_info[0] for record in caplog.records] == [ZeroDivisionError] * 2
    assert {record.name for record in caplog.records} == {"concurrent.futures"}


SETTLE = {
    "result": lambda future: future.set_result(1),
    "exception": lambda future: future.set_exception(ValueError()),
    "together": lambda future: settle_plainly([(future, 1)]),
    "together, exceptions": lambda future: settle_plainly([(future, ValueError())], as_errors=True),
}


@pytest.mark.parametrize("how", SETTLE)
@pytest.mark.parametrize("looked_at", [False, True], ids=["", "looked at meanwhile"])
def test_who_is_to_be_told_is_told_once_by_who_settles(how, looked_at):
    future, told = FarmFuture(), []
    assert start_all([future]) == [True]
    assert future._tell(told.append)
    if looked_at:
        assert future.running()
        if "together" in how:
            ((other, value),), _ = settle_plainly([(future, 1)])
            other.set_result(value)
    if not future.done():
        SETTLE[how](future)
    assert told == [future]
    assert future.done()
    assert not future._tell(told.append), "too late"
    assert told == [future]


def test_who_is_to_be_told_is_told_of_cancelling():
    future, told = FarmFuture(), []
    assert future._tell(told.append)
    assert future.cancel()
    assert told == [future]


def test_callbacks_left_while_it_is_settled_are_called_once():
    for _ in range(300):
        future, calls = FarmFuture(), []
        assert start_all([future]) == [True]
        barrier = threading.Barrier(3)

        def leave(future=future, calls=calls, barrier=barrier):
            barrier.wait()
            for _ in range(5):
                future.add_done_callback(calls.append)

        threads = [threading.Thread(target=leave) for _ in range(2)]
        for thread in threads:
            thread.start()
        barrier.wait()
        _, to_call = settle_plainly([(future, 0)])
        for one in to_call:
            one._call_back()
        for thread in threads:
            thread.join(DEADLINE)
        assert calls == [future] * 10


def test_futures_are_started_together_whoever_has_looked():
    plain, looked_at, cancelled = FarmFuture(), FarmFuture(), FarmFuture()
    assert not looked_at.running()
    assert cancelled.cancel()

    assert start_all([plain, looked_at, cancelled]) == [True, True, False]
    assert (plain.running(), looked_at.running(), cancelled.cancelled()) == (True, True, True)


def test_starting_and_settling_many_never_waits_for_a_condition_under_the_lock():
    """`wait` holds many Conditions, and makes those that are missing: under the lock that all futures share."""
    for _ in range(200):
        many = [FarmFuture() for _ in range(10)]
        for future in many[::2]:
            assert not future.running()
        thread = threading.Thread(
            target=lambda fs=many: (
                start_all(fs),
                [f.set_result(0) for f, _ in settle_plainly([(f, 0) for f in fs])[0]],
            )
        )
        thread.start()
        done, not_done = wait(many, timeout=DEADLINE)
        thread.join(DEADLINE)

        assert (len(done), len(not_done)) == (10, 0)


def test_repr_is_the_standard_ones():
    assert "state=pending" in repr(FarmFuture())
    assert "returned int" in repr(_settled())


class SameAsTheStandardOne(RuleBasedStateMachine):
    """Whatever is done to both, they answer alike."""

    def __init__(self):
        super().__init__()
        self.ours, self.standard = FarmFuture(), Future()
        self.calls = {self.ours: 0, self.standard: 0}

    def both(self, action):
        outcomes = []
        for future in (self.ours, self.standard):
            try:
                outcomes.append(("value", action(future)))
            except BaseException as error:
                outcomes.append((type(error), [str(arg) for arg in error.args if not isinstance(arg, str)]))
        assert outcomes[0] == outcomes[1]

    def _note(self, future):
        self.calls[future] += 1

    @rule()
    def start(self):
        if self.standard._state not in ("CANCELLED_AND_NOTIFIED", "RUNNING", "FINISHED"):
            self.both(lambda future: future.set_running_or_notify_cancel())

    @rule(value=st.integers())
    def set_result(self, value):
        self.both(lambda future: future.set_result(value))

    @rule()
    def set_exception(self):
        error = LookupError("both's")
        self.both(lambda future: future.set_exception(error))

    @rule()
    def cancel(self):
        self.both(lambda future: future.cancel())

    @rule()
    def look(self):
        for method in ("done", "running", "cancelled"):
            self.both(lambda future, method=method: getattr(future, method)())

    @rule()
    def read(self):
        self.both(lambda future: future.result(timeout=0))
        self.both(lambda future: future.exception(timeout=0))

    @rule()
    def add_callback(self):
        self.both(lambda future: future.add_done_callback(self._note))

    @rule()
    def wait_for_it(self):
        self.both(lambda future: [len(group) for group in wait([future], timeout=0)])

    @invariant()
    def callbacks_were_called_alike(self):
        assert self.calls[self.ours] == self.calls[self.standard]
        assert self.ours._state == self.standard._state


SameAsTheStandardOne.TestCase.settings = settings(max_examples=150, deadline=None)
TestSameAsTheStandardOne = SameAsTheStandardOne.TestCase


@given(order=st.permutations(["settle", "wait", "callback"]))
def test_any_order_of_settling_waiting_and_adding_callbacks(order):
    future, seen = FarmFuture(), []
    threads = []
    for step in order:
        if step == "settle":
            future.set_result("done")
        elif step == "callback":
            future.add_done_callback(lambda f: seen.append(f.result()))
        else:
            thread = threading.Thread(target=lambda: seen.append(future.result(DEADLINE)))
            thread.start()
            threads.append(thread)
    for thread in threads:
        thread.join(DEADLINE)

    assert seen == ["done", "done"]


def test_a_future_shows_no_more_than_a_plain_one_and_what_is_documented():
    """Also one on its way, which knows its call."""
    documented = {"output", "progress", "add_progress_callback"}
    with FarmExecutor(1) as farm:
        waiting = [farm.submit(abs, -1) for _ in range(50)]
        for future in [FarmFuture(), *waiting]:
            shown = {name for name in dir(future) if not name.startswith("_")}
            assert shown == {name for name in dir(Future()) if not name.startswith("_")} | documented


def test_a_future_that_is_done_tells_its_outcome_without_a_condition():
    """One for each would be most of the cost of a result that comes through a channel."""
    good, bad = FarmFuture(), FarmFuture()
    start_all([good, bad])
    error = ValueError("no")
    settle_plainly([(good, 7)])
    settle_plainly([(bad, error)], as_errors=True)
    assert (good.cancelled(), good.exception(), good.result()) == (False, None, 7)
    assert (bad.cancelled(), bad.exception()) == (False, error)
    assert good._own_condition is bad._own_condition is None
    assert cancelled().cancelled()
