"""`FarmExecutor`, over two servers that the program itself starts when it first makes one, as with lfarm."""

import functools
from pathlib import Path
from typing import Any

import farm_executor
from farm_executor.launch import background

IMPORT = f"import sys; sys.path.append({str(Path(__file__).parent)!r}); from own_servers import FarmExecutor"
"""For a script, in place of the import from the package itself."""


@functools.cache
def addresses() -> list[str]:
    servers = [farm_executor.start_server("127.0.0.1", 0, background=True, workers=3) for _ in range(2)]
    return [server.address for server in servers]


class FarmExecutor(farm_executor.FarmExecutor):
    def __init__(self, max_workers: int | None = None, **options: Any) -> None:
        super().__init__(addresses(), max_workers=max_workers, **options)


def end() -> None:
    """What the end of the program does."""
    addresses.cache_clear()
    background.end_all()
