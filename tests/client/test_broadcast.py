"""A call on every worker, and the wait for every server."""

import os
import pickle
import signal
import threading
import time
from concurrent.futures import CancelledError, Future
from types import SimpleNamespace
from unittest import mock

import pytest
from client import tasks
from contract.gate import Gate
from contract.tasks import pass_gate
from server.peers import free_address

from farm_executor import (
    BroadcastError,
    BrokenFarmError,
    FarmExecutor,
    TaskExecutionError,
    WorkerLostError,
    start_server,
)
from farm_executor.client.farm.broadcasts import Broadcasts, outcomes_of
from farm_executor.core.options import TaskOptions

DEADLINE = 30.0


def test_every_worker_makes_the_call_and_the_results_come_in_a_fixed_order(farm):
    pids = farm.broadcast(tasks.mark, 7)
    assert len(set(pids)) == 2
    for _ in range(5):
        assert farm.broadcast(os.getpid) == pids
    servers = farm.statistics().servers
    by_slot = [sorted((worker.slot, worker.pid) for worker in server.workers) for server in servers]
    assert pids == [pid for server in by_slot for _, pid in server]
    assert {future.result() for future in [farm.submit(tasks.look) for _ in range(20)]} == {7}


def test_it_goes_before_what_is_queued_and_after_what_runs(farm):
    with Gate() as gate:
        farm.connect(DEADLINE)
        running = [farm.submit(pass_gate, gate.address) for _ in range(2)]
        gate.wait_for_arrivals(2)
        queued = [farm.submit(tasks.look) for _ in range(6)]
        done = threading.Event()

        def cast():
            farm.broadcast(tasks.mark, "before")
            done.set()

        thread = threading.Thread(target=cast)
        thread.start()
        assert not done.wait(0.1)
        gate.open()
        thread.join(DEADLINE)
        assert done.is_set()
        for future in running:
            future.result(DEADLINE)
        assert queued[-1].result(DEADLINE) == "before"


def test_every_outcome_is_told_when_one_fails(farm):
    bad, good = farm.broadcast(os.getpid)
    with pytest.raises(
        BroadcastError, match=r"1 of 2 calls failed; .*ZeroDivisionError: on this one alone"
    ) as caught:
        farm.broadcast(tasks.fail_on, bad)
    first, second = caught.value.outcomes
    assert type(first.error) is ZeroDivisionError
    assert isinstance(first.error.__cause__, TaskExecutionError)
    assert (first.value, second.value, second.error) == (None, "fine", None)
    assert caught.value.__cause__ is first.error
    assert f"pid {bad}" in str(first.error.__cause__)
    assert farm.broadcast(tasks.fail_on, 0) == ["fine", "fine"], "and it goes on"
    assert good in farm.broadcast(os.getpid)


def test_the_error_can_be_pickled_with_its_outcomes(farm):
    with pytest.raises(BroadcastError) as caught:
        farm.broadcast(os.strerror, "not a number")
    twin = pickle.loads(pickle.dumps(caught.value))
    assert str(twin) == str(caught.value)
    assert [type(outcome.error) for outcome in twin.outcomes] == [TypeError, TypeError]


def test_many_at_once_do_not_wait_for_each_other(farm):
    farm.connect(DEADLINE)
    results = []
    threads = [
        threading.Thread(target=lambda n=n: results.append((n, farm.broadcast(tasks.echo, n)))) for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert sorted(results) == [(n, [n, n]) for n in range(8)]


def test_a_worker_that_dies_of_it_is_followed_by_one_that_makes_the_call(farm, tmp_path):
    pids = farm.broadcast(os.getpid)
    after = farm.broadcast(tasks.die_once, str(tmp_path / "dead"))
    assert len(after) == 2
    assert len(set(pids) & set(after)) <= 1, "at least one is new"


def test_a_worker_that_always_dies_of_it_is_an_outcome(farm):
    with pytest.raises(BroadcastError) as caught:
        farm.broadcast(os._exit, 3)
    assert [type(outcome.error) for outcome in caught.value.outcomes] == [WorkerLostError, WorkerLostError]
    assert farm.submit(pow, 2, 2).result(DEADLINE) == 4


def test_only_a_persistent_one_reaches_workers_that_come_later(farm):
    farm.broadcast(tasks.mark, "early")
    os.kill(farm.broadcast(os.getpid)[0], signal.SIGKILL)
    assert farm.broadcast(tasks.look) == [None, "early"]

    farm.broadcast(tasks.mark, "for ever", persistent=True)
    for _ in range(2):
        for future in [farm.with_options(max_attempts=1).submit(os._exit, 3) for _ in range(2)]:
            with pytest.raises(WorkerLostError):
                future.result(DEADLINE)
        assert {farm.submit(tasks.look).result(DEADLINE) for _ in range(10)} == {"for ever"}
    assert farm.broadcast(tasks.look) == ["for ever", "for ever"]


def test_persistent_ones_are_made_once_by_each_worker_in_their_order(no_leaks, tmp_path):
    path = str(tmp_path / "calls")
    with FarmExecutor(1, max_tasks_per_child=1) as farm:
        farm.broadcast(tasks.append, path, "one", persistent=True)
        farm.broadcast(tasks.append, path, "two", persistent=True)
        for _ in range(3):
            farm.submit(tasks.append, path, "task").result(DEADLINE)
    calls = (tmp_path / "calls").read_text().split()
    assert calls[:3] == ["one", "two", "task"]
    assert calls[3:9] == ["one", "two", "task"] * 2


def test_a_persistent_one_that_failed_is_not_made_by_later_workers(no_leaks, tmp_path):
    path = str(tmp_path / "calls")
    with FarmExecutor(1) as farm:
        with pytest.raises(BroadcastError):
            farm.broadcast(tasks.fail_at, path, 1, 1, persistent=True)
        with pytest.raises(WorkerLostError):
            farm.with_options(max_attempts=1).submit(os._exit, 3).result(DEADLINE)
        assert farm.submit(pow, 2, 2).result(DEADLINE) == 4


def test_a_worker_that_dies_in_a_persistent_one_is_followed_by_one_that_makes_it_once(no_leaks, tmp_path):
    path = str(tmp_path / "dead")
    with FarmExecutor(1, max_attempts=1) as farm:
        tasks.append(path, "the first makes it")
        farm.broadcast(tasks.die_in_the_second, path, persistent=True)
        with pytest.raises(WorkerLostError):
            farm.submit(os._exit, 3).result(DEADLINE)
        assert farm.submit(pow, 2, 2).result(DEADLINE) == 4
        assert farm.statistics().submitted == 4
    assert (tmp_path / "dead").read_text().split() == ["the", "first", "makes", "it", "made", "dead", "made"]


def test_a_late_call_is_not_killed_with_the_category_of_its_broadcast(no_leaks, tmp_path):
    flag = tmp_path / "flag"
    with FarmExecutor(1) as farm, Gate() as gate:
        view = farm.with_options(category="x")
        view.broadcast(tasks.pass_gate_when, gate.address, str(flag), persistent=True)
        flag.touch()
        with pytest.raises(WorkerLostError):
            farm.with_options(max_attempts=1).submit(os._exit, 3).result(DEADLINE)
        gate.wait_for_arrivals()
        assert farm.kill_tasks("x") == 0
        gate.open()
        assert farm.submit(pow, 2, 2).result(DEADLINE) == 4


def test_a_later_worker_that_fails_in_a_persistent_one_breaks_the_farm(no_leaks, tmp_path):
    flag = tmp_path / "flag"

    def only_once():
        if flag.exists():
            raise ZeroDivisionError("not again")
        flag.touch()

    with FarmExecutor(1) as farm:
        farm.broadcast(only_once, persistent=True)
        with pytest.raises(WorkerLostError):
            farm.with_options(max_attempts=1).submit(os._exit, 3).result(DEADLINE)
        with pytest.raises(BrokenFarmError, match=r"persistent broadcast failed .* ZeroDivisionError: not again"):
            for _ in range(1000):
                farm.submit(pow, 2, 2).result(DEADLINE)


def test_a_server_that_is_away_has_its_outcome_when_the_time_is_over(no_leaks):
    away = free_address()
    with (
        start_server("127.0.0.1", 0, background=True, workers=2) as server,
        FarmExecutor([server.address, away]) as farm,
    ):
        with pytest.raises(BroadcastError) as caught:
            farm.broadcast(tasks.echo, 1, timeout=1.5)
        *here, there = caught.value.outcomes
        assert [(outcome.server, outcome.slot, outcome.value) for outcome in here] == [
            (str(server.address), 0, 1),
            (str(server.address), 1, 1),
        ]
        assert (there.server, there.slot) == (away, None)
        assert type(there.error) is TimeoutError
        assert "has not answered within 1.5 s: ConnectionRefusedError" in str(there.error)
        farm.shutdown(wait=False)


def test_a_server_that_comes_after_the_time_is_not_told_any_more(no_leaks, caplog):
    address = free_address()
    host, _, port = address.rpartition(":")
    with FarmExecutor([address]) as farm:
        with pytest.raises(BroadcastError):
            farm.broadcast(tasks.mark, 1, timeout=0.3)
        with start_server(host, int(port), background=True, workers=1):
            assert farm.submit(tasks.look).result(DEADLINE) is None
    assert not [record for record in caplog.records if record.exc_info]


def test_a_server_that_comes_late_makes_the_call_too(no_leaks):
    address = free_address()
    host, _, port = address.rpartition(":")
    with (
        start_server("127.0.0.1", 0, background=True, workers=1) as one,
        FarmExecutor([one.address, address]) as farm,
    ):
        results = []
        thread = threading.Thread(target=lambda: results.append(farm.broadcast(tasks.echo, 5)))
        thread.start()
        assert farm.submit(pow, 2, 2).result(DEADLINE) == 4, "nobody else waits for it"
        with start_server(host, int(port), background=True, workers=2):
            thread.join(DEADLINE)
            assert results == [[5, 5, 5]]


def test_a_worker_that_does_not_answer_in_time_is_an_outcome(farm):
    with Gate() as gate:
        stuck = farm.submit(pass_gate, gate.address)
        gate.wait_for_arrivals()
        with pytest.raises(BroadcastError) as caught:
            farm.broadcast(tasks.echo, 1, timeout=1.5)
        assert sorted(str(outcome.error) for outcome in caught.value.outcomes) == [
            "None",
            "the worker has not answered within 1.5 s",
        ]
        gate.open()
        stuck.result(DEADLINE)


def test_in_a_callback_it_is_refused_at_once(farm):
    errors = []
    called = threading.Event()

    def cast(future):
        try:
            farm.broadcast(os.getpid)
        except RuntimeError as error:
            errors.append(str(error))
        called.set()

    farm.submit(time.sleep, 0.1).add_done_callback(cast)
    assert called.wait(DEADLINE)
    assert "callback" in errors[0]


def test_what_cannot_be_pickled_is_raised_at_once(farm):
    with pytest.raises(TypeError, match="pickle"):
        farm.broadcast(tasks.echo, threading.Lock())


def test_after_shutdown_it_is_refused_and_a_shutdown_ends_its_wait(no_leaks):
    farm = FarmExecutor([free_address()])
    errors = []

    def cast():
        try:
            farm.broadcast(os.getpid)
        except BroadcastError as error:
            errors.append(error.outcomes[0].error)

    thread = threading.Thread(target=cast)
    thread.start()
    while farm._engine is None or not farm._engine.servers.answered:
        time.sleep(0.01)
    farm.shutdown()
    thread.join(DEADLINE)
    assert not thread.is_alive()
    assert not errors or isinstance(errors[0], RuntimeError)
    with pytest.raises(RuntimeError, match="after shutdown"):
        farm.broadcast(os.getpid)


def test_what_waits_for_a_worker_is_cancelled_with_what_is_queued(no_leaks):
    with Gate() as gate:
        farm = FarmExecutor(1)
        farm.connect(DEADLINE)
        running = farm.submit(pass_gate, gate.address)
        gate.wait_for_arrivals()
        farm.shutdown(wait=False, cancel_futures=True)
        with pytest.raises((RuntimeError, CancelledError)):
            farm.broadcast(os.getpid)
        gate.open()
        running.result(DEADLINE)
        farm.shutdown()


# -- connect ------------------------------------------------------------------------------------------------


def test_connect_starts_the_workers(farm):
    farm.connect(DEADLINE)
    farm.connect(DEADLINE)
    assert all(server.up for server in farm.statistics().servers)


def test_connect_names_those_that_have_not_answered(no_leaks):
    away = free_address()
    with start_server("127.0.0.1", 0, background=True, workers=1) as server:
        farm = FarmExecutor([server.address, away])
        assert farm.submit(pow, 2, 2).result(DEADLINE) == 4, "one works"
        with pytest.raises(TimeoutError, match=rf"within 0.3 s: {away} \(.*refused"):
            farm.connect(0.3)
        assert farm.submit(pow, 2, 2).result(DEADLINE) == 4, "and goes on"
        farm.shutdown()


def test_connect_raises_what_no_waiting_mends(no_leaks):
    from farm_executor import AuthenticationError

    with start_server("127.0.0.1", 0, background=True, workers=1, key=b"one key of at least 16 bytes") as server:
        farm = FarmExecutor([server.address], key=b"another key, just as long")
        with pytest.raises(AuthenticationError):
            farm.connect(DEADLINE)
        with pytest.raises(AuthenticationError):
            farm.connect(DEADLINE)
        farm.shutdown()


def test_connect_tells_of_a_farm_that_has_broken_since(no_leaks):
    with FarmExecutor(1) as farm:
        farm.connect(DEADLINE)
        farm._engine.abort("for the test")
        with pytest.raises(BrokenFarmError):
            farm.submit(time.sleep, 5).result(DEADLINE)
        with pytest.raises(BrokenFarmError, match="for the test"):
            farm.connect(DEADLINE)


def test_connect_in_a_callback_is_refused(farm):
    errors, called = [], threading.Event()

    def connect(future):
        try:
            farm.connect()
        except RuntimeError as error:
            errors.append(str(error))
        called.set()

    farm.submit(time.sleep, 0.1).add_done_callback(connect)
    assert called.wait(DEADLINE)
    assert "callback" in errors[0]


def test_connect_after_shutdown_is_refused(farm):
    farm.connect(DEADLINE)
    farm.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        farm.connect()


def test_a_server_that_is_removed_as_the_broadcast_begins_has_no_part_in_it():
    answered = Future()
    answered.set_result(2)
    servers = SimpleNamespace(staying=lambda: {"gone": answered}, counts={})
    broadcasts = Broadcasts(mock.MagicMock(closed=False), mock.Mock(), None, mock.Mock(), mock.Mock())
    broadcast = broadcasts.make(mock.Mock(), (), TaskOptions(), servers, persistent=False)
    assert outcomes_of(broadcast, 0.0) == []
