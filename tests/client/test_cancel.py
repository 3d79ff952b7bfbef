"""Cancelling a task that a worker has been sent and has not begun."""

import contextlib
import itertools
import os
import signal
import sys
import threading
import time
from concurrent.futures import CancelledError, as_completed, wait

import pytest
from client import tasks
from contract.gate import Gate
from contract.tasks import pass_gate
from faults.proxy import Proxy
from server.processes import DEADLINE, wait_until

from farm_executor import FarmExecutor, start_server
from farm_executor.client import cancelling
from farm_executor.client.cancelling import SECONDS, Cancels
from farm_executor.core import window
from farm_executor.core.scheduler import Task

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


@pytest.fixture
def book(tmp_path):
    return tmp_path / "book"


COUNT = 40
LANE = 1  # the first, as the proxy counts; 0 is the control connection


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
            ((_, _, lane),) = farm._engine._lanes.values()
            assert farm._engine._scheduler._lanes[lane.id].recalls == 1
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
    with (
        start_server("127.0.0.1", 0, background=True, workers=1) as server,
        Proxy(server.address) as proxy,
        FarmExecutor(proxy.address) as farm,
    ):
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
    with (
        start_server("127.0.0.1", 0, background=True, workers=1) as server,
        Proxy(server.address) as proxy,
        FarmExecutor(proxy.address) as farm,
    ):
        with behind_a_gate(farm, book) as (gate, held, behind):
            ((_, _, lane),) = farm._engine._lanes.values()
            proxy.stall(numbers=[LANE])
            asking = threading.Thread(target=behind[5].cancel)
            asking.start()
            wait_until(lambda: behind[5].task is None or behind[5].task.unwanted, "it has been asked for")
            if how == "it is killed":
                os.kill(lane.pid, signal.SIGKILL)
                proxy.flow()
            else:
                farm._engine._reactor.post(lambda: farm._engine.lose_lane(lane))
            asking.join(DEADLINE)
            assert behind[5].cancelled() == (how == "it is killed")
            gate.open()
            assert held.result(DEADLINE) is None, "it is tried again"
        expected = set(range(COUNT)) - ({5} if how == "it is killed" else set())
        assert set(signed(book)) == expected


# -- who waits for what, without a farm ----------------------------------------------------------------------------


class Reactor:
    """Does what is posted, and what is to be done later, when told to."""

    def __init__(self):
        self.handling = False
        self.posted = []
        self.later = []

    def is_handling(self):
        return self.handling

    def post(self, action):
        self.posted.append(action)

    def after(self, seconds, action):
        self.later.append(action)

    def run(self):
        while self.posted:
            self.posted.pop(0)()


def asking(answers):
    """A reactor, its `Cancels` for which asking gives these answers in turn, and what was wanted again."""
    reactor, kept, answers = Reactor(), [], iter(answers)
    return reactor, Cancels(reactor, lambda task: next(answers), kept.append), kept


def waiting_thread(cancels, reactor, task):
    thread = threading.Thread(target=cancels.take_back, args=(task,))
    thread.start()
    wait_until(lambda: reactor.posted, "it has asked")
    reactor.run()
    return thread


def test_who_asks_for_what_cannot_come_does_not_wait():
    reactor, cancels, kept = asking([None])
    waiting_thread(cancels, reactor, Task(1, None)).join(DEADLINE)
    assert kept == []


def test_who_asks_waits_for_that_lane_s_answer_to_that_question():
    """One to a recall of fewer tasks, which was under way, decides nothing."""
    reactor, cancels, kept = asking([(7, False), (7, True)])
    task = Task(1, None)
    thread = waiting_thread(cancels, reactor, task)
    for lane in (6, 7):
        cancels.answered(lane)
        reactor.run()
        assert thread.is_alive()
    cancels.answered(7)
    reactor.run()
    thread.join(DEADLINE)
    assert kept == [task]
    for action in reactor.later:  # late
        action()
    assert kept == [task]


def test_who_asks_does_not_wait_for_long():
    reactor, cancels, kept = asking([(7, True)] * 2)
    one, other = Task(1, None), Task(2, None)
    threads = [waiting_thread(cancels, reactor, task) for task in (one, other)]
    reactor.later[0]()
    threads[0].join(DEADLINE)
    assert threads[1].is_alive()
    assert kept == [one]
    cancels.answered(7)
    reactor.run()
    threads[1].join(DEADLINE)
    assert kept == [one, other]


def test_who_does_the_farm_s_own_work_does_not_ask():
    reactor, cancels, _ = asking(itertools.repeat(None))
    reactor.handling = True
    cancels.take_back(Task(1, None))
    assert reactor.posted == []
