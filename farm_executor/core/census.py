"""What a server tells of itself and of its clients: the shapes of the document, and of what a client adds to it.

This module owns the names. It must not know where the figures come from, nor how they are checked, which
`messages` does.

All figures are counters or of this moment: rates are for those who look, by the difference of two documents. So a
server does nothing for a rate that nobody looks at. Nothing in it is a task's: no names of functions, no arguments,
no output. A monitor must not be able to read a program's data.
"""

from __future__ import annotations

from typing import Any

from farm_executor._record import NamedTuple
from farm_executor.core.handshake import Versions

__all__ = [
    "SCHEMA",
    "WORKER_COLUMNS",
    "ClientStatus",
    "Death",
    "FarmStatus",
    "MAX_DOCUMENT",
    "Machine",
    "Status",
    "Totals",
    "WorkerTable",
]

SCHEMA = 2
MAX_DOCUMENT = 4 * 1024 * 1024  # bytes of one, for those who watch: tens of thousands of workers
WORKER_COLUMNS = (
    *("session", "slot", "pid", "up", "state", "running_for", "begun", "busy_seconds", "cpu_seconds", "memory"),
    *("received", "sent"),
)
"""The columns of a worker: rows, not objects, as there may be thousands and a row takes at most 80 bytes.

``up`` and ``running_for`` are seconds; ``memory`` is in MiB, and None, like ``cpu_seconds``, where the system does
not tell. ``state`` is "starting", "idle", "busy" or "stopped"; ``begun`` counts tasks, and a block of a map's items
is one."""


class FarmStatus(NamedTuple):
    """What a client tells its servers of the whole of its farm, with each heartbeat. Every figure counts calls."""

    queued: int = 0
    running: int = 0
    submitted: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    lost: int = 0
    killed: int = 0
    resubmitted: int = 0


class ClientStatus(NamedTuple):
    """One client's session.

    Attributes:
        id: A number that no other session of this server has had.
        client: What it calls itself, and where it comes from, for people.
        host: The name of its machine.
        user: Who runs it.
        program: The file name of its program.
        label: The executor's ``name``.
        seconds: How long the session has been there.
        state: "open", or "cut" while its connection is broken.
        workers: How many it has.
        farm: What it said last of its farm; None if it has not said anything.
    """

    id: int
    client: str
    host: str
    user: str
    program: str
    label: str
    seconds: float
    state: str
    workers: int
    farm: FarmStatus | None = None


class Machine(NamedTuple):
    """The server's machine, or what the server may use of it.

    Attributes:
        cpus: How many it may use; less than 1 with a quota below that.
        load: The system's load averages, of 1, 5 and 15 minutes.
        memory: Bytes that it may use; None if the system does not tell.
        available: Bytes of these that are free or can be freed; None if the system does not tell.
    """

    cpus: float
    load: list[float]
    memory: int | None = None
    available: int | None = None


class Totals(NamedTuple):
    """Counters since the server was started.

    Attributes:
        sessions: How many have been opened.
        workers_started: How many workers.
        workers_ended: How many have ended, by cause.
        tasks_begun: By all workers.
        busy_seconds: Seconds in which workers ran tasks.
        received: Bytes on the lanes of all workers.
        sent: The same for what they have sent.
    """

    sessions: int
    workers_started: int
    workers_ended: dict[str, int]
    tasks_begun: int
    busy_seconds: float
    received: int
    sent: int


class Death(NamedTuple):
    """The end of a worker that was not told to end.

    Attributes:
        at: When, in seconds since 1970, by the server's clock.
        session: Whose it was.
        cause: "killed" on request, "held" too much memory, "frozen", "oom" by the system, "signal" or "exit".
        code: The exit code; a negative one is the signal.
        peak: The most bytes that it had in memory.
    """

    at: float
    session: int
    slot: int
    pid: int
    cause: str
    code: int
    peak: int


class WorkerTable(NamedTuple):
    """All workers: the names of the columns, and a row for each; see `WORKER_COLUMNS`."""

    columns: list[str]
    rows: list[list[Any]]


class Status(NamedTuple):
    """A server's report on itself.

    Attributes:
        farm_status: The version of this document.
        address: Where it listens.
        name: Its label.
        host: The name of its machine.
        user: Who runs it.
        pid: Its process.
        seconds: Its age.
        now: Seconds since 1970, by its clock.
        slots: How many workers each client may have.
        draining: Whether it was told to end.
        sessions_left_out: How many sessions more there are, with their workers, if an answer has no room for them.
        deaths: The last of them.
    """

    farm_status: int
    address: str
    name: str
    host: str
    user: str
    pid: int
    seconds: float
    now: float
    slots: int
    draining: bool
    versions: Versions
    machine: Machine
    totals: Totals
    sessions: list[ClientStatus]
    sessions_left_out: int
    workers: WorkerTable
    deaths: list[Death]
