"""Poll for a while before sleeping.

This module owns the clock. It must not know what is looked for, nor decide for how long: `core.patience` does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from farm_executor.core.patience import Patience
from farm_executor.wire.cores import usable_cores

__all__ = ["Poller"]

_T = TypeVar("_T")


class Poller:
    """Polls in some waits, and learns from each whether that has paid.

    Thread safety: one thread at a time. A signal handler may poll on top of the thread that it has interrupted, or
    raise an exception there.
    """

    def __init__(self) -> None:
        self._patience = Patience(usable_cores())

    def poll(self, look: Callable[[], list[_T]]) -> list[_T]:
        """Return what ``look()`` returns once there is something; nothing if it is time to sleep.

        Args:
            look: It must not wait, but let go of the interpreter for a moment, as system calls for waiting do.
        """
        window = self._patience.window()
        if not window:
            return []
        began = time.perf_counter()
        while True:
            found = look()
            spent = time.perf_counter() - began
            if found:
                self._patience.came(spent)
                return found
            if spent >= window:
                self._patience.missed()
                return []
