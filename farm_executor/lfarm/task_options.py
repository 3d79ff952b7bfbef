"""The category and the priority of the tasks submitted in a context.

This module owns both, which belong to the context (`contextvars`). It must not know kernels, which read them at
each submission.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Literal

from farm_executor.lfarm.checks import check_category

if TYPE_CHECKING:
    from farm_executor.lfarm.submission import Options

__all__ = ["current_options", "task_category", "task_priority"]

PRIORITIES = ("default", "low")

current_options: ContextVar[Options] = ContextVar("current_options", default=("default", "default"))


@contextlib.contextmanager
def task_category(category: Hashable) -> Iterator[None]:
    """Set the category of tasks submitted in this context within a ``with`` block; outside, it is "default".

    A category belongs to the kernel: `kill_tasks` does not kill other kernels' tasks.

    Raises:
        ValueError: The category is None.
        TypeError: The category is not hashable.
    """
    check_category(category)
    with _with_options((category, current_options.get()[1])):
        yield


@contextlib.contextmanager
def task_priority(priority: Literal["default", "low"]) -> Iterator[None]:
    """Set the priority of tasks submitted in this context within a ``with`` block.

    Tasks of low priority run when no others are queued. Executors other than a farm ignore priorities.

    Raises:
        ValueError: The priority is neither "default" nor "low".
    """
    if priority not in PRIORITIES:
        raise ValueError(f"the priority of a task must be 'default' or 'low', not {priority!r}")
    with _with_options((current_options.get()[0], priority)):
        yield


@contextlib.contextmanager
def _with_options(options: Options) -> Iterator[None]:
    token = current_options.set(options)
    try:
        yield
    finally:
        current_options.reset(token)
