"""Answers to administrators: whether the server is there, what it does, that it ends.

This module owns which questions there are, and the connections of those who watch. It must not know how the server
is drained, nor who may ask.

A watcher asks once and stays: each of its PINGs is answered with the server's document. One that does not read its
answers is told nothing more until it has.
"""

from __future__ import annotations

import logging
import selectors
from collections.abc import Callable

from farm_executor.core.census import MAX_DOCUMENT
from farm_executor.core.frames import MAX_HELLO, FrameType, encode_frame
from farm_executor.core.messages import AdminHello, Done
from farm_executor.errors import RemoteProtocolError
from farm_executor.server.census import Census
from farm_executor.server.door import Door
from farm_executor.server.guest import Guest
from farm_executor.wire.connection import Connection, no_segment
from farm_executor.wire.sockets import tune

__all__ = ["HARMLESS", "Admin"]

logger = logging.getLogger(__name__)

HARMLESS = ("ping", "status", "watch")
"""The questions that change nothing, which a monitor may ask."""
MAX_WATCHERS = 32


class Admin:
    """Answers administrators; see the module.

    Args:
        selector: The supervisor's selector, whose entries hold the callbacks.
        door: Where they come in.
        census: What the server tells of itself.
        drain: Called when an administrator tells the server to end.
    """

    def __init__(
        self, selector: selectors.BaseSelector, door: Door, census: Census, drain: Callable[[], None]
    ) -> None:
        self._selector = selector
        self._door = door
        self._census = census
        self._drain = drain
        self._watchers: set[Connection] = set()

    def answer(self, guest: Guest, hello: AdminHello) -> None:
        """Answer a guest's question and hang up, unless it stays to watch."""
        command = hello.command
        if command == "end":
            guest.reply(Done())
            self._drain()
        elif command == "status":
            guest.reply(self._census.status(MAX_HELLO // 2))  # a hello has a limited size
        elif command == "watch":
            self._let_watch(guest)
            return
        elif command == "ping":
            guest.reply(Done())
        else:
            self._door.refuse(guest, "command", f"this server knows no command {command!r}")
            return
        self._door.release(guest)
        guest.socket.close()

    def close(self) -> None:
        """Close every descriptor, without telling any peer."""
        for connection in self._watchers:
            connection.socket.close()

    def _let_watch(self, guest: Guest) -> None:
        if len(self._watchers) >= MAX_WATCHERS:
            self._door.refuse(guest, "watchers", f"{MAX_WATCHERS} watch this server already, which is the limit")
            return
        guest.reply(Done())
        self._door.release(guest)
        tune(guest.raw)
        connection = Connection(guest.socket, MAX_HELLO, no_segment)
        self._watchers.add(connection)
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._on_watcher(connection))

    def _on_watcher(self, connection: Connection) -> None:
        if connection not in self._watchers:
            return  # gone by another event of this round
        waited = connection.unsent
        try:
            if waited:
                connection.flush()
            for frame in connection.receive():
                if frame.type is not FrameType.PING:
                    raise RemoteProtocolError(f"{frame.type.name} frame from a watcher")
                if not connection.unsent:
                    body = self._census.encoded(MAX_DOCUMENT // 2)
                    connection.send(encode_frame(FrameType.PONG, seq=frame.seq, body=body))
        except (EOFError, RemoteProtocolError):
            self._dismiss(connection)
            return
        except Exception:  # a bug of ours must not take the server down
            logger.exception("watcher failed")
            self._dismiss(connection)
            return
        if connection.unsent != waited:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.unsent else 0)
            self._selector.modify(connection, events, lambda: self._on_watcher(connection))

    def _dismiss(self, connection: Connection) -> None:
        self._watchers.discard(connection)
        self._selector.unregister(connection)
        connection.close()
