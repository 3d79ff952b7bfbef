"""What a server can tell of itself without reading a task: counters, and what the system knows of processes.

This module owns where the figures of `core.census` come from. It must not know connections. It keeps no time
series, and looks at nothing until somebody asks; then the document serves for `FRESH_SECONDS`, however many ask.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

from farm_executor.core.census import (
    SCHEMA,
    WORKER_COLUMNS,
    ClientStatus,
    Machine,
    Status,
    Totals,
    WorkerTable,
)
from farm_executor.core.messages import to_json
from farm_executor.server.memory import private_bytes, read_small
from farm_executor.server.process import Figures, Measured, Worker
from farm_executor.server.session import Session
from farm_executor.server.sessions import Sessions, Terms
from farm_executor.wire.whose import whose

__all__ = ["Census"]

FRESH_SECONDS = 0.5
# Seconds for which what the system says of a worker serves: of one that works, and of one that rests. To ask for it
# takes more than half of what a worker costs.
WORKING_SECONDS, RESTING_SECONDS = 1.0, 10.0
MACHINE_SECONDS = 2.0  # likewise, of the machine, whose limits are in a dozen files
# Bytes that a client and a worker certainly do not take: each character of a text may need twelve, and any number
# at most 24.
MOST_OF_CLIENT, MOST_OF_ROW = 16_384, 512
_TICKS = os.sysconf("SC_CLK_TCK")


class Census:
    """Takes a server's document; see the module.

    Args:
        terms: What the server offers.
        sessions: The server's sessions.
    """

    def __init__(self, terms: Terms, sessions: Sessions) -> None:
        self._terms = terms
        self._sessions = sessions
        self._started = time.time()
        self._encoded = b""
        self._fresh_until = float("-inf")
        self._machine: Machine | None = None
        self._machine_until = 0.0

    def encoded(self, room: int) -> bytes:
        """Return the document as JSON, at most `FRESH_SECONDS` old; ``room`` as in `status`."""
        now = time.monotonic()
        if now >= self._fresh_until or len(self._encoded) > room:
            self._encoded = json.dumps(to_json(self.status(room)), separators=(",", ":")).encode()
            self._fresh_until = now + FRESH_SECONDS
        return self._encoded

    def status(self, room: int) -> Status:
        """Take the document now, with as many sessions, and their workers, as about ``room`` bytes take."""
        now, clock = time.time(), time.perf_counter()
        terms, sessions, workers = self._terms, list(self._sessions), self._sessions.workers
        counts = workers.counts
        tasks, busy, received, sent = counts.tasks, counts.seconds, counts.received, counts.sent
        rows: dict[int, list[list[Any]]] = {session.number: [] for session in sessions}
        # All that live, also those whose session is over: no counter may fall when they end.
        for session, worker in workers.everyone():
            figures = worker.figures()
            running = max(clock - figures.since, 0.0) if figures.since else 0.0
            tasks += figures.begun
            busy += figures.spent + running
            received += figures.received
            sent += figures.sent
            if session.number in rows:
                rows[session.number].append(_row(session, worker, figures, running, now))
        shown: list[ClientStatus] = []
        # To measure them takes a third of the time of all else, and is needed only where they might not fit.
        measured = sum([MOST_OF_CLIENT + MOST_OF_ROW * len(each) for each in rows.values()]) > room
        for session in sessions:
            told = _client(session, now)
            if measured:
                room -= len(json.dumps([to_json(told), rows[session.number]]))
            if room < 0:
                break
            shown.append(told)
        mine = whose()
        return Status(
            farm_status=SCHEMA,
            address=terms.address,
            name=terms.name,
            host=mine["host"],
            user=mine["user"],
            pid=os.getpid(),
            seconds=_age(self._started, now),
            now=round(now, 3),
            slots=terms.slots,
            draining=self._sessions.draining,
            versions=terms.versions,
            machine=self._look_at_machine(),
            totals=Totals(
                *(self._sessions.opened, counts.workers, dict(counts.ended), tasks, round(busy, 3), received, sent)
            ),
            sessions=shown,
            sessions_left_out=len(sessions) - len(shown),
            workers=WorkerTable(list(WORKER_COLUMNS), [row for told in shown for row in rows[told.id]]),
            deaths=list(counts.deaths),
        )

    def _look_at_machine(self) -> Machine:
        from farm_executor.server.machine import machine  # late: what it imports would delay the start

        clock = time.monotonic()
        if self._machine is None or clock >= self._machine_until:
            self._machine, self._machine_until = Machine(*machine()), clock + MACHINE_SECONDS
        return self._machine


def _client(session: Session, now: float) -> ClientStatus:
    who = session.who
    return ClientStatus(
        id=session.number,
        client=session.client,
        host=who.host,
        user=who.user,
        program=who.program,
        label=who.label,
        seconds=_age(session.opened, now),
        state="cut" if session.connection is None else "open",
        workers=len(session.workers),
        farm=session.farm,
    )


def _row(session: Session, worker: Worker, figures: Figures, running: float, now: float) -> list[Any]:
    if worker.stopped:
        state = "stopped"
    elif running:
        state = "busy"
    else:
        state = "starting" if figures.busy and not figures.begun else "idle"
    held, cpu = _measured(worker, state, figures.begun)
    return [
        *(session.number, worker.slot, worker.pid, int(max(now - worker.started, 0.0)), state),
        *(_short(running), figures.begun, _short(figures.spent + running), cpu),
        *(None if held is None else held // 2**20, figures.received, figures.sent),
    ]


def _measured(worker: Worker, state: str, begun: int) -> tuple[int | None, float | None]:
    """Return a worker's bytes of memory and seconds of CPU, as they were a moment ago."""
    clock, known = time.monotonic(), worker.measured
    # The state, too: what was measured in the middle of a task tells nothing of the time after it.
    serves = WORKING_SECONDS if state == "busy" else RESTING_SECONDS
    if known is None or known.of != (state, begun) or clock - known.at >= serves:
        known = Measured((state, begun), clock, private_bytes(worker.pid), _cpu_seconds(worker.pid))
        worker.measured = known
    return known.memory, known.cpu


def _short(seconds: float) -> float:
    """Round as far as a difference of two such figures can bear."""
    return round(seconds, 2 if seconds < 1000 else 1)


def _cpu_seconds(pid: int) -> float | None:
    try:
        fields = read_small(f"/proc/{pid}/stat").rpartition(b") ")[2].split()
        return round((int(fields[11]) + int(fields[12])) / _TICKS, 1)
    except (OSError, ValueError, IndexError):  # it has ended, or the system has no such file
        return None


def _age(started: float, now: float) -> float:
    """Return the seconds since then, as far as the machine's clock is right."""
    return round(max(now - started, 0.0), 3)
