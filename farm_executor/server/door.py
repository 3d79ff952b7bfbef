"""The listening sockets, and the guests: connections that have not yet sent their hello.

This module owns how many guests there may be, and for how long. It must not know what is done with a hello; the
dialogue before it belongs to `guest`.
"""

from __future__ import annotations

import logging
import selectors
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from farm_executor.core.messages import ClientHello, Refused
from farm_executor.errors import AuthenticationError, RemoteProtocolError
from farm_executor.server.guest import Guest
from farm_executor.server.log import Ration
from farm_executor.wire.security import Key
from farm_executor.wire.sockets import Socket, is_tcp, tune

if TYPE_CHECKING:
    from farm_executor.server.worker import WorkerStart

__all__ = ["Door", "Listener"]

logger = logging.getLogger(__name__)

ACCEPT_PAUSE = 0.2  # seconds before the next attempt, when the system gives no descriptor and no guest holds one
GUEST_SECONDS = 10.0  # to prove the key and send the hello
# Beyond these limits, the guest that has made no progress for longest goes: hardly ever a client, which needs only
# a round trip or two. Hundreds of clients may share an address, as behind NAT.
MAX_GUESTS = 512
MAX_GUESTS_OF_A_HOST = 256


class Listener(Protocol):
    """What connections come from: a listening socket, or what stands in its place."""

    def fileno(self) -> int:
        """Return the descriptor that is readable when a connection has come."""

    def setblocking(self, flag: bool, /) -> None:
        """Say whether `accept` may wait."""

    def accept(self) -> tuple[Socket, Any]:
        """Return a connection and its peer's address.

        Raises:
            OSError: There is none.
        """

    def close(self) -> None:
        """Take no more."""


class Door:
    """The listening sockets and their guests; see the module.

    Args:
        listeners: Listening sockets.
        keys: The keys, each of which admits a guest.
        selector: The supervisor's selector, whose entries hold the callbacks.
        admit: Called with a guest that has proven a key, and with its hello. It takes the guest over with
            `release`, or refuses it; in a worker's new process it returns what the worker starts with.
        quiet: Whether nobody need know which guests were dismissed.
        beside: One more listening socket, for guests on this machine, who are told apart; see `Guest`.
    """

    def __init__(
        self,
        listeners: Sequence[Listener],
        keys: Sequence[Key],
        selector: selectors.BaseSelector,
        admit: Callable[[Guest, ClientHello], WorkerStart | None],
        *,
        quiet: bool,
        beside: Socket | None = None,
    ) -> None:
        self._listeners = list(listeners) if beside is None else [*listeners, beside]
        self._beside = beside
        self._keys = keys
        self._selector = selector
        self._admit = admit
        self._quiet = quiet
        self._ration = Ration(logger)
        self._guests: dict[Guest, None] = {}  # in the order of their deadlines
        self._deaf_until = 0.0  # the listeners are not watched before that time; 0 if they are watched
        for listener in self._listeners:
            listener.setblocking(False)

    @property
    def deadline(self) -> float:
        """When `on_time` is to be called next, on the monotonic clock."""
        times = [self._ration.deadline]
        if self._deaf_until:
            times.append(self._deaf_until)
        if self._guests:
            times.append(next(iter(self._guests)).deadline)
        return min(times)

    def on_time(self, now: float) -> None:
        """Do everything that is due."""
        self._ration.on_time(now)
        if self._deaf_until and self._deaf_until <= now:
            self.open()
        for guest in list(self._guests):
            if guest.deadline > now:
                break
            self.dismiss(guest, "it said nothing in time")

    def close(self, but: Socket | None) -> None:
        """Close every descriptor except that socket, without telling any peer."""
        for guest in self._guests:
            if guest.raw is not but:
                guest.socket.close()
        for listener in self._listeners:
            listener.close()

    def _accept(self, listener: Listener) -> None:
        if not self._listeners:
            return  # closed by another event of this round
        try:
            sock, peer = listener.accept()
        except OSError as error:  # the peer has gone again, or no descriptor is left: others must still be served
            if not isinstance(error, (BlockingIOError, InterruptedError)):
                self._ration.warn("accept failed error=%s", error)
                if self._guests:
                    self._make_room()
                else:  # the listener stays readable: without a pause this would be a busy loop
                    self._listen_no_more()
                    self._deaf_until = time.monotonic() + ACCEPT_PAUSE
            return
        sock.setblocking(False)
        tune(sock)
        local = not isinstance(peer, tuple)  # a unix socket
        host = "local" if local else peer[0]
        name = "local" if local else f"{host}:{peer[1]}"
        deadline = time.monotonic() + GUEST_SECONDS
        guest = Guest(sock, host=host, name=name, keys=self._keys, local=local, deadline=deadline)
        guest.beside = listener is self._beside
        # What stands in a listening socket's place has dialled, maybe through an engine's calls.
        guest.breaks = is_tcp(sock) or not isinstance(listener, Socket)
        of_host = [other for other in self._guests if other.host == host]
        if len(of_host) >= MAX_GUESTS_OF_A_HOST:
            self.dismiss(min(of_host, key=_progressed), "too many connections without a key from its address")
        elif len(self._guests) >= MAX_GUESTS:
            self._make_room()
        self._guests[guest] = None
        self._selector.register(sock, selectors.EVENT_READ, lambda: self._on_guest(guest))

    def _make_room(self) -> None:
        self.dismiss(min(self._guests, key=_progressed), "too many connections without a key")

    def open(self) -> None:
        """Start to accept guests, or start again after a pause."""
        self._deaf_until = 0.0
        for listener in self._listeners:
            self._selector.register(listener, selectors.EVENT_READ, partial(self._accept, listener))

    def _listen_no_more(self) -> None:
        if not self._deaf_until:
            for listener in self._listeners:
                self._selector.unregister(listener)

    def shut(self) -> None:
        """Stop accepting guests for good."""
        self._listen_no_more()
        self._deaf_until = 0.0
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    def dismiss_all(self, why: str) -> None:
        """Dismiss every guest."""
        for guest in list(self._guests):
            self.dismiss(guest, why, harmless=True)

    def _on_guest(self, guest: Guest) -> WorkerStart | None:
        if guest not in self._guests:
            return None  # dismissed by another event of this round
        try:
            hello = guest.receive()
            if hello is not None:
                return self._admit(guest, hello)
        except (EOFError, AuthenticationError, RemoteProtocolError, OSError) as error:
            self.dismiss(guest, str(error), harmless=isinstance(error, (EOFError, ConnectionError)))
        except Exception:  # a bug of ours must not take the server down
            logger.exception("guest failed peer=%s", guest.name)
            self.dismiss(guest, "serving it has failed")
        return None

    def dismiss(self, guest: Guest, why: str, *, harmless: bool = False) -> None:
        """Close the connection of a guest that was not admitted.

        It is harmless, and not worth a warning, if a guest hangs up, as health checks do, and clients that end
        while they dial; or if the server ends while the guest is connected.
        """
        if harmless and not guest.has_spoken:
            logger.debug("dismissed peer=%s reason=%.200s", guest.name, why)
        elif harmless and not self._quiet:
            self._ration.info("dismissed peer=%s reason=%.200s", guest.name, why)
        elif not self._quiet:
            self._ration.warn("dismissed peer=%s reason=%.200s", guest.name, why)
        if guest in self._guests:
            self.release(guest)
        guest.socket.close()

    def refuse(
        self, guest: Guest, code: str, message: str, mismatches: dict[str, tuple[str, str]] | None = None
    ) -> None:
        """Tell a guest that has proven a key why it does not get what it came for, and hang up.

        Raises:
            OSError: The connection is lost.
        """
        guest.reply(Refused(code, message, mismatches))
        logger.info("refused peer=%s code=%s reason=%s", guest.name, code, message)
        self.release(guest)
        guest.socket.close()

    def release(self, guest: Guest) -> None:
        """Give the guest's connection over to the caller, who decides what becomes of it."""
        self._guests.pop(guest, None)
        self._selector.unregister(guest.socket)


def _progressed(guest: Guest) -> float:
    return guest.progressed
