"""Items of `map` that travel in blocks: as if each were a task of its own."""

import os
import pickle
import threading
import time
import tracemalloc

import numpy as np
import pytest
from client import tasks
from contract.gate import Gate
from hypothesis import given, settings
from hypothesis import strategies as st
from server.processes import wait_until

from farm_executor import FarmExecutor, TaskExecutionError, WorkerLostError
from farm_executor.client.map import MAX_BYTES, MAX_ITEMS, SHARE
from farm_executor.data.blocks import run_block

DEADLINE = 30.0
MANY = 2000


@pytest.fixture(scope="module")
def farm():
    with FarmExecutor(2) as farm:
        yield farm


@pytest.fixture
def sizes(farm, monkeypatch):
    """How many items each task of a map has, as the map was submitted.

    What goes on because its worker was held up is not counted: that depends on what else the machine does.
    """
    seen = []
    submit = type(farm.submit(pow, 1, 1) and farm._engine).submit

    def noted(engine, fn, args, kwargs, options, **more):
        if not more.get("goes_on"):
            seen.append(len(args[0]) if more.get("before_settling") else 1)
        return submit(engine, fn, args, kwargs, options, **more)

    monkeypatch.setattr(type(farm._engine), "submit", noted)
    return seen


def test_many_short_items_travel_in_few_blocks(farm, sizes):
    assert list(farm.map(abs, range(-MANY, 0))) == list(range(MANY, 0, -1))

    assert sum(sizes) == MANY
    assert len(sizes) < MANY / 20
    assert max(sizes) <= MAX_ITEMS
    assert sizes[: 2 * SHARE] == [1] * 2 * SHARE, "the first ones go alone"
    so_far = 0
    for size in sizes:
        assert size <= max(1, so_far / (2 * SHARE)), "no worker gets a large share"
        so_far += size


def test_few_items_go_alone(farm, sizes):
    assert list(farm.map(abs, range(2 * SHARE))) == list(range(2 * SHARE))

    assert sizes == [1] * 2 * SHARE


def test_large_items_make_small_blocks(farm, sizes):
    data = [bytes([number % 256]) * 10_000 for number in range(300)]

    assert list(farm.map(len, data)) == [10_000] * 300
    assert 1 < max(sizes) <= MAX_BYTES // 10_000 + 1
    sizes.clear()
    assert list(farm.map(len, [[item] for item in data])) == [1] * 300
    assert 1 < max(sizes) <= MAX_BYTES // 10_000 + 1


def test_items_that_are_slow_in_coming_do_not_wait_for_company(farm, sizes):
    def slow():
        for number in range(60):
            time.sleep(0.002)
            yield number

    assert list(farm.map(abs, slow())) == list(range(60))
    assert max(sizes) <= 2


def test_long_items_are_spread_over_all_workers(farm):
    """Were a block run to its end, one worker would have most of the last items."""
    seen = list(farm.map(tasks.pid_after, [0.0] * 60 + [0.03] * 40))

    last = seen[-40:]
    assert min(last.count(pid) for pid in set(last)) >= 12
    assert len(set(last)) == 2


def test_what_is_left_of_a_block_goes_before_what_is_behind_it(farm, tmp_path):
    book = tmp_path / "book"
    count = 200

    assert list(farm.map(tasks.sign_after, [str(book)] * count, [0.004] * count, range(count))) == list(
        range(count)
    )
    order = [int(line) for line in book.read_text().split()]
    assert sorted(order) == list(range(count)), "each item once"
    late = [abs(place - number) for place, number in enumerate(order)]
    assert max(late) < count / 2, "in the order of the items, more or less"


@pytest.mark.parametrize("place", [0, 3, 50, 119, 500, MANY - 1])
def test_an_error_comes_at_its_place_and_the_item_is_run_once(farm, place, tmp_path):
    book = tmp_path / "book"
    results = farm.map(tasks.fail_at, [str(book)] * MANY, [place] * MANY, range(MANY))

    for number in range(place):
        assert next(results) == number
    with pytest.raises(ZeroDivisionError) as caught:
        next(results)
    assert list(results) == []
    assert book.read_text() == "failed\n"
    cause = caught.value.__cause__
    assert type(cause) is TaskExecutionError
    assert "in fail_at" in cause.remote_traceback
    assert "run_block" not in cause.remote_traceback
    assert cause.pid > 0
    assert cause.server.startswith("unix:")


@pytest.mark.parametrize("place", [0, 50, 500])
def test_an_item_that_cannot_be_pickled_fails_alone(farm, place):
    items = [*range(place), threading.Lock(), *range(place, MANY)]
    results = farm.map(tasks.echo, items)

    for number in range(place):
        assert next(results) == number
    with pytest.raises(TypeError, match="pickle"):
        next(results)


@pytest.mark.parametrize("place", [0, 50, 500])
def test_a_result_that_cannot_be_pickled_fails_alone(farm, place):
    results = farm.map(tasks.lock_at, [place] * MANY, range(MANY))

    for number in range(place):
        assert next(results) == number
    with pytest.raises(TypeError, match="cannot pickle") as caught:
        next(results)
    assert "result, of type lock, could not be pickled" in str(caught.value.__cause__)
    assert type(caught.value.__cause__) is TaskExecutionError


@pytest.mark.parametrize("place", [0, 50, 500])
def test_a_result_that_cannot_be_rebuilt_fails_alone(farm, place):
    results = farm.map(tasks.unreadable_at, [place] * MANY, range(MANY))

    for number in range(place):
        assert next(results) == number
    with pytest.raises(TaskExecutionError, match="could not be rebuilt here: ValueError: not here"):
        next(results)


def test_results_of_all_kinds_come_as_they_are(farm):
    values = [1, "a", None, (1, 2), [3], {"a": 1}, b"x" * 100_000, tasks.Point(1, 2)] * 100

    assert list(farm.map(tasks.echo, values)) == values


def test_several_iterables_and_functions_by_value(farm):
    offset = 5

    assert list(farm.map(lambda a, b: a * b + offset, range(1000), range(1000))) == [n * n + 5 for n in range(1000)]


def test_an_item_that_kills_its_worker_costs_no_other(tmp_path):
    book = tmp_path / "book"
    with FarmExecutor(2, max_attempts=3) as farm:
        results = farm.map(tasks.die_at, [str(book)] * MANY, [700] * MANY, range(MANY))
        for number in range(700):
            assert next(results) == number
        with pytest.raises(WorkerLostError, match="exited with code 3"):
            next(results)
        assert len(book.read_text().split()) == 3, "it has begun as often as it may"


def test_all_items_survive_a_worker_that_is_killed_once(tmp_path):
    with FarmExecutor(2) as farm:
        flag = tmp_path / "flag"

        assert list(farm.map(tasks.die_once_at, [str(flag)] * MANY, [700] * MANY, range(MANY))) == list(range(MANY))
        assert flag.exists()
        numbers = farm.statistics()
        assert numbers.lost == 0
        assert numbers.resubmitted >= 1


def test_items_that_may_be_attempted_once_go_alone(farm, sizes):
    once = farm.with_options(max_attempts=1)

    assert list(once.map(abs, range(300))) == list(range(300))
    assert set(sizes) == {1}


def test_items_are_counted_where_workers_are_replaced_after_so_many():
    with FarmExecutor(1, max_tasks_per_child=50) as farm:
        pids = list(farm.map(tasks.pid_after, [0] * 200))

    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [50] * 4


def test_the_rest_goes_on_after_a_shutdown(no_leaks):
    farm = FarmExecutor(2)
    results = farm.map(tasks.after, [0.003] * 150, range(150))
    farm.shutdown(wait=False)

    assert list(results) == list(range(150))
    farm.shutdown()


def test_a_shutdown_that_cancels_cancels_the_rest_too(no_leaks, tmp_path):
    book = tmp_path / "book"
    farm = FarmExecutor(1)
    results = farm.map(tasks.sign_after, [str(book)] * MANY, [0.001] * MANY, range(MANY))
    assert next(results) == 0
    farm.shutdown(cancel_futures=True)

    assert len(book.read_text().split()) < MANY


def test_closing_the_iterator_cancels_what_was_cut_too(no_leaks, tmp_path):
    book = tmp_path / "book"
    with FarmExecutor(1) as farm:
        results = farm.map(tasks.sign_after, [str(book)] * MANY, [0.003] * MANY, range(MANY))
        assert [next(results) for _ in range(100)] == list(range(100))
        results.close()

    assert len(book.read_text().split()) < MANY / 2


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.sampled_from([0.0, 0.0, 0.0, 0.0, 0.004, 0.012]), max_size=150),
    st.none() | st.integers(0, 160),
)
def test_whatever_the_items_take_the_results_are_those_of_the_builtin(farm, durations, bad):
    items = list(enumerate(durations))
    expected = [n for n, _ in items] if bad is None or bad >= len(items) else list(range(bad))
    got = []
    results = farm.map(tasks.after_unless, durations, range(len(items)), [bad] * len(items))
    try:
        for result in results:
            got.append(result)
    except ZeroDivisionError:
        assert bad is not None
        assert bad < len(items)

    assert got == expected


def test_each_item_has_its_own_copy_of_what_it_may_change(farm):
    shared = [0]

    assert list(farm.map(tasks.append_one, [shared] * MANY)) == [[0, 1]] * MANY
    assert list(farm.map(tasks.append_one, ([shared, shared] for _ in range(200)))) == [[[0], [0], 1]] * 200


def test_items_are_what_they_were_when_map_was_called(farm):
    items = [[number] for number in range(400)]
    results = farm.map(tasks.after, [0.002] * 400, items)
    for item in items:
        item.append("changed")

    assert list(results) == [[number] for number in range(400)]


def test_an_item_that_cannot_be_read_fails_alone(farm):
    items = [*range(500), NotReadable(), *range(MANY)]
    results = farm.map(tasks.echo, items)

    for number in range(500):
        assert next(results) == number
    with pytest.raises(TaskExecutionError, match="could not be read on the worker: ValueError: not here"):
        next(results)


class NotReadable:
    def __reduce__(self):
        return tasks.refuse, (os.getpid(),)


# -- what is counted, and what is kept ---------------------------------------------------------------------


def ended(numbers):
    return numbers.succeeded + numbers.failed + numbers.cancelled + numbers.lost + numbers.killed


def test_every_figure_counts_calls():
    with FarmExecutor(2) as farm:
        assert list(farm.map(abs, range(MANY))) == list(range(MANY))
        numbers = farm.statistics()

    assert numbers.submitted == numbers.succeeded == MANY
    assert sum(worker.tasks_done for worker in numbers.servers[0].workers) == MANY


def test_what_a_worker_leaves_of_a_block_is_not_counted_twice():
    with FarmExecutor(2) as farm:
        assert list(farm.map(tasks.after, [0.003] * 150, range(150))) == list(range(150))
        numbers = farm.statistics()

    assert numbers.submitted == numbers.succeeded == 150
    assert sum(worker.tasks_done for worker in numbers.servers[0].workers) == 150


@pytest.mark.parametrize("task", [tasks.fail_at, tasks.lock_at])
def test_an_item_that_fails_within_a_block_is_one_failure(task, tmp_path):
    firsts = [[str(tmp_path / "book")] * MANY] if task is tasks.fail_at else []
    with FarmExecutor(2) as farm, pytest.raises((ZeroDivisionError, TypeError)):
        list(farm.map(task, *firsts, [700] * MANY, range(MANY)))
    numbers = farm.statistics()

    assert numbers.failed == 1
    assert numbers.succeeded >= 700
    assert ended(numbers) == numbers.submitted == MANY


def test_what_waits_and_what_runs_is_counted_by_calls():
    with Gate() as gate, FarmExecutor(1) as farm:
        held = farm.submit(tasks.pass_gate, gate.address, None)
        results = farm.map(abs, range(MANY))
        numbers = farm.statistics()
        assert numbers.queued + numbers.running == numbers.submitted == MANY + 1
        assert numbers.running == sum(worker.outstanding for worker in numbers.servers[0].workers)
        gate.open()
        assert list(results) == list(range(MANY))
        held.result(DEADLINE)


def test_the_items_of_a_lost_block_are_moved_and_one_is_lost(tmp_path):
    with FarmExecutor(2, max_attempts=2) as farm, pytest.raises(WorkerLostError):
        list(farm.map(tasks.die_at, [str(tmp_path / "book")] * MANY, [700] * MANY, range(MANY)))
    numbers = farm.statistics()

    assert numbers.lost == 1
    assert numbers.resubmitted > 1, "the other items of its block"
    assert ended(numbers) == numbers.submitted == MANY


def test_a_cancelled_map_is_counted_by_calls(tmp_path):
    with FarmExecutor(1) as farm:
        results = farm.map(tasks.sign_after, [str(tmp_path / "book")] * MANY, [0.002] * MANY, range(MANY))
        assert next(results) == 0
        farm.shutdown(cancel_futures=True)
    numbers = farm.statistics()

    assert numbers.cancelled > MANY / 2
    assert ended(numbers) == numbers.submitted == MANY


KINDS = {
    "plain, small": lambda number: bytes([number]) * 20_000,
    "plain, large": lambda number: bytes([number]) * 200_000,
    "a list": lambda number: [bytes([number]) * 200_000],
    "an array": lambda number: np.full(200_000, number, np.uint8),
}


@pytest.mark.parametrize("budget", [None, 1_000_000])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_kept_of_an_item_that_has_ended(kind, budget):
    make, count = KINDS[kind], 100
    with FarmExecutor(2, max_pending_bytes=budget) as farm:
        assert farm.submit(abs, -1).result(DEADLINE) == 1
        tracemalloc.start()
        try:
            results = farm.map(len, (make(number) for number in range(count)))
            wait_until(lambda: farm.statistics().succeeded == count + 1, "all have ended")
            kept, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert kept < 1_000_000, "none of its results has been taken"
        if budget is not None:
            assert peak < 4 * budget
        assert sum(results) == sum(len(make(number)) for number in range(count))


# -- the worker's side ------------------------------------------------------------------------------------


def test_a_block_ends_when_its_time_is_over():
    outcome = run_block(time.sleep, [(0.004,)] * 100, False)

    assert 1 <= outcome.count < 20
    assert outcome.failure is None


def test_a_block_with_a_long_item_has_at_least_that():
    assert run_block(time.sleep, [(0.02,), (0,)], False).count == 1


def test_values_that_may_not_be_rebuilt_travel_alone():
    assert run_block(abs, [(-1,), (2,)], False).together
    mixed = run_block(tasks.echo, [(1,), ([2],), (bytes(70_000),)], False)

    assert (mixed.count, mixed.together, len(mixed.pickles)) == (3, False, 3)
    copy = pickle.loads(pickle.dumps(mixed, 5))
    assert [bytes(parts[0])[:2] for parts in copy.pickles] == [b"\x80\x05"] * 3
