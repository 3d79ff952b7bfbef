"""Run the coroutine that an async function has returned: its result is the task's.

This module owns how that is done. It must not know who has called the function, nor what becomes of the result.
"""

from __future__ import annotations

from types import CoroutineType
from typing import Any

__all__ = ["all_awaited", "awaited"]


def awaited(value: Any) -> Any:
    """Return what a function has returned; if that is a coroutine, run it, and return its result.

    Each has an event loop of its own, in the calling thread, which ends with it: what it has started and not
    awaited is cancelled, and nothing of it reaches the next.
    """
    if type(value) is not CoroutineType:
        return value
    import asyncio  # late: most workers never need it

    return asyncio.run(value)


def all_awaited(values: list[Any]) -> list[Any]:
    """Do the same for each of the values that a function has returned, one after the other."""
    if CoroutineType not in map(type, values):
        return values
    try:
        return [awaited(value) for value in values]
    finally:
        for value in values:
            if type(value) is CoroutineType:
                value.close()  # those after one that has failed would warn that nobody has awaited them
