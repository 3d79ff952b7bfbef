"""Where the pickle of a shared object's handle leads: to the object itself, within a task.

This module owns the name that pickles have of it. It must not know where objects come from: a worker sets that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from farm_executor.errors import SharedMemoryError

__all__ = ["take"]

source: Callable[[int], Any] | None = None
"""Returns the shared object of that number; set in workers."""


def take(number: int) -> Any:
    """Return a shared object. Payloads name this function, so its name is part of the protocol.

    Raises:
        SharedMemoryError: This process is not a worker of the farm, or it cannot have the object.
    """
    if source is None:
        raise SharedMemoryError(f"shared object {number} is there in tasks of its farm only")
    return source(number)
