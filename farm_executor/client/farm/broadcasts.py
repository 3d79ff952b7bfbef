"""Broadcasts: one call on every worker, and the outcomes of all of these calls.

This module owns the calls of a broadcast, each a task with a seat, and their outcomes. It must not know frames, nor
how futures are settled: those of a broadcast are settled like any other.

There is no barrier: each worker makes the call after the task it is running, and before everything that is queued.
If a worker dies during the call or before it, the worker that follows makes the call, within ``max_attempts``. So
two broadcasts at once cannot wait for each other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError  # until Python 3.11 not the builtin one
from functools import partial
from typing import Any

from farm_executor.client.farm.budget import Budget
from farm_executor.client.farm.call import Call
from farm_executor.client.farm.dispatch import Dispatch
from farm_executor.client.farm.functions import Function
from farm_executor.client.farm.future import Owner
from farm_executor.client.farm.interrupt import HeldBack
from farm_executor.client.farm.lane import Lane
from farm_executor.client.farm.link import ServerLink
from farm_executor.client.farm.servers import Servers
from farm_executor.core.frames import Payload, payload_size
from farm_executor.core.options import TaskOptions
from farm_executor.data.failure import Origin
from farm_executor.errors import BroadcastError, BroadcastOutcome

__all__ = ["Broadcast", "Broadcasts", "gather", "outcomes_of"]


class Broadcast:
    """A call for every worker.

    Attributes:
        calls: For each server, a future of the list of its workers' futures in the order of their slots; set once
            the server has answered.
        late: For each seat, the call of the last worker that came there later and had to make it.
    """

    def __init__(
        self,
        function: Function,
        arguments: Payload,
        options: TaskOptions,
        calls: dict[ServerLink, Future[list[Future[Any]]]],
    ) -> None:
        self.function = function
        self.arguments = arguments
        self.options = options
        self.calls = calls
        self.late: dict[Hashable, Future[Any]] = {}

    def has_been_made(self, seat: tuple[Any, int]) -> bool:
        """Return whether the call is no longer on its way to a seat, so that a new worker there must be told."""
        # While the call is still outstanding for the seat, the scheduler itself sends it to the new worker.
        if seat in self.late:
            return self.late[seat].done()
        server, slot = seat
        calls = self.calls.get(server)
        if calls is None:
            return True  # the server was added after the broadcast
        if not calls.done():
            return False
        return calls.exception() is not None or slot >= len(calls.result()) or calls.result()[slot].done()

    def cancel(self) -> None:
        """Cancel the calls that no worker has received yet."""
        # Servers that have not answered are cancelled as a whole: `_cast` then makes no calls for them.
        for calls in self.calls.values():
            if not calls.cancel() and calls.done() and calls.exception() is None:
                for call in calls.result():
                    call.cancel()


class Broadcasts:
    """A farm's broadcasts.

    Args:
        dispatch: Takes the tasks.
        owner: The owner of the futures.
        budget: Counts the bytes of the calls; None if they are not counted.
        refuse: Settles a call that came too late.
        failed: Called with the lane of a worker that came later and failed to make a call, and the error.

    Thread safety: `make`, `forget` and `late` may be called from any thread.
    """

    def __init__(
        self,
        dispatch: Dispatch,
        owner: Owner,
        budget: Budget | None,
        refuse: Callable[[Call], None],
        failed: Callable[[Lane, BaseException], None],
    ) -> None:
        self._dispatch = dispatch
        self._owner = owner
        self._budget = budget
        self._refuse = refuse
        self._failed = failed
        self._persistent: list[Broadcast] = []  # for workers that are still to come

    def make(
        self, function: Function, arguments: Payload, options: TaskOptions, servers: Servers, *, persistent: bool
    ) -> Broadcast:
        """Send the call to every worker, including those of servers yet to answer; see `Engine.broadcast`."""
        # Servers that are added from now on have come later.
        answers = servers.staying()
        broadcast = Broadcast(function, arguments, options, {server: Future() for server in answers})
        # Before the cast below: a worker that comes in between is told by one of the two, and `has_been_made`
        # ensures that it is not told by both.
        if persistent:
            self._persistent.append(broadcast)
        for server, answered in answers.items():
            answered.add_done_callback(partial(self._cast, broadcast, servers.counts, server))
        return broadcast

    def forget(self, broadcast: Broadcast) -> None:
        """Stop making this call on workers that come later."""
        if broadcast in self._persistent:
            self._persistent.remove(broadcast)

    def late(self) -> set[Future[Any]]:
        """Return the futures of the calls of workers that have come later, which must not be cancelled."""
        return {future for broadcast in list(self._persistent) for future in list(broadcast.late.values())}

    def late_calls(self, lane: Lane) -> list[Call]:
        """Create and return the calls that a worker, which has just become ready, has to make first."""
        seat = lane.session.seat(lane.slot)
        calls = []
        for broadcast in list(self._persistent):
            if broadcast.has_been_made(seat):
                # The user did not submit these calls, and so must not kill them by accident: hence neither category
                # nor timeout.
                call = self._call(broadcast, TaskOptions(), seat)
                call.before_settling = partial(self._on_late_call, lane)
                broadcast.late[seat] = _future_of(call)
                calls.append(call)
        return calls

    def _on_late_call(self, lane: Lane, value: Any, error: BaseException | None, origin: Origin) -> None:
        if error is not None:
            self._failed(lane, error)

    def _cast(
        self, broadcast: Broadcast, counts: dict[ServerLink, int], server: ServerLink, answered: Future[int]
    ) -> None:
        """Make the calls for a server that has answered, or settle for one that never will."""
        known = broadcast.calls[server]
        # From here on the broadcast cannot cancel this server as a whole, only each call.
        if not known.set_running_or_notify_cancel():
            return  # cancelled before the server answered
        error = answered.exception()
        if error is not None:
            known.set_exception(error)
            return
        dispatch = self._dispatch
        # One hold for all: the farm must not close between the check and the submit, or the calls would hang.
        with HeldBack(), dispatch.deciding:
            # None if it has been removed meanwhile: as if that had been before the broadcast.
            slots = range(counts.get(server, 0))
            calls = [self._call(broadcast, broadcast.options, (server, slot)) for slot in slots]
            futures = [_future_of(call) for call in calls]
            too_late = dispatch.closed
            if not too_late:
                dispatch.submitted += len(calls)
                dispatch.submit(calls)
        # Without the lock, as this may run users' callbacks.
        for call in calls if too_late else ():
            self._refuse(call)
        known.set_result(futures)

    def _call(self, broadcast: Broadcast, options: TaskOptions, seat: Hashable) -> Call:
        dispatch, arguments = self._dispatch, broadcast.arguments
        call = Call(next(dispatch.ids), self._owner, broadcast.function, arguments, None, options, seat)
        if options.timeout is not None:
            dispatch.timed = True
        # Counted without waiting for room: the lock may be held, or this may be a handler.
        if self._budget is not None:
            self._budget.take(payload_size(arguments), now=True)
        return call


def _future_of(call: Call) -> Future[Any]:
    assert call.future is not None, "asked before it can be settled"
    return call.future


def outcomes_of(broadcast: Broadcast, timeout: float | None) -> list[BroadcastOutcome]:
    """Wait for all outcomes, or until the time is up; return them by server, and within each server by slot."""
    # One deadline for all calls, not a timeout for each.
    deadline = None if timeout is None else time.monotonic() + timeout
    outcomes: list[BroadcastOutcome] = []
    for server, calls in broadcast.calls.items():
        problem = _problem(calls, deadline, f"the server has not answered within {timeout} s")
        if problem is not None:
            if type(problem) is TimeoutError and server.last_error:
                problem = TimeoutError(f"{problem}: {server.last_error}")
            outcomes.append(BroadcastOutcome(str(server), None, None, problem))
            continue
        for slot, future in enumerate(calls.result()):
            problem = _problem(future, deadline, f"the worker has not answered within {timeout} s")
            value = future.result() if problem is None else None
            outcomes.append(BroadcastOutcome(str(server), slot, value, problem))
    return outcomes


def gather(broadcast: Broadcast, timeout: float | None) -> list[Any]:
    """Wait for all outcomes; return the values by server, and within each server by slot.

    Raises:
        BroadcastError: Some outcomes are not values. The error holds every outcome.
    """
    outcomes = outcomes_of(broadcast, timeout)
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if not failed:
        return [outcome.value for outcome in outcomes]
    first = failed[0]
    where = first.server if first.slot is None else f"{first.server}, slot {first.slot}"
    text = f"{len(failed)} of {len(outcomes)} calls failed; the first, on {where}: "
    raise BroadcastError(f"{text}{type(first.error).__name__}: {first.error}", outcomes) from first.error


def _problem(future: Future[Any], deadline: float | None, too_late: str) -> BaseException | None:
    """Return the reason why a future has no value, or None if it has one; wait until the deadline."""
    left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
    try:
        return future.exception(left)
    except CancelledError:
        return RuntimeError("the farm was shut down before the call was made")
    except FutureTimeoutError:
        future.cancel()  # if no worker has it yet, none will make a call that nobody waits for
        return TimeoutError(too_late)
