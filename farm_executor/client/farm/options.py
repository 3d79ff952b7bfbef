"""Per-task options: priority, category, attempts, timeout. Imports next to nothing, so it is cheap to import."""

from __future__ import annotations

from collections.abc import Hashable

from farm_executor._record import NamedTuple

__all__ = ["TaskOptions"]


class TaskOptions(NamedTuple):
    """The options that an executor or a view of it sets for its tasks.

    Attributes:
        header: What travels with the calls; None to take it when they are submitted.
    """

    priority: float = 0
    category: Hashable = None
    max_attempts: int = 3
    timeout: float | None = None
    header: bytes | None = None
