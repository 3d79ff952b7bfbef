"""A farm's statistics: immutable snapshots, and the function that takes one.

This module owns the meaning of the figures and where each is counted. It must not change anything.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

# The public API exports these classes, so programs that do not have a farm yet import this module, too. The imports
# below would load the whole engine for them.
if TYPE_CHECKING:
    from farm_executor.client.farm.budget import Budget
    from farm_executor.client.farm.dispatch import Dispatch
    from farm_executor.client.farm.lane import Lane
    from farm_executor.client.farm.servers import Servers
    from farm_executor.core.census import FarmStatus
    from farm_executor.core.task import Task

__all__ = ["FarmStatistics", "ServerStatistics", "WorkerStatistics", "farm_status", "snapshot"]


@dataclass(frozen=True)
class WorkerStatistics:
    """One worker, since it was started.

    Attributes:
        slot: The worker's place on its server, from 0.
        pid: Its process ID there.
        tasks_done: The number of tasks it has answered.
        busy_seconds: The time it spent running them, in seconds.
        outstanding: The number of tasks sent to it and not answered yet.
        category: The category of the task it is running; None if it runs none, or one without a category.
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
        address: The address as given; an embedded farm's is a unix socket.
        up: Whether there is a session with the server now.
        workers: This farm's workers there, including those that are starting.
        slots: The number of workers that the server gives this farm; 0 until it has answered.
        last_error: Why the last attempt to reach the server failed; empty if it did not.
    """

    address: str
    up: bool
    workers: tuple[WorkerStatistics, ...]
    last_error: str
    slots: int = 0


@dataclass(frozen=True)
class FarmStatistics:
    """A farm at one moment.

    Every figure counts calls. Each item of a `map` is one call, no matter how many travel together; with a
    ``chunksize`` of more than 1, each chunk is one call.

    Attributes:
        state: "new" before the first submit, then "open", "shut down" or "broken".
        servers: The farm's servers.
        queued: Tasks that wait for a worker.
        pending_bytes: Bytes held for the arguments of tasks that have not ended. If more than 10,000 wait, as many
            of them are measured, those that are next, and the others are taken to be like them.
        waiting_submitters: Threads whose `submit` waits because of ``max_pending_bytes``.
        running: Tasks sent to a worker and not answered yet.
        submitted: All tasks so far; the following figures count those that have ended.
        succeeded: Tasks with a result.
        failed: Tasks with an exception of their own or of the farm's.
        cancelled: Tasks cancelled before they ran, and the rest of a `map` after one of its items failed.
        resubmitted: How often a task was moved away from a lost worker.
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


LANES_AT_ONCE = 200
"""The number of lanes to read under one hold of the engine's lock, which takes a tenth of a millisecond.

The snapshot of a farm with no more lanes than this shows a single moment; larger farms are read piece by piece.
"""

QUEUED_AT_MOST = 10_000
"""The number of queued tasks to look at; listing them takes a third of a millisecond of that hold."""


def snapshot(
    state: str, dispatch: Dispatch, servers: Servers, budget: Budget | None, counts: Mapping[str, int]
) -> FarmStatistics:
    """Take a snapshot of a farm. Everything that takes long is done without the engine's lock."""
    from farm_executor.client.farm.interrupt import HeldBack
    from farm_executor.client.farm.lane import size_of  # late, see above

    farm = list(servers)
    sessions = [link.session for link in farm]
    lanes = [[] if session is None else list(session.lanes.values()) for session in sessions]
    every = [lane for those in lanes for lane in those]
    waiting: list[Any] = []  # calls
    sent: dict[int, list[Any]] = {}
    for first in range(0, max(len(every), 1), LANES_AT_ONCE):
        # An interrupt must not come while the lock is held, hence `HeldBack`.
        with HeldBack(), dispatch.look():
            # The queue is read in the same hold as the first lanes, so a small farm shows a single moment.
            if not first:
                waiting = dispatch.scheduler.waiting(QUEUED_AT_MOST)
            for lane in every[first : first + LANES_AT_ONCE]:
                sent[lane.id] = dispatch.scheduler.tasks_on(lane.id)
    running = {task.id: task for tasks in sent.values() for task in tasks}
    # In a large farm a task may have been sent, or have come back, between two looks: it counts once.
    queue = [task for task in waiting if task.id not in running]
    running_calls = sum(task.calls for task in running.values())
    queued, held = sum(task.calls for task in queue), sum(size_of(task) for task in queue)
    if len(waiting) == QUEUED_AT_MOST:
        # What has not ended and does not run; of the bytes, as many for each call as with the first.
        unsettled = dispatch.submitted - sum(number for end, number in counts.items() if end != "resubmitted")
        first, queued = queued, max(unsettled - running_calls, queued)
        held = held * queued // max(first, 1)
    return FarmStatistics(
        state=state,
        servers=tuple(
            ServerStatistics(
                str(link),
                link.up,
                tuple(_worker(lane, sent[lane.id]) for lane in those),
                link.last_error,
                servers.counts.get(link, 0),
            )
            for link, those in zip(farm, lanes, strict=True)
        ),
        queued=queued,
        running=running_calls,
        pending_bytes=held + sum(size_of(task) for task in running.values()),
        waiting_submitters=budget.waiting if budget else 0,
        submitted=dispatch.submitted,
        **counts,
    )


def farm_status(dispatch: Dispatch, lanes: list[int], counts: Mapping[str, int]) -> FarmStatus:
    """Count a farm's calls for its servers, cheaply enough for every heartbeat: the queue is not read."""
    from farm_executor.core.census import FarmStatus

    scheduler = dispatch.scheduler
    ended = sum(number for end, number in counts.items() if end != "resubmitted")
    with dispatch.look():
        if len(lanes) <= LANES_AT_ONCE:
            running = sum([task.calls for lane in lanes for task in scheduler.tasks_on(lane)])
        else:  # by tasks, of which blocks of a map's items are few in a farm of this size
            running = scheduler.unsettled - scheduler.queued - scheduler.reserved
        submitted = dispatch.submitted
    queued = max(submitted - ended - running, 0)
    return FarmStatus(queued=queued, running=running, submitted=submitted, **counts)


def _worker(lane: Lane, tasks: list[Task]) -> WorkerStatistics:
    return WorkerStatistics(
        slot=lane.slot,
        pid=lane.pid,
        tasks_done=lane.calls_done,
        busy_seconds=lane.busy_seconds,
        outstanding=sum(task.calls for task in tasks),
        category=tasks[0].options.category if tasks else None,
    )
