"""What workers write to standard error: passed on to the supervisor's own, and the end of it kept as evidence.

This module owns the pipe that each worker writes to, and what of its bytes is fit for a report. It must not know
who reads that, nor wait for anything: a worker writes when it likes, and whoever reads the supervisor's standard
error may have stopped to. Then the worker waits, as it would if it wrote there by itself, and the supervisor does
not.
"""

from __future__ import annotations

import faulthandler
import os
import re
import select
import sys

__all__ = ["MAX_CHARACTERS", "MAX_LINES", "TAKEN", "StderrPipe", "last_words", "takes_more"]

MAX_LINES = 20  # of a report
MAX_CHARACTERS = 2048
BEFORE_FATAL = 5  # lines of them: what a library says before it aborts

PIECE = 64 * 1024
AT_DEATH = 1024 * 1024  # bytes to read of a dead worker's at most: whom it has left behind may write for ever
KEPT = 16 * 1024  # bytes: Python's report of a crash can be as long, and its beginning says most
TAKEN = getattr(select, "PIPE_BUF", 512)  # bytes that whoever is ready takes without a wait

FATAL = "Fatal Python error: "
_ESCAPE_SEQUENCE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


class StderrPipe:
    """One worker's pipe, until nobody holds its other end any more.

    Args:
        whole: Whether the worker's standard error is this pipe. Otherwise it keeps the one that it has inherited,
            and only what Python says of a crash comes here.

    Raises:
        OSError: The system gives no more descriptors.

    Attributes:
        stuck: Whether some of it waits until our own standard error takes more.
    """

    def __init__(self, *, whole: bool) -> None:
        # Without a standard error of our own, descriptor 2 may be anything.
        self._sink = None if sys.__stderr__ is None else 2
        self._whole = whole and self._sink is not None
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        self._pending = b""
        self._kept = b""
        self._ended = False

    def fileno(self) -> int:
        """The descriptor to read from."""
        return self._read_end

    @property
    def stuck(self) -> bool:
        """See the class."""
        return bool(self._pending)

    @property
    def evidence(self) -> str:
        """The end of what has come."""
        return last_words(self._kept)

    def begin(self) -> None:
        """In the supervisor, once there is a worker: leave the other end to it."""
        os.close(self._write_end)

    def attach(self) -> None:
        """In the worker: write to it."""
        os.close(self._read_end)
        target = self._write_end
        if self._whole:
            target = os.dup2(self._write_end, 2)  # inheritable, for the processes that tasks start
            os.close(self._write_end)
        if not faulthandler.is_enabled():  # else as the user has it, by -X or PYTHONFAULTHANDLER
            faulthandler.enable(target, all_threads=False)

    def copy(self) -> bool:
        """Pass on what has come; say whether that was the end."""
        if not self._pending:
            self._read()
        self._write()
        return self._ended and not self._pending

    def drain(self) -> None:
        """Take all that is there, its worker being dead; a process that it has left behind may yet write more."""
        for _ in range(AT_DEATH // PIECE):
            if self._ended or not self._read():
                break
        self._write()

    def abandon(self) -> None:
        """In the supervisor, when there is no worker after all: close both ends."""
        os.close(self._write_end)
        os.close(self._read_end)

    def close(self) -> None:
        """Let go of it; what the worker would write then is lost."""
        os.close(self._read_end)

    def _read(self) -> bool:
        try:
            data = os.read(self._read_end, PIECE)
        except BlockingIOError:
            return False
        self._ended = not data  # and nothing more is to be read, nor is the pipe there for long
        self._pending += data
        self._kept = (self._kept + data)[-KEPT:]
        return bool(data)

    def _write(self) -> None:
        try:
            while self._pending and self._sink is not None and takes_more(self._sink):
                self._pending = self._pending[os.write(self._sink, self._pending[:TAKEN]) :]
        except BlockingIOError:
            return
        except OSError:  # whoever read it is gone
            self._sink = None
        if self._sink is None:
            self._pending = b""


def takes_more(descriptor: int) -> bool:
    """Whether it takes `TAKEN` bytes without a wait."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(0))


def last_words(data: bytes) -> str:
    """The last lines, as a terminal would show them, without what could make one do anything else.

    Args:
        data: Any bytes.

    Returns:
        At most 20 lines and 2,048 characters, all printable but tabs and newlines. Of what Python says of a crash
        it is the beginning, and a few lines before it.
    """
    text = _ESCAPE_SEQUENCE.sub("", data.decode("utf-8", "replace"))
    shown = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]  # a progress bar's last state
    lines = ["".join(c for c in line if c == "\t" or c.isprintable()).rstrip() for line in shown]
    lines = [line for line in lines if line]
    fatal = [number for number, line in enumerate(lines) if line.startswith(FATAL)]
    if fatal:
        first = max(fatal[-1] - BEFORE_FATAL, 0)
        return "\n".join(lines[first : first + MAX_LINES])[:MAX_CHARACTERS]
    return "\n".join(lines[-MAX_LINES:])[-MAX_CHARACTERS:]
