"""What a task reports of itself reaches its future, the last report before the result."""

import os

import pytest
from client import progress_tasks as tasks
from contract.gate import Gate
from server.processes import wait_until

from farm_executor import FarmExecutor, Progress, current_task, start_server

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="a server needs fork"),
    pytest.mark.usefixtures("no_leaks"),
]


@pytest.fixture(scope="module")
def server():
    with start_server("127.0.0.1", 0, background=True, workers=1) as server:
        yield server


@pytest.fixture(params=["embedded", "served"])
def farm(request, server):
    with FarmExecutor(None if request.param == "embedded" else server.address, max_workers=1) as farm:
        yield farm


def test_the_last_report_is_there_before_the_result(farm):
    for total in (1, 7, 1000):
        future = farm.submit(tasks.count, total)
        assert future.result() == total
        assert future.progress == Progress(total, total, f"step {total}")


def test_each_task_of_a_batch_has_its_own(farm):
    futures = [farm.submit(tasks.report, n) for n in range(300)]
    assert [(future.result(), future.progress.done) for future in futures] == [(None, n) for n in range(300)]


def test_a_report_comes_although_the_task_reports_no_more(farm):
    with Gate() as gate:
        future = farm.submit(tasks.report_once_and_pass, gate.address)
        wait_until(lambda: future.progress == Progress(2, 2, "at the gate"), "the latest report")
        gate.open()
        future.result()


def test_callbacks_see_some_reports_and_the_last_before_the_end(farm):
    seen = []
    future = farm.submit(tasks.count, 50, 0.01)
    future.add_progress_callback(lambda future: seen.append(future.progress.done))
    future.add_done_callback(lambda future: seen.append("done"))
    future.result()
    wait_until(lambda: seen[-1:] == ["done"], "the callback of the end")
    assert seen[-2] == 50
    assert seen[:-1] == sorted(seen[:-1])
    assert len(seen) < 50, "not each is sent"


def test_a_callback_that_is_late_is_called_at_once(farm):
    future = farm.submit(tasks.count, 3)
    future.result()
    seen = []
    future.add_progress_callback(lambda future: seen.append(future.progress.done))
    assert seen == [3]


def test_a_callback_that_raises_is_logged_and_harms_nobody(farm, caplog):
    future = farm.submit(tasks.count, 20, 0.01)
    future.add_progress_callback(lambda future: 1 / 0)
    assert future.result() == 20
    assert "ZeroDivisionError" in caplog.text


def test_a_forked_child_reports_nothing(farm):
    future = farm.submit(tasks.report_in_a_fork)
    future.result()
    assert future.progress is None


@pytest.mark.parametrize("args", [("x",), (1, "y"), (1, 2, 5), (True,), (None,), (1j,)])
def test_a_report_that_is_none_is_an_error_of_the_task(farm, args):
    with pytest.raises(TypeError):
        farm.submit(tasks.report, *args).result()


@pytest.mark.parametrize(
    ("args", "progress"),
    [
        ((float("inf"), 3), Progress(float("inf"), 3)),
        ((5, 3), Progress(5, 3)),
        ((0.5,), Progress(0.5)),
        ((10**30,), Progress(1e30)),
        ((1, None, "x" * 1000), Progress(1, None, "x" * 200)),
        ((1, None, "\x1b[2J\n"), Progress(1, None, "?[2J ")),
    ],
)
def test_unusual_reports_arrive(farm, args, progress):
    future = farm.submit(tasks.report, *args)
    future.result()
    assert future.progress == progress


def test_outside_a_worker_nothing_happens():
    current_task().report(1, 2, "alone")
    with pytest.raises(TypeError):
        current_task().report("x")


def test_a_callback_must_be_callable(farm):
    with pytest.raises(TypeError, match="fn must be a callable"):
        farm.submit(abs, 1).add_progress_callback(5)
