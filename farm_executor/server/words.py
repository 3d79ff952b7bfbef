"""What tasks say beside their outcomes: how far they have come, and what they log.

This module owns when that is told. It must not know how it is sent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from farm_executor.core.frames import Buffer
from farm_executor.server.records import Levels, Records
from farm_executor.server.reports import Report, Reports

__all__ = ["Words"]


class Tell(Protocol):
    """Sends what a function returns, before any outcome of the tasks that it is about."""

    def __call__(self, take: Callable[[], list[Buffer]], *, wait: bool) -> None:
        """Call the function with the right to send; if ``wait`` is false, only if that is to be had at once."""


class Words:
    """The reports and log records of a worker's tasks; see the module.

    Args:
        seq: Returns the number of the task that runs.
        tell: See `Tell`.
        wake: Wakes the thread that calls `look` if it may be asleep.

    Attributes:
        records: The log records that have not been told.
        levels: The levels of loggers.

    Thread safety: all methods may be called from any thread, and from a signal handler.
    """

    def __init__(self, seq: Callable[[], int], tell: Tell, wake: Callable[[], Any]) -> None:
        self._seq = seq
        self._tell = tell
        self._wake = wake
        self._reports = Reports()
        self.records = Records(seq, lambda: self._tell_soon(self.records))
        self.levels = Levels()

    @property
    def pending(self) -> bool:
        """Whether there is anything to be told."""
        return bool(self._reports.waiting or self.records.waiting)  # asked for each call, so without two more

    def report(self, report: Report) -> None:
        """Take the report of the task that runs."""
        self._reports.add(self._seq(), report)
        self._tell_soon(self._reports)

    def look(self) -> None:
        """Tell what is due."""
        for what in (self._reports, self.records):
            if what.due:
                self._tell(what.take, wait=True)

    def take(self) -> list[Buffer]:
        """Return the frames that tell everything."""
        return self.records.take() + self._reports.take()

    def _tell_soon(self, what: Reports | Records) -> None:
        if not what.due:
            self._wake()  # a sleeping thread would not look
        else:
            self._tell(what.take, wait=False)  # we may have interrupted our own thread while it holds the lock
