"""What a task can say and ask of itself while it runs: `current_task`.

This module owns the task's side of that. It must not know how what is said reaches the client, nor where answers
come from: the worker sets an object for it.
"""

from __future__ import annotations

import os
from collections.abc import Hashable
from typing import Any, Protocol

from farm_executor._record import NamedTuple

__all__ = ["CurrentTask", "Details", "Progress", "Worker", "current_task", "set_worker"]

MAX_MESSAGE = 200  # characters
MAX_NUMBER = 1 << 63


class Progress(NamedTuple):
    """How far a task says that it has come.

    Attributes:
        done: How much is done.
        total: How much there is; None if the task does not say.
        message: For people; at most 200 characters.
    """

    done: float
    total: float | None = None
    message: str = ""


class Details(NamedTuple):
    """What the client knows of a task.

    Attributes:
        deadline: When its worker will be killed, by `time.monotonic`; None for never.
    """

    id: int | None = None
    attempt: int = 1
    category: Hashable = None
    deadline: float | None = None


class Worker(Protocol):
    """The worker, as its task sees it. Thread safety: any thread may call any method."""

    def report(self, progress: Progress) -> None:
        """Tell how far the running task has come."""

    def details(self) -> Details:
        """Ask what is known of the running task."""

    def is_unwanted(self) -> bool:
        """Return whether the running task's future has been cancelled."""


_worker: tuple[int, Worker] | None = None  # with the process that it is


def set_worker(worker: Worker) -> None:
    """Have tasks of this process speak to this worker."""
    global _worker
    _worker = os.getpid(), worker


def _here() -> Worker | None:
    """Return the worker that this process is; None outside one, and in a process that a task has forked."""
    return _worker[1] if _worker is not None and _worker[0] == os.getpid() else None


class CurrentTask:
    """The task that runs in this process. Thread safety: all methods may be called from any thread."""

    __slots__ = ()

    def report(self, done: float, total: float | None = None, message: str = "") -> None:
        """Tell the client how far the task has come, as ``future.progress``.

        Only the latest report counts: at most ten a second are sent, and the last one always before the result.
        Outside a worker, and in a process that a task has forked, nothing happens; so the function also runs alone.

        Args:
            done: How much is done, in any unit.
            total: How much there is; None if that is not known.
            message: For people; what exceeds 200 characters is cut off.

        Raises:
            TypeError: A number is not a number, or the message is not a str.
        """
        if type(message) is not str:
            raise TypeError(f"message must be a str, not {message!r:.100}")
        progress = Progress(_number("done", done), None if total is None else _number("total", total), message)
        worker = _here()
        if worker is not None:
            worker.report(progress._replace(message=message[:MAX_MESSAGE]))

    # The client is asked, once for each task that wants to know: so tasks that do not ask cost nothing.

    @property
    def id(self) -> int | None:
        """The call's number in its farm, the same in each attempt; None outside a worker."""
        return self._details().id

    @property
    def attempt(self) -> int:
        """Return how often the task has been begun, this time included. The first time it is 1."""
        return self._details().attempt

    @property
    def category(self) -> Hashable:
        """The category that `FarmExecutor.with_options` has given it; its repr, if that cannot be sent."""
        return self._details().category

    @property
    def deadline(self) -> float | None:
        """When the task will be killed by its ``timeout``, on the clock of `time.monotonic`; None for never."""
        return self._details().deadline

    @property
    def cancelled(self) -> bool:
        """Whether its future's ``cancel`` was called while it ran, so that its result is not wanted.

        The future is not cancelled by that, and gets what the task returns or raises. To look costs next to
        nothing.
        """
        worker = _here()
        return worker is not None and worker.is_unwanted()

    def _details(self) -> Details:
        worker = _here()
        return Details() if worker is None else worker.details()


def _number(name: str, value: Any) -> float:
    if type(value) is int and -MAX_NUMBER < value < MAX_NUMBER:
        return value
    if type(value) is not float:
        from numbers import Real  # late: to import it takes a tenth of what a worker takes to start

        if type(value) is bool or not isinstance(value, Real):
            raise TypeError(f"{name} must be a number, not {value!r:.100}")
    return float(value)


_current = CurrentTask()


def current_task() -> CurrentTask:
    """Return the task that runs in this process; outside a worker, one that nobody hears and that has no id."""
    return _current
