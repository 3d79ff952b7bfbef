"""One server for all tests of this folder that do it no harm."""

from collections.abc import Iterator

import pytest
from server.serving import Serving


@pytest.fixture(scope="package")
def serving() -> Iterator[Serving]:
    with Serving(before="import faults.tasks") as server:
        yield server
