"""Cancelling what a worker has been sent and may not have begun: it is asked for back.

This module owns who waits for a task to come back, and for how long. It must not know which lane has which task,
nor what becomes of one that has come back.

`Future.cancel` has to say whether the task will run, so it waits for the worker's answer: a round trip, but not for
long; nor does anybody wait for a worker that has not answered somebody else in time, until it does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

from farm_executor.client.farm.reactor import Reactor
from farm_executor.core.task import Task

__all__ = ["Cancels", "Request"]

SECONDS = 0.25  # for the worker's answer
AT_MOST = 2 * SECONDS  # if the farm's own thread is kept from looking at the clock, by a callback that waits


class Request:
    """That a task may come back, as long as somebody waits for that.

    Args:
        task: The task.
        cancel: Has its future know that it will not run; says whether it was still to.

    Thread safety: all methods may be called from any thread. Who has got False from `Future.cancel` must not find
    the future cancelled later: so either `grant` comes first or `close`, and the other one does nothing.
    """

    def __init__(self, task: Task, cancel: Callable[[], bool]) -> None:
        self.task = task
        self._cancel = cancel
        self._lock = threading.RLock()  # held for a moment; what grants may run in a signal handler in that moment
        self._open = True
        self._answered = threading.Lock()
        self._answered.acquire()

    def grant(self) -> bool:
        """The task will not run: have its future know, unless nobody waits for that any more; say which."""
        with self._lock:
            granted = self._open and self._cancel()
            self._open = False
        return granted

    def close(self) -> None:
        """Nobody waits any more."""
        with self._lock:
            self._open = False

    def answer(self) -> None:
        """Once: it is known what came of it."""
        self.close()
        self._answered.release()

    def wait(self) -> bool:
        """Wait for that; say whether it came in time."""
        return self._answered.acquire(timeout=AT_MOST)


class Cancels:
    """See the module.

    Args:
        ask: Asks for a task back; returns the lane whose answer decides, and whether that lane was asked for this
            task and all behind it: it may have been asked for fewer just before. None if there is nothing to wait
            for.

    Thread safety: `take_back` and `answered` may be called from any thread.
    """

    def __init__(self, reactor: Reactor, ask: Callable[[Request], tuple[int, bool] | None]) -> None:
        self._reactor = reactor
        self._ask = ask
        self._waiting: dict[int, list[tuple[Request, bool]]] = {}  # by lane; the I/O thread's
        self._silent: set[int] = set()  # lanes that have not answered in time, nor since; the I/O thread's
        self._stuck = False  # the I/O thread has not taken up a request in time, nor since

    def take_back(self, task: Task, cancel: Callable[[], bool]) -> None:
        """Try to have a task back that is running, as far as its future knows; see `Request`.

        For a thread that may wait for the farm.
        """
        if self._stuck:
            return
        request = Request(task, cancel)
        self._reactor.post(partial(self._begin, request))
        if not request.wait():
            self._stuck = True
            request.close()

    def answered(self, lane: int) -> None:
        """The lane has given back what it had not begun, or is gone; what has come back is known to be."""
        if lane in self._waiting or lane in self._silent:
            self._reactor.post(partial(self._end, lane))

    def _begin(self, request: Request) -> None:
        self._stuck = False
        asked = self._ask(request)
        if asked is None or asked[0] in self._silent:
            request.answer()
            return
        lane, for_all = asked
        self._waiting.setdefault(lane, []).append((request, for_all))
        self._reactor.after(SECONDS, partial(self._give_up, lane, request))

    def _end(self, lane: int) -> None:
        self._silent.discard(lane)
        for request, for_all in self._waiting.pop(lane, ()):
            if for_all:
                request.answer()
            else:
                self._begin(request)

    def _give_up(self, lane: int, request: Request) -> None:
        waiting = self._waiting.get(lane, [])
        for entry in waiting:
            if entry[0] is request:
                self._silent.add(lane)
                waiting.remove(entry)
                request.answer()
                break
