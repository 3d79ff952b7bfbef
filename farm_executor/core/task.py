"""The scheduler's view of a call, and the decisions that it can make about one.

This module owns the vocabulary between the scheduler and its driver. It must not know how decisions are made.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

from farm_executor._record import NamedTuple, maker
from farm_executor.core.options import DEFAULTS, TaskOptions

__all__ = [
    "NOWHERE",
    "QUEUED",
    "Assign",
    "Cancel",
    "Decision",
    "Kill",
    "Lose",
    "Recall",
    "Retire",
    "Task",
    "make_assign",
]

NOWHERE, QUEUED = -1, -2  # in place of a lane's number


class Task:
    """One call that is queued or has been sent. The driver adds what it needs to send it, in a class of its own.

    Attributes:
        id: Unique within its scheduler; ascending in the order of submission.
        options: What its caller wants of it.
        seat: The seat whose lane alone may run it; None for any lane.
        calls: How many of the user's calls it stands for.
        goes_on: Whether these have been submitted before, as part of another task.
        losses: How many worker deaths have been charged to it.
        started: Whether it has ever left the queue.
        lane: The lane that it was last sent to, which it may have left since; else `QUEUED` or `NOWHERE`.
        begun: Whether it may have begun on a worker that is gone, which cannot be undone.
        unwanted: Called when the task comes back from a lane; returns whether it is cancelled, in which case it is
            not queued again. None if nobody has asked to cancel it.
    """

    # A million tasks may wait. So each has room for what nearly all of them need, and a dict for the rest, which is
    # made when a task first differs from these defaults.
    __slots__ = ("__dict__", "id", "lane", "options", "started")

    seat: Hashable = None
    calls = 1
    goes_on = False
    losses = 0
    begun = False
    unwanted: Callable[[], bool] | None = None

    def __init__(self, id: int, options: TaskOptions = DEFAULTS, seat: Hashable = None) -> None:
        self.id = id
        self.options = options
        if seat is not None:
            self.seat = seat
        self.lane = NOWHERE
        self.started = False


class Assign(NamedTuple):
    """Send these tasks, numbered from ``seq`` on, to the lane."""

    lane: int
    seq: int
    tasks: list[Task]


make_assign = maker(Assign)


class Recall(NamedTuple):
    """Ask the lane to give back up to ``count`` of the tasks that it has not begun."""

    lane: int
    count: int  # type: ignore[assignment]  # shadows tuple.count, which nobody misses


class Retire(NamedTuple):
    """End the lane: it has used up its budget of tasks, or is drained. The scheduler has forgotten it."""

    lane: int


class Lose(NamedTuple):
    """Settle the task as lost because its worker died, or as ``killed``: it must not be sent again."""

    task: Task
    killed: bool = False


class Cancel(NamedTuple):
    """Settle the task as cancelled: it has come back, and `Task.unwanted` has returned true."""

    task: Task


class Kill(NamedTuple):
    """Kill the lane's worker if the task that it runs is one of those numbered in ``ranges``, both ends included.

    It runs no task before ``first``, the oldest that has not been answered.
    """

    lane: int
    first: int
    recalls: int  # how many the lane has had so far: after another, these numbers may belong to other tasks
    ranges: list[tuple[int, int]]
    tasks: list[Task]  # those that have these numbers now, because the numbers of recalled tasks are reused

    @property
    def at_first(self) -> bool:
        """Whether the oldest unanswered task, which is most likely running, is one of them."""
        return self.ranges[0][0] == self.first


Decision = Assign | Recall | Retire | Lose | Cancel
