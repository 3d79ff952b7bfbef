"""Where in a worker's output its tasks begin and end.

This module owns how a worker finds out, at any moment, how many bytes have ever been written to its descriptors 1
and 2, by itself and by the processes that it has started. It must not know what is written, nor who reads it.

The supervisor reads the pipes and counts in shared memory; what it has not read waits in the pipes, and the system
tells how much that is. The sum of both is what has been written. A worker that writes nothing looks at this once
for each sending of outcomes, which takes a microsecond; one that does is *talkative* for a while, and looks after
each task.

Order matters, as the supervisor reads at the same time: first the pipe, then the flag that says that a piece may be
in neither place, then the counts. In any other order a piece can pass by unseen.
"""

from __future__ import annotations

import fcntl
import mmap
import select
import struct
import sys
import termios
import threading
import time
from collections import deque
from types import TracebackType

from farm_executor.core.frames import Buffer, FrameType, encode_frame
from farm_executor.server.progress import BEGUN

__all__ = ["STDERR", "STDOUT", "Counts", "Marks"]

STDOUT, STDERR = 1, 2
TALKATIVE = 1000  # looks in a row that find nothing before tasks are no longer looked at one by one
MOST_MARKS = 10_000  # in one frame
MUCH = 64 * 1024  # bytes: a fraction of what a client keeps of a stream until it hears whose it is
COUNT_SECONDS = 15.0  # for the supervisor to finish counting what it has read
FIRST_LOOK, LAST_LOOK = 0.0001, 0.005  # seconds between two looks whether it has

_COUNT = struct.Struct("<Q")
_MARK = struct.Struct("<5Q")
_READING_AT = 2 * _COUNT.size
_SIZE = _READING_AT + 1


class Counts:
    """Memory that a worker shares with its supervisor: how many bytes of each stream the supervisor has read.

    Raises:
        OSError: There is no memory.

    Attributes:
        changing: A context for the supervisor, while it reads and counts.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _SIZE)
        self.changing = _Changing(self._memory)

    def set_read(self, stream: int, count: int) -> None:
        """Set how many bytes of a stream have been read."""
        _COUNT.pack_into(self._memory, _COUNT.size * (stream - 1), count)

    def read(self, stream: int) -> int:
        """Return how many bytes of a stream have been read."""
        count: int = _COUNT.unpack_from(self._memory, _COUNT.size * (stream - 1))[0]
        return count

    @property
    def is_changing(self) -> bool:
        """Whether the supervisor is about to change a count."""
        return bool(self._memory[_READING_AT])

    def snapshot(self) -> bytes:
        """Return something that differs as soon as either count does."""
        return self._memory[:_READING_AT]


class _Changing:
    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory

    def __enter__(self) -> None:
        self._memory[_READING_AT] = 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._memory[_READING_AT] = 0


class Marks:
    """Says which bytes of the worker's output are which task's.

    Args:
        counts: The memory shared with the supervisor.
        read_ends: The ends of the pipes that the supervisor reads, of standard output and standard error. Not
            descriptors 1 and 2, in place of which a task may put anything.

    Attributes:
        talkative: Whether tasks are to be looked at one by one.

    Thread safety: all methods may be called from any thread.
    """

    def __init__(self, counts: Counts, read_ends: tuple[int, int]) -> None:
        self._counts = counts
        self._read_ends = read_ends
        self._poll = select.poll()
        for descriptor in read_ends:
            self._poll.register(descriptor, select.POLLIN)
        self._lock = threading.Lock()  # a poll object must not be used by two threads at once
        self._size = bytearray(4)
        self._seen = b""  # the counts before the last full look
        self._written = (0, 0)  # what the last full look has found
        self._left = TALKATIVE
        self._unsaid = 0  # bytes that tasks have written of which nothing has been sent
        self._marks: deque[tuple[int, bytes]] = deque()  # by task, those to be sent
        self._sent: deque[tuple[int, bytes]] = deque()  # those that may have to be sent again

    @property
    def talkative(self) -> bool:
        """See the class."""
        return self._left > 0

    def talks(self) -> None:
        """Look at tasks one by one from now on."""
        self._left = TALKATIVE

    def begin(self) -> None:
        """Note that a task begins, or that none ever has: what was written before is not its own."""
        with self._lock:
            if not self._is_quiet():
                self._look()

    def end(self, progress: memoryview, sent: int = 0) -> bool:
        """Note that the last task begun has written all that has been written since the last look.

        Args:
            progress: Holds its number; see `progress`.
            sent: How many outcomes have been sent: if its own is among them, nothing runs.

        Returns:
            Whether so much has been written that its mark should be sent before more is.
        """
        with self._lock:
            if self._is_quiet():
                if self._left:
                    self._left -= 1
                return False
            before = self._written
            self._look()
            # Asked after the look: with the lock held no other task can have begun since, of those that print.
            seq = progress[BEGUN]
            if self._written != before and seq >= sent:
                mark = _MARK.pack(seq, *before, *self._written)
                self._marks.append((seq, mark))
                self._unsaid += sum(self._written) - sum(before)
                self._left = TALKATIVE
            elif self._left:
                self._left -= 1
            return self._unsaid >= MUCH

    def take(self, *, keep: bool) -> list[Buffer]:
        """Return the frames that say what is not yet said; with ``keep`` they may be asked for again."""
        marks = [self._marks.popleft() for _ in range(len(self._marks))]
        self._unsaid = 0
        if keep:
            self._sent += marks
        frames: list[Buffer] = []
        for start in range(0, len(marks), MOST_MARKS):
            some = marks[start : start + MOST_MARKS]
            frames += encode_frame(FrameType.MARKS, count=len(some), body=b"".join([mark for _, mark in some]))
        return frames

    def acknowledge(self, number: int) -> None:
        """Forget the marks of tasks before that one, whose outcomes have arrived."""
        while self._sent and self._sent[0][0] < number:
            self._sent.popleft()

    def say_again(self) -> None:
        """Say again what may not have arrived, over another connection."""
        self._marks.extendleft(reversed(self._sent))
        self._sent.clear()

    def _is_quiet(self) -> bool:
        """Return whether nothing has been written since the last full look."""
        if self._poll.poll(0) or self._counts.is_changing:
            return False
        return self._counts.snapshot() == self._seen

    def _look(self) -> None:
        # Taken before what it belongs to: what changes meanwhile must be seen to have changed.
        self._seen = self._counts.snapshot()
        self._written = (self._total(STDOUT), self._total(STDERR))

    def _total(self, stream: int) -> int:
        counts = self._counts
        # The supervisor may have to wait for a processor between reading and counting, on a busy machine for long.
        # Without an end only if it stands still: then the total is too low, and the end of this output is taken for
        # another task's, but nothing waits for ever.
        pause, slept = FIRST_LOOK, 0.0
        while True:
            read = counts.read(stream)
            fcntl.ioctl(self._read_ends[stream - 1], termios.FIONREAD, self._size, True)
            waiting = int.from_bytes(self._size, sys.byteorder)
            if slept > COUNT_SECONDS or (not counts.is_changing and counts.read(stream) == read):
                return max(read + waiting, self._written[stream - 1])
            time.sleep(pause)
            slept, pause = slept + pause, min(2 * pause, LAST_LOOK)
