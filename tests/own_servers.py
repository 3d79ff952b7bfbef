"""`FarmExecutor`, over two servers that the program itself starts when it first makes one, as with lfarm."""

import functools
from pathlib import Path
from typing import Any

import farm_executor
from farm_executor.launch.local import Server

IMPORT = f"import sys; sys.path.append({str(Path(__file__).parent)!r}); from own_servers import FarmExecutor"
"""For a script, in place of the import from the package itself."""


@functools.cache
def servers() -> list[Server]:
    return [farm_executor.start_server("127.0.0.1", 0, background=True, workers=3) for _ in range(2)]


class FarmExecutor(farm_executor.FarmExecutor):
    def __init__(self, max_workers: int | None = None, **options: Any) -> None:
        super().__init__([server.address for server in servers()], max_workers=max_workers, **options)


def end() -> None:
    """End these servers, and no others: those of the contract's rows go on."""
    for server in servers():
        server.end()
    servers.cache_clear()
