"""Decide how much work to queue on one lane.

This module owns the estimates of a task's duration and of the round trip to the worker, and the window that follows
from them. It must not know what a task is, and it has no clock: durations are passed in.
"""

from __future__ import annotations

__all__ = ["GROWTH", "HORIZON_US", "MAX_WINDOW", "Window"]

HORIZON_US = 2_000.0
"""A lane is given about this many microseconds of work ahead, or two round trips if that is more.

Two, because a lane is refilled when half of its window is free: the other half must last for one round trip.
"""

LONGEST_ROUND_TRIP_US = 1_000_000.0  # anything longer was not a round trip but a program busy with something else

# Six reports lead from one task to the most, so a lane of very short tasks is full within milliseconds.
GROWTH = 4
# Several times what the horizon has room for of the shortest tasks: it bounds only estimates that are wrong.
MAX_WINDOW = 4096


class Window:
    """The most tasks that may be outstanding on a lane, learnt from how long the last ones took.

    It starts at one, at most quadruples with each report, and follows the longer of the newest and the average
    duration: a window that is too large makes a task wait behind another, one that is too small costs microseconds.
    Nothing is queued behind a task that lasts longer than the horizon. Of the last two round trips the shorter one
    counts, for the same reason.

    Attributes:
        size: The number of tasks, from 1 to `MAX_WINDOW`.
    """

    # No min() and max(), which take several times as long as to compare: each call's answer comes through here.

    __slots__ = ("_average_us", "_horizon_us", "_round_trip_us", "size")

    def __init__(self) -> None:
        self.size = 1
        self._average_us = 0.0
        self._round_trip_us = LONGEST_ROUND_TRIP_US
        self._horizon_us = HORIZON_US

    def report(self, tasks: int, busy_us: float, round_trip_us: float | None = None) -> None:
        """Learn how long the last tasks took.

        Args:
            tasks: How many there were.
            busy_us: How many microseconds the worker was busy with them.
            round_trip_us: How many microseconds the first of them took beyond that, if the lane was idle when it
                was sent.
        """
        if round_trip_us is not None:
            # The two are measured by different clocks, so it may be below zero, which is as good as none at all.
            newest = round_trip_us if round_trip_us < LONGEST_ROUND_TRIP_US else LONGEST_ROUND_TRIP_US
            horizon = 2 * (newest if newest < self._round_trip_us else self._round_trip_us)
            self._horizon_us = horizon if horizon > HORIZON_US else HORIZON_US
            self._round_trip_us = newest
        # At least a microsecond, because of the frames that share one report only the first holds the busy time.
        newest = busy_us / tasks if busy_us > tasks else 1.0
        average = (self._average_us + newest) / 2 if self._average_us else newest
        self._average_us = average
        size = int(self._horizon_us / (newest if newest > average else average))
        most = self.size * GROWTH if self.size < MAX_WINDOW // GROWTH else MAX_WINDOW
        self.size = (size if size < most else most) or 1
