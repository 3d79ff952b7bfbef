"""What FarmExecutor has beyond the contract that it shares with other executors."""

import functools
import os
import pickle
import signal
import threading
import time
from concurrent.futures import wait

import pytest
from client import tasks
from interrupts import strike_at_line

import farm_executor.client.farm.engine
import farm_executor.client.farm.link
import farm_executor.wire.versions
from farm_executor import FarmExecutor, FarmStatistics, VersionMismatchError, WorkerLostError, start_server
from farm_executor.client.farm.functions import MAX_LARGE_BYTES
from farm_executor.core.frames import payload_size

DEADLINE = 30.0


@pytest.fixture(scope="module")
def server():
    with start_server("127.0.0.1", 0, background=True, workers=2) as server:
        yield server


@pytest.fixture(params=["embedded", "server"])
def farm(request, no_leaks):
    if request.param == "embedded":
        with FarmExecutor(2) as farm:
            yield farm
    else:
        with (
            start_server("127.0.0.1", 0, background=True, workers=2) as server,
            FarmExecutor(server.address) as farm,
        ):
            yield farm


# -- construction -------------------------------------------------------------------------------------


def test_an_int_in_the_first_place_is_max_workers():
    assert FarmExecutor(3)._max_workers == 3


def test_max_workers_given_twice_is_refused():
    with pytest.raises(TypeError, match="twice"):
        FarmExecutor(3, max_workers=3)


@pytest.mark.parametrize("attempts", [0, -1])
def test_less_than_one_attempt_is_refused(attempts):
    with pytest.raises(ValueError, match="max_attempts"):
        FarmExecutor(max_attempts=attempts)
    with pytest.raises(ValueError, match="max_attempts"):
        FarmExecutor().with_options(max_attempts=attempts)


def test_max_workers_limits_the_workers_on_servers(server, no_leaks):
    with FarmExecutor(server.address, max_workers=1) as farm:
        assert len(set(farm.map(tasks.pid_after, [0.05] * 6))) == 1


def test_max_workers_is_divided_among_servers(no_leaks):
    with (
        start_server("127.0.0.1", 0, background=True, workers=4) as one,
        start_server("127.0.0.1", 0, background=True, workers=4) as two,
        FarmExecutor([one.address, two.address], max_workers=3) as farm,
    ):
        wait([farm.submit(time.sleep, 0.1) for _ in range(8)], timeout=DEADLINE)
        _until(lambda: [len(server.workers) for server in farm.statistics().servers] == [2, 1])

        assert [len(server.workers) for server in farm.statistics().servers] == [2, 1]


def _until(condition):
    deadline = time.monotonic() + DEADLINE
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


# -- nesting ------------------------------------------------------------------------------------------


def test_an_executor_sent_along_gives_tasks_a_farm_of_the_same_servers(farm):
    """With more tasks than workers, each waiting for one of its own: nothing may deadlock."""
    futures = [farm.submit(tasks.nested, farm, 2, DEADLINE) for _ in range(4)]

    assert all(isinstance(future.result(timeout=DEADLINE), int) for future in futures)


def test_a_pickled_executor_does_not_hold_the_key(server):
    with FarmExecutor(server.address, key=b"0123456789abcdef-secret") as farm:
        data = pickle.dumps(farm)

    assert b"0123456789abcdef-secret" not in data


# -- options ------------------------------------------------------------------------------------------


def test_a_higher_priority_goes_first_and_each_is_first_in_first_out(no_leaks, tmp_path):
    order, gate = tmp_path / "order", tmp_path / "gate"
    with FarmExecutor(1) as farm:
        blocker = farm.submit(tasks.wait_for, str(gate))
        assert _until(lambda: farm.statistics().running == 1)
        low, high = farm.with_options(priority="low"), farm.with_options(priority="high")
        futures = [blocker]
        for i in range(3):
            futures.append(low.submit(tasks.append, str(order), f"low {i}"))
            futures.append(farm.submit(tasks.append, str(order), f"default {i}"))
            futures.append(high.submit(tasks.append, str(order), f"high {i}"))
            futures.append(farm.with_options(priority=7).submit(tasks.append, str(order), f"seven {i}"))
        gate.touch()
        wait(futures, timeout=DEADLINE)

    expected = [f"{name} {i}" for name in ("seven", "high", "default", "low") for i in range(3)]
    assert order.read_text().splitlines() == expected


def test_an_unknown_priority_is_refused():
    with pytest.raises(ValueError, match=r"'urgent'.*low, default, high"):
        FarmExecutor().with_options(priority="urgent")


@pytest.mark.parametrize("attempts", [1, 2, 4])
def test_a_task_that_kills_its_worker_is_begun_as_often_as_allowed(farm, tmp_path, attempts):
    path = tmp_path / "begun"

    view = farm.with_options(max_attempts=attempts)
    error = view.submit(tasks.die_after_noting, str(path)).exception(timeout=DEADLINE)

    assert isinstance(error, WorkerLostError)
    assert "exited with code 7" in str(error)
    assert path.read_text().splitlines() == ["begun"] * attempts


def test_views_keep_what_is_not_given_and_are_the_same_farm(farm):
    view = farm.with_options(priority="low", category="etl").with_options(max_attempts=1)

    assert (view._options.priority, view._options.category, view._options.max_attempts) == (-1, "etl", 1)
    assert list(view.map(abs, [-1, -2])) == [1, 2]
    assert farm.statistics().submitted == 2
    assert view._max_workers == farm._max_workers


# -- what it tells ------------------------------------------------------------------------------------


def test_statistics_tell_the_state(farm):
    assert farm.statistics() == FarmStatistics(state="new")
    assert "new" in repr(farm)

    farm.submit(abs, -1).result(timeout=DEADLINE)
    farm.submit(abs, None).exception(timeout=DEADLINE)
    numbers = farm.statistics()

    assert (numbers.state, numbers.submitted, numbers.succeeded, numbers.failed) == ("open", 2, 1, 1)
    assert (numbers.queued, numbers.running) == (0, 0)
    assert sum(worker.tasks_done for server in numbers.servers for worker in server.workers) == 2
    assert all(server.up for server in numbers.servers)

    farm.shutdown()

    assert farm.statistics().state == "shut down"
    assert "shut down" in repr(farm)


# -- versions -----------------------------------------------------------------------------------------


@pytest.fixture
def another_python(monkeypatch):
    """The client claims to be another Python than the server's."""
    true = farm_executor.wire.versions.local_versions()
    false = true._replace(python="cpython 2.7", cloudpickle="0.1")
    monkeypatch.setattr(farm_executor.client.farm.link, "local_versions", lambda: false)
    return true


def test_another_python_is_refused_with_every_mismatch(server, another_python, no_leaks):
    with FarmExecutor(server.address) as farm:
        error = farm.submit(abs, -1).exception(timeout=DEADLINE)

        with pytest.raises(VersionMismatchError):
            farm.submit(abs, -1)

    assert isinstance(error, VersionMismatchError)
    assert error.mismatches == {
        "python": ("cpython 2.7", another_python.python),
        "cloudpickle": ("0.1", another_python.cloudpickle),
    }
    for text in (server.address, "cpython 2.7", another_python.python, "cloudpickle"):
        assert text in str(error)


def test_another_python_is_worked_with_when_asked_for(server, another_python, no_leaks):
    with (
        pytest.warns(RuntimeWarning, match=r"python \(client cpython 2.7, server"),
        FarmExecutor(server.address, allow_version_mismatch=True) as farm,
    ):
        assert farm.submit(abs, -1).result(timeout=DEADLINE) == 1


# -- recall -------------------------------------------------------------------------------------------


def test_short_tasks_queued_behind_a_long_one_go_to_another_worker(no_leaks, tmp_path):
    """The window has learnt that tasks are short; then comes a long one with others behind it on its lane."""
    gate = tmp_path / "gate"
    with FarmExecutor(2) as farm:
        list(farm.map(abs, range(2000)))  # both windows are wide open now
        futures = [farm.submit(abs, -i) for i in range(500)]
        futures.insert(0, farm.submit(tasks.wait_for, str(gate)))
        futures += [farm.submit(abs, -i) for i in range(500)]

        done, _ = wait(futures[1:], timeout=DEADLINE)
        assert len(done) == 1000
        assert not futures[0].done()

        gate.touch()
        futures[0].result(timeout=DEADLINE)


def test_tasks_that_wait_for_each_other_all_run_while_there_are_workers(no_leaks, tmp_path):
    with FarmExecutor(2) as farm:
        list(farm.map(abs, range(2000)))
        first = farm.submit(tasks.wait_for, str(tmp_path / "flag"))
        second = farm.submit(tasks.append, str(tmp_path / "flag"), "set")

        wait([first, second], timeout=DEADLINE)
        assert first.done()


# -- recycling ----------------------------------------------------------------------------------------


def test_workers_are_replaced_after_their_tasks_and_none_is_lost(farm):
    with FarmExecutor(2, max_tasks_per_child=5) as recycling:
        pids = list(recycling.map(tasks.pid_after, [0.0] * 60))

    counts = {pid: pids.count(pid) for pid in pids}
    assert len(pids) == 60
    assert max(counts.values()) <= 5


# -- threads ------------------------------------------------------------------------------------------


def test_many_threads_submit_cancel_and_wait_at_once(farm):
    failures = []

    def use(seed):
        try:
            futures = [farm.submit(pow, seed, i % 7) for i in range(300)]
            cancelled = {i for i in range(0, 300, 5) if futures[i].cancel()}
            for i, future in enumerate(futures):
                if i not in cancelled:
                    assert future.result(timeout=DEADLINE) == seed ** (i % 7)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)

    assert failures == []
    assert not any(thread.is_alive() for thread in threads)
    assert _until(lambda: farm.statistics().succeeded + farm.statistics().cancelled == 1800)


def test_callbacks_run_in_the_farms_own_thread_whoever_leads(no_leaks):
    """A leading caller may hold a lock that a callback wants."""
    names, lock, called = [], threading.Lock(), threading.Event()

    def note(future):
        with lock:
            names.append(threading.current_thread().name)
        called.set()

    with FarmExecutor(2) as farm:
        for _ in range(50):
            called.clear()
            with lock:
                future = farm.submit(tasks.after, 0.002, 1)
                future.add_done_callback(note)
                assert future.result(DEADLINE) == 1  # which leads, and settles it
            assert called.wait(DEADLINE)

    assert set(names) == {"farm-engine"}


def test_a_task_that_ends_before_another_crashes_its_worker_keeps_its_result(no_leaks):
    """Also where it must not run again, though outcomes of short tasks may wait for one another."""
    with FarmExecutor(1, max_attempts=1) as farm:
        warm = [farm.submit(pow, n, 2) for n in range(500)]  # so that the window grows
        assert [future.result(DEADLINE) for future in warm] == [n**2 for n in range(500)]
        for _ in range(10):
            before = [farm.submit(pow, n, 2) for n in range(40)]
            crash = farm.submit(os._exit, 3)
            behind = [farm.submit(pow, n, 2) for n in range(40)]

            assert type(crash.exception(DEADLINE)) is WorkerLostError
            assert [future.result(DEADLINE) for future in before] == [n**2 for n in range(40)]
            assert [future.result(DEADLINE) for future in behind] == [n**2 for n in range(40)]


LOOKS = {
    "statistics": FarmExecutor.statistics,
    "connect": FarmExecutor.connect,
    "kill": lambda farm: farm.kill_tasks("nothing that runs"),
    "broadcast": lambda farm: farm.broadcast(os.getpid),
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_an_interrupt_at_any_line_of_a_look_at_the_farm_leaves_it_working(no_leaks, look):
    """Else the lock would stay in the hands of nobody, and the farm would hang."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with FarmExecutor(1) as farm:
            assert farm.submit(pow, 2, 2).result(DEADLINE) == 4
            line, struck = 0, True
            while struck:
                files = ("engine.py", "front.py", "backing.py", "broadcasts.py", "statistics.py", "interrupt.py")
                struck = strike_at_line(line, lambda: look(farm), files)
                line += 1
                assert farm.submit(pow, 2, 2).result(DEADLINE) == 4
            assert line > 8
            assert farm.submit(pow, 2, 3).result(DEADLINE) == 8
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interrupt_at_any_line_of_a_shutdown_hinders_no_later_one(no_leaks):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        line, struck = 0, True
        while struck:
            farm = FarmExecutor(1)
            future = farm.submit(pow, 2, 2)
            struck = strike_at_line(line, lambda: farm.shutdown(wait=False), ("engine.py", "reactor.py"))
            line += 1
            farm.shutdown()
            assert future.result(0) == 4
        assert line > 5
    finally:
        signal.signal(signal.SIGINT, before)


# -- large functions ------------------------------------------------------------------------------------


def test_what_is_kept_of_large_functions_is_bounded_and_goes_when_the_farm_is_idle(farm, monkeypatch):
    monkeypatch.setattr(farm_executor.client.farm.engine, "IDLE_SECONDS", 0.02)
    size = 200_000
    for number in range(3 * MAX_LARGE_BYTES // size):
        large = functools.partial(len, bytes([number]) * size)
        assert [farm.submit(large).result(DEADLINE) for _ in range(2)] == [size] * 2
    slack = 2 * size
    assert farm.submit(tasks.held_of_functions).result(DEADLINE) <= MAX_LARGE_BYTES + slack
    table = farm._engine._functions

    assert _until(lambda: not table.kept.large)
    assert sum(payload_size(content.parts) for content in table._by_content) < slack
    assert max(farm.broadcast(tasks.held_of_functions)) < slack
    assert farm.submit(large).result(DEADLINE) == size, "it is sent again"
