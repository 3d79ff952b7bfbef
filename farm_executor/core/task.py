"""A call on its way, as the scheduler sees it, and what the scheduler can decide about it.

This module owns the words between the scheduler and its driver. It must not know how decisions are made.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

__all__ = ["Assign", "Cancel", "Decision", "Kill", "Lose", "Recall", "Retire", "Task"]


class Task:
    """One call on its way.

    Attributes:
        id: Unique within its scheduler; ascending in the order of submission.
        call: Whatever the driver needs to send it; opaque here.
        seat: The place whose lane alone may run it; None for any lane.
        calls: For how many calls of the user's it stands.
        goes_on: Whether these have been submitted before, as part of another task.
        timeout: Seconds that it may run; the driver's to see to.
        losses: How many workers died while they ran it.
        started: Whether it has ever left the queue.
        lane: The last that it was sent to; -1 if it was sent to none. It need not be there any more.
        begun: Whether it may have begun, on a worker that is gone: nobody can take that back.
        unwanted: Asked when it comes back: whether it is cancelled, and so is not queued again. None if not.
    """

    __slots__ = (
        "begun",
        "call",
        "calls",
        "category",
        "goes_on",
        "id",
        "lane",
        "losses",
        "max_attempts",
        "priority",
        "seat",
        "started",
        "timeout",
        "unwanted",
    )

    def __init__(
        self,
        id: int,
        call: Any,
        priority: float = 0,
        category: Hashable = None,
        max_attempts: int = 3,
        seat: Hashable = None,
    ) -> None:
        self.id = id
        self.call = call
        self.priority = priority
        self.category = category
        self.max_attempts = max_attempts
        self.seat = seat
        self.calls = 1
        self.goes_on = False
        self.timeout: float | None = None
        self.losses = 0
        self.lane = -1
        self.started = self.begun = False
        self.unwanted: Callable[[], bool] | None = None


class Assign(NamedTuple):
    """Send these tasks, numbered from ``seq`` on, to the lane."""

    lane: int
    seq: int
    tasks: list[Task]


class Recall(NamedTuple):
    """Ask the lane for up to ``count`` of the tasks that it has not begun."""

    lane: int
    count: int  # type: ignore[assignment]  # shadows tuple.count, which nobody misses


class Retire(NamedTuple):
    """The lane has run all the tasks that it was allowed, or is drained: end it. The scheduler has forgotten it."""

    lane: int


class Lose(NamedTuple):
    """Settle the task as lost, its worker having died, or as ``killed``: it must not be sent again."""

    task: Task
    killed: bool = False


class Cancel(NamedTuple):
    """The task has come back and is cancelled: it was agreed to that, see `Task.unwanted`."""

    task: Task


class Kill(NamedTuple):
    """Kill the lane's worker if the task that it runs is one of those numbered in ``ranges``, both ends included.

    It runs no task before ``first``, which is the oldest that has not been answered.
    """

    lane: int
    first: int
    recalls: int  # of the lane until now: later, numbers may be those of other tasks
    ranges: list[tuple[int, int]]
    tasks: list[Task]  # which these are now: numbers of tasks that are recalled are given again

    @property
    def at_first(self) -> bool:
        """Whether the oldest, which it most likely runs, is one of them."""
        return self.ranges[0][0] == self.first


Decision = Assign | Recall | Retire | Lose | Cancel
