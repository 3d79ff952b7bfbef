"""A drop-in for `concurrent.futures.ProcessPoolExecutor` whose workers may live on other machines.

This module holds the public names and puts the package together: it tells the client how embedded servers are
started, because the client must not import the launchers.
"""

from __future__ import annotations

from farm_executor._version import __version__
from farm_executor.admin import end_server, ping, status
from farm_executor.client.executor import FarmExecutor, OptionsView
from farm_executor.client.statistics import FarmStatistics, ServerStatistics, WorkerStatistics
from farm_executor.errors import (
    AddressError,
    AuthenticationError,
    BrokenFarmError,
    FarmError,
    FarmFullError,
    InvalidTaskError,
    LocalProtocolError,
    ProtocolError,
    RemoteProtocolError,
    TaskError,
    TaskExecutionError,
    TaskKilledError,
    TaskTimeoutError,
    VersionMismatchError,
    WorkerLostError,
)
from farm_executor.launch.local import PrivateServer, Server, start_server

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
    "FarmFullError",
    "BrokenFarmError",
    "__version__",
]

FarmExecutor._launch = PrivateServer
