"""Passes bytes between programs and servers that have dialled this process: one port stands for one server.

This module owns the bytes on their way, and nothing of what they mean: a program and its server prove the key to
each other, and encrypt, as if nobody were between.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from farm_executor.wire.sockets import Socket, end_sending, tune
from farm_executor.wire.waker import Waker

__all__ = ["Far", "Relay"]

logger = logging.getLogger(__name__)

CHUNK = 256 * 1024  # bytes that one direction of a connection holds at most, on their way
RETRY_SECONDS = 0.05  # until it is looked again whether the server has a connection for a program that waits
PATIENCE_SECONDS = 10.0  # for which a program waits for that
DEAF_SECONDS = 0.5  # for which a port is let be once there is no descriptor for who dials it
MAX_WAITING = 1024  # programs that wait; a stranger may dial a port, too


class Far(Protocol):
    """A server that has dialled us; see `back.BackServer`."""

    def take(self, deadline: float) -> Socket:
        """Return a connection to it that rests.

        Raises:
            OSError: It has none.
        """


class Relay:
    """The connections of all programs to all servers, in a thread of their own.

    Thread safety: `serve` and `close` may be called from any thread.
    """

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._waker = Waker()
        self._selector.register(self._waker, selectors.EVENT_READ, lambda events: self._waker.drain())
        self._lock = threading.Lock()
        self._to_do: list[Callable[[], None]] = []  # by the thread
        self._waiting: list[tuple[Socket, Socket, float]] = []  # programs, where they have dialled, and until when
        self._pairs: set[_Pair] = set()
        self._listeners: dict[Socket, Far | None] = {}
        self._deaf: dict[Socket, float] = {}  # listeners that are let be, and until when
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="farm-relay", daemon=True)
        self._thread.start()

    def serve(self, listeners: Sequence[Socket], far: Far | None) -> None:
        """Take programs on these sockets, from now on for this server; for None they wait for the next one."""
        self._ask(partial(self._serve, listeners, far))

    def close(self) -> None:
        """Close everything, and wait for the thread."""
        self._closed = True
        self._waker.wake()
        self._thread.join()

    def _ask(self, deed: Callable[[], None]) -> None:
        with self._lock:
            self._to_do.append(deed)
        self._waker.wake()

    def _run(self) -> None:
        while not self._closed:
            for key, events in self._selector.select(RETRY_SECONDS if self._waiting or self._deaf else None):
                key.data(events)
            now = time.monotonic()
            for listener in [listener for listener, until in self._deaf.items() if until <= now]:
                del self._deaf[listener]
                self._listen(listener)
            with self._lock:
                deeds, self._to_do = self._to_do, []
            for deed in deeds:
                deed()
            waiting, self._waiting = self._waiting, []
            for each in waiting:
                self._join(*each)
        for deed in self._to_do:  # such as listeners that have come too late
            deed()
        for sock in (*self._listeners, *(near for near, _, _ in self._waiting)):
            sock.close()
        for pair in list(self._pairs):
            pair.close()
        self._selector.close()
        self._waker.close()

    def _serve(self, listeners: Sequence[Socket], far: Far | None) -> None:
        for listener in listeners:
            if listener not in self._listeners:
                listener.setblocking(False)
                self._listen(listener)
            self._listeners[listener] = far

    def _listen(self, listener: Socket) -> None:
        self._selector.register(listener, selectors.EVENT_READ, partial(self._accept, listener))

    def _accept(self, listener: Socket, events: int) -> None:
        try:
            near = listener.accept()[0]
        except (BlockingIOError, ConnectionError):  # it has gone already
            return
        except OSError as error:
            # No descriptor is left. The listener stays readable, and to ask again at once would be a busy loop.
            logger.warning("accept failed error=%s", error)
            self._selector.unregister(listener)
            self._deaf[listener] = time.monotonic() + DEAF_SECONDS
            return
        self._join(near, listener, time.monotonic() + PATIENCE_SECONDS)

    def _join(self, near: Socket, listener: Socket, until: float) -> None:
        """Join a program to its server, or let it wait until the server has made another connection."""
        now, far = time.monotonic(), self._listeners[listener]
        try:
            if far is None:
                raise ConnectionError("no server is there")
            taken = far.take(now)  # without waiting
        except OSError:
            if until > now and len(self._waiting) < MAX_WAITING:
                self._waiting.append((near, listener, until))
            else:
                near.close()
            return
        with contextlib.suppress(OSError):  # one of them has gone, as reading will tell
            tune(near)
            tune(taken)
        self._pairs.add(_Pair(near, taken, self._selector, self._pairs.discard))


class _Pair:
    """Two sockets, each of which is sent what the other gives."""

    def __init__(
        self, one: Socket, other: Socket, selector: selectors.BaseSelector, closed: Callable[[_Pair], None]
    ) -> None:
        self._selector = selector
        self._on_close = closed
        self._closed = False
        self._ways = (_Way(one, other), _Way(other, one))
        for sock in (one, other):
            sock.setblocking(False)
            selector.register(sock, selectors.EVENT_READ, partial(self._on_event, sock))

    def _on_event(self, sock: Socket, events: int) -> None:
        if self._closed:  # by an event of the other socket's, which had come with this one
            return
        try:
            for way in self._ways:
                if (way.source is sock and events & selectors.EVENT_READ) or (
                    way.target is sock and events & selectors.EVENT_WRITE
                ):
                    way.move()
        except OSError:
            self.close()
            return
        if all(way.ended for way in self._ways):
            self.close()
            return
        for way, back in (self._ways, self._ways[::-1]):
            self._watch(way.source, way.wants_more, back.has_some)

    def _watch(self, sock: Socket, reads: bool, writes: bool) -> None:
        wanted = selectors.EVENT_READ * reads | selectors.EVENT_WRITE * writes
        known = self._selector.get_map().get(sock.fileno())
        if known is None:
            if wanted:
                self._selector.register(sock, wanted, partial(self._on_event, sock))
        elif not wanted:
            self._selector.unregister(sock)
        elif known.events != wanted:
            self._selector.modify(sock, wanted, known.data)

    def close(self) -> None:
        """Close both sockets."""
        self._closed = True
        for way in self._ways:
            self._watch(way.source, False, False)
            way.source.close()
        self._on_close(self)


class _Way:
    """One direction. What cannot be sent at once is held, and nothing more is read meanwhile."""

    def __init__(self, source: Socket, target: Socket) -> None:
        self.source = source
        self.target = target
        self._space = bytearray(CHUNK)
        self._held = memoryview(b"")
        self._over = False  # the source gives no more
        self.ended = False  # and the target has been told

    @property
    def wants_more(self) -> bool:
        return not self._held and not self._over

    @property
    def has_some(self) -> bool:
        return bool(self._held)

    def move(self) -> None:
        """Read if nothing is held, and send what can be sent.

        Raises:
            OSError: One of them is gone.
        """
        with contextlib.suppress(BlockingIOError):
            if self.wants_more:
                count = self.source.recv_into(self._space)
                self._over = not count
                self._held = memoryview(self._space)[:count]
            while self._held:
                self._held = self._held[self.target.send(self._held) :]
        if self._over and not self._held and not self.ended:
            self.ended = True
            end_sending(self.target)
