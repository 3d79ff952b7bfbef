"""Cancelling a task that a worker has been sent and has not begun."""

import contextlib
import os
import signal
import sys
import threading
import time
from concurrent.futures import CancelledError, as_completed, wait
from concurrent.futures import TimeoutError as FutureTimeoutError

import pytest
from client import tasks
from contract.gate import Gate
from contract.tasks import pass_gate
from faults.proxy import Proxy
from server.processes import DEADLINE, wait_until

from farm_executor import FarmExecutor, start_server
from farm_executor.client.farm import cancels as cancelling
from farm_executor.client.farm.call import Call
from farm_executor.client.farm.cancels import SECONDS, Cancels
from farm_executor.client.farm.future import FarmFuture, call_of
from farm_executor.core import window
from farm_executor.core.options import TaskOptions

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
    pytest.mark.usefixtures("no_leaks"),
]


@pytest.fixture(autouse=True)
def _far_ahead(monkeypatch):
    """Workers are sent all that there is, however long it takes: what else they are sent is a matter of speed."""
    monkeypatch.setattr(window, "HORIZON_US", 1e12)


@contextlib.contextmanager
def behind_a_gate(farm, book):
    """What the farm's only worker has been sent: the task that it runs, which is held, and those behind it."""
    for _ in range(5):
        farm.submit(abs, -1).result(DEADLINE)  # so that it may be sent more
    with Gate() as gate:
        with Gate() as first:
            before = farm.submit(pass_gate, first.address)
            first.wait_for_arrivals()
            held = farm.submit(pass_gate, gate.address)
            behind = [farm.submit(tasks.sign, str(book), n) for n in range(COUNT)]
        gate.wait_for_arrivals()
        assert before.result(DEADLINE) is None
        assert all(future.running() for future in behind)
        yield gate, held, behind
    for future in (held, *behind):
        wait_until(future.done, "the rest has been run")


@contextlib.contextmanager
def behind_a_proxy():
    """A proxy, and a farm of one worker on the other side of it."""
    with (
        start_server("127.0.0.1", 0, background=True, workers=1) as server,
        Proxy(server.address) as proxy,
        FarmExecutor(proxy.address) as farm,
    ):
        yield proxy, farm


@pytest.fixture
def book(tmp_path):
    return tmp_path / "book"


COUNT = 40
LANE = 1  # the first, as the proxy counts; 0 is the control connection


@pytest.fixture
def _patiently(monkeypatch):
    """However busy the machine is."""
    monkeypatch.setattr(cancelling, "AT_MOST", DEADLINE)


def signed(book):
    return [int(line) for line in book.read_text().split()] if book.exists() else []


def test_a_task_that_has_been_sent_is_cancelled_and_never_runs(book):
    with FarmExecutor(1) as farm:
        with behind_a_gate(farm, book) as (_, held, behind):
            assert behind[7].cancel()
            assert behind[7].cancelled()
            assert not held.cancel(), "it runs"
            assert farm.statistics().cancelled == 1
        assert signed(book) == [n for n in range(COUNT) if n != 7]
        with pytest.raises(CancelledError):
            behind[7].result(DEADLINE)
        assert held.result(DEADLINE) is None


def test_all_of_them_can_be_cancelled_and_the_worker_is_asked_once(book):
    with FarmExecutor(1) as farm:
        with behind_a_gate(farm, book) as (_, _, behind):
            assert [future.cancel() for future in behind] == [True] * COUNT
            (lane,) = farm._engine._lanes.values()
            assert farm._engine._dispatch.scheduler._lanes[lane.id].recalls == 1
        assert signed(book) == []
        assert farm.submit(pow, 2, 3).result(DEADLINE) == 8
        assert farm.statistics().cancelled == COUNT
        assert behind[0].cancel(), "it is cancelled, once more"


def test_many_threads_cancel_at_once(book):
    with FarmExecutor(1) as farm:
        with behind_a_gate(farm, book) as (_, _, behind):
            answers = []
            threads = [
                threading.Thread(target=lambda part=part: answers.extend(future.cancel() for future in part))
                for part in (behind[::3], behind[1::3], behind[2::3])
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(DEADLINE)
            assert answers == [True] * COUNT
        assert signed(book) == []


def test_whoever_waits_for_it_hears_of_it(book):
    with FarmExecutor(1) as farm, behind_a_gate(farm, book) as (_, _, behind):
        first, second, third, *_ = behind
        called = []
        first.add_done_callback(called.append)
        waiting = threading.Thread(target=lambda: called.append(wait([second], DEADLINE)))
        waiting.start()
        wait_until(lambda: second._own_condition is not None, "somebody waits")
        assert first.cancel()
        assert second.cancel()
        assert third.cancel()
        waiting.join(DEADLINE)
        assert called[0] is first
        assert called[1].done == {second}
        assert list(as_completed([first, second, third], DEADLINE))


def test_in_a_callback_it_is_not_asked_for(book):
    with FarmExecutor(1) as farm:
        answers = []
        with behind_a_gate(farm, book) as (gate, held, behind):
            held.add_done_callback(lambda future: answers.extend(future.cancel() for future in behind))
            gate.open()
        assert answers == [False] * COUNT
        assert signed(book) == list(range(COUNT))


def test_while_nothing_is_heard_of_the_worker_it_is_not_cancelled_and_runs(book):
    with behind_a_proxy() as (proxy, farm):
        with behind_a_gate(farm, book) as (_, _, behind):
            proxy.stall()
            began = time.monotonic()
            assert not behind[0].cancel()
            assert time.monotonic() - began >= SECONDS
            proxy.flow()
        assert signed(book) == list(range(COUNT))


@pytest.mark.parametrize("how", ["it is killed", "nobody can reach it"])
def test_what_is_asked_for_back_when_its_worker_is_lost(book, how, monkeypatch):
    """It is cancelled if it certainly was not begun; what is tried again and may run still is not."""
    monkeypatch.setattr(cancelling, "SECONDS", DEADLINE)
    monkeypatch.setattr(cancelling, "AT_MOST", DEADLINE)
    with behind_a_proxy() as (proxy, farm):
        with behind_a_gate(farm, book) as (gate, held, behind):
            (lane,) = farm._engine._lanes.values()
            proxy.stall(numbers=[LANE])
            asking = threading.Thread(target=behind[5].cancel)
            asking.start()
            wait_until(lambda: call_of(behind[5]) is None or call_of(behind[5]).unwanted, "it has been asked for")
            if how == "it is killed":
                os.kill(lane.pid, signal.SIGKILL)
                proxy.flow()
            else:
                farm._engine._reactor.post(lambda: farm._engine._crew.lose_lane(lane))
            asking.join(DEADLINE)
            assert behind[5].cancelled() == (how == "it is killed")
            gate.open()
            assert held.result(DEADLINE) is None, "it is tried again"
        expected = set(range(COUNT)) - ({5} if how == "it is killed" else set())
        assert set(signed(book)) == expected


def test_what_may_have_begun_is_not_cancelled_when_it_waits_to_be_sent_again(book):
    with behind_a_proxy() as (proxy, farm), behind_a_gate(farm, book) as (gate, held, behind):
        (lane,) = farm._engine._lanes.values()
        proxy.stall()
        farm._engine._reactor.post(lambda: farm._engine._crew.lose_lane(lane))
        wait_until(lambda: farm.statistics().queued == COUNT + 1, "all of it waits")
        assert [future.cancel() for future in (held, *behind)] == [False] * (COUNT + 1)
        gate.open()
        proxy.flow()
        assert held.result(DEADLINE) is None


def test_a_worker_that_does_not_answer_is_waited_for_once(book):
    with behind_a_proxy() as (proxy, farm):
        with behind_a_gate(farm, book) as (_, _, behind):
            proxy.stall()
            began = time.monotonic()
            assert [future.cancel() for future in behind] == [False] * COUNT
            assert time.monotonic() - began < COUNT * SECONDS / 2
            proxy.flow()
            wait_until(lambda: not farm._engine._cancels._silent, "it answers again")
            assert behind[-1].cancel()
        assert signed(book) == list(range(COUNT - 1))


def test_what_was_said_not_to_be_cancelled_is_not_later(book):
    """The farm's own thread is kept busy by a callback, for longer than anybody waits."""
    with FarmExecutor(1) as farm:
        with behind_a_gate(farm, book) as (_, _, behind), Gate() as callback:
            farm._engine._reactor.post(lambda: pass_gate(callback.address))
            callback.wait_for_arrivals()
            assert [future.cancel() for future in behind] == [False] * COUNT
            callback.open()
        assert not any(future.cancelled() for future in behind)
        assert signed(book) == list(range(COUNT))
        assert not farm._engine._cancels._stuck


def test_who_holds_the_farm_s_lock_does_not_wait(book):
    """A destructor that the garbage collector runs may cancel a future, wherever it has found the time."""
    with FarmExecutor(1) as farm, behind_a_gate(farm, book) as (_, _, behind):
        with farm._engine._dispatch.deciding:
            began = time.monotonic()
            assert not behind[0].cancel()
            assert time.monotonic() - began < SECONDS
        assert behind[0].cancel()


@pytest.mark.parametrize("chunksize", [1, 7])
def test_a_map_that_ends_early_asks_for_nothing_but_what_it_has_waited_for(monkeypatch, chunksize):
    """It may be the garbage collector who ends it, in any thread and at any moment."""
    asked = []
    monkeypatch.setattr(Cancels, "take_back", lambda *args: asked.append(args))
    with FarmExecutor(1) as farm, Gate() as gate:
        for _ in range(5):
            farm.submit(abs, -1).result(DEADLINE)  # so that it may be sent more
        with Gate() as first:
            before = farm.submit(pass_gate, first.address)
            first.wait_for_arrivals()
            held = farm.submit(pass_gate, gate.address)
            results = farm.map(abs, range(1000), chunksize=chunksize, timeout=0.1)
        gate.wait_for_arrivals()
        assert before.result(DEADLINE) is None
        assert farm.statistics().running > 1, "the worker has some of it"
        with pytest.raises(FutureTimeoutError):
            next(results)
        assert len(asked) <= 1
        asked.clear()
        held.cancel()
        assert len(asked) == 1, "as others do"
        gate.open()
        assert held.result(DEADLINE) is None


# -- who waits for what, without a farm ----------------------------------------------------------------------------


class Reactor:
    """Does what is posted, and what is to be done later, when told to."""

    def __init__(self):
        self.posted = []
        self.later = []

    def post(self, action):
        self.posted.append(action)

    def after(self, seconds, action):
        self.later.append(action)

    def run(self):
        while self.posted:
            self.posted.pop(0)()


def sent_task():
    call = Call(1, None, None, None, (), TaskOptions())
    call.future.set_running_or_notify_cancel()
    return call


def asking(*answers):
    """A reactor, its `Cancels` for which asking gives these answers in turn, and the requests."""
    reactor, requests, answers = Reactor(), [], iter(answers)

    def ask(request):
        requests.append(request)
        return next(answers)

    return reactor, Cancels(reactor, ask), requests


def waiting_thread(cancels, reactor, task):
    thread = threading.Thread(target=cancels.take_back, args=(task, task.future._cancel_started))
    thread.start()
    wait_until(lambda: reactor.posted, "it has asked")
    reactor.run()
    return thread


def test_who_asks_for_what_cannot_come_does_not_wait():
    reactor, cancels, requests = asking(None)
    waiting_thread(cancels, reactor, sent_task()).join(DEADLINE)
    assert not requests[0].grant(), "it is too late"


def test_who_asks_waits_for_that_lane_s_answer_to_that_question(_patiently):
    """One to a recall of fewer tasks, which was under way, decides nothing."""
    reactor, cancels, requests = asking((7, False), (7, True))
    task = sent_task()
    thread = waiting_thread(cancels, reactor, task)
    for lane in (6, 7):
        cancels.answered(lane)
        reactor.run()
        assert thread.is_alive()
    assert requests[0] is requests[1]
    assert requests[0].grant()
    cancels.answered(7)
    reactor.run()
    thread.join(DEADLINE)
    assert task.future.cancelled()
    for action in reactor.later:  # late
        action()
    assert cancels._silent == set()


def test_who_asks_does_not_wait_for_long_nor_others_for_the_same(_patiently):
    reactor, cancels, requests = asking(*[(7, True)] * 4)
    threads = [waiting_thread(cancels, reactor, sent_task()) for _ in range(2)]
    reactor.later[0]()
    threads[0].join(DEADLINE)
    assert threads[1].is_alive()
    assert not requests[0].grant()
    waiting_thread(cancels, reactor, sent_task()).join(DEADLINE)
    cancels.answered(7)
    reactor.run()
    threads[1].join(DEADLINE)
    thread = waiting_thread(cancels, reactor, sent_task())
    assert thread.is_alive(), "it has answered, and will again"
    cancels.answered(7)
    reactor.run()
    thread.join(DEADLINE)


def test_when_nobody_takes_up_what_is_asked_nobody_else_asks_until_somebody_does(monkeypatch):
    monkeypatch.setattr(cancelling, "AT_MOST", 0.01)
    reactor, cancels, requests = asking(None)
    for _ in range(2):
        cancels.take_back(sent_task(), lambda: True)
    assert len(reactor.posted) == 1
    reactor.run()
    assert not requests[0].grant()
    cancels.take_back(sent_task(), lambda: True)
    assert len(reactor.posted) == 1


def test_a_future_that_is_cancelled_when_it_has_been_sent_tells_everybody():
    future, said = FarmFuture(), []
    future.set_running_or_notify_cancel()
    future.add_done_callback(said.append)
    waiting = threading.Thread(target=lambda: said.append(wait([future], DEADLINE).done))
    waiting.start()
    wait_until(lambda: future._own_condition is not None and future._waiters, "somebody waits")
    assert future._cancel_started()
    waiting.join(DEADLINE)
    assert said == [{future}], "who waits does not wait for callbacks, which may do anything"
    future._invoke_callbacks()
    assert said == [{future}, future]
    assert not future._cancel_started(), "once"
