"""Killing what runs in a category, and nothing else."""

import os
import threading
import time

import pytest
from client import tasks
from contract.gate import Gate
from contract.tasks import pass_gate

from farm_executor import FarmExecutor, TaskKilledError, start_server

DEADLINE = 30.0


@pytest.fixture(params=["embedded", "servers"])
def farm(request, no_leaks):
    if request.param == "embedded":
        with FarmExecutor(2) as farm:
            yield farm
    else:
        with (
            start_server("127.0.0.1", 0, background=True, workers=1) as one,
            start_server("127.0.0.1", 0, background=True, workers=1) as two,
            FarmExecutor([one.address, two.address]) as farm,
        ):
            yield farm


def until(condition):
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def categories(farm):
    return [worker.category for server in farm.statistics().servers for worker in server.workers]


def sign_and_compute(path):
    """In C, holding the interpreter's lock."""
    tasks.append(path, str(os.getpid()))
    return sum(range(10**14))


def test_what_runs_is_killed_wherever_it_is_and_the_farm_goes_on(farm, tmp_path):
    path = tmp_path / "begun"
    view = farm.with_options(category="heavy")
    futures = [view.submit(sign_and_compute, str(path)) for _ in range(2)]
    until(lambda: path.exists() and len(path.read_text().split()) == 2)

    assert sorted(categories(farm)) == ["heavy", "heavy"]
    assert farm.kill_tasks("heavy", dry_run=True) == 2
    assert farm.kill_tasks("heavy") == 2

    for future in futures:
        with pytest.raises(TaskKilledError, match="its category is 'heavy' .*worker pid"):
            future.result(DEADLINE)
    assert [farm.submit(pow, n, 2).result(DEADLINE) for n in range(20)] == [n**2 for n in range(20)]
    assert farm.statistics().killed == 2
    assert farm.statistics().lost == 0
    assert farm.kill_tasks("heavy") == 0


def test_neither_other_categories_nor_what_is_queued_are_touched(farm):
    with Gate() as gate:
        victim = farm.with_options(category="victim").submit(pass_gate, gate.address)
        gate.wait_for_arrivals()
        other = farm.with_options(category="other").submit(pass_gate, gate.address)
        gate.wait_for_arrivals()
        queued = [farm.with_options(category="victim").submit(pow, n, 2) for n in range(50)]
        assert farm.kill_tasks("victim") == 1
        with pytest.raises(TaskKilledError):
            victim.result(DEADLINE)
        assert [future.result(DEADLINE) for future in queued] == [n**2 for n in range(50)]
        assert not other.done()
        gate.open()
        other.result(DEADLINE)


def test_a_task_is_not_run_again_after_its_kill_however_many_attempts_it_has(farm, tmp_path):
    path = tmp_path / "begun"
    view = farm.with_options(category=("any", "hashable"), max_attempts=5)
    future = view.submit(sign_and_compute, str(path))
    until(path.exists)
    assert farm.kill_tasks(("any", "hashable")) == 1
    with pytest.raises(TaskKilledError):
        future.result(DEADLINE)
    assert farm.submit(pow, 2, 2).result(DEADLINE) == 4
    assert len(path.read_text().split()) == 1


def test_tasks_that_may_run_once_on_the_same_lane_survive(no_leaks, tmp_path):
    """They were sent along with the victim, but not begun."""
    path = tmp_path / "begun"
    with FarmExecutor(1, max_attempts=1) as farm:
        warm = [farm.submit(pow, n, 2) for n in range(300)]
        assert [future.result(DEADLINE) for future in warm] == [n**2 for n in range(300)]
        for _ in range(5):
            before = [farm.submit(pow, n, 2) for n in range(30)]
            victim = farm.with_options(category="x").submit(sign_and_compute, str(path))
            behind = [farm.submit(pow, n, 2) for n in range(30)]
            until(path.exists)
            path.unlink()
            assert farm.kill_tasks("x") == 1
            assert type(victim.exception(DEADLINE)) is TaskKilledError
            assert [future.result(DEADLINE) for future in before + behind] == [n**2 for n in range(30)] * 2


def test_a_kill_in_the_midst_of_short_tasks_never_hits_one_of_another_category(farm, tmp_path):
    """Each may be killed or not; but what is killed is of that category, and nothing runs twice."""
    once = farm.with_options(max_attempts=1)
    for n in range(40):
        path = tmp_path / str(n)
        futures = [
            (category, once.with_options(category=category).submit(tasks.append, str(path), f"{i}"))
            for i, category in enumerate(["a", "b"] * 30)
        ]
        killed = farm.kill_tasks("a")
        errors = [(category, type(future.exception(DEADLINE))) for category, future in futures]
        assert {error for category, error in errors if category == "b"} == {type(None)}
        assert {error for category, error in errors if category == "a"} <= {type(None), TaskKilledError}
        assert killed == [error for _, error in errors].count(TaskKilledError)
        done = path.read_text().split()
        assert len(done) == len(set(done)) >= 60 - killed


def test_it_concerns_its_own_farm_alone(no_leaks):
    with (
        start_server("127.0.0.1", 0, background=True, workers=1) as server,
        FarmExecutor([server.address]) as mine,
        FarmExecutor([server.address]) as theirs,
        Gate() as gate,
    ):
        other = theirs.with_options(category="x").submit(pass_gate, gate.address)
        gate.wait_for_arrivals()
        victim = mine.with_options(category="x").submit(pass_gate, gate.address)
        gate.wait_for_arrivals()
        assert mine.kill_tasks("x") == 1
        assert type(victim.exception(DEADLINE)) is TaskKilledError
        assert not other.done()
        gate.open()
        other.result(DEADLINE)


def test_a_callback_may_kill_and_does_not_wait(farm, tmp_path):
    path = tmp_path / "begun"
    victim = farm.with_options(category="x").submit(sign_and_compute, str(path))
    until(path.exists)
    counts = []
    called = threading.Event()

    def kill(future):
        counts.append(farm.kill_tasks("x"))
        called.set()

    farm.submit(time.sleep, 0.1).add_done_callback(kill)
    assert called.wait(DEADLINE)
    assert counts == [1]
    assert type(victim.exception(DEADLINE)) is TaskKilledError


def test_two_who_kill_the_same_tasks_do_not_count_them_twice(farm, tmp_path):
    path = tmp_path / "begun"
    view = farm.with_options(category="x")
    futures = [view.submit(sign_and_compute, str(path)) for _ in range(2)]
    until(lambda: path.exists() and len(path.read_text().split()) == 2)
    counts = []
    threads = [threading.Thread(target=lambda: counts.append(farm.kill_tasks("x"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert len(counts) == 4
    assert max(counts) <= 2
    for future in futures:
        assert type(future.exception(DEADLINE)) is TaskKilledError
    assert farm.statistics().killed == 2


def test_a_worker_that_somebody_has_stopped_can_be_killed(farm, tmp_path):
    import signal

    path = tmp_path / "begun"
    victim = farm.with_options(category="x").submit(sign_and_compute, str(path))
    until(path.exists)
    os.kill(int(path.read_text()), signal.SIGSTOP)
    assert farm.kill_tasks("x") == 1
    assert type(victim.exception(DEADLINE)) is TaskKilledError


def test_a_block_of_map_is_killed_as_a_task(farm, tmp_path):
    path = tmp_path / "begun"
    results = farm.with_options(category="x").map(sign_and_compute, [str(path)] * 2)
    until(lambda: path.exists() and len(path.read_text().split()) == 2)
    assert farm.kill_tasks("x") == 2
    with pytest.raises(TaskKilledError):
        next(results)


def test_no_category_is_refused(farm):
    with pytest.raises(ValueError, match="category"):
        farm.kill_tasks(None)


def test_before_the_first_task_and_after_the_end_there_is_nothing_to_kill():
    farm = FarmExecutor(1)
    assert farm.kill_tasks("x") == 0
    farm.submit(pow, 2, 2).result(DEADLINE)
    farm.shutdown()
    assert farm.kill_tasks("x") == 0
