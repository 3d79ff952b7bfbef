"""Puts the outcomes of tasks into their futures.

This module owns the last step of every task: its outcome is rebuilt, its future is set, and everything held for it
is released. It must not know lanes and sockets, nor decide whether a task goes on.

Users' callbacks run in the farm's own thread, never in that of a leading caller, which may hold a lock that they
want.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from farm_executor.client.farm.budget import Budget
from farm_executor.client.farm.future import FarmFuture, settle_plainly
from farm_executor.client.farm.reactor import Reactor
from farm_executor.client.farm.wording import unreadable_value
from farm_executor.core.frames import Payload, payload_size
from farm_executor.core.task import Task
from farm_executor.data import payload
from farm_executor.data.byvalue import OwnObjects
from farm_executor.data.failure import Origin, load_failure
from farm_executor.errors import TaskExecutionError

__all__ = ["Settler"]

logger = logging.getLogger(__name__)


class Settler:
    """Settles the futures of one farm; see the module.

    Args:
        reactor: Runs users' callbacks.
        budget: Gets the bytes of settled calls back; None if they are not counted.
        explain: Returns an error that a worker has sent, from that server, with what is known of its reason.

    Attributes:
        counts: How many calls have ended in each way.

    Thread safety: none but that of the reactor's handlers, except for `refuse`.
    """

    def __init__(
        self, reactor: Reactor, budget: Budget | None, explain: Callable[[BaseException, str], BaseException]
    ) -> None:
        self._reactor = reactor
        self._budget = budget
        self._explain = explain
        self.counts = dict.fromkeys(("succeeded", "failed", "cancelled", "lost", "killed"), 0)

    def answer(
        self,
        answered: Iterable[tuple[Task, tuple[Payload, bool]]],
        server: str,
        pid: int,
        tell: Callable[[int], None],
    ) -> None:
        """Settle tasks with the pickled values and failures that a worker has sent; ``tell`` as in `succeed`."""
        values = []
        for task, (outcome, is_error) in answered:
            if is_error:
                origin = Origin(server, pid, task.losses + 1)
                error = load_failure(outcome, origin, OwnObjects)
                if type(error) in (ModuleNotFoundError, ImportError, TaskExecutionError):
                    error = self._explain(error, server)
                self._fail(task, error, origin, tell)
                continue
            try:
                value = payload.loads(outcome, OwnObjects)
            except BaseException as problem:  # rebuilding runs the user's code, which may even try to exit
                origin = Origin(server, pid, task.losses + 1)
                self._fail(task, unreadable_value(origin, problem), origin, tell)
            else:
                values.append((task, value))
        self.succeed(values, server, pid, tell)

    def succeed(
        self, values: Iterable[tuple[Task, Any]], server: str, pid: int, tell: Callable[[int], None]
    ) -> None:
        """Settle tasks with their results.

        Args:
            values: The tasks and their results.
            server: The server that they came from.
            pid: The worker's process id.
            tell: Called with how many more calls than tasks were answered, before the futures are settled.
        """
        settled = []
        # All futures of a batch are settled together, so that their common lock is taken once.
        for task, value in values:
            if task.call._before_settling is not None:
                origin = Origin(server, pid, task.losses + 1)
                ends = _guarded(partial(task.call._before_settling, value, None, origin))
                if ends is not None:
                    for end, number in ends.items():
                        self.counts[end] += number
                    self.counts["succeeded"] -= 1  # which is counted below
                    tell(ends["succeeded"] + ends["failed"] - 1)
            settled.append((self._release(task), value))
        self.counts["succeeded"] += len(settled)
        # Counted before they are settled: a caller that has its result finds it in the statistics.
        others, to_call = settle_plainly(settled)
        for future, value in others:
            self._set(future, partial(future.set_result, value))
        if to_call and self._reactor.is_own_thread():
            _call_back(to_call)
        elif to_call:
            self._reactor.post(partial(_call_back, to_call))

    def goes_on(self, task: Task, error: BaseException, origin: Origin) -> bool:
        """Return whether the work of a task that is about to fail goes on as other tasks, which may fail, too."""
        hook = task.call._before_settling
        return hook is not None and _guarded(partial(hook, None, error, origin)) is not None

    def fail(self, task: Task, error: BaseException, end: str | None) -> None:
        """Settle a task with an error; ``end`` is the count that it goes into, None if its work goes on."""
        if end is not None:
            self.counts[end] += task.calls
        future = self._release(task)
        self._set(future, partial(future.set_exception, error))

    def _fail(self, task: Task, error: BaseException, origin: Origin, tell: Callable[[int], None]) -> None:
        goes_on = self.goes_on(task, error, origin)
        if task.calls > 1 and not goes_on:
            tell(task.calls - 1)
        self.fail(task, error, None if goes_on else "failed")

    def cancel(self, task: Task, *, told: bool = False) -> None:
        """Release a task that will not run, unless that has been done; ``told`` if its future knows already."""
        if task.call is None:
            return
        future = self._release(task)
        if future.cancel():
            self.counts["cancelled"] += task.calls
            if not told:
                future.set_running_or_notify_cancel()  # returns False, and notifies waiting threads

    def cancelled(self, task: Task) -> None:
        """Release a task whose future `FarmFuture._cancel_started` has cancelled."""
        self.counts["cancelled"] += task.calls
        _guarded(self._release(task)._call_back_all)

    def refuse(self, task: Task, error: BaseException) -> None:
        """Settle a task that no worker will run, unless it has been cancelled. May be called from any thread."""
        future = self._release(task)
        if task.started or future.set_running_or_notify_cancel():
            self.counts["failed"] += task.calls
            self._set(future, partial(future.set_exception, error))

    def _release(self, task: Task) -> FarmFuture:
        """Return the task's future, and drop all references to the rest of the call."""
        future: FarmFuture = task.call
        # Before `future._release`, which drops the arguments whose size is to be given back.
        if self._budget is not None:
            self._budget.give_back(payload_size(future._arguments))
        future._release()
        task.call = None
        return future

    def _set(self, future: FarmFuture, set_: Callable[[], None]) -> None:
        if self._reactor.is_own_thread():
            _guarded(set_)
        elif future._is_looked_at:
            # Waiting threads are notified under locks of theirs, which this very thread may hold: it may be in a
            # signal handler that has interrupted `concurrent.futures.wait`.
            self._post(set_)
        else:
            future._call_back_by = self._post
            _guarded(set_)

    def _post(self, call_all: Callable[[], None]) -> None:
        self._reactor.post(partial(_guarded, call_all))


def _call_back(futures: list[FarmFuture]) -> None:
    for future in futures:
        _guarded(future._call_back)


def _guarded(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except BaseException:  # settled by the user, or a callback that exits: neither must end the farm
        logger.exception("a future could not be settled")
        return None
