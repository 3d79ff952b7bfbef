"""Async functions run to their result in the worker."""

import os

import pytest
from client import async_tasks as tasks
from contract.gate import DEADLINE, Gate

from farm_executor import FarmExecutor, TaskExecutionError, TaskKilledError, TaskTimeoutError, lfarm, start_server

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


@pytest.mark.parametrize("form", tasks.FORMS)
def test_the_future_gets_what_it_returns(farm, form):
    fn = tasks.FORMS[form]
    assert farm.submit(fn, 1).result(DEADLINE) == 2
    for options in ({}, {"chunksize": 7}, {"buffersize": 3}):
        assert list(farm.map(fn, range(30), **options)) == list(range(1, 31))
    assert list(farm.with_options(max_attempts=1).map(fn, range(3))) == [1, 2, 3]
    assert farm.broadcast(fn, 1) == [2]


def test_functions_of_the_program_itself(farm):
    async def local(a):
        return await tasks.add(a)

    assert farm.submit(local, 1).result(DEADLINE) == 2


def test_its_exception_comes_with_its_lines(farm):
    error = farm.submit(tasks.fail, "no").exception(DEADLINE)
    assert (type(error), str(error)) == (ValueError, "no")
    cause = error.__cause__
    assert isinstance(cause, TaskExecutionError)
    assert "raise ValueError(text)" in str(cause.remote_traceback)


@pytest.mark.parametrize("chunksize", [1, 10])
@pytest.mark.filterwarnings("error")
def test_one_item_of_a_map_fails(farm, chunksize):
    results = farm.map(tasks.fail_at, range(30), [25] * 30, chunksize=chunksize)
    assert [next(results) for _ in range(20)] == list(range(20))
    with pytest.raises(ValueError, match="25"):
        list(results)


@pytest.mark.parametrize("how", ["await", "block"])
def test_timeout_and_kill_end_it(farm, how):
    with Gate() as gate:
        future = farm.submit(tasks.hang, gate.address, how)
        gate.wait_for_arrivals()
        assert farm.kill(future)
        assert type(future.exception(DEADLINE)) is TaskKilledError
        future = farm.with_options(timeout=0.2).submit(tasks.hang, gate.address, how)
        assert type(future.exception(DEADLINE)) is TaskTimeoutError


def test_what_it_leaves_behind_ends_with_it(farm):
    assert farm.submit(tasks.leave_behind).result(DEADLINE) is False
    assert farm.submit(tasks.what_lingers).result(DEADLINE) == "cancelled"
    assert farm.submit(tasks.add, 1).result(DEADLINE) == 2


def test_an_initializer_may_be_async():
    with FarmExecutor(1, initializer=tasks.set_up) as farm:
        assert farm.submit(os.getenv, "SET_UP").result(DEADLINE) == "yes"


def test_an_initializer_that_fails_breaks_the_farm():
    with FarmExecutor(1, initializer=tasks.fail, initargs=("not set up",)) as farm:
        assert "not set up" in str(farm.submit(abs, 1).exception(DEADLINE))


def test_lfarm_runs_it_too(server):
    with lfarm.make_kernel([server.address], timeout=DEADLINE) as kernel, lfarm.use_kernel(kernel):
        assert lfarm.pmap(tasks.add, range(10)) == list(range(1, 11))
        channel = lfarm.make_channel()
        lfarm.submit_task(channel, tasks.add, 1)
        assert lfarm.receive_result(channel) == 2


def test_one_that_runs_a_loop_of_its_own_gets_what_asyncio_says(farm):
    with pytest.raises(RuntimeError, match=r"asyncio\.run\(\) cannot be called from a running event loop"):
        farm.submit(tasks.run_within).result(DEADLINE)


def test_an_async_generator_fails_and_says_what_to_do(farm):
    error = farm.submit(tasks.yields).exception(DEADLINE)
    assert type(error) is TypeError
    assert "stream()" in str(error)
