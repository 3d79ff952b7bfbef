"""The interface between the client and the launchers, which start servers for it.

This module owns that interface, nothing else: the package itself sets the two factories. The client must not import
the launchers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from farm_executor.wire.address import Address

__all__ = ["EmbeddedServer", "RemoteServer", "embedded", "over_ssh"]


class StartedServer(Protocol):
    """A server that was started for one executor alone."""

    def locate(self, lost: bool = False) -> Address:
        """Return its address. Start it first, or restart it if it has died or is ``lost``, as when it hangs."""

    def end(self) -> None:
        """End it and remove what it leaves behind. May be called twice. It also ends when it is collected."""

    def abandon(self) -> None:
        """In a forked child: release it without ending it, as it is the parent's."""


class EmbeddedServer(StartedServer, Protocol):
    """A server on this machine."""

    def key_for(self, address: Address) -> bytes | None:
        """Return the key that it accepts; None if the address has never been its own."""


class RemoteServer(StartedServer, Protocol):
    """A server on another machine; there may be many, and they can end side by side."""

    def let_go(self) -> None:
        """Make it end, without waiting for that."""


embedded: Callable[[int], EmbeddedServer]
"""Creates a server that may have that many workers; it is started when it is first located."""

over_ssh: Callable[[Address], RemoteServer]
"""Creates a server on the machine of that address, likewise."""
