"""The output of workers, passed on to an output of the supervisor's that may take none of it.

This module owns the pipe between workers and that output, and how long it waits for an output that takes nothing.
It must not know what is written, nor block the supervisor meanwhile.

The reader of the supervisor's output may be gone, may have stopped reading, or may be a disk that is full. No task
fails because of that, and none waits for more than a moment: data that is not taken is dropped.
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
    """Open closed standard streams, so that no socket gets the number of one, to which C code may write."""
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
        """Pass on what has come; return whether that was the end."""
        if not self._pending:
            self._read()
        self._write()
        return self._ended and not self._pending

    def drain(self) -> None:
        """Take all that a dead writer has left; a process that it left behind may still write more."""
        for _ in range(AT_THE_END // PIECE):
            if self._ended or not self._read():
                break
        self._write()

    def begin(self) -> None:
        """Leave the other end to the worker; called in the supervisor once there is one."""
        os.close(self._write_end)

    def abandon(self) -> None:
        """Close both ends; called in the supervisor when there is no worker after all."""
        os.close(self._write_end)
        os.close(self._read_end)

    def close(self) -> None:
        """Close the pipe; anything written after that is lost."""
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
            # The output may be shared with other processes, so it stays blocking. A write of no more than this many
            # bytes does not block once poll() has said that there is room.
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
    """Return whether the descriptor takes `TAKEN` bytes without blocking."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(0))


class StdoutPipe(OutputPipe):
    """The pipe from all workers to the supervisor's standard output, in the order in which they write."""

    def __init__(self) -> None:
        super().__init__(1)

    def attach(self) -> None:
        """Make it the worker's standard output."""
        os.dup2(self._write_end, 1)  # inheritable, for the processes that tasks start
        self.close()

    def drain(self) -> None:
        """Take all that is left, and give a slow output a moment, as nothing comes after this."""
        deadline = time.monotonic() + PATIENCE
        super().drain()
        while self._pending and time.monotonic() < deadline:
            poll = select.poll()
            poll.register(1, select.POLLOUT)
            poll.poll(100)
            self._write()

    def close(self) -> None:
        """Close both ends."""
        super().close()
        os.close(self._write_end)
