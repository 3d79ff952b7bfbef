"""The way to the spans of those who submit, which the client must not import.

This module owns the interface; `telemetry` makes the views that have such spans.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any, Protocol

__all__ = ["Tracing", "Within"]

Within = Callable[[], AbstractContextManager[object]]
"""Returns a context in which the calls that are submitted belong to a span."""


class Tracing(Protocol):
    """Gives spans to calls that are not submitted by a view's own methods. May be used from any thread."""

    def submitted(self, fn: Any, submit: Callable[[], Future[Any]]) -> Future[Any]:
        """Submit a call of the function, with a span from now to its end, unless it belongs to one already."""

    def spanning(self, what: str, fn: Any) -> AbstractContextManager[Within]:
        """Return a context that has a span, for several calls which belong to it."""
