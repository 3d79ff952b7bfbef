"""Connections that break under a farm cost no task a second run, and no farm its work."""

import contextlib
import itertools
import logging
import os
import signal
import sys
import threading
from collections import Counter

import pytest
from client import tasks
from contract.gate import Gate
from contract.tasks import identity, pass_gate
from faults.proxy import TO_CLIENT, TO_SERVER, Proxy
from server.peers import free_address
from server.processes import DEADLINE, alive, wait_until
from server.serving import KEY, Serving

from farm_executor import FarmExecutor, TaskTimeoutError, WorkerLostError, start_server
from farm_executor.client.farm import crew
from farm_executor.client.farm import link as dialling
from farm_executor.wire.address import Address

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
    pytest.mark.usefixtures("no_leaks"),
]

LANE = 1  # the first, as the proxy counts; 0 is the control connection


class Book:
    """What tasks have signed, each time that they ran."""

    def __init__(self, folder):
        self._path = folder / "book"
        self.path = str(self._path)

    def runs(self):
        return Counter(self._path.read_text().split()) if self._path.exists() else Counter()


@pytest.fixture
def book(tmp_path):
    return Book(tmp_path)


@pytest.fixture
def gate():
    with Gate() as gate:
        yield gate


@contextlib.contextmanager
def proxied(*, workers=2, **options):
    """A proxy, and a farm behind it that is ready."""
    with (
        start_server("127.0.0.1", 0, background=True, workers=workers) as server,
        Proxy(server.address) as proxy,
        FarmExecutor(proxy.address, **{"heartbeat": 1.0, **options}) as farm,
    ):
        farm.broadcast(identity, None)
        yield proxy, farm


def held(farm, gate, book, count=2):
    """Tasks that run and wait at the gate, each on a worker of its own."""
    futures = [farm.submit(tasks.sign_pass_gate, book.path, gate.address, number) for number in range(count)]
    gate.wait_for_arrivals(count)
    return futures


def up(farm):
    return all(server.up for server in farm.statistics().servers)


def nothing_was_lost(farm):
    numbers = farm.statistics()
    return (numbers.resubmitted, numbers.lost, numbers.failed) == (0, 0, 0)


# -- connections that end --------------------------------------------------------------------------------------


@pytest.mark.parametrize("numbers", [[0], [1], [1, 2], [0, 2], None], ids=str)
def test_what_runs_when_connections_break_is_run_once(gate, book, numbers):
    with proxied() as (proxy, farm):
        before = set(farm.broadcast(tasks.pid_after, 0))
        futures = held(farm, gate, book)
        proxy.cut(numbers=numbers)
        wait_until(lambda: proxy.live == 3 and up(farm), "all are back")
        gate.open()
        assert [future.result(DEADLINE) for future in futures] == [0, 1]
        assert set(farm.broadcast(tasks.pid_after, 0)) == before
        assert book.runs() == {"0": 1, "1": 1}
        assert nothing_was_lost(farm)


def test_lanes_that_work_are_left_alone_when_the_control_connection_breaks(gate, book):
    with proxied() as (proxy, farm):
        futures = held(farm, gate, book)
        proxy.cut(numbers=[0])
        wait_until(lambda: len(proxy.links) == 4 and up(farm), "the server is back")
        gate.open()
        assert [future.result(DEADLINE) for future in futures] == [0, 1]
        threading.Event().wait(1.5)  # in which the lanes are looked at twice
        assert len(proxy.links) == 4
        assert nothing_was_lost(farm)


def test_lanes_that_broke_without_a_word_are_found_out_when_the_control_connection_is_back(gate, book):
    with proxied(heartbeat=3600.0) as (proxy, farm):
        futures = held(farm, gate, book)
        proxy.stall(numbers=[1, 2])
        proxy.cut(numbers=[0])
        gate.open()
        assert [future.result(DEADLINE) for future in futures] == [0, 1]
        assert book.runs() == {"0": 1, "1": 1}
        assert nothing_was_lost(farm)


def test_lanes_are_dialled_side_by_side(monkeypatch):
    together = threading.Barrier(8)
    connect = dialling.connect

    def connect_together(address, key, hello, *args, **more):
        if hello["role"] == "lane":
            together.wait(DEADLINE)
        return connect(address, key, hello, *args, **more)

    monkeypatch.setattr(dialling, "connect", connect_together)
    with proxied(workers=8) as (proxy, farm):
        futures = farm.broadcast(tasks.pid_after, 0)
        proxy.cut(numbers=range(1, 9))
        assert sorted(farm.broadcast(tasks.pid_after, 0)) == sorted(futures)
        assert nothing_was_lost(farm)


def test_a_server_whose_port_refuses_is_not_waited_for(gate, book):
    """What it ran is lost long before the time to resume is over."""
    with (
        Serving(workers=1) as server,
        FarmExecutor(server.address, key=KEY, resume_timeout=3600, max_attempts=1) as farm,
    ):
        (future,) = held(farm, gate, book, 1)
        server.process.kill()
        with pytest.raises(WorkerLostError):
            future.result(DEADLINE)
        gate.open()


@contextlib.contextmanager
def balanced(*servers):
    """A load balancer: each connection goes to the next server in turn."""
    with contextlib.ExitStack() as stack:
        proxies = [stack.enter_context(Proxy(server.address)) for server in servers]
        turn = itertools.cycle(proxies)
        connect = dialling.connect

        def connect_to_next(address, *args, **more):
            host, _, port = next(turn).address.rpartition(":")
            return connect(Address(host, int(port)), *args, **{**more, "via": None})

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dialling, "connect", connect_to_next)
            yield proxies


def test_behind_a_load_balancer_lanes_are_found_with_patience_and_the_log_names_the_cause(caplog, monkeypatch):
    monkeypatch.setattr(dialling, "NOT_YET_SECONDS", 0.0)
    with (
        start_server("127.0.0.1", 0, background=True, workers=1) as one,
        start_server("127.0.0.1", 0, background=True, workers=1) as other,
        balanced(one, other) as proxies,
        FarmExecutor("127.0.0.1:1") as farm,
    ):
        assert list(farm.map(identity, range(20))) == list(range(20))
        assert "a load balancer stands in between" in caplog.text
        assert sum(len(proxy.links) for proxy in proxies) < 10, "no session was opened in vain"


def test_what_ends_while_the_connections_are_broken_is_run_once(gate, book):
    with proxied() as (proxy, farm):
        futures = held(farm, gate, book)
        proxy.refuse()
        proxy.cut()
        gate.open()
        more = [farm.submit(tasks.sign_after, book.path, 0, number) for number in range(2, 50)]
        assert not farm.statistics().servers[0].up or not futures[0].done()
        proxy.admit()
        assert [future.result(DEADLINE) for future in futures + more] == list(range(50))
        assert book.runs() == {str(number): 1 for number in range(50)}
        assert nothing_was_lost(farm)


@pytest.mark.parametrize("seconds", [0.0, 0.002])
@pytest.mark.parametrize("options", [{}, {"max_tasks_per_child": 7}], ids=str)
def test_connections_may_break_again_and_again_under_load(book, options, seconds):
    with proxied(**options) as (proxy, farm):
        futures = [farm.submit(tasks.sign_after, book.path, seconds, number) for number in range(600)]
        for done in range(0, 600, 30):
            wait_until(lambda done=done: sum(future.done() for future in futures) > done, "the work goes on")
            proxy.cut()
        assert [future.result(DEADLINE) for future in futures] == list(range(600))
        assert book.runs() == {str(number): 1 for number in range(600)}
        assert nothing_was_lost(farm)


def test_a_connection_may_break_in_the_moment_in_which_its_worker_has_run_all_it_may(monkeypatch):
    lose_lane = crew.Crew.lose_lane

    def cut_and_end(self, lane):
        self.cut_lane(lane, "the test says so")
        lose_lane(self, lane)

    monkeypatch.setattr(crew.Crew, "lose_lane", cut_and_end)
    with proxied(max_tasks_per_child=1) as (_, farm):
        assert list(farm.map(identity, range(5))) == list(range(5))


def test_a_map_goes_on_over_broken_connections(book):
    with proxied() as (proxy, farm):
        found = farm.map(tasks.sign_after, [book.path] * 3000, [0.0001] * 3000, range(3000))
        for number in range(3000):
            if number % 300 == 0:
                proxy.cut()
            assert next(found) == number
        assert book.runs() == {str(number): 1 for number in range(3000)}
        assert nothing_was_lost(farm)


def test_large_arguments_and_results_go_on_over_broken_connections():
    with proxied() as (proxy, farm):
        pages = [bytes([number]) * (3 << 20) for number in range(12)]
        futures = [farm.submit(identity, page) for page in pages]
        for number, future in enumerate(futures):
            if number % 3 == 0:
                proxy.cut()
            assert future.result(DEADLINE) == pages[number]
        assert nothing_was_lost(farm)


def test_a_task_of_a_single_attempt_survives_a_broken_connection(gate, book):
    with proxied(max_attempts=1) as (proxy, farm):
        futures = held(farm, gate, book)
        for _ in range(3):
            proxy.cut()
            wait_until(lambda: proxy.live == 3 and up(farm), "all are back")
        gate.open()
        assert [future.result(DEADLINE) for future in futures] == [0, 1]
        assert book.runs() == {"0": 1, "1": 1}


def test_a_broadcast_reaches_workers_whose_connections_are_broken():
    with proxied() as (proxy, farm):
        proxy.refuse()
        proxy.cut()
        found = []
        thread = threading.Thread(target=lambda: found.extend(farm.broadcast(tasks.pid_after, 0, timeout=DEADLINE)))
        thread.start()
        proxy.admit()
        thread.join(DEADLINE)
        assert len(set(found)) == 2


def test_what_is_queued_while_the_connections_are_broken_can_be_cancelled(gate, book):
    with proxied(workers=1) as (proxy, farm):
        (first,) = held(farm, gate, book, 1)
        proxy.refuse()
        proxy.cut()
        later = farm.submit(tasks.sign, book.path, "later")
        assert later.cancel()
        proxy.admit()
        gate.open()
        assert first.result(DEADLINE) == 0
        assert book.runs() == {"0": 1}


def test_time_runs_out_for_a_task_also_while_the_connections_are_broken(gate, book):
    with proxied() as (proxy, farm):
        overdue = farm.with_options(timeout=1.0).submit(tasks.sign_pass_gate, book.path, gate.address, 1)
        gate.wait_for_arrivals()
        proxy.refuse()
        proxy.cut()
        threading.Event().wait(1.1)
        proxy.admit()
        with pytest.raises(TaskTimeoutError):
            overdue.result(DEADLINE)
        gate.open()
        assert farm.submit(identity, "well").result(DEADLINE) == "well"
        assert book.runs() == {"1": 1}


def test_who_cannot_be_reached_is_not_killed_and_may_be_later(gate, book):
    with proxied() as (proxy, farm):
        one, other = held(farm, gate, book)
        proxy.refuse()
        proxy.cut()
        wait_until(lambda: not up(farm), "it has been noticed")
        assert not farm.kill(one)
        proxy.admit()
        wait_until(lambda: proxy.live == 3 and up(farm), "all are back")
        assert farm.kill(one)
        gate.open()
        assert other.result(DEADLINE) == 1
        assert farm.statistics().killed == 1


def test_a_farm_may_be_shut_down_while_its_connections_are_broken(gate, book):
    with proxied(resume_timeout=0.5) as (proxy, farm):
        pids = farm.broadcast(tasks.pid_after, 0)
        proxy.refuse()
        proxy.cut()
        farm.shutdown()
        wait_until(lambda: not any(map(alive, pids)), "its workers have not waited for long")


# -- those that are not resumed --------------------------------------------------------------------------------


def test_without_resuming_a_broken_connection_costs_an_attempt(gate, book):
    with proxied(workers=1, resume_timeout=0) as (proxy, farm):
        (future,) = held(farm, gate, book, 1)
        proxy.cut()
        gate.wait_for_arrivals(1)  # again
        gate.open()
        assert future.result(DEADLINE) == 0
        assert book.runs() == {"0": 2}
        assert farm.statistics().resubmitted == 1


@pytest.mark.parametrize("options", [{"resume_timeout": 0}, {"resume_timeout": 0.2}], ids=str)
def test_who_is_not_back_in_time_is_given_up(gate, book, options):
    with proxied(workers=1, max_attempts=1, **options) as (proxy, farm):
        (future,) = held(farm, gate, book, 1)
        proxy.refuse()
        proxy.cut()
        with pytest.raises(WorkerLostError, match="could not be reached any more"):
            future.result(DEADLINE)
        proxy.admit()
        assert farm.submit(identity, "well").result(DEADLINE) == "well"
        assert book.runs() == {"0": 1}


def test_the_time_to_come_back_begins_anew_with_each_cut(gate, book):
    with proxied(workers=1, resume_timeout=2.0, max_attempts=1) as (proxy, farm):
        (future,) = held(farm, gate, book, 1)
        proxy.cut()
        wait_until(lambda: proxy.live == 2 and up(farm), "it is back")
        threading.Event().wait(1.5)
        proxy.refuse()
        proxy.cut()
        threading.Event().wait(0.8)  # when the first time is over
        proxy.admit()
        gate.open()
        assert future.result(DEADLINE) == 0
        assert book.runs() == {"0": 1}


def test_a_server_that_was_restarted_gets_its_tasks_again_and_single_attempts_fail(gate, book):
    address = free_address()
    with FarmExecutor(address, key=KEY, heartbeat=0.5) as farm:
        with Serving(at=address) as server:
            again = farm.submit(tasks.sign_pass_gate, book.path, gate.address, "again")
            once = farm.with_options(max_attempts=1).submit(tasks.sign_pass_gate, book.path, gate.address, "once")
            gate.wait_for_arrivals(2)
            server.process.kill()
        with Serving(at=address):
            with pytest.raises(WorkerLostError, match="only once"):
                once.result(DEADLINE)
            gate.wait_for_arrivals()
            gate.open()
            assert again.result(DEADLINE) == "again"
        assert book.runs() == {"again": 2, "once": 1}


def test_a_server_that_ends_at_once_is_not_waited_for(gate, book):
    with (
        start_server("127.0.0.1", 0, background=True, workers=1) as other,
        start_server("127.0.0.1", 0, background=True, workers=1) as server,
        FarmExecutor([server.address, other.address], resume_timeout=3600) as farm,
    ):
        farm.broadcast(identity, None)
        futures = held(farm, gate, book)
        server.end()
        gate.open()
        assert [future.result(DEADLINE) for future in futures] == [0, 1]


# -- silence ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("directions", [(), (TO_SERVER,), (TO_CLIENT,)], ids=["both", "there", "back"])
def test_a_network_that_swallows_all_is_noticed_and_costs_nothing(gate, book, directions):
    with proxied(heartbeat=0.1) as (proxy, farm):
        futures = held(farm, gate, book)
        proxy.stall(*directions)
        gate.open()
        more = [farm.submit(tasks.sign_after, book.path, 0, number) for number in (2, 3)]
        wait_until(lambda: not up(farm), "it has been noticed")
        proxy.flow()
        assert [future.result(DEADLINE) for future in futures + more] == [0, 1, 2, 3]
        assert book.runs() == {str(number): 1 for number in range(4)}
        assert nothing_was_lost(farm)


@pytest.mark.parametrize("direction", [TO_SERVER, TO_CLIENT], ids=["there", "back"])
def test_a_single_lane_that_swallows_all_is_noticed_and_costs_nothing(gate, book, direction):
    with proxied(workers=1, heartbeat=0.1) as (proxy, farm):
        (future,) = held(farm, gate, book, 1)
        proxy.stall(direction, numbers=[LANE])
        gate.open()
        more = farm.submit(tasks.sign_after, book.path, 0, 1)
        assert [future.result(DEADLINE), more.result(DEADLINE)] == [0, 1]
        assert book.runs() == {"0": 1, "1": 1}
        assert not proxy.links[0].ended, "the control connection is not concerned"
        assert nothing_was_lost(farm)


def test_a_large_result_that_is_stuck_is_noticed(book):
    """Its worker stands in the midst of sending it."""
    with proxied(workers=1, heartbeat=0.1) as (proxy, farm):
        page = bytes(64 << 20)
        proxy.stall(TO_CLIENT, numbers=[LANE])
        assert farm.submit(identity, page).result(DEADLINE) == page
        assert nothing_was_lost(farm)


def test_a_lane_that_is_stuck_before_its_worker_is_ready_is_replaced(gate):
    with (
        start_server("127.0.0.1", 0, background=True, workers=1) as server,
        Proxy(server.address) as proxy,
        FarmExecutor(proxy.address, heartbeat=0.1, initializer=pass_gate, initargs=(gate.address,)) as farm,
    ):
        future = farm.submit(identity, "well")
        gate.wait_for_arrivals()
        proxy.stall(TO_CLIENT, numbers=[LANE])
        gate.open()
        assert future.result(DEADLINE) == "well"


def test_a_worker_that_dies_behind_a_stuck_lane_is_replaced(gate, book, monkeypatch):
    monkeypatch.setattr(crew, "REPORT_SECONDS", 0.1)
    with proxied(workers=1) as (proxy, farm):
        (pid,) = farm.broadcast(tasks.pid_after, 0)
        (future,) = held(farm, gate, book, 1)
        proxy.stall(numbers=[LANE])
        os.kill(pid, signal.SIGKILL)
        gate.wait_for_arrivals()
        gate.open()
        assert future.result(DEADLINE) == 0
        assert book.runs() == {"0": 2}


def test_a_farm_that_is_idle_or_whose_tasks_hold_their_interpreters_locks_is_left_alone(book, caplog):
    caplog.set_level(logging.INFO)
    with proxied(workers=1, heartbeat=0.05) as (proxy, farm):
        threading.Event().wait(0.5)
        future = farm.submit(tasks.sign_and_hold_the_lock, book.path, 1)
        wait_until(book.runs, "it holds the lock")
        farm.broadcast(identity, bytes(1 << 20))  # which waits behind it, unread
        assert future.result(DEADLINE) == 0
        threading.Event().wait(0.5)
    assert book.runs() == {"begun": 1}
    assert "connection lost" not in caplog.text
    assert len(proxy.links) == 2


@contextlib.contextmanager
def frozen(*pids):
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def test_the_work_of_a_frozen_server_goes_on_on_another(gate, book):
    with (
        Serving(workers=1) as one,
        Serving(workers=1) as other,
        FarmExecutor([one.address, other.address], key=KEY, heartbeat=0.1, resume_timeout=0.3) as farm,
    ):
        pids = farm.broadcast(tasks.pid_after, 0)
        futures = held(farm, gate, book)
        with frozen(one.pid, pids[0]):
            gate.open()
            assert sorted(future.result(DEADLINE) for future in futures) == [0, 1]
            more = [farm.submit(tasks.pid_after, 0) for _ in range(20)]
            assert {future.result(DEADLINE) for future in more} == {pids[1]}
        wait_until(lambda: up(farm), "it is back")


def test_a_frozen_supervisor_that_comes_to_itself_in_time_has_cost_nothing(gate, book):
    with Serving() as server, FarmExecutor(server.address, key=KEY, heartbeat=0.1) as farm:
        futures = held(farm, gate, book)
        with frozen(server.pid):
            wait_until(lambda: not up(farm), "it has been noticed")
            gate.open()
            assert [future.result(DEADLINE) for future in futures] == [0, 1], "its workers are not concerned"
        wait_until(lambda: up(farm), "it is back")
        assert nothing_was_lost(farm)


def test_an_embedded_server_that_is_frozen_is_replaced(gate, book):
    with FarmExecutor(1, heartbeat=0.1) as farm:
        supervisor = farm.submit(os.getppid).result(DEADLINE)
        (future,) = held(farm, gate, book, 1)
        with frozen(supervisor):
            gate.wait_for_arrivals()  # again
            gate.open()
            assert future.result(DEADLINE) == 0
        assert farm.submit(os.getppid).result(DEADLINE) != supervisor
        assert not alive(supervisor)


def test_a_frozen_worker_is_replaced_and_its_tasks_go_on(gate, book):
    with proxied(workers=1, heartbeat=0.1) as (_, farm):
        (pid,) = farm.broadcast(tasks.pid_after, 0)
        careful = farm.with_options(max_attempts=1)
        future = careful.submit(tasks.sign_pass_gate, book.path, gate.address, 0)
        gate.wait_for_arrivals()
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(WorkerLostError, match=r"stopped, as by SIGSTOP, for 0\.3 s"):
            future.result(DEADLINE)
        assert farm.submit(identity, "well").result(DEADLINE) == "well"
