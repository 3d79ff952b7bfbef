"""What may be said of a task beside its call. This module knows nothing else, and so costs nothing to import."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

__all__ = ["TaskOptions"]


class TaskOptions(NamedTuple):
    """What a view of the executor sets for its tasks."""

    priority: float = 0
    category: Hashable = None
    max_attempts: int = 3
    timeout: float | None = None
