"""A farm with two workers, each way."""

import pytest

from farm_executor import FarmExecutor, start_server


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
