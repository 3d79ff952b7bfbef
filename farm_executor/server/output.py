"""What workers write, passed on to an output of the supervisor's that may take none of it.

This module owns the pipe between workers and that output, and how long an output that takes nothing is waited for.
It must not know what is written, nor wait for anything itself.

Whoever reads the supervisor's output may have gone, may have stopped to read, or may have been a disk that is full
now. No task fails because of that, and none waits for more than a moment: what is not taken is dropped.
"""

from __future__ import annotations

import contextlib
import os
import select
import time

__all__ = ["PATIENCE", "TAKEN", "OutputPipe", "StdoutPipe", "open_missing_streams", "say", "takes_more"]

PATIENCE = 2.0  # seconds for an output that takes nothing, as that of a pager may; its writers wait meanwhile
PIECE = 64 * 1024
AT_THE_END = 1024 * 1024  # bytes to read at most then: a process that a task has left behind may write for ever
TAKEN = getattr(select, "PIPE_BUF", 512)  # bytes that an output which is ready takes without a wait


def open_missing_streams() -> None:
    """Where a standard stream is closed, no socket of ours may get its number, which C code writes to."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: those below it are open


def say(line: str) -> None:
    """Write a line to standard output, if it takes one."""
    with contextlib.suppress(OSError):
        os.write(1, f"{line}\n".encode(errors="replace"))


class OutputPipe:
    """A pipe from one worker or several to an output.

    Args:
        sink: The output's descriptor; None if there is none.

    Raises:
        OSError: The system gives no more descriptors.

    Attributes:
        stuck: Whether some of it waits until the output takes more.
    """

    def __init__(self, sink: int | None) -> None:
        self._sink = sink
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        self._pending = b""
        self._ended = False
        self._give_up_at: float | None = None  # while the output takes nothing

    def fileno(self) -> int:
        """The descriptor to read from."""
        return self._read_end

    @property
    def stuck(self) -> bool:
        """See the class."""
        return bool(self._pending)

    def copy(self) -> bool:
        """Pass on what has come; say whether that was the end."""
        if not self._pending:
            self._read()
        self._write()
        return self._ended and not self._pending

    def drain(self) -> None:
        """Take all that is there, its writer being dead; a process that it has left behind may yet write more."""
        for _ in range(AT_THE_END // PIECE):
            if self._ended or not self._read():
                break
        self._write()

    def close(self) -> None:
        """Let go of it; what would be written then is lost."""
        os.close(self._read_end)

    def _read(self) -> bytes:
        try:
            data = os.read(self._read_end, PIECE)
        except BlockingIOError:
            return b""
        self._ended = not data  # and nothing more is to be read, nor is the pipe there for long
        self._pending += data
        return data

    def _write(self) -> None:
        try:
            while self._pending and self._sink is not None and takes_more(self._sink):
                self._pending = self._pending[os.write(self._sink, self._pending[:TAKEN]) :]
                self._give_up_at = None
        except BlockingIOError:
            pass
        except OSError:  # nobody can read it, or a disk is full; there may be room for what comes next
            self._pending = b""
        if self._sink is None:
            self._pending = b""
        if self._pending:
            now = time.monotonic()
            if self._give_up_at is None:
                self._give_up_at = now + PATIENCE
            elif self._give_up_at <= now:
                self._pending = b""  # and so for all that comes, until the output takes some


def takes_more(descriptor: int) -> bool:
    """Whether it takes `TAKEN` bytes without a wait."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(0))


class StdoutPipe(OutputPipe):
    """That of all workers to the supervisor's standard output, in the order in which they write."""

    def __init__(self) -> None:
        super().__init__(1)

    def attach(self) -> None:
        """In a worker: write to it."""
        os.dup2(self._write_end, 1)  # inheritable, for the processes that tasks start
        self.close()

    def drain(self) -> None:
        """As the base; an output that is slow is given a moment, as this is the last word."""
        deadline = time.monotonic() + PATIENCE
        super().drain()
        while self._pending and time.monotonic() < deadline:
            poll = select.poll()
            poll.register(1, select.POLLOUT)
            poll.poll(100)
            self._write()

    def close(self) -> None:
        """Let go of both ends."""
        super().close()
        os.close(self._write_end)
