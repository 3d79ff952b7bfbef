"""Who is to be killed, and when: because somebody asks for it, or because a task has run too long.

This module owns the orders to kill, until each supervisor has said what came of its part, and the deadlines of the
tasks that run. It must not know sockets, nor which task is on which lane.

A deadline runs from the moment in which the farm knows its task to be the oldest on its lane that has not been
answered: at worst some milliseconds after its worker has come to it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from farm_executor.client.reactor import Reactor
from farm_executor.core.scheduler import Kill, Task

__all__ = ["Kills"]

logger = logging.getLogger(__name__)

KILL_SECONDS = 5.0  # for the supervisors' word on what they have killed


class Kills:
    """See the module.

    Args:
        reactor: Runs what is to be done in the farm's own thread.
        order: Tells a lane's supervisor, in that thread; says whether there is one.

    Thread safety: `ask` may be called from any thread, `watch` by whoever holds the engine's lock; the others by
    handlers of the reactor's.
    """

    def __init__(self, reactor: Reactor, order: Callable[[Kill], bool]) -> None:
        self._reactor = reactor
        self._order = order
        self._orders: dict[int, list[_Order]] = {}  # by lane
        self._due: dict[int, _Due] = {}  # by lane
        self._next_look = float("inf")

    # -- by request ------------------------------------------------------------------------------------------

    def ask(self, kills: list[Kill]) -> int:
        """Order these kills, and wait for what comes of them; say how many tasks have been killed.

        The farm's own thread must not wait, and is told how many there will most likely be.
        """
        order = _Order({kill.lane for kill in kills})
        self._reactor.post(partial(self._send, order, kills))
        if self._reactor.is_own_thread() or not kills:
            return sum(kill.at_first for kill in kills)
        with self._reactor.waiting(order.over.is_set):
            order.over.wait(KILL_SECONDS)
        for lane in list(order.lanes):
            logger.warning("kill unanswered lane=%d seconds=%.0f", lane, KILL_SECONDS)
        return order.count

    def _send(self, order: _Order, kills: list[Kill]) -> None:
        for kill in kills:
            if self._order(kill):
                self._orders.setdefault(kill.lane, []).append(order)
            else:
                order.note(kill.lane, 0)

    def answered(self, lane: int, count: int) -> None:
        """The lane's supervisor has spared its worker, or it is dead, with so many tasks killed."""
        for order in self._orders.pop(lane, ()):
            order.note(lane, count)

    def end(self) -> None:
        """There will be no answers any more."""
        for lane in list(self._orders):
            self.answered(lane, 0)

    # -- by deadline -----------------------------------------------------------------------------------------

    def watch(self, lane: int, task: Task | None, seq: int) -> None:
        """The oldest task of the lane is this one, with that number; or there is none."""
        if task is None or task.timeout is None:
            self._due.pop(lane, None)
            return
        due = self._due.get(lane)
        if due is None or due.task is not task:
            due = self._due[lane] = _Due(task, seq, time.monotonic() + task.timeout)
            self._look_at(due.when)

    def overran(self, lane: int, task: Task) -> bool:
        """The lane is dead: whether that task had run too long, and its worker was to be killed for it."""
        due = self._due.pop(lane, None)
        return due is not None and due.task is task and due.ordered

    def _look_at(self, when: float) -> None:
        if when < self._next_look:
            self._next_look = when
            self._reactor.after(max(when - time.monotonic(), 0.0), self._look)

    def _look(self) -> None:
        now = time.monotonic()
        self._next_look = float("inf")
        for lane, due in list(self._due.items()):
            if due.ordered:
                continue
            if due.when <= now:
                due.ordered = self._order(Kill(lane, due.seq, [(due.seq, due.seq)]))
            else:
                self._look_at(due.when)


@dataclass
class _Due:
    task: Task
    seq: int
    when: float
    ordered: bool = False


class _Order:
    """One request, until each supervisor has answered."""

    def __init__(self, lanes: set[int]) -> None:
        self.lanes = lanes
        self.count = 0
        self.over = threading.Event()

    def note(self, lane: int, count: int) -> None:
        self.lanes.discard(lane)
        self.count += count
        if not self.lanes:
            self.over.set()
