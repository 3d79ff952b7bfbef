"""A drop-in for `concurrent.futures.ProcessPoolExecutor` whose workers may live on other machines.

This module holds the public names and puts the package together: it tells the client how embedded servers are
started, because the client must not import the launchers. Those, and what asks servers how they are, are imported
when they are first used: a program that only calls servers never needs them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from farm_executor._version import __version__
from farm_executor.client.executor import FarmExecutor, OptionsView
from farm_executor.client.statistics import FarmStatistics, ServerStatistics, WorkerStatistics
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
    TaskError,
    TaskExecutionError,
    TaskKilledError,
    TaskTimeoutError,
    VersionMismatchError,
    WorkerLostError,
)

if TYPE_CHECKING:
    from farm_executor.address import Address
    from farm_executor.admin import end_server, ping, status
    from farm_executor.client.executor import EmbeddedServer, RemoteServer
    from farm_executor.launch.local import Server, start_server

__all__ = [
    "FarmExecutor",
    "OptionsView",
    "FarmStatistics",
    "ServerStatistics",
    "WorkerStatistics",
    "Server",
    "start_server",
    "ping",
    "status",
    "end_server",
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
    "FarmFullError",
    "BrokenFarmError",
    "__version__",
]

_LATER = {
    "Server": "farm_executor.launch.local",
    "start_server": "farm_executor.launch.local",
    "end_server": "farm_executor.admin",
    "ping": "farm_executor.admin",
    "status": "farm_executor.admin",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_LATER[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})


def _launch(workers: int) -> EmbeddedServer:
    from farm_executor.launch.local import PrivateServer

    return PrivateServer(workers)


def _launch_over_ssh(address: Address) -> RemoteServer:
    from farm_executor.launch.ssh import SshServer

    return SshServer(address)


FarmExecutor._launch = staticmethod(_launch)
FarmExecutor._launch_over_ssh = staticmethod(_launch_over_ssh)
