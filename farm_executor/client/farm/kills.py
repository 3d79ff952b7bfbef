"""Kills running tasks: on request, or because a task has run longer than its timeout.

This module owns the orders to kill, until each supervisor has said what came of its part, and the deadlines of the
tasks that run. It must not know sockets, nor which task is on which lane.

A supervisor is told the numbers of tasks, which after a recall may belong to other tasks. So each order also says
how many recalls the lane had had. If the worker has counted more, its supervisor kills nothing, and gets a new
order once the client has heard of those recalls, too. An order remembers the tasks themselves, and a kill counts
only if the task that died is one of them.

A deadline runs from the moment when the farm knows that the task is the oldest unanswered one on its lane. For a
task that is sent to an idle worker, that is when it is sent; for one that was sent ahead, at worst some
milliseconds after its worker has begun it.
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

KILL_SECONDS = 5.0  # to wait for the supervisors' reports of what they have killed


class Kills:
    """All kill orders and deadlines of one farm; see the module.

    Args:
        reactor: Runs actions in the farm's own thread.
        send: Sends an order to the lane's supervisor, in that thread; returns whether there is one.
        aim: Returns the kill that hits the lane's tasks for which a predicate holds; None if there are none.

    Thread safety: `ask` may be called from any thread, `watch` by the thread that holds the engine's lock, the
    others by handlers of the reactor.
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
        """Order these kills, and wait for the answers; return how many tasks have been killed.

        Callers that must not wait, such as the farm's own thread, get the number that is most likely.
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
        # Noted before it is told, as `spared` compares the answer with this.
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
        """Handle the answer that the lane's worker, after that many recalls, runs no task that the order names.

        If it has counted other recalls than the order, it may still run one that is meant, under another number:
        its answer to a recall is on its way to the client, or has just come.
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
        # By the tasks themselves, as their numbers may be those of others by now.
        kill = self._aim(lane, lambda task: task in meant)
        if kill is None:
            self._give_up(order, lane, number)
        elif kill.recalls != told:
            self._pursue(order, number, kill)
        else:  # the client has yet to hear of the recall that the worker has counted; see `renumbered`
            order.stale.add(lane)

    def renumbered(self, lane: int) -> None:
        """Handle the answer to a recall of the lane, after which numbers may mean other tasks."""
        for number, order in list(self._orders.get(lane, {}).items()):
            if lane in order.stale:
                order.stale.discard(lane)
                self._aim_anew(order, lane, number)
        due = self._due.get(lane)
        if due is not None and due.stale:
            self._order_due(lane, due)

    def meant(self, lane: int, task: Task) -> bool:
        """Return whether a kill of the lane's worker while it ran that task was ordered."""
        orders = self._orders.get(lane, {}).values()
        return self.overran(lane, task) or any(task in order.meant[lane] for order in orders)

    def overran(self, lane: int, task: Task) -> bool:
        """Return whether a kill was ordered because that task had run too long on the lane."""
        due = self._due.get(lane)
        return due is not None and due.task is task and due.ordered

    def lane_lost(self, lane: int, killed: Task | None) -> None:
        """Handle the loss of a lane, and with it the kill of that task, if any."""
        self._due.pop(lane, None)
        for order in self._orders.pop(lane, {}).values():
            order.note(lane, killed)

    def end(self) -> None:
        """Close all open orders: no more answers will come."""
        for lane in list(self._orders):
            self.lane_lost(lane, None)

    # -- by deadline -----------------------------------------------------------------------------------------

    def watch(self, lane: int, task: Task | None) -> None:
        """Note the oldest unanswered task of a lane, or None, and watch its deadline."""
        if task is None or (timeout := task.options.timeout) is None:
            self._due.pop(lane, None)
            return
        due = self._due.get(lane)
        if due is None or due.task is not task:
            due = self._due[lane] = _Due(task, time.monotonic() + timeout)
            self._look_at(due.when)

    def seconds_left(self, lane: int, task: Task) -> float | None:
        """Return how long that task may go on, if it is the lane's oldest and has a deadline."""
        due = self._due.get(lane)
        return None if due is None or due.task is not task else due.when - time.monotonic()

    def _look_at(self, when: float) -> None:
        if when < self._next_look:
            # One timer for the earliest deadline: tasks end before their deadlines as a rule, and a timer for each
            # would fill the reactor's heap, which cannot forget any.
            self._next_look = when
            self._reactor.after(max(when - time.monotonic(), 0.0), self._look)

    def order_again(self) -> None:
        """Repeat the orders of overdue tasks: a server is back, and may have missed what it was sent."""
        for due in self._due.values():
            due.ordered = False
        self._look()

    def _order_due(self, lane: int, due: _Due) -> None:
        kill = self._aim(lane, lambda task: task is due.task)
        if kill is not None:
            due.ordered, due.recalls, due.stale = self._tell(0, kill), kill.recalls, False

    def _spared_due(self, lane: int, recalls: int) -> None:
        """Handle the answer that the worker does not run the overdue task: it has ended, or has a new number."""
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
        self.stale = False  # whether the worker has counted recalls that the client has yet to hear of


class _Order:
    """One request, until each supervisor has answered.

    Attributes:
        meant: By lane, the tasks to kill if they run.
        recalls: By lane, how many recalls it had had when its supervisor was told.
        stale: The lanes whose workers have counted recalls that the client has yet to hear of.
        open: The lanes for which there is no answer yet.
        count: How many tasks have been killed.
        over: A lock that is released once no lane is open. An Event would not do, as it has a lock of its own: the
            code that sets it may run in a signal handler, on top of the waiting thread.
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
