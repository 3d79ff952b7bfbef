"""The output of one session's workers, told to its client.

This module owns how much of it may be on its way, how long a worker waits for a client that does not listen, and
where in each stream a piece belongs. It must not know connections, nor what is written.

The bytes of each stream are counted from the worker's birth, and each piece says where it begins. So a gap shows
how many bytes are missing, for whatever reason they were dropped, and a worker that knows the same counts can say
where a task's output ends.

Whoever writes more than the client shows has to wait, as for a slow terminal. A client that shows nothing for a
second is *deaf*: until it is heard of again, what is written is dropped, and nobody waits. One whose connection is
broken is waited for likewise, as most come back at once.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

from farm_executor.core.flow import DEAF_SECONDS, WINDOW
from farm_executor.core.frames import Buffer, FrameType, encode_frame
from farm_executor.errors import RemoteProtocolError
from farm_executor.server.marks import STDERR, STDOUT, Counts, Marks
from farm_executor.server.output import OutputPipe
from farm_executor.server.stderr import StderrPipe

__all__ = ["ForwardedPipe", "Forwarding", "WorkerOutput"]

PIECE = 32 * 1024  # bytes of a frame at most, as a control connection takes no body above 64 KiB
MAX_UNSENT = 64  # buffers that wait for the socket, so that other messages do not wait behind more

_U64 = struct.Struct("<Q")


class Forwarding:
    """One session's way of output to its client.

    Args:
        send: Sends buffers over the control connection; returns how many still wait there, or None if there is no
            connection.

    Attributes:
        restarts: How many connections there have been.
    """

    def __init__(self, send: Callable[[list[Buffer]], int | None]) -> None:
        self._send = send
        self.restarts = 0
        self._said = 0  # bytes of frames sent over the present connection
        self._heard = 0  # those of them that the client has shown
        self._unsent = 0
        self._cut = False
        self._full_since: float | None = None  # since when nothing more may be sent

    def cut(self) -> None:
        """Note that the connection is broken."""
        self._cut = True
        self._full_since = time.monotonic()

    def restart(self) -> None:
        """Begin again over another connection, which counts from 0."""
        self._said = self._heard = self._unsent = 0
        self._cut = False
        self._full_since = None
        self.restarts += 1

    def hear(self, shown: int) -> None:
        """Note that the client has shown that many bytes of the present connection.

        Raises:
            RemoteProtocolError: It has not been sent that many, or has shown more before.
        """
        if not self._heard <= shown <= self._said:
            raise RemoteProtocolError(f"{shown} bytes of output heard, after {self._heard}, of {self._said} sent")
        self._heard = shown
        self._full_since = None

    def drained(self) -> None:
        """Note that the socket has taken everything."""
        self._unsent = 0

    @property
    def has_room(self) -> bool:
        """Whether more may be sent now."""
        return not self._cut and self._said - self._heard < WINDOW and self._unsent < MAX_UNSENT

    def is_patient(self) -> bool:
        """Return whether writers should wait for room, rather than lose what they write."""
        now = time.monotonic()
        if self._full_since is None:
            self._full_since = now
        return now - self._full_since < DEAF_SECONDS

    def say(self, stream: int, lane: int, offset: int, data: bytes) -> bool:
        """Send a piece, or only where the stream has come to; return False if there is no connection."""
        frame = encode_frame(FrameType.OUTPUT, count=stream, seq=offset, body=_U64.pack(lane) + data)
        unsent = self._send(frame)
        if unsent is None:
            return False
        self._said += sum([len(buffer) for buffer in frame])
        self._unsent = unsent
        return True


class ForwardedPipe(OutputPipe):
    """One stream of one worker.

    Attributes:
        forwarding: The session's way to its client.
        stuck: Whether some of it waits until the client has shown more.
        read_end: For the worker, which looks how much waits there.
    """

    stream: int

    def begin_forwarding(self, forwarding: Forwarding, lane: int, counts: Counts) -> None:
        """Set where to, for which lane, and the memory shared with the worker."""
        self.forwarding = forwarding
        self._lane = lane
        self._counts: Counts | None = counts
        self._offset = 0  # bytes read so far
        # Up to where the client knows the stream, by its bytes or by a gap, and over which connection it was told.
        # What the last one has taken may not have arrived.
        self._told = (0, forwarding.restarts)
        self._full = False
        self._at_the_end = False

    @property
    def read_end(self) -> int:
        """See the class."""
        return self._read_end

    @property
    def stuck(self) -> bool:
        """See the class."""
        return self._full

    def copy(self) -> bool:
        """Pass on what has come, if there is room for it; return whether that was the end."""
        forwarding = self.forwarding
        self._full = not forwarding.has_room and forwarding.is_patient()
        if not self._full:
            self._read()
        return self._ended

    def drain(self) -> None:
        """Take all that a dead worker has left, and pass it on whatever the room: nobody could wait for more."""
        self._at_the_end = True
        super().drain()
        self._at_the_end = False
        self._counts = None  # a process that the worker left behind may still write, and nobody counts that

    def catch_up(self) -> None:
        """Tell the client that what it lacks has been dropped, so that it does not wait for it."""
        if self._offset and self._told != (self._offset, self.forwarding.restarts) and self.forwarding.has_room:
            self._say(b"")

    def _read(self) -> bytes:
        counts = self._counts
        try:
            if counts is None:
                data = os.read(self._read_end, PIECE)
            else:
                with counts.changing:
                    data = os.read(self._read_end, PIECE)
                    counts.set_read(self.stream, self._offset + len(data))
        except BlockingIOError:
            return b""
        self._ended = not data
        if data and (self.forwarding.has_room or self._at_the_end):
            self._say(data)
        self._offset += len(data)
        return data

    def _say(self, data: bytes) -> None:
        if self.forwarding.say(self.stream, self._lane, self._offset, data):
            self._told = (self._offset + len(data), self.forwarding.restarts)

    def _write(self) -> None:
        """Do nothing: there is no output of ours."""


class _Stdout(ForwardedPipe):
    """A worker's standard output."""

    stream = STDOUT

    def __init__(self) -> None:
        super().__init__(None)

    def attach(self) -> None:
        """Make it the worker's standard output."""
        os.dup2(self._write_end, STDOUT)  # inheritable, for the processes that tasks start
        os.close(self._write_end)


class _Stderr(StderrPipe, ForwardedPipe):  # in this order: the former keeps what the latter reads
    """A worker's standard error."""

    stream = STDERR

    def __init__(self) -> None:
        super().__init__(whole=True)
        self._whole = True  # whether or not there is a standard error of ours

    def attach(self) -> None:
        """Make it the worker's standard error."""
        self._attach_write_end()  # and leave the other end open: the worker looks there


class WorkerOutput:
    """The pipes of one worker.

    Args:
        forwarding: The session's way to its client; None if output stays here.
        lane: The worker's lane.
        embedded: See `Supervisor`: a worker that is embedded, and does not forward, keeps the outputs it inherits.

    Raises:
        OSError: The system gives no more descriptors, or no memory.

    Attributes:
        stderr: The pipe of standard error, or of Python's reports of a crash.
    """

    def __init__(self, forwarding: Forwarding | None, lane: int, *, embedded: bool) -> None:
        self._stdout: _Stdout | None = None
        self._counts: Counts | None = None
        self.stderr = StderrPipe(whole=not embedded) if forwarding is None else _Stderr()
        if forwarding is not None:
            try:
                self._counts = Counts()
                self._stdout = _Stdout()
            except OSError:
                self.stderr.abandon()
                raise
            for pipe in (self._stdout, self.stderr):
                assert isinstance(pipe, ForwardedPipe)
                pipe.begin_forwarding(forwarding, lane, self._counts)

    def all(self) -> list[OutputPipe]:
        """Return the pipes, to listen to."""
        return [self.stderr] if self._stdout is None else [self._stdout, self.stderr]

    def abandon(self) -> None:
        """Close everything; called in the supervisor when there is no worker after all."""
        for pipe in self.all():
            pipe.abandon()

    def attach(self) -> Marks | None:
        """Write to the pipes from now on; called in the worker. Returns what tells its tasks' output apart."""
        self.stderr.attach()
        if self._stdout is None:
            return None
        self._stdout.attach()
        assert self._counts is not None
        assert isinstance(self.stderr, _Stderr)
        marks = Marks(self._counts, (self._stdout.read_end, self.stderr.read_end))
        sys.stdout = sys.__stdout__ = _open(STDOUT, "<stdout>", marks)  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = _open(STDERR, "<stderr>", marks)  # type: ignore[misc]
        _buffer_lines()
        return marks


class _Raw(io.FileIO):
    """A descriptor that says when Python writes to it, so that a task which prints is noticed at once."""

    marks: Marks

    def write(self, data: Any) -> int:
        self.marks.talks()
        return super().write(data)


def _open(stream: int, name: str, marks: Marks) -> io.TextIOWrapper:
    """Return Python's stream for a descriptor.

    It is a new one, because that of the server may have another encoding than the one that clients expect, and one
    that was made for a file refuses to change it.
    """
    raw = _Raw(stream, "wb", closefd=False)
    raw.marks = marks
    raw.name = name
    buffer = io.BufferedWriter(raw)
    text = io.TextIOWrapper(buffer, "utf-8", "backslashreplace", newline="\n", line_buffering=True)
    text.mode = "w"  # type: ignore[misc]
    return text


def _buffer_lines() -> None:
    """Have C's standard output buffered by lines: into a pipe it would go in blocks, too late for its task."""
    import ctypes  # late: workers of an embedded farm do not need it

    with contextlib.suppress(Exception):  # another C library: then its lines come later
        library = ctypes.CDLL(None)
        stdout = ctypes.c_void_p.in_dll(library, "__stdoutp" if sys.platform == "darwin" else "stdout")
        library.setvbuf(stdout, None, 1, 4096)  # 1 is _IOLBF
