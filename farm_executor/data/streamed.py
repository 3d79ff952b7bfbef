"""What a task is that yields items: how a worker is told, by a function that it finds by name.

This module owns that function, and the items of a stream as a payload. It must not know how they travel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Streamed", "stream_out"]


class Streamed:
    """What a function has returned whose items are to be sent one by one."""

    __slots__ = ("items",)

    def __init__(self, items: Any) -> None:
        self.items = items


def stream_out(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Streamed:
    """Call a function whose items are to be sent one by one."""
    return Streamed(fn(*args, **kwargs))
