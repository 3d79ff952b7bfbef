"""How the client comes by servers that are started for it: whoever puts the package together says so here.

The client must not import the launchers. This module knows nothing but the words between the two.
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
        """Its address; starts it first, also anew if it has died, or if it is ``lost``, as when it stands still."""

    def end(self) -> None:
        """End it and remove what is left of it. May be called twice. It also ends when it is collected."""

    def abandon(self) -> None:
        """In a forked child: let go of it; it is the parent's."""


class EmbeddedServer(StartedServer, Protocol):
    """One on this machine."""

    def key_for(self, address: Address) -> bytes | None:
        """The key that admits to it; None if the address is not one that it has, or has had."""


class RemoteServer(StartedServer, Protocol):
    """One on another machine; there may be many, which then end together."""

    def let_go(self) -> None:
        """Have it end, without waiting for that."""


embedded: Callable[[int], EmbeddedServer]
"""Makes a server that may have that many workers; it is started when it is first asked where it is."""

over_ssh: Callable[[Address], RemoteServer]
"""Makes one on the machine of that address, likewise."""
