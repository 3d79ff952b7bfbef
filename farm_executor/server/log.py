"""The server's log, which never waits for its reader, and with which no stranger can fill a disk.

This module owns the handler that drops lines rather than wait, and the ration of lines that peers without a key may
cause. It must not know what the lines say, nor which level is shown.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from typing import Any

from farm_executor.server.output import TAKEN, takes_more

__all__ = ["DroppingHandler", "Ration"]

RATION_SECONDS = 1.0  # between two lines


class DroppingHandler(logging.Handler):
    """A handler that writes as much to standard error as it takes at once, and drops the rest.

    Standard error may be a pipe that nobody reads, or a stopped terminal. A handler that waited for it would stop
    the supervisor, and with it every client's work. The next line that is taken is preceded by the number of lines
    that were dropped.

    Only the process that made the handler drops lines. Workers, forked from it, write as any program does.
    """

    def __init__(self, level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self._process = os.getpid()
        self._dropped = 0
        self._torn = False  # whether only the beginning of the last line was taken

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, or drop it."""
        try:
            line = self.format(record) + "\n"
            if os.getpid() != self._process:
                if sys.stderr is not None:
                    sys.stderr.write(line)
                    sys.stderr.flush()
                return
        except Exception:
            self.handleError(record)
            return
        if self._dropped:
            line = f"{self._dropped} lines of the log were dropped: standard error took no more\n{line}"
        if self._write(line.encode("utf-8", "backslashreplace")):
            self._dropped = 0
        else:
            self._dropped += 1

    def _write(self, data: bytes) -> bool:
        """Write the data as far as it is taken; return whether all of it was."""
        if sys.__stderr__ is None:
            return False  # without a standard error, descriptor 2 may be anything
        if self._torn:
            data = b"\n" + data
        rest = data
        with contextlib.suppress(OSError):  # nobody reads it any more, or the disk is full
            while rest and takes_more(2):
                rest = rest[os.write(2, rest[:TAKEN]) :]
        if len(rest) < len(data):
            self._torn = bool(rest)
        return not rest


class Ration:
    """A limit for lines that anyone can cause: one per second at most, with the number of those left out.

    Of the lines held back, the last one of the highest level is logged.

    Args:
        logger: The logger that gets the lines.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._silent_until = 0.0
        self._last: tuple[int, str, tuple[Any, ...]] = (logging.NOTSET, "", ())
        self._kept_back = 0

    @property
    def deadline(self) -> float:
        """When `on_time` is to be called, on the monotonic clock."""
        return self._silent_until if self._kept_back else float("inf")

    def warn(self, message: str, *fields: Any) -> None:
        """Log it as a warning now, or count it."""
        self._note(logging.WARNING, message, fields)

    def info(self, message: str, *fields: Any) -> None:
        """Log it as information now, or count it."""
        self._note(logging.INFO, message, fields)

    def _note(self, level: int, message: str, fields: tuple[Any, ...]) -> None:
        if not self._kept_back or level >= self._last[0]:
            self._last = level, message, fields
        self._kept_back += 1
        self.on_time(time.monotonic())

    def on_time(self, now: float) -> None:
        """Log the line chosen from those held back, with the number of the others, if it is time."""
        if not self._kept_back or now < self._silent_until:
            return
        level, message, fields = self._last
        if self._kept_back > 1:
            message, fields = f"{message} others=%d", (*fields, self._kept_back - 1)
        self._kept_back = 0
        self._silent_until = now + RATION_SECONDS
        self._logger.log(level, message, *fields)
