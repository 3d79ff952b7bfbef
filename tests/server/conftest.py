"""One server for all tests of this folder that neither end it nor need it for themselves."""

import gc
from collections.abc import Iterator

import pytest
from server.serving import Serving


@pytest.fixture(scope="package")
def serving() -> Iterator[Serving]:
    with Serving() as server:
        yield server


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is loaded by now stays: so that looking for leaks, test by test, need not look through it each time."""
    gc.collect()
    gc.freeze()
