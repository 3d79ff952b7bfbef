"""Somebody who looks at a program's own farm: what they are told as it happens, and what they see when they look.

This module owns the shapes. It must not know who looks. Where nobody does, a farm does nothing for it but to see
that there is nobody, once for each frame of results.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from farm_executor._record import NamedTuple

if TYPE_CHECKING:
    from farm_executor.client.farm.call import Call
    from farm_executor.client.farm.lane import Lane
    from farm_executor.core.census import FarmStatus
    from farm_executor.progress import Show

__all__ = ["Observer", "SeenServer", "SeenWorker", "View"]


class Observer(Protocol):
    """Is told of results in the thread that settles futures, and so must be quick and must not raise."""

    def answered(self, lane: Lane, calls: list[Call], settle: Callable[[], None]) -> None:
        """Call ``settle``, which settles the calls that a worker has answered, and note what has come of them."""

    def failed(self, name: str, calls: int, error: BaseException, end: str, output: str) -> None:
        """Note that calls of a function have failed, or are lost or killed, and what they had written."""

    def mapping(self, label: str) -> Show:
        """Return what is told how far a map has come."""


class SeenWorker(NamedTuple):
    """One worker.

    Attributes:
        lane: Its number, which no later worker has.
        calls: How many it has answered.
        busy: Seconds that it has spent in them.
        running: What it runs; empty if nothing.
        sent: When that was sent, by `time.perf_counter`; None if it was sent while another ran.
    """

    lane: int
    slot: int
    pid: int
    calls: int
    busy: float
    running: str
    sent: float | None


class SeenServer(NamedTuple):
    """One server; see `statistics.ServerStatistics`."""

    address: str
    up: bool
    error: str
    workers: list[SeenWorker]


class View(NamedTuple):
    """A farm at one moment, had more cheaply than its statistics: what waits is not looked through."""

    state: str
    counts: FarmStatus
    servers: list[SeenServer]
