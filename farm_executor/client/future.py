"""The future that a farm gives: the standard library's, which also takes its task back when it is cancelled.

It must not know the engine: what to do on cancelling is passed in.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

__all__ = ["FarmFuture"]


class FarmFuture(Future[Any]):
    """A `concurrent.futures.Future` in every respect.

    Thread safety: as the standard library's.
    """

    def __init__(self) -> None:
        super().__init__()
        self.on_cancel: Callable[[], None] | None = None

    def cancel(self) -> bool:
        """Cancel the call if it has not been sent to a worker yet; see `concurrent.futures.Future.cancel`."""
        cancelled = super().cancel()
        if cancelled:
            withdraw, self.on_cancel = self.on_cancel, None
            if withdraw is not None:
                withdraw()
        return cancelled

    def abandon(self, error: BaseException) -> None:
        """Settle in a forked child, where the threads that would do so, or may hold its lock, do not exist."""
        self._condition = threading.Condition()
        self._waiters: list[Any] = []
        self._done_callbacks: list[Any] = []
        if not self.done():
            self.set_exception(error)
