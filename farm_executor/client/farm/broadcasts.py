"""One call on every worker: what has been sent where, and what came of all of it.

This module owns the calls of a broadcast, each a task with a seat, and their outcomes. It must not know frames, nor
how futures are settled: those of a broadcast are settled as any other.

There is no barrier: each worker makes the call when it has ended what it runs, before all that is queued. A worker
that dies of it, or before it, is followed by another, which makes the call, within ``max_attempts``. So two
broadcasts at once cannot wait for each other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError  # until Python 3.11 not the builtin one
from functools import partial
from typing import Any

from farm_executor.client.farm.budget import Budget
from farm_executor.client.farm.dispatch import Dispatch
from farm_executor.client.farm.functions import Function
from farm_executor.client.farm.future import FarmFuture, Owner
from farm_executor.client.farm.interrupt import HeldBack
from farm_executor.client.farm.lane import Lane
from farm_executor.client.farm.link import ServerLink
from farm_executor.client.farm.options import TaskOptions
from farm_executor.client.farm.servers import Servers
from farm_executor.core.frames import Payload, payload_size
from farm_executor.core.task import Task
from farm_executor.data.failure import Origin
from farm_executor.errors import BroadcastError, BroadcastOutcome

__all__ = ["Broadcast", "Broadcasts", "gather"]


class Broadcast:
    """A call for every worker.

    Attributes:
        calls: For each server a future of its workers' futures, in the order of their slots: it is known when the
            server has answered.
        late: For each place the call of the last worker there that came later, if it has to make it.
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
        self.late: dict[Hashable, FarmFuture] = {}

    def has_been_made(self, seat: tuple[Any, int]) -> bool:
        """Whether the call is no longer on its way to this place, so that a new worker there must be told."""
        if seat in self.late:
            return self.late[seat].done()
        server, slot = seat
        calls = self.calls.get(server)
        if calls is None:
            return True  # the server has come later
        if not calls.done():
            return False
        return calls.exception() is not None or slot >= len(calls.result()) or calls.result()[slot].done()

    def cancel(self) -> None:
        """Take back what no worker has got yet."""
        for calls in self.calls.values():
            if not calls.cancel() and calls.done() and calls.exception() is None:
                for call in calls.result():
                    call.cancel()


class Broadcasts:
    """A farm's broadcasts.

    Args:
        dispatch: Takes the tasks.
        owner: That of the futures.
        budget: What calls are counted in, if they are.
        refuse: Settles a task that has come too late.
        failed: Told of a worker that came later and failed to make a call.

    Thread safety: `make`, `forget` and `late` may be called from any thread.
    """

    def __init__(
        self,
        dispatch: Dispatch,
        owner: Owner,
        budget: Budget | None,
        refuse: Callable[[Task], None],
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
        """Send the call to every worker, also of servers that have yet to answer; see `Engine.broadcast`."""
        answers = dict(servers.answered)
        broadcast = Broadcast(function, arguments, options, {server: Future() for server in answers})
        # First: a worker that comes between this and the cast below is told by either, and `has_been_made` sees to
        # it that it is not by both.
        if persistent:
            self._persistent.append(broadcast)
        for server, answered in answers.items():
            answered.add_done_callback(partial(self._cast, broadcast, servers.counts, server))
        return broadcast

    def forget(self, broadcast: Broadcast) -> None:
        """Workers that come later need not make the call."""
        if broadcast in self._persistent:
            self._persistent.remove(broadcast)

    def late(self) -> set[FarmFuture]:
        """The calls that workers make who have come later: nobody may cancel those."""
        return {call for broadcast in list(self._persistent) for call in list(broadcast.late.values())}

    def late_calls(self, lane: Lane) -> list[Task]:
        """What a worker has to call that has just become ready."""
        seat = lane.session.seat(lane.slot)
        tasks = []
        for broadcast in list(self._persistent):
            if broadcast.has_been_made(seat):
                # What is not the user's doing is not theirs to kill: so with no category and no timeout.
                call = self._call(broadcast, TaskOptions(), seat)
                call._before_settling = partial(self._on_late_call, lane)
                broadcast.late[seat] = call
                tasks.append(call._task)
        return tasks

    def _on_late_call(self, lane: Lane, value: Any, error: BaseException | None, origin: Origin) -> None:
        if error is not None:
            self._failed(lane, error)

    def _cast(
        self, broadcast: Broadcast, counts: dict[ServerLink, int], server: ServerLink, answered: Future[int]
    ) -> None:
        """The server has answered, or never will."""
        known = broadcast.calls[server]
        if not known.set_running_or_notify_cancel():
            return  # nobody waits for it any more
        error = answered.exception()
        if error is not None:
            known.set_exception(error)
            return
        dispatch = self._dispatch
        with HeldBack(), dispatch.deciding:
            slots = range(counts[server])
            calls = [self._call(broadcast, broadcast.options, (server, slot)) for slot in slots]
            too_late = dispatch.closed
            if not too_late:
                dispatch.submitted += len(calls)
                dispatch.submit([call._task for call in calls])
        for call in calls if too_late else ():
            self._refuse(call._task)
        known.set_result(list(calls))

    def _call(self, broadcast: Broadcast, options: TaskOptions, seat: Hashable) -> FarmFuture:
        call: FarmFuture = FarmFuture()
        call._function, call._arguments = broadcast.function, broadcast.arguments
        call._task = Task(
            next(self._dispatch.ids), call, options.priority, options.category, options.max_attempts, seat
        )
        if options.timeout is not None:
            self._dispatch.timed = True
            call._task.timeout = options.timeout
        call._owner = self._owner
        if self._budget is not None:
            self._budget.take(payload_size(call._arguments), now=True)
        return call


def gather(broadcast: Broadcast, timeout: float | None) -> list[Any]:
    """Wait for all outcomes; return the values, server by server, and in these slot by slot.

    Raises:
        BroadcastError: Not all of them are values. It holds every outcome.
    """
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
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if not failed:
        return [outcome.value for outcome in outcomes]
    first = failed[0]
    where = first.server if first.slot is None else f"{first.server}, slot {first.slot}"
    text = f"{len(failed)} of {len(outcomes)} calls failed; the first, on {where}: "
    raise BroadcastError(f"{text}{type(first.error).__name__}: {first.error}", outcomes) from first.error


def _problem(future: Future[Any], deadline: float | None, too_late: str) -> BaseException | None:
    """Why the future has no value; None when it has one."""
    left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
    try:
        return future.exception(left)
    except CancelledError:
        return RuntimeError("the farm was shut down before the call was made")
    except FutureTimeoutError:
        future.cancel()  # if no worker has it yet, none shall
        return TimeoutError(too_late)
