"""Who is to be killed, and when: because somebody asks for it, or because a task has run too long.

This module owns the orders to kill, until each supervisor has said what came of its part, and the deadlines of the
tasks that run. It must not know sockets, nor which task is on which lane.

A supervisor is told numbers, which after a recall may be those of other tasks. So it is told, too, how many recalls
there had been: if there have been more, it kills nobody, and is told anew when we have heard of them, too. Each
order remembers the tasks themselves, and what is killed counts only if it is one of these.

A deadline runs from the moment in which the farm knows its task to be the oldest on its lane that has not been
answered. For a task that is sent to an idle worker that is when it is sent; for one that was sent ahead, at worst
some milliseconds after its worker has come to it.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable
from functools import partial

from farm_executor.client.farm.reactor import Reactor
from farm_executor.core.messages import KillOrder
from farm_executor.core.task import Kill, Task

__all__ = ["Kills"]

logger = logging.getLogger(__name__)

KILL_SECONDS = 5.0  # for the supervisors' word on what they have killed


class Kills:
    """See the module.

    Args:
        reactor: Runs what is to be done in the farm's own thread.
        send: Tells the lane's supervisor, in that thread; says whether there is one.
        aim: Says what to tell it so that such tasks are killed; None if the lane has none.

    Thread safety: `ask` may be called from any thread, `watch` by whoever holds the engine's lock; the others by
    handlers of the reactor's.
    """

    def __init__(
        self,
        reactor: Reactor,
        send: Callable[[KillOrder], bool],
        aim: Callable[[int, Callable[[Task], bool]], Kill | None],
    ) -> None:
        self._reactor = reactor
        self._send = send
        self._aim = aim
        self._numbers = itertools.count(1)
        self._orders: dict[int, dict[int, _Order]] = {}  # by lane and number
        self._due: dict[int, _Due] = {}  # by lane
        self._next_look = float("inf")

    # -- by request ------------------------------------------------------------------------------------------

    def ask(self, kills: list[Kill], *, wait: bool = True) -> int:
        """Order these kills, and wait for what comes of them; say how many tasks have been killed.

        Who must not wait, such as the farm's own thread, is told how many there will most likely be.
        """
        if not kills:
            return 0
        order = _Order({kill.lane: kill.tasks for kill in kills})
        self._reactor.post(partial(self._order, order, kills))
        if not wait:
            return sum(kill.at_first for kill in kills)
        with self._reactor.waiting(lambda: not order.open):
            order.over.acquire(timeout=KILL_SECONDS)
        for lane in list(order.open):
            logger.warning("kill unanswered lane=%d seconds=%.0f", lane, KILL_SECONDS)
        return order.count

    def _order(self, order: _Order, kills: list[Kill]) -> None:
        number = next(self._numbers)
        for kill in kills:
            self._orders.setdefault(kill.lane, {})[number] = order
            self._pursue(order, number, kill)

    def _pursue(self, order: _Order, number: int, kill: Kill) -> None:
        order.recalls[kill.lane] = kill.recalls
        if not self._tell(number, kill):
            self._give_up(order, kill.lane, number)

    def _give_up(self, order: _Order, lane: int, number: int) -> None:
        self._orders.get(lane, {}).pop(number, None)
        order.note(lane, None)

    def _tell(self, number: int, kill: Kill) -> bool:
        lane, first, recalls, ranges, _ = kill
        return self._send(KillOrder(number, lane, first, recalls, ranges))

    def spared(self, lane: int, number: int, recalls: int) -> None:
        """The lane's worker, which has counted so many recalls, runs no task that this order means.

        Or it may, if that is not what it was told: its word on a recall is on its way to us, or has just come.
        """
        if not number:
            self._spared_due(lane, recalls)
            return
        order = self._orders.get(lane, {}).get(number)
        if order is None:
            return
        if recalls == order.recalls[lane]:
            self._give_up(order, lane, number)
        else:
            self._aim_anew(order, lane, number)

    def _aim_anew(self, order: _Order, lane: int, number: int) -> None:
        meant, told = order.meant[lane], order.recalls[lane]
        kill = self._aim(lane, lambda task: task in meant)
        if kill is None:
            self._give_up(order, lane, number)
        elif kill.recalls != told:
            self._pursue(order, number, kill)
        else:  # we have yet to hear of what the worker has counted
            order.stale.add(lane)

    def renumbered(self, lane: int) -> None:
        """A recall of the lane's has been answered, so that numbers may mean other tasks."""
        for number, order in list(self._orders.get(lane, {}).items()):
            if lane in order.stale:
                order.stale.discard(lane)
                self._aim_anew(order, lane, number)
        due = self._due.get(lane)
        if due is not None and due.stale:
            self._order_due(lane, due)

    def meant(self, lane: int, task: Task) -> bool:
        """The lane's worker was killed while it ran that task: whether that was to be."""
        orders = self._orders.get(lane, {}).values()
        return self.overran(lane, task) or any(task in order.meant[lane] for order in orders)

    def overran(self, lane: int, task: Task) -> bool:
        """Whether that task had run too long on the lane, and its worker was to be killed for it."""
        due = self._due.get(lane)
        return due is not None and due.task is task and due.ordered

    def lane_lost(self, lane: int, killed: Task | None) -> None:
        """The lane is no more, and with it that task, if any, killed."""
        self._due.pop(lane, None)
        for order in self._orders.pop(lane, {}).values():
            order.note(lane, killed)

    def end(self) -> None:
        """There will be no answers any more."""
        for lane in list(self._orders):
            self.lane_lost(lane, None)

    # -- by deadline -----------------------------------------------------------------------------------------

    def watch(self, lane: int, task: Task | None) -> None:
        """The oldest task of the lane is this one; or there is none."""
        if task is None or task.timeout is None:
            self._due.pop(lane, None)
            return
        due = self._due.get(lane)
        if due is None or due.task is not task:
            due = self._due[lane] = _Due(task, time.monotonic() + task.timeout)
            self._look_at(due.when)

    def _look_at(self, when: float) -> None:
        if when < self._next_look:
            self._next_look = when
            self._reactor.after(max(when - time.monotonic(), 0.0), self._look)

    def order_again(self) -> None:
        """A server is back: what it was told in between may not have arrived."""
        for due in self._due.values():
            due.ordered = False
        self._look()

    def _order_due(self, lane: int, due: _Due) -> None:
        kill = self._aim(lane, lambda task: task is due.task)
        if kill is not None:
            due.ordered, due.recalls, due.stale = self._tell(0, kill), kill.recalls, False

    def _spared_due(self, lane: int, recalls: int) -> None:
        """Its worker does not run the task that was due: it has just ended it, or was told of another number."""
        due = self._due.get(lane)
        if due is None or not due.ordered or recalls == due.recalls:
            return
        kill = self._aim(lane, lambda task: task is due.task)
        if kill is not None and kill.recalls != due.recalls:
            self._order_due(lane, due)
        else:
            due.stale = True

    def _look(self) -> None:
        now = time.monotonic()
        self._next_look = float("inf")
        for lane, due in list(self._due.items()):
            if due.ordered:
                continue
            if due.when <= now:
                self._order_due(lane, due)
            else:
                self._look_at(due.when)


class _Due:
    def __init__(self, task: Task, when: float) -> None:
        self.task = task
        self.when = when
        self.ordered = False
        self.recalls = 0  # of the lane, when it was ordered
        self.stale = False  # numbers have changed since, as is still to be heard


class _Order:
    """One request, until each supervisor has answered.

    Attributes:
        meant: For each lane the tasks that are to be killed if they run.
        recalls: For each lane how many it had had when its supervisor was told.
        stale: The lanes whose numbers have changed since, as is still to be heard.
        open: The lanes for which there is no answer yet.
        count: How many tasks have been killed.
        over: Free as soon as there is no open lane. An Event's own lock would not do: what sets it may run in a
            signal handler, on top of who waits.
    """

    def __init__(self, meant: dict[int, list[Task]]) -> None:
        self.meant = meant
        self.recalls: dict[int, int] = {}
        self.stale: set[int] = set()
        self.open = set(meant)
        self.count = 0
        self.over = threading.Lock()
        self.over.acquire()

    def note(self, lane: int, killed: Task | None) -> None:
        if lane not in self.open:
            return
        self.open.discard(lane)
        self.count += killed is not None and killed in self.meant[lane]
        if not self.open:
            self.over.release()
