"""A TCP proxy that does to connections what networks do: delays, stalls, cuts, goes away and comes back.

This module owns what happens to bytes on their way. It must not know what they mean, nor who sends them. It never
reorders, changes or forgets a byte that is followed by another one: TCP does not either.

    with Proxy(server.address) as proxy, FarmExecutor([proxy.address]) as farm:
        proxy.stall()                      # the network swallows every packet, and nobody is told
        proxy.flow()                       # it is back: what waited comes through
        proxy.cut(End.RESET)               # every connection ends, abruptly
        proxy.refuse()                     # nobody listens there
        proxy.admit()

    with Proxy(server.address, Cut(connection=1, direction=TO_SERVER, byte=100)) as proxy: ...

One thread, one selector. What is asked of it has been done when the call returns.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import itertools
import queue
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType

__all__ = ["TO_CLIENT", "TO_SERVER", "Cut", "Direction", "End", "Link", "Proxy"]

CHUNK = 64 * 1024
FULL = 1024 * 1024  # bytes under way in one direction, beyond which no more are read


class Direction(enum.Enum):
    """Which way bytes go."""

    TO_SERVER = "to the server"
    TO_CLIENT = "to the client"


TO_SERVER, TO_CLIENT = Direction


class End(enum.Enum):
    """How a connection ends: with all that was under way in the other direction lost, too."""

    CLOSE = "closed"
    RESET = "reset"


@dataclass(frozen=True)
class Cut:
    """End a connection as soon as so many bytes have gone one way.

    Attributes:
        connection: Which, counted from 0 in the order in which clients connect.
        direction: Which way the bytes are counted.
        byte: How many of them get through.
        end: How it ends, at both sides.
    """

    connection: int
    direction: Direction
    byte: int
    end: End = End.CLOSE


@dataclass(eq=False)
class _Way:
    """One direction of one link."""

    source: socket.socket
    sink: socket.socket
    under_way: deque[tuple[float, bytes]] = field(default_factory=deque)  # with the time at which it is due
    size: int = 0
    over: bool = False  # the source has said all
    told: bool = False  # and the sink knows
    blocked: bool = False  # the sink takes no more for now


class Link:
    """A client's connection and the one to the server that belongs to it.

    Attributes:
        number: Counted from 0 in the order in which clients connect.
        passed: How many bytes have gone each way.
        transcript: What has passed each way; kept by a recording proxy only.
    """

    def __init__(self, number: int, client: socket.socket, server: socket.socket) -> None:
        self.number = number
        self.ways = {TO_SERVER: _Way(client, server), TO_CLIENT: _Way(server, client)}
        self.sockets: tuple[socket.socket, ...] = (client, server)
        self.passed = {TO_SERVER: 0, TO_CLIENT: 0}
        self.transcript: dict[Direction, bytearray] = {}

    @property
    def ended(self) -> bool:
        """Whether it is no more."""
        return not self.ways


class Proxy:
    """See the module.

    Args:
        target: "host:port" of the server. It may be away: then clients are reset, as by a host without it.
        cuts: Connections to end at some byte.
        record: Whether to keep what passes, for tests to look at.

    Attributes:
        address: "127.0.0.1:port", for clients.
        links: Every connection so far.

    Thread safety: all methods may be called from any thread.
    """

    def __init__(self, target: str, *cuts: Cut, record: bool = False) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._cuts = {(cut.connection, cut.direction): cut for cut in cuts}
        self._record = record
        self._listener: socket.socket | None = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._listener.setblocking(False)
        self._port = self._listener.getsockname()[1]
        self.address = f"127.0.0.1:{self._port}"
        self.links: list[Link] = []
        self._live: dict[Link, None] = {}
        self._delays = {TO_SERVER: 0.0, TO_CLIENT: 0.0}
        self._stalled: set[tuple[int | None, Direction]] = set()  # None for every link
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._orders: queue.SimpleQueue[tuple[Callable[[], None], Future[None]]] = queue.SimpleQueue()
        self._bell, self._rope = socket.socketpair()
        self._bell.setblocking(False)
        self._selector.register(self._bell, selectors.EVENT_READ, None)
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    # -- what it can do to connections -----------------------------------------------------------------------

    def delay(self, to_server: float = 0.0, to_client: float = 0.0) -> None:
        """From now on bytes take so many seconds each way."""
        self._order(lambda: self._delays.update({TO_SERVER: to_server, TO_CLIENT: to_client}))

    def stall(self, *directions: Direction, numbers: Sequence[int] | None = None) -> None:
        """Pass nothing on, both ways or one way, on these connections or all; connections can still be made."""
        which = numbers or [None]
        self._order(lambda: self._stalled.update(itertools.product(which, directions or Direction)))

    def flow(self) -> None:
        """Pass on again, first what has waited."""
        self._order(self._stalled.clear)

    def cut(self, end: End = End.CLOSE, numbers: Sequence[int] | None = None) -> int:
        """End these connections, or all; say how many there were."""
        ended: list[Link] = []

        def end_them() -> None:
            ended.extend(link for link in self._live if numbers is None or link.number in numbers)
            for link in ended:
                self._end(link, end)

        self._order(end_them)
        return len(ended)

    def refuse(self) -> None:
        """Listen no more, as a host whose server is gone. Connections that there are go on."""

        def close() -> None:
            if self._listener is not None:
                self._selector.unregister(self._listener)
                self._listener.close()
                self._listener = None

        self._order(close)

    def admit(self) -> None:
        """Listen again, at the same address."""

        def listen() -> None:
            if self._listener is None:
                self._listener = socket.create_server(("127.0.0.1", self._port), backlog=1024)
                self._listener.setblocking(False)
                self._selector.register(self._listener, selectors.EVENT_READ, None)

        self._order(listen)

    def lead_to(self, target: str) -> None:
        """From now on connections go to that server."""
        host, _, port = target.rpartition(":")
        self._order(lambda: setattr(self, "_target", (host, int(port))))

    @property
    def live(self) -> int:
        """How many connections there are."""
        return len(self._live)

    def close(self) -> None:
        """End all, and go."""
        if self._thread.is_alive():
            self._order(lambda: setattr(self, "_closing", True))
            self._thread.join()
        self._rope.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _order(self, deed: Callable[[], object]) -> None:
        done: Future[None] = Future()
        self._orders.put((deed, done))  # type: ignore[arg-type]  # what it returns is of no interest
        self._rope.send(b"\0")
        done.result(30)

    # -- the thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closing:
                for key, events in self._selector.select(self._patience()):
                    if key.fileobj is self._bell:
                        self._obey()
                    elif key.fileobj is self._listener:
                        self._accept()
                    elif key.data is not None and not key.data.ended:
                        self._on_ready(key.data, key.fileobj, events)
                for link in list(self._live):
                    self._pass_on(link)
        finally:
            for link in list(self._live):
                self._end(link, End.RESET)
            for sock in filter(None, (self._listener, self._bell)):
                sock.close()
            self._selector.close()

    def _patience(self) -> float | None:
        times = [
            way.under_way[0][0]
            for link in self._live
            for direction, way in link.ways.items()
            if way.under_way and not way.blocked and not self._is_stalled(link, direction)
        ]
        return max(min(times) - time.monotonic(), 0.0) if times else None

    def _obey(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._bell.recv(4096)
        while True:
            try:
                deed, done = self._orders.get_nowait()
            except queue.Empty:
                return
            try:
                deed()
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(None)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        server = socket.socket()
        for sock in (client, server):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link = Link(len(self.links), client, server)
        self.links.append(link)
        self._live[link] = None
        for sock in (client, server):
            self._selector.register(sock, selectors.EVENT_READ, link)
        if server.connect_ex(self._target) not in (0, errno.EINPROGRESS):
            self._end(link, End.RESET)  # a refusal that comes later is seen where the socket is read

    def _on_ready(self, link: Link, sock: object, events: int) -> None:
        for way in link.ways.values():
            if way.sink is sock and events & selectors.EVENT_WRITE:
                way.blocked = False
        for direction, way in link.ways.items():
            if way.source is sock and events & selectors.EVENT_READ and self._may_read(link, direction, way):
                self._read(link, direction, way)

    def _may_read(self, link: Link, direction: Direction, way: _Way) -> bool:
        return not way.over and way.size < FULL and not self._is_stalled(link, direction)

    def _is_stalled(self, link: Link, direction: Direction) -> bool:
        return (None, direction) in self._stalled or (link.number, direction) in self._stalled

    def _read(self, link: Link, direction: Direction, way: _Way) -> None:
        try:
            data = way.source.recv(CHUNK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._end(link, End.RESET)
            return
        if not data:
            way.over = True
            return
        way.under_way.append((time.monotonic() + self._delays[direction], data))
        way.size += len(data)

    def _pass_on(self, link: Link) -> None:
        """Send what is due, and see to what is to be waited for."""
        for direction, way in link.ways.items():
            if not link.ended and not self._is_stalled(link, direction):
                self._send(link, direction, way)
        if link.ended:
            return
        if all(way.told for way in link.ways.values()):
            self._end(link, End.CLOSE)
            return
        for sock in link.sockets:
            events = 0
            for direction, way in link.ways.items():
                if way.source is sock and self._may_read(link, direction, way):
                    events |= selectors.EVENT_READ
                if way.sink is sock and way.blocked:
                    events |= selectors.EVENT_WRITE
            self._watch(sock, link, events)

    def _watch(self, sock: socket.socket, link: Link, events: int) -> None:
        known = self._selector.get_map().get(sock)
        if known is None and events:
            self._selector.register(sock, events, link)
        elif known is not None and not events:
            self._selector.unregister(sock)
        elif known is not None and known.events != events:
            self._selector.modify(sock, events, link)

    def _send(self, link: Link, direction: Direction, way: _Way) -> None:
        cut = self._cuts.get((link.number, direction))
        now = time.monotonic()
        try:
            while True:
                if cut is not None and link.passed[direction] >= cut.byte:
                    self._end(link, cut.end)
                    return
                if not way.under_way or way.under_way[0][0] > now:
                    break
                due, data = way.under_way.popleft()
                count = 0
                try:
                    count = way.sink.send(data if cut is None else data[: cut.byte - link.passed[direction]])
                finally:
                    if count < len(data):
                        way.under_way.appendleft((due, data[count:]))
                if self._record:
                    link.transcript.setdefault(direction, bytearray()).extend(data[:count])
                link.passed[direction] += count
                way.size -= count
        except (BlockingIOError, InterruptedError):
            way.blocked = True
            return
        except OSError:
            self._end(link, End.RESET)
            return
        if way.over and not way.under_way and not way.told:
            way.told = True
            with contextlib.suppress(OSError):
                way.sink.shutdown(socket.SHUT_WR)

    def _end(self, link: Link, end: End) -> None:
        sockets, link.sockets = link.sockets, ()
        link.ways = {}  # as links are kept, nothing but their numbers is
        del self._live[link]
        for sock in sockets:
            with contextlib.suppress(KeyError):
                self._selector.unregister(sock)
            if end is End.RESET:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                _read_away(sock)
            sock.close()


def _read_away(sock: socket.socket) -> None:
    """Take what waits to be read: a socket closed over that would be reset."""
    with contextlib.suppress(OSError):
        while sock.recv(CHUNK):
            pass
