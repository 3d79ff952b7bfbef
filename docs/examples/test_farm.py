"""A farm for a suite of tests, started once."""

import pytest

from farm_executor import FarmExecutor


@pytest.fixture(scope="session")
def farm():
    with FarmExecutor(2) as farm:
        yield farm


def test_squares(farm):
    assert list(farm.map(lambda x: x * x, range(4))) == [0, 1, 4, 9]


def test_a_task_that_fails(farm):
    with pytest.raises(ZeroDivisionError):
        farm.submit(lambda: 1 / 0).result()
