"""Everything ends, and the farm goes on: what an interrupted notebook cell needs."""

import threading
from concurrent.futures import CancelledError, wait

import pytest
from client import tasks
from contract.gate import DEADLINE, Gate
from server.processes import wait_until

from farm_executor import FarmExecutor, TaskKilledError


@pytest.fixture
def gate():
    with Gate() as gate:
        yield gate


def test_what_waits_is_cancelled_what_runs_is_killed_and_the_farm_goes_on(farm, gate, tmp_path):
    path = tmp_path / "ran"
    running = [farm.submit(tasks.pass_gate, gate.address) for _ in range(2)]
    gate.wait_for_arrivals(2)
    behind = [farm.submit(tasks.append, str(path), "x") for _ in range(300)]

    farm.cancel_all()

    assert wait(running + behind, DEADLINE).not_done == set()
    assert {type(future.exception()) for future in running} == {TaskKilledError}
    assert all(future.cancelled() for future in behind)
    assert farm.submit(pow, 2, 2).result(DEADLINE) == 4
    assert not path.exists()
    numbers = farm.statistics()
    assert (numbers.queued, numbers.running, numbers.killed, numbers.cancelled) == (0, 0, 2, 300)


def test_what_workers_have_been_sent_ahead_is_cancelled_too(no_leaks, gate, tmp_path):
    path = tmp_path / "ran"
    with FarmExecutor(1) as farm:
        warm = [farm.submit(pow, 2, 2) for _ in range(500)]  # so that the window grows
        assert wait(warm, DEADLINE).not_done == set()
        running = farm.submit(tasks.pass_gate, gate.address)
        gate.wait_for_arrivals()
        behind = [farm.submit(tasks.append, str(path), "x") for _ in range(20)]
        last = farm.with_options(priority="low", category="any").submit(tasks.append, str(path), "x")

        farm.with_options(priority="high").cancel_all()

        with pytest.raises(TaskKilledError):
            running.result(DEADLINE)
        for future in [*behind, last]:
            with pytest.raises(CancelledError):
                future.result(DEADLINE)
        assert farm.submit(pow, 2, 2).result(DEADLINE) == 4
        assert not path.exists()


@pytest.mark.parametrize("chunksize", [1, 3])
def test_of_a_map_nothing_goes_on(farm, gate, tmp_path, chunksize):
    """Also not the rest of a block, which is submitted when its worker has taken long over the first items."""
    path = tmp_path / "ran"
    results = farm.map(tasks.sign_after, [str(path)] * 400, [0.001] * 400, range(400), chunksize=chunksize)
    wait_until(path.exists, "it has begun")

    farm.cancel_all()
    ran = len(path.read_text().split())

    assert farm.submit(pow, 2, 2).result(DEADLINE) == 4
    with pytest.raises((CancelledError, TaskKilledError)):
        list(results)
    assert len(path.read_text().split()) == ran
    assert ran < 400


def test_tasks_that_have_been_taken_back_from_a_lost_worker_end_too(no_leaks, gate, tmp_path):
    """They may have begun, and so cannot be cancelled."""
    with FarmExecutor(1, max_attempts=10) as farm:
        path = tmp_path / "begun"
        future = farm.submit(tasks.die_after_noting, str(path))
        wait_until(path.exists, "it has begun once")
        farm.cancel_all()
        assert type(future.exception(DEADLINE)) in (TaskKilledError, CancelledError)
        assert farm.submit(pow, 2, 2).result(DEADLINE) == 4


def test_a_persistent_broadcast_goes_on(farm, gate):
    farm.broadcast(tasks.mark, 7, persistent=True)
    running = [farm.submit(tasks.pass_gate, gate.address) for _ in range(2)]
    gate.wait_for_arrivals(2)

    farm.cancel_all()

    assert wait(running, DEADLINE).not_done == set()
    assert [future.result(DEADLINE) for future in [farm.submit(tasks.look) for _ in range(4)]] == [7] * 4


def test_there_may_be_nothing_to_cancel(farm):
    farm.cancel_all()
    assert farm.statistics().state == "new"
    assert farm.submit(pow, 2, 2).result(DEADLINE) == 4
    farm.cancel_all()
    assert farm.submit(pow, 2, 2).result(DEADLINE) == 4
    farm.shutdown()
    farm.cancel_all()


def test_a_callback_may_cancel_all_and_others_submit_meanwhile(farm, gate):
    running = farm.submit(tasks.pass_gate, gate.address)
    gate.wait_for_arrivals()
    called = threading.Event()
    farm.submit(pow, 2, 2).add_done_callback(lambda future: (farm.cancel_all(), called.set()))
    assert called.wait(DEADLINE)
    assert type(running.exception(DEADLINE)) is TaskKilledError

    over = threading.Event()
    results = []

    def submit():
        while not over.is_set():
            some = [farm.submit(pow, 2, 2) for _ in range(20)]
            results.extend(some)
            wait(some, DEADLINE)

    thread = threading.Thread(target=submit)
    thread.start()
    for _ in range(20):
        farm.cancel_all()
    over.set()
    thread.join(DEADLINE)
    assert wait(results, DEADLINE).not_done == set()
    assert farm.submit(pow, 2, 2).result(DEADLINE) == 4
