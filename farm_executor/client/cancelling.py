"""Cancelling what a worker has been sent and may not have begun: it is asked for back.

This module owns who waits for a task to come back, and for how long. It must not know which lane has which task,
nor what becomes of one that has come back.

`Future.cancel` has to say whether the task will run, so it waits for the worker's answer: a round trip. In a thread
that does the farm's own work it does not wait, and in no thread for long.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

from farm_executor.client.reactor import Reactor
from farm_executor.core.scheduler import Task

__all__ = ["Cancels"]

SECONDS = 0.25  # for the worker's answer
AT_MOST = 2 * SECONDS  # if the farm's own thread is kept from looking at the clock, by a callback that waits


class Cancels:
    """See the module.

    Args:
        ask: Asks for a task back; returns the lane whose answer decides, and whether that lane was asked for this
            task and all behind it: it may have been asked for fewer just before. None if there is nothing to wait
            for.
        keep: The task need not come back any more.

    Thread safety: `take_back` and `answered` may be called from any thread.
    """

    def __init__(
        self, reactor: Reactor, ask: Callable[[Task], tuple[int, bool] | None], keep: Callable[[Task], None]
    ) -> None:
        self._reactor = reactor
        self._ask = ask
        self._keep = keep
        self._waiting: dict[int, list[tuple[Task, Callable[[], None], bool]]] = {}  # by lane; the I/O thread's

    def take_back(self, task: Task) -> None:
        """Try to have a task back that is running, as far as its future knows; it has been cancelled then."""
        if self._reactor.is_handling():
            return
        answer = threading.Lock()
        answer.acquire()
        self._reactor.post(partial(self._begin, task, answer.release))
        answer.acquire(timeout=AT_MOST)

    def answered(self, lane: int) -> None:
        """The lane has given back what it had not begun, or is gone; what has come back is about to be settled."""
        if lane in self._waiting:
            self._reactor.post(partial(self._end, lane))

    def _begin(self, task: Task, answer: Callable[[], None]) -> None:
        asked = self._ask(task)
        if asked is None:
            answer()
            return
        lane, for_all = asked
        self._waiting.setdefault(lane, []).append((task, answer, for_all))
        self._reactor.after(SECONDS, partial(self._give_up, lane, task))

    def _end(self, lane: int) -> None:
        for task, answer, for_all in self._waiting.pop(lane, ()):
            if for_all:
                self._keep(task)
                answer()
            else:
                self._begin(task, answer)

    def _give_up(self, lane: int, task: Task) -> None:
        for entry in self._waiting.get(lane, ()):
            if entry[0] is task:
                self._waiting[lane].remove(entry)
                self._keep(task)
                entry[1]()
                break
