"""Looks at a farm again and again, and has a cluster's servers come and go as it needs them.

This module owns when it is looked, and what follows from what `core.elastic` decides. It must not decide anything
itself, nor know how a cluster is asked.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Protocol

from farm_executor.core.elastic import Elastic, Load

if TYPE_CHECKING:
    from farm_executor.client.farm.observer import View
    from farm_executor.wire.address import Address

__all__ = ["Attending", "Attended"]

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.5  # between looks at the farm


class Attended(Protocol):
    """The servers of a cluster; see `cluster.ClusterServers`."""

    def there(self) -> list[Address]:
        """Return those that there are now."""

    def want(self, servers: int) -> None:
        """Have so many servers in all, and ask for those that lack, or take back what has not come."""

    def release(self, address: Address) -> None:
        """Let go of one, which the farm does not use any more, and do not ask for another in its place."""


class Attending:
    """A thread that attends to the servers of one address, until `close`.

    Args:
        servers: The servers.
        rule: Decides.
        view: Returns what can be seen of the farm.
        remove: Has the farm send nothing more to a server, and let go of it once all that it has is done; returns a
            future of that, or None if the farm does not have it.
    """

    def __init__(
        self,
        servers: Attended,
        rule: Elastic,
        view: Callable[[], View],
        remove: Callable[[Address], Future[None] | None],
    ) -> None:
        self._servers = servers
        self._rule = rule
        self._view = view
        self._remove = remove
        self._leaving: list[tuple[Address, Future[None]]] = []
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="farm-attending", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Attend to them no more, without waiting."""
        self._closed.set()

    def join(self) -> None:
        """After `close`: wait for the thread."""
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(LOOK_SECONDS):
            self._look()

    def _look(self) -> None:
        view = self._view()
        seen = {server.address: server for server in view.servers if server.up}
        addresses = {str(address): address for address in self._servers.there()}
        loads = {
            name: Load(
                any(worker.running for worker in seen[name].workers), sum(w.calls for w in seen[name].workers)
            )
            for name in addresses
            if name in seen
        }
        before = self._rule.wanted
        gone = self._rule.decide(time.monotonic(), view.counts.queued, loads)
        if self._rule.wanted != before:
            logger.info("servers wanted of=%s now=%d before=%d", self._servers, self._rule.wanted, before)
            self._servers.want(self._rule.wanted)
        for name in gone:
            if (future := self._remove(addresses[name])) is not None:
                self._leaving.append((addresses[name], future))
        # It is told to end only when the farm has let go of it, which is not before all that it runs has ended.
        for leaving in [leaving for leaving in self._leaving if leaving[1].done()]:
            self._leaving.remove(leaving)
            self._servers.release(leaving[0])
