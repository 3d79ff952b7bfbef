"""The way to a program's own dashboard, which the client must not import.

This module owns the interface; the package itself says what opens one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["VARIABLE", "Page", "open_page", "wanted"]

VARIABLE = "FARM_EXECUTOR_DASHBOARD"


class Page(Protocol):
    """A dashboard that is served."""

    @property
    def url(self) -> str:
        """Its address, with the token that lets a browser in."""

    def close(self) -> None:
        """Serve it no longer. May be called twice."""


open_page: Callable[[Any, str, bool], Page]
"""Serves the dashboard of a `backing.Backing` at HOST:PORT, with True also where others can reach it."""


def wanted() -> str:
    """Return where the environment wants every farm's dashboard; empty for nowhere, as in workers."""
    from farm_executor.wire.security import is_worker

    listen = os.environ.get(VARIABLE, "")
    return "" if not listen or is_worker() else listen
