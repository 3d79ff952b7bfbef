"""The standard error of workers: passed on to the supervisor's own, with its end kept as evidence.

This module owns which of a worker's bytes are fit for a report. It must not know who reads the report, nor how the
bytes are passed on, which belongs to `output`.
"""

from __future__ import annotations

import faulthandler
import os
import sys

from farm_executor.core.text import plain_lines
from farm_executor.server.output import OutputPipe

__all__ = ["MAX_CHARACTERS", "MAX_LINES", "StderrPipe", "last_words"]

MAX_LINES = 20  # of a report
MAX_CHARACTERS = 2048
BEFORE_FATAL = 5  # lines of them: what a library says before it aborts

KEPT = 16 * 1024  # bytes: Python's report of a crash can be as long, and its beginning says most

FATAL = "Fatal Python error: "


class StderrPipe(OutputPipe):
    """One worker's pipe, until nobody holds its other end any more.

    Args:
        whole: Whether the worker's standard error is this pipe. Otherwise it keeps the one that it has inherited,
            and only what Python says of a crash comes here.

    Raises:
        OSError: The system gives no more descriptors.
    """

    def __init__(self, *, whole: bool) -> None:
        # Without a standard error of our own, descriptor 2 may be anything.
        super().__init__(None if sys.__stderr__ is None else 2)
        self._whole = whole and self._sink is not None
        self._kept = b""

    @property
    def evidence(self) -> str:
        """The end of what has come."""
        return last_words(self._kept)

    def attach(self) -> None:
        """Write to the pipe from now on; called in the worker."""
        os.close(self._read_end)
        self._attach_write_end()

    def _attach_write_end(self) -> None:
        target = self._write_end
        if self._whole:
            target = os.dup2(self._write_end, 2)  # inheritable, for the processes that tasks start
            os.close(self._write_end)
        if not faulthandler.is_enabled():  # else as the user has it, by -X or PYTHONFAULTHANDLER
            faulthandler.enable(target, all_threads=False)

    def _read(self) -> bytes:
        data = super()._read()
        self._kept = (self._kept + data)[-KEPT:]
        return data


def last_words(data: bytes) -> str:
    """Return the last lines as a terminal would show them, without anything that could control one.

    Args:
        data: Any bytes.

    Returns:
        At most 20 lines and 2,048 characters, all printable except tabs and newlines. If Python has reported a
        crash, these are the beginning of its report and a few lines before it.
    """
    lines = plain_lines(data.decode("utf-8", "replace"))
    fatal = [number for number, line in enumerate(lines) if line.startswith(FATAL)]
    if fatal:
        first = max(fatal[-1] - BEFORE_FATAL, 0)
        return "\n".join(lines[first : first + MAX_LINES])[:MAX_CHARACTERS]
    return "\n".join(lines[-MAX_LINES:])[-MAX_CHARACTERS:]
