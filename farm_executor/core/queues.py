"""The tasks that are on no lane: one queue per priority for any lane, and one per seat for that seat's lane.

This module owns their order. It must not know lanes, nor why a task comes or goes.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Hashable, Iterator

from farm_executor.core.task import NOWHERE, QUEUED, Task

__all__ = ["Queues"]


class Queues:
    """The tasks that are on no lane. Each operation costs the same however many tasks there are.

    A task is here if its ``lane`` is `QUEUED`, which this module alone sets.

    Attributes:
        queued: The number of tasks for any lane.
        reserved: The number of tasks for a seat.
    """

    __slots__ = ("_by_priority", "_by_seat", "_priorities", "queued", "reserved")

    def __init__(self) -> None:
        self._by_priority: dict[float, _Queue] = {}
        self._by_seat: dict[Hashable, _Queue] = {}
        self._priorities: list[float] = []  # negated, so that the first is the highest
        self.queued = 0
        self.reserved = 0

    def __contains__(self, task: Task) -> bool:
        return task.lane == QUEUED

    def __iter__(self) -> Iterator[Task]:
        """Iterate over every task: those for any lane by priority, then those with a seat."""
        for queue in [*(self._by_priority[-priority] for priority in self._priorities), *self._by_seat.values()]:
            yield from queue

    def append(self, task: Task) -> None:
        """Add a task behind all others of its priority or seat."""
        self._queue_for(task).tasks.append(task)

    def prepend(self, task: Task) -> None:
        """Add a task before all others of its priority or seat."""
        self._queue_for(task).tasks.appendleft(task)

    def remove(self, task: Task) -> bool:
        """Remove a task if it is here; return whether it was."""
        if task.lane != QUEUED:
            return False
        if task.seat is not None:
            self._by_seat[task.seat].remove(task)
            self.reserved -= 1
            return True
        priority = task.options.priority
        queue = self._by_priority[priority]
        queue.remove(task)
        self.queued -= 1
        if not queue.length:
            self._drop(priority)
        return True

    def pop(self, count: int) -> list[Task]:
        """Remove and return up to ``count`` tasks, all of the highest priority that is queued."""
        priority = -self._priorities[0]
        queue = self._by_priority[priority]
        first = queue.pop(min(count, queue.length))
        self.queued -= len(first)
        if not queue.length:
            self._drop(priority)
        return first

    def has_reserved(self, seat: Hashable) -> bool:
        """Return whether any task is reserved for that seat."""
        return seat in self._by_seat and self._by_seat[seat].length > 0

    def pop_reserved(self, seat: Hashable) -> list[Task]:
        """Remove and return all tasks that are reserved for that seat."""
        queue = self._by_seat.pop(seat, None)
        tasks = [] if queue is None else queue.pop(queue.length)
        self.reserved -= len(tasks)
        return tasks

    def _queue_for(self, task: Task) -> _Queue:
        """Return the queue that a task is about to be put into."""
        task.lane = QUEUED
        if task.seat is not None:
            self.reserved += 1
            queue = self._by_seat.setdefault(task.seat, _Queue())
        else:
            self.queued += 1
            priority = task.options.priority
            if priority not in self._by_priority:
                self._by_priority[priority] = _Queue()
                insort(self._priorities, -priority)
            queue = self._by_priority[priority]
        queue.length += 1
        return queue

    def _drop(self, priority: float) -> None:
        # Empty queues go, because `pop` relies on the first priority having a task.
        del self._by_priority[priority]
        self._priorities.remove(-priority)


class _Queue:
    """Tasks in order, eight bytes for each. One that is removed leaves a gap, as a deque would have to be searched.

    Attributes:
        tasks: Those that are queued, and gaps: tasks that have gone, and never come back.
        length: How many are queued.
    """

    __slots__ = ("length", "tasks")

    def __init__(self) -> None:
        self.tasks: deque[Task] = deque()
        self.length = 0

    def __iter__(self) -> Iterator[Task]:
        return (task for task in self.tasks if task.lane == QUEUED)

    def pop(self, count: int) -> list[Task]:
        """Remove and return the first ``count`` tasks, of as many at least."""
        popped: list[Task] = []
        while len(popped) < count:
            task = self.tasks.popleft()
            if task.lane == QUEUED:
                task.lane = NOWHERE
                popped.append(task)
        self.length -= count
        return popped

    def remove(self, task: Task) -> None:
        """Remove a task that is queued here."""
        task.lane = NOWHERE
        self.length -= 1
        # Once there are more gaps than tasks: each then costs no more than what it took to get there.
        if len(self.tasks) > 2 * self.length:
            self.tasks = deque(self)
