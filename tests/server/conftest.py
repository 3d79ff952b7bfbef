"""One server for all tests of this folder that neither end it nor need it for themselves."""

from collections.abc import Iterator

import pytest
from server.serving import Serving


@pytest.fixture(scope="package")
def serving() -> Iterator[Serving]:
    with Serving() as server:
        yield server
