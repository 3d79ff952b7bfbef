"""How much work to queue on one lane.

This module owns the estimate of how long a task lasts and the window that follows from it. It must not know
what a task is, and it has no clock: durations are passed in.
"""

from __future__ import annotations

__all__ = ["HORIZON_US", "MAX_WINDOW", "Window"]

HORIZON_US = 2_000.0
"""A lane is given about this many microseconds of work ahead: enough to hide the way there and back."""

MAX_WINDOW = 512


class Window:
    """The most tasks that may be outstanding on a lane, learnt from how long the last ones took.

    It starts at one, at most doubles with each report, and follows the slower of the newest and the average
    duration: a wrong guess upwards makes a task wait behind another, a wrong guess downwards costs microseconds.
    A task that lasts longer than the horizon gets nothing queued behind it.
    """

    __slots__ = ("_average_us", "size")

    def __init__(self) -> None:
        self.size = 1
        self._average_us = 0.0

    def report(self, tasks: int, busy_us: float) -> None:
        """Learn that the worker was busy that many microseconds with that many tasks."""
        newest = max(busy_us / tasks, 1.0)
        self._average_us = (self._average_us + newest) / 2 if self._average_us else newest
        estimate = max(newest, self._average_us)
        self.size = max(1, min(int(HORIZON_US / estimate), MAX_WINDOW, self.size * 2))
