"""The tasks that are on no lane: one queue per priority for any lane, and one per seat for that seat's lane.

This module owns their order. It must not know lanes, nor why a task comes or goes.

A million tasks may wait, and each takes 8 bytes here. So a queue is a deque, and a task that is removed from its
middle, as it has been cancelled, leaves its place behind, which is skipped when its turn comes. Once most places
are such, they are cleared away.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Hashable, Iterator

from farm_executor.core.task import Task

__all__ = ["Queues"]


class _Queue:
    """Tasks in their order. Each operation costs the same on average, however many there are."""

    __slots__ = ("_gone", "_places")

    def __init__(self) -> None:
        self._places: deque[Task] = deque()
        self._gone: set[int] = set()  # the tasks, by id, whose places are left

    def __len__(self) -> int:
        return len(self._places) - len(self._gone)

    def __iter__(self) -> Iterator[Task]:
        return (task for task in self._places if task.queued) if self._gone else iter(self._places)

    def append(self, task: Task, *, in_front: bool = False) -> None:
        # With two places it would be taken twice.
        if self._gone and task.id in self._gone:
            self._clear_away()
        task.queued = True
        if in_front:
            self._places.appendleft(task)
        else:
            self._places.append(task)

    def remove(self, task: Task) -> None:
        task.queued = False
        self._gone.add(task.id)
        if len(self._gone) > len(self):
            self._clear_away()

    def pop(self, count: int) -> list[Task]:
        """Remove and return the first tasks, of which there are as many."""
        if not self._gone:
            first = [self._places.popleft() for _ in range(count)]
            for task in first:
                task.queued = False
            return first
        popped: list[Task] = []
        while len(popped) < count:
            task = self._places.popleft()
            if task.queued:
                task.queued = False
                popped.append(task)
            else:
                self._gone.discard(task.id)
        return popped

    def _clear_away(self) -> None:
        self._places = deque(self)
        self._gone.clear()


class Queues:
    """The tasks that are on no lane. Each operation costs the same on average, however many tasks there are.

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
        return task.queued

    def __iter__(self) -> Iterator[Task]:
        """Iterate over every task: those for any lane by priority, then those with a seat."""
        for queue in [*(self._by_priority[-priority] for priority in self._priorities), *self._by_seat.values()]:
            yield from queue

    def append(self, task: Task, *, in_front: bool = False) -> None:
        """Add a task behind all others of its priority or seat, or in front of them."""
        if task.seat is not None:
            queue = self._by_seat.get(task.seat)
            if queue is None:
                queue = self._by_seat[task.seat] = _Queue()
            self.reserved += 1
        else:
            queue = self._by_priority.get(task.priority)
            if queue is None:
                queue = self._by_priority[task.priority] = _Queue()
                insort(self._priorities, -task.priority)
            self.queued += 1
        queue.append(task, in_front=in_front)

    def prepend(self, task: Task) -> None:
        """Add a task before all others of its priority or seat."""
        self.append(task, in_front=True)

    def remove(self, task: Task) -> bool:
        """Remove a task if it is here; return whether it was."""
        if not task.queued:
            return False
        if task.seat is not None:
            self._by_seat[task.seat].remove(task)
            self.reserved -= 1
            return True
        queue = self._by_priority[task.priority]
        queue.remove(task)
        self.queued -= 1
        if not len(queue):
            self._drop(task.priority)
        return True

    def pop(self, count: int) -> list[Task]:
        """Remove and return up to ``count`` tasks, all of the highest priority that is queued."""
        priority = -self._priorities[0]
        queue = self._by_priority[priority]
        first = queue.pop(min(count, len(queue)))
        self.queued -= len(first)
        if not len(queue):
            self._drop(priority)
        return first

    def has_reserved(self, seat: Hashable) -> bool:
        """Return whether any task is reserved for that seat."""
        queue = self._by_seat.get(seat)
        return queue is not None and len(queue) > 0

    def pop_reserved(self, seat: Hashable) -> list[Task]:
        """Remove and return all tasks that are reserved for that seat."""
        queue = self._by_seat.pop(seat, None)
        tasks = [] if queue is None else queue.pop(len(queue))
        self.reserved -= len(tasks)
        return tasks

    def _drop(self, priority: float) -> None:
        # Empty queues go, because `pop` relies on the first priority having a task.
        del self._by_priority[priority]
        self._priorities.remove(-priority)
