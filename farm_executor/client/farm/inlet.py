"""The items of a stream that have come and not been taken.

This module owns them, and when their worker is to be told how many have been. It must not know how a program takes
them, nor how anybody is told.

Items are unpickled by who takes them, so that users' code does not run in the farm's own thread. An inlet refers to
nothing that the program holds: a stream that the program lets go of can thus be collected, and close it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from farm_executor.core.frames import BULK_THRESHOLD, HEADER_SIZE, Frame, payload_size
from farm_executor.core.streams import MAX_AHEAD, MAX_BYTES_AHEAD, decode_items, number_of
from farm_executor.errors import RemoteProtocolError

__all__ = ["Inlet"]


class Inlet:
    """The items of one stream.

    Args:
        name: That of the function which yields them, for people.

    Attributes:
        closed: Whether no more are wanted.
        cut_short: Whether the farm has closed it, as it was shut down.
        let_go: Tells the worker that no more are wanted, if the task runs. Does not wait.

    Thread safety: frames are put in by the reactor's handlers; `take` is for one thread at a time.
    """

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.closed = self.cut_short = False
        self._frames: deque[tuple[Frame, int]] = deque()
        self._received = self._taken = self._told = 0
        self._bytes = self._bytes_taken = self._bytes_told = 0
        self._wakers: list[Callable[[], object]] = []
        self._credit: Callable[[int], None] = lambda taken: None
        self.let_go: Callable[[], None] = lambda: None

    @property
    def has_items(self) -> bool:
        """Whether any have come and not been taken."""
        return bool(self._frames)

    @property
    def is_full(self) -> bool:
        """Whether the worker waits for items to be taken."""
        # By what it has been told, as that is what it goes by.
        return self._received - self._told >= MAX_AHEAD or self._bytes - self._bytes_told >= MAX_BYTES_AHEAD

    def put(self, frame: Frame, credit: Callable[[int], None]) -> None:
        """Take in a frame of items, unless it has come before.

        Raises:
            RemoteProtocolError: It is not the next one, or malformed.
        """
        # The lane of this frame may be another than before: a task whose first worker has died before any item.
        number = number_of(frame)
        self._credit = credit
        if number > self._received:
            raise RemoteProtocolError(f"frame {number} of items, when {self._received} was due")
        if number < self._received:
            return  # sent again over another connection
        size = HEADER_SIZE + len(frame.body) + (payload_size(frame.segments) if frame.segments else 0)
        self._received += 1
        self._bytes += size
        if self.closed:
            self._taken += 1
            self._bytes_taken += size
        else:
            decode_items(frame)  # so that it is the lane that ends, if the table is wrong, and not the consumer
            self._frames.append((frame, size))
        self.wake()

    def take(self) -> Frame | None:
        """Take the next frame; None if there is none now."""
        try:
            frame, size = self._frames.popleft()
        except IndexError:
            return None
        self._taken += 1
        self._bytes_taken += size
        # Not for each frame, as it wakes the farm's own thread; but the worker must not wait in vain.
        if self._taken - self._told >= MAX_AHEAD // 4 or not self._frames or size >= BULK_THRESHOLD:
            self.tell()
        return frame

    def tell(self) -> None:
        """Tell the worker how many frames have been taken."""
        self._told, self._bytes_told = self._taken, self._bytes_taken
        self._credit(self._taken)

    def close(self, *, cut_short: bool = False) -> None:
        """Want no more items; those that have come are dropped, unless the farm itself closes the inlet."""
        self.closed = True
        self.cut_short = cut_short
        if not cut_short:
            self._frames.clear()
        self.wake()

    def when_changed(self, wake: Callable[[], object]) -> None:
        """Have a function called once, in any thread, when items have come or the task has ended."""
        # A list's append and pop are atomic, so no lock is held that a signal handler could need.
        self._wakers.append(wake)

    def wake(self, _: object = None) -> None:
        """Wake who waits."""
        # Each is called once: who has been woken looks, and comes back if there is nothing for it. Several may be
        # woken for one frame, which costs little, and none can be forgotten.
        while self._wakers:
            try:
                wake = self._wakers.pop()
            except IndexError:  # another thread is faster
                break
            wake()
