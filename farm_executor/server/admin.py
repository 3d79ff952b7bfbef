"""Answers to administrators: whether the server is there, what it does, that it ends.

This module owns which questions there are. It must not know how the server is drained, nor who may ask.
"""

from __future__ import annotations

from collections.abc import Callable

from farm_executor.core.frames import MAX_HELLO
from farm_executor.core.messages import AdminHello, Done
from farm_executor.server.census import Census
from farm_executor.server.door import Door
from farm_executor.server.guest import Guest

__all__ = ["Admin"]


class Admin:
    """Answers administrators, each of whom asks one question.

    Args:
        door: Where they come in.
        census: What the server tells of itself.
        drain: Called when an administrator tells the server to end.
    """

    def __init__(self, door: Door, census: Census, drain: Callable[[], None]) -> None:
        self._door = door
        self._census = census
        self._drain = drain

    def answer(self, guest: Guest, hello: AdminHello) -> None:
        """Answer a guest's question and hang up."""
        command = hello.command
        if command == "end":
            guest.reply(Done())
            self._drain()
        elif command == "status":
            guest.reply(self._census.status(MAX_HELLO // 2))  # a hello has a limited size
        elif command == "ping":
            guest.reply(Done())
        else:
            self._door.refuse(guest, "command", f"this server knows no command {command!r}")
            return
        self._door.release(guest)
        guest.socket.close()
