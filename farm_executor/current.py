"""What a task can say of itself while it runs: `current_task`.

This module owns the task's side of that. It must not know how what is said reaches the client: the worker sets a
function for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from numbers import Real
from typing import Any, NamedTuple

__all__ = ["CurrentTask", "Progress", "current_task", "set_listener"]

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


_listener: tuple[int, Callable[[Progress], None]] | None = None  # with the process that it is for


def set_listener(listen: Callable[[Progress], None]) -> None:
    """Have a function called with what tasks of this process report; for the worker."""
    global _listener
    _listener = os.getpid(), listen


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
        if _listener is not None and _listener[0] == os.getpid():
            _listener[1](progress._replace(message=message[:MAX_MESSAGE]))


def _number(name: str, value: Any) -> float:
    if type(value) is int and -MAX_NUMBER < value < MAX_NUMBER:
        return value
    if type(value) is bool or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, not {value!r:.100}")
    return float(value)


_current = CurrentTask()


def current_task() -> CurrentTask:
    """Return the task that runs in this process; outside a worker, one whose reports nobody hears."""
    return _current
