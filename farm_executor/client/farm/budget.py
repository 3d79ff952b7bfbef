"""How many bytes of calls a farm may hold: whoever submits more waits, or is refused.

This module owns the count and the waiting. It must not know what the bytes are.
"""

from __future__ import annotations

import threading

from farm_executor.errors import FarmFullError

__all__ = ["Budget"]


class Budget:
    """Bytes to be taken for each call and given back when it has settled.

    Args:
        limit: How many there are. A call that is larger than that is admitted when nothing else is held.
        may_wait: Whether to wait for bytes; else `wait` raises.

    Attributes:
        waiting: How many callers wait.

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
        """Take so many bytes if they are there, or with ``now`` in any case; say whether they were taken."""
        with self._changed:
            taken = now or self._has_room(size)
            self._held += size * taken
        return taken

    def wait(self, size: int) -> None:
        """Wait until so many bytes may be there.

        Raises:
            FarmFullError: Waiting is not wanted.
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
        return self._closed or not self._held or self._held + size <= self._limit

    def give_back(self, size: int) -> None:
        """The call that took them has settled."""
        with self._changed:
            self._held -= size
            if self.waiting:
                self._changed.notify_all()

    def close(self) -> None:
        """Let everybody through: they will find out that there is no farm any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
