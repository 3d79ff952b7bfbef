"""What a farm tells about itself: immutable snapshots. This module knows nothing else."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

__all__ = ["FarmStatistics", "ServerStatistics", "WorkerStatistics"]


@dataclass(frozen=True)
class WorkerStatistics:
    """One worker, since it was started.

    Attributes:
        slot: Its place on its server, from 0.
        pid: Its process there.
        tasks_done: How many tasks it has answered.
        busy_seconds: How long it ran them.
        outstanding: How many it has been sent and not answered.
        category: That of the task that it runs; None if it runs none, or one without a category.
    """

    slot: int
    pid: int
    tasks_done: int
    busy_seconds: float
    outstanding: int
    category: Hashable = None


@dataclass(frozen=True)
class ServerStatistics:
    """One server.

    Attributes:
        address: As it was given; an embedded farm's is a unix socket.
        up: Whether there is a session with it now.
        workers: This farm's workers there, those starting included.
        slots: How many workers it gives this farm, as far as it has answered.
        last_error: Why the last attempt to reach it failed; empty if none did.
    """

    address: str
    up: bool
    workers: tuple[WorkerStatistics, ...]
    last_error: str
    slots: int = 0


@dataclass(frozen=True)
class FarmStatistics:
    """A farm at one moment.

    Every figure counts calls: each item of a `map` is one, whatever travels together, and so is each chunk where
    ``chunksize`` is more than 1.

    Attributes:
        state: "new" before the first submit, then "open", "shut down" or "broken".
        servers: Each of its servers.
        queued: Tasks that wait for a worker.
        pending_bytes: What is held of the arguments of tasks that have not ended.
        waiting_submitters: Threads whose `submit` waits because of ``max_pending_bytes``.
        running: Tasks sent to a worker and not answered.
        submitted: All tasks so far; the following count those that ended.
        succeeded: Tasks with a result.
        failed: Tasks with an exception of their own or of the farm's.
        cancelled: Tasks cancelled before they ran, and what was left of a `map` when an item had failed.
        resubmitted: How often a task was moved from a worker that was lost.
        lost: Tasks that ended with WorkerLostError.
        killed: Tasks that ended with TaskKilledError.
    """

    state: str = "new"
    servers: tuple[ServerStatistics, ...] = ()
    queued: int = 0
    running: int = 0
    submitted: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    resubmitted: int = 0
    lost: int = 0
    killed: int = 0
    pending_bytes: int = 0
    waiting_submitters: int = 0
