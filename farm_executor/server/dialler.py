"""A server that nobody can dial: it dials the client instead, and waits there until the client begins.

This module owns a process beside the supervisor's, which dials, proves the key, and keeps a few connections at the
client's end. When the client begins to speak on one, that is handed to the supervisor, as a listening socket would
give it one. It must not know what is said on it.

It is a process of its own because dialling takes time, which the supervisor, with its one thread, does not have.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import selectors
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from farm_executor.core.messages import BackHello, to_json
from farm_executor.errors import FarmError
from farm_executor.server.channel import Channel
from farm_executor.server.tether import die_with
from farm_executor.wire.address import Address
from farm_executor.wire.dialling import offer
from farm_executor.wire.security import Key
from farm_executor.wire.sockets import Socket, tune, unread

__all__ = ["Dialler"]

logger = logging.getLogger(__name__)

PARKED = 4  # connections that rest: a client with many workers opens one after the other
OFFER_SECONDS = 10.0
WAY_SECONDS = 1.0  # the same where there is another way after it
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0  # seconds between attempts; a client that starts must not wait for long
REPORT_EVERY = 30.0  # seconds between two log lines about the same silence
# Of nothing but refusals, until the program that a server belongs to is taken for dead: living, it would listen.
REFUSED_SECONDS = 1.0


class Dialler:
    """In a listening socket's place: gives the connections on which a client has begun. See the module.

    Creating it forks, so it must be done before there are threads.

    Args:
        addresses: Where a client waits: those after the first are other ways to the same one, for when those before
            do not lead there within a second.
        key: The key to prove.
        name: What people call this server.
        patience: Seconds without a client after which the server ends; None for never. With it the server belongs
            to one program, and ends at once when nothing listens there any more.
        server: A word that no other server has; made here if it is empty.
        failed: Called with each way that does not lead to a client, and why, in another process.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        key: Key,
        name: str,
        patience: float | None = None,
        server: str = "",
        failed: Callable[[Address, Exception], None] = lambda address, error: None,
    ) -> None:
        self._address = addresses[0]
        supervisor = os.getpid()
        self._channel, theirs = Channel.pair()
        if os.fork() == 0:
            try:
                self._channel.close()
                hello = to_json(BackHello(server or os.urandom(16).hex(), name))
                _Parking(addresses, key, hello, theirs, patience, failed).run(supervisor)
            except BaseException:  # whatever happens, it must never go on as a second supervisor
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(0)
        theirs.close()

    def fileno(self) -> int:
        """See `door.Listener`."""
        return self._channel.fileno()

    def setblocking(self, flag: bool) -> None:
        """Do nothing: `accept` never waits."""

    def accept(self) -> tuple[Socket, Any]:
        """Return a connection on which the client has begun, and the client's address."""
        try:
            found = self._channel.receive()
        except EOFError:
            # Nothing of ours ends it before us. Without it nobody can come: those who are there are served.
            logger.warning(
                "dialling has ended address=%s: this server ends when its clients have gone", self._address
            )
            os.kill(os.getpid(), signal.SIGTERM)
            raise BlockingIOError from None
        assert found is not None
        sock = found[0]
        return sock, sock.getpeername()

    def close(self) -> None:
        """Dial no more."""
        self._channel.close()


class _Parking:
    """The process that dials."""

    def __init__(
        self,
        addresses: Sequence[Address],
        key: Key,
        hello: dict[str, Any],
        channel: Channel,
        patience: float | None,
        failed: Callable[[Address, Exception], None],
    ) -> None:
        self._last = addresses[-1]
        self._ways = deque(addresses)  # the first is tried next; once one leads to a client, it stays the first
        self._key = key
        self._hello = hello
        self._channel = channel
        self._failed = failed
        self._patience = float("inf") if patience is None else patience
        self._seen = time.monotonic()  # a client was there
        self._parked: set[Socket] = set()
        self._selector = selectors.DefaultSelector()
        self._failures = 0
        self._came = False  # whether a client has ever been there
        self._refused = float("inf")  # since when a client that has been there refuses us
        self._tried = 0  # ways, since one has led to a client
        self._all_refused = True  # whether each of those has refused
        self._next = 0.0  # when to dial again
        self._next_report = 0.0  # 0 until an attempt has failed

    def run(self, supervisor: int) -> None:
        """Dial and keep connections until the supervisor has ended, or takes no more."""
        die_with(supervisor)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # they are the supervisor's to obey
            signal.signal(number, signal.SIG_IGN)
        self._selector.register(self._channel.fileno(), selectors.EVENT_READ)
        while True:
            seconds = max(self._next - time.monotonic(), 0.0) if len(self._parked) < PARKED else None
            for key, _ in self._selector.select(seconds):
                if not isinstance(key.fileobj, Socket):
                    return
                self._on_word(key.fileobj)
            now = time.monotonic()
            if self._parked:
                self._seen = now
            elif now - self._seen > self._patience:
                return
            elif self._patience < float("inf") and now - self._refused > REFUSED_SECONDS:
                # Our end makes the supervisor drain, that is wait for clients to come back, and for their tasks.
                # With one more signal it ends at once.
                os.kill(supervisor, signal.SIGTERM)
                return
            if len(self._parked) < PARKED and self._next <= time.monotonic():
                self._park()

    def _park(self) -> None:
        address = self._ways[0]
        try:
            sock = offer(address, self._key, self._hello, OFFER_SECONDS if address is self._last else WAY_SECONDS)
        except (OSError, EOFError, FarmError) as error:
            self._failed(address, error)
            self._tried += 1
            self._all_refused = self._all_refused and isinstance(error, ConnectionRefusedError)
            self._ways.rotate(-1)
            if self._tried % len(self._ways):
                return  # the next way is tried at once
            self._pause()
            now = time.monotonic()
            refused, self._all_refused = self._came and self._all_refused, True
            self._refused = min(self._refused, now) if refused else float("inf")
            if not self._next_report:  # no more than that clients come and go
                self._next_report = now + REPORT_EVERY
                logger.info("no client waits at=%s error=%s", address, error)
            elif self._next_report <= now:
                self._next_report = now + REPORT_EVERY
                logger.warning("still no client waits at=%s error=%s", address, error)
            return
        self._tried, self._all_refused = 0, True
        if not self._parked:
            logger.info("a client waits at=%s", address)
        self._failures, self._next_report = 0, 0.0
        self._came, self._refused = True, float("inf")
        tune(sock)
        self._parked.add(sock)
        self._selector.register(sock, selectors.EVENT_READ)

    def _pause(self) -> None:
        longest = min(FIRST_PAUSE * 2**self._failures, LONGEST_PAUSE)
        self._failures = min(self._failures + 1, 10)
        # A random part of it, so that many servers do not all come back at once.
        self._next = time.monotonic() + longest * random.uniform(0.5, 1.0)

    def _on_word(self, sock: Socket) -> None:
        """Hand on a connection on which the client has begun, or let go of one that has ended."""
        self._selector.unregister(sock)
        self._parked.discard(sock)
        if unread(sock):
            with contextlib.suppress(OSError):  # the supervisor is gone or busy: the client will try again
                self._channel.pass_on(sock, 0, b"")
        elif not self._parked:
            self._pause()  # the client has gone
        sock.close()
