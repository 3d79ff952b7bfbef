"""What a task's caller wants of it: priority, category, attempts, timeout."""

from __future__ import annotations

from collections.abc import Hashable

from farm_executor._record import NamedTuple

__all__ = ["DEFAULTS", "TaskOptions"]


class TaskOptions(NamedTuple):
    """The options that an executor or a view of it sets for its tasks, which all refer to the same.

    Attributes:
        timeout: How many seconds a task may run; enforced by the scheduler's driver.
        header: What travels with the calls; None to take it when they are submitted.
    """

    priority: float = 0
    category: Hashable = None
    max_attempts: int = 3
    timeout: float | None = None
    header: bytes | None = None


DEFAULTS = TaskOptions()
