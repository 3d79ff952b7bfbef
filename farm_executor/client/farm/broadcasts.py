"""One call on every worker: what has been sent where, and what came of all of it.

This module owns the outcomes of a broadcast. It must not know lanes and frames: the engine makes a future for each
worker, which is settled as any other.

There is no barrier: each worker makes the call when it has ended what it runs, before all that is queued. A worker
that dies of it, or before it, is followed by another, which makes the call, within ``max_attempts``. So two
broadcasts at once cannot wait for each other.
"""

from __future__ import annotations

import time
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError  # until Python 3.11 not the builtin one
from typing import Any

from farm_executor.client.farm.functions import Function
from farm_executor.client.farm.link import ServerLink
from farm_executor.client.farm.options import TaskOptions
from farm_executor.core.frames import Payload
from farm_executor.errors import BroadcastError, BroadcastOutcome

__all__ = ["Broadcast", "gather"]


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
        self.late: dict[tuple[ServerLink, int], Future[Any]] = {}

    def has_been_made(self, link: ServerLink, slot: int) -> bool:
        """Whether the call is no longer on its way to this place, so that a new worker there must be told."""
        if (link, slot) in self.late:
            return self.late[link, slot].done()
        calls = self.calls.get(link)
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


def gather(broadcast: Broadcast, timeout: float | None) -> list[Any]:
    """Wait for all outcomes; return the values, server by server, and in these slot by slot.

    Raises:
        BroadcastError: Not all of them are values. It holds every outcome.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    outcomes: list[BroadcastOutcome] = []
    for link, calls in broadcast.calls.items():
        problem = _problem(calls, deadline, f"the server has not answered within {timeout} s")
        if problem is not None:
            if type(problem) is TimeoutError and link.last_error:
                problem = TimeoutError(f"{problem}: {link.last_error}")
            outcomes.append(BroadcastOutcome(str(link), None, None, problem))
            continue
        for slot, future in enumerate(calls.result()):
            problem = _problem(future, deadline, f"the worker has not answered within {timeout} s")
            value = future.result() if problem is None else None
            outcomes.append(BroadcastOutcome(str(link), slot, value, problem))
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
