"""Servers that dial this program, because it cannot dial them: on compute nodes, behind NAT, in pods.

This module owns the place where they are waited for: a listening socket, the proof that who dials holds the key,
and the connections that rest until the farm has a use for one. It must not know what is said on them afterwards,
which is what would be said if we had dialled.

Anybody may dial, so a guest is treated as a server treats one: the same `Door`, with its limits and its patience. A
guest that does not prove the key gets no further than that.
"""

from __future__ import annotations

import logging
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from farm_executor.client.launching import FindKey, Locate, at
from farm_executor.core.messages import BackHello, ClientHello, Done
from farm_executor.server.door import Door
from farm_executor.server.guest import Guest
from farm_executor.wire.address import Address
from farm_executor.wire.dialling import WAITS
from farm_executor.wire.security import Key
from farm_executor.wire.sockets import Socket, bound_address, dial_at_once, listen_everywhere
from farm_executor.wire.waker import Waker

__all__ = ["Rendezvous"]

logger = logging.getLogger(__name__)

DIAL_SECONDS = 1.0  # for a server that can be dialled to answer
TAKE_SECONDS = 0.5  # to wait for a connection: the server makes another as soon as one is used
GONE_SECONDS = 15.0  # without a connection, until a server is taken for gone
MAX_PARKED = 64  # connections of one server that rest, more than any of ours makes
NOBODY = "no server has dialled in: start some with farm-executor serve --back HOST:PORT, and this program's key"
NO_SERVER = "a client waits here for servers, and serves nobody: dial a server's own address"


class BackServer:
    """A server that has dialled us, or says where we may. As an `Address.grant` it is the way to reach it.

    Args:
        where: The rendezvous, for people to read.
        name: The server's.
        host: Where it has dialled from, which a certificate of its own must name.
        gone: Called when it has had no connection for too long.
    """

    scheme = "back"

    def __init__(self, where: str, name: str, host: str, gone: Callable[[], None]) -> None:
        self._where = where
        self.name = name
        self.host = host
        self._gone = gone
        self._changed = threading.Condition()
        self._parked: deque[Socket] = deque()
        self._since = time.monotonic()  # a connection was last parked or taken
        self.forget: Callable[[Socket], None] = lambda sock: None
        self.key: Key | None = None
        """The server's key; None for the executor's."""
        self.at: tuple[str, int] | None = None
        """Where it can be dialled; None for nowhere."""
        self.lasts = False
        """Whether its end is told by `Rendezvous.part`: that all its connections end does not mean it."""
        self.answers = True
        """Whether the last attempt to reach it has led there."""

    def __str__(self) -> str:
        return f"{self._where}/{self.name}"

    def park(self, sock: Socket) -> bool:
        """Keep a connection until it is taken; return whether there is room for it."""
        with self._changed:
            if len(self._parked) >= MAX_PARKED:
                return False
            self._parked.append(sock)
            self._since = time.monotonic()
            self._changed.notify()
        return True

    @property
    def rests(self) -> bool:
        """Whether any connection waits to be taken."""
        return bool(self._parked)

    def drop(self, sock: Socket) -> bool:
        """Let go of a connection that has ended, unless it has been taken; return whether it was the last."""
        with self._changed:
            if sock not in self._parked:
                return False
            self._parked.remove(sock)
            self.forget(sock)
            sock.close()
            return not self._parked and not self.lasts

    def take(self, deadline: float) -> Socket:
        """Return a connection on which the server waits for us to begin.

        Raises:
            OSError: It has none, until the deadline or for half a second, and cannot be dialled.
        """
        dialled = self._dial(deadline)
        if isinstance(dialled, Socket):
            self.answers = True
            return dialled
        with self._changed:
            until = min(deadline - time.monotonic(), TAKE_SECONDS)
            if self._changed.wait_for(lambda: self._parked, until):
                sock = self._parked.popleft()
                # With the lock held: until then, the other thread may find that the connection has ended.
                self.forget(sock)
                self._since = time.monotonic()
                self.answers = True
                return sock
            self.answers = False
            gone = time.monotonic() - self._since > GONE_SECONDS
        if dialled is not None:
            raise dialled
        if gone:
            self._gone()
        raise TimeoutError(f"{self} has no connection to us at the moment")

    def _dial(self, deadline: float) -> Socket | OSError | None:
        """Dial it, if it can be dialled; return the error if that fails, or if there is a better way."""
        if self.at is None:
            return None
        try:
            # A caller that cannot wait at all gets what a network that works takes.
            seconds = min(max(deadline - time.monotonic(), DIAL_SECONDS / 10), DIAL_SECONDS)
            return dial_at_once(*self.at, seconds)
        except OSError as error:
            return error

    def close(self) -> None:
        """Close all connections that rest."""
        while self._parked:
            self._parked.popleft().close()


class Rendezvous:
    """Where one executor waits for the servers that dial it; a `client.launching.Source`.

    Args:
        address: What the servers are called by: one whose ``grant`` is a `wire.address.Back`, if that is also where
            to listen.
        find_key: Returns the executor's key.
        where: Where to listen, at the first by TCP; nothing for where the address says.
        key: The servers' key, if it is not the executor's.

    Thread safety: all methods may be called from any thread.
    """

    def __init__(
        self, address: Address, find_key: FindKey, *, where: Sequence[Address] = (), key: Key | None = None
    ) -> None:
        self._target = address
        self._where = where
        self._find_key = find_key
        self._key = key
        self._lock = threading.Lock()
        self._servers: dict[str, BackServer] = {}
        self._lasting: set[str] = set()  # the words of servers whose end is told by `part`
        self._coming: set[Socket] = set()  # those whose servers have yet to say that they wait
        self._changed: Callable[[], None] = lambda: None
        self._listeners: list[Socket] = []
        self._selector: selectors.BaseSelector | None = None
        self._waker: Waker | None = None
        self._thread: threading.Thread | None = None
        self._ended = False
        self.port = 0
        """The port at which it listens, once it does."""

    def __str__(self) -> str:
        return str(self._target)

    # -- for the farm --------------------------------------------------------------------------------------

    def look(self) -> list[tuple[Address, Locate]]:
        """See `client.launching.Source`.

        Raises:
            AuthenticationError: There is no key.
            OSError: It cannot listen there; or no server has dialled in.
        """
        self.listen()
        with self._lock:
            found = [Address(host=server.host, grant=server) for server in self._servers.values()]
        if not found:
            raise ConnectionError(NOBODY)
        return [(address, at(address)) for address in found]

    def watch(self, changed: Callable[[], None]) -> None:
        """See `client.launching.Source`."""
        self._changed = changed

    def attend(self, view: Any, remove: Any) -> None:
        """Do nothing: those who start them decide how many there are; see `client.launching.Source`."""

    def let_go(self) -> None:
        """Take no more servers."""
        self._ended = True
        if self._waker is not None:
            self._waker.wake()

    def end(self) -> None:
        """Close all that rests, and wait for the thread. May be called twice."""
        self.let_go()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join()  # without the lock, for which it may wait
        self._close()

    def abandon(self) -> None:
        """In a forked child: close its copies of what belongs to the parent."""
        self._ended = True
        self._close()

    def _close(self) -> None:
        # First: after a fork, an epoll object is shared with the parent, and must not be told of these sockets.
        if self._selector is not None:
            self._selector.close()
        if self._waker is not None:
            self._waker.close()
        for listener in self._listeners:
            listener.close()
        for sock in self._coming:
            sock.close()
        self._coming.clear()
        for server in self._servers.values():
            server.close()
        self._servers.clear()

    def listen(self) -> int:
        """Begin to take servers, if it has not begun; return the port.

        Raises:
            AuthenticationError: There is no key.
            OSError: It cannot listen there.
        """
        with self._lock:
            if self._thread is None and not self._ended:
                self._open()
            return self.port

    def meet(self, word: str, name: str, at: tuple[str, int] | None) -> None:
        """Know of a server, whether or not it has dialled us, until `part`.

        Args:
            word: What it says, too, when it dials.
            name: Its name.
            at: Where it can be dialled; None if it cannot be.
        """
        with self._lock:
            if self._ended:
                return
            self._lasting.add(word)
            if word in self._servers or at is not None:
                server = self._server(word, name, at[0] if at else "")
                server.lasts, server.at = True, at or server.at
        if at is not None:
            logger.info("server can be dialled of=%s server=%s at=%s:%d", self._target, name, *at)
            self._changed()

    def part(self, word: str) -> None:
        """Know of a server only as long as it has connections to us."""
        with self._lock:
            self._lasting.discard(word)
            server = self._servers.get(word)
            if server is None:
                return
            server.lasts, server.at = False, None
            if server.rests:
                return
            del self._servers[word]
        logger.info("server gone at=%s server=%s", self._target, server)
        self._changed()

    def _server(self, word: str, name: str, host: str) -> BackServer:
        """Return the server of that word, new or not. The lock is held."""
        server = self._servers.get(word)
        if server is None:
            called = str(self._target).partition("?")[0]
            server = BackServer(called, name, host, partial(self._gone, word))
            server.forget, server.key, server.lasts = self._forget, self._key, word in self._lasting
            self._servers[word] = server
        return server

    # -- for the servers -----------------------------------------------------------------------------------

    def _open(self) -> None:
        first, *others = self._where or [Address(self._target.grant.host, self._target.grant.port)]
        # Only the proof: a connection that is used later is secured as if we had dialled it.
        key = Key((self._key or self._find_key(first)).secret)
        self._listeners = listen_everywhere(first)
        for other in others:
            self._listeners += listen_everywhere(other)
        self.port = bound_address(self._listeners[0], first).port
        self._selector, self._waker = selectors.DefaultSelector(), Waker()
        self._selector.register(self._waker, selectors.EVENT_READ, self._waker.drain)
        door = Door(self._listeners, [key], self._selector, self._admit, quiet=False)
        door.open()
        self._door = door
        self._thread = threading.Thread(target=self._run, args=(self._selector, door), daemon=True)
        self._thread.name = "farm-rendezvous"
        self._thread.start()
        logger.info("waiting for servers at=%s port=%d", self._target, self.port)

    def _run(self, selector: selectors.BaseSelector, door: Door) -> None:
        while not self._ended:
            seconds = None if door.deadline == float("inf") else max(door.deadline - time.monotonic(), 0.0)
            for key, _ in selector.select(seconds):
                key.data()
            door.on_time(time.monotonic())
        door.close(None)

    def _admit(self, guest: Guest, hello: ClientHello) -> Any:
        if not isinstance(hello, BackHello):
            self._door.refuse(guest, "role", NO_SERVER)
            return
        guest.reply(Done())
        self._door.release(guest)
        assert self._selector is not None
        self._coming.add(guest.raw)
        waits = partial(self._on_waits, hello, guest.raw, guest.host)
        self._selector.register(guest.raw, selectors.EVENT_READ, waits)

    def _on_waits(self, hello: BackHello, sock: Socket, host: str) -> None:
        """Take a connection on which the server has read our answer, and waits."""
        assert self._selector is not None
        self._coming.discard(sock)
        try:
            said = sock.recv(len(WAITS))
        except OSError:
            said = b""
        if said != WAITS:
            self._forget(sock)
            sock.close()
            return
        with self._lock:
            new = hello.server not in self._servers
            server = self._server(hello.server, hello.name, host)
        # Before it can be taken, which unregisters it.
        self._selector.modify(sock, selectors.EVENT_READ, partial(self._on_end, hello.server, sock))
        if not server.park(sock):
            self._forget(sock)
            sock.close()
        if new:
            logger.info("server dialled in at=%s server=%s", self._target, hello.name)
            self._changed()

    def _forget(self, sock: Socket) -> None:
        assert self._selector is not None
        self._selector.unregister(sock)

    def _on_end(self, name: str, sock: Socket) -> None:
        """Note that a connection that rests can be read: it has ended, as the server does not begin."""
        with self._lock:
            server = self._servers.get(name)
        if server is not None and server.drop(sock):
            self._gone(name)

    def _gone(self, name: str) -> None:
        with self._lock:
            server = self._servers.pop(name, None)
        if server is not None:
            logger.info("server gone at=%s server=%s", self._target, server)
            self._changed()
