"""What two documents of a server say together: rates, and who its clients are.

This module owns the arithmetic. It must not know connections, nor how anything is shown.

A document is a peer's: its texts are cleaned when it is read, but any cell of its table of workers may have any
value, and its clock may jump.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from farm_executor._record import NamedTuple
from farm_executor.core.census import ClientStatus, FarmStatus, Status

__all__ = ["Client", "Rates", "Server", "Worker", "clients_of", "workers_of"]

HISTORY = 60  # fractions of busy workers that are kept


class Worker(NamedTuple):
    """One worker; see `core.census.WORKER_COLUMNS`. Numbers that are not known are 0."""

    session: int
    slot: int
    pid: int
    up: float
    state: str
    running_for: float
    begun: float
    busy_seconds: float
    cpu_seconds: float
    memory: float
    received: float
    sent: float


class Rates(NamedTuple):
    """What has happened in a second, between two documents.

    Attributes:
        tasks: Tasks begun.
        received: Bytes.
        sent: Bytes.
        busy: The fraction of the workers' time in which they ran tasks.
        workers: For each worker's pid the same fraction, CPU seconds and tasks.
    """

    tasks: float = 0.0
    received: float = 0.0
    sent: float = 0.0
    busy: float = 0.0
    workers: dict[int, tuple[float, float, float]] = {}  # noqa: RUF012 - never changed


class Server:
    """One server, as far as it has answered.

    Attributes:
        name: The address that it was asked at.
        status: Its last document; None before the first.
        error: Why it does not answer; empty while it does.
        rates: Those between its last two documents.
        history: The last fractions of busy workers.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.status: Status | None = None
        self.error = ""
        self.rates = Rates()
        self.history: deque[float] = deque(maxlen=HISTORY)
        self._at = 0.0
        self._workers: list[Worker] = []  # of the last document

    @property
    def state(self) -> str:
        """Return "connecting", "down", "draining" or "open"."""
        if self.error:
            return "down"
        if self.status is None:
            return "connecting"
        return "draining" if self.status.draining else "open"

    @property
    def deaths(self) -> int:
        """How many workers have ended that were not told to."""
        return (
            0
            if self.status is None
            else sum(count for cause, count in self.status.totals.workers_ended.items() if cause != "ended")
        )

    def take(self, status: Status, at: float) -> None:
        """Take an answer that came at that time, by a clock that does not jump."""
        old, since, was = self.status, at - self._at, self._workers
        self.status, self.error, self._at, self._workers = status, "", at, workers_of(status)
        if old is None or old.pid != status.pid or old.totals.workers_started > status.totals.workers_started:
            self.rates = Rates()  # the first of its life
            return
        passed = status.now - old.now
        if not passed:  # the same document once more
            return
        if not since / 2 < passed < since * 2 + 1:  # its clock has jumped
            passed = since
        if passed > 0:
            self.rates = _rates(old, status, was, self._workers, passed)
            self.history.append(self.rates.busy)

    def lose(self, error: str) -> None:
        """Note that the server does not answer."""
        self.error = error or "no answer"
        self.rates = Rates()


def _rates(old: Status, new: Status, was: list[Worker], now: list[Worker], seconds: float) -> Rates:
    known = {worker.pid: worker for worker in was}
    workers = {}
    for worker in now:
        before = known.get(worker.pid)
        if before is not None:
            workers[worker.pid] = (
                min(max(worker.busy_seconds - before.busy_seconds, 0.0) / seconds, 1.0),
                max(worker.cpu_seconds - before.cpu_seconds, 0.0) / seconds,
                max(worker.begun - before.begun, 0.0) / seconds,
            )
    busy = max(new.totals.busy_seconds - old.totals.busy_seconds, 0.0) / seconds
    return Rates(
        tasks=max(new.totals.tasks_begun - old.totals.tasks_begun, 0) / seconds,
        received=max(new.totals.received - old.totals.received, 0) / seconds,
        sent=max(new.totals.sent - old.totals.sent, 0) / seconds,
        busy=min(busy / len(now), 1.0) if now else 0.0,
        workers=workers,
    )


def workers_of(status: Status) -> list[Worker]:
    """Return the workers of a document, by session and slot."""
    if not status.workers.rows:
        return []
    columns = {name: index for index, name in enumerate(status.workers.columns)}
    at = [columns.get(name, -1) for name in Worker._fields]
    found = []
    for row in status.workers.rows:
        cells = [row[index] if 0 <= index < len(row) else None for index in at]
        numbers: list[Any] = [cell if isinstance(cell, (int, float)) else 0 for cell in cells]
        numbers[4] = cells[4] if isinstance(cells[4], str) else "?"
        found.append(Worker(*numbers))
    return sorted(found)


class Client(NamedTuple):
    """One client, on all servers that it has.

    Attributes:
        name: Its label, or else its program.
        pid: Its process, as it calls it.
        farm: What it said last of its farm, on any of the servers.
    """

    name: str
    user: str
    host: str
    pid: str
    workers: int
    busy: int
    servers: int
    seconds: float
    farm: FarmStatus | None


def clients_of(servers: Iterable[Server]) -> list[Client]:
    """Return the clients of the servers that answer, those with the most workers first."""
    found: dict[tuple[str, ...], Client] = {}
    for server in servers:
        if server.error or server.status is None:
            continue
        busy: dict[int, int] = {}
        for worker in workers_of(server.status):
            busy[worker.session] = busy.get(worker.session, 0) + (worker.state == "busy")
        for session in server.status.sessions:
            _add(found, session, busy.get(session.id, 0))
    return sorted(found.values(), key=lambda client: -client.workers)


def _add(found: dict[tuple[str, ...], Client], session: ClientStatus, busy: int) -> None:
    process = session.client.partition(" at ")[0]
    key = (session.host, session.user, process, session.label)
    client = found.get(key)
    if client is None:
        name = session.label or session.program or process
        pid = process.removeprefix("pid ")
        client = Client(name, session.user, session.host, pid, 0, 0, 0, 0.0, None)
    said = session.farm
    if said is None or (client.farm is not None and client.farm.submitted > said.submitted):
        said = client.farm
    found[key] = client._replace(
        workers=client.workers + session.workers,
        busy=client.busy + busy,
        servers=client.servers + 1,
        seconds=max(client.seconds, session.seconds),
        farm=said,
    )
