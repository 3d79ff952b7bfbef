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
    from farm_executor.client.farm.discovery import Lookout
    from farm_executor.client.farm.servers import Sources
    from farm_executor.client.launching import EmbeddedServer, Locate, Source
    from farm_executor.client.protocol import Farm
    from farm_executor.client.settings import FarmSettings
    from farm_executor.wire.security import Key

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
        self._max_shared = settings.max_shared
        self._key = (settings.key, settings.key_file, settings.ssl_context)
        self._sources: list[tuple[Address, Source]] = []
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

        # Servers that come and go have no quota, because nobody knows how many there will be to divide
        # ``max_workers`` among.
        fixed = [address for address in self.given or () if not address.every]
        names: list[tuple[Address, Lookout]] = [
            (address, self._source(address)) for address in self.given or () if address.every
        ]
        quotas = _quotas(self._max_workers, len(fixed))
        addresses: list[Address | None] = [*fixed[: len(quotas)], *self.added]
        locations = [self.way_to(address) for address in addresses if address is not None]
        quotas += [None] * len(self.added)
        if self.given is None:
            addresses.insert(0, None)
            locations.insert(0, self.embedded_server().locate)
            quotas.insert(0, self.most_workers(0))
        return Sources(addresses, locations, quotas, names)

    def attend(self, engine: Farm) -> None:
        """Have the servers that come and go attend to an engine that has been started."""
        for address, source in self._sources:
            if address.every:
                source.attend(engine.sight.view, partial(engine.servers.remove, drain=True))

    def way_to(self, address: Address) -> Locate:
        """Return the way to locate the one server of an address; starts nothing."""
        ((_, locate),) = self._source(address).look()
        return locate

    def _source(self, address: Address) -> Source:
        source = launching.source_of(address, self._find_key)
        self._sources.append((address, source))
        return source

    def _find_key(self, address: Address) -> Key:
        # Made when it is asked for: the environment may name another key file by then.
        from farm_executor.wire.security import KeyFinder

        return KeyFinder(*self._key)(address)

    def embedded_server(self) -> EmbeddedServer:
        """Return the embedded server; it is created by the first call, and started when it is first located."""
        if self.embedded is None:
            self.embedded = launching.embedded(self.most_workers(0), self._max_shared)
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

    def sources_at(self, address: Address) -> list[Source]:
        """Return where the servers of this address come from, as far as an engine has asked."""
        return [source for target, source in self._sources if target == address]

    def end(self) -> None:
        """End all servers that were started."""
        # All are told before any is waited for, so that they end side by side.
        for _, source in self._sources:
            source.let_go()
        for _, source in self._sources:
            source.end()
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
        for _, source in self._sources:
            source.abandon()
        self._sources = []


def when_gone(source: Source, gone: Future[None]) -> None:
    """Make the servers of an address end once they are not used any more, without waiting for that."""
    gone.add_done_callback(partial(_let_go, source))


def _let_go(source: Source, gone: Future[None]) -> None:
    source.let_go()


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
