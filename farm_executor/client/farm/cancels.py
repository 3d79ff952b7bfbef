"""Cancels tasks that a worker has been sent and may not have begun, by asking for them back.

This module owns which threads wait for a task to come back, and for how long. It must not know which lane has which
task, nor what becomes of a task that has come back.

`Future.cancel` has to say whether the task will run, so it waits for the worker's answer: for a round trip, with a
limit. Once a worker has failed to answer in time, no thread waits for it again until it has answered.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

from farm_executor.client.farm.call import Call
from farm_executor.client.farm.reactor import Reactor

__all__ = ["Cancels", "Request"]

SECONDS = 0.25  # for the worker's answer
AT_MOST = 2 * SECONDS  # if a callback that waits keeps the farm's own thread from running its timers


class Request:
    """One thread's wish to have a task back, for as long as it waits.

    Args:
        task: The task.
        cancel: Cancels its future, as the task will not run; returns whether the future was still running.

    Thread safety: all methods may be called from any thread. After `Future.cancel` has returned False, the future
    must not become cancelled: so the first of `grant` and `close` decides, and the other does nothing.
    """

    def __init__(self, task: Call, cancel: Callable[[], bool]) -> None:
        self.task = task
        self._cancel = cancel
        self._lock = threading.RLock()  # reentrant: `grant` may run in a signal handler at any moment
        self._open = True
        self._answered = threading.Lock()
        self._answered.acquire()

    def grant(self) -> bool:
        """Cancel the future, as its task will not run, if the request is still open; return whether it was."""
        with self._lock:
            granted = self._open and self._cancel()
            self._open = False
        return granted

    def close(self) -> None:
        """Note that the thread does not wait any more."""
        with self._lock:
            self._open = False

    def answer(self) -> None:
        """End the wait, with or without a grant. Must be called once at most."""
        self.close()
        self._answered.release()

    def wait(self) -> bool:
        """Wait for `answer`; return whether it came in time."""
        return self._answered.acquire(timeout=AT_MOST)


class Cancels:
    """The requests of one farm; see the module.

    Args:
        ask: Asks for a task back; returns the lane whose answer decides, and whether that lane has been asked for
            this task and all behind it: a recall that is under way may have asked for fewer. None if there is
            nothing to wait for.

    Thread safety: `take_back` and `answered` may be called from any thread.
    """

    def __init__(self, reactor: Reactor, ask: Callable[[Request], tuple[int, bool] | None]) -> None:
        self._reactor = reactor
        self._ask = ask
        self._waiting: dict[int, list[tuple[Request, bool]]] = {}  # by lane; the I/O thread's
        self._silent: set[int] = set()  # lanes that did not answer in time and have not since; the I/O thread's
        self._stuck = False  # whether the I/O thread did not take up a request in time and has not since

    def take_back(self, task: Call, cancel: Callable[[], bool]) -> None:
        """Try to get a task back whose future says that it is running; see `Request`.

        Only for a thread that may wait for the farm.
        """
        # Otherwise a program that cancels many futures would wait half a second for each of them.
        if self._stuck:
            return
        request = Request(task, cancel)
        self._reactor.post(partial(self._begin, request))
        if not request.wait():
            self._stuck = True
            request.close()

    def answered(self, lane: int) -> None:
        """Note that the lane has given back what it had not begun, or is gone. Tasks that came back are granted."""
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
            # The answer to a recall for fewer tasks says nothing about this one: ask again.
            if for_all:
                request.answer()
            else:
                self._begin(request)

    def _give_up(self, lane: int, request: Request) -> None:
        # Timers cannot be cancelled: usually the request has been answered by now, and nothing is found.
        waiting = self._waiting.get(lane, [])
        for entry in waiting:
            if entry[0] is request:
                self._silent.add(lane)
                waiting.remove(entry)
                request.answer()
                break
