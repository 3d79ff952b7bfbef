"""Where servers come from: the registry in which an address's scheme chooses how its servers are found or started.

This module owns the registry, its interface, and the sources that start nothing: servers that are there already,
and names. It must not know the launchers, which start servers: the package itself adds those, so that the client
never imports them.

Another kind of servers, such as those that a cluster's scheduler grants, is one file with a class that is a
`Source`, and one line in the package that adds it here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from concurrent.futures import Future

    from farm_executor.client.farm.observer import View
    from farm_executor.wire.address import Address
    from farm_executor.wire.security import Key

__all__ = [
    "EmbeddedServer",
    "FindKey",
    "Locate",
    "Source",
    "StartedServer",
    "at",
    "embedded",
    "registry",
    "source_of",
]

Locate = Callable[[bool], "Address"]
"""Returns a server's address. Starts it first; restarts it if it has died or, with True, is lost, as when it hangs.

It may take as long as it needs: it is called in a thread that dials.
"""

FindKey = Callable[["Address"], "Key"]
"""Returns the executor's key for an address; raises AuthenticationError if it has none."""


class StartedServer(Protocol):
    """A server that was started for one executor alone."""

    def locate(self, lost: bool = False) -> Address:
        """See `Locate`."""

    def end(self) -> None:
        """End it and remove what it leaves behind. May be called twice. It also ends when it is collected."""

    def abandon(self) -> None:
        """In a forked child: release it without ending it, as it is the parent's."""


class EmbeddedServer(StartedServer, Protocol):
    """A server on this machine."""

    def key_for(self, address: Address) -> bytes | None:
        """Return the key that it accepts; None if the address has never been its own."""


class Source(Protocol):
    """The servers of one address. Creating it neither starts nor dials anything.

    An address with ``every`` stands for servers that come and go: it is looked at again and again, in a thread of
    its own. Any other is looked at once, by callers that cannot wait, and has exactly one server.
    """

    def look(self) -> list[tuple[Address, Locate]]:
        """Return the servers that there are now, each with the way to locate it.

        Raises:
            OSError: They cannot be looked up now; worth trying again.
        """

    def watch(self, changed: Callable[[], None]) -> None:
        """Have ``changed`` called, in any thread, when `look` would return something else than the last time.

        A source that cannot tell does nothing: it is looked at every half minute anyway.
        """

    def attend(self, view: Callable[[], View], remove: Callable[[Address], Future[None] | None]) -> None:
        """Have servers come and go as the farm needs them, which has just been started; only with ``every``.

        A source whose servers are as many as its address says does nothing.

        Args:
            view: Returns what can be seen of the farm.
            remove: Lets go of a server once all that it has is done, and returns a future of that.
        """

    def let_go(self) -> None:
        """Make the servers that were started end, without waiting for that."""

    def end(self) -> None:
        """End them, wait for that, and remove what they leave behind. May be called twice."""

    def abandon(self) -> None:
        """In a forked child: release them without ending them, as they are the parent's."""


class There:
    """A server that is there already, and outlives the executor."""

    def __init__(self, address: Address, find_key: FindKey) -> None:
        self._address = address

    def look(self) -> list[tuple[Address, Locate]]:
        """See `Source`."""
        return [(self._address, at(self._address))]

    # Half a minute's delay is what name services have anyway.
    def watch(self, changed: Callable[[], None]) -> None:
        """Do nothing: name services do not tell."""

    def attend(self, view: Callable[[], View], remove: Callable[[Address], Future[None] | None]) -> None:
        """Do nothing: whoever has started them decides how many there are."""

    def let_go(self) -> None:
        """Do nothing: the server is not ours."""

    end = abandon = let_go


class Named(There):
    """A server on each machine that a name stands for, as far as name services know."""

    def look(self) -> list[tuple[Address, Locate]]:
        """See `Source`."""
        from farm_executor.wire import sockets  # late: a program that only imports the package has no use for it

        return [(address, at(address)) for address in sockets.resolve(self._address)]


def at(address: Address) -> Locate:
    """Return the way to locate a server at a fixed address, which this program does not start."""
    return lambda lost: address


registry: dict[str, Callable[[Address, FindKey], Source]] = {"tcp": There, "unix": There, "farm": Named}
"""The source for an address, by `Address.scheme`. It gets the address, and the way to find the executor's key."""


def source_of(address: Address, find_key: FindKey) -> Source:
    """Return where the servers of an address come from."""
    return registry[address.scheme](address, find_key)


embedded: Callable[[int, int | None], EmbeddedServer]
"""Creates a server on this machine, which has no address yet, that may have that many workers."""
