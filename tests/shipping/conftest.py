from collections.abc import Iterator
from pathlib import Path

import pytest
from shipping.elsewhere import Elsewhere, Program


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    """A program, and a server with two workers on which nothing of it exists."""
    folder = tmp_path / "program"
    folder.mkdir()
    with Elsewhere(folder, workers=2) as server:
        yield Program(folder, server)


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """A folder in which a test may have its server's tasks look for modules."""
    folder = tmp_path / "there"
    folder.mkdir()
    return folder
