"""``max_tasks_per_child`` under load: every task runs, once, and no worker runs more than it may."""

import gc
import os
from collections import Counter

import pytest
from client import tasks

from farm_executor import FarmExecutor, start_server

DEADLINE = 60.0
LIMIT = 3


@pytest.fixture(params=["embedded", "servers"])
def recycling(request, no_leaks):
    """A farm with two workers that are replaced after three tasks, each way; its tasks run once or not at all."""
    options = {"max_tasks_per_child": LIMIT, "max_attempts": 1}
    if request.param == "embedded":
        with FarmExecutor(2, **options) as farm:
            yield farm
    else:
        with (
            start_server("127.0.0.1", 0, background=True, workers=1) as one,
            start_server("127.0.0.1", 0, background=True, workers=1) as two,
            FarmExecutor([one.address, two.address], **options) as farm,
        ):
            yield farm


def signed(path):
    """For each worker what it ran."""
    return [line.split() for line in path.read_text().splitlines()]


def check(path, numbers):
    lines = signed(path)
    assert sorted(int(number) for _, number in lines) == sorted(numbers), "each has run once"
    assert max(Counter(pid for pid, _ in lines).values()) <= LIMIT


def test_short_tasks_and_results_of_megabytes_all_come(recycling, tmp_path):
    path = tmp_path / "signed"
    sizes = [3_000_000 if n % 7 == 3 else 10 for n in range(150)]
    futures = [recycling.submit(tasks.sign_and_make, str(path), n, size) for n, size in enumerate(sizes)]
    assert [len(future.result(DEADLINE)) for future in futures] == sizes
    check(path, range(150))


def test_what_waits_behind_a_long_task_is_recalled_and_none_is_stranded(recycling, tmp_path):
    path = tmp_path / "signed"
    seconds = [0.05 if n % 10 == 0 else 0.0 for n in range(120)]
    futures = [recycling.submit(tasks.sign_slowly, str(path), n, each) for n, each in enumerate(seconds)]
    assert [future.result(DEADLINE) for future in futures] == list(range(120))
    check(path, range(120))


def test_broadcasts_in_the_midst_reach_every_worker(recycling, tmp_path):
    path = tmp_path / "signed"
    recycling.broadcast(tasks.mark, "persistent", persistent=True)
    futures = []
    for round in range(10):
        futures += [recycling.submit(tasks.sign_and_look, str(path), 10 * round + n) for n in range(10)]
        assert len(set(recycling.broadcast(os.getpid))) == 2
    assert {future.result(DEADLINE) for future in futures} == {"persistent"}
    check(path, range(100))


def test_after_a_shutdown_that_does_not_wait_all_is_finished(no_leaks, tmp_path):
    """CPython issue 152978: the pool's last worker reaches its limit, and nobody starts another."""
    path = tmp_path / "signed"
    farm = FarmExecutor(1, max_tasks_per_child=1, max_attempts=1)
    futures = [farm.submit(tasks.sign_slowly, str(path), n, 0.0) for n in range(12)]
    farm.shutdown(wait=False)
    assert [future.result(DEADLINE) for future in futures] == list(range(12))
    assert len({pid for pid, _ in signed(path)}) == 12


def test_after_the_executor_has_been_collected_all_is_finished(no_leaks, tmp_path):
    """CPython issue 152967."""
    path = tmp_path / "signed"
    farm = FarmExecutor(1, max_tasks_per_child=1, max_attempts=1)
    futures = [farm.submit(tasks.sign_slowly, str(path), n, 0.0) for n in range(12)]
    del farm
    gc.collect()
    assert [future.result(DEADLINE) for future in futures] == list(range(12))
