"""The executor of joblib's backend, when the program gives none: one at a time, kept for the next call.

Workers that have imported a program's libraries are worth keeping, as loky keeps its own: scikit-learn alone takes
a second. This module owns how long, and for which settings. An executor that is replaced ends when the last call
that uses it has ended.
"""

from __future__ import annotations

import os
import threading
from typing import Any

from farm_executor.client.executor import FarmExecutor
from farm_executor.client.front import backing_of

__all__ = ["IDLE_SECONDS", "executor_for", "released"]

IDLE_SECONDS = 300.0  # as in loky; then the workers are given back


class _Current:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.settings: dict[str, Any] = {}
        self.executor: FarmExecutor | None = None
        self.timer: threading.Timer | None = None

    def stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


_current = _Current()


def executor_for(settings: dict[str, Any], workers: int) -> FarmExecutor:
    """Return the executor that is there, or a new one if its settings are others or it is too small.

    Args:
        settings: The arguments of `FarmExecutor`.
        workers: How many workers an embedded farm must have, unless the settings say.
    """
    current = _current
    with current.lock:
        current.stop_timer()
        executor = current.executor
        sized = bool(settings.get("addresses") or settings.get("max_workers"))
        if (
            executor is not None
            and not _is_over(executor)
            and _same(current.settings, settings)
            and (sized or backing_of(executor).max_workers >= workers)
        ):
            return executor
        own = {} if sized else {"max_workers": workers}
        current.executor = None  # before the next one is made, so that both never have all their workers
        current.executor, current.settings = FarmExecutor(**{**settings, **own}), settings
        return current.executor


def released() -> None:
    """Begin to count the seconds for which the executor is idle. The next `executor_for` stops that."""
    current = _current
    with current.lock:
        current.stop_timer()
        current.timer = threading.Timer(IDLE_SECONDS, _let_go)
        current.timer.daemon = True  # the end of the program does not wait for it
        current.timer.start()


def _let_go() -> None:
    with _current.lock:
        _current.executor = None


def _is_over(executor: FarmExecutor) -> bool:
    return executor.statistics().state in ("shut down", "broken")


def _same(old: dict[str, Any], new: dict[str, Any]) -> bool:
    try:
        return bool(old == new)
    except Exception:  # arguments of the initializer that cannot be compared, such as arrays
        return False


def _begin_in_child() -> None:
    global _current
    _current = _Current()  # the lock may have been held, and the timer's thread is the parent's


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_child)
