"""The limit on the bytes of calls that a farm holds: a thread that submits more waits, or is refused.

This module owns the count and the waiting. It must not know what the bytes are.
"""

from __future__ import annotations

import threading

from farm_executor.errors import FarmFullError

__all__ = ["Budget"]


class Budget:
    """A budget of bytes; each call takes its size and gives it back when it has settled.

    Args:
        limit: The most bytes to hold. A call that is larger is admitted when nothing else is held.
        may_wait: Whether `wait` waits for bytes; if not, it raises.

    Attributes:
        waiting: How many callers are waiting.

    Thread safety: all methods may be called from any thread.
    """

    def __init__(self, limit: int, *, may_wait: bool) -> None:
        self._limit = limit
        self._may_wait = may_wait
        self._changed = threading.Condition()
        self._held = 0
        self._closed = False
        self.waiting = 0

    def take(self, size: int, *, now: bool = False) -> bool:
        """Take that many bytes if there is room, or with ``now`` in any case; return whether they were taken."""
        with self._changed:
            taken = now or self._has_room(size)
            self._held += size * taken
        return taken

    def wait(self, size: int) -> None:
        """Wait until there may be room for that many bytes; it takes none, so another caller may be faster.

        Raises:
            FarmFullError: The budget was made with ``may_wait=False``.
        """
        with self._changed:
            if not self._may_wait:
                raise FarmFullError(
                    f"the farm holds {self._held} bytes of calls; {size} more would exceed "
                    f"max_pending_bytes={self._limit}. Wait for some results before submitting more."
                )
            self.waiting += 1
            try:
                self._changed.wait_for(lambda: self._has_room(size))
            finally:
                self.waiting -= 1

    def _has_room(self, size: int) -> bool:
        # `not self._held`: a call beyond the limit would otherwise wait for ever.
        return self._closed or not self._held or self._held + size <= self._limit

    def give_back(self, size: int) -> None:
        """Give back that many bytes: the call that took them has settled."""
        with self._changed:
            self._held -= size
            # All of them: the sizes that they wait for differ, so the one that `notify` picks might not fit.
            if self.waiting:
                self._changed.notify_all()

    def close(self) -> None:
        """Let all waiting callers through; they then find that the farm has been shut down."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
