"""Killing what runs in a category, and nothing else."""

import math
import os
import threading
import time
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

import pytest
from client import tasks
from client.tasks import after
from contract.gate import Gate
from contract.tasks import pass_gate

from farm_executor import BrokenFarmError, FarmExecutor, TaskKilledError, TaskTimeoutError, start_server
from farm_executor.client.farm.kills import Kills
from farm_executor.client.farm.stopping import Stopping
from farm_executor.core.options import TaskOptions
from farm_executor.core.task import Kill, Task

DEADLINE = 30.0


def until(condition):
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def begun(path):
    """The pids of the workers that have signed there."""
    return path.read_text().split() if path.exists() else []


def categories(farm):
    return [worker.category for server in farm.statistics().servers for worker in server.workers]


def test_what_runs_is_killed_wherever_it_is_and_the_farm_goes_on(farm, tmp_path):
    path = tmp_path / "begun"
    view = farm.with_options(category="heavy")
    futures = [view.submit(tasks.sign_and_compute, str(path)) for _ in range(2)]
    until(lambda: len(begun(path)) == 2)

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
    future = view.submit(tasks.sign_and_compute, str(path))
    until(lambda: begun(path))
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
            victim = farm.with_options(category="x").submit(tasks.sign_and_compute, str(path))
            behind = [farm.submit(pow, n, 2) for n in range(30)]
            until(lambda: begun(path))
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
    victim = farm.with_options(category="x").submit(tasks.sign_and_compute, str(path))
    until(lambda: begun(path))
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
    futures = [view.submit(tasks.sign_and_compute, str(path)) for _ in range(2)]
    until(lambda: len(begun(path)) == 2)
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
    victim = farm.with_options(category="x").submit(tasks.sign_and_compute, str(path))
    until(lambda: begun(path))
    os.kill(int(path.read_text()), signal.SIGSTOP)
    assert farm.kill_tasks("x") == 1
    assert type(victim.exception(DEADLINE)) is TaskKilledError


def test_a_block_of_map_is_killed_as_a_task(farm, tmp_path):
    path = tmp_path / "begun"
    results = farm.with_options(category="x").map(tasks.sign_and_compute, [str(path)] * 2)
    until(lambda: len(begun(path)) == 2)
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


# -- one task -----------------------------------------------------------------------------------------------


def test_one_task_is_killed_by_its_future(farm, tmp_path):
    path = tmp_path / "begun"
    victim = farm.submit(tasks.sign_and_compute, str(path))
    until(lambda: begun(path))
    assert farm.kill(victim)
    with pytest.raises(TaskKilledError, match="killed while it ran .*worker pid"):
        victim.result(DEADLINE)
    assert not farm.kill(victim)
    assert farm.submit(pow, 2, 2).result(DEADLINE) == 4


def test_a_task_that_runs_is_not_asked_to_end_before_it_is_killed(farm, tmp_path, monkeypatch):
    # One that ends when asked, as a stream does, would be faster than the kill now and then, and return something.
    asked = []
    monkeypatch.setattr(Stopping, "tell", lambda stopping, call: asked.append(call))
    path = tmp_path / "begun"
    victim = farm.submit(tasks.sign_and_compute, str(path))
    until(lambda: begun(path))
    assert farm.kill(victim)
    assert not asked


def test_a_task_that_waits_is_cancelled(no_leaks):
    with FarmExecutor(1) as farm, Gate() as gate:
        running = farm.submit(pass_gate, gate.address)
        gate.wait_for_arrivals()
        waiting = farm.submit(pow, 2, 2)
        assert farm.kill(waiting)
        assert waiting.cancelled()
        gate.open()
        running.result(DEADLINE)


def test_a_task_that_its_worker_has_but_has_not_begun_is_cancelled(no_leaks, tmp_path):
    path = tmp_path / "begun"
    with FarmExecutor(1) as farm, Gate() as gate:
        warm = [farm.submit(pow, n, 2) for n in range(2000)]
        assert [future.result(DEADLINE) for future in warm] == [n**2 for n in range(2000)]
        blocker, between, victim, behind = (
            farm.submit(pass_gate, gate.address),
            farm.submit(pow, 2, 3),
            farm.submit(tasks.sign_and_compute, str(path)),
            farm.submit(pow, 2, 4),
        )
        gate.wait_for_arrivals()
        assert farm.kill(victim)
        gate.open()
        blocker.result(DEADLINE)
        assert between.result(DEADLINE) == 8
        assert behind.result(DEADLINE) == 16
        assert victim.cancelled()


def test_a_task_that_waits_to_be_sent_again_is_killed(no_leaks, tmp_path):
    server = start_server("127.0.0.1", 0, background=True, workers=1)
    path = tmp_path / "begun"
    with FarmExecutor(server.address) as farm:
        victim = farm.submit(tasks.sign_and_compute, str(path))
        until(lambda: begun(path))
        server.end()
        until(lambda: farm.statistics().queued == 1)
        assert farm.kill(victim)
        with pytest.raises(TaskKilledError, match="waited to be sent again"):
            victim.result(DEADLINE)
        assert farm.statistics().queued == 0
        farm.shutdown(wait=False)


def test_a_recalled_tasks_number_on_another_task_kills_nobody_else(no_leaks):
    """An order that comes late may name a number that another task has by then."""
    with FarmExecutor(1) as farm, Gate() as gate:
        innocent = farm.submit(pass_gate, gate.address)
        gate.wait_for_arrivals()
        engine = farm._engine
        ((lane, task),) = [(i, engine._dispatch.scheduler.running_on(i)) for i in engine._lanes]
        seq = engine._dispatch.scheduler.first_seq(lane)
        recalls_ago = (1 << 16) - 1
        stale = Kill(lane, seq, recalls_ago, [(seq, seq)], [Task(0)])
        assert engine._kills.ask([stale]) == 0
        gate.open()
        assert innocent.exception(DEADLINE) is None
        assert farm.statistics().resubmitted == 0, "nor was its worker killed"
        assert task.losses == 0


def test_a_task_is_found_though_numbers_have_changed_since_its_kill_was_ordered(no_leaks):
    with FarmExecutor(1) as farm, Gate() as gate:
        victim = farm.submit(pass_gate, gate.address)
        gate.wait_for_arrivals()
        engine = farm._engine
        ((lane, task),) = [(i, engine._dispatch.scheduler.running_on(i)) for i in engine._lanes]
        seq = engine._dispatch.scheduler.first_seq(lane)
        assert engine._kills.ask([Kill(lane, seq + 5, 9, [(seq + 5, seq + 5)], [task])]) == 1
        with pytest.raises(TaskKilledError):
            victim.result(DEADLINE)


class AtOnce:
    """A reactor that does at once what is posted, in its own thread."""

    def post(self, action):
        action()

    def is_own_thread(self):
        return True

    def after(self, seconds, action):
        self.later = action


def test_a_supervisor_that_has_heard_of_more_recalls_is_told_anew_when_we_have_and_not_before():
    """Else the two would tell each other the same, again and again, for as long as the lane is silent."""
    task, known, told = Task(7), [0], []

    def aim(lane, meant):
        return Kill(lane, 3, known[0], [(3, 3)], [task]) if meant(task) else None

    kills = Kills(AtOnce(), lambda order: told.append(order.recalls) or True, aim)
    kills.ask([aim(1, lambda other: True)], wait=False)
    kills.spared(1, 1, 1)
    kills.spared(1, 1, 1)
    assert told == [0], "we do not know better yet"
    known[0] = 1
    kills.renumbered(1)
    kills.renumbered(1)
    assert told == [0, 1]
    kills.spared(1, 1, 1)
    known[0] = 2
    kills.renumbered(1)
    assert told == [0, 1], "it was spared for good"


def test_so_is_one_that_is_to_end_a_task_whose_time_is_over():
    reactor, task, known, told = AtOnce(), Task(7), [0], []
    task.options = TaskOptions(timeout=0.0)
    kills = Kills(
        reactor,
        lambda order: told.append(order.recalls) or True,
        lambda lane, meant: Kill(lane, 3, known[0], [(3, 3)], [task]) if meant(task) else None,
    )
    kills.watch(1, task)
    reactor.later()
    kills.spared(1, 0, 1)
    kills.spared(1, 0, 1)
    assert told == [0]
    known[0] = 1
    kills.renumbered(1)
    kills.renumbered(1)
    assert told == [0, 1]


def test_what_has_ended_and_what_is_another_executors_is_not_killed(farm):
    done = farm.submit(pow, 2, 2)
    assert done.result(DEADLINE) == 4
    assert not farm.kill(done)
    with ThreadPoolExecutor(1) as threads, Gate() as gate:
        other, waiting = threads.submit(pass_gate, gate.address), threads.submit(pow, 2, 2)
        gate.wait_for_arrivals()
        assert not farm.kill(other)
        assert not farm.kill(waiting)
        assert not farm.kill(Future())
        gate.open()
        assert waiting.result(DEADLINE) == 4


# -- a task's time ------------------------------------------------------------------------------------------


def test_a_task_that_runs_too_long_is_killed_in_whatever_code_and_not_tried_again(farm, tmp_path):
    path = tmp_path / "begun"
    late = farm.with_options(timeout=1.0).submit(tasks.sign_and_compute, str(path))
    others = [farm.submit(pow, n, 2) for n in range(50)]
    with pytest.raises(TaskTimeoutError, match=r"ran for more than its timeout of 1.0 s .*worker pid"):
        late.result(DEADLINE)
    assert isinstance(late.exception(), TimeoutError)
    assert [future.result(DEADLINE) for future in others] == [n**2 for n in range(50)]
    assert len(path.read_text().split()) == 1


def test_the_time_is_that_of_running_not_of_waiting(no_leaks):
    with FarmExecutor(1) as farm:
        view = farm.with_options(timeout=1.5)
        futures = [view.submit(time.sleep, 0.5) for _ in range(6)]
        assert [future.result(DEADLINE) for future in futures] == [None] * 6


def test_each_has_its_own_time(no_leaks):
    with FarmExecutor(1) as farm:
        futures = [
            farm.with_options(timeout=t).submit(time.sleep, s) for t, s in [(9, 0.1), (0.2, 60), (9, 0.1)] * 3
        ]
        kinds = [type(future.exception(DEADLINE)) for future in futures]
        assert kinds == [type(None), TaskTimeoutError, type(None)] * 3
        assert farm.statistics().killed == 3


def test_the_items_of_a_map_have_their_time_each(farm):
    view = farm.with_options(timeout=1.0)
    results = view.map(time.sleep, [0.01] * 40 + [60.0] + [0.01] * 40)
    for _ in range(40):
        assert next(results) is None
    with pytest.raises(TaskTimeoutError):
        next(results)
    assert list(view.map(pow, range(300), [2] * 300)) == [n**2 for n in range(300)]


def test_many_short_tasks_with_a_time_leave_nothing_behind(farm):
    view = farm.with_options(timeout=3600)
    assert [f.result(DEADLINE) for f in [view.submit(pow, n, 2) for n in range(3000)]] == [
        n**2 for n in range(3000)
    ]
    assert len(farm._engine._reactor._timers) < 20


@pytest.mark.parametrize("timeout", [3_000_000, 1e12, math.inf])
def test_a_time_may_be_longer_than_a_selector_can_wait(no_leaks, timeout):
    with FarmExecutor(1) as farm:
        assert farm.with_options(timeout=timeout).submit(after, 0.1, 5).result(DEADLINE) == 5
        assert farm.submit(after, 0.1, 5).result(3_000_000) == 5


@pytest.mark.parametrize(
    ("timeout", "error"),
    [(0, ValueError), (-1, ValueError), ("1", TypeError), (True, TypeError), (math.nan, ValueError)],
)
def test_a_time_that_is_none_is_refused(timeout, error):
    with pytest.raises(error, match="timeout"):
        FarmExecutor(1).with_options(timeout=timeout)


# -- all workers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["kill_workers", "terminate_workers"])
def test_all_workers_are_killed_and_the_executor_is_shut_down(farm, tmp_path, method):
    path = tmp_path / "begun"
    running = [farm.submit(tasks.sign_and_compute, str(path)) for _ in range(2)]
    waiting = [farm.submit(pow, 2, 2) for _ in range(10)]
    until(lambda: len(begun(path)) == 2)
    getattr(farm, method)()
    assert {type(future.exception(DEADLINE)) for future in running} == {BrokenFarmError}
    for future in waiting:
        with pytest.raises((CancelledError, BrokenFarmError)):
            future.result(DEADLINE)
    with pytest.raises((RuntimeError, BrokenFarmError)):
        farm.submit(pow, 2, 2)
    for pid in map(int, path.read_text().split()):
        until(lambda pid=pid: not _alive(pid))
    getattr(farm, method)()


def test_before_the_first_task_there_are_none_to_kill():
    farm = FarmExecutor(1)
    farm.kill_workers()
    with pytest.raises(RuntimeError):
        farm.submit(pow, 2, 2)


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
