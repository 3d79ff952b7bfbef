"""A drop-in for `concurrent.futures.ProcessPoolExecutor` whose workers may live on other machines.

This module holds the public names and puts the package together: it tells the client how servers are started for
it, because the client must not import the launchers. What a name stands for is imported when it is first used: a
program that only calls servers never needs the launchers, nor a server the client.
"""

from __future__ import annotations

import atexit
import importlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from farm_executor._version import __version__
from farm_executor.client import launching, observing
from farm_executor.wire import address as addresses

if TYPE_CHECKING:
    from farm_executor.admin import end_server, ping, status
    from farm_executor.client.backing import Backing
    from farm_executor.client.check import FarmCheck
    from farm_executor.client.executor import FarmExecutor
    from farm_executor.client.farm.future import FarmFuture
    from farm_executor.client.farm.output import OutputLine
    from farm_executor.client.farm.shared import Shared
    from farm_executor.client.farm.statistics import FarmStatistics, ServerStatistics, WorkerStatistics
    from farm_executor.client.front import OptionsView
    from farm_executor.client.stream import Stream
    from farm_executor.current import CurrentTask, Progress, current_task
    from farm_executor.errors import (
        AddressError,
        AuthenticationError,
        BroadcastError,
        BroadcastOutcome,
        BrokenFarmError,
        FarmError,
        FarmFullError,
        InvalidTaskError,
        KernelCreationError,
        LocalProtocolError,
        NoKernelError,
        ProtocolError,
        RemoteProtocolError,
        SharedMemoryError,
        TaskError,
        TaskExecutionError,
        TaskKilledError,
        TaskTimeoutError,
        VersionMismatchError,
        WorkerLostError,
    )
    from farm_executor.launch.frozen import freeze_support
    from farm_executor.launch.local import Server, start_server
    from farm_executor.wire.address import Address

__all__ = [
    "FarmExecutor",
    "OptionsView",
    "FarmFuture",
    "FarmCheck",
    "FarmStatistics",
    "ServerStatistics",
    "WorkerStatistics",
    "OutputLine",
    "Shared",
    "Stream",
    "current_task",
    "CurrentTask",
    "Progress",
    "Server",
    "start_server",
    "ping",
    "status",
    "end_server",
    "freeze_support",
    "FarmError",
    "AddressError",
    "AuthenticationError",
    "VersionMismatchError",
    "ProtocolError",
    "LocalProtocolError",
    "RemoteProtocolError",
    "TaskError",
    "TaskExecutionError",
    "TaskKilledError",
    "TaskTimeoutError",
    "InvalidTaskError",
    "WorkerLostError",
    "BroadcastError",
    "BroadcastOutcome",
    "NoKernelError",
    "KernelCreationError",
    "SharedMemoryError",
    "FarmFullError",
    "BrokenFarmError",
    "__version__",
]

_ELSEWHERE = {
    "FarmExecutor": "client.executor",
    "OptionsView": "client.front",
    "FarmCheck": "client.check",
    "FarmFuture": "client.farm.future",
    "FarmStatistics": "client.farm.statistics",
    "ServerStatistics": "client.farm.statistics",
    "WorkerStatistics": "client.farm.statistics",
    "OutputLine": "client.farm.output",
    "Shared": "client.farm.shared",
    "Stream": "client.stream",
    "current_task": "current",
    "CurrentTask": "current",
    "Progress": "current",
    "Server": "launch.local",
    "start_server": "launch.local",
    "end_server": "admin",
    "freeze_support": "launch.frozen",
    "ping": "admin",
    "status": "admin",
}
"""Where public names come from; all others are errors."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_ELSEWHERE.get(name, 'errors')}")
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _start_private_server(workers: int, max_shared: int | None) -> launching.EmbeddedServer:
    from farm_executor.launch.local import PrivateServer

    return PrivateServer(workers, max_shared)


def _open_page(backing: Backing, listen: str, exposed: bool) -> observing.Page:
    from farm_executor.observe.serving import serve_farm

    return serve_farm(backing, listen, exposed=exposed)


def _launcher(module: str, name: str) -> Callable[[Address, launching.FindKey], launching.Source]:
    """Return a function that imports a launcher when it is first needed, and makes its source of servers."""

    def source(address: Address, find_key: launching.FindKey) -> launching.Source:
        made: launching.Source = getattr(importlib.import_module(module), name)(address, find_key)
        return made

    return source


def _form(name: str) -> Callable[[str, str], Any]:

    def read(value: str, rest: str) -> Any:
        return getattr(importlib.import_module("farm_executor.launch.forms"), name)(value, rest)

    return read


def _end_background_servers() -> None:
    background = sys.modules.get("farm_executor.launch.background")
    if background is not None:
        background.end_all()


atexit.register(_end_background_servers)  # before the executors' own end is, so that it comes after that
launching.embedded = _start_private_server
observing.open_page = _open_page
launching.registry["ssh"] = _launcher("farm_executor.launch.ssh", "source_of")
addresses.forms["dask"] = _form("read_dask")
addresses.forms["dask+tls"] = _form("read_dask_tls")
launching.registry["dask"] = _launcher("farm_executor.launch.engine", "source_of")
addresses.forms["ray"] = _form("read_ray")
launching.registry["ray"] = _launcher("farm_executor.launch.engine", "source_of")
addresses.forms["slurm"] = _form("read_slurm")
launching.registry["slurm"] = _launcher("farm_executor.launch.slurm", "source_of")
launching.registry["back"] = _launcher("farm_executor.launch.back", "Rendezvous")
