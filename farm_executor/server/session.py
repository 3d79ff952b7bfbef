"""One client's session on a server, as the supervisor knows it.

This module owns how long a client is believed to be alive. It must not know what the client says.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from farm_executor.core.census import FarmStatus
    from farm_executor.core.messages import ControlHello, WorkerDied
    from farm_executor.server.depot import Room
    from farm_executor.server.forwarding import Forwarding
    from farm_executor.server.process import Worker
    from farm_executor.server.shelves import Shelves
    from farm_executor.wire.connection import Connection

__all__ = ["Session"]

SILENT_BEATS = 12  # heartbeat intervals of silence after which a client's connection is taken for broken


class Session:
    """One client's session.

    Attributes:
        connection: Its control connection; None while it is broken.
        resume_seconds: How long the session is kept then.
        heard: When the client was last heard, on the monotonic clock.
        distant: Whether there is a network in between, which may swallow everything.
        max_memory: Bytes that each worker may hold; None for no limit.
        features: Those that the client and the server both have.
        workers: The session's workers, by pid.
        modules: The folder for the client's modules; None if it sends none.
        number: Its number, for people.
        who: The client's hello.
        opened: When it was opened, in seconds since 1970.
        farm: What the client said last of its farm.
        forwarding: The way of its workers' output to the client; None if that stays here.
        shelves: What it shares; None if it shares nothing.
        reports: The reports of workers that have died, by lane, for as long as the client may not have got them.
    """

    def __init__(
        self,
        id: str,
        client: str,
        resume_seconds: float,
        heartbeat: float,
        max_memory: int | None,
        features: frozenset[str],
        *,
        distant: bool,
        number: int,
        who: ControlHello,
    ) -> None:
        self.id = id
        self.client = client
        self.connection: Connection | None = None
        self.resume_seconds = resume_seconds
        self.heartbeat = heartbeat
        self.heard = time.monotonic()
        self.distant = distant
        self.max_memory = max_memory
        self.features = features
        self.workers: dict[int, Worker] = {}
        self.reports: dict[int, WorkerDied] = {}
        self.modules: Room | None = None
        self.forwarding: Forwarding | None = None
        self.shelves: Shelves | None = None
        self.ended = False
        self.number = number
        self.who = who
        self.opened = time.time()
        self.farm: FarmStatus | None = None

    def __repr__(self) -> str:
        state = "ended" if self.ended else "cut" if self.connection is None else "connected"
        # Not the id: anyone who knows it may resume the session.
        return f"<Session of {self.client}: {state}, {len(self.workers)} workers>"

    @property
    def deadline(self) -> float:
        """When to give up on the client, or on its connection."""
        if self.connection is None:
            return self.heard + self.resume_seconds
        return self.heard + SILENT_BEATS * self.heartbeat if self.distant else float("inf")
