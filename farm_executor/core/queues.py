"""The tasks that are on no lane: one queue per priority for any lane, and one per seat for that seat's lane.

This module owns their order. It must not know lanes, nor why a task comes or goes.
"""

from __future__ import annotations

from bisect import insort
from collections import OrderedDict
from collections.abc import Hashable, Iterator

from farm_executor.core.task import Task

__all__ = ["Queues"]


class Queues:
    """The tasks that are on no lane. Each operation costs the same however many tasks there are.

    Attributes:
        queued: The number of tasks for any lane.
        reserved: The number of tasks for a seat.
    """

    __slots__ = ("_by_priority", "_by_seat", "_priorities", "queued", "reserved")

    def __init__(self) -> None:
        # Ordered dicts by id, because a task in the middle may be cancelled, and a deque would have to be searched.
        # A plain dict cannot put a task in front, and finding its first item again and again is slow: it skips the
        # place of every item removed before it.
        self._by_priority: dict[float, OrderedDict[int, Task]] = {}
        self._by_seat: dict[Hashable, OrderedDict[int, Task]] = {}
        self._priorities: list[float] = []  # negated, so that the first is the highest
        self.queued = 0
        self.reserved = 0

    def __contains__(self, task: Task) -> bool:
        queue = self._queue_of(task)
        return queue is not None and task.id in queue

    def __iter__(self) -> Iterator[Task]:
        """Iterate over every task: those for any lane by priority, then those with a seat."""
        for queue in [*(self._by_priority[-priority] for priority in self._priorities), *self._by_seat.values()]:
            yield from queue.values()

    def append(self, task: Task) -> None:
        """Add a task behind all others of its priority or seat."""
        if task.seat is not None:
            self._by_seat.setdefault(task.seat, OrderedDict())[task.id] = task
            self.reserved += 1
            return
        queue = self._by_priority.get(task.priority)
        if queue is None:
            queue = self._by_priority[task.priority] = OrderedDict()
            insort(self._priorities, -task.priority)
        queue[task.id] = task
        self.queued += 1

    def prepend(self, task: Task) -> None:
        """Add a task before all others of its priority or seat."""
        self.append(task)
        queue = self._queue_of(task)
        assert queue is not None
        queue.move_to_end(task.id, last=False)

    def remove(self, task: Task) -> bool:
        """Remove a task if it is here; return whether it was."""
        queue = self._queue_of(task)
        if queue is None or queue.pop(task.id, None) is None:
            return False
        if task.seat is not None:
            self.reserved -= 1
            return True
        self.queued -= 1
        if not queue:
            self._drop(task.priority)
        return True

    def pop(self, count: int) -> list[Task]:
        """Remove and return up to ``count`` tasks, all of the highest priority that is queued."""
        priority = -self._priorities[0]
        queue = self._by_priority[priority]
        first = [queue.popitem(last=False)[1] for _ in range(min(count, len(queue)))]
        self.queued -= len(first)
        if not queue:
            self._drop(priority)
        return first

    def has_reserved(self, seat: Hashable) -> bool:
        """Return whether any task is reserved for that seat."""
        return bool(self._by_seat.get(seat))

    def pop_reserved(self, seat: Hashable) -> list[Task]:
        """Remove and return all tasks that are reserved for that seat."""
        tasks = list(self._by_seat.pop(seat, {}).values())
        self.reserved -= len(tasks)
        return tasks

    def _queue_of(self, task: Task) -> OrderedDict[int, Task] | None:
        return self._by_priority.get(task.priority) if task.seat is None else self._by_seat.get(task.seat)

    def _drop(self, priority: float) -> None:
        # Empty queues go, because `pop` relies on the first priority having a task.
        del self._by_priority[priority]
        self._priorities.remove(-priority)
