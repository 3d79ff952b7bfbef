"""The servers of one executor: those it was given, those added later, and those started for it.

This module owns the list, and what becomes of it at the end and in a forked child. It must not know how a server is
started, which is behind `launching`, nor how one is dialled: the engine does that, and gets the list as `Sources`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING

from farm_executor.client import launching, lifetime
from farm_executor.wire.address import Address

if TYPE_CHECKING:
    from farm_executor.client.farm.servers import Sources
    from farm_executor.client.launching import EmbeddedServer, RemoteServer
    from farm_executor.client.settings import FarmSettings

__all__ = ["Supply"]


class Supply:
    """The servers of one executor.

    Args:
        settings: The executor's settings.

    Attributes:
        added: The addresses that were added later.
        embedded: The embedded server, if it has been created.

    Thread safety: none; callers must serialize their calls.
    """

    def __init__(self, settings: FarmSettings) -> None:
        self.given: list[Address] | None = None if settings.addresses is None else list(settings.addresses)
        self.added: list[Address] = []
        self.embedded: EmbeddedServer | None = None
        self._max_workers = settings.max_workers
        self._remote: list[tuple[Address, RemoteServer]] = []
        lifetime.at_program_end(self.end_embedded)

    def addresses(self) -> list[Address]:
        """Return all addresses: those given or the embedded server's, started if necessary; then those added."""
        base = [self.embedded_server().locate()] if self.given is None else self.given
        return [*base, *self.added]

    def describe(self) -> str:
        """Return the addresses as text for people."""
        return ", ".join(map(str, [*(["embedded"] if self.given is None else self.given), *self.added]))

    def most_workers(self, known: int) -> int:
        """Return the most workers that there can be.

        Args:
            known: How many workers the servers that have answered have; 0 if none has answered.
        """
        if self._max_workers is not None:
            return min(self._max_workers, known or self._max_workers)
        cpus = _cpu_count()
        if self.given is None:
            return cpus
        return known or cpus * len([*self.given, *self.added])

    def sources(self) -> Sources:
        """Return the servers to dial, for an engine."""
        from farm_executor.client.farm.servers import Sources

        # A name that ends in ?all stands for machines that come and go. They have no quota, because nobody knows
        # how many there will be to divide ``max_workers`` among.
        fixed = [address for address in self.given or () if not address.every]
        names = [address for address in self.given or () if address.every]
        quotas = _quotas(self._max_workers, len(fixed))
        addresses: list[Address | None] = [*fixed[: len(quotas)], *self.added]
        locations = [self.way_to(address) for address in addresses if address is not None]
        quotas += [None] * len(self.added)
        if self.given is None:
            addresses.insert(0, None)
            locations.insert(0, self.embedded_server().locate)
            quotas.insert(0, self.most_workers(0))
        return Sources(addresses, locations, quotas, names)

    def way_to(self, address: Address) -> Callable[[bool], Address]:
        """Return a function that returns the address to dial, after starting the server if it must be started."""
        from farm_executor.client.farm.link import at

        if not address.ssh:
            return at(address)
        # Nothing is started here, since the caller may hold the executor's lock: `locate` does that in a thread of
        # the server's link, where it may take as long as ssh needs.
        server = launching.over_ssh(address)
        self._remote.append((address, server))
        return server.locate

    def embedded_server(self) -> EmbeddedServer:
        """Return the embedded server; it is created by the first call, and started when it is first located."""
        if self.embedded is None:
            self.embedded = launching.embedded(self.most_workers(0))
        return self.embedded

    def add(self, address: Address) -> bool:
        """Add a server; return whether it is new."""
        if address in [*(self.given or ()), *self.added]:
            return False
        self.added.append(address)
        return True

    def remove(self, address: Address) -> bool:
        """Remove a server; return whether it was known."""
        known = [addresses for addresses in (self.given or [], self.added) if address in addresses]
        for addresses in known:
            addresses.remove(address)
        return bool(known)

    def started_at(self, address: Address) -> list[RemoteServer]:
        """Return the servers that were started for this address."""
        return [server for target, server in self._remote if target == address]

    def end(self) -> None:
        """End all servers that were started."""
        # All are told before any is waited for, so that they end side by side.
        for _, server in self._remote:
            server.let_go()
        for _, server in self._remote:
            server.end()
        self.end_embedded()

    def end_embedded(self) -> None:
        """End the embedded server, if it has been created."""
        if self.embedded is not None:
            self.embedded.end()

    def abandon(self) -> None:
        """In a forked child: release the servers without ending them, as they are the parent's."""
        if self.embedded is not None:
            self.embedded.abandon()
            self.embedded = None
        for _, server in self._remote:
            server.abandon()
        self._remote = []


def when_gone(server: RemoteServer, gone: Future[None]) -> None:
    """Make a server end once it is not used any more, without waiting for that."""
    gone.add_done_callback(partial(_let_go, server))


def _let_go(server: RemoteServer, gone: Future[None]) -> None:
    server.let_go()


def _cpu_count() -> int:
    count: Callable[[], int | None] = getattr(os, "process_cpu_count", os.cpu_count)  # as ProcessPoolExecutor does
    return count() or 1


def _quotas(max_workers: int | None, servers: int) -> list[int | None]:
    """Divide the workers evenly among the servers; servers beyond ``max_workers`` are left out."""
    if max_workers is None:
        return [None] * servers
    if not servers:
        return []
    # The first servers take the remainder. A server without a quota would hold a session for nothing, so with fewer
    # workers than servers the last ones are not dialled at all.
    return [max_workers // servers + (i < max_workers % servers) for i in range(min(servers, max_workers))]
