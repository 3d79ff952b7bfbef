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
from farm_executor.client.farm.call import Call
from farm_executor.client.farm.future import FarmFuture, settle_plainly, start_all
from farm_executor.client.farm.observer import Observer
from farm_executor.client.farm.reactor import Reactor
from farm_executor.client.farm.wording import unreadable_value
from farm_executor.core.frames import Payload, payload_size
from farm_executor.data import payload
from farm_executor.data.byvalue import OwnObjects
from farm_executor.data.failure import Origin, give_output, load_failure
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
        observer: Who looks at the farm; None for nobody.

    Thread safety: none but that of the reactor's handlers, except for `refuse`.
    """

    def __init__(
        self, reactor: Reactor, budget: Budget | None, explain: Callable[[BaseException, str], BaseException]
    ) -> None:
        self._reactor = reactor
        self._budget = budget
        self._explain = explain
        self.observer: Observer | None = None
        self.counts = dict.fromkeys(("succeeded", "failed", "cancelled", "lost", "killed"), 0)

    def answer(
        self,
        answered: Iterable[tuple[Call, tuple[Payload, bool]]],
        server: str,
        pid: int,
        tell: Callable[[int], None],
        explain_stream: Callable[[BaseException], BaseException],
    ) -> None:
        """Settle tasks with the pickled values and failures that a worker has sent.

        Args:
            answered: The tasks and their outcomes.
            server: See `succeed`.
            pid: See `succeed`.
            tell: See `succeed`.
            explain_stream: Returns the error of a stream's task with what is known of its reason.
        """
        values = []
        for call, (outcome, is_error) in answered:
            if is_error:
                origin = Origin(server, pid, call.losses + 1)
                error = load_failure(outcome, origin, OwnObjects)
                # First, as what is known of modules would be told of one of ours, which nobody has to install.
                if call.inlet is not None:
                    error = explain_stream(error)
                if type(error) in (ModuleNotFoundError, ImportError, TaskExecutionError):
                    error = self._explain(error, server)
                self._fail(call, error, origin, tell)
                continue
            try:
                value = payload.loads(outcome, OwnObjects)
            except BaseException as problem:  # rebuilding runs the user's code, which may even try to exit
                origin = Origin(server, pid, call.losses + 1)
                self._fail(call, unreadable_value(origin, problem), origin, tell)
            else:
                values.append((call, value))
        self.succeed(values, server, pid, tell)

    def succeed(
        self, values: Iterable[tuple[Call, Any]], server: str, pid: int, tell: Callable[[int], None]
    ) -> None:
        """Settle tasks with their results.

        Args:
            values: The tasks and their results.
            server: The server that they came from.
            pid: The worker's process id.
            tell: Called with how many more calls than tasks were answered, before the futures are settled.
        """
        settled = []
        budget = self._budget
        # All futures of a batch are settled together, so that their common lock is taken once.
        for call, value in values:
            if call.before_settling is not None:
                origin = Origin(server, pid, call.losses + 1)
                ends = _guarded(partial(call.before_settling, value, None, origin))
                if ends is not None:
                    for end, number in ends.items():
                        self.counts[end] += number
                    self.counts["succeeded"] -= 1  # which is counted below
                    tell(ends["succeeded"] + ends["failed"] - 1)
                    if self.observer is not None and ends["failed"]:
                        _guarded(partial(self._show_block, self.observer, call, value, origin))
            settled.append((call.release() if budget is None else self._release(call), value))
        self.counts["succeeded"] += len(settled)
        # Counted before they are settled: a caller that has its result finds it in the statistics.
        self._settle(settled)

    def goes_on(self, call: Call, error: BaseException, origin: Origin) -> bool:
        """Return whether the work of a call that is about to fail goes on as other calls, which may fail, too."""
        hook = call.before_settling
        return hook is not None and _guarded(partial(hook, None, error, origin)) is not None

    def fail(self, call: Call, error: BaseException, end: str | None) -> None:
        """Settle a call with an error; ``end`` is the count that it goes into, None if its work goes on."""
        if end is not None:
            self.counts[end] += call.calls
        # Before it is released, which drops the function.
        name = call.name if self.observer is not None else ""
        calls = call.calls
        future = self._release(call)
        if future._output:
            give_output(error, future._output)
        if self.observer is not None and end is not None:
            _guarded(partial(self.observer.failed, name, calls, error, end, future.output))
        self._settle([(future, error)], as_errors=True)

    def _show_block(self, observer: Observer, call: Call, outcome: Any, origin: Origin) -> None:
        """Tell of the item of a block that has failed, whose error nobody may ever ask for."""
        error = load_failure(outcome.failure, origin, OwnObjects)
        observer.failed(call.name, 1, error, "failed", "" if call.future is None else call.future.output)

    def _fail(self, call: Call, error: BaseException, origin: Origin, tell: Callable[[int], None]) -> None:
        goes_on = self.goes_on(call, error, origin)
        if call.calls > 1 and not goes_on:
            tell(call.calls - 1)
        self.fail(call, error, None if goes_on else "failed")

    def cancel(self, call: Call, *, told: bool = False) -> None:
        """Release a call that will not run, unless that has been done; ``told`` if its future knows already."""
        if call.future is None:
            return
        future = self._release(call)
        if future.cancel():
            self.counts["cancelled"] += call.calls
            if not told:
                future.set_running_or_notify_cancel()  # returns False, and notifies waiting threads

    def cancelled(self, call: Call) -> None:
        """Release a call whose future `FarmFuture._cancel_started` has cancelled."""
        self.counts["cancelled"] += call.calls
        _guarded(self._release(call)._invoke_callbacks)

    def refuse(self, call: Call, error: BaseException) -> None:
        """Settle a call that no worker will run, unless it has been cancelled. May be called from any thread."""
        future = self._release(call)
        if call.started or start_all([future])[0]:
            self.counts["failed"] += call.calls
            self._settle([(future, error)], as_errors=True)

    def _release(self, call: Call) -> FarmFuture:
        """Return the call's future, and drop all references to the rest of it."""
        # Before `release`, which drops the arguments whose size is to be given back.
        if self._budget is not None:
            self._budget.give_back(payload_size(call.arguments or ()))
        return call.release()

    def _settle(self, outcomes: list[tuple[FarmFuture, Any]], *, as_errors: bool = False) -> None:
        # The common case ends here: nobody has looked at these futures, or they have only woken a waiting thread.
        others, to_call = settle_plainly(outcomes, as_errors=as_errors)
        if not others and not to_call:
            return
        # The others have been looked at. Waiting threads are notified under locks of theirs, which this very thread
        # may hold: it may be in a signal handler that has interrupted `concurrent.futures.wait`.
        run = _guarded if self._reactor.is_own_thread() else self._post
        for future, value in others:
            run(partial(future.set_exception if as_errors else future.set_result, value))
        if to_call:
            run(partial(_call_back, to_call))

    def _post(self, call: Callable[[], Any]) -> None:
        self._reactor.post(partial(_guarded, call))


def _call_back(futures: list[FarmFuture]) -> None:
    for future in futures:
        _guarded(future._call_back)


def _guarded(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except BaseException:  # settled by the user, or a callback that exits: neither must end the farm
        logger.exception("a future could not be settled")
        return None
