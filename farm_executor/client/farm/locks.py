"""A lock that can say whether the calling thread holds it.

Python runs signal handlers and destructors between any two bytecodes of a thread, so they may find that their own
thread holds a lock. They must not wait for that lock, so they ask `is_mine` first. Its answer is exact at every
bytecode; a field set beside a plain lock would be wrong between the two steps.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

__all__ = ["OwnedLock", "is_mine"]


def is_mine(lock: Any) -> bool:
    """Return whether the calling thread holds this RLock."""
    mine: bool = lock._is_owned()  # private, but `threading.Condition` relies on it, too
    return mine


class OwnedLock:
    """A lock that knows its owner.

    The lock underneath is an RLock, because that knows its owner. It must not be taken twice: check `is_mine`.

    Attributes:
        acquire: As in `threading.Lock`.
        release: As in `threading.Lock`.
        is_mine: Returns whether the calling thread holds the lock.
    """

    __slots__ = ("acquire", "is_mine", "release")

    def __init__(self) -> None:
        lock: Any = threading.RLock()
        # The RLock's own methods, bound once: the lock is taken for every call, and wrappers would slow that down.
        self.acquire: Callable[..., bool] = lock.acquire
        self.release: Callable[[], None] = lock.release
        self.is_mine: Callable[[], bool] = lock._is_owned  # private: see the function
