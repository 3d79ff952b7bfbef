"""Servers of clusters that other programs may use, by a port of this machine for each.

This module owns which port stands for which server. It must not know how a cluster is asked, nor what passes
through a port. A program that uses one needs nothing of the cluster's, and may be wherever the port can be reached
from.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from farm_executor.client import launching
from farm_executor.client.farm.discovery import Discovery
from farm_executor.client.launching import Locate
from farm_executor.errors import AuthenticationError
from farm_executor.launch.cluster import ClusterServers
from farm_executor.launch.relay import Relay
from farm_executor.wire.address import Address
from farm_executor.wire.security import KEY_FILE_VARIABLE, KeyFinder, default_key_file, read_key
from farm_executor.wire.sockets import Socket, bound_address, listen_everywhere
from farm_executor.wire.waker import Waker

__all__ = ["Opened"]

logger = logging.getLogger(__name__)

LAST_SECONDS = 1.0  # at the end, for a thread that looks


class _Port:
    """A port, which stands for one server after the other."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.listeners: list[Socket] = []
        self.free = False


class Opened:
    """The servers of some addresses, each with a port of this machine, from `start` to `end`.

    Args:
        addresses: Addresses whose servers dial this machine, see `back`.
        where: Where to listen: at this port for the first server and at the following ones for others, or at any
            free ones for port 0.
        key_file: The key that programs and servers prove to each other; None for the user's own.
        opened: Called, in any thread, with each server and its port here.

    Attributes:
        failure: What has ended it; None if nothing has.

    Raises:
        AuthenticationError: The key file has no certificate, or cannot be read.

    Thread safety: all methods may be called from any thread.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        where: Address,
        key_file: str | None,
        opened: Callable[[Address, Address], None],
    ) -> None:
        self._where = where
        self._opened = opened
        self.failure: Exception | None = None
        self._lock = threading.Lock()
        self._ports: list[_Port] = []
        path = Path(key_file or os.environ.get(KEY_FILE_VARIABLE) or default_key_file())
        finder = KeyFinder(None, str(path))
        self._sources = [launching.source_of(address, finder) for address in addresses]
        for source in self._sources:
            if isinstance(source, ClusterServers):
                source.key = _for_servers(path)
        self._failed = Waker()
        self._relay = Relay()
        self._discoveries = [
            Discovery(address, source, partial(self._found, number), self._fail)
            for number, (address, source) in enumerate(zip(addresses, self._sources, strict=True))
        ]
        self._known: list[dict[Address, _Port]] = [{} for _ in addresses]

    def fileno(self) -> int:
        """Return a descriptor for selectors, readable once there is a failure."""
        return self._failed.fileno()

    def start(self) -> None:
        """Ask for the servers, without waiting for them."""
        for discovery in self._discoveries:
            discovery.start()

    def end(self) -> None:
        """End the servers, close all ports and everything that passes through them."""
        for discovery in self._discoveries:
            discovery.close()
        for source in self._sources:
            source.let_go()
        for source in self._sources:
            source.end()
        for discovery in self._discoveries:
            discovery.join(LAST_SECONDS)
        self._relay.close()
        self._failed.close()

    def _found(self, number: int, servers: list[tuple[Address, Locate]]) -> None:
        """Open a port for each server that has come, and free those of servers that have gone."""
        known, there = self._known[number], [server for server, _ in servers]
        for server in [server for server in known if server not in there]:
            port = known.pop(server)
            self._relay.serve(port.listeners, None)
            with self._lock:
                port.free = True
            logger.warning("farm_executor: server gone server=%s port=%s", server, port.address)
        for server in there:
            if server not in known:
                try:
                    known[server] = port = self._open(server)
                except OSError as error:
                    self._fail(error)
                    return
                self._opened(server, port.address)

    def _open(self, server: Address) -> _Port:
        with self._lock:
            # The lowest that is free: programs that have its address find the server that came in another's place.
            port = next((port for port in self._ports if port.free), None)
            if port is None:
                number = self._where.port and self._where.port + len(self._ports)
                port = _Port(self._where._replace(port=number))
                port.listeners = listen_everywhere(port.address)
                port.address = bound_address(port.listeners[0], port.address)
                self._ports.append(port)
            port.free = False
        self._relay.serve(port.listeners, server.grant)
        return port

    def _fail(self, error: Exception) -> None:
        self.failure = self.failure or error
        self._failed.wake()


def _for_servers(path: Path) -> str:
    """Return the content of a key file that is to be sent to servers, with which everything is encrypted.

    Raises:
        AuthenticationError: It has no certificate, or cannot be read.
    """
    if not path.exists() or read_key(path).tls is None:
        raise AuthenticationError(
            f"the servers of a cluster are reached over networks, and everything is encrypted, which {path} has no "
            "certificate for: make one with farm-executor keygen, or name another key file with --key-file"
        )
    return path.read_text()
