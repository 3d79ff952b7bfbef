"""Servers that a cluster has been asked for once, for all executors that a run of tests makes.

To have each of some hundred executors ask for its own takes a cluster seconds for each.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from server.processes import wait_until

from farm_executor.client import launching
from farm_executor.client.launching import Locate, Source
from farm_executor.server.dialler import PARKED
from farm_executor.wire.address import Address, parse_addresses
from farm_executor.wire.security import Key

PATIENCE = 60.0


class Placed:
    """The servers of one address; a `launching.Source` for all who give that address, which none of them ends.

    Whoever looks finds what the address finds by itself, and reaches it in the same way.
    """

    def __init__(self, address: str, servers: int) -> None:
        self.address = address
        self._servers = servers
        (target,) = parse_addresses(address)
        self._source = launching.source_of(target, _no_key)
        self._others = launching.registry[target.scheme]
        self._target = target
        launching.registry[target.scheme] = self._source_of

    def _source_of(self, address: Address, find_key: launching.FindKey) -> Source:
        return self if address == self._target else self._others(address, find_key)

    def wait(self) -> None:
        """Wait until they are all there, and rest: who counts descriptors then finds the same number each time."""
        wait_until(self._rest, "the cluster's servers rest", PATIENCE)

    def _rest(self) -> bool:
        try:
            found = self._source.look()
        except ConnectionError:
            return False
        return len(found) == self._servers and all(len(one.grant._parked) == PARKED for one, _ in found)

    def look(self) -> list[tuple[Address, Locate]]:
        return self._source.look()

    def watch(self, changed: Callable[[], None]) -> None:
        pass  # they were all there before the first executor

    def attend(self, view: Any, remove: Callable[[Address], Future[None] | None]) -> None:
        pass

    def let_go(self) -> None:
        pass

    end = abandon = let_go

    def release(self) -> None:
        """End them."""
        launching.registry[self._target.scheme] = self._others
        self._source.let_go()
        self._source.end()


def _no_key(address: Address) -> Key:
    raise AssertionError("the servers of a cluster have a key that is made for them")
