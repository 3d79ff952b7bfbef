"""Answers to administrators: whether the server is there, what it does, that it ends.

This module owns what a status tells. It must not know how the server is drained, nor who may ask.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable

from farm_executor.core.frames import MAX_HELLO
from farm_executor.core.messages import AdminHello, ClientStatus, Done, Status, WorkerStatus, to_json
from farm_executor.server.door import Door
from farm_executor.server.guest import Guest
from farm_executor.server.sessions import Sessions, Terms

__all__ = ["Admin"]


class Admin:
    """Answers administrators, each of whom asks one question.

    Args:
        door: Where they come in.
        terms: What the server offers.
        sessions: The server's sessions.
        drain: Called when an administrator tells the server to end.
    """

    def __init__(self, door: Door, terms: Terms, sessions: Sessions, drain: Callable[[], None]) -> None:
        self._door = door
        self._terms = terms
        self._sessions = sessions
        self._drain = drain
        self._started = time.time()

    def answer(self, guest: Guest, hello: AdminHello) -> None:
        """Answer a guest's question and hang up."""
        command = hello.command
        if command == "end":
            guest.reply(Done())
            self._drain()
        elif command == "status":
            guest.reply(self._status())
        elif command == "ping":
            guest.reply(Done())
        else:
            self._door.refuse(guest, "command", f"this server knows no command {command!r}")
            return
        self._door.release(guest)
        guest.socket.close()

    def _status(self) -> Status:
        now = time.time()
        shown = []
        room = MAX_HELLO // 2
        for session in self._sessions:
            workers = [
                WorkerStatus(worker.slot, worker.pid, _age(worker.started, now))
                for worker in session.workers.values()
            ]
            client = ClientStatus(session.client, workers)
            room -= len(json.dumps(to_json(client)))
            if room < 0:
                break
            shown.append(client)
        terms = self._terms
        return Status(
            address=terms.address,
            name=terms.name,
            pid=os.getpid(),
            seconds=_age(self._started, now),
            slots=terms.slots,
            draining=self._sessions.draining,
            versions=terms.versions,
            sessions=shown,
            sessions_left_out=len(self._sessions) - len(shown),  # a hello has a limited size
        )


def _age(started: float, now: float) -> float:
    """Return the seconds since then, as far as the machine's clock is right."""
    return round(max(now - started, 0.0), 3)
