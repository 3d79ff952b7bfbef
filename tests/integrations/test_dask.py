"""dask's collections compute on a farm by its own setting ``scheduler``, which takes any executor."""

import operator
import os

import pytest

from farm_executor import FarmExecutor, start_server

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a farm's servers need fork")
dask = pytest.importorskip("dask")


@pytest.fixture(scope="module")
def farm():
    with start_server("127.0.0.1", 0, background=True, workers=2) as server, FarmExecutor(server.address) as farm:
        farm.connect()
        yield farm


@pytest.fixture(autouse=True)
def _computes_on(farm):
    before = farm.statistics().succeeded
    with dask.config.set(scheduler=farm):
        yield
    assert farm.statistics().succeeded > before


def test_delayed_calls(farm):
    pids = dask.compute(*(dask.delayed(os.getpid, pure=False)() for _ in range(10)))
    total = dask.delayed(sum)([dask.delayed(operator.mul)(i, i) for i in range(20)])

    workers = {worker.pid for server in farm.statistics().servers for worker in server.workers}
    assert set(pids) <= workers
    assert total.compute() == sum(i * i for i in range(20))


def test_arrays():
    pytest.importorskip("numpy")
    array = pytest.importorskip("dask.array")
    ones = array.ones((400, 400), chunks=(100, 100))

    assert float((ones @ ones.T).sum().compute()) == 400.0**3


def test_bags():
    bag = pytest.importorskip("dask.bag")
    numbers = bag.from_sequence(range(100), npartitions=10)

    assert sorted(numbers.map(lambda x: x * x).filter(lambda x: x % 2 == 0).compute()) == [
        x * x for x in range(100) if x % 2 == 0
    ]
    assert dict(numbers.map(lambda x: x % 3).frequencies().compute()) == {0: 34, 1: 33, 2: 33}


def test_an_error_is_the_tasks_own():
    with pytest.raises(ZeroDivisionError):
        dask.delayed(operator.truediv)(1, 0).compute()
    assert dask.delayed(abs)(-1).compute() == 1
