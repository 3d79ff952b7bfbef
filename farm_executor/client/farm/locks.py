"""A lock that can say whether the calling thread holds it.

Python runs signal handlers and destructors between any two bytecodes of a thread, so they may find that their own
thread holds a lock. They must not wait for that lock, and ask `is_mine` first: the answer is exact at every
bytecode, which that of a field set beside a plain lock is not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

__all__ = ["OwnedLock", "is_mine"]


def is_mine(lock: Any) -> bool:
    """Whether the calling thread holds an RLock."""
    mine: bool = lock._is_owned()  # which Condition uses, too
    return mine


class OwnedLock:
    """A lock with an owner.

    The lock underneath is an RLock, for its knowledge of its owner. It must not be taken twice: see `is_mine`.

    Attributes:
        acquire: As a lock's.
        release: As a lock's.
        is_mine: Whether the calling thread holds it.
    """

    __slots__ = ("acquire", "is_mine", "release")

    def __init__(self) -> None:
        lock: Any = threading.RLock()
        self.acquire: Callable[..., bool] = lock.acquire
        self.release: Callable[[], None] = lock.release
        self.is_mine: Callable[[], bool] = lock._is_owned  # which Condition uses, too
