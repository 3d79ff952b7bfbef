"""A farm on whatever cluster the tests run beside: two servers with two workers each."""

import os

import pytest
from engines.alone import ON
from server.processes import wait_until

from farm_executor import FarmExecutor

STARTS = 60.0  # seconds within which a cluster has started what it was asked for, even on a busy machine


def both_up(farm):
    """Wait until both servers have come."""
    farm.submit(abs, -1)
    wait_until(lambda: sum(one.up for one in farm.statistics().servers) == 2, "both have come", STARTS)


@pytest.fixture(scope="package")
def address():
    return f"{os.environ[ON]}?workers=4&per=2"


@pytest.fixture
def farm(address, no_leaks):
    with FarmExecutor(address, resume_timeout=2) as farm:
        both_up(farm)
        yield farm
