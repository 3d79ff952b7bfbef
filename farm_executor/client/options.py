"""What may be said of a task beside its call. This module knows nothing else, and so costs nothing to import."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

__all__ = ["TaskOptions"]


@dataclass(frozen=True)
class TaskOptions:
    """What a view of the executor sets for its tasks."""

    priority: float = 0
    category: Hashable = None
    max_attempts: int = 3
    timeout: float | None = None
