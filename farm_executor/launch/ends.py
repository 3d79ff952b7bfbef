"""The sockets at one end of a tunnel, whose bytes `core.tunnel` puts into pieces.

This module owns the sockets, and the thread that waits for them. It must not know how pieces get to the other end.

It has nothing but the standard library and `core.tunnel`, since `far` runs its text in an engine's worker.
"""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from farm_executor.core.tunnel import CONNECTIONS, Flight, Tunnel

__all__ = ["Ends", "Loop"]

TICK_SECONDS = 0.25
REST_SECONDS = 5.0  # without a piece, after which its memory is let go


class Loop:
    """A thread that waits for sockets, and calls those whose turn it is.

    Thread safety: `call` and `close` may be called from any thread, all else from its own, or before `start`.
    """

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._near, self._far = socket.socketpair()
        for end in (self._near, self._far):
            end.setblocking(False)
        self._selector.register(self._near, selectors.EVENT_READ, self._drain)
        self._calls: deque[Callable[[], None]] = deque()
        self.ticks: list[Callable[[float], None]] = []  # called about four times a second, with the time
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="farm-tunnel", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def call(self, function: Callable[[], None]) -> None:
        """Have a function called in the thread, soon."""
        self._calls.append(function)
        if threading.current_thread() is not self._thread:  # which looks for calls before it waits
            with contextlib.suppress(OSError):  # as many bytes as fit wait to be read; or it is closed
                self._far.send(b"\0")

    def close(self) -> None:
        """End the thread, and wait for it."""
        self._closed = True
        self.call(lambda: None)
        if self._thread.ident is None:
            self._run()  # which closes what it has
        else:
            self._thread.join()

    def watch(self, sock: socket.socket, events: int, callback: Callable[[int], None]) -> None:
        """Have a function called with these events; with none, no more."""
        known = self._selector.get_map().get(sock.fileno())
        if known is None:
            if events:
                self._selector.register(sock, events, callback)
        elif not events:
            self._selector.unregister(sock)
        elif known.events != events:
            self._selector.modify(sock, events, callback)

    def _drain(self, events: int) -> None:
        with contextlib.suppress(OSError):
            while self._near.recv(4096):
                pass

    def _run(self) -> None:
        due = 0.0
        while not self._closed:
            for key, events in self._selector.select(0 if self._calls else TICK_SECONDS if self.ticks else None):
                key.data(events)
            while self._calls:
                self._calls.popleft()()
            now = time.monotonic()
            if due <= now:
                due = now + TICK_SECONDS
                for tick in list(self.ticks):
                    tick(now)
        while self._calls:
            self._calls.popleft()()
        self._selector.close()
        self._near.close()
        self._far.close()


class Ends:
    """The sockets of one tunnel, at one end.

    Args:
        loop: Waits for them.
        dial: Connects a socket for a connection that the other end has opened.
        ready: Called, in any thread, when there may be something to take.

    Attributes:
        tunnel: The current epoch's. Use it with `lock` held.

    Thread safety: all methods may be called from any thread.
    """

    def __init__(
        self, loop: Loop, dial: Callable[[], socket.socket], ready: Callable[[], None] = lambda: None
    ) -> None:
        self._loop = loop
        self._dial = dial
        self._ready = ready
        self.lock = threading.Condition()
        self.tunnel = Tunnel(0)
        self._sockets: dict[int, socket.socket] = {}
        self._asleep = False  # whether anything is not read because too much waits for calls
        self._rests = 0.0  # when to look whether memory is used

    def listen(self, listener: socket.socket) -> None:
        """Open a connection for each that is made to a listening socket."""
        listener.setblocking(False)
        accept = partial(self._accept, listener)
        self._loop.call(partial(self._loop.watch, listener, selectors.EVENT_READ, accept))

    def begin(self, epoch: int) -> None:
        """Close all connections, and begin an epoch."""
        with self.lock:
            gone, self._sockets = list(self._sockets.values()), {}
            self.tunnel = Tunnel(epoch)
            self._asleep = False
            self.lock.notify_all()
        for sock in gone:
            self._loop.call(partial(self._close, sock))

    def say(self, word: bytes) -> None:
        """Tell the other end something that belongs to no connection."""
        with self.lock:
            self.tunnel.say(word)
            self._news()

    def give(self, piece: bytes | memoryview) -> None:
        """Take in a piece.

        Raises:
            TunnelError: It says what cannot be.
        """
        with self.lock:
            for number in self.tunnel.receive(piece):
                if number in self.tunnel.connections and number not in self._sockets:
                    self._open(number)
                self._move(number)

    def take(self, seconds: float = 0.0, flight: Flight | None = None, epoch: int | None = None) -> memoryview:
        """Return the next piece, once there is one; empty if there is none in time, or another epoch begins.

        Args:
            seconds: How long to wait.
            flight: What else is on its way, if that counts; it is told of the piece.
            epoch: The only epoch of which one is wanted; None for the current.
        """
        with self.lock:
            tunnel = self.tunnel
            if epoch is not None and tunnel.epoch != epoch:
                return memoryview(b"")
            until = time.monotonic() + seconds
            while not (flight.may_push(tunnel.waiting) if flight else tunnel.waiting) and tunnel is self.tunnel:
                left = until - time.monotonic()
                if left <= 0 or not self.lock.wait(left):
                    return memoryview(b"")
            if tunnel is not self.tunnel:
                return memoryview(b"")
            piece = tunnel.take()
            if flight:
                flight.pushed(len(piece))
            if self._asleep:
                self._asleep = False
                self._loop.call(self._wake)
            return piece

    def landed(self, flight: Flight, size: int) -> None:
        """Note that a piece of that size is on its way no more."""
        with self.lock:
            flight.landed(size)
            self.lock.notify()

    def rest(self, now: float) -> None:
        """Let go of memory that nothing has been put into for a while. Called now and then."""
        if now >= self._rests:
            self._rests = now + REST_SECONDS
            with self.lock:
                self.tunnel.rest()

    def _accept(self, listener: socket.socket, events: int) -> None:
        try:
            sock = listener.accept()[0]
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._leave(listener)
            return
        with self.lock:
            if len(self.tunnel.connections) < CONNECTIONS:
                self._add(self.tunnel.open(), sock)
                self._news()
                return
        sock.close()

    def _leave(self, listener: socket.socket) -> None:
        """Let a listener be until the next tick: it stays readable, and asking again at once is a busy loop."""

        def listen_again(now: float) -> None:
            self._loop.ticks.remove(listen_again)
            self.listen(listener)

        self._loop.watch(listener, 0, lambda events: None)
        self._loop.ticks.append(listen_again)

    def _open(self, number: int) -> None:
        """Dial for a connection. The lock is held."""
        try:
            sock = self._dial()
        except OSError:
            self.tunnel.reset(number)
            self._news()
            return
        self._add(number, sock)

    def _add(self, number: int, sock: socket.socket) -> None:
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sockets[number] = sock
        self._loop.call(partial(self._watch, number, sock))

    def _news(self) -> None:
        self.lock.notify()
        self._ready()

    def _on_event(self, number: int, sock: socket.socket, events: int) -> None:
        with self.lock:
            if self._sockets.get(number) is not sock:
                return
            if events & selectors.EVENT_READ:
                self._read(number, sock)
            if events & selectors.EVENT_WRITE:
                self._move(number)
        self._watch(number, sock)

    def _read(self, number: int, sock: socket.socket) -> None:
        """Put what has come from a socket. The lock is held."""
        space = self.tunnel.space(number)
        if not space:
            return
        try:
            count = sock.recv_into(space)
        except BlockingIOError:
            return
        except OSError:
            self._drop(number)
            self.tunnel.reset(number)
        else:
            if count:
                self.tunnel.filled(number, count)
            else:
                self.tunnel.end(number)
                self._end(number)
        self._news()

    def _move(self, number: int) -> None:
        """Write what is held of a connection, as far as its socket takes it. The lock is held."""
        sock, connection = self._sockets.get(number), self.tunnel.connections.get(number)
        if sock is None:
            return
        if connection is None:  # the other end has given it up
            self._drop(number)
            return
        before = bool(connection.held)
        try:
            while connection.held:
                self.tunnel.wrote(number, sock.send(connection.held[0]))
            if connection.ends and not connection.told:
                connection.told = True  # once: where the peer has closed meanwhile, a second time is an error
                sock.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            pass
        except OSError:
            self._drop(number)
            self.tunnel.reset(number)
        if before:
            self._news()
        self._end(number)
        if connection.held or self._asleep:
            self._loop.call(partial(self._watch, number, sock))

    def _end(self, number: int) -> None:
        if number in self.tunnel.connections and self.tunnel.done(number):
            self._drop(number)

    def _drop(self, number: int) -> None:
        sock = self._sockets.pop(number)
        self._loop.call(partial(self._close, sock))

    def _close(self, sock: socket.socket) -> None:
        if sock.fileno() >= 0:
            self._loop.watch(sock, 0, lambda events: None)
            sock.close()

    def _watch(self, number: int, sock: socket.socket) -> None:
        """Wait for what can be done with a socket. In the loop's thread."""
        with self.lock:
            connection = self.tunnel.connections.get(number)
            if connection is None or self._sockets.get(number) is not sock:
                return
            reads = bool(self.tunnel.wants(number))
            self._asleep = self._asleep or not (reads or connection.ended)
            events = selectors.EVENT_READ * reads | selectors.EVENT_WRITE * bool(connection.held)
        self._loop.watch(sock, events, partial(self._on_event, number, sock))

    def _wake(self) -> None:
        for number, sock in list(self._sockets.items()):
            self._watch(number, sock)
